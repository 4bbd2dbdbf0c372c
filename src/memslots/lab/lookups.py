# SPDX-License-Identifier: MIT
"""Lookups by gfn and by id: each stream of gfns is looked up in up to four ways.

vm      C loop around the VM's own lookup, with the set's last_used_slot
vcpu    C loop around a vCPU's lookup, with a last_used_slot of its own
batch   one call of `gfn_to_hva_many` from Python for each BATCH numbers
python  one call of `gfn_to_hva` from Python for each number, in a loop
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..constants import HVA_ERR_BAD
from . import layouts
from .case import Case, Run
from .costs import RUN, affordable, spread
from .layouts import Layout, Numbers
from .sample import Sample, Times, difference, digest, per_operation, typical
from .schema import More
from .subjects import Answered, Engine

LEVELS = ("vm", "vcpu", "batch", "python")
BATCH = 4096
PASSES = 3  # over a stream in batches; one pass has too few batches for a median

#: The names of the streams in cases, and the layout of each.
PATTERNS = {
    "hot": "uniform",
    "sequential": "uniform",
    "random": "uniform",
    "misses": "uniform",
    "adversarial": "adversarial",
}

Loop = Callable[[Numbers, int], Answered]


class LookupCase(Case):
    """The common part of all lookups: the layout, the engine, and the number of operations."""

    kind = "gfn"
    layout_name = "uniform"

    @cached_property
    def slots(self) -> Layout:
        return layouts.layout(self.layout_name, self.n_slots or 1, self.seed)

    def engine(self, run: Run) -> Engine:
        return engine_with(run, self.layout_name, self.slots)

    def count(self, run: Run, wanted: int) -> int:
        return affordable(self.kind, run.backend, len(self.slots), wanted, run.budget.seconds)


def engine_with(run: Run, name: str, slots: Layout) -> Engine:
    """Return the engine of this run that holds these slots."""
    found = run.subjects.get(run.backend, name, lambda: slots)
    assert isinstance(found, Engine)
    return found


def time_loop(loop: Loop, numbers: Numbers, latencies: int) -> tuple[float, Times, Numbers]:
    """Return the typical time in groups, the times of single lookups, and the answers of both passes.

    The first pass is not timed.  It fills the caches, which still hold data of the backend before.
    """
    loop(numbers, RUN)
    ns, answers = loop(numbers, RUN)
    alone = numbers[:latencies]
    single_ns, more = loop(alone, 1)
    value = typical(per_operation(ns, len(numbers), RUN))
    return value, single_ns.astype(np.float64), np.concatenate([answers, more])


class GfnLookup(LookupCase):
    """gfn -> host address, for one stream and one way to look up."""

    with_index = True

    def __init__(self, pattern: str, level: str, n_slots: int, seed: int) -> None:
        super().__init__(n_slots, seed)
        self.names = (f"lookup/{pattern}/{level}",)
        self.pattern, self.level = pattern, level
        self.layout_name = PATTERNS[pattern]
        #: Streams by length, with their answers.
        self._known: dict[int, tuple[Numbers, Numbers]] = {}

    def numbers(self, wanted: int) -> Numbers:
        make = layouts.STREAMS["random" if self.pattern == "adversarial" else self.pattern]
        return make(self.slots, wanted, self.seed)

    def stream(self, wanted: int, count: int) -> tuple[Numbers, Numbers]:
        """Return `count` numbers of the stream of `wanted`, and their answers.

        A fast backend gets the whole stream, a slow one a part of the same stream.
        """
        if count not in self._known:
            numbers = self.numbers(wanted)[spread(wanted, count)]
            self._known[count] = numbers, layouts.expected_hvas(self.slots, numbers)
        return self._known[count]

    def run(self, run: Run) -> Sequence[Sample]:
        wanted = run.budget.lookups
        numbers, expected = self.stream(wanted, self.count(run, wanted))
        return [self.timed(self.engine(run), numbers, expected, run.budget.latencies)]

    def timed(self, engine: Engine, numbers: Numbers, expected: Numbers, latencies: int) -> Sample:
        if self.level == "batch":
            return self.batches(expected, *time_batches(engine.vm.gfn_to_hva_many, numbers))
        both = np.concatenate([expected, expected[:latencies]])
        if self.level == "python":
            return self.sample(both, *time_calls(engine.vm.gfn_to_hva, numbers, latencies), 1)
        loop = engine.vcpu_gfns if self.level == "vcpu" else engine.gfns
        return self.sample(both, *time_loop(loop, numbers, latencies), 1)

    def batches(self, expected: Numbers, value: float, singles: Times, answers: Numbers) -> Sample:
        group = min(BATCH, len(expected))
        return self.sample(np.tile(expected, PASSES), value, singles, answers, group)

    def sample(
        self, expected: Numbers, value: float, singles: Times, answers: Numbers, group: int
    ) -> Sample:
        wrong = difference(answers, expected, "answers")
        extra: More = {"pattern": self.pattern, "level": self.level, "layout": self.layout_name}
        return Sample(
            self.names[0], value, singles, group, len(answers), digest(answers), wrong, extra
        )


def time_batches(
    many: Callable[..., NDArray[Any]], numbers: Numbers
) -> tuple[float, Times, Numbers]:
    """Time one call for each BATCH numbers, in PASSES passes.  Before, one call for all numbers is not timed.

    The answers are those of all timed passes, one pass after the other.  All passes write to the same memory.
    """
    answers = np.zeros(len(numbers), dtype=np.uint64)
    many(numbers, answers)
    times: list[float] = []
    kept = []
    for _ in range(PASSES):
        answers[:] = 0
        times += _time_pass(many, numbers, answers)
        kept.append(answers.copy())
    singles = np.array(times)
    return typical(singles), singles, np.concatenate(kept)


def _time_pass(
    many: Callable[..., NDArray[Any]], numbers: Numbers, answers: Numbers
) -> Iterator[float]:
    """Yield the time of one number for each call."""
    for i in range(0, len(numbers), BATCH):
        part, out = numbers[i : i + BATCH], answers[i : i + BATCH]
        start = perf_counter_ns()
        many(part, out)
        yield (perf_counter_ns() - start) / len(part)


def time_calls(
    call: Callable[[int], int], numbers: Numbers, latencies: int
) -> tuple[float, Times, Numbers]:
    """Time one call for each number, after the same calls without timing.  The time includes the Python loop.

    The answers are those of the groups, and then those of the calls that are timed alone.
    """
    given = numbers.tolist()
    _call_each(call, given)
    grouped: list[float] = []
    answers: list[int] = []
    for i in range(0, len(given), RUN):
        part = given[i : i + RUN]
        start = perf_counter_ns()
        answers += _call_each(call, part)
        grouped.append((perf_counter_ns() - start) / len(part))
    alone = list(_time_each(call, given[:latencies]))
    answers += [answer for _, answer in alone]
    singles = np.array([ns for ns, _ in alone], dtype=np.float64)
    return typical(np.array(grouped)), singles, np.array(answers, dtype=np.uint64)


def _call_each(call: Callable[[int], int], numbers: list[int]) -> list[int]:
    answers = []
    for number in numbers:
        try:
            answers.append(call(number))
        except LookupError:
            answers.append(HVA_ERR_BAD)
    return answers


def _time_each(call: Callable[[int], int], numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield time and answer of each call."""
    for number in numbers:
        start = perf_counter_ns()
        try:
            answer = call(number)
        except LookupError:
            answer = HVA_ERR_BAD
        yield perf_counter_ns() - start, answer


class IdLookup(LookupCase):
    """id -> slot, the first step of every change."""

    kind = "id"
    names = ("lookup/id/vm",)

    def run(self, run: Run) -> Sequence[Sample]:
        wanted = run.budget.lookups
        numbers = layouts.ids(self.slots, self.count(run, wanted), self.seed)
        latencies = min(run.budget.latencies, len(numbers))
        value, singles, answers = time_loop(self.engine(run).ids, numbers, latencies)
        looked_up = np.concatenate([numbers, numbers[:latencies]])
        wrong = difference(answers, layouts.expected_addresses(self.slots, looked_up), "answers")
        extra: More = {"pattern": "random", "level": "vm", "layout": self.layout_name}
        made = digest(answers)
        return [Sample(self.names[0], value, singles, 1, len(looked_up), made, wrong, extra)]


def all_lookups(n_slots: int, seed: int) -> list[Case]:
    """Every stream in every way, and lookups by id."""
    cases: list[Case] = [IdLookup(n_slots, seed)]
    for pattern in PATTERNS:
        levels = ("vm", "batch") if pattern == "adversarial" else LEVELS
        cases += [GfnLookup(pattern, level, n_slots, seed) for level in levels]
    return cases
