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
    """The time and the operations that a command may spend on each case."""

    seconds: float  # a round of one case on one backend
    filling: float  # seconds, beyond which a VM is not filled
    at_most: float  # seconds, beyond which one run of a case is not begun
    lookups: int
    changes: int
    latencies: int  # operations timed one by one in a round


class Run(NamedTuple):
    """What a case is given to run."""

    backend: str
    subjects: Subjects
    budget: Budget


class Case(ABC):
    """Its `names` are those of the rows that it makes.  Every design takes part, the others where it says so."""

    names: tuple[str, ...]
    with_kvm: ClassVar[bool] = False
    with_index: ClassVar[bool] = False
    moves_slots: ClassVar[bool] = False  # in memory, in a VM that others use too

    def __init__(self, n_slots: int | None, seed: int) -> None:
        self.n_slots = n_slots
        self.seed = seed

    @abstractmethod
    def run(self, run: Run) -> Sequence[Sample]:
        """Measures once; the samples say whether the answers were right."""

    def setup(self, run: Run) -> None:  # noqa: B027 - most cases need none
        """What is not timed and done once for each backend."""

    def backends(self, available: Iterable[str]) -> list[str]:
        special = {"kvm": self.with_kvm, INDEXED: self.with_index}
        return [name for name in available if special.get(name, True)]

    def refusal(self, backend: str, budget: Budget) -> str | None:
        """Why this backend would take too long here, or None."""
        n = self.n_slots or 0
        if backend == "kvm" and n > ROOM:
            return f"it has room for {ROOM:,}"
        seconds = nominal("load", backend, n) * n / 1e9
        return f"filling a VM takes {duration(seconds)}" if seconds > budget.filling else None

    def rounds(self, backend: str, wanted: int, budget: Budget) -> int:
        """How often to run: fewer times where one takes long."""
        return wanted

    def is_wanted(self, pattern: str | None) -> bool:
        return any(matches(name, pattern) for name in self.names)


def duration(seconds: float) -> str:
    """Roughly, in words."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {max(seconds, 1):.0f} s"


def matches(name: str, pattern: str | None) -> bool:
    """A part of the name, or a shell pattern."""
    return pattern is None or fnmatch(name, f"*{pattern}*")
