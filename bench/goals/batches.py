# SPDX-License-Identifier: MIT
"""P1 to P3: batches compared with numpy, with a copy, and with the plain walk of the tree."""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time_ns
from typing import Any

import numpy as np

from memslots import VM
from memslots._memslots import time_lookups
from memslots.lab import layouts, peers
from memslots.lab.layouts import Numbers

from .scorecard import Scorecard
from .timing import turns
from .work import AUTO, WALK, Settings, Stage, as_fields, outside, slots_of, stage

#: The least factor by which a batch must be faster than numpy searchsorted + where, by number of slots.
AGAINST_NUMPY = {8: 32, 64: 24, 509: 32, 4096: 28, 32_764: 32, 1_000_000: 20}
AGAINST_NUMPY_ADVERSARIAL = {32_764: 12}
AGAINST_ARGSORT, AGAINST_WALK, AGAINST_COPY = 7, 25, 10
MOST = 32_764  # for more slots there is no bound against argsort and against a copy
AFTER_CHANGES = 0.9
#: By number of slots and size of the batch, with the change.
AFTER_CHANGES_WHOLE = {
    (4096, 100): 2, (4096, 1000): 5, (4096, 10_000): 9,
    (32_764, 100): 2.5, (32_764, 1000): 8, (32_764, 10_000): 15,
}  # fmt: skip
SINGLES_AFTER_CHANGES = {(32_764, 1000): 2}

BATCHES = (100, 1000, 10_000)
SINGLES = (300, 1000)  # a few more lookups than the policy needs to build an index, and many more
Pair = tuple[list[float], list[float]]

BUCKETS, DELTAS = 1.6, 1.5  # of a slot, in the index of a million slots

LARGE_ROUNDS = 3  # for more than MOST slots, because the plain walk then takes a second or more
#: The number of lookups in a round with a change before each batch, so that a round takes milliseconds.
ROUND_QUERIES = 20_000


def steady(card: Scorecard, settings: Settings) -> None:
    """P1, P2: batches on slots that do not change."""
    for n in settings.sizes:
        at = slots_of(n)
        times = measure(card, at, stage(n, settings), settings)
        report(card, at, times, AGAINST_NUMPY.get(n), n)
        card.ratio(
            "P2", "batch / np.copyto of the gfns", at, times["batch"], times["copyto"],
            "<=", AGAINST_COPY if n <= MOST else None,
        )  # fmt: skip
    for n in settings.up_to(MOST)[-1:]:
        at = f"{slots_of(n)}, adversarial"
        times = measure(card, at, stage(n, settings, "adversarial"), settings)
        report(card, at, times, AGAINST_NUMPY_ADVERSARIAL.get(n), None)


def measure(card: Scorecard, at: str, on: Stage, settings: Settings) -> dict[str, list[float]]:
    numpy, argsort = peers.numpy_searchsorted(on.slots), peers.numpy_argsort(on.slots)
    outs = {
        name: np.zeros_like(on.gfns) for name in ("numpy", "argsort", "batch", "walk", "copyto")
    }
    calls: dict[str, Callable[[], object]] = {
        "numpy": lambda: numpy(on.gfns, outs["numpy"]),
        "argsort": lambda: argsort(on.gfns, outs["argsort"]),
        "batch": lambda: on.vm(AUTO).gfn_to_hva_many(on.gfns, out=outs["batch"]),
        "walk": lambda: on.vm(WALK).gfn_to_hva_many(on.gfns, out=outs["walk"]),
        "copyto": lambda: np.copyto(outs["copyto"], on.gfns),
    }
    for name in ("batch", "walk"):  # creates the VMs
        calls[name]()
    while not on.vm(AUTO).stats()["index_builds"]:  # until the index is built
        calls["batch"]()
    for out in outs.values():
        out[:] = 0
    large = len(on.slots) > MOST
    if large:
        calls["gathers"] = gathers(on)
    times = turns(calls, min(settings.rounds, LARGE_ROUNDS) if large else settings.rounds)
    for name, out in outs.items():
        right = on.gfns if name == "copyto" else on.expected
        card.check((out == right).all(), f"{name} at {at}")
    return times


def gathers(on: Stage) -> Callable[[], object]:
    """Return the memory accesses of an index: eight bytes of a bucket, then eight bytes of a delta.

    An index has about BUCKETS buckets and DELTAS deltas for each slot.
    """
    n = len(on.slots)
    buckets, deltas = np.zeros(int(BUCKETS * n), np.uint64), np.zeros(int(DELTAS * n), np.uint64)
    share = on.gfns / on.gfns.max()
    places = [(share * (len(table) - 1)).astype(np.intp) for table in (buckets, deltas)]
    outs = [np.zeros(len(on.gfns), np.uint64) for _ in places]

    def gather() -> None:
        for table, some, out in zip((buckets, deltas), places, outs, strict=True):
            np.take(table, some, out=out, mode="clip")

    return gather


def report(
    card: Scorecard, at: str, times: dict[str, list[float]], least: float | None, n: int | None
) -> None:
    batch = times["batch"]
    what = "numpy searchsorted + where / a batch of random gfns"
    card.ratio("P1", what, at, times["numpy"], batch, bound=least)
    best = AGAINST_ARGSORT if n is not None and n <= MOST else None
    card.ratio(
        "P1", "numpy argsort + searchsorted / the same", at, times["argsort"], batch, bound=best
    )
    if "gathers" in times:
        what = "np.take of a bucket and of a delta / the same"
        card.ratio("P1", what, at, times["gathers"], batch)
    walk = AGAINST_WALK if n == MOST else None
    card.ratio("P1", "the plain walk of the tree / the same", at, times["walk"], batch, bound=walk)


# ---- P3 -----------------------------------------------------------------------------------------


def changing(card: Scorecard, settings: Settings) -> None:
    """P3: a change before each batch.

    Measure the batch alone and together with its change, so that the cost of an index shows in one of the two.
    """
    for size in BATCHES:
        for n in settings.sizes:
            what = f"walk / a batch of {size:,} after a change"
            alone, whole = after_changes(card, settings, n, size, Changing)
            card.ratio("P3", f"{what}, batch alone", slots_of(n), *alone, bound=AFTER_CHANGES)
            bound = AFTER_CHANGES_WHOLE.get((n, size), AFTER_CHANGES)
            card.ratio("P3", f"{what}, with its change", slots_of(n), *whole, bound=bound)
    for size in SINGLES:
        for n in settings.sizes:
            what = f"walk / {size:,} single lookups after a change, with its change"
            _, whole = after_changes(card, settings, n, size, ChangingOneByOne)
            bound = SINGLES_AFTER_CHANGES.get((n, size))
            card.ratio("P3", what, slots_of(n), *whole, bound=bound)


def after_changes(
    card: Scorecard, settings: Settings, n: int, size: int, kind: type[Changing]
) -> tuple[Pair, Pair]:
    """Return times of the walk and of the default policy: of the lookups alone, and together with their changes."""
    on = stage(n, settings)
    victim = on.slots[n // 2]
    gfns = outside(on.gfns, victim)[: max(size, ROUND_QUERIES)]
    runs = {policy: kind(on.vm(policy), victim, gfns, size) for policy in (AUTO, WALK)}
    for run in runs.values():
        run.round()
        run.alone.clear()
    whole = turns({name: run.round for name, run in runs.items()}, 2 * settings.rounds - 1)
    for name, run in runs.items():
        right = layouts.expected_hvas(on.slots, run.gfns)
        card.check((run.out == right).all(), f"{name}, {kind.lookups} of {size} at {n} slots")
    return (runs[WALK].alone, runs[AUTO].alone), (whole[WALK], whole[AUTO])


class Changing:
    """Rounds of: delete a slot, look up, create it, look up, ...  A round has as many deletes as creates."""

    lookups = "batches"

    def __init__(self, vm: VM, victim: np.void, gfns: np.ndarray[Any, Any], size: int) -> None:
        pieces = max(2, len(gfns) // size // 2 * 2)
        self.vm = vm
        self.id, self.create = as_fields(victim)
        self.gfns = np.resize(gfns, pieces * size)
        self.out = np.zeros_like(self.gfns)
        self.pieces = list(
            zip(np.split(self.gfns, pieces), np.split(self.out, pieces), strict=True)
        )
        self.alone: list[float] = []

    def round(self) -> None:
        spent = 0
        for i, (gfns, out) in enumerate(self.pieces):
            self.change(i % 2 == 1)
            start = thread_time_ns()
            self.look_up(gfns, out)
            spent += thread_time_ns() - start
        self.alone.append(float(spent))

    def look_up(self, gfns: Numbers, out: Numbers) -> None:
        self.vm.gfn_to_hva_many(gfns, out=out)

    def change(self, create: bool) -> None:
        fields = self.create if create else {"guest_phys_addr": 0, "memory_size": 0}
        self.vm.set_user_memory_region(self.id, **fields)


class ChangingOneByOne(Changing):
    """The same rounds, with single lookups in C instead of batches."""

    lookups = "single lookups"

    def look_up(self, gfns: Numbers, out: Numbers) -> None:
        out[:] = time_lookups(self.vm, "gfn_to_hva", gfns, group=len(gfns))[1]
