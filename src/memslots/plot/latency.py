# SPDX-License-Identifier: MIT
"""The tail: p50, p99 and p99.9 of single operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .rows import (
    Cases,
    Row,
    backends_of,
    by_size,
    factor_text,
    in_title,
    label,
    log_time_axis,
    marker,
    measured,
    slots_text,
)
from .style import BASE, GREY, LIGHT, Look, looks, picture

PERCENTILES = ("p50", "p99", "p999")
LATENCY_CASES = (
    "unmap",
    "lookup/hot/vm",
    "lookup/random/vm",
    "lookup/misses/vm",
    "change/create",
    "change/delete",
    "change/move",
    "change/log on",
)
LINE = 0.13  # inches a backend


def latency_picture(report: Row, path: str | Path) -> None:
    """p50, p99 and p99.9 of single operations, a row a case, at the fewest and the most slots."""
    rows = [row for row in measured(report) if row.get("group", 1) == 1 and row.get("p999")]
    rows = [row for row in rows if row["case"] in LATENCY_CASES] or rows
    sizes = by_size(rows)
    if not sizes:
        raise ValueError("no percentiles of single operations to draw")
    ends = {n: sizes[n] for n in (min(sizes, key=_rank), max(sizes, key=_rank))}
    names = list(dict.fromkeys(case for cases in ends.values() for case in cases))
    styles, lanes = looks(backends_of(rows)), _lanes(rows)
    height = 1.6 + (LINE * max(map(len, lanes.values())) + 0.1) * len(names)
    with picture(path, height, _latency_title(ends)) as figure:
        axes = figure.subplots(1, len(ends), sharey=True, sharex=True, squeeze=False)[0]
        for ax, (n, cases) in zip(axes, ends.items(), strict=True):
            ax.set_title(slots_text(n), loc="left", fontweight="bold")
            _draw_tails(ax, cases, names, lanes, styles)
            ax.set_xlabel("time of one operation")
        axes[0].set_yticks(range(len(names)), [label(name) for name in names], fontsize=9)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        _tails_legend(figure, styles)


def _lanes(rows: list[Row]) -> dict[str, list[str]]:
    """case -> the backends that ran it at any number of slots: each has a line of its own there."""
    cases = dict.fromkeys(row["case"] for row in rows)
    return {case: backends_of(row for row in rows if row["case"] == case) for case in cases}


def _rank(n: int | None) -> int:
    """Numbers of slots in order; the replays, which have none, between them all and nothing."""
    return -1 if n is None else n


def _latency_title(sizes: dict[int | None, Cases]) -> str:
    """How far the tail of the tree's lookups and of its changes is from the median."""
    tails = [
        (rows[BASE]["p999"] / rows[BASE]["p50"], f"{in_title(case)} at {slots_text(n)}")
        for n, cases in sizes.items()
        for case, rows in cases.items()
        if BASE in rows
    ]
    if not tails:
        return "Latency of single operations"
    tail, case = max(tails)
    return f"One {BASE} operation in 1,000 takes up to {factor_text(tail)} the median:\n{case}"


def _draw_tails(
    ax: Any,
    cases: Cases,
    names: list[str],
    lanes: dict[str, list[str]],
    styles: dict[str, Look],
) -> None:
    """Backends of a case lie under each other within its row."""
    ax.set_xscale("log")
    step = 0.8 / max(map(len, lanes.values()))
    for case, rows in cases.items():
        top = names.index(case) - (len(lanes[case]) - 1) / 2 * step
        for i, name in enumerate(lanes[case]):
            if name in rows:
                _draw_tail(ax, top + i * step, rows[name], styles[name])
    for y in range(1, len(names)):
        ax.axhline(y - 0.5, color=LIGHT, linewidth=0.8)
    ax.grid(axis="x", color=LIGHT)
    log_time_axis(ax.xaxis)
    ax.tick_params(axis="x", labelsize=8)
    ax.tick_params(axis="y", length=0)


def _draw_tail(ax: Any, y: float, row: Row, look: Look) -> None:
    p50, p99, p999 = (row[p] for p in PERCENTILES)
    ax.plot([p50, p999], [y, y], color=look.color, linewidth=1.4, alpha=0.6, zorder=2)
    ax.plot(p99, y, "|", color=look.color, markersize=7, markeredgewidth=2, zorder=3)
    for p, face in ((p999, "white"), (p50, look.color)):
        ax.plot(p, y, look.marker, color=look.color, markerfacecolor=face, markersize=5, zorder=4)


def _tails_legend(figure: Figure, styles: dict[str, Look]) -> None:
    grey = Look(GREY, "o")
    handles = [marker(name, look, look.color) for name, look in styles.items()]
    handles += [marker("p50", grey, GREY), marker("p99", Look(GREY, "|"), GREY)]
    handles += [marker("p99.9", grey, "white")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
