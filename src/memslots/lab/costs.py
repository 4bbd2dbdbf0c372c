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


#: A design of your own: one line in each, or it is taken for UNKNOWN.
COSTS: dict[str, dict[str, Cost]] = {
    "gfn": {"tree": Cost(60), "array": Cost(60), "list": Cost(30, 1.1)},
    "id": {"tree": Cost(10), "array": Cost(10), "list": Cost(30, 1.1)},
    "hva": {"tree": Cost(150), "array": Cost(20, 1.5), "list": Cost(20, 3)},
    "change": {
        "tree": Cost(2000),
        "array": Cost(1000, 5),
        "list": Cost(1000, 15),
        "kvm": Cost(20_000, 1),
    },
    # Of one slot of n that are made one by one, or by load_memslots().
    "setup": {
        "tree": Cost(1500),
        "array": Cost(1000, 1.8),
        "list": Cost(1000, 7.5),
        "kvm": Cost(20_000, 0.6),
    },
    "load": {"tree": Cost(4000), "array": Cost(500), "list": Cost(500, 1.8), "kvm": Cost(20_000)},
}
UNKNOWN = "list"  # a design that has no line here may be as slow as this one


def nominal(kind: str, backend: str, n_slots: int) -> float:
    """Nanoseconds of one operation."""
    by_design = COSTS[kind]
    return by_design.get(design_of(backend), by_design[UNKNOWN]).at(n_slots)


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
