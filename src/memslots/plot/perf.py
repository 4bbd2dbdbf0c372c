# SPDX-License-Identifier: MIT
"""What the others cost beside the tree: bars and markers, a column a number of slots."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from .rows import (
    TIMES,
    Cases,
    Row,
    backends_of,
    by_size,
    factor_text,
    in_title,
    label,
    marker,
    measured,
    slots_text,
    time_text,
)
from .style import BASE, LIGHT, Look, looks, picture

MAX_COLUMNS = 3
ROW = 0.25  # inches
BAR = 0.5  # of a row

#: Other ways to ask for the same lookup, but for one batch, and the single calls of whole traces: the table has them.
LEFT_OUT = ("lookup/*/vcpu", "lookup/[!m]*/batch", "lookup/*/python", "replay/*")


def perf_picture(report: Row, path: str | Path) -> None:
    """A row a case, a column a number of slots: what the others cost as multiples of what the tree costs."""
    rows = measured(report)
    rows = [row for row in rows if not any(fnmatch(row["case"], p) for p in LEFT_OUT)] or rows
    sizes = {n: found for n, cases in by_size(rows).items() if (found := _compared(cases))}
    replays = sizes.pop(None, {})
    columns = _columns(sizes)
    if not columns and not replays:
        raise ValueError(f"nothing to compare: no case has both {BASE} and another backend")
    styles = looks(backends_of(rows))
    names = list(dict.fromkeys(case for cases in columns.values() for case in cases))
    heights = [ROW * (2 + len(cases)) for cases in (names, replays) if cases]
    with picture(path, 1.2 + sum(heights), _perf_title(sizes)) as figure:
        parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        if columns:
            _draw_columns(next(parts), columns, names, styles)
        if replays:
            _draw_columns(next(parts), {None: replays}, list(replays), styles)
        handles = [_legend_entry(name, styles[name]) for name in styles if name != BASE]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)


def _compared(cases: Cases) -> Cases:
    """The cases that the tree and another backend ran."""
    return {case: rows for case, rows in cases.items() if BASE in rows and len(rows) > 1}


def _columns(sizes: dict[int | None, Cases]) -> dict[int | None, Cases]:
    """The smallest, a middle and the largest number of slots; a case with a limit of its own joins the next."""
    most = max(map(len, sizes.values()), default=0)
    full = [n for n, cases in sizes.items() if 2 * len(cases) > most]
    chosen = full if len(full) <= MAX_COLUMNS else [full[0], full[len(full) // 2], full[-1]]
    columns = {n: dict(sizes[n]) for n in chosen}
    for n, cases in sizes.items():
        above = next((column for column in columns if (column or 0) >= (n or 0)), None)
        if n not in full and above is not None:
            columns[above] = {**cases, **columns[above]}
    return columns


def _ratio(rows: dict[str, Row], backend: str) -> float:
    return float(rows[backend]["median"] / rows[BASE]["median"])


def _perf_title(sizes: dict[int | None, Cases]) -> str:
    """Where the array loses most and where it wins most."""
    found = [
        (_ratio(rows, "array"), f"{in_title(case)} at {slots_text(n)}")
        for n, cases in sizes.items()
        for case, rows in cases.items()
        if "array" in rows
    ]
    if not found:
        return f"What others cost beside the {BASE}"
    (most, worst), (least, best) = max(found), min(found)
    title = f"The array costs up to {factor_text(most)} the {BASE}: {worst}"
    return title if least >= 1 else title + f",\nand as little as {factor_text(least)}: {best}"


def _draw_columns(
    part: Any, columns: dict[int | None, Cases], names: list[str], styles: dict[str, Look]
) -> None:
    axes = part.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (n, cases) in zip(axes, columns.items(), strict=True):
        ax.set_title(slots_text(n), loc="left", fontweight="bold")
        _draw_factors(ax, cases, names, styles)
        _tell_base(ax, cases, names, styles[BASE].color)
    _make_room(axes[0])
    axes[0].set_yticks(range(len(names)), _labels(columns, names), fontsize=8.5)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    part.supxlabel(
        f"multiple of the {BASE}'s cost; that cost in blue, the array's multiple in orange",
        fontsize=9,
    )


def _labels(columns: dict[int | None, Cases], names: list[str]) -> list[str]:
    """A case with fewer slots than its column says so."""
    limits = {
        case: f" (at most {own:,})"
        for n, cases in columns.items()
        for case, rows in cases.items()
        if (own := rows[BASE]["n_slots"]) != n
    }
    return [label(name) + limits.get(name, "") for name in names]


def _make_room(ax: Any) -> None:
    """On the left, where the array's multiples stand in a column; a little on the right, before the tree's costs."""
    low, high = np.log10(ax.get_xlim())
    ax.set_xlim(10 ** (low - 0.42 * (high - low)), 10 ** (high + 0.03 * (high - low)))


def _draw_factors(ax: Any, cases: Cases, names: list[str], styles: dict[str, Look]) -> None:
    ax.set_xscale("log")
    ax.axvline(1, color=styles[BASE].color, linewidth=2)
    for case, rows in cases.items():
        y = names.index(case)
        if "array" in rows:
            _draw_bar(ax, y, _ratio(rows, "array"), styles["array"].color)
        for name, look in styles.items():
            if name in rows and name not in (BASE, "array"):
                ax.plot(
                    _ratio(rows, name), y, look.marker, color=look.color, markersize=5, zorder=3
                )
    ax.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:,g}{TIMES}"))
    ax.tick_params(axis="x", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=LIGHT)


def _draw_bar(ax: Any, y: int, ratio: float, color: str) -> None:
    """From 1 to the multiple, which is written at the left edge."""
    ax.barh(y, ratio - 1, BAR, left=1, color=color, alpha=0.85)
    where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
    edge = {"xycoords": ax.get_yaxis_transform(), "fontsize": 8, "fontweight": "bold"}
    ax.annotate(factor_text(ratio), (0, y), color=color, **where, **edge)


def _tell_base(ax: Any, cases: Cases, names: list[str], color: str) -> None:
    """The tree's own cost, at the right edge."""
    right = ax.secondary_yaxis("right")
    places = [names.index(case) for case in cases]
    right.set_yticks(places, [time_text(rows[BASE]["median"]) for rows in cases.values()])
    right.tick_params(length=0, labelsize=8, labelcolor=color, pad=1)
    right.spines["right"].set_visible(False)


def _legend_entry(name: str, look: Look) -> Any:
    if name == "array":
        return Patch(color=look.color, alpha=0.85, label=name)
    return marker(name, look, look.color)
