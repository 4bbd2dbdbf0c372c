# SPDX-License-Identifier: MIT
"""Diff: the differences of two snapshots equal those of a comparison slot by slot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene import memslot

from memslots import MEMSLOT_DTYPE, VM, Diff, MemFlag, MemorySlot, Snapshot

HOST = 0x7F0000000000


def snapshot(*slots: MemorySlot, as_id: int = 0) -> Snapshot:
    rows = [(s.base_gfn, s.npages, s.userspace_addr, s.id, s.as_id, s.flags) for s in slots]
    return Snapshot(np.array(rows, dtype=MEMSLOT_DTYPE), as_id, 0)


def one(id: int, gfn: int, npages: int = 4, hva: int = HOST, flags: int = 0) -> MemorySlot:
    return memslot(id, 0, gfn, npages, hva, flags)


def naive(old: Snapshot, new: Snapshot) -> Diff:
    before, after = ({slot.id: slot for slot in s} for s in (old, new))
    both = [(before[slot.id], slot) for slot in new if slot.id in before]
    kept = [(a, b) for a, b in both if a.userspace_addr == b.userspace_addr]
    return Diff(
        created=[slot for slot in new if slot.id not in before],
        deleted=[slot for slot in old if slot.id not in after],
        moved=[(a, b) for a, b in kept if a.base_gfn != b.base_gfn],
        resized=[(a, b) for a, b in kept if a.npages != b.npages],
        replaced=[(a, b) for a, b in both if a.userspace_addr != b.userspace_addr],
        flags=[(a, b) for a, b in kept if a.flags != b.flags],
    )


@st.composite
def layouts(draw: st.DrawFn) -> Snapshot:
    ids = draw(st.lists(st.integers(0, 8), unique=True, max_size=6))
    gfn, slots = 0, []
    for id in ids:
        gfn += draw(st.integers(0, 2))
        npages = draw(st.integers(1, 2))
        hva = HOST + draw(st.integers(0, 1)) * 0x10000
        slots.append(one(id, gfn, npages, hva, draw(st.sampled_from((0, 1, 2, 1 << 16)))))
        gfn += npages
    return snapshot(*slots)


@given(layouts(), layouts())
def test_diff_equals_a_comparison_slot_by_slot(old: Snapshot, new: Snapshot) -> None:
    diff = old.diff(new)
    assert diff == naive(old, new)
    assert bool(diff) == (old != new)


def test_each_list_has_its_kind() -> None:
    """A slot that moved, was resized and has other flags is in three lists; one with other memory is in one."""
    old = snapshot(one(0, 0), one(1, 16), one(2, 32), one(3, 48), one(4, 64))
    new = snapshot(
        one(0, 0),
        one(1, 100, 8, flags=2),
        one(2, 200, 5, HOST + 0x4000, 1),
        one(5, 64),
        one(4, 80),
    )
    diff = old.diff(new)
    assert [slot.id for slot in diff.created] == [5]
    assert [slot.id for slot in diff.deleted] == [3]
    assert [a.id for a, _ in diff.moved] == [4, 1]
    assert diff.resized == diff.flags == [(one(1, 16), one(1, 100, 8, flags=2))]
    assert diff.replaced == [(one(2, 32), one(2, 200, 5, HOST + 0x4000, 1))]
    assert repr(diff) == "<Diff: 1 created, 1 deleted, 2 moved, 1 resized, 1 replaced, 1 flags>"
    lines = str(diff).splitlines()
    assert lines[0] == "created  slot 5 [0x40000, 0x44000) at host 0x7f0000000000, no flags"
    assert lines[3] == (
        "moved    slot 1 [0x10000, 0x14000) at host 0x7f0000000000, no flags -> "
        "[0x64000, 0x6c000) at host 0x7f0000000000, READONLY"
    )
    assert len(lines) == 7


def test_equal_layouts_have_an_empty_diff() -> None:
    a = snapshot(one(0, 0), one(1, 16))
    diff = a.diff(Snapshot(a.array, 0, 9))
    assert not diff
    assert diff == Diff()
    assert (repr(diff), str(diff)) == ("<Diff: no difference>", "no difference")


def test_snapshots_of_a_vm_before_and_after_changes() -> None:
    with VM() as vm:
        for id in range(4):
            vm.set_user_memory_region(
                id, guest_phys_addr=id << 16, memory_size=0x4000, userspace_addr=HOST + (id << 16)
            )
        before = vm.snapshot()
        vm.move(1, 0x100000)
        vm.set_flags(2, set=MemFlag.LOG_DIRTY_PAGES)
        vm.delete(3)
        diff = before.diff(vm.snapshot())
        back = vm.snapshot().diff(before)
    assert [(a.gpa, b.gpa) for a, b in diff.moved] == [(0x10000, 0x100000)]
    assert [b.flags for _, b in diff.flags] == [MemFlag.LOG_DIRTY_PAGES]
    assert diff.deleted == back.created == list(before)[3:]
    assert back.moved == [(b, a) for a, b in diff.moved]


def test_other_address_space_and_other_types_are_refused() -> None:
    a, b = snapshot(one(0, 0)), snapshot(as_id=1)
    with pytest.raises(ValueError, match="address spaces 0 and 1"):
        a.diff(b)
    for other in (None, a.array, VM):
        with pytest.raises(TypeError):
            a.diff(other)  # type: ignore[arg-type]
