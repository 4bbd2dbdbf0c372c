# SPDX-License-Identifier: MIT
"""Edges of the binding: numbers that mark an error inside it, overlapping views, wide tables, orders after removals."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scene import PAGE, put

from memslots import (
    HVA_ERR_BAD,
    HVA_ERR_MIN,
    HVA_ERR_RO_BAD,
    MEMSLOT_DTYPE,
    VM,
    Listener,
    MemslotsError,
    RegionOverlapError,
    Snapshot,
    backends,
)
from memslots.lab import layouts

HVA = 1 << 44


# ---- views of one array -------------------------------------------------------------------------

SLICES = [
    slice(3, 8), slice(8, 3, -1), slice(9, 4, -1), slice(4, 9), slice(2, 12, 2), slice(11, 1, -2), slice(7, 2, -1),
    slice(0, 5), slice(12, 2, -2),
]  # fmt: skip


@pytest.mark.parametrize("method", ["gfn_to_hva_many", "gpa_to_hva_many"])
@pytest.mark.parametrize("target", SLICES, ids=str)
@pytest.mark.parametrize("source", SLICES, ids=str)
def test_out_that_overlaps_with_any_stride_gives_the_answers_of_separate_memory(
    source: slice, target: slice, method: str
) -> None:
    with VM() as vm:
        put(vm, 0, 0, 64, hva=HVA)
        memory = np.arange(16, dtype=np.uint64) * np.uint64(5)
        numbers = memory[source]
        want = getattr(vm, method)(numbers.copy()).tolist()
        before = memory.copy()
        out = memory[target]
        assert getattr(vm, method)(numbers, out) is out
        assert out.tolist() == want
        elsewhere = np.delete(np.arange(16), np.arange(16)[target])
        assert (memory[elsewhere] == before[elsewhere]).all()


@pytest.mark.parametrize("length", [5, 300])
def test_reversed_view_of_itself_gives_the_answers_of_separate_memory(length: int) -> None:
    with VM() as vm:
        put(vm, 0, 0, 400, hva=HVA)
        memory = np.arange(length, dtype=np.uint64)
        want = vm.gfn_to_hva_many(memory[::-1].copy()).tolist()
        vm.gfn_to_hva_many(memory[::-1], memory)
        assert memory.tolist() == want


# ---- numbers that the binding uses for itself ---------------------------------------------------

SENTINELS = (
    0xDEAD, 0xDEADBEEF, 7777, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1,
    HVA_ERR_BAD, HVA_ERR_RO_BAD, HVA_ERR_MIN,
)  # fmt: skip

Call = Callable[[VM, int], Any]

#: Calls with one argument that may be any number of 64 bits.  An answer, or an error of this project, is right.
CALLS: dict[str, Call] = {
    "gfn": lambda vm, n: vm.gfn_to_hva(n),
    "gfn of a slot": lambda vm, n: vm.gfn_to_memslot(n),
    "gfn of a vCPU": lambda vm, n: vm.create_vcpu().gfn_to_hva(n),
    "gpa": lambda vm, n: vm.gpa_to_hva(n),
    "gfn to mark": lambda vm, n: vm.mark_page_dirty(n),
    "many": lambda vm, n: vm.gfn_to_hva_many([n, n]).tolist(),
    "range of gfns": lambda vm, n: vm.memslots_in_gfn_range(n, n),
    "range of hvas": lambda vm, n: vm.memslots_in_hva_range(n, n),
    "hva": lambda vm, n: vm.hva_to_gfns(n),
    "id": lambda vm, n: vm.id_to_memslot(n),
    "as_id": lambda vm, n: vm.generation(n),
    "log": lambda vm, n: vm.get_dirty_log(n),
    "first page": lambda vm, n: vm.clear_dirty_log(0, n, 64, np.zeros(1, np.uint64)),
    "pages": lambda vm, n: vm.clear_dirty_log(0, 0, n, np.zeros(1, np.uint64)),
    "delete": lambda vm, n: vm.delete(n),
    "slot": lambda vm, n: put(vm, n, 1000, 1),
    "flags": lambda vm, n: put(vm, 5, 1000, 1, n),
    "size": lambda vm, n: put(vm, 5, 1000, 1, memory_size=n),
    "place": lambda vm, n: put(vm, 5, 1000, 1, guest_phys_addr=n),
    "host address": lambda vm, n: put(vm, 5, 1000, 1, hva=n),
    "guest_memfd": lambda vm, n: put(vm, 5, 1000, 1, guest_memfd=n),
    "negative guest_memfd": lambda vm, n: put(vm, 5, 1000, 1, guest_memfd=-n),
    "offset": lambda vm, n: put(vm, 5, 1000, 1, guest_memfd_offset=n),
    "read": lambda vm, n: vm.read_guest(n, 1),
    "bytes": lambda vm, n: vm.host_ranges(0, n),
    "move": lambda vm, n: vm.move(0, n),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("number", SENTINELS, ids=hex)
def test_number_that_the_binding_uses_for_errors_is_a_number(name: str, number: int) -> None:
    """Never a SystemError, "error return without exception set": these numbers mark an error inside the binding."""
    answers = []
    for shift in (0, 1):  # the neighbour is treated in the same way
        with VM() as vm:
            put(vm, 0, 0, 64, 1, hva=HVA)
            try:
                answers.append(type(CALLS[name](vm, number - shift)))
            except (MemslotsError, OverflowError, ValueError, TypeError) as error:
                answers.append(type(error))
            vm.check()
    if number not in (2**31, 2**32, 2**63) and number < HVA_ERR_MIN:
        assert answers[0] == answers[1]


@pytest.mark.parametrize("number", [0xDEAD, 0xBEEF])
def test_sentinel_of_a_number_is_looked_up(number: int) -> None:
    with VM(address_spaces=2) as vm:
        put(vm, 1, number, 1, 1, hva=HVA)
        vcpu = vm.create_vcpu()
        assert vm.gfn_to_hva(number) == vcpu.gfn_to_hva(number) == HVA
        assert vm.gpa_to_hva(number * PAGE) == HVA
        assert vm.memslots_in_gfn_range(number, number + 1)[0].base_gfn == number
        vm.mark_page_dirty(number)
        assert vm.get_dirty_log(1).tolist() == [1]
        assert vm.id_to_memslot(number) is None
    with VM(user_mem_slots=0x10000) as vm:
        put(vm, number, 7, 1, hva=HVA)
        assert vm.id_to_memslot(number).id == number
        assert vm.gfn_to_slot_id_many([7, 8]).tolist() == [number, -1]
        vm.delete(number)
        assert len(vm) == 0


def test_descriptor_that_marks_an_error_is_a_descriptor() -> None:
    with VM() as vm:
        for number in (-7777, -7778, -2, 7777):
            with pytest.raises(MemslotsError) as caught:
                put(vm, 0, 0, 1, 4, guest_memfd=number)
            assert caught.value.errno == errno.EBADF
            assert str(number) in str(caught.value)


def test_error_values_are_answers_only_of_holes_and_readonly_slots() -> None:
    """A slot whose host addresses end just below the error values is not taken for one."""
    assert (HVA_ERR_MIN, HVA_ERR_BAD, HVA_ERR_RO_BAD) == (2**64 - 8192, 2**64 - 8192, 2**64 - 4096)
    with VM() as vm:
        put(vm, 0, 10, 1, hva=0x7FFFFFFFE000)
        put(vm, 1, 11, 1, 2, hva=0)
        assert vm.gfn_to_hva_many([9, 10, 11, 12]).tolist() == [
            HVA_ERR_BAD, 0x7FFFFFFFE000, HVA_ERR_RO_BAD, HVA_ERR_BAD,
        ]  # fmt: skip
        assert vm.gfn_to_hva_many([11], write=False).tolist() == [0]


# ---- wide tables --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "ids"),
    [*(("array", ids) for ids in (32_764, 32_765, 32_767, 32_768, 33_000)), ("tree", 33_000)],
)
def test_table_of_many_ids_finds_every_slot(backend: str, ids: int) -> None:
    """32,767 is the largest number of 16 bits with a sign: the place of a slot in an array may be above it."""
    slots = layouts.uniform(ids, 1)
    with VM(backend=backend, user_mem_slots=ids) as vm:
        vm.load_memslots(slots)
        gfns = slots["base_gfn"]
        assert (vm.gfn_to_slot_id_many(gfns) == slots["id"]).all()
        by_gfn = layouts.sorted_by(slots, "base_gfn")
        for row in (by_gfn[0], by_gfn[-1], by_gfn[ids // 2], by_gfn[-2]):
            assert vm.id_to_memslot(int(row["id"])).base_gfn == row["base_gfn"]
        ends = [int(by_gfn["id"][i]) for i in (0, -1)]
        for id in ends:
            vm.delete(id)
            assert vm.id_to_memslot(id) is None
        assert vm.id_to_memslot(int(by_gfn["id"][-2])).base_gfn == by_gfn["base_gfn"][-2]
        assert len(vm) == ids - 2
        vm.check()


# ---- listeners ----------------------------------------------------------------------------------


class Notes(Listener):
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def prepare(self, change: Any) -> None:
        self.calls.append(self.name)


@pytest.mark.parametrize("gone", range(4))
def test_four_listeners_keep_their_order_after_one_is_removed(gone: int) -> None:
    calls: list[str] = []
    with VM() as vm:
        made = [Notes(name, calls) for name in "abcd"]
        for listener in made:
            vm.add_listener(listener)
        vm.remove_listener(made[gone])
        put(vm, 0, 0, 1)
        left = [name for i, name in enumerate("abcd") if i != gone]
        assert calls == left
        calls.clear()
        vm.add_listener(made[gone])
        put(vm, 0, 0, 0)
        assert calls == [*left, made[gone].name]


def test_listeners_are_removed_in_any_order() -> None:
    for order in permutations(range(4)):
        calls: list[str] = []
        with VM() as vm:
            made = [Notes(name, calls) for name in "abcd"]
            for listener in made:
                vm.add_listener(listener)
            for n, gone in enumerate(order):
                vm.remove_listener(made[gone])
                calls.clear()
                put(vm, n, n, 1)
                assert calls == [name for i, name in enumerate("abcd") if i not in order[: n + 1]]


# ---- the entry that a refused load names --------------------------------------------------------


def rows_of(n: int) -> Any:
    """Slots with ids and gfns in no common order."""
    rows = np.zeros(n, dtype=MEMSLOT_DTYPE)
    rows["id"] = np.arange(n) + 10
    rows["base_gfn"] = (np.arange(n) * 7 % n) * 8 + 100
    rows["npages"] = 4
    rows["userspace_addr"] = np.arange(n) * 2**20
    return rows


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize(
    "fault",
    ["userspace_addr", "npages", "id", "flags", "overlap"],
)
def test_refused_load_names_the_only_bad_entry(fault: str, at: int, backend: str) -> None:
    """In each position: the entry by its place in the array, not by its place among gfns or ids."""
    rows = rows_of(5)
    if fault == "overlap":
        rows["base_gfn"][at] = 3
    else:
        rows[fault][at] = {"userspace_addr": 1, "npages": 0, "id": 40_000, "flags": 1 << 20}[fault]
    with VM(backend=backend) as vm:
        put(vm, 0, 0, 8)
        with pytest.raises(MemslotsError) as caught:
            vm.load_memslots(rows)
        assert f"entry {at}: " in str(caught.value)
        assert caught.value.slot == rows["id"][at]
        assert len(vm) == 1
        if fault == "overlap":
            assert isinstance(caught.value, RegionOverlapError)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 4), (3, 4), (2, 4)])
def test_refused_load_names_both_entries_of_one_id(first: int, second: int) -> None:
    rows = rows_of(5)
    rows["id"][second] = rows["id"][first]
    with VM() as vm, pytest.raises(RegionOverlapError) as caught:
        vm.load_memslots(rows)
    assert f"entries {first} and {second} both have id {10 + first}" in str(caught.value)


# ---- snapshots ----------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [True, False])
def test_snapshot_shares_nothing_with_the_array_of_the_caller(in_order: bool) -> None:
    rows = rows_of(5)
    if in_order:
        rows = layouts.sorted_by(rows, "base_gfn").copy()
    wanted = layouts.sorted_by(rows, "base_gfn").tolist()
    snapshot = Snapshot(rows, 0, 2)
    rows[:] = np.zeros(1, dtype=MEMSLOT_DTYPE)
    assert snapshot.array.tolist() == wanted
    assert [slot.base_gfn for slot in snapshot] == [row[0] for row in wanted]
    assert snapshot.gfn_to_hva_many([100]).tolist() != [HVA_ERR_BAD]
    assert not np.shares_memory(snapshot.array, rows)
    assert not snapshot.array.flags.writeable


def test_snapshot_of_a_vm_does_not_follow_it() -> None:
    with VM() as vm:
        put(vm, 0, 0, 4, hva=HVA)
        snapshot = vm.snapshot()
        table = vm.memslots_array()
        put(vm, 0, 0, 0)
        assert [slot.npages for slot in snapshot] == [4]
        assert table["npages"].tolist() == [4]


# ---- an index for the address space of a vCPU ---------------------------------------------------


@pytest.mark.parametrize("space", [0, 1])
def test_single_lookups_of_a_vcpu_index_its_own_address_space(space: int) -> None:
    """Both spaces have slots.  After many lookups in one of them, only lookups there use an index."""
    n = 100
    with VM(address_spaces=2) as vm:
        for as_id in (0, 1):
            slots = layouts.uniform(n, as_id)
            slots["as_id"] = as_id
            vm.load_memslots(slots, as_id)
        vcpu = vm.create_vcpu()
        vcpu.as_id = space
        slots = layouts.uniform(n, space)
        gfns = layouts.random(slots, 20_000, 3)
        answers = [vcpu.gfn_to_hva(gfn) for gfn in gfns.tolist()]
        assert answers == layouts.expected_hvas(slots, gfns).tolist()
        stats = vm.stats()
        assert stats["index_builds"] == 1
        assert stats["indexed"] > 1000
        for as_id in (space, 1 - space):
            other = layouts.random(layouts.uniform(n, as_id), 20, 4).tolist()
            before = vm.stats()["indexed"]
            for gfn in other:
                vm.gfn_to_hva(gfn, as_id)
            assert (vm.stats()["indexed"] > before) == (as_id == space)
