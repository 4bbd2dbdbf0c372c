# SPDX-License-Identifier: MIT
"""Rounds of measurements.  Backends take turns for each case, so that a busy moment of the machine affects all."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from random import Random
from typing import NamedTuple

from ..lab.case import Budget, Case, Run, matches
from ..lab.progress import Progress
from ..lab.sample import Sample, row
from ..lab.schema import NotRun, Row, WrongAnswer
from ..lab.subjects import ROOM, Subjects

Key = tuple[str, str, int | None]  # case, backend, n_slots


class Cell(NamedTuple):
    """One case on one backend."""

    case: Case
    backend: str
    rounds: int


class Results:
    """The samples of all rounds, with wrong answers and cases that did not run."""

    def __init__(self) -> None:
        self.samples: dict[Key, list[Sample]] = {}
        self.wrong: list[WrongAnswer] = []
        self.not_run: list[NotRun] = []

    def expect(self, cell: Cell) -> None:
        """Reserve the place of a cell, so that rows keep the planned order."""
        for name in cell.case.names:
            self.samples.setdefault((name, cell.backend, cell.case.n_slots), [])

    def note(self, cell: Cell, samples: Iterable[Sample]) -> None:
        for sample in samples:
            key = (sample.case, cell.backend, cell.case.n_slots)
            self.samples.setdefault(key, []).append(sample)
            if sample.wrong:
                self.note_wrong(sample.case, cell, sample.wrong)

    def note_wrong(self, name: str, cell: Cell, what: str) -> None:
        found: WrongAnswer = {
            "case": name,
            "backend": cell.backend,
            "n_slots": cell.case.n_slots,
            "what": what,
        }
        if found not in self.wrong:
            self.wrong.append(found)

    def note_not_run(self, case: Case, backend: str, reason: str) -> None:
        for name in case.names:
            self.not_run.append(
                {"case": name, "backend": backend, "n_slots": case.n_slots, "reason": reason}
            )

    def rows(self, pattern: str | None = None) -> list[Row]:
        return [
            row(samples, backend, n_slots)
            for (name, backend, n_slots), samples in self.samples.items()
            if samples and matches(name, pattern)
        ]


def plan(
    cases: Iterable[Case], backends: Sequence[str], rounds: int, budget: Budget, results: Results
) -> list[Cell]:
    """Return the cells to run.  A case that a backend skips is noted in `results` with the reason."""
    cells = []
    for case in cases:
        for backend in case.backends(backends):
            if reason := case.refusal(backend, budget):
                results.note_not_run(case, backend, reason)
            else:
                cells.append(Cell(case, backend, case.rounds(backend, rounds, budget)))
                results.expect(cells[-1])
    return cells


def turns(cells: Iterable[Cell]) -> int:
    """Return how often `measure` will call `progress`."""
    return sum(cell.rounds for cell in cells)


def measure(
    cells: Sequence[Cell], budget: Budget, results: Results, progress: Progress, room: int = ROOM
) -> None:
    """Run all cells.  Cells with the same number of slots share the VMs of a round; each VM has `room` ids."""
    for _, group in groupby(cells, lambda cell: cell.case.n_slots):
        with Subjects(room) as subjects, _without_gc():
            _measure_group(list(group), subjects, budget, results, progress)


def _measure_group(
    cells: list[Cell], subjects: Subjects, budget: Budget, results: Results, progress: Progress
) -> None:
    """Run all rounds of one number of slots.

    The places of slots in memory affect the times, so each round has new VMs.  Cases that move slots in memory come
    last.  The other cases therefore give the same times whether or not such cases run.
    """
    cells = sorted(cells, key=lambda cell: cell.case.moves_slots)
    failed: set[int] = set()
    for i in range(max(cell.rounds for cell in cells)):
        subjects.renew()
        for cell in _in_turn(cells, i):
            if id(cell) not in failed and not _turn(cell, i, subjects, budget, results):
                failed.add(id(cell))
            progress()


def _in_turn(cells: list[Cell], i: int) -> Iterator[Cell]:
    """Return the cells of round i: case by case, with the backends in a new random order.

    In a rotated order each backend would always follow the same other one.  It would then always pay for its
    leftovers, such as cold caches or the kernel's deferred work.
    """
    for number, (_, group) in enumerate(groupby(cells, lambda cell: id(cell.case))):
        due = [cell for cell in group if i < cell.rounds]
        Random(f"{i} {number}").shuffle(due)
        yield from due


def _turn(cell: Cell, i: int, subjects: Subjects, budget: Budget, results: Results) -> bool:
    """Run one cell once.  Return False if it raised, which counts as a wrong answer."""
    run = Run(cell.backend, subjects, budget)
    try:
        if i == 0:
            cell.case.setup(run)
        results.note(cell, cell.case.run(run))
    except Exception as e:  # report any error of a backend, and go on with the others
        results.note_wrong(cell.case.names[0], cell, f"{type(e).__name__}: {e}")
        return False
    return True


@contextmanager
def _without_gc() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
