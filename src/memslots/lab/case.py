# SPDX-License-Identifier: MIT
"""One thing to measure at one number of slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import ClassVar, NamedTuple

from .costs import nominal
from .sample import Sample
from .subjects import Subjects


class Effort(NamedTuple):
    """How much work a command may do."""

    seconds: float  # a round of one case on one backend
    at_most: float  # seconds, beyond which one run of a case is not begun
    lookups: int  # C-level and batch
    calls: int  # from Python
    changes: int
    latencies: int  # operations timed one by one in a round


class Run(NamedTuple):
    """What a case is given to run."""

    backend: str
    subjects: Subjects
    effort: Effort


class Case(ABC):
    """Its `names` are those of the rows that it makes; `without` are backends that it means nothing to."""

    names: tuple[str, ...]
    without: ClassVar[frozenset[str]] = frozenset({"kvm"})

    def __init__(self, n_slots: int | None, seed: int) -> None:
        self.n_slots = n_slots
        self.seed = seed

    @abstractmethod
    def run(self, run: Run) -> Sequence[Sample]:
        """Measures once; the samples say whether the answers were right."""

    def setup(self, run: Run) -> None:
        """What is not timed and done once for each backend."""

    def backends(self, available: Iterable[str]) -> list[str]:
        return [name for name in available if name not in self.without]

    def seconds(self, backend: str) -> float:
        """Roughly, of the smallest run that makes sense, setup included."""
        n = self.n_slots or 0
        return nominal("load", backend, n) * n / 1e9

    def rounds(self, backend: str, wanted: int, effort: Effort) -> int:
        """How often to run: fewer times where one takes long."""
        return wanted

    def is_wanted(self, pattern: str | None) -> bool:
        return any(matches(name, pattern) for name in self.names)


def matches(name: str, pattern: str | None) -> bool:
    """A part of the name, or a shell pattern."""
    return pattern is None or fnmatch(name, f"*{pattern}*")
