# SPDX-License-Identifier: MIT
"""The lookups of a Snapshot: the answers and errors of a VM with the same slots, built once, by any thread."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import ModelVM
from scene import PAGE, memslot, put, runs

from memslots import (
    HVA_ERR_BAD,
    MEMSLOT_DTYPE,
    VM,
    Change,
    GfnNotMappedError,
    InvalidRegionError,
    Listener,
    MemFlag,
    MemorySlot,
    ReadOnlySlotError,
    Snapshot,
)

HOST = 0x7F0000000000
GFNS = 40


def as_tuple(slot: Any) -> tuple[int, ...]:
    return (slot.base_gfn, slot.npages, slot.userspace_addr, slot.id, slot.as_id, int(slot.flags))


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """Up to 8 slots of one address space.  Some share host memory."""
    gfn, rows = 0, []
    for id in draw(st.lists(st.integers(0, 20), unique=True, max_size=8)):
        gfn += draw(st.integers(0, 2))
        npages = draw(st.integers(1, 3))
        hva = HOST + draw(st.integers(0, 4)) * PAGE
        rows.append((gfn, npages, hva, id, 0, draw(st.integers(0, 3))))
        gfn += npages
    return np.array(rows, dtype=MEMSLOT_DTYPE)


def outcome(call: Callable[[], Any]) -> Any:
    """The answer, or the exception with its text."""
    try:
        answer = call()
    except Exception as error:
        return type(error), str(error), getattr(error, "errno", None)
    if isinstance(answer, np.ndarray):
        return answer.tolist()
    if isinstance(answer, tuple) and any(isinstance(part, np.ndarray) for part in answer):
        return [part.tolist() for part in answer]
    return answer


def lookups(of: Any, as_id: int | None) -> list[Any]:
    """Every read-only lookup.  A VM gets the address space, a Snapshot has one."""
    space: dict[str, int] = {} if as_id is None else {"as_id": as_id}
    gfns = np.arange(GFNS, dtype=np.uint64)
    gpas = gfns * PAGE + 5
    calls: list[Callable[[], Any]] = [
        lambda: of.memslots(**space),
        lambda: of.memslots_array(**space),
        lambda: of.memslots_in_gfn_range(3, 17, **space),
        lambda: of.memslots_in_gfn_range(9, 9, **space),
        lambda: of.memslots_in_hva_range(HOST, HOST + 2 * PAGE, **space),
        lambda: of.memslots_in_gfn_range_many(gfns, gfns + 4, **space),
        lambda: of.hva_to_gfns(HOST + PAGE + 3),
        lambda: of.host_ranges(PAGE, 9 * PAGE, **space),
        lambda: of.host_ranges(PAGE, 9 * PAGE, write=True, **space),
        lambda: of.host_ranges_many(gpas, 2 * PAGE, **space),
        lambda: of.host_ranges_many(gpas, gfns, write=True, **space),
        lambda: of.gfn_to_slot_id_many(gfns, **space),
        lambda: of.gfn_to_hva_many(list(range(GFNS)) * 3, **space),
        lambda: of.nr_memslot_pages,
        lambda: len(of),
        lambda: of.gfn_to_hva(2**64 - 1, **space),
        lambda: of.gfn_to_hva(-1, **space),
        lambda: of.gfn_to_hva("0", **space),
        lambda: of.gfn_to_hva_many([0.5], **space),
        lambda: of.gfn_to_hva_many(gfns, np.zeros(3, np.uint64), **space),
    ]
    for write in (True, False):
        calls += [
            lambda write=write: of.gfn_to_hva_many(gfns, write=write, **space),
            lambda write=write: of.gpa_to_hva_many(gpas, write=write, **space),
        ]
    for gfn in range(GFNS):
        calls += [
            lambda gfn=gfn: of.gfn_to_memslot(gfn, **space),
            lambda gfn=gfn: of.gfn_to_hva(gfn, **space),
            lambda gfn=gfn: of.gpa_to_hva(gfn * PAGE + 7, **space),
            lambda gfn=gfn: of.gpa_to_hva(gfn * PAGE + 7, write=False, **space),
            lambda gfn=gfn: of.gfn_to_hva_prot(gfn, **space),
            lambda gfn=gfn: of.is_visible_gfn(gfn, **space),
        ]
    calls += [lambda id=id: of.id_to_memslot(id, **space) for id in range(22)]
    return [outcome(call) for call in calls]


@given(tables(), st.sampled_from((0, 1, 5)))
@settings(max_examples=60)
def test_answers_and_errors_are_those_of_a_vm(table: np.ndarray, as_id: int) -> None:
    table["as_id"] = as_id
    with VM(address_spaces=as_id + 1) as vm:
        vm.load_memslots(table, as_id)
        snapshot = vm.snapshot(as_id)
        wanted = lookups(vm, as_id)
    assert lookups(snapshot, None) == wanted
    assert lookups(pickle.loads(pickle.dumps(snapshot)), None) == wanted


@given(tables(), st.data())
@settings(max_examples=60)
def test_invalid_slots_are_shown_and_not_translated(table: np.ndarray, data: st.DataObject) -> None:
    """Against the model, whose slots are set to INVALID too."""
    which = data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table)))
    model = ModelVM()
    model.load_memslots(table)
    table["flags"][which] |= int(MemFlag.INVALID)
    snapshot = Snapshot(table, 0, 0)
    invalid = {int(id) for id in table["id"][which]}
    for gfn in range(GFNS):
        found, wanted = snapshot.gfn_to_memslot(gfn), model.gfn_to_memslot(gfn)
        assert (found is None) == (wanted is None)
        if found is None or wanted is None:
            continue
        assert (found.id, found.is_invalid) == (wanted.id, wanted.id in invalid)
        assert snapshot.id_to_memslot(wanted.id) == found
        assert snapshot.is_visible_gfn(gfn) == (wanted.id not in invalid)
    hvas = model.gfn_to_hva_many(np.arange(GFNS, dtype=np.uint64), write=False)
    for gfn, slot in ((g, model.gfn_to_memslot(g)) for g in range(GFNS)):
        if slot is not None and slot.id in invalid:
            hvas[gfn] = HVA_ERR_BAD
    for gfns in (np.arange(GFNS), np.tile(np.arange(GFNS), 4)):
        found_hvas = snapshot.gfn_to_hva_many(gfns, write=False)
        assert found_hvas.tolist() == np.resize(hvas, len(gfns)).tolist()
    assert [s.id for s in snapshot.memslots_in_gfn_range(0, GFNS)] == [
        s.id for s in model.memslots_in_gfn_range(0, GFNS)
    ]
    assert sorted(s.id for s, _ in snapshot.hva_to_gfns(HOST + PAGE)) == sorted(
        s.id for s, _ in model.hva_to_gfns(HOST + PAGE)
    )


def test_ids_and_places_that_only_other_vms_have() -> None:
    """The index has no limits but those of every VM."""
    rows = np.array(
        [
            (2**52 - 2, 1, 0, 2**31 - 1, 63, 0),
            (0, 1, HVA_ERR_BAD - 2 * PAGE, 2**31 - 16, 63, 2),
        ],
        dtype=MEMSLOT_DTYPE,
    )
    snapshot = Snapshot(rows, 63, 0)
    assert snapshot.gfn_to_hva(2**52 - 2) == 0
    assert snapshot.gfn_to_hva_prot(0) == (HVA_ERR_BAD - 2 * PAGE, False)
    assert snapshot.id_to_memslot(2**31 - 1) == list(snapshot)[1]
    with pytest.raises(ReadOnlySlotError, match="gfn 0x0 of address space 63"):
        snapshot.gfn_to_hva(0)
    with pytest.raises(GfnNotMappedError, match="no slot of address space 63"):
        snapshot.gfn_to_hva(1)
    with pytest.raises(InvalidRegionError, match="address space 64 is not below 64"):
        Snapshot(rows[:0], 64, 0)


def test_empty_and_blank_snapshots_answer() -> None:
    for snapshot in (VM().snapshot(), Snapshot.__new__(Snapshot)):
        assert snapshot.gfn_to_memslot(0) is None
        assert snapshot.gfn_to_hva_many([1, 2]).tolist() == [HVA_ERR_BAD] * 2
        assert (snapshot.memslots(), snapshot.nr_memslot_pages) == ([], 0)


def test_snapshot_answers_after_the_vm_has_changed_and_closed() -> None:
    vm = VM()
    for id in range(50):
        put(vm, id, id * 4, 2)
    snapshot = vm.snapshot()
    vm.delete(7)
    vm.move(8, 0x100000)
    assert snapshot.gfn_to_memslot(28) == memslot(7, 0, 28, 2, 7 * 2**30)
    vm.close()
    assert snapshot.gfn_to_hva_many(np.arange(0, 200, 4)).tolist() == [i * 2**30 for i in range(50)]


def test_lookups_in_hooks_and_read_sections() -> None:
    """The index is built inside of a hook or a section of the VM, which refuse changes of that VM."""
    seen: list[MemorySlot | None] = []

    class Looks(Listener):
        def prepare(self, change: Change) -> None:
            seen.append(vm.snapshot().gfn_to_memslot(4))

    with VM() as vm:
        put(vm, 1, 4, 2)
        vm.add_listener(Looks())
        vm.delete(1)
        put(vm, 2, 4, 1)
        with vm.read():
            assert vm.snapshot().gfn_to_hva_many([4] * 200).tolist() == [2 * 2**30] * 200
    assert seen[0] is not None
    assert seen[0].is_invalid
    assert seen[1] is None


@pytest.fixture
def large() -> Snapshot:
    rows = np.zeros(20_000, MEMSLOT_DTYPE)
    rows["id"] = np.arange(len(rows))
    rows["base_gfn"], rows["npages"] = rows["id"] * np.uint64(4), 2
    rows["userspace_addr"] = HOST + rows["id"] * np.uint64(2 * PAGE)
    return Snapshot(rows, 0, 0)


def test_threads_share_one_build(large: Snapshot) -> None:
    start, answers = threading.Barrier(8), []

    def look_up() -> None:
        start.wait()
        answers.append(large.gfn_to_hva(4 * 777))
        answers.append(int(large.gfn_to_hva_many(np.full(300, 4 * 777))[299]))

    before = memory_of_vms()
    threads = [threading.Thread(target=look_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [HOST + 777 * 2 * PAGE] * 16
    assert memory_of_vms() == before + 1


def memory_of_vms() -> int:
    """The number of VMs that are alive, those of indexes included."""
    gc.collect()
    return sum(type(o) is VM for o in gc.get_objects())


def test_index_ends_with_its_snapshot(large: Snapshot) -> None:
    before = memory_of_vms()
    other = Snapshot(large.array, 0, 0)
    other.gfn_to_hva(0)
    assert memory_of_vms() == before + 1
    del other
    assert memory_of_vms() == before


def test_snapshot_in_a_cycle_is_collected() -> None:
    """A finalizer that uses the snapshot can run while the collector breaks the cycle."""
    answers: list[int] = []

    class Holder:
        def __init__(self) -> None:
            self.me = self
            self.snapshot = Snapshot(np.array([(1, 1, HOST, 1, 0, 0)], MEMSLOT_DTYPE), 0, 0)

        def __del__(self) -> None:
            answers.append(self.snapshot.gfn_to_hva(1))

    Holder()
    gc.collect()
    assert answers == [HOST]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork()")
def test_forked_child_builds_an_index_although_a_thread_was_building_one() -> None:
    """The lock of the build is held by a thread that the child does not have."""
    runs("""
        rows = np.zeros(200_000, MEMSLOT_DTYPE)
        rows["id"] = np.arange(len(rows))
        rows["base_gfn"], rows["npages"] = rows["id"] * np.uint64(4), 2
        rows["userspace_addr"] = rows["id"] * np.uint64(2 * PAGE)
        for _ in range(4):
            snapshot = Snapshot(rows, 0, 0)
            thread = threading.Thread(target=snapshot.gfn_to_hva, args=(0,))
            thread.start()
            pid = os.fork()
            if not pid:
                os._exit(0 if snapshot.gfn_to_hva(8) == 4 * PAGE else 1)
            thread.join()
            assert os.waitpid(pid, 0)[1] == 0
        print("well")
    """)


def test_pickles_keep_their_form() -> None:
    """Older versions can read new pickles and vice versa: a pickle has the arguments of the constructor alone."""
    snapshot = Snapshot(np.array([(1, 1, HOST, 1, 0, 0)], MEMSLOT_DTYPE), 0, 7)
    snapshot.gfn_to_hva(1)
    cls, args = snapshot.__reduce__()
    assert cls is Snapshot
    assert (args[1], args[2]) == (0, 7)
    assert args[0].dtype == MEMSLOT_DTYPE
    assert args[0].tobytes() == snapshot.array.tobytes()
