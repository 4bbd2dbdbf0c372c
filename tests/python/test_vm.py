# SPDX-License-Identifier: MIT
"""The API by example: every property and call of a VM, its slots, snapshots and vCPUs."""

from __future__ import annotations

import copy
import errno
import gc
import inspect
import itertools
import operator
import pickle
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from checkout import ROOT, needs_tools
from scene import PAGE, SANITIZED, memslot, put

import memslots
from memslots import (
    HVA_ERR_BAD,
    HVA_ERR_MIN,
    HVA_ERR_RO_BAD,
    MEMSLOT_DTYPE,
    VCPU,
    VM,
    ClosedError,
    GfnNotMappedError,
    InvalidRegionError,
    Listener,
    MemFlag,
    MemorySlot,
    NotSupportedError,
    ReadOnlySlotError,
    ReentrantChangeError,
    RegionOverlapError,
    Snapshot,
)
from memslots.layout import STEP_DTYPE

LOG, READONLY = MemFlag.LOG_DIRTY_PAGES, MemFlag.READONLY
HVA = 0x7F00_0000_0000


# ---- limits and properties ------------------------------------------------------------------------


def test_defaults_are_those_of_x86() -> None:
    vm = VM()
    assert (vm.address_spaces, vm.user_mem_slots, vm.gpa_bits) == (1, 32764, 52)
    assert (vm.hva_end_max, vm.backend, vm.closed) == (0x7FFFFFFFF000, "tree", False)
    assert (len(vm), vm.nr_memslot_pages, vm.generation(), vm.manual_dirty_log_protect) == (
        0,
        0,
        0,
        0,
    )
    assert vm.memslots() == []
    vm.check()


LIMITS = {
    "address_spaces": ([1, 2, 64], [0, 65, 2**32 - 1]),
    "user_mem_slots": ([1, 32764, 2**31 - 16], [0, 2**31 - 15, 2**32 - 1]),
    "gpa_bits": ([13, 52, 64], [0, 12, 65, 2**32 - 1]),
    "hva_end_max": ([PAGE, 2**64 - 8193], [0, PAGE - 1, 2**64 - 8192, 2**64 - 1]),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limit_is_accepted_in_its_range_only(limit: str) -> None:
    """A valid value is readable as a property; the error about an invalid one names the limit."""
    inside, outside = LIMITS[limit]
    for value in inside:
        with VM(**{limit: value}) as vm:
            assert getattr(vm, limit) == value
            vm.check()
    for value in outside:
        with pytest.raises(InvalidRegionError, match=limit) as caught:
            VM(**{limit: value})
        assert caught.value.errno == errno.EINVAL


def test_known_backends_work_and_unknown_ones_raise() -> None:
    """The tree is the first backend.  The error about an unknown name lists the backends."""
    assert memslots.backends()[0] == "tree"
    for name in memslots.backends():
        with VM(backend=name) as vm:
            assert vm.backend == name
            put(vm, 0, 0, 1)
            assert vm.gfn_to_hva(0) == 0
            vm.check()
    with pytest.raises(NotSupportedError, match=r"'forest'.*tree") as caught:
        VM(backend="forest")
    assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize(
    "name",
    [
        "address_spaces",
        "user_mem_slots",
        "gpa_bits",
        "hva_end_max",
        "backend",
        "closed",
        "nr_memslot_pages",
    ],
)
def test_properties_cannot_be_set(vm: VM, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(vm, name, 1)
    with pytest.raises(AttributeError):
        vm.something = 1


def test_region_beyond_a_limit_is_refused(vm: VM) -> None:
    """The last id, gpa and hva are valid; the next values are refused."""
    with VM(user_mem_slots=4, gpa_bits=20, hva_end_max=2**30) as small:
        put(small, 3, 2**8 - 1, 1, hva=2**30 - PAGE)
        for bad in ((4, 0, 1, 0), (0, 2**8, 1, 0), (0, 2**8, 3, 0), (0, 0, 1, 2**30)):
            with pytest.raises(InvalidRegionError):
                put(small, *bad[:3], hva=bad[3])
        assert len(small) == 1


def test_address_spaces_are_independent() -> None:
    """64 address spaces have a slot of the same id at the same gfn."""
    with VM(address_spaces=64) as vm:
        for as_id in range(64):
            put(vm, 5, 100, 2, hva=as_id * 2**20, as_id=as_id)
        assert len(vm) == 64
        assert [vm.gfn_to_hva(101, n) for n in range(64)] == [n * 2**20 + PAGE for n in range(64)]
        assert [vm.generation(n) for n in range(64)] == [n + 64 for n in range(64)]
        vm.check()


def test_len_bool_repr(vm: VM) -> None:
    """A VM without slots is true, because it is a machine and not a container."""
    assert bool(vm)
    assert repr(vm) == "<VM tree: 0 slots, 0 pages, 1 address space>"
    put(vm, 0, 0, 3)
    assert len(vm) == 1
    assert repr(vm) == "<VM tree: 1 slots, 3 pages, 1 address space>"
    assert repr(VM(address_spaces=2)).endswith("2 address spaces>")
    vm.close()
    assert repr(vm) == "<VM closed>"
    assert bool(vm)


# ---- changes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spaces", [1, 2, 3])
def test_generations_and_swaps_of_each_change(spaces: int) -> None:
    """KVM's number of swaps for CREATE, FLAGS_ONLY, no change, MOVE and DELETE; other address spaces do not swap."""
    with VM(address_spaces=spaces) as vm:
        as_id = spaces - 1
        others = [vm.generation(n) for n in range(as_id)]
        for change, swaps in (
            (lambda: put(vm, 0, 0, 4, as_id=as_id), 1),
            (lambda: put(vm, 0, 0, 4, flags=LOG, as_id=as_id), 1),
            (lambda: put(vm, 0, 0, 4, flags=LOG, as_id=as_id), 0),
            (lambda: put(vm, 0, 9, 4, flags=LOG, as_id=as_id), 2),
            (lambda: put(vm, 0, 10, 4, flags=0, as_id=as_id), 2),
            (lambda: put(vm, 0, 10, 0, as_id=as_id), 2),
        ):
            before, stats = vm.generation(as_id), vm.stats()
            change()
            assert vm.generation(as_id) - before == swaps * spaces
            assert vm.stats()["swaps"] - stats["swaps"] == swaps
        assert [vm.generation(n) for n in range(as_id)] == others


@pytest.mark.parametrize("spaces", [1, 2])
def test_generations_of_refused_changes(spaces: int) -> None:
    """A change that validation refuses does not swap; a MOVE that prepare refuses (here: gpa limit) swaps twice."""
    with VM(address_spaces=spaces, gpa_bits=24) as vm:
        put(vm, 0, 0, 4)
        put(vm, 1, 8, 4)
        for args, error, swaps in (
            ((1, 2, 4), RegionOverlapError, 0),
            ((2, 2, 4), RegionOverlapError, 0),
            ((1, 8, 5), InvalidRegionError, 0),
            ((2, 9, 0), InvalidRegionError, 0),
            ((2, 2**12, 1), InvalidRegionError, 0),
            ((1, 2**12, 4), InvalidRegionError, 2),
        ):
            before = vm.generation(), vm.memslots()
            with pytest.raises(error):
                put(vm, *args)
            assert vm.generation() - before[0] == swaps * spaces
            assert vm.memslots() == before[1]
            vm.check()


def test_generations_of_address_spaces_never_coincide() -> None:
    """The generations of space i are i modulo the number of spaces."""
    with VM(address_spaces=3) as vm:
        for i in range(30):
            put(vm, i, i, 1, as_id=i % 3)
            assert [vm.generation(n) % 3 for n in range(3)] == [0, 1, 2]


def test_created_slot_is_found(vm: VM) -> None:
    put(vm, 7, 0x100, 0x10, hva=HVA, flags=LOG)
    slot = vm.id_to_memslot(7)
    assert slot == memslot(7, 0, 0x100, 0x10, HVA, LOG)
    assert vm.gfn_to_memslot(0x10F) == slot
    assert vm.gfn_to_memslot(0x110) is None
    assert vm.gfn_to_memslot(0xFF) is None
    assert (len(vm), vm.nr_memslot_pages) == (1, 0x10)


def test_delete_ignores_the_other_values(vm: VM) -> None:
    """The call still validates them."""
    put(vm, 7, 0x100, 0x10, hva=HVA, flags=LOG)
    with pytest.raises(InvalidRegionError):
        vm.set_user_memory_region(7, guest_phys_addr=1, memory_size=0)
    vm.set_user_memory_region(
        7, guest_phys_addr=0x5000, memory_size=0, userspace_addr=PAGE, flags=READONLY
    )
    assert (len(vm), vm.nr_memslot_pages, vm.memslots()) == (0, 0, [])
    assert vm.id_to_memslot(7) is None


def test_moved_slot_is_found_at_its_new_place(vm: VM) -> None:
    """The new place may overlap the old one, and the flags may change, too."""
    put(vm, 1, 100, 10, hva=HVA)
    put(vm, 1, 105, 10, hva=HVA, flags=LOG)
    assert vm.memslots() == [memslot(1, 0, 105, 10, HVA, LOG)]
    assert vm.gfn_to_memslot(104) is None
    assert vm.gfn_to_hva(105) == HVA
    put(vm, 2, 100, 5)
    with pytest.raises(RegionOverlapError):
        put(vm, 2, 101, 5)


def test_neighbours_do_not_overlap(vm: VM) -> None:
    put(vm, 0, 10, 10)
    put(vm, 1, 20, 10)
    put(vm, 2, 0, 10)
    assert [slot.id for slot in vm.memslots()] == [2, 0, 1]


def test_numpy_integers_are_accepted(vm: VM) -> None:
    vm.set_user_memory_region(
        np.int32(3),
        guest_phys_addr=np.uint64(PAGE),
        memory_size=np.int64(PAGE),
        flags=MemFlag.LOG_DIRTY_PAGES,
    )
    assert vm.gfn_to_memslot(np.uint16(1)).id == 3


# ---- lookups --------------------------------------------------------------------------------------


@pytest.fixture
def mapped(vm: VM) -> VM:
    """Slot 0 at gfn 16 (4 pages), slot 1 READONLY at gfn 32 (2 pages)."""
    put(vm, 0, 16, 4, hva=HVA)
    put(vm, 1, 32, 2, hva=HVA + 2**20, flags=READONLY)
    return vm


def test_gfn_to_hva(mapped: VM) -> None:
    """A READONLY slot has no address for writing."""
    assert [mapped.gfn_to_hva(gfn) for gfn in (16, 17, 19)] == [HVA, HVA + PAGE, HVA + 3 * PAGE]
    assert mapped.gpa_to_hva(17 * PAGE + 123) == HVA + PAGE + 123
    assert mapped.gpa_to_hva(20 * PAGE - 1) == HVA + 4 * PAGE - 1
    for gfn in (0, 15, 20, 31, 34, 2**40, 2**52, 2**63, 2**64 - 1):
        with pytest.raises(GfnNotMappedError, match=f"gfn {gfn:#x} "):
            mapped.gfn_to_hva(gfn)
    for gpa in (0, 16 * PAGE - 1, 20 * PAGE, 2**64 - 1):
        with pytest.raises(GfnNotMappedError, match=f"gpa {gpa:#x} "):
            mapped.gpa_to_hva(gpa)
    with pytest.raises(ReadOnlySlotError):
        mapped.gfn_to_hva(32)
    with pytest.raises(ReadOnlySlotError):
        mapped.gpa_to_hva(33 * PAGE + 5)


def test_gfn_to_hva_prot(mapped: VM) -> None:
    assert mapped.gfn_to_hva_prot(19) == (HVA + 3 * PAGE, True)
    assert mapped.gfn_to_hva_prot(33) == (HVA + 2**20 + PAGE, False)
    with pytest.raises(GfnNotMappedError):
        mapped.gfn_to_hva_prot(20)


def test_visibility(mapped: VM) -> None:
    assert [mapped.is_visible_gfn(gfn) for gfn in (15, 16, 19, 20, 32, 2**64 - 1)] == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]


def test_many(mapped: VM) -> None:
    gfns = np.array([[15, 16], [33, 2**64 - 1]], np.uint64)
    hvas = mapped.gfn_to_hva_many(gfns)
    assert hvas.dtype == np.uint64
    assert hvas.tolist() == [[HVA_ERR_BAD, HVA], [HVA_ERR_RO_BAD, HVA_ERR_BAD]]
    assert mapped.gfn_to_hva_many(gfns, write=False)[1, 0] == HVA + 2**20 + PAGE
    assert (hvas >= HVA_ERR_MIN).tolist() == [[True, False], [True, True]]
    ids = mapped.gfn_to_slot_id_many(gfns)
    assert ids.dtype == np.int32
    assert ids.tolist() == [[-1, 0], [1, -1]]
    gpas = gfns % 2**51 * PAGE + np.uint64(7)
    assert mapped.gpa_to_hva_many(gpas).tolist() == [
        [HVA_ERR_BAD, HVA + 7],
        [HVA_ERR_RO_BAD, HVA_ERR_BAD],
    ]


def test_invalid_slots_are_returned_but_not_used() -> None:
    """During a DELETE, lookups return the INVALID slot, but give no address."""
    seen: dict[str, Any] = {}

    class Looks(Listener):
        def flush(self, active: MemorySlot, old: MemorySlot) -> None:
            seen["slot"] = vm.gfn_to_memslot(16)
            seen["by id"] = vm.id_to_memslot(0)
            seen["visible"] = vm.is_visible_gfn(16)
            seen["many"] = vm.gfn_to_hva_many(np.array([16], np.uint64), write=False).tolist()
            seen["ids"] = vm.gfn_to_slot_id_many(np.array([16], np.uint64)).tolist()
            seen["hits"] = vm.hva_to_gfns(HVA)
            seen["snapshot"] = vm.snapshot()
            seen["vcpu"] = vcpu.gfn_to_memslot(16)
            for name, call in (
                ("hva", vm.gfn_to_hva),
                ("prot", vm.gfn_to_hva_prot),
                ("cpu", vcpu.gfn_to_hva),
            ):
                with pytest.raises(GfnNotMappedError):
                    seen[name] = call(16)

    with VM() as vm:
        put(vm, 0, 16, 4, hva=HVA, flags=LOG)
        vcpu = vm.create_vcpu()
        assert vcpu.gfn_to_hva(16) == HVA
        vm.add_listener(Looks())
        put(vm, 0, 16, 0)
    invalid = memslot(0, 0, 16, 4, HVA, LOG | MemFlag.INVALID)
    assert invalid.is_invalid
    assert seen["slot"] == seen["by id"] == seen["vcpu"] == invalid
    assert seen["hits"] == [(invalid, 16)]
    assert list(seen["snapshot"]) == [invalid]
    assert seen["snapshot"].gfn_to_hva_many(np.array([16]), write=False).tolist() == [HVA_ERR_BAD]
    assert (seen["visible"], seen["many"], seen["ids"]) == (False, [HVA_ERR_BAD], [-1])
    assert not {"hva", "prot", "cpu"} & set(seen)


@pytest.mark.parametrize(
    ("start", "end", "ids"),
    [
        (0, 2**64 - 1, [0, 1]),
        (0, 16, []),
        (0, 17, [0]),
        (19, 32, [0]),
        (19, 33, [0, 1]),
        (20, 32, []),
        (33, 34, [1]),
        (17, 17, []),
        (18, 17, []),
        (34, 2**64 - 1, []),
    ],
)
def test_gfn_ranges(mapped: VM, start: int, end: int, ids: list[int]) -> None:
    assert [slot.id for slot in mapped.memslots_in_gfn_range(start, end)] == ids


@pytest.mark.parametrize(
    ("start", "last", "ids"),
    [
        (0, 2**64 - 1, [0, 1]),
        (0, HVA - 1, []),
        (0, HVA, [0]),
        (HVA + 4 * PAGE - 1, HVA + 2**20, [0, 1]),
        (HVA + 4 * PAGE, HVA + 2**20 - 1, []),
        (HVA + 1, HVA, []),
        (HVA, HVA, [0]),
    ],
)
def test_hva_ranges(mapped: VM, start: int, last: int, ids: list[int]) -> None:
    assert [slot.id for slot in mapped.memslots_in_hva_range(start, last)] == ids


def test_slots_of_shared_host_memory_are_sorted() -> None:
    """Slots that share host memory are sorted by (as_id, userspace_addr, base_gfn)."""
    with VM(address_spaces=2) as vm:
        put(vm, 3, 400, 4, hva=HVA)
        put(vm, 1, 100, 4, hva=HVA)
        put(vm, 2, 200, 8, hva=HVA - 2 * PAGE)
        put(vm, 1, 50, 1, hva=HVA + PAGE, as_id=1)
        hits = vm.hva_to_gfns(HVA + PAGE + 77)
        assert [(slot.as_id, slot.id, gfn) for slot, gfn in hits] == [
            (0, 2, 203),
            (0, 1, 101),
            (0, 3, 401),
            (1, 1, 50),
        ]
        assert [slot.id for slot in vm.memslots_in_hva_range(HVA, HVA)] == [2, 1, 3]
        assert vm.hva_to_gfns(HVA - 2 * PAGE - 1) == []
        assert vm.hva_to_gfns(2**64 - 1) == []


def test_result_list_grows_as_needed(vm: VM) -> None:
    """1,000 slots share host memory."""
    for id in range(1000):
        put(vm, id, 2 * id, 1, hva=HVA)
    assert [slot.id for slot in vm.memslots()] == list(range(1000))
    assert len(vm.memslots_in_gfn_range(1, 1999)) == 999
    assert len(vm.memslots_in_hva_range(HVA, HVA)) == 1000
    assert [gfn for _, gfn in vm.hva_to_gfns(HVA)] == list(range(0, 2000, 2))
    assert len(vm.memslots_array()) == 1000


# ---- dirty log ------------------------------------------------------------------------------------


def test_dirty_log(vm: VM) -> None:
    """ceil(npages / 64) words, bit i of word j is page 64 j + i; a read clears."""
    put(vm, 0, 1000, 130, flags=LOG)
    for gfn in (1000, 1063, 1064, 1129, 1130, 999, 0, 2**64 - 1):
        vm.mark_page_dirty(gfn)
    log = vm.get_dirty_log(0)
    assert log.dtype == np.uint64
    assert log.tolist() == [1 | 1 << 63, 1, 2]
    assert vm.get_dirty_log(0).tolist() == [0, 0, 0]
    log[:] = 0  # the caller owns the array
    vm.mark_page_dirty_many(np.arange(1000, 1130, dtype=np.uint64))
    assert sum(map(int.bit_count, vm.get_dirty_log(0).tolist())) == 130


def test_marks_without_a_log_are_lost(vm: VM) -> None:
    put(vm, 0, 0, 64)
    vm.mark_page_dirty(5)
    put(vm, 0, 0, 64, flags=LOG)
    assert vm.get_dirty_log(0).tolist() == [0]


def test_marks_ignore_readonly(vm: VM) -> None:
    put(vm, 0, 0, 64, flags=LOG | READONLY)
    vm.mark_page_dirty(5)
    assert vm.get_dirty_log(0).tolist() == [1 << 5]


def test_log_lives_while_logging_stays_on(vm: VM) -> None:
    """A MOVE keeps the log; switching logging off and on gives a fresh log."""
    put(vm, 0, 0, 64, flags=LOG)
    vm.mark_page_dirty(5)
    put(vm, 0, 100, 64, flags=LOG)
    vm.mark_page_dirty(106)
    assert vm.get_dirty_log(0).tolist() == [1 << 5 | 1 << 6]
    vm.mark_page_dirty(107)
    put(vm, 0, 100, 64)
    put(vm, 0, 100, 64, flags=LOG)
    assert vm.get_dirty_log(0).tolist() == [0]


def test_manual_protect(vm: VM) -> None:
    """1: a read does not clear.  3: also, all bits of a new log start set, except those beyond the slot."""
    put(vm, 0, 0, 100, flags=LOG)
    vm.manual_dirty_log_protect = 1
    vm.mark_page_dirty(3)
    assert vm.get_dirty_log(0).tolist() == vm.get_dirty_log(0).tolist() == [8, 0]
    vm.clear_dirty_log(0, 0, 64, np.array([8], np.uint64))
    assert vm.get_dirty_log(0).tolist() == [0, 0]
    vm.manual_dirty_log_protect = 3
    put(vm, 1, 1000, 100, flags=LOG)
    assert vm.get_dirty_log(1).tolist() == [2**64 - 1, 2**36 - 1]
    vm.clear_dirty_log(1, 64, 36, np.array([2**64 - 1], np.uint64))
    assert vm.get_dirty_log(1).tolist() == [2**64 - 1, 0]
    vm.manual_dirty_log_protect = 0
    assert vm.manual_dirty_log_protect == 0


def test_null_bitmaps(vm: VM) -> None:
    """GET harvests and loses the bits; CLEAR of no pages ignores the bitmap."""
    put(vm, 0, 0, 64, flags=LOG)
    vm.mark_page_dirty(5)
    with pytest.raises(memslots.GuestAccessError, match="lost") as caught:
        vm._get_dirty_log_null(0)
    assert caught.value.errno == errno.EFAULT
    assert vm.get_dirty_log(0).tolist() == [0]
    vm.clear_dirty_log(0, 0, 0, None)
    with pytest.raises(memslots.GuestAccessError):
        vm.clear_dirty_log(0, 0, 64, None)


# ---- load_memslots and arrays ---------------------------------------------------------------------


def some_rows(n: int) -> np.ndarray:
    rows = np.zeros(n, MEMSLOT_DTYPE)
    rows["id"] = np.arange(n)
    rows["base_gfn"] = np.arange(n) * 16
    rows["npages"] = 8
    rows["userspace_addr"] = np.arange(n) * 2**20
    rows["flags"] = np.arange(n) % 4
    return rows


@pytest.mark.parametrize("backend", memslots.backends())
def test_loaded_slots_appear_in_one_swap(backend: str) -> None:
    """A load swaps once.  memslots_array() returns the loaded rows in order of gfn, and the logs work."""
    with VM(backend=backend) as vm:
        rows = some_rows(500)
        shuffled = np.random.default_rng(1).permutation(rows)
        vm.load_memslots(shuffled)
        assert (len(vm), vm.generation(), vm.nr_memslot_pages) == (500, 1, 4000)
        assert (vm.memslots_array() == rows).all()
        vm.check()
        vm.mark_page_dirty(17)
        assert vm.get_dirty_log(1).tolist() == [2]
        vm.load_memslots(some_rows(0))
        assert vm.generation() == 1
        with pytest.raises(RegionOverlapError, match="entry 0"):
            vm.load_memslots(rows[:1])


def test_load_takes_other_layouts() -> None:
    """The fields may have any integer type; flags and as_id may be missing."""
    packed = np.array(
        [(5, 40, 2, 0), (6, 50, 3, PAGE)],
        [("id", "i8"), ("base_gfn", "u2"), ("npages", ">u4"), ("userspace_addr", "i4")],
    )
    with VM(address_spaces=2) as vm:
        vm.load_memslots(packed[::-1], as_id=1)
        assert vm.memslots(1) == [memslot(5, 1, 40, 2, 0), memslot(6, 1, 50, 3, PAGE)]
        assert vm.memslots(0) == []


def test_dtype_of_slots() -> None:
    assert MEMSLOT_DTYPE.itemsize == 40
    assert MEMSLOT_DTYPE.names == ("base_gfn", "npages", "userspace_addr", "id", "as_id", "flags")


def test_caller_owns_the_result_of_memslots_array(vm: VM) -> None:
    put(vm, 0, 5, 1)
    rows = vm.memslots_array()
    rows["base_gfn"] = 99
    assert vm.memslots()[0].base_gfn == 5
    assert rows.flags.owndata
    vm.close()
    assert rows["base_gfn"].tolist() == [99]


# ---- snapshots ------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(mapped: VM) -> Snapshot:
    return mapped.snapshot()


def test_snapshot_keeps_the_slots_after_later_changes(mapped: VM, snapshot: Snapshot) -> None:
    before = mapped.memslots()
    put(mapped, 0, 16, 0)
    assert list(snapshot) == before
    assert len(snapshot) == 2
    assert (snapshot.as_id, snapshot.generation) == (0, 2)
    assert all(type(slot) is MemorySlot for slot in snapshot)
    assert "2 slots" in repr(snapshot)
    assert "generation 2" in repr(snapshot)


def test_snapshot_is_immutable(snapshot: Snapshot) -> None:
    with pytest.raises(ValueError, match="read-only"):
        snapshot.array["base_gfn"] = 1
    for change in (
        lambda: setattr(snapshot, "generation", 1),
        lambda: delattr(snapshot, "array"),
        lambda: setattr(snapshot, "other", 1),
    ):
        with pytest.raises(AttributeError):
            change()


def test_snapshots_are_pickled_and_compared(mapped: VM, snapshot: Snapshot) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps(snapshot, protocol))
        assert other == snapshot
        assert hash(other) == hash(snapshot)
        assert (other.as_id, other.generation) == (snapshot.as_id, snapshot.generation)
        assert not other.array.flags.writeable
    assert copy.deepcopy(snapshot) == snapshot
    put(mapped, 2, 0, 1)
    assert mapped.snapshot() != snapshot
    put(mapped, 2, 0, 0)
    assert mapped.snapshot() == snapshot  # comparison ignores the generation
    assert hash(mapped.snapshot()) == hash(snapshot)
    assert snapshot != [*snapshot]


def padded(rows: np.ndarray, byte: int) -> np.ndarray:
    """The same slots in a layout with gaps, which are filled with this byte."""
    memory = np.full(rows.nbytes, byte, np.uint8).view(MEMSLOT_DTYPE)
    for name in MEMSLOT_DTYPE.names:
        memory[name] = rows[name]
    return memory


def test_equal_snapshots_have_equal_hashes(snapshot: Snapshot) -> None:
    """Padding and layout of the array make no difference."""
    packed = np.dtype([(name, MEMSLOT_DTYPE[name]) for name in MEMSLOT_DTYPE.names])
    arrays = [padded(snapshot.array, byte) for byte in range(0, 256, 5)]
    for array in (*arrays, snapshot.array.astype(packed), snapshot.array[::-1][::-1]):
        other = Snapshot(array, snapshot.as_id, snapshot.generation)
        assert other == snapshot
        assert hash(other) == hash(snapshot)


def test_snapshot_translates_as_the_vm_does() -> None:
    """Covers every kind of gfn, reads and writes, with and without `out`."""
    rng = np.random.default_rng(3)
    with VM() as vm:
        vm.load_memslots(some_rows(300))
        snapshot = vm.snapshot()
        gfns = np.concatenate(
            [rng.integers(0, 5000, 2000, np.uint64), np.array([0, 2**64 - 1], np.uint64)]
        )
        for write in (True, False):
            want = vm.gfn_to_hva_many(gfns, write=write)
            assert np.array_equal(snapshot.gfn_to_hva_many(gfns, write=write), want)
            out = np.zeros(len(gfns), np.uint64)
            assert snapshot.gfn_to_hva_many(gfns, out, write) is out
            assert np.array_equal(out, want)
        shape = gfns[:2000].reshape(20, 10, 10)
        assert np.array_equal(snapshot.gfn_to_hva_many(shape), vm.gfn_to_hva_many(shape))


def test_empty_snapshot(vm: VM) -> None:
    snapshot = vm.snapshot()
    assert len(snapshot) == 0
    assert list(snapshot) == []
    assert snapshot.gfn_to_hva_many(np.array([0, 5], np.uint64)).tolist() == [HVA_ERR_BAD] * 2


# ---- MemorySlot -----------------------------------------------------------------------------------


def test_memory_slot_is_a_value() -> None:
    slot = memslot(7, 1, 0x100, 0x10, HVA, 3)
    assert (slot.id, slot.as_id, slot.base_gfn, slot.npages, slot.userspace_addr) == (
        7,
        1,
        0x100,
        0x10,
        HVA,
    )
    assert (slot.gpa, slot.size) == (0x100000, 0x10000)
    assert slot.flags is MemFlag(3)
    assert slot.flags == LOG | READONLY
    assert not slot.is_invalid
    assert repr(slot) == (
        "MemorySlot(id=7, as_id=1, base_gfn=0x100, npages=0x10, userspace_addr=0x7f0000000000, flags=0x3)"
    )
    assert eval(repr(slot)) == slot
    assert memslot(1, 0, 0, 1, 0).flags == 0
    assert MemorySlot(
        id=1, as_id=0, base_gfn=2, npages=1, userspace_addr=0, flags=1 << 16
    ).is_invalid


@pytest.mark.parametrize("field", range(6))
def test_memory_slots_are_equal_by_every_field(field: int) -> None:
    values = [7, 1, 0x100, 0x10, HVA, 3]
    slot, same = memslot(*values), memslot(*values)
    assert slot == same
    assert hash(slot) == hash(same)
    values[field] += 1
    assert slot != memslot(*values)
    assert slot != tuple(values)
    assert len({slot, same, memslot(*values)}) == 2


@pytest.mark.parametrize(
    "name", ["id", "as_id", "base_gfn", "npages", "userspace_addr", "flags", "gpa", "new"]
)
def test_memory_slot_is_immutable(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(memslot(7, 1, 0x100, 0x10, HVA, 3), name, 1)


def test_memory_slots_are_pickled_copied_matched() -> None:
    slot = memslot(7, 1, 0x100, 2**52, 2**64 - 1, 3)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(slot, protocol)) == slot
    assert copy.copy(slot) == copy.deepcopy(slot) == slot
    match slot:
        case MemorySlot(id=id, as_id=as_id, base_gfn=base, flags=flags):
            assert (id, as_id, base, flags) == (7, 1, 0x100, 3)
        case _:
            pytest.fail("no match")


def test_memory_slots_are_sorted_by_place() -> None:
    """By (as_id, base_gfn); the order is total and agrees with ==."""
    rng = Random(3)
    slots = [memslot(rng.randrange(3), *[rng.randrange(2) for _ in range(5)]) for _ in range(200)]
    ordered = sorted(slots)
    assert [(s.as_id, s.base_gfn) for s in ordered] == sorted((s.as_id, s.base_gfn) for s in slots)
    for one, other in itertools.product(slots[:30], repeat=2):
        assert [one < other, one == other, one > other].count(True) == 1
        assert (one <= other, one >= other) == (not one > other, not one < other)
    for compare in (operator.lt, operator.le, operator.gt, operator.ge):
        with pytest.raises(TypeError):
            compare(slots[0], 1)
    with pytest.raises(TypeError):
        type("Sub", (MemorySlot,), {})


def test_memory_slot_is_made_from_a_row_by_keywords() -> None:
    """Positional arguments raise, because MEMSLOT_DTYPE has another order of fields than the repr."""
    with VM() as vm:
        put(vm, 7, 16, 2, hva=HVA, flags=READONLY)
        row = vm.memslots_array()[0]
        with pytest.raises(TypeError, match="keywords only: id, as_id, base_gfn") as caught:
            MemorySlot(*row)
        way = str(caught.value).rpartition("use ")[2]
        assert eval(way) == vm.id_to_memslot(7)
    for missing in ("id", "as_id", "base_gfn", "npages", "userspace_addr"):
        fields = dict(zip(row.dtype.names, row.item(), strict=True))
        del fields[missing]
        with pytest.raises(TypeError, match=f"^{missing} must be an int"):
            MemorySlot(**fields)


# ---- vCPUs ----------------------------------------------------------------------------------------


def test_vcpu_looks_up_in_its_address_space() -> None:
    """The answers are right after every change."""
    with VM(address_spaces=2) as vm:
        put(vm, 0, 16, 4, hva=HVA)
        put(vm, 0, 16, 4, hva=2 * HVA // 3 // PAGE * PAGE, flags=READONLY, as_id=1)
        vcpu = vm.create_vcpu()
        assert vcpu.vm is vm
        assert vcpu.as_id == 0
        assert vcpu.gfn_to_hva(17) == HVA + PAGE
        assert vcpu.gpa_to_hva(17 * PAGE + 9) == HVA + PAGE + 9
        vcpu.as_id = 1
        assert vcpu.gfn_to_memslot(17).as_id == 1
        with pytest.raises(ReadOnlySlotError):
            vcpu.gfn_to_hva(17)
        vcpu.as_id = 0
        put(vm, 0, 50, 4, hva=HVA)
        assert vcpu.gfn_to_memslot(17) is None
        assert vcpu.gfn_to_hva(50) == HVA
        with pytest.raises(InvalidRegionError):
            vcpu.as_id = 2
        assert vcpu.as_id == 0
        assert "address space 0" in repr(vcpu)
        assert type(VCPU(vm)) is VCPU


def test_vcpu_has_its_own_hint(mapped: VM) -> None:
    """The first lookup searches, the second does not; a change drops the hint."""
    vcpu = mapped.create_vcpu()

    def hits(call: Callable[[], object]) -> tuple[int, int]:
        before = mapped.stats()
        call()
        after = mapped.stats()
        return tuple(after[name] - before[name] for name in ("hits_last_used", "hits_search"))

    assert hits(lambda: vcpu.gfn_to_hva(16)) == (0, 1)
    mapped.gfn_to_hva_prot(33)  # the set has a separate hint
    assert hits(lambda: vcpu.gfn_to_hva(17)) == (1, 0)
    put(mapped, 9, 999, 1)
    assert hits(lambda: vcpu.gfn_to_hva(17)) == (0, 1)


def test_released_vcpus_are_reused(vm: VM) -> None:
    """Memory does not grow with the number of vCPUs that have ever existed."""
    vm.index_policy = "off"  # an index would add a block
    put(vm, 0, 0, 1)
    vm.create_vcpu()
    blocks = vm.stats()["blocks"]
    for _ in range(1000):
        assert vm.create_vcpu().gfn_to_hva(0) == 0
    assert vm.stats()["blocks"] <= blocks + 1


def test_bad_arguments_of_a_vcpu_raise(vm: VM) -> None:
    for bad in (None, 1, "vm"):
        with pytest.raises(TypeError):
            VCPU(bad)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(vm.create_vcpu())
    with pytest.raises(TypeError, match="pickled"):
        copy.copy(vm.create_vcpu())


# ---- stats and check ------------------------------------------------------------------------------


def test_stats_count_lookups_and_changes(mapped: VM) -> None:
    """Lookups are counted by kind of hit, changes by kind."""
    mapped.gfn_to_memslot(0)  # a thread's first lookup makes its record
    before = mapped.stats()
    mapped.gfn_to_memslot(16)
    mapped.gfn_to_memslot(17)
    mapped.gfn_to_memslot(0)
    # A batch searches several gfns at a time.
    mapped.gfn_to_hva_many(np.array([32, 33, 1, 2], np.uint64))
    put(mapped, 2, 100, 1)
    put(mapped, 2, 100, 1)
    put(mapped, 2, 100, 1, flags=LOG)
    put(mapped, 2, 101, 1, flags=LOG)
    put(mapped, 2, 101, 0)
    with pytest.raises(InvalidRegionError):
        put(mapped, 2, 101, 0)
    after = mapped.stats()
    grown = {name: after[name] - before[name] for name in after}
    assert (grown["hits_search"], grown["hits_last_used"], grown["misses"]) == (3, 1, 3)
    assert [
        grown[n] for n in ("creates", "deletes", "moves", "flag_changes", "noops", "refused")
    ] == [1] * 6
    assert grown["swaps"] == 1 + 1 + 2 + 2
    assert grown["blocks"] == 0
    assert all(type(value) is int for value in after.values())


def test_deleting_slots_frees_their_memory(vm: VM) -> None:
    before = vm.stats()["bytes"]
    for id in range(1000):
        put(vm, id, id * 64, 64, flags=LOG)
    grown = vm.stats()["bytes"] - before
    for id in range(1000):
        put(vm, id, 0, 0)
    assert grown > 1000 * 100
    assert vm.stats()["bytes"] - before < grown / 5  # a grown hash table remains


# ---- life -----------------------------------------------------------------------------------------

EMPTY = Snapshot(np.zeros(0, MEMSLOT_DTYPE), 0, 0)
AFTER_CLOSE: dict[str, Callable[[VM, VCPU, Any], Any]] = {
    "__enter__": lambda vm, vcpu, update: vm.__enter__(),
    "set_user_memory_region": lambda vm, vcpu, update: put(vm, 0, 0, 1),
    "load_memslots": lambda vm, vcpu, update: vm.load_memslots(some_rows(1)),
    "load of nothing": lambda vm, vcpu, update: vm.load_memslots(some_rows(0)),
    "add_listener": lambda vm, vcpu, update: vm.add_listener(Listener()),
    "remove_listener": lambda vm, vcpu, update: vm.remove_listener(Listener()),
    "begin_update": lambda vm, vcpu, update: vm.begin_update(),
    "Update.__enter__": lambda vm, vcpu, update: update.__enter__(),
    "gfn_to_memslot": lambda vm, vcpu, update: vm.gfn_to_memslot(0),
    "id_to_memslot": lambda vm, vcpu, update: vm.id_to_memslot(0),
    "gfn_to_hva": lambda vm, vcpu, update: vm.gfn_to_hva(0),
    "gpa_to_hva": lambda vm, vcpu, update: vm.gpa_to_hva(0),
    "gfn_to_hva_prot": lambda vm, vcpu, update: vm.gfn_to_hva_prot(0),
    "is_visible_gfn": lambda vm, vcpu, update: vm.is_visible_gfn(0),
    "gfn_to_hva_many": lambda vm, vcpu, update: vm.gfn_to_hva_many(np.zeros(1, np.uint64)),
    "gpa_to_hva_many": lambda vm, vcpu, update: vm.gpa_to_hva_many(np.zeros(1, np.uint64)),
    "gfn_to_slot_id_many": lambda vm, vcpu, update: vm.gfn_to_slot_id_many(np.zeros(1, np.uint64)),
    "memslots_in_gfn_range": lambda vm, vcpu, update: vm.memslots_in_gfn_range(0, 1),
    "memslots_in_hva_range": lambda vm, vcpu, update: vm.memslots_in_hva_range(0, 1),
    "memslots": lambda vm, vcpu, update: vm.memslots(),
    "memslots_array": lambda vm, vcpu, update: vm.memslots_array(),
    "hva_to_gfns": lambda vm, vcpu, update: vm.hva_to_gfns(0),
    "generation": lambda vm, vcpu, update: vm.generation(),
    "read": lambda vm, vcpu, update: vm.read(),
    "snapshot": lambda vm, vcpu, update: vm.snapshot(),
    "create_vcpu": lambda vm, vcpu, update: vm.create_vcpu(),
    "delete": lambda vm, vcpu, update: vm.delete(0),
    "move": lambda vm, vcpu, update: vm.move(0, 0),
    "set_flags": lambda vm, vcpu, update: vm.set_flags(0),
    "free_slot_id": lambda vm, vcpu, update: vm.free_slot_id(),
    "map_buffer": lambda vm, vcpu, update: vm.map_buffer(0, memslots.alloc(4096)),
    "read_guest": lambda vm, vcpu, update: vm.read_guest(0, 1),
    "readinto_guest": lambda vm, vcpu, update: vm.readinto_guest(0, bytearray(1)),
    "write_guest": lambda vm, vcpu, update: vm.write_guest(0, b"x"),
    "fill_guest": lambda vm, vcpu, update: vm.fill_guest(0, 1, 1),
    "copy_guest": lambda vm, vcpu, update: vm.copy_guest(0, 0, 1),
    "read_u8": lambda vm, vcpu, update: vm.read_u8(0),
    "write_u8": lambda vm, vcpu, update: vm.write_u8(0, 1),
    "read_u16": lambda vm, vcpu, update: vm.read_u16(0),
    "write_u16": lambda vm, vcpu, update: vm.write_u16(0, 1),
    "read_u32": lambda vm, vcpu, update: vm.read_u32(0),
    "write_u32": lambda vm, vcpu, update: vm.write_u32(0, 1),
    "read_u64": lambda vm, vcpu, update: vm.read_u64(0),
    "write_u64": lambda vm, vcpu, update: vm.write_u64(0, 1),
    "read_u64_many": lambda vm, vcpu, update: vm.read_u64_many([0]),
    "write_u64_many": lambda vm, vcpu, update: vm.write_u64_many([0], 1),
    "host_ranges": lambda vm, vcpu, update: vm.host_ranges(0, 1),
    "host_ranges_many": lambda vm, vcpu, update: vm.host_ranges_many([0], 1),
    "memslots_in_gfn_range_many": lambda vm, vcpu, update: vm.memslots_in_gfn_range_many([0], 1),
    "mark_page_dirty": lambda vm, vcpu, update: vm.mark_page_dirty(0),
    "mark_page_dirty_many": lambda vm, vcpu, update: vm.mark_page_dirty_many(
        np.zeros(1, np.uint64)
    ),
    "get_dirty_log": lambda vm, vcpu, update: vm.get_dirty_log(0),
    "_get_dirty_log_null": lambda vm, vcpu, update: vm._get_dirty_log_null(0),
    "clear_dirty_log": lambda vm, vcpu, update: vm.clear_dirty_log(0, 0, 0, None),
    "harvest_dirty": lambda vm, vcpu, update: vm.harvest_dirty(),
    "merge_dirty_log": lambda vm, vcpu, update: vm.merge_dirty_log(0, np.zeros(1, np.uint64)),
    "manual_dirty_log_protect": lambda vm, vcpu, update: setattr(vm, "manual_dirty_log_protect", 1),
    "check": lambda vm, vcpu, update: vm.check(),
    "stats": lambda vm, vcpu, update: vm.stats(),
    "transaction": lambda vm, vcpu, update: vm.transaction(),
    "apply": lambda vm, vcpu, update: vm.apply(EMPTY),
    "restore": lambda vm, vcpu, update: vm.restore(EMPTY),
    "_load_into_empty": lambda vm, vcpu, update: vm._load_into_empty(EMPTY, 0),
    "_change_many": lambda vm, vcpu, update: vm._change_many(np.zeros(0, STEP_DTYPE)),
    "_compare": lambda vm, vcpu, update: vm._compare(EMPTY.array, False),
    "VCPU": lambda vm, vcpu, update: VCPU(vm),
    "VCPU.as_id": lambda vm, vcpu, update: setattr(vcpu, "as_id", 0),
    "VCPU.gfn_to_memslot": lambda vm, vcpu, update: vcpu.gfn_to_memslot(0),
    "VCPU.gfn_to_hva": lambda vm, vcpu, update: vcpu.gfn_to_hva(0),
    "VCPU.gpa_to_hva": lambda vm, vcpu, update: vcpu.gpa_to_hva(0),
}
# Methods that succeed on a closed VM.
STILL = {"close", "__exit__", "from_snapshot", "pinned_by"}


@pytest.mark.parametrize("call", AFTER_CLOSE)
def test_call_on_a_closed_vm_raises_closederror(call: str) -> None:
    vm = VM()
    put(vm, 0, 0, 1, flags=LOG)
    vcpu, update = vm.create_vcpu(), vm.begin_update()
    vm.close()
    with pytest.raises(ClosedError, match="closed") as caught:
        AFTER_CLOSE[call](vm, vcpu, update)
    assert caught.value.errno == errno.EBADF
    assert caught.value.rule == "CLOSED"


def test_every_method_is_tried_on_a_closed_vm() -> None:
    methods = {
        name for name, value in vars(VM).items() if callable(value) and not name.startswith("__")
    }
    assert methods - set(AFTER_CLOSE) - STILL == set()


def test_closed_vm_keeps_its_limits_and_has_no_slots() -> None:
    vm = VM(address_spaces=2)
    put(vm, 0, 0, 5)
    vm.close()
    assert vm.closed
    assert (len(vm), vm.nr_memslot_pages, vm.address_spaces, vm.backend) == (0, 0, 2, "tree")
    vm.close()
    with pytest.raises(ClosedError), vm:
        pass


def test_close_runs_no_hooks() -> None:
    heard = []

    class ChangeRecorder(Listener):
        def prepare(self, change: memslots.Change) -> None:
            heard.append(change)

    vm = VM()
    put(vm, 0, 0, 5)
    vm.add_listener(ChangeRecorder())
    vm.close()
    assert heard == []


def test_with_block_closes_the_vm() -> None:
    with VM() as vm:
        assert not vm.closed
        with vm as same:
            assert same is vm
        assert vm.closed
    with pytest.raises(ZeroDivisionError), VM() as vm:
        raise ZeroDivisionError
    assert vm.closed


def test_close_that_would_deadlock_raises_edeadlk(vm: VM) -> None:
    """Inside a read section, an update or a hook, close fails and the VM stays open."""
    put(vm, 0, 0, 1)
    with vm.read(), pytest.raises(ReentrantChangeError):
        vm.close()
    with vm.begin_update(), pytest.raises(ReentrantChangeError):
        vm.close()

    class Closer(Listener):
        def prepare(self, change: memslots.Change) -> None:
            vm.close()

    closer = Closer()
    vm.add_listener(closer)
    with pytest.raises(ReentrantChangeError):
        put(vm, 1, 1, 1)
    vm.remove_listener(closer)
    assert not vm.closed
    assert vm.gfn_to_hva(0) == 0


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_vms_are_not_copied(vm: VM, duplicate: Callable[[VM], object]) -> None:
    with pytest.raises(TypeError, match="snapshot"):
        duplicate(vm)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_parts_of_vms_are_not_copied(vm: VM, duplicate: Callable[[object], object]) -> None:
    put(vm, 0, 0, 1)
    with vm.begin_update() as update:
        for part in (vm.read(), update, update.find(0)):
            with pytest.raises(TypeError):
                duplicate(part)


def test_last_reference_frees_the_vm() -> None:
    """vCPUs, sections and updates keep their VM alive."""
    vm = VM()
    reference = weakref.ref(vm)
    keepers: list[Any] = [vm.create_vcpu(), vm.read(), vm.begin_update()]
    del vm
    while keepers:
        gc.collect()
        assert reference() is not None
        keepers.pop()
    gc.collect()
    assert reference() is None


def test_results_outlive_the_vm() -> None:
    vm = VM()
    put(vm, 0, 0, 100, hva=HVA, flags=LOG)
    vm.mark_page_dirty(1)
    slot, log, rows, snapshot = (
        vm.gfn_to_memslot(0),
        vm.get_dirty_log(0),
        vm.memslots_array(),
        vm.snapshot(),
    )
    hits, hvas = vm.hva_to_gfns(HVA), vm.gfn_to_hva_many(np.arange(3, dtype=np.uint64))
    vm.close()
    del vm
    gc.collect()
    assert slot == hits[0][0] == next(iter(snapshot))
    assert (log.tolist(), rows["npages"].tolist(), hvas[1]) == ([2, 0], [100], HVA + PAGE)


def test_iteration_yields_the_slots_of_all_address_spaces() -> None:
    """The slots are sorted by (as_id, base_gfn), and their number is len()."""
    with VM(address_spaces=3) as vm:
        assert list(vm) == []
        for id, (base, as_id) in enumerate([(70, 2), (10, 0), (30, 0), (5, 2), (20, 0)]):
            put(vm, id, base, 2, as_id=as_id)
        assert list(vm) == [*vm.memslots(0), *vm.memslots(1), *vm.memslots(2)] == sorted(vm)
        assert len(list(vm)) == len(vm) == 5
        assert vm.gfn_to_memslot(5, 2) in vm
        assert memslot(9, 0, 5, 2, 0) not in vm
        slots = iter(vm)
        put(vm, 1, 0, 0)  # the iterator keeps the slots of the time of iter()
        assert len(list(slots)) == 5
    with pytest.raises(ClosedError):
        iter(vm)


def test_iteration_in_a_read_section() -> None:
    with VM() as vm:
        put(vm, 1, 5, 2)
        with vm.read() as same:
            assert [slot.id for slot in same] == [1]


def test_repr_shows_type_and_state() -> None:
    """No repr fails after the VM is closed."""
    vm = VM(address_spaces=2)
    put(vm, 1, 5, 2)
    section, update, vcpu = vm.read(), vm.begin_update(1), vm.create_vcpu()
    whole = "<VM tree: 1 slots, 2 pages, 2 address spaces>"
    assert repr(vcpu) == f"<VCPU in address space 0 of {whole}>"
    assert repr(section) == f"<ReadSection of {whole}: not entered>"
    with section:
        assert repr(section) == f"<ReadSection of {whole}: entered once>"
        with section:
            assert repr(section) == f"<ReadSection of {whole}: entered 2 times>"
    assert repr(update) == f"<Update of address space 1 of {whole}: not running>"
    with update:
        assert repr(update) == f"<Update of address space 1 of {whole}: running>"
    assert repr(vm.snapshot()) == "<Snapshot of address space 0: 1 slots, generation 2>"
    vm.close()
    for part in (section, update, vcpu):
        assert "<VM closed>" in repr(part)


@pytest.mark.parametrize("name", [name for name in dir(VM) if not name.startswith("_")])
def test_everything_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(VM, name))


def test_build_info() -> None:
    info = memslots.build_info()
    assert "compiler" in info
    assert all(isinstance(value, str) for value in info.values())


@needs_tools
@pytest.mark.skipif(not shutil.which("cc"), reason="needs cc")
@pytest.mark.parametrize("sanitizer", ["address", "thread", "none"])
def test_build_info_of_clang_names_the_sanitizer(sanitizer: str) -> None:
    """Clang has __has_feature() instead of the macros __SANITIZE_ADDRESS__ and __SANITIZE_THREAD__ of gcc."""
    source = ROOT / "src" / "_core" / "build_info.c"
    features = [
        f"-DHAS_{name}_sanitizer={int(name == sanitizer)}" for name in ("address", "thread")
    ]
    command = ["cc", "-E", "-D__has_feature(name)=HAS_##name", *features, str(source)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert text.partition('"; sanitizer="')[2].lstrip().startswith(f'"{sanitizer}";')


# ---- many slots -----------------------------------------------------------------------------------


def test_32764_slots_survive_moves_and_deletes() -> None:
    """Creates the slots in shuffled order, then moves and deletes them; all structures stay valid."""
    rng = Random(5)
    ids = list(range(32764))
    rng.shuffle(ids)
    with VM() as vm:
        for id in ids:
            put(vm, id, 4 * id, 2, hva=HVA + 2 * id * PAGE)
        vm.check()
        assert len(vm) == 32764
        with pytest.raises(InvalidRegionError):
            put(vm, 32764, 2**30, 1)
        rng.shuffle(ids)
        for id in ids:
            put(vm, id, 4 * id + 2, 2, hva=HVA + 2 * id * PAGE)
        vm.check()
        probes = np.arange(4 * 32764, dtype=np.uint64)
        hvas = vm.gfn_to_hva_many(probes)
        want = np.where(
            probes % 4 >= 2, HVA + (probes // 4 * 2 + probes % 4 - 2) * PAGE, HVA_ERR_BAD
        )
        assert np.array_equal(hvas, want)
        assert np.array_equal(vm.snapshot().gfn_to_hva_many(probes), want)
        rng.shuffle(ids)
        for n, id in enumerate(ids):
            put(vm, id, 0, 0)
            if n in (1000, 20000):
                vm.check()
        vm.check()
        assert (len(vm), vm.nr_memslot_pages) == (0, 0)


@pytest.mark.slow
def test_a_million_slots() -> None:
    """user_mem_slots is raised; ids and gfns are far apart."""
    n = 1_000_000
    rows = np.zeros(n, MEMSLOT_DTYPE)
    rows["id"] = np.arange(n)
    rows["base_gfn"] = np.random.default_rng(7).permutation(n) * 2
    rows["npages"] = 1
    with VM(user_mem_slots=n) as vm:
        vm.load_memslots(rows)
        vm.check()
        assert np.array_equal(
            vm.gfn_to_slot_id_many(rows["base_gfn"].copy()), rows["id"].astype(np.int32)
        )
        assert (vm.gfn_to_slot_id_many(rows["base_gfn"] + np.uint64(1)) == -1).all()
        put(vm, 5, 0, 0)
        assert len(vm) == n - 1


OUT_OF_MEMORY = """
import resource
import numpy as np
from memslots import VM, MEMSLOT_DTYPE, OutOfMemoryError
vm, size = VM(), (2**31 - 1) * 4096
vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=4096)
vm.set_user_memory_region(1, guest_phys_addr=2**45, memory_size=size)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (128 << 20),) * 2)  # a log of that size has 256 MiB
before = vm.memslots(), vm.generation(), len(vm), vm.stats()["bytes"]
def failed(swaps, **region):
    try:
        vm.set_user_memory_region(**region)
    except OutOfMemoryError as error:
        assert isinstance(error, MemoryError) and error.errno == 12 and error.rule == "NO_MEMORY", error
    else:
        raise SystemExit("there was memory")
    assert (vm.memslots(), vm.generation() - swaps, len(vm), vm.stats()["bytes"]) == before
    vm.check()
failed(0, slot=2, guest_phys_addr=2**50, memory_size=size, flags=1)
failed(0, slot=1, guest_phys_addr=2**45, memory_size=size, flags=1)
failed(2, slot=1, guest_phys_addr=2**50, memory_size=size, flags=1)
rows = np.zeros(2, MEMSLOT_DTYPE)
rows["id"], rows["base_gfn"], rows["npages"], rows["flags"] = [5, 6], [2**35, 2**36], [1, 2**31 - 1], [0, 1]
try:
    vm.load_memslots(rows)
except OutOfMemoryError as error:
    assert error.rule == "NO_MEMORY"
else:
    raise SystemExit("there was memory")
assert vm.memslots() == before[0]
vm.check()
print("nothing was changed")
"""


NO_KEYS = """
import ctypes
from memslots import VM
libc, key, keys = ctypes.CDLL(None), ctypes.c_uint(), []
while not libc.pthread_key_create(ctypes.byref(key), None):
    keys.append(key.value)
try:
    VM()
except OSError as error:
    print(error.errno, error.strerror)
for _ in range(2):
    libc.pthread_key_delete(keys.pop())
with VM() as vm:
    print(len(vm))
"""


def test_no_pthread_key_left_raises_eagain() -> None:
    """A VM needs two keys.  Without them VM() raises EAGAIN; after two keys are deleted it succeeds."""
    done = subprocess.run(
        [sys.executable, "-c", NO_KEYS], capture_output=True, text=True, timeout=60, check=False
    )
    refused, _, made = done.stdout.partition("\n")
    assert refused.startswith(f"{errno.EAGAIN} this process has no pthread key left"), done.stderr
    assert (made.strip(), done.stderr) == ("0", "")


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's shadow does not fit a limited address space")
def test_out_of_memory_raises_memoryerror_and_changes_nothing() -> None:
    """ENOMEM becomes MemoryError; a failed MOVE has swapped twice."""
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("nothing was changed", "")
