# SPDX-License-Identifier: MIT
"""VM.apply(), VM.restore() and VM.from_snapshot(): results, slots that stay, buffers, changes of other threads."""

from __future__ import annotations

import errno
import pickle
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from plan_model import rows_of, runs_of
from scene import PAGE, memslot, put
from test_plan import random_pair

import memslots
from memslots import (
    MEMSLOT_DTYPE,
    VM,
    ClosedError,
    GuestAccessError,
    InvalidRegionError,
    Listener,
    MemslotsError,
    Snapshot,
    backends,
)

LOG, READONLY = 1, 2


@pytest.fixture
def vm() -> Iterator[VM]:
    """Slots 0 to 3 have no buffer; 0 and 1 are neighbours that could be one slot.  Slot 4 has a buffer, and logs."""
    with VM() as vm:
        put(vm, 0, 0, 16, LOG, hva=2**30)
        put(vm, 1, 16, 16, LOG, hva=2**30 + 16 * PAGE)
        put(vm, 2, 64, 16)
        put(vm, 3, 96, 16, READONLY)
        vm.map_buffer(2**20, memslots.alloc(16 * PAGE), slot=4, log_dirty=True)
        vm.mark_page_dirty_many(np.array([3, 20, 2**20 // PAGE + 9], np.uint64))
        yield vm


def dirty(vm: VM) -> list[int]:
    ranges = vm.harvest_dirty(clear=False).tolist()
    return [gfn for start, n in ranges for gfn in range(start, start + n)]


BUFFER_GFN = 2**20 // PAGE


# ---- apply -------------------------------------------------------------------------------------------------------


def test_joined_slots_keep_their_dirty_bits(vm: VM) -> None:
    plan = vm.apply(vm.snapshot())
    assert vm.id_to_memslot(0) == memslot(0, 0, 0, 32, 2**30, LOG)
    assert vm.id_to_memslot(1) is None
    assert dirty(vm) == [3, 20, BUFFER_GFN + 9]
    assert len(plan.final) == len(vm) == 4
    vm.check()


def test_parts_of_a_slot_keep_dirty_bits_and_buffer(vm: VM) -> None:
    """A hole is cut into slot 0 and into the buffer; the part of slot 3 ends."""
    vm.write_guest(2**20 + 9 * PAGE, b"kept")
    base = vm.id_to_memslot(4).userspace_addr
    runs = [
        (0, 8, 2**30, LOG),
        (18, 14, 2**30 + 18 * PAGE, LOG),
        (BUFFER_GFN + 1, 2, base + PAGE, 0),
        (BUFFER_GFN + 8, 4, base + 8 * PAGE, LOG),
    ]
    swaps = vm.stats()["swaps"]
    vm.apply(runs)
    assert vm.stats()["swaps"] == swaps + 1
    assert [(s.base_gfn, s.npages, s.userspace_addr, s.flags) for s in vm] == runs
    assert dirty(vm) == [3, 20, BUFFER_GFN + 9]
    assert vm.read_guest(2**20 + 9 * PAGE, 4) == b"kept"
    vm.check()


@pytest.mark.parametrize("backend", backends())
def test_random_layouts_are_reached_in_one_swap(backend: str) -> None:
    rng = random.Random(3)
    with VM(backend=backend) as vm:
        for turn in range(150):
            wanted = rng.choice(random_pair(rng, 9))
            swaps, options = vm.stats()["swaps"], {"coalesce": rng.random() < 0.5}
            if rng.random() < 0.3:
                plan = vm.apply(rows_of(wanted), coalesce=False, keep_ids=False)
                assert (
                    plan.final.tolist()
                    == rows_of(wanted)[np.argsort(rows_of(wanted)["base_gfn"])].tolist()
                )
            else:
                plan = vm.apply(runs_of(wanted), **options)
            np.testing.assert_array_equal(vm.memslots_array(), plan.final)
            frames = {
                (g, hva)
                for row in wanted.values()
                for g, hva in pages(row.base, row.npages, row.hva)
            }
            assert {
                (g, h) for s in vm for g, h in pages(s.base_gfn, s.npages, s.userspace_addr)
            } == frames
            assert vm.stats()["swaps"] - swaps <= 1
            swaps = vm.stats()["swaps"]
            vm.apply(vm.memslots_array(), coalesce=False)
            assert vm.stats()["swaps"] == swaps, turn
            vm.check()


def pages(base: int, npages: int, hva: int) -> list[tuple[int, int]]:
    return [(base + k, hva + k * PAGE) for k in range(npages)]


def test_apply_refuses_and_changes_nothing(vm: VM) -> None:
    before = vm.snapshot()
    with pytest.raises(InvalidRegionError, match="needs 2 slots, and max_slots is 1"):
        vm.apply([(0, 1, 0, 0), (9, 1, 0, 0)], max_slots=1)
    with pytest.raises(
        InvalidRegionError, match=r"step \d+ \(create\): slot 0 .* ends beyond"
    ) as caught:
        vm.apply([(2**40, 1, 0, 0)])
    assert caught.value.rule == "GPA_LIMIT"
    grown = vm.memslots_array()
    grown["npages"][-1] = 17
    with pytest.raises(MemslotsError) as caught:
        vm.apply(grown)
    assert (caught.value.rule, caught.value.slot) == ("BACKING_RANGE", 4)
    with pytest.raises(MemslotsError) as caught:
        vm.apply([], as_id=1)
    assert caught.value.rule == "AS_ID"
    assert vm.snapshot() == before
    assert vm.snapshot().generation == before.generation


class Interfering(VM):
    """Another thread changes the address space after each of the first `left` comparisons."""

    left = 0

    def _compare(self, *arguments: Any) -> Any:
        found = super()._compare(*arguments)
        if self.left:
            self.left -= 1
            change = threading.Thread(target=put, args=(self, 9, 1000 + self.left, 1))
            if self.id_to_memslot(9) is not None:
                change = threading.Thread(target=self.delete, args=(9,))
            change.start()
            change.join()
        return found


@pytest.mark.parametrize("call", ["apply", "restore"])
def test_a_change_of_another_thread_leads_to_a_new_comparison(call: str) -> None:
    with Interfering() as vm:
        put(vm, 0, 0, 16)
        wanted = Snapshot(vm.memslots_array(), 0, 0)
        vm.move(0, 2**20)
        vm.left = 7
        getattr(vm, call)(wanted)
        assert vm.snapshot() == wanted
        vm.move(0, 2**20)
        vm.left = 1000
        with pytest.raises(MemslotsError, match="during each of 100 attempts") as caught:
            getattr(vm, call)(wanted)
        assert caught.value.errno == errno.EAGAIN
        assert vm.left == 900


def test_readers_see_one_layout_or_the_other() -> None:
    """apply() and restore() change between two layouts with other ids, joined and cut slots."""
    rng = random.Random(8)
    with VM() as vm:
        layouts = []
        for _ in range(2):
            vm.apply([(k * 8, rng.randint(1, 8), 2**30 + k * 2**20, 0) for k in range(40)])
            layouts.append(vm.snapshot())
        gfns = np.arange(320, dtype=np.uint64)
        answers = [s.gfn_to_hva_many(gfns).tobytes() for s in layouts]
        wrong: list[int] = []
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                with vm.read():
                    if vm.gfn_to_hva_many(gfns).tobytes() not in answers:
                        wrong.append(1)

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(60):
                vm.restore(layouts[turn % 2])
                assert vm.snapshot() == layouts[turn % 2]
                vm.apply(layouts[(turn + 1) % 2])
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not wrong


# ---- restore -----------------------------------------------------------------------------------------------------


def test_restore_gives_back_slots_ids_and_buffers_in_one_swap(vm: VM) -> None:
    saved = vm.snapshot()
    vm.write_guest(2**20, b"bytes")
    vm.delete(0)
    vm.move(1, 2**21)
    vm.set_flags(2, set=LOG)
    vm.delete(4)
    put(vm, 7, 2**15, 1)
    swaps = vm.stats()["swaps"]
    plan = vm.restore(saved)
    assert vm.stats()["swaps"] == swaps + 1
    assert vm.snapshot() == saved
    assert vm.read_guest(2**20, 5) == b"bytes"
    assert len(plan.final) == 5
    assert dirty(vm) == [20]  # slot 1 has stayed; 0 and 4 are new slots
    assert not vm.restore(saved)
    assert vm.stats()["swaps"] == swaps + 1
    vm.check()


def test_restore_replaces_another_buffer_at_the_same_address(vm: VM) -> None:
    """The rows are equal, and the memory would not be: the old pin would end with the snapshot."""
    buffer = memslots.alloc(PAGE)
    vm.map_buffer(2**30, buffer, slot=6)
    saved = vm.snapshot()
    vm.delete(6)
    second = vm.map_buffer(2**30, buffer, slot=6)
    vm.restore(saved)
    assert vm.snapshot() == saved
    assert not second.mapped
    vm.delete(6)
    put(vm, 6, 2**30 // PAGE, 1, hva=saved.id_to_memslot(6).userspace_addr)
    with pytest.raises(GuestAccessError):
        vm.read_guest(2**30, 1)
    vm.restore(saved)
    assert vm.read_guest(2**30, 1) == b"\0"
    saved.close()
    vm.delete(6)
    buffer.close()


def test_restore_into_an_empty_vm_is_a_load(vm: VM) -> None:
    saved = vm.snapshot()
    for slot in vm.memslots():
        vm.delete(slot.id)
    creates = vm.stats()["creates"]
    vm.restore(saved)
    assert vm.snapshot() == saved
    assert vm.stats()["creates"] == creates + 5
    assert vm.read_guest(2**20, 1) == b"\0"
    vm.check()


def test_restore_of_a_pickle_keeps_buffers_that_are_there(vm: VM) -> None:
    saved = pickle.loads(pickle.dumps(vm.snapshot()))
    vm.move(4, 2**22)
    vm.delete(2)
    vm.restore(saved)
    assert vm.snapshot() == saved
    assert vm.read_guest(2**20, 1) == b"\0"
    vm.delete(4)
    vm.restore(saved)
    assert vm.snapshot() == saved
    with pytest.raises(GuestAccessError, match="map_buffer"):
        vm.read_guest(2**20, 1)


def invalid_snapshot() -> Snapshot:
    rows = np.zeros(1, MEMSLOT_DTYPE)
    rows["npages"], rows["flags"], rows["id"] = 1, 1 << 16, 5
    return Snapshot(rows, 0, 0)


def test_restore_refuses(vm: VM) -> None:
    before = vm.snapshot()
    with pytest.raises(InvalidRegionError, match="slot 5 of the snapshot is INVALID"):
        vm.restore(invalid_snapshot())
    with pytest.raises(InvalidRegionError, match="slot 5 of the snapshot is INVALID"):
        VM.from_snapshot(invalid_snapshot())
    for call in (vm.restore, VM.from_snapshot):
        with pytest.raises(TypeError, match="snapshot must be a Snapshot"):
            call(vm.memslots_array())
    with pytest.raises(MemslotsError) as caught:
        vm.restore(Snapshot(np.zeros(0, MEMSLOT_DTYPE), 3, 0))
    assert caught.value.rule == "AS_ID"
    assert vm.snapshot() == before

    class Refuser(Listener):
        def prepare(self, change: memslots.Change) -> None:
            raise KeyError

    listener = Refuser()
    vm.add_listener(listener)
    saved, empty = vm.snapshot(), Snapshot(np.zeros(0, MEMSLOT_DTYPE), 0, 0)
    with pytest.raises(KeyError):
        vm.restore(empty)
    assert vm.snapshot() == saved
    vm.remove_listener(listener)
    vm.close()
    with pytest.raises(ClosedError):
        vm.restore(saved)


def test_vm_from_snapshot_has_its_slots_and_buffers(vm: VM) -> None:
    vm.write_guest(2**20, b"shared")
    saved = vm.snapshot()
    with VM.from_snapshot(saved) as copy:
        assert copy.snapshot() == saved
        assert copy.read_guest(2**20, 6) == b"shared"
        copy.write_guest(2**20, b"S")
        assert vm.read_guest(2**20, 6) == b"Shared"
        assert (copy.user_mem_slots, copy.gpa_bits) == (32764, 52)
        copy.check()
    with VM.from_snapshot(pickle.loads(pickle.dumps(saved)), backend="array") as copy:
        assert copy.snapshot() == saved
        assert copy.backend == "array"
        with pytest.raises(GuestAccessError):
            copy.read_guest(2**20, 1)


def test_vm_from_snapshot_gets_the_limits_that_it_needs() -> None:
    rows = np.zeros(2, MEMSLOT_DTYPE)
    rows["base_gfn"], rows["npages"], rows["id"] = [5, 2**45], 7, [1, 40000]
    rows["userspace_addr"], rows["as_id"] = [2**60, 0], 2
    saved = Snapshot(rows, 2, 9)
    with VM.from_snapshot(saved) as vm:
        assert vm.snapshot(2) == saved
        assert vm.user_mem_slots == 40001
        assert vm.gpa_bits == 58
        assert vm.hva_end_max == 2**60 + 7 * PAGE
        assert vm.address_spaces == 3
    with pytest.raises(InvalidRegionError, match="slot 40000"):
        VM.from_snapshot(saved, user_mem_slots=10)

    class Own(VM):
        pass

    with Own.from_snapshot(Snapshot(rows[:0], 0, 0)) as vm:
        assert type(vm) is Own
        assert len(vm) == 0
