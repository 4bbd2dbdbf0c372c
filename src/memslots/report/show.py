# SPDX-License-Identifier: MIT
"""Times, factors and notes as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..lab.peers import PEERS
from ..lab.schema import NotRun, Report, Row
from ..lab.subjects import INDEXED, design_of
from ..measure import duel, noise
from .words import listed, plural

UNITS = (("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9))

LAST = ("kvm",)  # the last columns
BUSY_MARK = "!"


def time(ns: float) -> str:
    """Format a time with three digits and a unit."""
    for unit, size in UNITS:
        if ns < 1000 * size:
            break
    value = ns / size
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def spread(row: Row) -> str:
    """Return half the distance between the quartiles of the rounds, in percent of the median."""
    return f"±{50 * (row['high'] - row['low']) / max(row['median'], 1e-9):.0f}%"


def cell(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{busy_mark(row)}{time(row['median'])} {spread(row):>4}{wrong_mark(row)}"


def busy_mark(*rows: Row) -> str:
    """Return the mark of a figure that other work of the machine has disturbed."""
    return BUSY_MARK if noise.any_busy(rows) else ""


def wrong_mark(row: Row) -> str:
    return "" if row["checked"] else " WRONG"


def factor(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def verdict(by_backend: dict[str, Row], rival: str = duel.RIVAL) -> str:
    """Return rival / tree and the winner."""
    if not duel.has_both(by_backend, rival):
        return ""
    who = duel.winner(by_backend, rival)
    shown = who.upper() if who == rival else who
    return f"{factor(duel.factor(by_backend, rival))} {shown:<{max(5, len(rival))}}"


def new_designs(rows: Iterable[Row]) -> list[str]:
    """Return the designs that are not part of this project."""
    known = {*duel.DESIGNS, INDEXED, *LAST, *PEERS}
    return [name for name in columns(rows) if name not in known]


def ratio_headers(rivals: Iterable[str]) -> list[str]:
    return [f"{rival} / {duel.BASE}" for rival in rivals]


def new_design_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a sentence about each new design: the cases in which it is faster, and how many are slower or even."""
    for name in new_designs(rows):
        yield _new_design_note(name, by_case_and_size(rows))


def _new_design_note(name: str, cells: Mapping[tuple[str, int], dict[str, Row]]) -> str:
    outcomes = (name, duel.BASE, duel.EVENLY, duel.BUSY)
    found: dict[str, list[tuple[str, int]]] = {outcome: [] for outcome in outcomes}
    for cell_of, both in cells.items():
        if duel.has_both(both, name):
            found[duel.winner(both, name)].append(cell_of)
    busy = len(found.pop(duel.BUSY))
    total = sum(map(len, found.values()))
    wins = ", ".join(cases_at(found[name])) or "nowhere"
    return (
        f"The design {name} is faster than the {duel.BASE} in {len(found[name])} of {total} rows: {wins}; slower in "
        f"{len(found[duel.BASE])}, even in {len(found[duel.EVENLY])}."
        + (f"  {plural(busy, 'more row')}: the machine was busy." if busy else "")
    )


def cases_at(cells: Iterable[tuple[str, int]]) -> list[str]:
    """Return one text for each case, such as "RW at 8 and 509"."""
    sizes: dict[str, list[int]] = {}
    for case, n in sorted(cells, key=lambda cell: cell[1]):
        sizes.setdefault(case, []).append(n)
    return [f"{case} at {' and '.join(f'{n:,}' for n in at)}" for case, at in sizes.items()]


def by_case(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Group rows: case -> backend -> row."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["case"], {})[row["backend"]] = row
    return found


def not_run(entries: Iterable[NotRun]) -> Iterator[str]:
    """One line for each backend and reason."""
    found: dict[tuple[str, str], list[NotRun]] = {}
    for row in entries:
        found.setdefault((row["backend"], row["reason"]), []).append(row)
    for (backend, reason), rows in found.items():
        sizes = dict.fromkeys(f"{row['n_slots']:,}" for row in rows)
        cases = list(dict.fromkeys(row["case"] for row in rows))
        what = cases[0] if len(cases) == 1 else plural(len(cases), "case")
        yield f"not run: {what}, {backend}, {listed(sizes)} slots: {reason}"


def skipped(report: Report) -> Iterator[str]:
    """One line for each subject that is not available."""
    yield from (f"skipped: {reason}" for reason in report["skipped"])


def checked(report: Report, rows: Sequence[Row]) -> str:
    """Return the last line: the amount of work, and the number of cells with wrong answers."""
    ops = sum(row["ops"] for row in rows)
    return (
        f"{plural(ops, 'operation')} timed in {plural(len(rows), 'cell')}, {report['seconds']:.0f} s, "
        f"seed {report['seed']}: {plural(len(report['wrong']), 'cell')} with wrong answers."
    )


def busy_note(report: Report) -> Iterator[str]:
    """Say that the machine was busy, and how that shows; nothing if no cell was affected."""
    found = report.get("noise")
    if not found or not found["busy_cells"]:
        return
    yield (
        f"THE MACHINE WAS BUSY: {found['busy_cells']:,} of {plural(found['cells'], 'cell')} were disturbed by other "
        f"work and have the mark {BUSY_MARK}.  They appear in no headline and in no sentence about winners.  "
        f"{_busy_readings(report)}  Measure again on a quiet machine."
    )


def _busy_readings(report: Report) -> str:
    found = report["noise"]
    readings = [
        ("other processes used up to {:.1f} processors", found["others"]),
        (
            "other machines took up to {:.1f}",
            found["stolen"] if (found["stolen"] or 0) >= 0.05 else None,
        ),
        ("the reference loop took up to {:.1f} times as long as typically", found["slower"]),
        ("the load was up to {:.1f}", found["load"]),
    ]
    known = [text.format(value) for text, value in readings if value is not None]
    switches = plural(found["switches"], "involuntary context switch")
    return f"In single rounds {listed(known)}; there were {switches}."


def index_note(rows: Iterable[Row]) -> Iterator[str]:
    """Explain the column of the tree with an index, if there is one."""
    if any(row["backend"] == INDEXED for row in rows):
        yield (
            f'{INDEXED}: the {design_of(INDEXED)} with an index for lookups by gfn (vm.index_policy "eager").  The '
            "index is built before the first timed lookup.  Single lookups among a few slots walk the tree anyway.  "
            'The designs themselves are measured without an index ("off").'
        )


def by_case_and_size(rows: Iterable[Row]) -> dict[tuple[str, int], dict[str, Row]]:
    """Group rows: (case, number of slots) -> backend -> row.  Traces have their own slots and are left out."""
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        if row["n_slots"] is not None:
            found.setdefault((row["case"], row["n_slots"]), {})[row["backend"]] = row
    return found


def columns(rows: Iterable[Row]) -> list[str]:
    """Return the backends of these rows in the order of their columns: DESIGNS, all others, LAST."""
    names = list(dict.fromkeys(row["backend"] for row in rows))
    others = [name for name in names if name not in (*duel.DESIGNS, *LAST)]
    return [n for n in (*duel.DESIGNS, *others, *LAST) if n in names]
