# SPDX-License-Identifier: MIT
"""P4: a lookup from Python compared with a method that takes and returns an int; small batches with loops; the work of
single lookups that make an index."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from memslots import HVA_ERR_MIN, VM
from memslots.lab import layouts
from memslots.lab.layouts import Numbers

from .build import QUICK, accepts, cython_module, with_core
from .scorecard import Scorecard
from .timing import quartiles, ratios, turns
from .work import AUTO, Settings, slots_of, stage

#: One method with Cython's default for binding, one with the directive that memslots uses.  Arguments are as small as
#: gfns and results as large as host addresses, because the cost of a Python int depends on its size.
FLOOR = """
cimport cython

cdef unsigned long long HOST_BASE = 1 << 44  # such a large literal would be a Python int

cdef class Floor:
    def method(self, unsigned long long number):
        return number + HOST_BASE

    @cython.binding(False)
    def unbound(self, unsigned long long number):
        return number + HOST_BASE
"""
HOT_SIZES, RANDOM_SIZES = (64, 4096), (8, 64, 509, 4096)
HOT, RANDOM = 1.4, 1.8
CALLS = 100_000

MANY = 32_764
RANDOM_TO_HOT = 1.6  # at MANY slots
WARM_UP = 10  # passes of CALLS lookups, in which the default policy may make an index

WORK_SIZES = (4096, MANY)
WORK_LOOKUPS, QUICK_LOOKUPS = 1_000_000, 2000
UNIT, QUICK_UNIT = 2048, 8  # slots
COUNTED = ("-fsanitize-coverage=trace-pc",)

SMALL = (1, 2, 4, 8, 16, 32, 64)
SMALL_SLOTS = 64
SMALL_QUERIES = 4096

One = Callable[[int], int]


def scalar(card: Scorecard, settings: Settings, folder: Path) -> None:
    floor = cython_module(folder, "floor_", FLOOR, *(QUICK if settings.quick else ())).Floor()
    for n in HOT_SIZES:
        if n in settings.sizes:
            on = stage(n, settings)
            gfns = layouts.hot(on.slots, min(CALLS, settings.queries))
            one_by_one(card, settings, floor, n, gfns, "hot", HOT)
    for n in RANDOM_SIZES:
        if n in settings.sizes:
            on = stage(n, settings)
            gfns = on.gfns[on.expected < HVA_ERR_MIN][:CALLS]  # a miss raises
            one_by_one(card, settings, floor, n, gfns, "random", RANDOM)
    small_batches(card, settings)


def one_by_one(
    card: Scorecard, settings: Settings, floor: Any, n: int, gfns: Numbers, stream: str, most: float
) -> None:
    on = stage(n, settings)
    vm = on.vm(AUTO)
    vm.gfn_to_hva_many(on.gfns)  # builds the index; the single lookups then use it
    right = layouts.expected_hvas(on.slots, gfns).tolist()
    numbers = gfns.tolist()
    calls = {
        "method": lambda: loop(floor.method, numbers),
        "unbound": lambda: loop(floor.unbound, numbers),
        "lookup": lambda: loop(vm.gfn_to_hva, numbers),
    }
    card.check(list(map(vm.gfn_to_hva, numbers)) == right, f"gfn_to_hva, {stream}, {n} slots")
    times = turns(calls, 3 * settings.rounds)
    what = "a lookup from Python / a Cython method that returns an int"
    at = f"{stream}, {slots_of(n)}"
    card.ratio("P4", what, at, times["lookup"], times["method"], "<=", most)
    card.ratio("P4", f"{what}, binding=False", at, times["lookup"], times["unbound"], "<=")


def without_batches(card: Scorecard, settings: Settings) -> None:
    """Compare random with hot lookups, in a VM that gets no batch: an index must come from the single lookups."""
    n = min(MANY, settings.sizes[-1])
    on = stage(n, settings)
    count = min(CALLS, settings.queries)
    streams = {
        "random": layouts.random(on.slots, count),
        "hot": layouts.hot(on.slots, count),
    }
    with on.new_vm(AUTO) as vm:
        for name, gfns in streams.items():
            right = layouts.expected_hvas(on.slots, gfns).tolist()
            card.check(list(map(vm.gfn_to_hva, gfns.tolist())) == right, f"{name}, {n} slots")
        numbers = {name: gfns.tolist() for name, gfns in streams.items()}
        for _ in range(1 if settings.quick else WARM_UP):
            loop(vm.gfn_to_hva, numbers["random"])
        calls = {name: partial(loop, vm.gfn_to_hva, some) for name, some in numbers.items()}
        times = turns(calls, 3 * settings.rounds)
    what = "random single lookups from Python / hot ones, no batch before them"
    bound = RANDOM_TO_HOT if n == MANY else None
    card.ratio("P4", what, slots_of(n), times["random"], times["hot"], "<=", bound)


def dearest(card: Scorecard, settings: Settings, folder: Path) -> None:
    """Count the basic blocks of single lookups: none may do more than the work of an index of UNIT slots."""
    what = f"blocks of code of the dearest single lookup / of an index of {UNIT:,} slots"
    if not accepts(folder, *COUNTED):
        card.skip("P4", what, f"the compiler does not know {' '.join(COUNTED)}")
        return
    quick = QUICK if settings.quick else ()
    program = with_core(folder / "lookup_work", "lookup_work.c", *quick, of_core=COUNTED)
    lookups = QUICK_LOOKUPS if settings.quick else WORK_LOOKUPS
    for n in WORK_SIZES if not settings.quick else settings.sizes[-1:]:
        if n in settings.sizes:
            command = [program, n, lookups, QUICK_UNIT if settings.quick else UNIT]
            done = subprocess.run(
                list(map(str, command)), capture_output=True, text=True, check=False
            )
            card.check(done.returncode == 0, f"bench/core/lookup_work.c: {done.stderr.strip()}")
            if done.returncode == 0:
                blocks = json.loads(done.stdout)
                report_work(card, blocks, what, n)


def report_work(card: Scorecard, blocks: dict[str, int], what: str, n: int) -> None:
    bound = 1 if n in WORK_SIZES else None
    at = slots_of(n)
    card.ratio("P4", what, at, [blocks["dearest"]], [blocks["unit"]], "<=", bound)
    card.ratio("P4", "... / of the median one", at, [blocks["dearest"]], [blocks["median"]])


def loop(call: One, numbers: list[int]) -> None:
    for number in numbers:
        call(number)


class Small:
    """The same gfns as batches of one size, and as lists of ints."""

    def __init__(self, vm: VM, gfns: Numbers, size: int) -> None:
        count = len(gfns) // size
        self.vm, self.pieces = vm, np.split(gfns[: count * size], count)
        self.ints = [piece.tolist() for piece in self.pieces]
        self.outs = [np.empty_like(piece) for piece in self.pieces]

    def loop(self) -> list[list[int]]:
        call = self.vm.gfn_to_hva
        return [[call(gfn) for gfn in some] for some in self.ints]

    def batch(self) -> list[Numbers]:
        return list(map(self.vm.gfn_to_hva_many, self.pieces))

    def into(self) -> list[Numbers]:
        return list(map(self.vm.gfn_to_hva_many, self.pieces, self.outs))


def small_batches(card: Scorecard, settings: Settings) -> None:
    """Find the size from which a batch is faster than a loop over the same gfns as ints."""
    on = stage(SMALL_SLOTS, settings)
    hits = on.gfns[on.expected < HVA_ERR_MIN][:SMALL_QUERIES]
    right = layouts.expected_hvas(on.slots, hits)
    slower = 0
    for size in SMALL:
        small = Small(on.vm(AUTO), hits, size)
        for name, answers in (
            ("batch", small.batch()),
            ("out=", small.into()),
            ("loop", small.loop()),
        ):
            flat = np.concatenate(answers)
            card.check((flat == right[: len(flat)]).all(), f"{name}, {size} elements")
        times = turns(
            {"loop": small.loop, "batch": small.batch, "into": small.into}, 2 * settings.rounds
        )
        report_small(card, size, times)
        if quartiles(ratios(times["loop"], times["batch"]))[1] <= 1:
            slower = size
    first = next((size for size in SMALL if size > slower), None)
    card.note(
        f"a batch is faster than a loop of lookups from {first} elements on"
        if first
        else f"a loop of lookups is faster than a batch of {slower} elements"
    )


def report_small(card: Scorecard, size: int, times: dict[str, list[float]]) -> None:
    at = f"{size} elements" if size > 1 else "1 element"
    what = f"a loop of lookups / a batch of as many, {slots_of(SMALL_SLOTS)}"
    card.ratio("P4", what, at, times["loop"], times["batch"])
    card.ratio("P4", f"{what}, with out=", at, times["loop"], times["into"])
