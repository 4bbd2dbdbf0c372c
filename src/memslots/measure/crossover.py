# SPDX-License-Identifier: MIT
"""The number of slots up to which the array (the design before Linux 5.17) is faster, for each operation.

With each change the array copies a table of all ids, for any number of slots.  A VM has 32,764 ids in Linux 5.12 to
5.16, and 509 in earlier versions.  Small numbers of slots are measured in VMs of both sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..lab.case import Budget, Case
from ..lab.changes import all_changes
from ..lab.lookups import GfnLookup, IdLookup
from ..lab.progress import Progress
from ..lab.record import Part
from ..lab.schema import CrossoverRow, Row, WrongAnswer
from ..lab.selftest import MoveInactive, SlotSetup, Unmap
from ..lab.subjects import ROOM
from . import duel, fit
from .rounds import Cell, Results, measure, plan, turns

OLD_ROOM = 509
SMALL = (2, 4, 8, 16, 32, 64, 128, 256)
SIZES = {OLD_ROOM: (*SMALL, 509), ROOM: (*SMALL, 512, 1024, 4096)}
BACKENDS = (duel.BASE, duel.RIVAL)

#: The budget of every mode.  Numbers of slots are small here, and so is the work.
BUDGET = Budget(0.005, 1.0, 1.0, 4096, 64, 256)


class Crossover:
    """The tree and the array at small numbers of slots, in VMs with few and with many ids."""

    def __init__(
        self, seed: int, rounds: int, pattern: str | None, largest: int | None = None
    ) -> None:
        self.pattern = pattern
        self.largest = largest  # number of slots; None: no limit
        self.results = {room: Results() for room in SIZES}
        self._cells = {room: self._plan(room, seed, rounds) for room in SIZES}
        self.turns = sum(turns(cells) for cells in self._cells.values())

    def _plan(self, room: int, seed: int, rounds: int) -> list[Cell]:
        sizes = [n for n in SIZES[room] if self.largest is None or n <= self.largest]
        cases = [case for n in sizes for case in _cases(n, seed)]
        wanted = [case for case in cases if case.is_wanted(self.pattern)]
        return plan(wanted, BACKENDS, rounds, BUDGET, self.results[room])

    def measure(self, progress: Progress) -> None:
        for room, cells in self._cells.items():
            measure(cells, BUDGET, self.results[room], progress, room)

    @property
    def wrong(self) -> list[WrongAnswer]:
        return [wrong for results in self.results.values() for wrong in results.wrong]

    def rows(self, main: list[Row]) -> list[CrossoverRow]:
        """Return a row for each case and number of ids: the sizes at which each design is faster."""
        return rows_of({room: r.rows(self.pattern) for room, r in self.results.items()}, main)

    def parts(self) -> list[Part]:
        """Return the raw samples, for each number of ids."""
        return [results.part(self.pattern, room) for room, results in self.results.items()]


def rows_of(by_room: Mapping[int, Iterable[Row]], main: Iterable[Row]) -> list[CrossoverRow]:
    """Return a row for each case and number of ids.  `main` adds larger numbers of slots."""
    of_main = duels(main)
    return [
        _row(case, room, by_size | _larger(of_main.get(case, {}), max(by_size), room))
        for room, rows in by_room.items()
        for case, by_size in duels(rows).items()
    ]


def _cases(n: int, seed: int) -> list[Case]:
    return [
        Unmap(n, seed),
        MoveInactive(n, seed),
        SlotSetup(n, seed),
        *all_changes(n, seed),
        IdLookup(n, seed),
        GfnLookup("hot", "vm", n, seed),
        GfnLookup("misses", "vm", n, seed),
    ]


def duels(rows: Iterable[Row]) -> dict[str, dict[int, dict[str, Row]]]:
    """Group rows: case -> number of slots -> backend -> row, where both backends have one.

    A case without such a number of slots is left out: one backend raised at every number.
    """
    found: dict[str, dict[int, dict[str, Row]]] = {}
    for row in rows:
        if row["backend"] in BACKENDS and row["n_slots"]:
            by_size = found.setdefault(row["case"], {})
            by_size.setdefault(row["n_slots"], {})[row["backend"]] = row
    return {case: pairs for case, by_size in found.items() if (pairs := _pairs(by_size))}


def _pairs(by_size: dict[int, dict[str, Row]]) -> dict[int, dict[str, Row]]:
    return {n: both for n, both in sorted(by_size.items()) if duel.has_both(both)}


def _larger(of_main: dict[int, dict[str, Row]], above: int, room: int) -> dict[int, dict[str, Row]]:
    return {n: both for n, both in of_main.items() if n > above and room == ROOM}


def _row(case: str, room: int, by_size: dict[int, dict[str, Row]]) -> CrossoverRow:
    factors = {n: duel.factor(both) for n, both in by_size.items()}
    winners = {n: duel.winner(both) for n, both in by_size.items()}
    return {
        "case": case,
        "user_mem_slots": room,
        "tree_from": fit.crossover(factors),
        "array_wins_at": [n for n, winner in winners.items() if winner == duel.RIVAL],
        "tree_wins_at": [n for n, winner in winners.items() if winner == duel.BASE],
        "busy_at": [n for n, winner in winners.items() if winner == duel.BUSY],
        "factors": {str(n): round(factor, 3) for n, factor in factors.items()},
    }
