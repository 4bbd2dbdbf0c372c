# SPDX-License-Identifier: MIT
"""Approximate costs of operations; they limit the operations of a round to its time.

A slow design gets fewer operations than a fast one, spread evenly over the same stream.  A case that is too slow even
with few operations is skipped.  The costs are constants, so the same command makes the same choices on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._memslots import design_costs
from .subjects import design_of

RUN = 64  # consecutive operations that stay together when a part of a stream is chosen
FEWEST = 16

CACHED = 65_536  # slots; walks and copies of more slots miss the caches of most machines
UNCACHED = 8  # the factor by which such walks and copies are slower


class Cost(NamedTuple):
    """Nanoseconds of one operation: a fixed part, and a part for each slot."""

    fixed: float
    per_slot: float = 0.0

    def at(self, n_slots: int) -> float:
        slower = UNCACHED if n_slots > CACHED else 1
        return self.fixed + self.per_slot * n_slots * slower


WALK, SCAN, LOG = "walk", "scan", "log"  # enum design_cost of the core
KVM = "kvm"

#: The cost of each kind of operation, by the class that the design declares; "kvm" is the kernel.
COSTS: dict[str, dict[str, Cost]] = {
    "gfn": {LOG: Cost(60), SCAN: Cost(30, 0.6), WALK: Cost(30, 1.1)},
    "id": {LOG: Cost(10), SCAN: Cost(30, 0.6), WALK: Cost(30, 1.1)},
    "hva": {LOG: Cost(150), SCAN: Cost(20, 1.5), WALK: Cost(20, 3)},
    "change": {LOG: Cost(2000), SCAN: Cost(1000, 5), WALK: Cost(1000, 15), KVM: Cost(20_000, 1)},
    # The cost of one slot of n.  "setup" creates them one by one, "load" is load_memslots().
    "setup": {
        LOG: Cost(1500),
        SCAN: Cost(1000, 1.8),
        WALK: Cost(1000, 7.5),
        KVM: Cost(20_000, 0.6),
    },
    "load": {LOG: Cost(4000), SCAN: Cost(500, 0.9), WALK: Cost(500, 1.8), KVM: Cost(20_000)},
}

#: A load searches for the gfn and the id of each slot.  A setup consists of changes.
DECLARED = {"setup": ("change",), "load": ("gfn", "id")}
SLOWEST_FIRST = (WALK, SCAN, LOG)


def declared(kind: str, backend: str) -> str:
    """Return the cost class that the design declares; a backend that this build does not have counts as slow."""
    if backend == KVM and KVM in COSTS[kind]:
        return KVM
    costs = design_costs().get(design_of(backend), {})
    kinds = DECLARED.get(kind, (kind,))
    return min((costs.get(k, WALK) for k in kinds), key=SLOWEST_FIRST.index)


def nominal(kind: str, backend: str, n_slots: int) -> float:
    """Return the nanoseconds of one operation."""
    return COSTS[kind][declared(kind, backend)].at(n_slots)


def affordable(kind: str, backend: str, n_slots: int, wanted: int, seconds: float) -> int:
    """Return how many of the `wanted` operations fit into a round of `seconds`."""
    fitting = int(seconds * 1e9 / nominal(kind, backend, n_slots))
    return min(wanted, max(fitting, FEWEST))


def spread(total: int, count: int) -> NDArray[np.intp]:
    """Choose `count` of the numbers below `total`, in runs of consecutive numbers that are evenly spread."""
    if count >= total:
        return np.arange(total)
    return np.concatenate(list(_runs(total, count)))


def _runs(total: int, count: int) -> Iterator[NDArray[np.intp]]:
    number = -(-count // RUN)
    begins = np.linspace(0, total - min(RUN, count), number).astype(np.intp)
    for i, begin in enumerate(begins):
        yield begin + np.arange(min(RUN, count - i * RUN))
