# SPDX-License-Identifier: MIT
"""The picture of latencies: p50, p99 and p99.9 of single operations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.patches import Patch

from ..measure.duel import BASE, RIVAL
from ..measure.noise import any_busy, is_busy
from .files import written_path
from .rows import (
    PALE,
    Cases,
    Missing,
    Row,
    absence_notes,
    backend_rows,
    backends_of,
    busy_notes,
    by_size,
    decades,
    in_title,
    label,
    log_axis,
    looks_of,
    marker,
    measured,
    not_run,
    short,
    slots_text,
    tick_time,
    time_text,
    with_slots,
    wrong_notes,
)
from .style import GREY, LIGHT, SMALL, Look, picture

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
#: The title is about the first of these in the report.  A vCPU that waits for a change waits for its tail latency.
HEADLINES = ("change/delete", "change/move", "change/create", "change/log on", "lookup/random/vm")
LINE = 0.135  # inches per backend


class Panel(NamedTuple):
    """The common data of all columns."""

    lanes: dict[str, list[str]]  # case -> backends, in the order of their lines
    styles: dict[str, Look]
    missing: Missing
    clock: float | None  # ns that each time includes


def latency_picture(report: Row, path: str | Path) -> Path:
    """Draws p50, p99 and p99.9 of single operations: one row per case, at the fewest and at the most slots.

    Returns the path of the file that it wrote.
    """
    rows = [row for row in measured(report) if row.get("group", 1) == 1 and row.get("p999")]
    rows = [row for row in rows if row["case"] in LATENCY_CASES] or rows
    ends = _ends(rows)
    rows = [row for cases in ends.values() for found in cases.values() for row in found.values()]
    names = list(dict.fromkeys(row["case"] for row in rows))
    missing = not_run(report, [(case, n) for case in names for n in ends])
    lanes, styles = _lanes(rows, missing), looks_of(report, [*rows, *backend_rows(missing)])
    panel = Panel(lanes, styles, missing, report.get("clock_ns"))
    height = 1.2 + (LINE * max(map(len, lanes.values())) + 0.1) * len(names)
    notes = [
        *wrong_notes(rows),
        *busy_notes(rows),
        *_clock_note(panel),
        *absence_notes(report, missing, styles),
    ]
    with picture(path, height, _latency_title(ends), _legend(panel), notes) as figure:
        axes = figure.subplots(1, len(ends), sharey=True, sharex=True, squeeze=False)[0]
        for ax, (n, cases) in zip(axes, ends.items(), strict=True):
            ax.set_title(slots_text(n), loc="left", fontweight="bold")
            _draw_tails(ax, n, cases, names, panel)
            ax.set_xlabel("time of one operation (logarithmic)")
        _set_range(axes, rows, panel)
        axes[0].set_yticks(range(len(names)), [label(name) for name in names], fontsize=9)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
    return written_path(path)


def _ends(rows: list[Row]) -> dict[int | None, Cases]:
    """The cases with the fewest and with the most slots.  Traces have no number of slots and count as the fewest."""
    sizes = by_size(rows)
    if not sizes:
        raise ValueError("no percentiles of single operations to draw")
    return {n: sizes[n] for n in (min(sizes, key=_rank), max(sizes, key=_rank))}


def _rank(n: int | None) -> int:
    return -1 if n is None else n


def _lanes(rows: list[Row], missing: Missing) -> dict[str, list[str]]:
    """case -> the backends that ran it, or should have.  Each of them has its own line in the row."""
    wanted = [(row["case"], row["backend"]) for row in rows]
    wanted += [(case, name) for (case, _), names in missing.items() for name in names]
    cases = dict.fromkeys(case for case, _ in wanted)
    return {
        case: backends_of({"backend": name} for other, name in wanted if other == case)
        for case in cases
    }


def _latency_title(sizes: dict[int | None, Cases]) -> str:
    """States the p99.9 with the most slots, for the first of HEADLINES that the report has."""
    n = max(sizes, key=_rank)
    found = {
        case: rows for case, rows in sizes[n].items() if BASE in rows and not any_busy(_duel(rows))
    }
    case = next((case for case in (*HEADLINES, *found) if case in found), None)
    if case is None:
        return "Latency of single operations"
    tails = " and ".join(
        f"{time_text(found[case][name]['p999'])} ({name})"
        for name in (BASE, RIVAL)
        if name in found[case]
    )
    return f"{with_slots(n)}, 999 of 1,000 times {in_title(case)}\ntakes no more than {tails}"


def _duel(rows: dict[str, Row]) -> list[Row]:
    return [rows[name] for name in (BASE, RIVAL) if name in rows]


def _clock_note(panel: Panel) -> Iterator[str]:
    if panel.clock:
        yield (
            f"Each time includes the {panel.clock:.0f} ns that the clock itself takes.  "
            "For times near that, compare the medians in the picture of costs: there 64 calls share one reading."
        )


def _draw_tails(ax: Any, n: int | None, cases: Cases, names: list[str], panel: Panel) -> None:
    """Draws the backends of a case below each other in its row.  A text stands for a backend that was not run."""
    ax.set_xscale("log")
    step = 0.8 / max(map(len, panel.lanes.values()))
    for case in names:
        lanes = panel.lanes[case]
        top = names.index(case) - (len(lanes) - 1) / 2 * step
        for i, name in enumerate(lanes):
            y, rows = top + i * step, cases.get(case, {})
            if name in rows:
                _draw_tail(ax, y, rows[name], panel.styles[name])
            elif name in panel.missing.get((case, n), []):
                _write_not_run(ax, y, name, panel.styles[name])
    for y in range(1, len(names)):
        ax.axhline(y - 0.5, color=LIGHT, linewidth=0.8)
    ax.grid(axis="x", color=LIGHT)
    ax.tick_params(axis="x", labelsize=SMALL)
    ax.tick_params(axis="y", length=0)


def _draw_tail(ax: Any, y: float, row: Row, look: Look) -> None:
    p50, p99, p999 = (row[p] for p in PERCENTILES)
    pale = PALE if is_busy(row) else 1.0
    ax.plot([p50, p999], [y, y], color=look.color, linewidth=1.4, alpha=0.6 * pale, zorder=2)
    style = {"color": look.color, "alpha": pale}
    ax.plot(p99, y, "|", markersize=7, markeredgewidth=2, zorder=3, **style)
    for p, face in ((p999, "white"), (p50, look.color)):
        ax.plot(p, y, look.marker, markerfacecolor=face, markersize=5, zorder=4, **style)


def _write_not_run(ax: Any, y: float, name: str, look: Look) -> None:
    style = {"color": look.color, "fontsize": 7.5, "va": "center", "ha": "right"}
    ax.text(0.99, y, f"{short(name)}: not run", transform=ax.get_yaxis_transform(), **style)


def _set_range(axes: Any, rows: list[Row], panel: Panel) -> None:
    """Fits the axis to all times.  The time of the clock itself is a grey band at the left edge."""
    times = [row[p] for row in rows for p in PERCENTILES] + ([panel.clock] if panel.clock else [])
    low, high = min(times) / 1.5, max(times) * 1.5
    axes[0].set_xlim(low, high)
    log_axis(axes[0].xaxis, decades(low, high, 8), tick_time)
    for ax in axes:
        if panel.clock:
            ax.axvspan(low, panel.clock, color=LIGHT, zorder=0)


def _legend(panel: Panel) -> list[Any]:
    grey = Look(GREY, "o")
    handles = [marker(name, look, look.color) for name, look in panel.styles.items()]
    handles += [marker("p50", grey, GREY), marker("p99", Look(GREY, "|"), GREY)]
    handles += [marker("p99.9", grey, "white")]
    if panel.clock:
        handles.append(Patch(color=LIGHT, label=f"the clock's own {panel.clock:.0f} ns"))
    return handles
