# SPDX-License-Identifier: MIT
"""Slots, gfns to look up, right answers, and VMs with the slots.  All parts of a run share them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

import memslots
from memslots import PAGE_SIZE, VM
from memslots.lab import layouts
from memslots.lab.layouts import Layout, Numbers
from memslots.lab.subjects import ROOM

SIZES = (8, 64, 509, 4096, 32_764, 1_000_000)

#: Values of index_policy: the default; the plain walk, not interleaved and without an index.
Policy = Literal["auto", "walk"]
AUTO: Policy = "auto"
WALK: Policy = "walk"


@dataclass(frozen=True)
class Settings:
    """Rounds, queries and sizes of one run of the goals."""

    rounds: int = 5
    queries: int = 1_000_000
    sizes: tuple[int, ...] = SIZES
    quick: bool = False

    def up_to(self, most: int) -> tuple[int, ...]:
        return tuple(n for n in self.sizes if n <= most)


QUICK = Settings(rounds=2, queries=4000, sizes=(8, 64), quick=True)


def simd_level() -> str:
    """Return the vector instructions that batches use."""
    return memslots.build_info()["simd"]


def slots_of(n: int) -> str:
    return f"{n:,} slots"


def outside(gfns: Numbers, victim: np.void) -> Numbers:
    """Return the gfns without those of one slot, which the run deletes and creates."""
    inside = gfns - victim["base_gfn"] < victim["npages"]
    return np.ascontiguousarray(gfns[~inside])


def as_fields(slot: np.void) -> tuple[int, dict[str, int]]:
    """Return the id of a slot, and the other arguments of set_user_memory_region() that create it."""
    return int(slot["id"]), {
        "guest_phys_addr": int(slot["base_gfn"]) * PAGE_SIZE,
        "memory_size": int(slot["npages"]) * PAGE_SIZE,
        "userspace_addr": int(slot["userspace_addr"]),
    }


@dataclass
class Stage:
    """One layout, gfns to look up, and the right answers.  A fifth of the gfns miss."""

    slots: Layout
    gfns: Numbers
    _vms: dict[Policy, VM] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.expected: Numbers = layouts.expected_hvas(self.slots, self.gfns)

    def vm(self, policy: Policy = AUTO) -> VM:
        """Return the VM of this policy that holds the slots."""
        if policy not in self._vms:
            self._vms[policy] = self.new_vm(policy)
        return self._vms[policy]

    def new_vm(self, policy: Policy = AUTO) -> VM:
        vm = VM(user_mem_slots=max(ROOM, len(self.slots)))
        vm.index_policy = policy
        vm.load_memslots(self.slots)
        return vm


_stages: dict[tuple[str, int, int], Stage] = {}


def stage(n: int, settings: Settings, layout: str = "uniform") -> Stage:
    key = (layout, n, settings.queries)
    if key not in _stages:
        slots = with_holes(layouts.uniform(n)) if layout == "holes" else layouts.layout(layout, n)
        make = _misses_anywhere if layout == "adversarial" else layouts.misses
        _stages[key] = Stage(slots, make(slots, settings.queries))
    return _stages[key]


def with_holes(slots: Layout) -> Layout:
    """Return the slots with at least one page of a hole after each."""
    apart = slots.copy()
    order = np.argsort(slots["base_gfn"])
    apart["base_gfn"][order] += np.arange(len(slots), dtype=np.uint64)
    return apart


def _misses_anywhere(slots: Layout, count: int) -> Numbers:
    """Frames of random slots, and a fifth from the whole span, nearly all of them in holes between the clusters."""
    gfns = layouts.random(slots, count)
    gfns[::5] = layouts.misses(slots, count)[::5]
    return gfns
