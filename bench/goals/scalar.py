# SPDX-License-Identifier: MIT
"""P4: one lookup from Python against a method that takes and returns an int; small batches against loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from memslots import HVA_ERR_MIN, layouts
from memslots.layouts import Numbers

from .book import Book
from .build import QUICK, cython_module
from .timing import quartiles, ratios, turns
from .work import AUTO, Effort, slots_of, stage

#: As Cython makes methods by default, and as it makes them with the directive that memslots is compiled with.  They take
#: ints as small as gfns and return ints as large as host addresses: an int of another size costs something else.
FLOOR = """
cimport cython

cdef class Floor:
    def method(self, unsigned long long number):
        return number + 0x1000_0000_0000

    @cython.binding(False)
    def unbound(self, unsigned long long number):
        return number + 0x1000_0000_0000
"""
HOT_SIZES, RANDOM_SIZES = (64, 4096), (8, 64, 509, 4096)
HOT, RANDOM = 1.4, 1.8
CALLS = 100_000

SMALL = (1, 2, 4, 8, 16, 32, 64)
SMALL_SLOTS = 64
SMALL_QUERIES = 4096

One = Callable[[int], int]


def scalar(book: Book, effort: Effort, folder: Path) -> None:
    floor = cython_module(folder, "floor_", FLOOR, *(QUICK if effort.quick else ())).Floor()
    for n in HOT_SIZES:
        if n in effort.sizes:
            on = stage(n, effort)
            gfns = layouts.hot(on.slots, min(CALLS, effort.queries))
            one_by_one(book, effort, floor, n, gfns, "hot", HOT)
    for n in RANDOM_SIZES:
        if n in effort.sizes:
            on = stage(n, effort)
            gfns = on.gfns[on.expected < HVA_ERR_MIN][:CALLS]  # a miss raises
            one_by_one(book, effort, floor, n, gfns, "random", RANDOM)
    small_batches(book, effort)


def one_by_one(
    book: Book, effort: Effort, floor: Any, n: int, gfns: Numbers, stream: str, most: float
) -> None:
    on = stage(n, effort)
    vm = on.vm(AUTO)
    vm.gfn_to_hva_many(on.gfns)  # where there is an index, single lookups use it
    right = layouts.expected_hvas(on.slots, gfns).tolist()
    numbers = gfns.tolist()
    calls = {
        "method": lambda: loop(floor.method, numbers),
        "unbound": lambda: loop(floor.unbound, numbers),
        "lookup": lambda: loop(vm.gfn_to_hva, numbers),
    }
    book.check(list(map(vm.gfn_to_hva, numbers)) == right, f"gfn_to_hva, {stream}, {n} slots")
    times = turns(calls, 3 * effort.rounds)
    what = "a lookup from Python / a Cython method that returns an int"
    at = f"{stream}, {slots_of(n)}"
    book.ratio("P4", what, at, times["lookup"], times["method"], "<=", most)
    book.ratio("P4", f"{what}, binding=False", at, times["lookup"], times["unbound"], "<=")


def loop(call: One, numbers: list[int]) -> None:
    for number in numbers:
        call(number)


def small_batches(book: Book, effort: Effort) -> None:
    """From how many elements on a batch beats a loop over the same numbers as ints."""
    on = stage(SMALL_SLOTS, effort)
    vm = on.vm(AUTO)
    hits = on.gfns[on.expected < HVA_ERR_MIN][:SMALL_QUERIES]
    right = layouts.expected_hvas(on.slots, hits)
    faster = {}
    for size in SMALL:
        pieces = np.split(hits[: len(hits) // size * size], len(hits) // size)
        ints = [piece.tolist() for piece in pieces]
        calls = {
            "loop": lambda ints=ints: [[vm.gfn_to_hva(gfn) for gfn in some] for some in ints],
            "batch": lambda pieces=pieces: list(map(vm.gfn_to_hva_many, pieces)),
        }
        answers = np.concatenate([vm.gfn_to_hva_many(piece) for piece in pieces])
        book.check((answers == right[: len(answers)]).all(), f"batches of {size}")
        times = turns(calls, 2 * effort.rounds)
        at = f"{size} elements" if size > 1 else "1 element"
        what = f"a loop of lookups / a batch of as many, {slots_of(SMALL_SLOTS)}"
        book.ratio("P4", what, at, times["loop"], times["batch"])
        faster[size] = quartiles(ratios(times["loop"], times["batch"]))[1] > 1
    slower = [size for size in SMALL if not faster[size]]
    first = next((size for size in SMALL if size > max(slower, default=0)), None)
    book.note(
        f"a batch is faster than a loop of lookups from {first} elements on"
        if first
        else f"a loop of lookups is faster than a batch of {SMALL[-1]} elements"
    )
