# SPDX-License-Identifier: MIT
"""Changes of single slots among n: create, delete, move, logging on and off; on the engine and by ioctl.

Each run ends with the same slots as it began with.  Three things are checked: the slots at the end, every result, and
the number of changes of each kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..constants import PAGE_SHIFT, MemFlag
from . import layouts
from .case import Case, Run
from .costs import affordable
from .layouts import Layout
from .sample import Sample, difference, digest, first, typical
from .subjects import CHANGES, Changeable, Changed, alternating, regions

FIELDS = ("base_gfn", "npages", "userspace_addr", "id", "flags")


class PairCase(Case):
    """Two changes for each of some random slots; the second change undoes the first."""

    with_kvm: ClassVar[bool] = True
    moves_slots: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, str]]  # the kinds in CHANGES of the first and the second change

    @cached_property
    def slots(self) -> Layout:
        return layouts.uniform(self.n_slots or 1, self.seed)

    @cached_property
    def by_gfn(self) -> Layout:
        return layouts.sorted_by(self.slots, "base_gfn")

    def chosen(self, run: Run) -> Layout:
        n = len(self.slots)
        count = affordable("change", run.backend, n, run.budget.changes, run.budget.seconds) // 2
        return self.slots[np.random.default_rng((self.seed, 2)).integers(0, n, max(count, 1))]

    def pairs(self, chosen: Layout) -> tuple[NDArray[Any], NDArray[Any]]:
        raise NotImplementedError

    def run(self, run: Run) -> Sequence[Sample]:
        subject: Changeable = run.subjects.get(run.backend, "uniform", lambda: self.slots)
        rows = alternating(*self.pairs(self.chosen(run)))
        before = subject.made()
        ns, results = subject.changes(rows)
        wrong = first(
            [
                refused(results),
                self.miscounted(before, subject.made(), len(rows) // 2),
                misplaced(subject, self.by_gfn),
            ]
        )
        return self.samples((ns, results), wrong)

    def miscounted(
        self, before: dict[str, int] | None, after: dict[str, int] | None, pairs: int
    ) -> str | None:
        """Compare the counts of changes with the requested ones; return the first difference in words."""
        if before is None or after is None:
            return None
        for kind in CHANGES:
            made, requested = after[kind] - before[kind], pairs * self.kinds.count(kind)
            if made != requested:
                return f"{made} {kind} were made, not {requested}"
        return None

    def samples(self, changed: Changed, wrong: str | None) -> list[Sample]:
        """Return one sample for each name.  With two names, each gets every other change."""
        ns, results = changed
        step = len(self.names)
        made = []
        for i, name in enumerate(self.names):
            times = ns[i::step].astype(np.float64)
            answers = results[i::step]
            made.append(Sample(name, typical(times), times, 1, len(times), digest(answers), wrong))
        return made


def refused(results: NDArray[np.int32]) -> str | None:
    """Return the first refused change in words, or None."""
    return difference(results, np.zeros_like(results), "results")


def misplaced(subject: Changeable, expected: Layout) -> str | None:
    """Compare the slots with `expected`, sorted by gfn; return the first difference in words.

    None: no difference, or the subject cannot list its slots (the kernel).
    """
    got = subject.contents()
    if got is None:
        return None
    return first(difference(got[name], expected[name], f"slots' {name}") for name in FIELDS)


class DeleteCreate(PairCase):
    names = ("change/delete", "change/create")
    kinds = ("deletes", "creates")

    def pairs(self, chosen: Layout) -> tuple[NDArray[Any], NDArray[Any]]:
        return regions(chosen, memory_size=0), regions(chosen)


class Move(PairCase):
    """Move a slot beyond all other slots, and back."""

    names = ("change/move",)
    kinds = ("moves", "moves")

    def pairs(self, chosen: Layout) -> tuple[NDArray[Any], NDArray[Any]]:
        last = self.by_gfn[-1]
        beyond = int(last["base_gfn"] + last["npages"]) << PAGE_SHIFT
        return regions(chosen, guest_phys_addr=beyond), regions(chosen)


class Flags(PairCase):
    """Turn dirty logging on and off, as a migration does for every slot."""

    names = ("change/log on", "change/log off")
    kinds = ("flag_changes", "flag_changes")

    def pairs(self, chosen: Layout) -> tuple[NDArray[Any], NDArray[Any]]:
        return regions(chosen, flags=int(MemFlag.LOG_DIRTY_PAGES)), regions(chosen)


def all_changes(n_slots: int, seed: int) -> list[Case]:
    return [kind(n_slots, seed) for kind in (DeleteCreate, Move, Flags)]
