# SPDX-License-Identifier: MIT
"""`memslots perf`: what lookups and changes cost on the trees, on the array they replaced, and in the real kernel.

Every answer is compared with one that was computed otherwise, or that a real Linux recorded, while it is timed; a
wrong one makes the command fail.  Backends take turns, case by case and round by round, so that a busy moment of the
machine hits them alike; medians of rounds are shown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from .. import __version__
from ..lab import peers
from ..lab.case import Budget, Case
from ..lab.changes import all_changes
from ..lab.layouts import SEED
from ..lab.lookups import all_lookups
from ..lab.machine import (
    available_backends,
    clock_ns,
    machine,
    on_one_cpu,
    python_call_ns,
)
from ..lab.progress import progress_bar
from ..lab.replays import Replay
from ..lab.schema import PerfReport
from ..lab.selftest import all_tests
from ..lab.subjects import refused_call_ns
from ..measure import published
from ..measure.crossover import Crossover
from ..measure.rounds import Cell, Results, measure, plan, turns
from ..report import perf as report_perf
from . import deliver

MIN_SLOTS = 2  # memslot_perf_test has a slot of code and one of data
MAX_SLOTS = 32_764  # of a kernel


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
    parser.add_argument("--slots", type=slot_numbers, metavar="N,...", help="numbers of slots")
    parser.add_argument("--rounds", type=deliver.positive, help="turns of each backend")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of slots and streams ({SEED})")
    parser.add_argument("--only", metavar="PATTERN", help="cases whose name has this in it")
    parser.add_argument("--no-kvm", action="store_true", help="leave this machine's kernel out")
    deliver.add_arguments(parser)


def slot_numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(sorted({int(part.replace("_", "")) for part in text.split(",")}))
    if not MIN_SLOTS <= numbers[0] <= numbers[-1] <= MAX_SLOTS:
        raise argparse.ArgumentTypeError(f"numbers of slots are {MIN_SLOTS} to {MAX_SLOTS}")
    return numbers


def run(args: argparse.Namespace) -> int:
    """Measures, prints; 0, or 1 when an answer was wrong, 2 when there is nothing to measure."""
    mode = QUICK if args.quick else FULL if args.full else MIDDLE
    mode = mode._replace(slots=args.slots or mode.slots, rounds=args.rounds or mode.rounds)
    names, skipped = available_backends(not args.no_kvm)
    with on_one_cpu("kvm" in names):
        lab = _Lab(mode, names, args.seed, args.only)
        if not lab.cells:
            print(f"memslots: no case has {args.only!r} in its name", file=sys.stderr)
            return 2
        lab.measure()
        report = lab.report(skipped, refused_call_ns() if "kvm" in names else None)
    deliver.deliver(report, args, report_perf.text, _draws(args.picture))
    return deliver.exit_code(report)


def _draws(path: Path | None) -> list[deliver.Draw[PerfReport]]:
    """The costs, and beside them the latencies."""
    if path is None:
        return []
    latencies = path.with_stem(f"{path.stem}-latency")
    return [(_draw_costs, path), (_draw_latencies, latencies)]


def _draw_costs(report: PerfReport, path: Path) -> None:
    from ..plot import perf_picture

    perf_picture(dict(report), path)


def _draw_latencies(report: PerfReport, path: Path) -> None:
    from ..plot import latency_picture

    latency_picture(dict(report), path)


class _Lab:
    """All cases of one command, and what came of them."""

    def __init__(self, mode: Mode, backends: list[str], seed: int, pattern: str | None) -> None:
        self.mode, self.seed, self.pattern = mode, seed, pattern
        self.results = Results()
        self.peers, self.no_peers = peers.available()
        self.cells = self._plan(backends)
        self.crossover = Crossover(seed, mode.rounds, pattern)
        self.seconds = 0.0

    def _plan(self, backends: list[str]) -> list[Cell]:
        mode = self.mode
        cells = plan(self._cases(), backends, mode.rounds, mode.budget, self.results)
        compared = [c for n in mode.slots for c in peers.all_peers(n, self.seed)]
        wanted = [c for c in compared if c.is_wanted(self.pattern)]
        cells += plan(wanted, self.peers, mode.rounds, mode.budget, self.results)
        return sorted(cells, key=lambda cell: cell.case.n_slots or 0)

    def _cases(self) -> list[Case]:
        cases: list[Case] = [Replay(self.seed)]
        for n in self.mode.slots:
            cases += all_tests(n, self.seed)
            cases += all_changes(n, self.seed)
            cases += all_lookups(n, self.seed)
        return [case for case in _once(cases) if case.is_wanted(self.pattern)]

    def measure(self) -> None:
        start = perf_counter()
        total = turns(self.cells) + self.crossover.turns
        with progress_bar(lambda: total, "turn") as progress:
            measure(self.cells, self.mode.budget, self.results, progress)
            self.crossover.measure(progress)
        self.seconds = perf_counter() - start

    def report(self, skipped: list[str], kvm_refused_ns: float | None) -> PerfReport:
        results = self.results.rows(self.pattern)
        return {
            "memslots": __version__,
            "command": "perf",
            "mode": self.mode.name,
            "machine": machine(),
            "seed": self.seed,
            "slots": list(self.mode.slots),
            "rounds": self.mode.rounds,
            "seconds": round(self.seconds, 2),
            "clock_ns": clock_ns(),
            "floor_ns": python_call_ns(),
            "kvm_refused_ns": kvm_refused_ns,
            "results": results,
            "crossover": self.crossover.rows(results),
            "published": published.rows(),
            "not_run": self.results.not_run,
            "skipped": skipped + self.no_peers,
            "wrong": self.results.wrong + self.crossover.wrong,
        }


def _once(cases: list[Case]) -> list[Case]:
    """Two numbers of slots may be more than a case has room for, and so become the same one."""
    kept: dict[tuple[tuple[str, ...], int | None], Case] = {}
    for case in cases:
        kept.setdefault((case.names, case.n_slots), case)
    return list(kept.values())
