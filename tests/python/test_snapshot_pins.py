# SPDX-License-Identifier: MIT
"""A Snapshot of a VM keeps the buffers of its slots alive and reads them, until it is closed."""

from __future__ import annotations

import gc
import pickle
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scene import put

import memslots
from memslots import VM, GfnNotMappedError, GuestAccessError, Mapping, Memory, PinnedBy, Snapshot

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


@pytest.mark.parametrize("backend", memslots.backends())
def test_pinned_by_names_the_slots_that_come_from_a_snapshot(memory: Memory, backend: str) -> None:
    """from_snapshot() and restore() give a VM the buffers of another one."""
    vm = mapped(memory)
    with vm.snapshot() as snapshot:
        copy, other = VM.from_snapshot(snapshot, backend=backend), VM(backend=backend)
        other.restore(snapshot)
    for one in copy, other:
        assert one.pinned_by(memory) == PinnedBy([one.id_to_memslot(3)], 0)
        with memoryview(memory)[4096:4097] as part, one.snapshot():
            assert one.pinned_by(part) == PinnedBy([one.id_to_memslot(3)], 0, 1)
    vm.delete(3)
    assert vm.pinned_by(memory) == PinnedBy([], 0, others=1)
    copy.delete(3)
    assert not copy.pinned_by(memory)
    assert vm.pinned_by(memory).others == 1
    other.close()
    assert not vm.pinned_by(memory)
    memory.close()


def test_pinned_by_counts_the_buffers_of_a_transaction(memory: Memory) -> None:
    vm = VM()
    with vm.transaction() as t:
        for gpa in 0, SIZE:
            t.map_buffer(gpa, memory)
        assert vm.pinned_by(memory) == PinnedBy([], 0, others=2)
        with t.preview():
            assert vm.pinned_by(memory) == PinnedBy([], 0, 1)
    assert vm.pinned_by(memory) == PinnedBy(vm.memslots(), 0)


def test_pinned_by_of_a_closed_vm_counts_views_and_snapshots(memory: Memory) -> None:
    vm = VM()
    mapping = vm.map_buffer(GPA, memory)
    view, snapshot = mapping.view(), vm.snapshot()
    vm.close()
    assert vm.pinned_by(memory) == PinnedBy([], 1, 1)
    view.release()
    with VM.from_snapshot(snapshot):
        snapshot.close()
        assert vm.pinned_by(memory) == PinnedBy([], 0, others=1)
    assert not vm.pinned_by(memory)
    memory.close()


class Holders:
    """VMs and one buffer, which random changes give from one VM to another."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.memory = memslots.alloc(SIZE)
        self.open, self.closed = [VM() for _ in range(3)], list[VM]()
        self.mappings: list[Mapping] = []
        self.kept: list[Any] = []  # views and snapshots

    def vm(self) -> VM:
        return self.random.choice(self.open)

    def map(self) -> None:
        gpa = len(self.mappings) * SIZE
        self.mappings.append(self.vm().map_buffer(gpa, self.memory))

    def view(self) -> None:
        self.kept += [mapping.view() for mapping in self.mappings[-3:] if mapping.mapped]

    def snapshot(self) -> None:
        self.kept.append(self.vm().snapshot())

    def restore(self) -> None:
        self.vm().restore(self.vm().snapshot())

    def renew(self) -> None:
        """A closed VM still knows its views and snapshots, and the buffers that other VMs have of it."""
        new = VM.from_snapshot(self.vm().snapshot())
        old = self.open.pop(0)
        self.open.append(new)
        self.closed.append(old)
        old.close()

    def delete(self) -> None:
        vm = self.vm()
        for slot in vm.memslots()[:2]:
            vm.delete(slot.id)

    def drop(self) -> None:
        if self.kept:
            self.kept.pop(self.random.randrange(len(self.kept)))

    def step(self) -> None:
        adds = (self.map, self.view, self.snapshot, self.restore, self.renew)
        self.random.choice(adds + 4 * (self.delete, self.drop))()

    def pinned(self) -> bool:
        return any(vm.pinned_by(self.memory) for vm in self.open + self.closed)


@pytest.mark.parametrize("seed", range(4))
def test_buffer_can_be_closed_exactly_if_no_vm_pins_it(seed: int) -> None:
    holders, closed = Holders(seed), 0
    for _ in range(300):
        holders.step()
        pinned = holders.pinned()
        try:
            holders.memory.close()
        except BufferError:
            assert pinned
            continue
        assert not pinned
        holders.memory = memslots.alloc(SIZE)
        closed += 1
    assert 20 < closed < 280


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
