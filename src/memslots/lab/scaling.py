# SPDX-License-Identifier: MIT
"""The cases of `memslots scale`: costs by number of slots, on the uniform layout, with as many ids as slots."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns
from typing import ClassVar

import numpy as np

from ..constants import PAGE_SIZE
from . import layouts
from .case import Case, Run
from .changes import all_changes, misplaced
from .filling import Filling, created
from .layouts import Numbers
from .lookups import GfnLookup, IdLookup, LookupCase, time_loop
from .sample import Sample, difference, digest
from .subjects import Answered, Engine


class HvaLookup(LookupCase):
    """Find the slots in random pages of host memory, as an MMU notifier does.  Each page is in exactly one slot."""

    kind = "hva"
    names = ("lookup/hva/vm",)

    def run(self, run: Run) -> Sequence[Sample]:
        wanted = run.budget.lookups
        gfns = layouts.random(self.slots, self.count(run, wanted), self.seed)
        starts = layouts.expected_hvas(self.slots, gfns)
        hvas = self.engine(run).hvas

        def loop(pages: Numbers, group: int) -> Answered:
            return hvas(pages, pages + np.uint64(PAGE_SIZE - 1), group)

        value, singles, answers = time_loop(loop, starts, run.budget.latencies)
        wrong = difference(answers, np.ones(len(answers), dtype=np.uint64), "ranges")
        made = digest(answers)
        return [Sample(self.names[0], value, singles, 1, len(answers), made, wrong)]


class Fill(Filling, LookupCase):
    """Fill a new VM with all slots.  One operation is one slot."""

    share = 0.5  # there are two such cases

    def sample(self, ns: int, wrong: str | None, made: str) -> Sample:
        n = len(self.slots)
        singles = np.array([ns / n])
        return Sample(self.names[0], ns / n, singles, n, n, made, wrong, iteration_ops=n)


class LoadSlots(Fill):
    """Fill by load_memslots(), in one change.  The other cases use the first VM."""

    names = ("setup/load",)
    cost = "load"

    def run(self, run: Run) -> Sequence[Sample]:
        engine = Engine(run.backend, room=len(self.slots))
        start = perf_counter_ns()
        engine.vm.load_memslots(self.slots)
        ns = perf_counter_ns() - start
        made = digest(engine.contents())
        wrong = misplaced(engine, layouts.sorted_by(self.slots, "base_gfn"))
        run.subjects.keep(run.backend, self.layout_name, engine)  # may close the engine
        return [self.sample(ns, wrong, made)]


class SetupSlots(Fill):
    """Create slots one by one, as a VMM and memslot_perf_test do."""

    names = ("setup/one by one",)
    with_kvm: ClassVar[bool] = True

    def run(self, run: Run) -> Sequence[Sample]:
        ns, results, wrong = created(run, self.slots, group=len(self.slots))
        return [self.sample(int(ns.sum()), wrong, digest(results))]


def all_cases(n_slots: int, seed: int) -> list[Case]:
    """Return the cases in the order of the tables.  The first one fills the VM that the others use."""
    return [
        LoadSlots(n_slots, seed),
        SetupSlots(n_slots, seed),
        GfnLookup("random", "vm", n_slots, seed),
        GfnLookup("hot", "vm", n_slots, seed),
        IdLookup(n_slots, seed),
        HvaLookup(n_slots, seed),
        *all_changes(n_slots, seed),
    ]
