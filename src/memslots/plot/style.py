# SPDX-License-Identifier: MIT
"""Colours, markers and sizes, and the common figure of all pictures: a title, a legend, and notes below it.

Colour-blind readers can tell the colours apart (Okabe and Ito's, two of Paul Tol's).  Every backend also has a marker
of its own.  Sizes are for a page 800 pixels wide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple
from zlib import crc32

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from .files import written_path

# Inches: 800 pixels of a page at 100 dots per inch.  DPI has more dots, for fine screens.
WIDTH = 8.0
DPI = 160
TITLE_LENGTH = 72  # characters per line
NOTE_LENGTH = 136
SMALL = 8  # points: the smallest text, 11 pixels on the page
FOOT_PAD = 0.06  # inches: below the notes, and between notes and legend

STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "memslots",  # a fixed salt, so that the same report gives the same file
}

BLACK, GREY, LIGHT = "#000000", "#666666", "#dddddd"
ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
WINE, OLIVE = "#882255", "#999933"


class Look(NamedTuple):
    """The colour and the marker of a backend, the same in every picture."""

    color: str
    marker: str


LOOKS = {
    "tree": Look(BLUE, "o"),
    "array": Look(VERMILLION, "s"),
    "list": Look(GREEN, "^"),
    "tree+index": Look(SKY, "X"),
    "kvm": Look(BLACK, "D"),
    "numpy": Look(PURPLE, "v"),
    "numpy argsort": Look(ORANGE, "P"),
    "bisect": Look(GREY, "<"),
    "SortedDict": Look(GREY, ">"),
    "intervaltree": Look(GREY, "*"),
}
#: For designs that a user adds; none of them is in LOOKS.
OWN_LOOKS = [Look(c, m) for m in "pd<>*hvP" for c in (WINE, OLIVE, PURPLE, ORANGE)]
OWN_LOOKS = [look for look in OWN_LOOKS if look not in LOOKS.values()]


def looks(backends: Iterable[str]) -> dict[str, Look]:
    """A look for each backend.  It depends on the name, so that a new design does not change the looks of others.

    If two new names have the same look, the later one gets the next free look.
    """
    found: dict[str, Look] = {}
    for name in backends:
        found[name] = LOOKS.get(name) or _own_look(name, found)
    return found


def _own_look(name: str, taken: dict[str, Look]) -> Look:
    first = crc32(name.encode()) % len(OWN_LOOKS)
    turned = OWN_LOOKS[first:] + OWN_LOOKS[:first]
    return next((look for look in turned if look not in taken.values()), turned[0])


@contextmanager
def picture(
    path: str | Path,
    height: float,
    title: str,
    handles: Sequence[Any] = (),
    notes: Sequence[str] = (),
) -> Iterator[Figure]:
    """A figure, which is written at the end of the block.  The legend and the notes add to its height."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        lines = [line if "$" in line else fill(line, TITLE_LENGTH) for line in title.splitlines()]
        figure.suptitle("\n".join(lines), x=0.01, ha="left")
        yield figure
        _add_foot(figure, handles, notes)
        target = written_path(path)
        stamp = {"Date": None} if target.suffix.lower() == ".svg" else None
        figure.savefig(target, dpi=DPI, metadata=stamp)


def _add_foot(figure: Figure, handles: Sequence[Any], notes: Sequence[str]) -> None:
    """Puts the notes at the bottom, the legend above them, and all axes above both."""
    text = figure.text(0.01, 0, _wrapped(notes), fontsize=SMALL, color=GREY, va="bottom")
    legend = _fitting_legend(figure, handles) if handles else None
    above = _height(text) + 2 * FOOT_PAD if notes else 0.0
    foot = above + (_height(legend) if legend else 0.0)
    total = figure.get_figheight() + foot
    figure.set_size_inches(WIDTH, total)
    text.set_y(FOOT_PAD / total)
    text.set_in_layout(False)
    if legend:
        legend.set_bbox_to_anchor((0.5, above / total), transform=figure.transFigure)
        legend.set_in_layout(False)
    figure.get_layout_engine().set(rect=(0, foot / total, 1, 1 - foot / total))  # type: ignore[union-attr, call-arg]


def _wrapped(notes: Iterable[str]) -> str:
    return "\n".join(fill(note, NOTE_LENGTH, subsequent_indent="   ") for note in notes)


def _height(artist: Any) -> float:
    """The height of a text or a legend, in inches."""
    return float(artist.get_window_extent().height / artist.get_figure().dpi)


def _fitting_legend(figure: Figure, handles: Sequence[Any]) -> Legend:
    """A legend with as many columns as the width allows."""
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=9)
        if columns == 1 or legend.get_window_extent().width <= 0.98 * figure.bbox.width:
            break
        legend.remove()
    return legend
