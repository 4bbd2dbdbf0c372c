# SPDX-License-Identifier: MIT
"""P13: whole layouts: loading compared with the array, lookups of a Snapshot compared with those of its VM."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from memslots import VM
from memslots.lab.layouts import Layout, sorted_by

from .scorecard import Scorecard
from .timing import turns
from .work import AUTO, ROOM, Settings, Stage, slots_of, stage

LOAD_AGAINST_ARRAY = 1.2
LARGE = 1_000_000  # the size of the goal of loading
SNAPSHOT_AGAINST_VM = 1.1


def whole_layouts(card: Scorecard, settings: Settings) -> None:
    for n in settings.sizes:
        on = stage(n, settings)
        bound = LOAD_AGAINST_ARRAY if n == LARGE else None
        loading(card, settings, slots_of(n), on.slots, bound)
        in_order = sorted_by(on.slots, "base_gfn")
        loading(card, settings, f"{slots_of(n)}, sorted by gfn", in_order, bound)
        snapshots(card, settings, slots_of(n), on)


def loading(
    card: Scorecard, settings: Settings, at: str, slots: Layout, bound: float | None
) -> None:
    """The creation and the end of a VM are not timed."""
    vms: dict[str, VM] = {}

    def new_vm(backend: str) -> Callable[[], None]:
        def make() -> None:
            vms.pop(backend, None)
            vms[backend] = VM(backend=backend, user_mem_slots=max(ROOM, len(slots)))

        return make

    backends = ("tree", "array")
    calls = {name: lambda name=name: vms[name].load_memslots(slots) for name in backends}
    times = turns(calls, settings.rounds, before={name: new_vm(name) for name in backends})
    wanted = sorted_by(slots, "base_gfn")
    for name in backends:
        card.check(
            bool((vms[name].memslots_array() == wanted).all()), f"a load into {name} at {at}"
        )
    what = "load_memslots into an empty tree / into an empty array"
    card.ratio("P13", what, at, times["tree"], times["array"], "<=", bound)


def snapshots(card: Scorecard, settings: Settings, at: str, on: Stage) -> None:
    vm = on.vm(AUTO)
    snapshot = vm.snapshot()
    outs = {name: np.zeros_like(on.gfns) for name in ("snapshot", "vm")}
    calls: dict[str, Callable[[], object]] = {
        "snapshot": lambda: snapshot.gfn_to_hva_many(on.gfns, out=outs["snapshot"]),
        "vm": lambda: vm.gfn_to_hva_many(on.gfns, out=outs["vm"]),
    }
    while not vm.stats()["index_builds"]:  # until the index is built
        calls["vm"]()
    calls["snapshot"]()
    times = turns(calls, settings.rounds)
    for name, out in outs.items():
        card.check(bool((out == on.expected).all()), f"a batch of the {name} at {at}")
    what = "a batch of a Snapshot / the same batch of its VM"
    card.ratio("P13", what, at, times["snapshot"], times["vm"], "<=", SNAPSHOT_AGAINST_VM)
