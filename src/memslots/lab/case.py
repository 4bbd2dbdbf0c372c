# SPDX-License-Identifier: MIT
"""One thing to measure at one number of slots, and how much work to do for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import ClassVar, NamedTuple

from .costs import nominal
from .sample import Sample
from .subjects import INDEXED, ROOM, Subjects


class Budget(NamedTuple):
    """Limits of time and of operations for each case."""

    seconds: float  # for a round of one case on one backend
    filling: float  # seconds; a VM that needs more to fill is skipped
    at_most: float  # seconds; a case with a longer run is skipped
    lookups: int
    changes: int
    latencies: int  # operations timed one by one in a round


class Run(NamedTuple):
    """The arguments of one run of a case."""

    backend: str
    subjects: Subjects
    budget: Budget


class Case(ABC):
    """One case; `names` are the names of its rows.  It runs on every design.

    `with_kvm` and `with_index` add the kernel and the tree with an index.
    """

    names: tuple[str, ...]
    with_kvm: ClassVar[bool] = False
    with_index: ClassVar[bool] = False
    #: Whether it places slots elsewhere in memory, in a VM that other cases share.
    moves_slots: ClassVar[bool] = False

    def __init__(self, n_slots: int | None, seed: int) -> None:
        self.n_slots = n_slots
        self.seed = seed

    @abstractmethod
    def run(self, run: Run) -> Sequence[Sample]:
        """Measure once.  The samples record whether the answers were right."""

    def setup(self, run: Run) -> None:  # noqa: B027 - most cases need none
        """Prepare the case, once for each backend.  This is not timed."""

    def backends(self, available: Iterable[str]) -> list[str]:
        special = {"kvm": self.with_kvm, INDEXED: self.with_index}
        return [name for name in available if special.get(name, True)]

    def refusal(self, backend: str, budget: Budget) -> str | None:
        """Return the reason to skip this backend, or None.  Reasons: it takes too long, or has too few ids."""
        if backend == "kvm" and (self.n_slots or 0) > ROOM:
            return f"it has room for {ROOM:,}"
        return self.too_slow(backend, budget)

    def too_slow(self, backend: str, budget: Budget) -> str | None:
        """Return the reason to skip a backend that takes too long, or None."""
        n = self.n_slots or 0
        seconds = nominal("load", backend, n) * n / 1e9
        return f"filling a VM takes {duration(seconds)}" if seconds > budget.filling else None

    def rounds(self, backend: str, wanted: int, budget: Budget) -> int:
        """Return the number of runs: fewer than `wanted` if one run takes long."""
        return wanted

    def is_wanted(self, pattern: str | None) -> bool:
        return any(matches(name, pattern) for name in self.names)


def duration(seconds: float) -> str:
    """Return an approximate duration in words."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {max(seconds, 1):.0f} s"


def matches(name: str, pattern: str | None) -> bool:
    """Whether the name contains the pattern, which may use shell wildcards."""
    return pattern is None or fnmatch(name, f"*{pattern}*")
