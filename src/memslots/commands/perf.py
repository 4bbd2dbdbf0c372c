# SPDX-License-Identifier: MIT
"""`memslots perf`: the cost of lookups and changes on the trees, on the array that they replaced, and in the kernel.

The command checks every answer that it times, against a second computation or against a recording of a real Linux.  A
wrong answer makes it fail.  Backends take turns, case by case and round by round, so that a busy moment of the machine
affects all of them.  The tables show medians of rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from .. import __version__
from ..lab import peers
from ..lab.case import Budget, Case, matches
from ..lab.changes import all_changes
from ..lab.fingerprint import fingerprint
from ..lab.lookups import all_lookups
from ..lab.machine import available_backends, clock_ns, on_one_cpu, python_call_ns
from ..lab.progress import progress_bar
from ..lab.record import PerfRaw, PerfRecord
from ..lab.replays import Replay
from ..lab.schema import PerfReport
from ..lab.selftest import all_tests
from ..lab.subjects import refused_call_ns
from ..measure import derive
from ..measure.crossover import Crossover
from ..measure.rounds import Cell, Results, measure, plan, turns
from ..report import perf as report_perf
from ..report.words import choices
from . import arguments, deliver, files, verify
from .deliver import Drawing
from .terminal import UsageError

MIN_SLOTS = 2  # memslot_perf_test needs one slot for code and one for data
MAX_SLOTS = 32_764  # the limit of the kernel


class Mode(NamedTuple):
    name: str
    slots: tuple[int, ...]
    rounds: int
    budget: Budget


FULL_SLOTS = (2, 8, 64, 509, 4096, 32_764)

QUICK = Mode("quick", (8, 509, 32_764), 3, Budget(0.01, 1.0, 4.0, 16_384, 128, 1024))
MIDDLE = Mode("middle", (8, 509, 32_764), 5, Budget(0.02, 1.0, 6.0, 16_384, 256, 2048))
FULL = Mode("full", FULL_SLOTS, 21, Budget(0.2, 10.0, 60.0, 65_536, 1024, 8192))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `memslots perf`."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a rough answer, in less than a minute")
    size.add_argument("--full", action="store_true", help="more sizes, rounds and operations")
    parser.add_argument(
        "--slots", type=slot_numbers, metavar="N,...", help="numbers of slots, and none above them"
    )
    arguments.add_measurement(parser)
    deliver.add_arguments(parser)
    verify.add_argument(parser)
    parser.add_argument(
        "--against",
        metavar="FILE|COMMIT",
        help="compare this checkout's files with a commit, or with the commit that FILE was measured with",
    )


def slot_numbers(text: str) -> tuple[int, ...]:
    """An argparse type: numbers with commas, such as "8,509" for 8 and 509 slots."""
    parts = text.split(",")
    return tuple(sorted({arguments.number(part, MIN_SLOTS, MAX_SLOTS) for part in parts}))


def run(args: argparse.Namespace) -> int:
    """Measures and delivers, unless --verify or --against choose other work.

    The exit code is 1 after a wrong answer.  UsageError: there is nothing to measure.
    """
    if args.against:
        return _against(args)
    drawings = _drawings(files.picture(args.picture) if args.picture else None)
    deliver.check(args, drawings)
    if args.verify:
        return verify.run(args, RECORDED, drawings)
    mode = QUICK if args.quick else FULL if args.full else MIDDLE
    mode = mode._replace(slots=args.slots or mode.slots, rounds=args.rounds or mode.rounds)
    names, skipped = available_backends(not args.no_kvm)
    with on_one_cpu("kvm" in names):
        lab = _Lab(mode, names, args.seed, args.only, max(args.slots) if args.slots else None)
        if not lab.cells:
            raise UsageError(nothing_to_measure(args.only, lab.names))
        lab.measure()
        report = lab.report(skipped, _kvm_refused_ns() if "kvm" in names else None)
    return deliver.deliver(report, args, report_perf.text, drawings)


def _against(args: argparse.Namespace) -> int:
    """UsageError: scipy is missing."""
    try:
        from . import against
    except ImportError as e:
        if (e.name or "").startswith("memslots"):
            raise
        reason = f"--against needs a library that is missing ({e}): pip install 'memslots[verdict]'"
        raise UsageError(reason) from e
    return against.run(args)


def nothing_to_measure(pattern: str | None, names: Iterable[str]) -> str:
    """The message if --only leaves no cell of the cases with these names."""
    known = list(dict.fromkeys(names))
    if any(matches(name, pattern) for name in known):
        return f"nothing to measure: --only {pattern!r} has no case for these numbers of slots"
    return f"no case has {pattern!r} in its name{choices(pattern or '', known)}"


def _kvm_refused_ns() -> float | None:
    """The time of a refused call.  None if the kernel now refuses to create a VM: the measured figures are kept."""
    try:
        return refused_call_ns()
    except OSError:
        return None


def _drawings(path: Path | None) -> list[Drawing[PerfReport]]:
    """A picture of the costs, and a second one of the latencies."""
    if path is None:
        return []
    latencies = path.with_stem(f"{path.stem}-latency")
    return [Drawing(_draw_costs, path), Drawing(_draw_latencies, latencies, wanted=False)]


def _draw_costs(report: PerfReport, path: Path) -> None:
    from ..plot import perf_picture

    perf_picture(dict(report), path)


def _draw_latencies(report: PerfReport, path: Path) -> None:
    from ..plot import latency_picture

    latency_picture(dict(report), path)


RECORDED = verify.Recorded(PerfRecord, derive.perf_report, report_perf.text, _drawings)


class _Lab:
    """All cases of one command, with their results.  `largest` limits the slots of the crossover too."""

    def __init__(
        self,
        mode: Mode,
        backends: list[str],
        seed: int,
        pattern: str | None,
        largest: int | None = None,
    ) -> None:
        self.mode, self.seed, self.pattern = mode, seed, pattern
        self.results = Results()
        self.peers, self.no_peers = peers.available()
        self.cells = self._plan(backends)
        self.crossover = Crossover(seed, mode.rounds, pattern, largest)
        self.seconds = 0.0

    def _plan(self, backends: list[str]) -> list[Cell]:
        mode = self.mode
        cells = plan(self._cases(), backends, mode.rounds, mode.budget, self.results)
        compared = [c for n in mode.slots for c in peers.all_peers(n, self.seed)]
        wanted = [c for c in compared if c.is_wanted(self.pattern)]
        cells += plan(wanted, self.peers, mode.rounds, mode.budget, self.results)
        return sorted(cells, key=lambda cell: cell.case.n_slots or 0)

    @property
    def names(self) -> list[str]:
        """The names of all cases, including those that --only leaves out."""
        return [name for case in self._all_cases() for name in case.names]

    def _cases(self) -> list[Case]:
        return [case for case in _once(self._all_cases()) if case.is_wanted(self.pattern)]

    def _all_cases(self) -> list[Case]:
        cases: list[Case] = [Replay(self.seed)]
        for n in self.mode.slots:
            cases += all_tests(n, self.seed)
            cases += all_changes(n, self.seed)
            cases += all_lookups(n, self.seed)
        return cases

    def measure(self) -> None:
        start = perf_counter()
        total = turns(self.cells) + self.crossover.turns
        with progress_bar(lambda: total, "turn") as progress:
            measure(self.cells, self.mode.budget, self.results, progress)
            self.crossover.measure(progress)
        self.seconds = perf_counter() - start

    def report(self, skipped: list[str], kvm_refused_ns: float | None) -> PerfReport:
        return derive.perf_report(self.record(skipped, kvm_refused_ns))

    def record(self, skipped: list[str], kvm_refused_ns: float | None) -> PerfRecord:
        """Return the raw samples, from which the report is derived."""
        return PerfRecord(
            memslots=__version__,
            command="perf",
            mode=self.mode.name,
            machine=fingerprint(),
            seed=self.seed,
            slots=list(self.mode.slots),
            rounds=self.mode.rounds,
            seconds=round(self.seconds, 2),
            clock_ns=clock_ns(),
            floor_ns=python_call_ns(),
            kvm_refused_ns=kvm_refused_ns,
            not_run=self.results.not_run,
            skipped=skipped + self.no_peers,
            wrong=self.results.wrong + self.crossover.wrong,
            raw=PerfRaw(self.results.part(self.pattern), self.crossover.parts()),
        )


def _once(cases: list[Case]) -> list[Case]:
    """The cases without duplicates: a case with a limit can reduce two numbers of slots to the same one."""
    kept: dict[tuple[tuple[str, ...], int | None], Case] = {}
    for case in cases:
        kept.setdefault((case.names, case.n_slots), case)
    return list(kept.values())
