# SPDX-License-Identifier: MIT
"""Colours, markers, sizes, and the file that a picture becomes.

Colours are Okabe and Ito's, which colour-blind readers tell apart; every series has a marker of its own too, and its
name beside it.  Sizes are for a page 800 pixels wide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

WIDTH = 8.0  # inches; at 100 dots an inch the page's 800 pixels, at DPI sharp on fine screens
DPI = 160
TITLE_LENGTH = 72  # characters in a line

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
    "svg.hashsalt": "memslots",  # the same report gives the same file
}

BLACK, GREY, LIGHT = "#000000", "#666666", "#dddddd"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

BASE = "tree"  # what the others are compared with


class Look(NamedTuple):
    """How a backend is drawn, in every picture."""

    color: str
    marker: str


LOOKS = {
    "tree": Look(BLUE, "o"),
    "array": Look(VERMILLION, "s"),
    "list": Look(GREEN, "^"),
    "tree+index": Look(SKY, "X"),
    "kvm": Look(BLACK, "D"),
}
FURTHER_LOOKS = (
    Look(PURPLE, "v"),
    Look(ORANGE, "P"),
    Look(GREY, "<"),
    Look(GREY, ">"),
)


def looks(backends: Iterable[str]) -> dict[str, Look]:
    """A look for each; peers beyond the known ones get what is left, in order."""
    spare = iter(FURTHER_LOOKS)
    return {name: LOOKS.get(name) or next(spare, Look(GREY, "*")) for name in backends}


@contextmanager
def picture(path: str | Path, height: float, title: str) -> Iterator[Figure]:
    """A figure that is written when the block ends."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        lines = [line if "$" in line else fill(line, TITLE_LENGTH) for line in title.splitlines()]
        figure.suptitle("\n".join(lines), x=0.01, ha="left")
        yield figure
        stamp = {"Date": None} if str(path).endswith(".svg") else None
        figure.savefig(path, dpi=DPI, metadata=stamp)
