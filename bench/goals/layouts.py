# SPDX-License-Identifier: MIT
"""P13: whole layouts: loads, lookups of a Snapshot, transactions, apply() and restore(), each next to the other way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from memslots import MEMSLOT_DTYPE, PAGE_SIZE, VM, Snapshot
from memslots.lab.layouts import Layout, sorted_by

from .scattered import DIFFERENCES, GAP, changed, spread
from .scorecard import Scorecard
from .timing import turns
from .work import AUTO, ROOM, Settings, Stage, slots_of, stage

LOAD_AGAINST_ARRAY = 1.2
LARGE = 1_000_000  # the size of the goal of loading
SNAPSHOT_AGAINST_VM = 1.1
TRADE_AGAINST_MOVE = 2.5
APPLY_AGAINST_RELOAD = 1 / 40
APPLY_AGAINST_READ = 3
RESTORE_AGAINST_RELOAD = 1 / 30
RUNS = 100_000  # of the goal of apply()
LIMIT = 32_764  # slots of a VM of KVM
CALLS = 20  # of one sample


def whole_layouts(card: Scorecard, settings: Settings) -> None:
    for n in settings.sizes:
        on = stage(n, settings)
        bound = LOAD_AGAINST_ARRAY if n == LARGE else None
        loading(card, settings, slots_of(n), on.slots, bound)
        in_order = sorted_by(on.slots, "base_gfn")
        loading(card, settings, f"{slots_of(n)}, sorted by gfn", in_order, bound)
        snapshots(card, settings, slots_of(n), on)
        trades(card, settings, n)
        transactions(card, settings, n)
    reloads(card, settings)


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


# ---- transactions ----------------------------------------------------------------------------------------------------


def loaded(rows: Layout) -> VM:
    vm = VM(user_mem_slots=max(ROOM, len(rows) + 1))
    vm.load_memslots(rows)
    return vm


def trades(card: Scorecard, settings: Settings, n: int) -> None:
    """Two slots trade places in one transaction, next to one MOVE of one of them."""
    vm, beyond = loaded(spread(n)), n * GAP * PAGE_SIZE
    a, b = n // 3, 2 * n // 3
    places = [a * GAP * PAGE_SIZE, b * GAP * PAGE_SIZE]

    def trade() -> None:
        for _ in range(CALLS // 2):
            for first, second in (places[::-1], places):
                with vm.transaction() as t:
                    t.move(a, first)
                    t.move(b, second)

    def move() -> None:
        for _ in range(CALLS // 2):
            vm.move(a, beyond)
            vm.move(a, places[0])

    times = turns({"trade": trade, "move": move}, settings.rounds)
    card.check(bool((vm.memslots_array() == spread(n)).all()), f"trades of {slots_of(n)}")
    bound = TRADE_AGAINST_MOVE if n == LIMIT else None
    what = "two slots trade places in a transaction / one MOVE"
    card.ratio("P13", what, slots_of(n), times["trade"], times["move"], "<=", bound)
    vm.close()


def transactions(card: Scorecard, settings: Settings, n: int) -> None:
    """As many moves, there and back, in one transaction and one by one."""
    for count in (2, 16, 256):
        if 2 * count > n:
            continue
        vm = loaded(spread(n))
        ids = np.linspace(0, n - 1, count).astype(int).tolist()

        def together(vm: VM = vm, ids: list[int] = ids) -> None:
            for offset in (4, 0):
                with vm.transaction() as t:
                    for id in ids:
                        t.move(id, (id * GAP + offset) * PAGE_SIZE)

        def one_by_one(vm: VM = vm, ids: list[int] = ids) -> None:
            for offset in (4, 0):
                for id in ids:
                    vm.move(id, (id * GAP + offset) * PAGE_SIZE)

        times = turns({"together": together, "one": one_by_one}, settings.rounds)
        card.check(
            bool((vm.memslots_array() == spread(n)).all()), f"{count} moves of {slots_of(n)}"
        )
        what = f"{count} moves in a transaction / one by one"
        card.ratio("P13", what, slots_of(n), times["together"], times["one"], "<=", None)
        vm.close()


# ---- apply() and restore() -------------------------------------------------------------------------------------------


def reload(vm: VM, rows: Layout) -> None:
    """The way without transactions: delete each slot, and load all."""
    for id in range(len(rows)):
        vm.delete(id)
    vm.load_memslots(rows)


def reloads(card: Scorecard, settings: Settings) -> None:
    """apply() of RUNS runs without ids, and restore() of LIMIT slots, each with DIFFERENCES differences."""
    n = RUNS if settings.sizes[-1] >= LARGE else max(settings.sizes)
    back_and_forth(card, settings, n, "apply", APPLY_AGAINST_RELOAD if n == RUNS else None)
    n = min(LIMIT, max(settings.sizes))
    back_and_forth(card, settings, n, "restore", RESTORE_AGAINST_RELOAD if n == LIMIT else None)


def back_and_forth(
    card: Scorecard, settings: Settings, n: int, call: str, bound: float | None
) -> None:
    rows = spread(n)
    states, vms = [changed(rows), rows], {name: loaded(rows) for name in (call, "reload")}
    if call == "apply":
        columns = ["base_gfn", "npages", "userspace_addr", "flags"]
        wanted = [np.ascontiguousarray(state[columns]) for state in states]
    else:
        wanted = [Snapshot(state, 0, 0) for state in states]

    def differ() -> None:
        for state in wanted:
            getattr(vms[call], call)(state)

    def anew() -> None:
        for state in states:
            reload(vms["reload"], state)

    def read() -> None:
        for state in states:
            now = vms[call].memslots_array()
            for name in MEMSLOT_DTYPE.names:
                (now[name] != state[name]).any()

    times = turns({call: differ, "reload": anew, "read": read}, settings.rounds)
    for name, vm in vms.items():
        card.check(
            bool((vm.memslots_array() == sorted_by(rows, "base_gfn")).all()),
            f"{name} of {slots_of(n)}",
        )
        vm.close()
    at = f"{slots_of(n)}, {DIFFERENCES} differences"
    what = f"{call}() / deleting one by one and loading"
    card.ratio("P13", what, at, times[call], times["reload"], "<=", bound)
    if call == "apply":
        what = "apply() / memslots_array() and one comparison"
        card.ratio(
            "P13", what, at, times[call], times["read"], "<=", APPLY_AGAINST_READ if bound else None
        )
