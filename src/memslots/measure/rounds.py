# SPDX-License-Identifier: MIT
"""Rounds of measurements.  Backends take turns for each case, so that a busy moment of the machine affects all."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from random import Random
from typing import NamedTuple

from ..lab import watch
from ..lab.case import Budget, Case, Run, matches
from ..lab.progress import Progress
from ..lab.record import Key, Part, Window, cell_record, samples_of
from ..lab.sample import Sample, row
from ..lab.schema import NotRun, Row, WrongAnswer
from ..lab.subjects import ROOM, Subjects
from . import noise


class Cell(NamedTuple):
    """One case on one backend."""

    case: Case
    backend: str
    rounds: int


class Results:
    """The samples of all rounds, with wrong answers and cases that did not run."""

    def __init__(self) -> None:
        self.samples: dict[Key, list[Sample]] = {}
        self.windows: list[Window] = []
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

    def rows(self, pattern: str | None = None, level: float | None = None) -> list[Row]:
        """Return the rows.  `level`: of the reference loop typically; None: that of these rows."""
        chosen = list(self._chosen(pattern))
        if level is None:
            level = noise.typical_level(s.reference_ns for _, samples in chosen for s in samples)
        return [self._row(key, samples, level) for key, samples in chosen]

    def _row(self, key: Key, samples: list[Sample], level: float | None) -> Row:
        _, backend, n_slots = key
        found = row(samples, backend, n_slots)
        found["disturbed"] = noise.disturbed(samples, self.windows, level)
        return found

    def _chosen(self, pattern: str | None) -> Iterator[tuple[Key, list[Sample]]]:
        for key, samples in self.samples.items():
            if samples and matches(key[0], pattern):
                yield key, samples

    def part(self, pattern: str | None = None, room: int = ROOM) -> Part:
        """Return the raw samples of the rows."""
        cells = [cell_record(key, samples) for key, samples in self._chosen(pattern)]
        return Part(room, cells, list(self.windows))

    @classmethod
    def of_part(cls, part: Part) -> Results:
        """Return the results that `part` recorded.  They give the same rows."""
        results = cls()
        results.windows = list(part.windows)
        for cell in part.cells:
            results.samples[cell.case, cell.backend, cell.n_slots] = samples_of(cell)
        return results


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
        with watch.window(results.windows, cells[0].case.n_slots, i):
            before = watch.reference().read()
            for _, due in groupby(_in_turn(cells, i), lambda cell: id(cell.case)):
                samples: list[Sample] = []
                for cell in due:
                    if id(cell) not in failed and not _turn(
                        cell, i, subjects, budget, samples, results
                    ):
                        failed.add(id(cell))
                    progress()
                after = watch.reference().read()
                for sample in samples:
                    sample.reference_ns = max(before, after)
                before = after


def _in_turn(cells: list[Cell], i: int) -> Iterator[Cell]:
    """Return the cells of round i: case by case, with the backends in a new random order.

    In a rotated order each backend would always follow the same other one.  It would then always pay for its
    leftovers, such as cold caches or the kernel's deferred work.
    """
    for number, (_, group) in enumerate(groupby(cells, lambda cell: id(cell.case))):
        due = [cell for cell in group if i < cell.rounds]
        Random(f"{i} {number}").shuffle(due)
        yield from due


def _turn(
    cell: Cell, i: int, subjects: Subjects, budget: Budget, samples: list[Sample], results: Results
) -> bool:
    """Run one cell once, and append its samples.  Return False if it raised, which counts as a wrong answer."""
    run = Run(cell.backend, subjects, budget)
    try:
        if i == 0:
            cell.case.setup(run)
        with watch.turn() as turn:
            found = cell.case.run(run)
        for sample in found:
            sample.window = len(results.windows)  # the window is appended at the end of the round
            sample.seconds, sample.switches = turn[0]
        results.note(cell, found)
    except Exception as e:  # report any error of a backend, and go on with the others
        results.note_wrong(cell.case.names[0], cell, f"{type(e).__name__}: {e}")
        return False
    samples += found
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
