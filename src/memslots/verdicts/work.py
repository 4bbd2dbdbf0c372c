# SPDX-License-Identifier: MIT
"""The program of one measured process: it times some hot paths for about a second, and prints JSON.

    python -P work.py [--seconds S] [--only PATTERN]

The package to measure is found by PYTHONPATH.  It may be old, so this program imports only names that commit 339614a
has (bench/suite/names.json), and nothing else of the package.  It checks every answer that it times.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fnmatch import fnmatch
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

from memslots import MEMSLOT_DTYPE, VM
from memslots._memslots import REGION_DTYPE, time_changes, time_lookups

#: With MANY slots the data of a case fit into the second-level cache.  Larger ones would be in a cache that other
#: machines use too: there the times of processes differ by 10 to 30 %, and no test could find 3 %.
FEW, MANY = 509, 4096
TURNS = 16  # of each case in a process
LOW = 0.1  # the quantile of the turns
NPAGES, STEP = 16, 24  # pages of a slot, and from one slot to the next
HOST = 0x1000_0000_0000
LOOKUPS, CHANGES = 8192, 512
RUN = 64  # lookups in one slot, where they are hot
#: Calls that are timed together.  The clock of some machines has steps of 10 ns: a group takes more than 500 of them.
GROUP, CHANGE_GROUP = 2048, 64
PAGE = 4096

Pass = Callable[[], list[float]]  # one pass of a case: nanoseconds of an operation, several times


class WrongAnswerError(Exception):
    """A timed answer is wrong."""


def slots(n: int) -> Any:
    rows = np.zeros(n, MEMSLOT_DTYPE)
    rows["id"] = np.random.default_rng(1).permutation(n)
    rows["base_gfn"] = np.arange(n, dtype=np.uint64) * np.uint64(STEP)
    rows["npages"] = NPAGES
    rows["userspace_addr"] = HOST + np.arange(n, dtype=np.uint64) * np.uint64(NPAGES * PAGE)
    return rows


def vm_with(n: int, policy: str = "off") -> Any:
    vm: Any = VM(user_mem_slots=MANY)
    vm.index_policy = policy
    vm.load_memslots(slots(n))
    return vm


def gfns(n: int, run: int) -> Any:
    """Random gfns that hit, in runs of lookups in one slot."""
    rng = np.random.default_rng(2)
    chosen = np.repeat(rng.integers(0, n, LOOKUPS // run), run)
    pages = rng.integers(0, NPAGES, LOOKUPS)
    return (chosen * STEP + pages).astype(np.uint64), (
        HOST + (chosen * NPAGES + pages) * PAGE
    ).astype(np.uint64)


def check(answers: Any, expected: Any) -> None:
    if not np.array_equal(answers, expected):
        raise WrongAnswerError(
            f"{int(np.sum(answers != expected))} of {len(expected)} answers are wrong"
        )


def per_call(ns: Any, calls: int) -> list[float]:
    return [float(t) / calls for t in ns]


def lookup(n: int, run: int) -> Callable[[Any], Pass]:
    def make(vm: Any) -> Pass:
        numbers, expected = gfns(n, run)

        def once() -> list[float]:
            ns, answers = time_lookups(vm, "gfn_to_hva", numbers, group=GROUP)
            check(answers, expected)
            return per_call(ns, GROUP)

        return once

    return make


def batch(n: int) -> Callable[[Any], Pass]:
    def make(vm: Any) -> Pass:
        numbers, expected = gfns(n, 1)
        out = np.zeros_like(numbers)

        def once() -> list[float]:
            start = perf_counter_ns()
            vm.gfn_to_hva_many(numbers, out)
            ns = perf_counter_ns() - start
            check(out, expected)
            return [ns / LOOKUPS]

        return once

    return make


def by_id(n: int) -> Callable[[Any], Pass]:
    def make(vm: Any) -> Pass:
        chosen = np.random.default_rng(3).integers(0, n, LOOKUPS)
        rows = slots(n)

        def once() -> list[float]:
            ns, answers = time_lookups(
                vm, "id_to_memslot", rows["id"][chosen].astype(np.uint64), group=GROUP
            )
            check(answers, rows["userspace_addr"][chosen])
            return per_call(ns, GROUP)

        return once

    return make


def by_hva(n: int) -> Callable[[Any], Pass]:
    def make(vm: Any) -> Pass:
        _, hvas = gfns(n, 1)
        ones = np.ones(LOOKUPS, np.uint64)

        def once() -> list[float]:
            ns, answers = time_lookups(
                vm, "hva_range", hvas, hvas + np.uint64(PAGE - 1), group=GROUP
            )
            check(answers, ones)
            return per_call(ns, GROUP)

        return once

    return make


def changes(n: int, first: dict[str, int], second: dict[str, int]) -> Callable[[Any], Pass]:
    """Pairs of changes of random slots; the second one undoes the first."""

    def make(vm: Any) -> Pass:
        rows = slots(n)[np.random.default_rng(4).integers(0, n, CHANGES // 2)]
        regions = np.zeros(CHANGES, REGION_DTYPE)
        for i, changed in enumerate((first, second)):
            part = regions[i::2]
            part["slot"], part["userspace_addr"] = rows["id"], rows["userspace_addr"]
            part["guest_phys_addr"], part["memory_size"] = (
                rows["base_gfn"] * PAGE,
                rows["npages"] * PAGE,
            )
            part["guest_memfd"] = -1
            for name, value in changed.items():
                part[name] = value

        def once() -> list[float]:
            ns, results = time_changes(vm, regions, group=CHANGE_GROUP)
            check(results, np.zeros(CHANGES, np.int32))
            return per_call(ns, CHANGE_GROUP)

        return once

    return make


def from_python(n: int) -> Callable[[Any], Pass]:
    def make(vm: Any) -> Pass:
        numbers, expected = gfns(n, RUN)
        given, call = numbers[:1024].tolist(), vm.gfn_to_hva

        def once() -> list[float]:
            start = perf_counter_ns()
            answers = [call(gfn) for gfn in given]
            ns = perf_counter_ns() - start
            check(np.array(answers, np.uint64), expected[:1024])
            return [ns / len(given)]

        return once

    return make


BEYOND = (MANY + 1) * STEP * PAGE
#: name -> (slots, policy of the index, case)
CASES: dict[str, tuple[int, str, Callable[[Any], Pass]]] = {
    "lookup/hot/vm at 509": (FEW, "off", lookup(FEW, RUN)),
    "lookup/random/vm at 509": (FEW, "off", lookup(FEW, 1)),
    "lookup/random/vm at 4,096": (MANY, "off", lookup(MANY, 1)),
    "lookup/id/vm at 4,096": (MANY, "off", by_id(MANY)),
    "lookup/hva/vm at 4,096": (MANY, "off", by_hva(MANY)),
    "lookup/hot/python at 509": (FEW, "off", from_python(FEW)),
    "lookup/random/batch at 4,096": (MANY, "eager", batch(MANY)),
    "change/delete and create at 509": (FEW, "off", changes(FEW, {"memory_size": 0}, {})),
    "change/move at 509": (FEW, "off", changes(FEW, {"guest_phys_addr": BEYOND}, {})),
    "change/log on and off at 4,096": (MANY, "off", changes(MANY, {"flags": 1}, {})),
}


def turn(once: Pass, seconds: float) -> float:
    """Time a case for some milliseconds: the median in nanoseconds.  The first pass warms the caches, untimed."""
    once()
    times: list[float] = []
    end = perf_counter() + seconds
    while perf_counter() < end or not times:
        times += once()
    return statistics.median(times)


def low(times: list[float]) -> float:
    """Return the value below which a tenth of the turns lie.  Other machines on the same CPU only make turns longer."""
    return sorted(times)[int(LOW * len(times))]


def measure(names: list[str], seconds: float) -> Iterator[tuple[str, float]]:
    """Yield the seconds of one operation of each case.  The cases take turns, so that a disturbance of some hundred
    milliseconds reaches a few turns of all cases and not all turns of one case."""
    with ExitStack() as stack:
        vms: dict[tuple[int, str], Any] = {}
        passes: dict[str, Pass] = {}
        for name in names:
            n, policy, make = CASES[name]
            if (n, policy) not in vms:
                vms[n, policy] = vm_with(n, policy)
                stack.callback(vms[n, policy].close)
            passes[name] = make(vms[n, policy])
        each = seconds / len(CASES) / TURNS
        turns = [{name: turn(once, each) for name, once in passes.items()} for _ in range(TURNS)]
        for name in names:
            yield name, low([times[name] for times in turns]) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--only", default="*")
    args = parser.parse_args()
    names = [name for name in CASES if fnmatch(name, f"*{args.only}*")]
    try:
        found = dict(measure(names, args.seconds))
    except WrongAnswerError as e:
        print(e, file=sys.stderr)
        return 1
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
