# SPDX-License-Identifier: MIT
"""`memslots scale`: the cost of each operation with 8 to 1,000,000 slots, on each design, and how it grows.

A second table compares the factors that the authors of the trees published with the same cases on this machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from .. import __version__
from ..lab.case import Budget, Case
from ..lab.fingerprint import fingerprint
from ..lab.machine import available_backends, clock_ns, on_one_cpu
from ..lab.progress import progress_bar
from ..lab.record import ScaleRaw, ScaleRecord
from ..lab.scaling import all_cases
from ..lab.schema import ScaleReport
from ..lab.selftest import all_tests
from ..measure import derive, duel, published
from ..measure.rounds import Cell, Results, measure, plan, turns
from ..report import scale as report_scale
from . import arguments, deliver, files, verify
from .deliver import Drawing
from .perf import nothing_to_measure
from .terminal import UsageError

SIZES = (8, 32, 128, 509, 2048, 8192, 32_764, 262_144, 1_000_000)
QUICK_MAX = 32_764
# An array of more slots is no longer small against the memory of most machines.
MAX_SLOTS = 10_000_000


class Mode(NamedTuple):
    name: str
    max_slots: int
    rounds: int
    budget: Budget


QUICK = Mode("quick", QUICK_MAX, 3, Budget(0.01, 1.0, 3.0, 16_384, 128, 256))
MIDDLE = Mode("middle", SIZES[-1], 5, Budget(0.05, 6.0, 6.0, 65_536, 256, 1024))
FULL = Mode("full", SIZES[-1], 15, Budget(0.5, 60.0, 300.0, 262_144, 1024, 8192))

#: The designs in the published table.  The cases of memslot_perf_test are measured on these only.
PUBLISHED_BACKENDS = (duel.BASE, duel.RIVAL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `memslots scale`."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=f"up to {QUICK_MAX:,} slots, few rounds")
    size.add_argument(
        "--full", action="store_true", help="more rounds, and cases that take minutes"
    )
    parser.add_argument("--max-slots", type=slot_number, metavar="N", help="the largest size")
    arguments.add_measurement(parser)
    deliver.add_arguments(parser)
    verify.add_argument(parser)


def slot_number(text: str) -> int:
    return arguments.number(text, 1, MAX_SLOTS)


def run(args: argparse.Namespace) -> int:
    """Measures and delivers.  The exit code is 1 after a wrong answer.  UsageError: there is nothing to measure."""
    drawings = _drawings(files.picture(args.picture) if args.picture else None)
    deliver.check(args, drawings)
    if args.verify:
        return verify.run(args, RECORDED, drawings)
    mode = QUICK if args.quick else FULL if args.full else MIDDLE
    mode = mode._replace(
        max_slots=args.max_slots or mode.max_slots, rounds=args.rounds or mode.rounds
    )
    names, skipped = available_backends(not args.no_kvm)
    scaling = _Scaling(mode, names, args.seed, args.only)
    if not scaling.cells and not scaling.test_cells:
        raise UsageError(nothing_to_measure(args.only, scaling.names))
    with on_one_cpu("kvm" in names):
        scaling.measure()
    report = scaling.report(skipped)
    return deliver.deliver(report, args, report_scale.text, drawings)


def _drawings(path: Path | None) -> list[Drawing[ScaleReport]]:
    return [] if path is None else [Drawing(_draw, path)]


def _draw(report: ScaleReport, path: Path) -> None:
    from ..plot import scale_picture

    scale_picture(dict(report), path)


def sizes_up_to(max_slots: int) -> tuple[int, ...]:
    """SIZES up to max_slots, and max_slots itself."""
    return tuple(sorted({*(n for n in SIZES if n <= max_slots), max_slots}))


class _Scaling:
    """All cells of one command, with their results."""

    def __init__(self, mode: Mode, backends: list[str], seed: int, pattern: str | None) -> None:
        self.mode, self.seed, self.pattern = mode, seed, pattern
        self.sizes = sizes_up_to(mode.max_slots)
        self.results, self.test_results = Results(), Results()
        cases = self._wanted(case for n in self.sizes for case in all_cases(n, seed))
        tests = self._wanted(self._tests())
        self.cells = self._plan(cases, backends, self.results)
        self.test_cells = self._plan(tests, list(PUBLISHED_BACKENDS), self.test_results)
        self.seconds = 0.0

    @property
    def names(self) -> list[str]:
        """The names of all cases, including those that --only leaves out."""
        cases = all_cases(self.sizes[0], self.seed)
        return [name for case in cases for name in case.names] + list(published.CASES)

    def _tests(self) -> Iterator[Case]:
        sizes = sorted({n for case, n in published.TABLE if case != "map"})
        for n in sizes:
            if n <= self.mode.max_slots:
                yield from (c for c in all_tests(n, self.seed) if c.names[0] in published.CASES)

    def _wanted(self, cases: Iterator[Case]) -> list[Case]:
        return [case for case in cases if case.is_wanted(self.pattern)]

    def _plan(self, cases: list[Case], backends: list[str], results: Results) -> list[Cell]:
        return plan(cases, backends, self.mode.rounds, self.mode.budget, results)

    def measure(self) -> None:
        start = perf_counter()
        total = turns(self.cells) + turns(self.test_cells)
        with progress_bar(lambda: total, "turn") as progress:
            measure(self.cells, self.mode.budget, self.results, progress, room=1)
            measure(self.test_cells, self.mode.budget, self.test_results, progress)
        self.seconds = perf_counter() - start

    def report(self, skipped: list[str]) -> ScaleReport:
        return derive.scale_report(self.record(skipped))

    def record(self, skipped: list[str]) -> ScaleRecord:
        """Return the raw samples, from which the report is derived."""
        return ScaleRecord(
            memslots=__version__,
            command="scale",
            mode=self.mode.name,
            machine=fingerprint(),
            seed=self.seed,
            slots=list(self.sizes),
            rounds=self.mode.rounds,
            seconds=round(self.seconds, 2),
            clock_ns=clock_ns(),
            not_run=self.results.not_run + self.test_results.not_run,
            skipped=skipped,
            wrong=self.results.wrong + self.test_results.wrong,
            raw=ScaleRaw(
                self.results.part(self.pattern, room=1), self.test_results.part(self.pattern)
            ),
        )


RECORDED = verify.Recorded(ScaleRecord, derive.scale_report, report_scale.text, _drawings)
