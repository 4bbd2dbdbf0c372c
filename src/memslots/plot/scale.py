# SPDX-License-Identifier: MIT
"""The picture of growth: time against the number of slots."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..measure import fit
from ..measure.duel import BASE, RIVAL
from ..measure.noise import is_busy
from ..measure.published import SOURCE
from .files import written_path
from .rows import (
    Row,
    absence_notes,
    busy_notes,
    decades,
    factor_text,
    in_title,
    label,
    log_axis,
    looks_of,
    measured,
    not_run,
    short,
    tick_time,
    wrong_notes,
)
from .style import BLACK, GREY, LIGHT, SMALL, Look, picture

COLUMNS = 2
PANEL = 1.8  # inches, the least height of a panel
LABEL = 0.155  # inches from one label to the next
LONGEST_LABEL = 16  # characters of a name: a longer one would take the width of the panels
AROUND = 0.45  # inches of a panel's height outside of its axes

#: The cases that are drawn.  A page has no room for more.
CASES = (
    "change/create",
    "change/delete",
    "change/move",
    "change/log on",
    "lookup/random/vm",
    "lookup/hot/vm",
    "lookup/id/vm",
    "lookup/hva/vm",
    "unmap",
    "move active area",
    "slot setup",
    "setup/load",
)
# Cases whose time is the time per slot of the setup of a new VM.
PER_SLOT = ("slot setup", "setup/load", "setup/one by one")
HEADLINES = ("change/delete", "change/move", "move inactive area", "move active area")

Line = list[tuple[int, float]]  # (number of slots, ns) by ascending number
Lines = dict[str, dict[str, Line]]  # case -> backend -> points


class Published(NamedTuple):
    """The time of the array divided by that of the tree, as the authors measured it, and in this report."""

    n_slots: int
    factor: float
    here: float | None


def scale_picture(report: Row, path: str | Path) -> Path:
    """Draws one panel per operation of CASES, with one line per backend and its growth, on logarithmic scales.

    Returns the path of the file that it wrote.
    """
    rows = _chosen(measured(report) + measured({"results": report.get("selftest", [])}))
    lines = {
        case: found
        for case, found in _lines(rows).items()
        if any(len(line) > 1 for line in found.values())
    }
    if not lines:
        raise ValueError("no case with more than one number of slots to draw")
    rows = [row for row in rows if row["case"] in lines]
    styles, published = looks_of(report, rows), _published(report, lines)
    height = _panel_height(lines, published)
    missing = {cell: names for cell, names in not_run(report).items() if cell[0] in lines}
    notes = [*wrong_notes(rows), *busy_notes(rows), *_how_to_read(published)]
    notes += absence_notes(report, missing, styles)
    nr_rows = -(-len(lines) // COLUMNS)
    title = _scale_title(_quiet(lines, rows))
    with picture(path, 0.5 + height * nr_rows, title, (), notes) as figure:
        axes = figure.subplots(nr_rows, COLUMNS, sharex=True, sharey="row", squeeze=False)
        for ax, (case, by_backend) in zip(axes.flat, lines.items(), strict=False):
            ax.set_title(_panel_title(case), loc="left", fontweight="bold")
            _draw_lines(ax, by_backend, styles)
            _mark_busy(ax, [row for row in rows if row["case"] == case])
            _mark_published(ax, by_backend, published.get(case))
        _set_ranges(axes, lines, published)
        for ax, (case, by_backend) in zip(axes.flat, lines.items(), strict=False):
            _label_lines(ax, by_backend, styles, published.get(case), LABEL / (height - AROUND))
        _finish_panels(axes.ravel(), len(lines))
        figure.supylabel("time of one operation", fontsize=10)
    return written_path(path)


# ---- choice -------------------------------------------------------------------------------------


def _chosen(rows: list[Row]) -> list[Row]:
    """The rows to draw, in the order of CASES.  All rows, if the report has none of CASES."""
    rows = [row for row in rows if row["n_slots"]]
    wanted = [row for row in rows if row["case"] in CASES]
    return sorted(wanted, key=lambda row: CASES.index(row["case"])) or rows


def _lines(rows: list[Row]) -> Lines:
    """case -> backend -> points."""
    found: Lines = {case: {} for case in dict.fromkeys(row["case"] for row in rows)}
    for row in sorted(rows, key=lambda row: row["n_slots"]):
        found[row["case"]].setdefault(row["backend"], []).append((row["n_slots"], row["median"]))
    return found


def _quiet(lines: Lines, rows: list[Row]) -> Lines:
    """The cases in which no other work of the machine disturbed the tree or the array."""
    busy = {row["case"] for row in rows if row["backend"] in (BASE, RIVAL) and is_busy(row)}
    return {case: found for case, found in lines.items() if case not in busy}


def _published(report: Row, lines: Lines) -> dict[str, Published]:
    """case -> the published factor, for the largest number of slots that the tree was measured with here too."""
    found: dict[str, Published] = {}
    for row in sorted(report.get("published", []), key=lambda row: row["n_slots"]):
        case, n = row["case"], row["n_slots"]
        tree, rival = (dict(lines.get(case, {}).get(name, [])) for name in (BASE, RIVAL))
        if n in tree:
            here = rival[n] / tree[n] if n in rival else None
            found[case] = Published(n, row["factor"], here)
    return found


# ---- text ---------------------------------------------------------------------------------------


def _panel_title(case: str) -> str:
    return label(case) + (", per slot" if case in PER_SLOT else "")


def _exponent(line: Line) -> float | None:
    return fit.exponent(*zip(*line, strict=True))


def _scale_title(lines: Lines) -> str:
    """States how the time of a change grows on the tree and on the array, if the report has both."""
    for case in (*HEADLINES, *lines):
        grown = {name: _exponent(line) for name, line in lines.get(case, {}).items()}
        if grown.get(BASE) is not None and grown.get(RIVAL) is not None:
            powers = " and ".join(f"{_power(grown[name])} ({name})" for name in (BASE, RIVAL))
            return f"With n slots the time of {in_title(case)} grows as {powers}"
    return "Time against number of slots"


def _power(exponent: float | None) -> str:
    return "" if exponent is None else f"n$^{{{exponent:.2f}}}$"


def _how_to_read(published: dict[str, Published]) -> Iterator[str]:
    yield (
        "All scales are logarithmic; panels side by side share theirs.  n^x: the straight line that fits the filled "
        "markers best, by least squares on logarithms; the hollow markers (fewer slots) are left out of the fit."
    )
    if published:
        yield (
            f"Arrow: the {RIVAL} would be at its tip if it took as much longer than our {BASE} as in the kernel that "
            f"the authors of the {BASE} measured, guest included ({SOURCE})."
        )


# ---- panels -------------------------------------------------------------------------------------


def _panel_height(lines: Lines, published: dict[str, Published]) -> float:
    """The height of the panels.  The panel with the most labels must have room for them."""
    most = max(len(found) + 2 * (case in published) for case, found in lines.items())
    return max(PANEL, AROUND + LABEL * most)


def _draw_lines(ax: Any, by_backend: dict[str, Line], styles: dict[str, Look]) -> None:
    """Draws each line with hollow markers, and filled markers over the sizes that the fit uses."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    for name, line in by_backend.items():
        look = styles[name]
        mark = {"marker": look.marker, "markersize": 4.5, "linewidth": 1.4}
        ax.plot(
            *zip(*line, strict=True), color=look.color, markerfacecolor="white", label=name, **mark
        )
        used = zip(*fit.fitted(line), strict=True)
        ax.plot(*used, look.marker, color=look.color, markersize=4.5, label=f"{name}, fitted")
    ax.grid(color=LIGHT)


def _mark_busy(ax: Any, rows: list[Row]) -> None:
    """Writes a ! above each figure that other work of the machine has disturbed."""
    for row in rows:
        if is_busy(row):
            at = (row["n_slots"], row["median"])
            ax.annotate("!", at, (0, 3), textcoords="offset points", ha="center", color=GREY)


def _mark_published(ax: Any, by_backend: dict[str, Line], known: Published | None) -> None:
    """Draws an arrow from the tree to the time that the array would have by the published factor."""
    if known is None:
        return
    tree = dict(by_backend[BASE])[known.n_slots]
    style = {"arrowstyle": "-|>", "color": BLACK, "linewidth": 1.2, "shrinkA": 3, "shrinkB": 0}
    ax.annotate("", (known.n_slots, tree * known.factor), (known.n_slots, tree), arrowprops=style)


def _set_ranges(axes: Any, lines: Lines, published: dict[str, Published]) -> None:
    """Sets the ranges of the axes: in every panel, each power of ten is a tick.  Times go from one power to another."""
    sizes = [n for found in lines.values() for line in found.values() for n, _ in line]
    low, high = min(sizes) / 1.4, max(sizes) * 1.4
    axes[0, 0].set_xlim(low, high)
    log_axis(axes[0, 0].xaxis, decades(low, high), _short_count)
    names = list(lines)
    for i, row in enumerate(axes):
        cases = names[i * COLUMNS : (i + 1) * COLUMNS]
        times = list(
            chain.from_iterable(_heights(lines[case], published.get(case)) for case in cases)
        )
        low = 10 ** np.floor(np.log10(min(times)))
        high = 10 ** np.ceil(np.log10(max(times)))
        high = max(high, 10 * low)
        row[0].set_ylim(low / 1.2, high * 1.2)
        log_axis(row[0].yaxis, decades(low, high), tick_time)


def _heights(by_backend: dict[str, Line], known: Published | None) -> Iterator[float]:
    for line in by_backend.values():
        yield from (ns for _, ns in line)
    if known:
        yield dict(by_backend[BASE])[known.n_slots] * known.factor


def _label_lines(
    ax: Any,
    by_backend: dict[str, Line],
    styles: dict[str, Look],
    known: Published | None,
    gap: float,
) -> None:
    """Writes the labels to the right of the panel.  A thin line connects the end of each line with its label."""
    ends = [
        (
            *line[-1],
            f"{short(name, LONGEST_LABEL)}  {_power(_exponent(line))}",
            styles[name].color,
            9.0,
            name,
        )
        for name, line in by_backend.items()
    ]
    if known:
        tip = dict(by_backend[BASE])[known.n_slots] * known.factor
        here = f", here {factor_text(known.here)}" if known.here else ""
        text = f"published {factor_text(known.factor)}{here}"
        ends.append((known.n_slots, tip, text, BLACK, float(SMALL), "published"))
    ends.sort(key=lambda end: end[1])
    low, high = np.log10(ax.get_ylim())
    places = apart([float((np.log10(end[1]) - low) / (high - low)) for end in ends], gap)
    for place, (n, ns, text, color, size, name) in zip(places, ends, strict=True):
        lead = {
            "arrowstyle": "-",
            "color": color,
            "linewidth": 0.7,
            "alpha": 0.6,
            "shrinkA": 1,
            "shrinkB": 3,
        }
        ax.annotate(
            text, (n, ns), (1.04, place), textcoords="axes fraction", va="center", fontsize=size, color=color,
            fontweight="normal" if name == "published" else "bold", arrowprops={**lead, "relpos": (0, 0.5)},
            annotation_clip=False,
        )  # fmt: skip


def apart(heights: list[float], gap: float) -> list[float]:
    """Moves ascending heights apart to distances of at least `gap`.  The highest one stays at 1 or below."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], placed[i + 1] - gap if i + 1 < len(placed) else 1.0)
    return placed


def _finish_panels(axes: Any, used: int) -> None:
    """Labels the axis of slots below the lowest panel of each column, and hides a panel without a case."""
    for i, ax in enumerate(axes):
        ax.set_visible(i < used)
        ax.tick_params(axis="both", labelsize=SMALL, labelleft=True)
        if used - COLUMNS <= i < used:
            ax.set_xlabel("slots")
            ax.tick_params(axis="x", labelbottom=True)


def _short_count(n: float) -> str:
    return f"{n / 1e6:g}M" if n >= 1e6 else f"{n / 1e3:g}k" if n >= 1e3 else f"{n:g}"
