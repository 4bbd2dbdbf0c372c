# SPDX-License-Identifier: MIT
"""Cases that fill a new VM in each run, so that the time of one run limits the number of runs."""

from __future__ import annotations

from contextlib import closing
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import layouts
from .case import Budget, Case, Run, duration
from .changes import misplaced, refused
from .costs import nominal
from .layouts import Layout
from .subjects import regions


class Filling(Case):
    """The limits of such a case."""

    cost: ClassVar[str] = "setup"  # one of costs.COSTS
    share: ClassVar[float] = 1.0  # of `at_most`, for all runs together

    def seconds(self, backend: str) -> float:
        n = self.n_slots or 1
        return nominal(self.cost, backend, n) * n / 1e9

    def too_slow(self, backend: str, budget: Budget) -> str | None:
        seconds = self.seconds(backend)
        return f"one run takes {duration(seconds)}" if seconds > budget.at_most else None

    def rounds(self, backend: str, wanted: int, budget: Budget) -> int:
        fitting = int(budget.at_most * self.share / self.seconds(backend))
        return max(1, min(wanted, fitting))


def created(
    run: Run, slots: Layout, group: int = 1
) -> tuple[NDArray[Any], NDArray[np.int32], str | None]:
    """Create the slots one by one in a new VM.  Return the times of groups, the results, and the first error."""
    with closing(run.subjects.new(run.backend, len(slots))) as subject:
        ns, results = subject.changes(regions(slots), group)
        wrong = refused(results) or misplaced(subject, layouts.sorted_by(slots, "base_gfn"))
    return ns, results, wrong
