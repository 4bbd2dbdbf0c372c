# SPDX-License-Identifier: MIT
"""Cost against number of slots, and how it grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..measure import fit
from .rows import Row, backends_of, factor_text, in_title, label, log_time_axis, measured
from .style import BASE, BLACK, LIGHT, Look, looks, picture

PANEL = 1.8  # inches

#: Drawn where no others are asked for: with more a page is too small.
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
LABEL_GAP = 0.1  # of a panel's height, from one label to the next

Line = list[tuple[int, float]]  # number of slots, ns; by rising number


def scale_picture(report: Row, path: str | Path, cases: Sequence[str] = ()) -> None:
    """A panel an operation (of `cases`), a line a backend, labelled with how it grows; log-log."""
    rows = _chosen(measured(report) + measured({"results": report.get("selftest", [])}), cases)
    lines = {
        case: found for case, found in _lines(rows).items() if any(map(_grows, found.values()))
    }
    if not lines:
        raise ValueError("no case with more than one number of slots to draw")
    styles, published = looks(backends_of(rows)), _published(report)
    with picture(path, 0.9 + PANEL * -(-len(lines) // 2), _scale_title(lines)) as figure:
        axes = figure.subplots(-(-len(lines) // 2), 2, sharex=True, squeeze=False).ravel()
        for ax, (case, by_backend) in zip(axes, lines.items(), strict=False):
            ax.set_title(label(case), loc="left", fontweight="bold")
            _draw_lines(ax, by_backend, styles)
            _mark_published(ax, by_backend, published.get(case, {}))
        _finish_panels(axes, len(lines))


def _chosen(rows: list[Row], cases: Sequence[str]) -> list[Row]:
    """In the order of `cases`, or of CASES; all, where none of them is there."""
    rows = [row for row in rows if row["n_slots"]]
    wanted = cases or [case for case in CASES if any(row["case"] == case for row in rows)]
    if not wanted:
        return rows
    by_place = sorted(
        rows, key=lambda row: wanted.index(row["case"]) if row["case"] in wanted else -1
    )
    return [row for row in by_place if row["case"] in wanted]


def _lines(rows: list[Row]) -> dict[str, dict[str, Line]]:
    """case -> backend -> points."""
    found: dict[str, dict[str, Line]] = {}
    for row in sorted(rows, key=lambda row: row["n_slots"]):
        line = found.setdefault(row["case"], {}).setdefault(row["backend"], [])
        line.append((row["n_slots"], row["median"]))
    order = dict.fromkeys(row["case"] for row in rows)
    return {case: found[case] for case in order}


def _grows(line: Line) -> bool:
    return len(line) > 1


def _exponent(line: Line) -> float | None:
    return fit.exponent(*zip(*line, strict=True))


def _scale_title(lines: dict[str, dict[str, Line]]) -> str:
    """How a change grows in tree and array, if the report has one."""
    for case in ("change/delete", "move inactive area", *lines):
        grown = {name: _exponent(line) for name, line in lines.get(case, {}).items()}
        if grown.get(BASE) is not None and grown.get("array") is not None:
            told = " and ".join(f"{_power(grown[name])} ({name})" for name in (BASE, "array"))
            return f"With n slots, {in_title(case)} grows as {told}"
    return "Cost against number of slots"


def _power(exponent: float | None) -> str:
    return "" if exponent is None else f"n$^{{{exponent:.2f}}}$"


def _draw_lines(ax: Any, by_backend: dict[str, Line], styles: dict[str, Look]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    for name, line in by_backend.items():
        look = styles[name]
        ax.plot(*zip(*line, strict=True), color=look.color, marker=look.marker, markersize=4)
    log_time_axis(ax.yaxis)
    ax.grid(color=LIGHT)
    ax.margins(y=0.12)
    _label_lines(ax, by_backend, styles)


def _label_lines(ax: Any, by_backend: dict[str, Line], styles: dict[str, Look]) -> None:
    """Beyond the right end of the panel, at the height where the line ends, pushed apart where they would touch."""
    low, high = np.log10(ax.get_ylim())
    ends = sorted((np.log10(line[-1][1]), name) for name, line in by_backend.items())
    heights = _apart([float((end - low) / (high - low)) for end, _ in ends])
    for height, (_, name) in zip(heights, ends, strict=True):
        text = f"{name}  {_power(_exponent(by_backend[name]))}"
        where = {"transform": ax.transAxes, "va": "center", "fontsize": 9}
        ax.text(1.02, height, text, color=styles[name].color, fontweight="bold", **where)


def _apart(heights: list[float]) -> list[float]:
    """Rising heights, each LABEL_GAP above the one below at least, none above 1 if there is room."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LABEL_GAP) if placed else height)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], placed[i + 1] - LABEL_GAP if i + 1 < len(placed) else 1.0)
    return placed


def _published(report: Row) -> dict[str, dict[int, float]]:
    """case -> number of slots -> array / tree, as the authors of the trees measured it."""
    found: dict[str, dict[int, float]] = {}
    for row in report.get("published", []):
        found.setdefault(row["case"], {})[row["n_slots"]] = row["factor"]
    return found


def _mark_published(ax: Any, by_backend: dict[str, Line], factors: dict[int, float]) -> None:
    """Where the array would be by the published factor: an arrow up from the tree, at the largest number of slots."""
    tree = dict(by_backend.get(BASE, []))
    known = [n for n in factors if n in tree]
    if not known:
        return
    n = max(known)
    top = tree[n] * factors[n]
    style = {"arrowstyle": "-|>", "color": BLACK, "linewidth": 1.2, "shrinkA": 3, "shrinkB": 0}
    ax.annotate("", (n, top), (n, tree[n]), arrowprops=style)
    text = f"published {factor_text(factors[n])}"
    where = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    middle = float(np.sqrt(top * tree[n]))
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5}
    ax.annotate(text, (n, middle), fontsize=8, bbox=box, **where)


def _finish_panels(axes: Any, used: int) -> None:
    """Numbers of slots below the lowest panel of each column; no empty panel."""
    for i, ax in enumerate(axes):
        ax.set_visible(i < used)
        if used - 2 <= i < used:
            ax.set_xlabel("slots")
            ax.tick_params(axis="x", labelbottom=True)
        if i % 2 == 0:
            ax.set_ylabel("time of one")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: _short_count(n)))
        ax.xaxis.set_minor_formatter(NullFormatter())


def _short_count(n: float) -> str:
    return f"{n / 1e6:g}M" if n >= 1e6 else f"{n / 1e3:g}k" if n >= 1e3 else f"{n:g}"
