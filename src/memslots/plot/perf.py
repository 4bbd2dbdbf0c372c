# SPDX-License-Identifier: MIT
"""The picture of costs: times as multiples of the tree's, one row per operation, one column per number of slots."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..measure.duel import BASE, RIVAL, factor
from ..measure.groups import GROUPS
from ..measure.noise import any_busy
from .files import written_path
from .rows import (
    PALE,
    TIMES,
    Cases,
    Missing,
    Row,
    absence_notes,
    backend_rows,
    busy_mark,
    busy_notes,
    by_size,
    decades,
    factor_text,
    in_title,
    label,
    log_axis,
    looks_of,
    marker,
    measured,
    not_run,
    slots_text,
    time_text,
    with_slots,
    wrong_notes,
)
from .style import GREY, LIGHT, SMALL, Look, picture

MAX_COLUMNS = 3
ROW = 0.26  # inches
MANY, ROW_MORE = 7, 0.02  # backends; inches that each further backend adds to a row
BAR = 0.6  # height as a share of a row
LANE = 0.27  # as a share of a row: the distance of markers that would otherwise cover each other
LANES = 0.85  # as a share of a row: the limit for all lanes together
TOUCHING = 0.055  # as a share of a column's width: markers that are closer cover each other

#: Shares of a column's width.
LEFT_ROOM = 0.34  # for the multiples of the rival
RIGHT_ROOM = 0.06
LANE_NOT_RUN = 0.045  # for each backend that was not run

COLUMNS_WIDTH = 5.2  # inches: of all columns, without the times between them
TICK_WIDTH = 0.095  # inches: a character of a label, with room to the next label

#: These cases are in the table only: other ways to make the same lookup (except one batch), and replays of traces.
LEFT_OUT = ("lookup/*/vcpu", "lookup/[!m]*/batch", "lookup/*/python", "replay/*")

#: Cases for the title, one change and one lookup.  The trees were made for changes, and must not slow down lookups.
HEADLINES = (
    ("change/delete", "change/move", "change/create", "change/log on", "unmap"),
    ("lookup/random/vm", "lookup/misses/vm", "lookup/hot/vm"),
)


class Places(NamedTuple):
    """The positions of the rows in a panel, counted from the top."""

    cases: dict[str, int]
    headings: dict[str, int]

    @property
    def total(self) -> int:
        return len(self.cases) + len(self.headings)


class Panel(NamedTuple):
    """Several columns with the same rows."""

    columns: dict[int | None, Cases]
    places: Places
    styles: dict[str, Look]
    missing: Missing


def perf_picture(report: Row, path: str | Path) -> Path:
    """Draws times as multiples of the tree's time: one row per case, one column per number of slots.

    Returns the path of the file that it wrote.
    """
    rows = measured(report)
    rows = [row for row in rows if not any(fnmatch(row["case"], p) for p in LEFT_OUT)] or rows
    anywhere = not_run(report)
    sizes = {
        n: found for n, cases in by_size(rows).items() if (found := _compared(cases, anywhere))
    }
    if not sizes:
        raise ValueError(f"nothing to compare: no case has both {BASE} and another backend")
    columns = _columns({n: cases for n, cases in sizes.items() if n is not None})
    missing = not_run(report, _cells(columns))
    styles = looks_of(report, [*rows, *backend_rows(missing)])
    panels = list(_panels(columns, sizes.get(None, {}), styles, missing))
    row = ROW + ROW_MORE * max(0, len(styles) - MANY)
    heights = [row * (2.6 + panel.places.total) for panel in panels]
    notes = [
        *wrong_notes(rows),
        *busy_notes(rows),
        _how_to_read(styles),
        *absence_notes(report, missing, styles),
    ]
    legend = _legend(styles, bool(missing))
    with picture(path, 0.8 + sum(heights), _perf_title(sizes), legend, notes) as figure:
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, panel in zip(parts, panels, strict=True):
            _draw_columns(part, panel)
    return written_path(path)


# ---- choice -------------------------------------------------------------------------------------


def _compared(cases: Cases, missing: Missing) -> Cases:
    """The cases that the tree ran, and that another backend ran or would have run with more time."""
    return {
        case: rows
        for case, rows in cases.items()
        if BASE in rows and (len(rows) > 1 or (case, rows[BASE]["n_slots"]) in missing)
    }


def _columns(sizes: dict[int | None, Cases]) -> dict[int | None, Cases]:
    """The smallest, a middle and the largest number of slots.  A case with a limit goes to the next larger column."""
    most = max(map(len, sizes.values()), default=0)
    full = [n for n, cases in sizes.items() if 2 * len(cases) > most]
    chosen = full if len(full) <= MAX_COLUMNS else [full[0], full[len(full) // 2], full[-1]]
    columns = {n: dict(sizes[n]) for n in chosen}
    for n, cases in sizes.items():
        above = next((column for column in columns if (column or 0) >= (n or 0)), None)
        if n not in full and above is not None:
            columns[above] = {**cases, **columns[above]}
    return columns


def _cells(columns: dict[int | None, Cases]) -> set[tuple[str, int | None]]:
    """The pairs (case, number of slots) in these columns."""
    return {
        (case, rows[BASE]["n_slots"]) for cases in columns.values() for case, rows in cases.items()
    }


def _panels(
    columns: dict[int | None, Cases], replays: Cases, styles: dict[str, Look], missing: Missing
) -> Iterator[Panel]:
    if columns:
        names = list(dict.fromkeys(case for cases in columns.values() for case in cases))
        yield Panel(columns, _grouped(names), styles, missing)
    if replays:
        yield Panel({None: replays}, _grouped(list(replays)), styles, {})


# ---- text ---------------------------------------------------------------------------------------


def _perf_title(sizes: dict[int | None, Cases]) -> str:
    """States the multiples of a change and of a lookup with the most slots, by the order of HEADLINES."""
    for n, cases in reversed(_by_slots(sizes)):
        found = {case: rows for case, rows in cases.items() if RIVAL in rows and is_quiet(rows)}
        chosen = [next((c for c in group if c in found), None) for group in HEADLINES]
        phrases = [
            f"{factor_text(factor(found[case], RIVAL))} as long as the {BASE} for {in_title(case)}"
            for case in [case for case in chosen if case] or list(found)[:1]
        ]
        if phrases:
            second = phrases[1:] and [phrases[1].replace(f" as the {BASE}", "")]
            return f"{with_slots(n)} the {RIVAL} takes " + "\nand ".join([phrases[0], *second])
    return f"Times as multiples of the {BASE}'s"


def is_quiet(rows: dict[str, Row]) -> bool:
    """Whether no other work of the machine disturbed the tree and its rival."""
    return not any_busy((rows[BASE], rows[RIVAL]))


def _by_slots(sizes: dict[int | None, Cases]) -> list[tuple[int | None, Cases]]:
    """Sorts by the number of slots.  The traces have none and come first."""
    return sorted(sizes.items(), key=lambda item: -1 if item[0] is None else item[0])


def _how_to_read(styles: dict[str, Look]) -> str:
    inside = f"{RIVAL} {chr(0xF7)} {BASE} (left) and " if RIVAL in styles else ""
    return (
        f"Left of the line at 1{TIMES} is faster than the {BASE}, right of it slower; the scale is logarithmic.  "
        f"Numbers in the columns: {inside}the time of one operation on the {BASE} (right)."
    )


def _legend(styles: dict[str, Look], with_missing: bool) -> list[Any]:
    line = Line2D([], [], color=styles[BASE].color, linewidth=2, label=f"{BASE} (line at 1{TIMES})")
    handles: list[Any] = [line]
    for name, look in styles.items():
        if name == RIVAL:
            handles.append(Patch(color=look.color, label=name))
        elif name != BASE:
            handles.append(marker(name, look, look.color))
    if with_missing:
        hollow = marker("", Look(GREY, "o"), "none")
        hollow.set_label("hollow, at the right edge: not run")
        handles.append(hollow)
    return handles


# ---- panels -------------------------------------------------------------------------------------


def _grouped(names: list[str]) -> Places:
    """Places each group of GROUPS below its heading.  Cases without a group come last, without a heading."""
    cases: dict[str, int] = {}
    headings: dict[str, int] = {}
    rest = list(names)
    for heading, prefixes in GROUPS.items():
        of_group = [name for name in rest if name.startswith(prefixes)]
        if of_group:
            headings[heading] = len(cases) + len(headings)
        for name in of_group:
            cases[name] = len(cases) + len(headings)
            rest.remove(name)
    return Places(
        {**cases, **{name: len(cases) + len(headings) + i for i, name in enumerate(rest)}}, headings
    )


def _draw_columns(part: Any, panel: Panel) -> None:
    columns = panel.columns
    axes = part.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
    for ax, cases in zip(axes, columns.values(), strict=True):
        ax.set_xscale("log")
        _draw_bars(ax, cases, panel)
    _set_range(axes[0], panel)
    for ax, (n, cases) in zip(axes, columns.items(), strict=True):
        ax.set_title(slots_text(n), loc="left", fontweight="bold", pad=17)
        _draw_markers(ax, cases, panel)
        _draw_missing(ax, cases, panel)
        _write_base_times(ax, cases, panel)
        _write_column_heads(ax, cases, panel)
        ax.tick_params(axis="x", labelsize=SMALL)
        ax.tick_params(axis="y", length=0)
    _label_rows(axes[0], columns, panel.places)
    part.supxlabel(f"time as a multiple of the {BASE}'s", fontsize=9)


def _set_range(ax: Any, panel: Panel) -> None:
    """Fits the axis to the data, with room for text (left) and hollow markers (right).  That room has no ticks."""
    columns = panel.columns
    ratios = [
        factor(rows, name) for cases in columns.values() for rows in cases.values() for name in rows
    ]
    low, high = np.log10(min(ratios)) - 0.1, np.log10(max(ratios)) + 0.1
    low, high = min(low, -0.3), max(high, 0.5)
    lanes = max(map(len, panel.missing.values()), default=0)
    right = RIGHT_ROOM + LANE_NOT_RUN * lanes
    width = (high - low) / (1 - LEFT_ROOM - right)
    ax.set_xlim(10 ** (low - LEFT_ROOM * width), 10 ** (high + right * width))
    room = COLUMNS_WIDTH / len(columns) * (1 - LEFT_ROOM - right)
    most = 1 + int(room / (TICK_WIDTH * len(_ratio_text(10 ** np.floor(high)))))
    log_axis(ax.xaxis, decades(10**low, 10**high, most), _ratio_text)


def _ratio_text(ratio: float) -> str:
    return f"{ratio:,g}{TIMES}"


def _draw_bars(ax: Any, cases: Cases, panel: Panel) -> None:
    """Draws the line of the tree, and a bar from it to the rival's multiple.  The end of a bar is visible even at 1."""
    ax.axvline(1, color=panel.styles[BASE].color, linewidth=1.5, zorder=1.5)
    ax.grid(axis="x", color=LIGHT)
    for y in panel.places.headings.values():
        ax.axhline(y + 0.42, color=LIGHT, linewidth=0.8, zorder=1)
    for case, rows in cases.items():
        if RIVAL not in rows:
            continue
        y, ratio, color = panel.places.cases[case], factor(rows, RIVAL), panel.styles[RIVAL].color
        ax.barh(y, ratio - 1, BAR, left=1, color=color, alpha=0.5, zorder=2)
        end = [y - BAR / 2, y + BAR / 2]
        ax.plot([ratio, ratio], end, color=color, linewidth=2.2, zorder=2.5, solid_capstyle="butt")


def _draw_markers(ax: Any, cases: Cases, panel: Panel) -> None:
    """Draws all other backends.  Markers that would cover each other are spread over the height of their row."""
    low, high = np.log10(ax.get_xlim())
    for case, rows in cases.items():
        names = [name for name in panel.styles if name in rows and name not in (BASE, RIVAL)]
        xs = [float((np.log10(factor(rows, name)) - low) / (high - low)) for name in names]
        for name, lane in zip(names, lanes(xs), strict=True):
            look, y = panel.styles[name], panel.places.cases[case] + lane
            ax.plot(
                factor(rows, name), y, look.marker, color=look.color, markersize=6, zorder=3,
                markeredgecolor="white", markeredgewidth=0.4, label=name,
                alpha=PALE if busy_mark(rows[name], rows[BASE]) else None,
            )  # fmt: skip


def lanes(xs: list[float]) -> list[float]:
    """The distance of each marker from the middle of its row; 0 if no other marker is closer than TOUCHING.

    xs are the positions of the markers in the column, from 0 to 1."""
    order = sorted(range(len(xs)), key=lambda i: xs[i])
    runs: list[list[int]] = [order[:1]]
    for i, j in pairwise(order):
        if xs[j] - xs[i] < TOUCHING:
            runs[-1].append(j)
        else:
            runs.append([j])
    found = {
        i: (k - (len(run) - 1) / 2) * min(LANE, LANES / len(run))
        for run in runs
        for k, i in enumerate(run)
    }
    return [found[i] for i in range(len(xs))]


def _draw_missing(ax: Any, cases: Cases, panel: Panel) -> None:
    """Draws a hollow marker at the right edge for each backend that was not run.  For the rival, writes "not run"."""
    shown = list(dict.fromkeys(name for names in panel.missing.values() for name in names))
    shown = [name for name in shown if name != RIVAL]
    for case, rows in cases.items():
        names = panel.missing.get((case, rows[BASE]["n_slots"]), [])
        for name in names:
            look, y = panel.styles[name], panel.places.cases[case]
            if name == RIVAL:
                _write_left(ax, y, "not run", look.color)
                continue
            x = 0.98 - LANE_NOT_RUN * (shown.index(name) + 0.5)
            ax.plot(
                x, y, look.marker, color=look.color, markersize=5, markerfacecolor="none",
                transform=ax.get_yaxis_transform(), label=f"{name}: not run", zorder=3,
            )  # fmt: skip
        if RIVAL in rows:
            text = factor_text(factor(rows, RIVAL)) + busy_mark(rows[RIVAL], rows[BASE])
            _write_left(ax, panel.places.cases[case], text, panel.styles[RIVAL].color)


def _write_left(ax: Any, y: float, text: str, color: str) -> None:
    where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
    edge = {"xycoords": ax.get_yaxis_transform(), "fontsize": SMALL, "fontweight": "bold"}
    ax.annotate(text, (0, y), color=color, **where, **edge)


def _write_base_times(ax: Any, cases: Cases, panel: Panel) -> None:
    right = ax.secondary_yaxis("right")
    right.set_yticks(
        [panel.places.cases[case] for case in cases],
        [time_text(rows[BASE]["median"]) + busy_mark(rows[BASE]) for rows in cases.values()],
    )
    right.tick_params(length=0, labelsize=SMALL, labelcolor=panel.styles[BASE].color, pad=1)
    right.spines["right"].set_visible(False)


def _write_column_heads(ax: Any, cases: Cases, panel: Panel) -> None:
    """Writes the names of the two columns of numbers above them."""
    style = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": SMALL}
    if any(RIVAL in rows for rows in cases.values()):
        text = f"{RIVAL} {chr(0xF7)} {BASE}"
        ax.annotate(text, (0, 1), (3, 4), color=panel.styles[RIVAL].color, **style)
    ax.annotate(BASE, (1, 1), (3, 4), color=panel.styles[BASE].color, **style)


def _label_rows(ax: Any, columns: dict[int | None, Cases], places: Places) -> None:
    texts = {y: heading for heading, y in places.headings.items()}
    texts |= {places.cases[case]: text for case, text in _labels(columns, places).items()}
    heights = sorted(texts)
    ax.set_yticks(heights, [texts[y] for y in heights], fontsize=8.5)
    for y, tick in zip(heights, ax.get_yticklabels(), strict=True):
        if y in places.headings.values():
            tick.set_fontweight("bold")
    ax.set_ylim(places.total - 0.4, -0.6)


def _labels(columns: dict[int | None, Cases], places: Places) -> dict[str, str]:
    """The labels of the cases.  If a case has another number of slots than its column, the label has that number."""
    limits = {
        case: f" ({own:,} slots)"
        for n, cases in columns.items()
        for case, rows in cases.items()
        if (own := rows[BASE]["n_slots"]) != n
    }
    return {case: _row_label(case, places) + limits.get(case, "") for case in places.cases}


def _row_label(case: str, places: Places) -> str:
    """The name of a case, without its kind if the kind is the heading."""
    text = label(case)
    kind, _, what = text.partition(": ")
    return what if f"{kind}s" in places.headings or kind == "scenario" else text
