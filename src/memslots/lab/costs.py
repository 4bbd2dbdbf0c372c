# SPDX-License-Identifier: MIT
"""Roughly what an operation costs, so that a round takes as long as it may.

A slow design gets fewer operations, evenly spread over those that a fast one gets, and none where even one is too
many.  The figures are constants and not measured here: the same command makes the same choices on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._memslots import design_costs
from .subjects import design_of

RUN = 64  # operations that stay neighbours when some of a stream are chosen
FEWEST = 16


CACHED = 65_536  # slots; walks and copies of more leave the caches of most machines
UNCACHED = 8  # times as slow, then


class Cost(NamedTuple):
    """Nanoseconds of one operation: some anyway, some for each slot there is."""

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
    # One slot of n that are made one by one, or by load_memslots().
    "setup": {
        LOG: Cost(1500),
        SCAN: Cost(1000, 1.8),
        WALK: Cost(1000, 7.5),
        KVM: Cost(20_000, 0.6),
    },
    "load": {LOG: Cost(4000), SCAN: Cost(500, 0.9), WALK: Cost(500, 1.8), KVM: Cost(20_000)},
}

#: A load looks for each slot's gfn and id.  A setup is made of changes.
DECLARED = {"setup": ("change",), "load": ("gfn", "id")}
SLOWEST_FIRST = (WALK, SCAN, LOG)


def declared(kind: str, backend: str) -> str:
    """The cost that the design declares; a backend that is no design of this build counts as slow."""
    if backend == KVM and KVM in COSTS[kind]:
        return KVM
    costs = design_costs().get(design_of(backend), {})
    kinds = DECLARED.get(kind, (kind,))
    return min((costs.get(k, WALK) for k in kinds), key=SLOWEST_FIRST.index)


def nominal(kind: str, backend: str, n_slots: int) -> float:
    """Nanoseconds of one operation."""
    return COSTS[kind][declared(kind, backend)].at(n_slots)


def affordable(kind: str, backend: str, n_slots: int, wanted: int, seconds: float) -> int:
    """How many of `wanted` operations a round has time for."""
    fitting = int(seconds * 1e9 / nominal(kind, backend, n_slots))
    return min(wanted, max(fitting, FEWEST))


def spread(total: int, count: int) -> NDArray[np.intp]:
    """`count` places below `total`, in runs of neighbours that are evenly spread."""
    if count >= total:
        return np.arange(total)
    return np.concatenate(list(_runs(total, count)))


def _runs(total: int, count: int) -> Iterator[NDArray[np.intp]]:
    number = -(-count // RUN)
    begins = np.linspace(0, total - min(RUN, count), number).astype(np.intp)
    for i, begin in enumerate(begins):
        yield begin + np.arange(min(RUN, count - i * RUN))
