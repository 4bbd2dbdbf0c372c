# SPDX-License-Identifier: MIT
"""A Snapshot of a VM keeps the buffers of its slots alive and reads them, until it is closed."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scene import put

import memslots
from memslots import VM, GfnNotMappedError, GuestAccessError, Memory, PinnedBy, Snapshot

GPA = 0x10000
SIZE = 0x4000


@pytest.fixture
def memory() -> Memory:
    memory = memslots.alloc(SIZE)
    memory[:8] = (0x1122334455667788).to_bytes(8, "little")
    return memory


def mapped(memory: Memory) -> VM:
    vm = VM()
    vm.map_buffer(GPA, memory, slot=3)
    put(vm, 4, 100, 1)
    return vm


def reads(snapshot: Snapshot) -> list[Callable[[], Any]]:
    return [
        lambda: snapshot.read_guest(GPA, 8),
        lambda: snapshot.readinto_guest(GPA, bytearray(8)),
        lambda: snapshot.read_u8(GPA),
        lambda: snapshot.read_u16(GPA),
        lambda: snapshot.read_u32(GPA),
        lambda: snapshot.read_u64(GPA),
        lambda: snapshot.read_u64_many([GPA] * 3),
    ]


def test_memory_is_read_after_the_slot_and_the_vm_have_ended(memory: Memory) -> None:
    """These are the bytes of the memory now, not those at the time of the snapshot."""
    vm = mapped(memory)
    snapshot = vm.snapshot()
    assert snapshot.pinned
    vm.delete(3)
    memory[8] = 0x99
    assert snapshot.read_guest(GPA, 9) == memory[:9]
    out = bytearray(SIZE)
    snapshot.readinto_guest(GPA, out)
    assert out == memory[:]
    assert (snapshot.read_u8(GPA), snapshot.read_u16(GPA)) == (0x88, 0x7788)
    assert (snapshot.read_u32(GPA), snapshot.read_u64(GPA)) == (0x55667788, 0x1122334455667788)
    assert snapshot.read_u64_many([GPA, GPA]).tolist() == [0x1122334455667788] * 2
    vm.close()
    assert snapshot.read_u8(GPA + 8) == 0x99
    for gpa in (0, GPA + SIZE):
        with pytest.raises(GfnNotMappedError):
            snapshot.read_u8(gpa)


def test_pinned_by_names_the_snapshot_that_keeps_a_buffer(memory: Memory) -> None:
    vm = mapped(memory)
    first, second = vm.snapshot(), vm.snapshot()
    assert vm.pinned_by(memory) == PinnedBy([vm.id_to_memslot(3)], 0, 2)
    vm.delete(3)
    assert vm.pinned_by(memory) == PinnedBy([], 0, 2)
    assert vm.pinned_by(memory)
    assert vm.pinned_by(memslots.alloc(4096)) == PinnedBy([], 0, 0)
    with pytest.raises(BufferError, match="close the snapshots that"):
        memory.close()
    with first as same:
        assert same is first
    first.close()
    del second
    assert not vm.pinned_by(memory)
    memory.close()


def test_snapshots_leave_the_list_of_their_vm_in_any_order(memory: Memory) -> None:
    vm = mapped(memory)
    snapshots = [vm.snapshot() for _ in range(6)]
    for i, left in ((2, 5), (0, 4), (3, 3), (2, 2)):
        snapshots.pop(i).close()
        assert vm.pinned_by(memory).snapshots == left
    vm.close()
    del vm
    gc.collect()
    with pytest.raises(BufferError):
        memory.close()
    snapshots.clear()
    memory.close()


def test_closed_snapshot_still_looks_up_but_does_not_read(memory: Memory) -> None:
    vm = mapped(memory)
    snapshot = vm.snapshot()
    hva = snapshot.gfn_to_hva(GPA >> 12)
    snapshot.close()
    assert not snapshot.pinned
    assert snapshot.gfn_to_hva(GPA >> 12) == hva == memory.address
    for read in reads(snapshot):
        with pytest.raises(GuestAccessError, match=r"slot 3 .* only a snapshot of VM.snapshot\(\)"):
            read()


def test_pickled_loaded_and_made_snapshots_pin_nothing(memory: Memory, tmp_path: Any) -> None:
    vm = mapped(memory)
    snapshot = vm.snapshot()
    snapshot.save(tmp_path / "one")
    others = [
        pickle.loads(pickle.dumps(snapshot)),
        Snapshot.load(tmp_path / "one"),
        Snapshot(snapshot.array, 0, 0),
    ]
    snapshot.close()
    vm.delete(3)
    memory.close()
    for other in others:
        assert other == snapshot
        assert not other.pinned
        for read in reads(other):
            with pytest.raises(GuestAccessError, match="which has no memory"):
                read()


def test_snapshot_without_buffers_pins_nothing(memory: Memory) -> None:
    """A raw slot is not read, also if its VM dereferences raw addresses: its memory may go away at any time."""
    with VM(dereference_raw_addresses=True) as vm:
        put(vm, 1, 16, 4, hva=memory.address)
        assert vm.read_u8(GPA) == 0x88
        snapshot = vm.snapshot()
    assert not snapshot.pinned
    with pytest.raises(GuestAccessError, match="which has no memory"):
        snapshot.read_u8(GPA)


def test_buffer_is_released_with_the_last_snapshot() -> None:
    """Whether the index was built or not, and whether close() or the end of the snapshot drops it."""

    class Buffer(Memory):
        pass

    for builds in (False, True):
        for closes in (False, True):
            buffer = Buffer(SIZE)
            alive = weakref.ref(buffer)
            vm = VM()
            vm.map_buffer(GPA, buffer)
            snapshot = vm.snapshot()
            if builds:
                assert snapshot.read_u64(GPA) == 0
            del buffer
            vm.close()
            assert alive() is not None
            if closes:
                snapshot.close()
            else:
                del snapshot
            assert alive() is None


def test_index_of_a_pinned_snapshot_is_read_by_many_threads_while_it_closes(memory: Memory) -> None:
    """A read gets the bytes, or the error of a closed snapshot."""
    vm = mapped(memory)
    for _ in range(30):
        snapshot, outcomes = vm.snapshot(), []
        start = threading.Barrier(4)

        def read(
            snapshot: Snapshot = snapshot, start: Any = start, outcomes: Any = outcomes
        ) -> None:
            start.wait()
            for _ in range(20):
                try:
                    outcomes.append(snapshot.read_u64(GPA))
                except GuestAccessError:
                    outcomes.append(None)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        start.wait()
        snapshot.close()
        for thread in threads:
            thread.join()
        assert set(outcomes) <= {0x1122334455667788, None}
        assert vm.pinned_by(memory).snapshots == 0


def test_snapshot_of_many_buffers_in_two_address_spaces() -> None:
    with VM(address_spaces=2) as vm:
        memories = [memslots.alloc(0x1000) for _ in range(40)]
        for i, memory in enumerate(memories):
            memory[0] = i
            vm.map_buffer(i << 16, memory, as_id=i % 2)
        snapshots = [vm.snapshot(as_id) for as_id in range(2)]
        assert vm.pinned_by(memories[5]).snapshots == 1
    gpas = np.arange(1, 40, 2, dtype=np.uint64) << np.uint64(16)
    assert snapshots[1].read_u64_many(gpas).tolist() == list(range(1, 40, 2))
    assert [snapshots[0].read_u8(i << 16) for i in range(0, 40, 2)] == list(range(0, 40, 2))
    with pytest.raises(GfnNotMappedError):
        snapshots[0].read_u8(1 << 16)
