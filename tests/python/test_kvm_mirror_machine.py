# SPDX-License-Identifier: MIT
"""Engine and kernel side by side: hypothesis searches for a sequence of calls after which they differ.

Three VMs get the same calls.  One is an engine with a mirror, the second one is the kernel behind it, on which a vCPU
runs all the time.  The third one is an engine alone: it gets a mark for each store of the guest.  So the dirty bits of
the first two come from KVM's logs only, and those of the third from the engine only.  After each call the slots are
compared, and the errno of a call that was refused with that of the kernel.

A rule of hypothesis plays a burst of seeded random operations, because a rule costs more than an operation.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import guest as guests
import numpy as np
import pytest
from checkout import needs_tools, tool
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from mirror_kernel import slots_of
from running_guest import PAGE, running_guest

import memslots
from memslots import VM, MemFlag, kvm
from memslots.errors import MemslotsError

LOG, READONLY = int(MemFlag.LOG_DIRTY_PAGES), int(MemFlag.READONLY)
FIRST, FRAMES = 0x100, 96  # the guest frames that the operations use
IDS = 10  # the ids 1 to IDS, each with its own part of the memory
MOST_PAGES = 8

#: `make nightly` makes more; docs/kvm.md has a result.
OPERATIONS = int(os.environ.get("MEMSLOTS_MIRROR_OPERATIONS", "300"))
OUTPUT = os.environ.get("MEMSLOTS_MIRROR_OUTPUT")  # a file for the counts
KINDS = ("store", "single", "live", "transaction", "load", "update", "sync")

#: Values of arguments.  A host address is legal only in the memory of the test, because the guest writes to it.
ODD = {
    "guest_phys_addr": (0, 1, PAGE, 2**52, 2**63, 2**64 - PAGE),
    "memory_size": (0, 1, PAGE, 2**52, 2**63, 2**64 - PAGE),
    "userspace_addr": (1, 2**52, 2**63, 2**64 - PAGE),
    "flags": (8, 16, 2**31, 2**32 - 5),
}


class Sides:
    """The three VMs, and the operations on them."""

    def __init__(self, stack: ExitStack) -> None:
        with kvm.KvmVM() as probe:
            limits = {"gpa_bits": probe.gpa_bits, "hva_end_max": probe.hva_end_max}
        self.vm, self.alone = (VM(dereference_raw_addresses=True, **limits) for _ in range(2))
        stack.callback(self.alone.close)
        self.memory = memslots.alloc((IDS + 1) * 2 * MOST_PAGES * PAGE)
        self.exits: list[tuple[int, bytes, bool]] = []
        self.guest = stack.enter_context(running_guest(self.vm, self._mmio))
        self.alone.map_buffer(0x1000, self.guest.home, slot=0)
        self.kernel, self.mirror = self.guest.kernel, self.guest.mirror
        self.counts: Counter[str] = Counter()

    def _mmio(self, gpa: int, data: bytes, is_write: bool) -> None:
        self.exits.append((gpa, data, is_write))

    # ---- one operation on all sides ----

    def both(self, call: Callable[[VM], object]) -> MemslotsError | None:
        """Makes the call on both engines.  They answer alike.  Returns the refusal."""
        refusals = []
        for vm in (self.vm, self.alone):
            try:
                call(vm)
                refusals.append(None)
            except MemslotsError as e:
                refusals.append(e)
        mirrored, alone = refusals
        assert (mirrored and mirrored.errno) == (alone and alone.errno), (mirrored, alone)
        self.counts["refused"] += mirrored is not None
        return mirrored

    def set(self, slot: int, **fields: int) -> None:
        """A single change.  If the engine refuses it, the kernel must refuse it with the same errno."""
        refused = self.both(lambda vm: vm.set_user_memory_region(slot, **fields))
        if refused:
            with pytest.raises(MemslotsError) as caught:
                self.kernel.set_user_memory_region(slot, **fields)
            assert caught.value.errno == refused.errno
            self.counts["errno"] += 1

    def agree(self) -> None:
        slots = slots_of(self.vm)
        assert slots == list(self.kernel.regions) == slots_of(self.alone)
        assert not self.guest.wrong, self.guest.wrong

    def logs_agree(self) -> None:
        for slot in self.vm:
            if slot.flags & LOG:
                self.sync(slot.id)
        assert self.mirror.verify() == []

    def sync(self, id: int) -> None:
        ours, theirs = self.mirror.sync_dirty(id), self.alone.get_dirty_log(id)
        assert np.array_equal(ours, theirs), (id, ours, theirs)

    def store(self, gfn: int) -> None:
        """The guest stores a byte; outside of writable memory the store exits."""
        slot = self.vm.gfn_to_memslot(gfn)
        self.exits.clear()
        self.guest.store(gfn * PAGE)
        is_ram = slot is not None and not slot.flags & READONLY
        if is_ram:
            self.alone.mark_page_dirty(gfn)
        assert self.exits == ([] if is_ram else [(gfn * PAGE, b"\1", True)])


class Burst:
    """Seeded random operations."""

    def __init__(self, sides: Sides, seed: int | str) -> None:
        self.sides, self.random = sides, Random(seed)

    def play(self, n: int) -> None:
        for kind in self.random.choices(KINDS, (6, 3, 4, 6, 0.3, 0.5, 2), k=n):
            getattr(self, kind)()
            self.sides.counts[kind] += 1
            self.sides.agree()

    def store(self) -> None:
        self.sides.store(FIRST + self.random.randrange(FRAMES))

    def sync(self) -> None:
        logged = [s.id for s in self.sides.vm if s.flags & LOG]
        if logged:
            self.sides.sync(self.random.choice(logged))

    def region(self, id: int) -> dict[str, int]:
        r = self.random
        npages = r.randint(1, MOST_PAGES)
        part = self.sides.memory.address + id * 2 * MOST_PAGES * PAGE
        return {
            "guest_phys_addr": (FIRST + r.randrange(FRAMES - MOST_PAGES)) * PAGE,
            "memory_size": npages * PAGE,
            "userspace_addr": part + r.randrange(MOST_PAGES) * PAGE,
            "flags": r.choice((0, LOG, LOG, LOG, READONLY, LOG | READONLY)),
        }

    def single(self) -> None:
        """Any arguments; most of them are legal."""
        id = self.random.randint(1, IDS)
        fields = self.region(id)
        if self.random.random() < 0.2:
            name = self.random.choice([*fields])
            fields[name] = self.random.choice(ODD[name])
        self.sides.set(id, **fields)

    def live(self) -> None:
        """A change of a present slot."""
        slots = [s for s in self.sides.vm if s.id]
        if not slots:
            return
        slot = self.random.choice(slots)
        fields = {
            "guest_phys_addr": slot.gpa,
            "memory_size": slot.size,
            "userspace_addr": slot.userspace_addr,
            "flags": int(slot.flags),
        }
        kind = self.random.choice(("move", "move", "flags", "delete"))
        if kind == "move":
            fields["guest_phys_addr"] = self.region(slot.id)["guest_phys_addr"]
        elif kind == "flags":
            fields["flags"] ^= LOG
        else:
            fields["memory_size"] = 0
        self.sides.set(slot.id, **fields)

    def transaction(self) -> None:
        seed = self.random.random()
        refused = self.sides.both(lambda vm: self._transact(vm, Random(seed)))
        self.sides.counts["transactions carried out"] += refused is None

    def _transact(self, vm: VM, r: Random) -> None:
        slots = {s.id: s for s in vm if s.id}
        self.random, kept = r, self.random
        try:
            with vm.transaction() as t:
                for _ in range(r.randint(1, 5)):
                    self._step(t, slots, r)
        finally:
            self.random = kept

    def _step(self, t: Any, slots: dict[int, Any], r: Random) -> None:
        """Adds a step.  Each present slot gets one step at most."""
        kinds = ("create", "delete", "move", "flags", "split", "resize", "punch", "trade")
        kind = r.choices(kinds, (4, 1, 3, 2, 2, 2, 0.5, 2))[0]
        if kind == "create" or not slots:
            id = r.randint(1, IDS)
            t.create(id, **self.region(id))
            slots.pop(id, None)
            return
        if kind == "punch":
            t.punch((FIRST + r.randrange(FRAMES)) * PAGE, r.randint(1, 6) * PAGE)
            slots.clear()
            return
        slot = slots.pop(r.choice(sorted(slots)))
        if kind == "delete":
            t.delete(slot.id)
        elif kind == "move":
            t.move(slot.id, (FIRST + r.randrange(FRAMES - MOST_PAGES)) * PAGE)
        elif kind == "flags":
            t.set_flags(slot.id, **{"clear" if slot.flags & LOG else "set": LOG})
        elif kind == "resize":
            t.resize(slot.id, r.randint(1, slot.npages + 1))
        elif kind == "split" and slot.npages > 1:
            t.split(slot.id, slot.gpa + r.randrange(1, slot.npages) * PAGE)
        elif kind == "trade" and slots:
            other = slots.pop(r.choice(sorted(slots)))
            t.move(slot.id, other.gpa)
            t.move(other.id, slot.gpa)

    def load(self) -> None:
        rows = np.zeros(2, memslots.MEMSLOT_DTYPE)
        for row, id in zip(rows, self.random.sample(range(1, IDS + 1), 2), strict=True):
            fields = self.region(id)
            row["id"], row["base_gfn"] = id, fields["guest_phys_addr"] // PAGE
            row["npages"], row["flags"] = fields["memory_size"] // PAGE, fields["flags"]
            row["userspace_addr"] = fields["userspace_addr"]
        self.sides.both(lambda vm: vm.load_memslots(rows))

    def update(self) -> None:
        """Moves a slot to a free place, or deletes it, by the steps of KVM."""
        slots = [s for s in self.sides.vm if s.id]
        if not slots:
            return
        slot, gpa = self.random.choice(slots), self.region(1)["guest_phys_addr"]
        is_free = all(
            s.id == slot.id
            for s in self.sides.vm.memslots_in_gfn_range(gpa // PAGE, gpa // PAGE + slot.npages)
        )
        self.sides.both(lambda vm: update_slot(vm, slot.id, gpa // PAGE if is_free else None))


def update_slot(vm: VM, id: int, gfn: int | None) -> None:
    with vm.begin_update() as update:
        old = update.find(id)
        new = None if gfn is None else update.copy(old, base_gfn=gfn)
        update.replace(old, new)
        update.activate(old, new)


played: Counter[str] = Counter()


class Machine(RuleBasedStateMachine):
    round = 0  # hypothesis may draw the same numbers in each round

    @initialize()
    def start(self) -> None:
        self.stack = ExitStack()
        self.sides = Sides(self.stack)

    @rule(seed=st.integers(0, 2**32), n=st.integers(1, 60))
    def burst(self, seed: int, n: int) -> None:
        Burst(self.sides, f"{self.round} {seed}").play(n)

    @rule()
    def verify(self) -> None:
        self.sides.logs_agree()

    def teardown(self) -> None:
        if hasattr(self, "sides"):
            with self.stack:
                self.sides.logs_agree()
            assert self.sides.kernel.closed
            played.update(self.sides.counts)


def test_engine_and_kernel_stay_equal():
    guests.needs_kvm()
    played.clear()
    while sum(played[kind] for kind in KINDS) < OPERATIONS:
        Machine.round += 1
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=5, stateful_step_count=10, deadline=None)
        )
    assert played["transactions carried out"] >= OPERATIONS // 20
    assert played["errno"] >= OPERATIONS // 20
    if OUTPUT:
        Path(OUTPUT).write_text(table(played), encoding="utf-8")


# ---- the file that docs/kvm.md shows --------------------------------------------------------------


def table(counts: Counter[str]) -> str:
    """Return the counts.  All of them were compared without a difference, because the first one ends the test."""
    rows = [
        ("all", sum(counts[kind] for kind in KINDS)),
        ("stores of the guest", counts["store"]),
        ("single changes", counts["single"] + counts["live"]),
        ("... refused, with the errno of the kernel", counts["errno"]),
        ("transactions", counts["transaction"]),
        ("... carried out; the engine refused the others", counts["transactions carried out"]),
        ("updates", counts["update"]),
        ("loads", counts["load"]),
        ("dirty logs", counts["sync"]),
    ]
    header = [("operations, each compared", ""), ("---", "---:")]
    shown = tool("table_figures").markdown([*header, *((name, f"{n:,}") for name, n in rows)])
    return f"{date.today()}, {platform.system()} {platform.release()}\n\n{shown}"


@needs_tools
def test_table_has_every_operation() -> None:
    counts = Counter({kind: 10**i for i, kind in enumerate(KINDS)})
    counts.update({"errno": 20, "transactions carried out": 30, "refused": 50})
    assert "| all | 1,111,111 |\n" in table(counts)
    assert "| single changes | 110 |\n| ... refused, with the errno of the kernel | 20 |" in table(
        counts
    )
    assert (
        "| transactions | 1,000 |\n| ... carried out; the engine refused the others | 30 |"
        in table(counts)
    )
