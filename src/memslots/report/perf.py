# SPDX-License-Identifier: MIT
"""The text of `memslots perf`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..lab.peers import PEERS
from ..lab.schema import CrossoverRow, PerfReport, Row
from ..lab.subjects import INDEXED, design_of
from ..measure import duel, published
from ..measure.groups import GROUPS
from . import show, tables
from .tables import Part, Table
from .words import plural

#: The cases whose latencies are shown.  The JSON has those of all cases.
LATENCIES = (
    "unmap",
    "slot setup",
    "change/create",
    "change/delete",
    "change/move",
    "change/log on",
    "lookup/hot/vm",
    "lookup/misses/vm",
    "lookup/misses/python",
)

PEER_TABLES = (
    ("lookup/misses/batch", "many at once, from Python: ns each"),
    ("lookup/misses/python", "one by one, from Python: ns each"),
)

#: The cases with published figures, in the closing summary.
HEADLINES = ("unmap", "unmap chunked", "move active area", "move inactive area", "slot setup")


def text(report: PerfReport, width: int | None = None) -> str:
    """Return the report for a terminal of `width` columns.  None: lines may have any length."""
    parts = [
        tables.paragraphs(show.busy_note(report), width),
        *_size_tables(report),
        *_crossovers(report),
        _index_gains(report),
        _latencies(report),
        *_peers(report),
        _traces(report, "replay/", "one operation of the QEMU traces"),
        _traces(report, "scenario/", "whole QEMU traces, by what they show"),
        tables.paragraphs(_closing(report), width),
    ]
    return tables.page(parts, width)


def _of_size(report: PerfReport, n: int) -> list[Row]:
    """Return the rows of n slots.  "map", which has fewer slots, is included at its largest size."""
    capped = published.MAP_SLOTS if n > published.MAP_SLOTS else n
    return [
        row
        for row in report["results"]
        if row["backend"] not in PEERS
        and (row["n_slots"] == n or (row["case"] == "map" and row["n_slots"] == capped))
    ]


# ---- cost by number of slots --------------------------------------------------------------------


def _size_tables(report: PerfReport) -> Iterator[Table]:
    for n in report["slots"]:
        rows = _of_size(report, n)
        if rows:
            yield _size_table(n, rows)


def _size_table(n: int, rows: list[Row]) -> Table:
    names, rivals = show.columns(rows), _rivals(rows)
    cases = show.by_case(rows)
    body: list[list[str]] = []
    for title, prefixes in GROUPS.items():
        of_group = {case: r for case, r in cases.items() if case.startswith(prefixes)}
        if of_group:
            body.append([title])
            body += [_line(case, r, names, rivals, n) for case, r in of_group.items()]
    headers = [f"{n:,} slots", *names, *show.ratio_headers(rivals)]
    return Table(body, headers)


def _line(
    case: str, by_backend: dict[str, Row], names: list[str], rivals: list[str], n: int
) -> list[str]:
    own = next(iter(by_backend.values()))["n_slots"]
    label = f"  {case}" + (f" ({own:,} slots)" if own != n else "")
    cells = [show.cell(by_backend.get(name)) for name in names]
    return [label, *cells, *(show.verdict(by_backend, rival) for rival in rivals)]


def _rivals(rows: list[Row]) -> list[str]:
    """Return the designs that have a column with their cost as a multiple of the tree's."""
    return [duel.RIVAL, *show.new_designs(rows)]


# ---- where designs cross ------------------------------------------------------------------------


def _crossovers(report: PerfReport) -> Iterator[Table]:
    """Tables of array / tree by number of slots, for VMs with few and with many ids."""
    for room in dict.fromkeys(row["user_mem_slots"] for row in report["crossover"]):
        rows = [row for row in report["crossover"] if row["user_mem_slots"] == room]
        sizes = sorted({int(n) for row in rows for n in row["factors"]})
        body = [[row["case"], *(_factor_cell(row, n) for n in sizes)] for row in rows]
        title = f"array / tree, VM of {room:,} ids; * array wins"
        yield Table(body, [title, *(f"{n:,}" for n in sizes)])


def _factor_cell(row: CrossoverRow, n: int) -> str:
    if (value := row["factors"].get(str(n))) is None:
        return "-"
    mark = (
        "*" if n in row["array_wins_at"] else show.BUSY_MARK if n in row.get("busy_at", ()) else ""
    )
    return mark + show.factor(value)


# ---- the index ----------------------------------------------------------------------------------


def _index_gains(report: PerfReport) -> Part:
    """A table of tree / tree+index for each lookup, by number of slots."""
    cases = show.by_case_and_size(report["results"])
    gains = {key: gain for key, rows in cases.items() if (gain := _index_gain(rows))}
    sizes = sorted({n for _, n in gains})
    body = [
        [case, *(gains.get((case, n), "-") for n in sizes)]
        for case in dict.fromkeys(case for case, _ in gains)
    ]
    title = f"{design_of(INDEXED)} / {INDEXED}, by slots"
    return Table(body, [title, *(f"{n:,}" for n in sizes)]) if body else ""


def _index_gain(by_backend: dict[str, Row]) -> str:
    design = design_of(INDEXED)
    if INDEXED not in by_backend or design not in by_backend:
        return ""
    plain, indexed = by_backend[design], by_backend[INDEXED]
    return show.busy_mark(plain, indexed) + show.factor(plain["median"] / indexed["median"])


# ---- latencies ----------------------------------------------------------------------------------


def _latencies(report: PerfReport) -> Part:
    if not report["slots"]:
        return ""
    n = max(report["slots"])
    rows = [row for row in _of_size(report, n) if row["case"] in LATENCIES]
    cases, names = show.by_case(rows), show.columns(rows)
    body = [
        [case, *(_percentiles(cases[case].get(name)) for name in names)]
        for case in LATENCIES
        if case in cases
    ]
    headers = [f"p50 / p99 / p99.9 at {n:,} slots", *names]
    return Table(body, headers) if body else ""


def _percentiles(row: Row | None) -> str:
    if row is None:
        return "-"
    times = " / ".join(show.time(ns) for ns in (row["p50"], row["p99"], row["p999"]))
    return show.busy_mark(row) + times


# ---- peers --------------------------------------------------------------------------------------


def _peers(report: PerfReport) -> Iterator[Table]:
    for case, title in PEER_TABLES:
        rows = [r for r in report["results"] if r["case"] == case]
        names = show.columns(rows)
        if any(name in PEERS for name in names):
            yield _peer_table(rows, names, title)


def _peer_table(rows: list[Row], names: list[str], title: str) -> Table:
    sizes = list(dict.fromkeys(row["n_slots"] for row in rows))
    found = {(row["n_slots"], row["backend"]): row for row in rows}
    body = [[f"{n:,} slots", *(show.cell(found.get((n, name))) for name in names)] for n in sizes]
    return Table(body, [title, *names])


# ---- traces -------------------------------------------------------------------------------------


def _traces(report: PerfReport, prefix: str, title: str) -> Part:
    rows = [r for r in report["results"] if r["case"].startswith(prefix)]
    names, rivals = show.columns(rows), _rivals(rows)
    body = [
        [case.removeprefix(prefix), _most_ops(by_backend.values())]
        + [_trace_cell(by_backend.get(name)) for name in names]
        + [show.verdict(by_backend, rival) for rival in rivals]
        for case, by_backend in show.by_case(rows).items()
    ]
    headers = [title, "operations", *names, *show.ratio_headers(rivals)]
    return Table(body, headers) if body else ""


def _most_ops(rows: Iterable[Row]) -> str:
    return f"{max(row['ops'] // row['rounds'] for row in rows):,}"


def _trace_cell(row: Row | None) -> str:
    """For whole traces the total time, otherwise the time of one operation."""
    if row and "iteration_ns" in row:
        time = show.time(row["iteration_ns"])
        return f"{show.busy_mark(row)}{time} {show.spread(row):>4}{show.wrong_mark(row)}"
    return show.cell(row)


# ---- the closing notes --------------------------------------------------------------------------


def _closing(report: PerfReport) -> Iterator[str]:
    yield from _headlines(report)
    yield from _array_wins(report)
    yield from show.new_design_notes(report["results"])
    yield from show.index_note(report["results"])
    yield _overheads(report)
    yield from show.skipped(report)
    yield from show.not_run(report["not_run"])
    if report["not_run"]:
        yield "--full runs slower cases too."
    yield from show.busy_note(report)
    yield show.checked(report, report["results"])


def _headlines(report: PerfReport) -> Iterator[str]:
    for n in report["slots"]:
        cases = show.by_case(_of_size(report, n))
        factors = [_headline(case, cases[case], n) for case in HEADLINES if case in cases]
        if n >= 1000 and any(factors):
            yield f"array / tree at {n:,} slots: " + ", ".join(filter(None, factors))


def _headline(case: str, by_backend: dict[str, Row], n: int) -> str:
    if not duel.has_both(by_backend) or duel.winner(by_backend) == duel.BUSY:
        return ""
    known = published.TABLE.get((case, n))
    return f"{case} {show.factor(duel.factor(by_backend))}x" + (
        f" (published {known.factor:.0f}x)" if known else ""
    )


def _array_wins(report: PerfReport) -> Iterator[str]:
    """Name the cases in which the array is faster: among the costs, and by number of slots for each kind of VM."""
    duels = list(filter(duel.has_both, show.by_case_and_size(report["results"]).values()))
    if duels:
        decided = any(duel.winner(rows) != duel.BUSY for rows in duels)
        busy = bool(show.busy_mark(*report["results"]))
        yield _array_wins_at("costs above", _wins_in_costs(report), busy, decided)
    rooms = dict.fromkeys(row["user_mem_slots"] for row in report["crossover"])
    for room in rooms:
        rows = [row for row in report["crossover"] if row["user_mem_slots"] == room]
        wins = [f"{row['case']} at {_ranges(row)}" for row in rows if row["array_wins_at"]]
        disturbed = any(row.get("busy_at") for row in rows)
        decided = any(len(row.get("busy_at", ())) < len(row["factors"]) for row in rows)
        yield _array_wins_at(f"array / tree, VM of {room:,} ids", wins, disturbed, decided)


def _array_wins_at(table: str, wins: list[str], busy: bool, decided: bool) -> str:
    if not decided:
        return f"No row decides which design is faster ({table}): the machine was busy."
    places = ", ".join(wins) if wins else "nowhere"
    others = "the tree is faster, or both are even"
    if busy:
        others = "the tree is faster, both are even, or the machine was busy"
    return f"The array is faster ({table}): {places}.  In all other rows of these tables {others}."


def _wins_in_costs(report: PerfReport) -> list[str]:
    return show.cases_at(
        cell
        for cell, rows in show.by_case_and_size(report["results"]).items()
        if duel.has_both(rows) and duel.winner(rows) == duel.RIVAL
    )


def _ranges(row: CrossoverRow) -> str:
    """Return the sizes at which the array wins, with consecutive sizes joined: "2 to 16 and 32,764 slots"."""
    sizes = [int(n) for n in row["factors"]]
    runs: list[list[int]] = []
    for n in row["array_wins_at"]:
        if runs and sizes.index(n) == sizes.index(runs[-1][-1]) + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    parts = [f"{run[0]:,} to {run[-1]:,}" if len(run) > 1 else f"{run[0]:,}" for run in runs]
    return " and ".join(parts) + " slots"


def _overheads(report: PerfReport) -> str:
    note = (
        f"Times are per operation: medians of {plural(report['rounds'], 'round')}, ± half the distance between their "
        f"quartiles.  Percentiles from C include {report['clock_ns']:.0f} ns for the clock, those from Python "
        f"{report['floor_ns']:.0f} ns for the clock and the call."
    )
    if (refused := report["kvm_refused_ns"]) is not None:
        note += f"  A system call that KVM refuses takes {refused:.0f} ns; each time of kvm includes this."
    return note
