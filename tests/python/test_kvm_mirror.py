# SPDX-License-Identifier: MIT
"""kvm.mirror() on a kernel that these tests script: changes, refusals at each step, dirty bits, exits.

test_kvm_mirror_kernel.py repeats the important ones on /dev/kvm.
"""

from __future__ import annotations

import errno
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest
from mirror_kernel import PAGE, FakeKernel, RefusedError, slots_of
from scene import put

import memslots
from memslots import VM, Change, Listener, MemFlag, errors, kvm
from memslots.kvm import MirrorError
from memslots.kvm.exits import Hlt, Mmio

LOG, READONLY = int(MemFlag.LOG_DIRTY_PAGES), int(MemFlag.READONLY)


class Scene:
    """A VM with slots 0, 1 and 2, of 4 pages each, at pages 0, 8 and 16; slot 0 and 1 have a log."""

    def __init__(self, pause: bool = True, **limits: int) -> None:
        self.vm, self.kernel = VM(**limits), FakeKernel(**limits)
        for id, flags in enumerate((LOG, LOG, 0)):
            put(self.vm, id, 8 * id, 4, flags)
        self.mirror = kvm.mirror(self.vm, self.kernel, pause=self.kernel.pause if pause else None)

    def same(self) -> None:
        assert slots_of(self.vm) == list(self.kernel.regions)
        assert not self.kernel.is_paused
        self.vm.check()


@pytest.fixture
def scene():
    return Scene()


def bits(words: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


# ---- every kind of change reaches the kernel -----------------------------------------------------


def trade(t):
    t.move(0, 8 * PAGE)
    t.move(1, 0)


def several(t):
    t.punch(PAGE, PAGE)
    t.set_flags(2, set=LOG)
    t.resize(1, 6)
    t.create(guest_phys_addr=64 * PAGE, memory_size=PAGE, userspace_addr=1 << 40, slot=9)


def again(t):
    t.delete(0)
    t.create(0, guest_phys_addr=0, memory_size=4 * PAGE, userspace_addr=0, flags=LOG)


def split_and_merge(t):
    t.split(0, 2 * PAGE, 5)
    t.split(2, 17 * PAGE, 6)
    t.merge(2, 6)


def to_readonly(t):
    t.delete(2)
    t.create(
        2, guest_phys_addr=16 * PAGE, memory_size=4 * PAGE, userspace_addr=2 << 30, flags=READONLY
    )
    t.move(1, 12 * PAGE)


TRANSACTIONS = (trade, several, again, split_and_merge, to_readonly)


def transact(vm: VM, body) -> None:
    with vm.transaction() as t:
        body(t)


def test_single_changes_reach_the_kernel(scene):
    scene.same()
    put(scene.vm, 7, 100, 1)
    scene.same()
    scene.vm.move(7, 200 * PAGE)
    scene.vm.set_flags(7, set=LOG)
    scene.same()
    scene.vm.set_flags(7, clear=LOG)
    scene.vm.delete(7)
    scene.same()


def test_a_load_reaches_the_kernel(scene):
    rows = np.zeros(3, memslots.MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"] = [20, 21, 22], [100, 101, 102], 1
    scene.vm.load_memslots(rows)
    assert len(scene.vm) == 6
    scene.same()


@pytest.mark.parametrize("body", TRANSACTIONS)
def test_a_transaction_reaches_the_kernel_in_a_pause(scene, body):
    before = slots_of(scene.vm)
    scene.kernel.deletes_in_pause.clear()
    transact(scene.vm, body)
    scene.same()
    assert slots_of(scene.vm) != before or body is again
    assert scene.kernel.pauses == 1
    assert all(scene.kernel.deletes_in_pause)


def test_an_update_reaches_the_kernel_at_its_end(scene):
    with scene.vm.begin_update() as update:
        old = update.find(2)
        draft = update.copy(old, base_gfn=300)
        update.replace(old, draft)
        update.activate(old, draft)
        assert [r.guest_phys_addr for r in scene.kernel.regions if r.slot == 2] == [16 * PAGE]
    scene.same()


def test_apply_and_restore_reach_the_kernel(scene):
    before, slots = scene.vm.snapshot(), slots_of(scene.vm)
    scene.vm.apply([(0, 4, 1 << 30, LOG), (4, 8, 5 << 30, 0)])
    assert len(scene.vm) == 2
    scene.same()
    scene.vm.restore(before)
    assert slots_of(scene.vm) == slots
    scene.same()


def test_close_of_the_vm_deletes_the_regions(scene):
    scene.vm.close()
    assert scene.kernel.regions == ()
    with pytest.raises(MirrorError):
        scene.mirror.verify()
    scene.mirror.close()


def test_close_of_a_vm_whose_kernel_is_closed(scene):
    scene.kernel.closed = True
    scene.kernel.calls = 0
    scene.vm.close()
    assert scene.kernel.calls == 0


def test_close_of_a_mirror_whose_kernel_is_closed(scene):
    scene.kernel.closed = True
    scene.mirror.close()
    put(scene.vm, 5, 500, 1)
    assert len(scene.vm) == 4


def test_close_of_the_mirror_deletes_the_regions_and_saves_their_bits(scene):
    scene.kernel.vm.mark_page_dirty(1)
    with scene.mirror:
        pass
    assert scene.kernel.regions == ()
    assert len(scene.vm) == 3
    assert bits(scene.vm.get_dirty_log(0)) == [1]
    scene.mirror.close()
    put(scene.vm, 5, 500, 1)
    assert scene.kernel.regions == ()


# ---- the begin -----------------------------------------------------------------------------------


def test_the_same_regions_are_adopted():
    vm, kernel = VM(), FakeKernel()
    put(vm, 0, 0, 4)
    put(kernel.vm, 0, 0, 4)
    put(vm, 1, 8, 4)
    kvm.mirror(vm, kernel)
    assert kernel.calls == 1
    assert slots_of(vm) == list(kernel.regions)


def test_other_regions_are_refused():
    vm, kernel = VM(), FakeKernel()
    put(vm, 0, 0, 4)
    put(kernel.vm, 0, 8, 4)
    with pytest.raises(errors.InvalidRegionError, match="without regions"):
        kvm.mirror(vm, kernel)
    assert [r.guest_phys_addr for r in kernel.regions] == [8 * PAGE]
    put(vm, 1, 64, 1)  # no mirror is left behind
    assert len(kernel.regions) == 1


def test_a_refusal_of_the_first_slots_leaves_nothing():
    vm, kernel = VM(), FakeKernel()
    for id in range(3):
        put(vm, id, 8 * id, 4)
    kernel.refuse_from_here(2)
    with pytest.raises(RefusedError):
        kvm.mirror(vm, kernel)
    assert kernel.regions == ()
    kvm.mirror(vm, kernel)
    assert slots_of(vm) == list(kernel.regions)


def test_a_change_next_to_the_begin_is_found(monkeypatch):
    vm, kernel = VM(), FakeKernel()
    put(vm, 0, 0, 4)
    adopt = kvm.Mirror._adopt

    def adopt_late(self, slots):
        thread = threading.Thread(target=suppressed, args=(lambda: vm.move(0, 80 * PAGE),))
        generation = vm.generation()
        thread.start()
        while vm.generation() == generation:  # its INVALID copy
            pass
        threads.append(thread)
        return adopt(self, slots)

    threads: list[threading.Thread] = []
    monkeypatch.setattr(kvm.Mirror, "_adopt", adopt_late)
    with pytest.raises(RuntimeError, match="another thread"):
        kvm.mirror(vm, kernel)
    threads[0].join()
    assert kernel.regions == ()


def suppressed(call) -> None:
    with suppress(MirrorError):
        call()


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", TRANSACTIONS)
def test_a_refusal_of_each_step_leaves_both_as_they_were(body):
    counted = Scene()
    counted.kernel.calls = 0
    transact(counted.vm, body)
    assert counted.kernel.calls >= 2
    for step in range(counted.kernel.calls):
        scene = Scene()
        scene.kernel.vm.mark_page_dirty(2)
        scene.vm.mark_page_dirty(3)
        before = slots_of(scene.vm)
        scene.kernel.refuse_from_here(step)
        with pytest.raises(RefusedError, match=f"ioctl {step} is refused") as caught:
            transact(scene.vm, body)
        assert not hasattr(caught.value, "__notes__")
        assert slots_of(scene.vm) == before
        scene.same()
        assert bits(scene.mirror.sync_dirty(0)) == [2, 3]
        transact(scene.vm, body)
        scene.same()


@pytest.mark.parametrize(
    "change",
    [
        lambda vm: put(vm, 5, 100, 1),
        lambda vm: vm.delete(0),
        lambda vm: vm.move(0, 100 * PAGE),
        lambda vm: vm.set_flags(0, clear=LOG),
        lambda vm: vm.map_buffer(100 * PAGE, memslots.alloc(PAGE)),
    ],
)
def test_a_refused_single_change_leaves_both_as_they_were(scene, change):
    scene.kernel.vm.mark_page_dirty(2)
    before = slots_of(scene.vm)
    scene.kernel.refuse_from_here(0)
    with pytest.raises(RefusedError):
        change(scene.vm)
    assert slots_of(scene.vm) == before
    scene.same()
    assert bits(scene.mirror.sync_dirty(0)) == [2]
    change(scene.vm)
    scene.same()


def test_a_refused_update_leaves_both_as_they_were_and_keeps_the_bits(scene):
    scene.kernel.vm.mark_page_dirty(2)
    before = slots_of(scene.vm)
    scene.kernel.refuse_from_here(0)
    with pytest.raises(RefusedError):
        move_by_update(scene.vm, 0, 300)
    assert slots_of(scene.vm) == before
    scene.same()
    assert bits(scene.mirror.sync_dirty(0)) == [2]


def move_by_update(vm: VM, id: int, gfn: int | None) -> None:
    """Moves a slot, or deletes it."""
    with vm.begin_update() as update:
        old = update.find(id)
        draft = None if gfn is None else update.copy(old, base_gfn=gfn)
        update.replace(old, draft)
        update.activate(old, draft)


def test_a_listener_that_refuses_keeps_the_change_from_the_kernel(scene):
    class Never(Listener):
        def prepare(self, change: Change) -> None:
            raise RuntimeError("never")

    scene.vm.add_listener(Never())  # after the mirror, but before it in the list
    scene.kernel.calls = 0
    with pytest.raises(RuntimeError, match="never"):
        scene.vm.delete(0)
    assert scene.kernel.calls == 0
    scene.same()


def test_an_undo_that_is_refused_breaks_the_mirror(scene):
    scene.kernel.refuse_from_here(2, 3)
    with pytest.raises(RefusedError, match="ioctl 2") as caught:
        transact(scene.vm, trade)
    assert "broken" in caught.value.__notes__[0]
    assert "ioctl 3" in scene.mirror.broken
    assert "ioctl 3" in repr(scene.mirror)
    assert not scene.kernel.is_paused
    for change in (lambda: put(scene.vm, 5, 100, 1), lambda: scene.vm.delete(2)):
        with pytest.raises(MirrorError, match="broken") as refused:
            change()
        assert refused.value.errno == errno.EIO
    assert len(scene.vm) == 3
    assert slots_of(scene.vm) != list(scene.kernel.regions)
    scene.vm.close()
    assert scene.kernel.regions == ()


def test_a_plan_that_deletes_or_moves_needs_a_pause():
    scene = Scene(pause=False)
    before = slots_of(scene.vm)
    for body in TRANSACTIONS:
        with pytest.raises(MirrorError, match="pause") as caught:
            transact(scene.vm, body)
        assert caught.value.errno == errno.EBUSY
        assert slots_of(scene.vm) == before
        scene.same()
    with scene.vm.transaction() as t:
        t.create(10, guest_phys_addr=64 * PAGE, memory_size=PAGE)
        t.create(11, guest_phys_addr=65 * PAGE, memory_size=PAGE)
        t.set_flags(2, set=LOG)
    scene.same()
    scene.vm.move(0, 100 * PAGE)
    with scene.vm.transaction() as t:  # one ioctl
        t.delete(1)
    scene.same()


def test_only_changes_that_need_it_pause(scene):
    put(scene.vm, 5, 100, 1)
    scene.vm.move(2, 200 * PAGE)
    scene.vm.set_flags(2, set=LOG)
    assert scene.kernel.pauses == 0
    scene.vm.move(0, 300 * PAGE)  # its log ends
    scene.vm.set_flags(0, clear=LOG)
    scene.vm.delete(1)
    assert scene.kernel.pauses == 3


def test_a_pause_that_raises_refuses_the_change(scene):
    scene.mirror._pause = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        scene.vm.delete(0)
    scene.same()
    with pytest.raises(ZeroDivisionError):
        scene.vm.close()
    assert scene.kernel.regions == ()


def test_a_pause_that_raises_leaves_no_region(scene):
    scene.mirror._pause = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        scene.mirror.close()
    assert scene.kernel.regions == ()


def test_the_pause_lasts_until_readers_see_the_change(scene):
    class Watcher(Listener):
        def commit(self, change: Change) -> None:
            seen.append((scene.kernel.is_paused, scene.vm.gfn_to_memslot(0).id))

    seen: list[tuple[bool, int]] = []
    scene.vm.add_listener(Watcher())
    transact(scene.vm, trade)
    assert seen == [(True, 1), (True, 1)]
    assert not scene.kernel.is_paused


# ---- dirty logs ----------------------------------------------------------------------------------


def test_sync_dirty_is_the_union_of_both_logs(scene):
    scene.kernel.vm.mark_page_dirty(1)
    scene.vm.mark_page_dirty(3)
    assert bits(scene.mirror.sync_dirty(0)) == [1, 3]
    assert bits(scene.mirror.sync_dirty(0)) == []
    with pytest.raises(errors.NoSuchSlotError):
        scene.mirror.sync_dirty(2)
    with pytest.raises(errors.NoSuchSlotError):
        scene.mirror.sync_dirty(99)


def test_sync_dirty_with_manual_logs(scene):
    scene.kernel.vm.manual_dirty_log_protect = 1
    scene.kernel.vm.mark_page_dirty(1)
    assert bits(scene.mirror.sync_dirty(0)) == [1]
    assert bits(scene.mirror.sync_dirty(0)) == []
    scene.vm.manual_dirty_log_protect = 1
    scene.kernel.vm.mark_page_dirty(2)
    assert bits(scene.mirror.sync_dirty(0)) == [2]
    assert bits(scene.mirror.sync_dirty(0)) == [2]
    scene.vm.clear_dirty_log(0, 0, 4, np.array([0xF], np.uint64))
    assert bits(scene.mirror.sync_dirty(0)) == []


def test_a_call_that_is_refused_loses_no_bit(scene):
    scene.kernel.vm.mark_page_dirty(1)
    with scene.vm.read(), pytest.raises(errors.ReentrantChangeError):
        scene.mirror.sync_dirty(0)
    with scene.vm.begin_update(), pytest.raises(errors.ReentrantChangeError):
        scene.mirror.sync_dirty(0)
    assert bits(scene.mirror.sync_dirty(0)) == [1]


@pytest.mark.parametrize("manual", [0, 1])
def test_the_bits_follow_their_pages(scene, manual):
    scene.kernel.vm.manual_dirty_log_protect = manual
    for page in range(4):
        scene.kernel.vm.mark_page_dirty(page)
    scene.vm.move(0, 100 * PAGE)
    assert bits(scene.mirror.sync_dirty(0)) == [0, 1, 2, 3]
    scene.kernel.vm.mark_page_dirty(101)
    scene.kernel.vm.mark_page_dirty(103)
    with scene.vm.transaction() as t:
        t.split(0, 102 * PAGE, 5)
        t.move(5, 200 * PAGE)
    assert bits(scene.mirror.sync_dirty(0)) == [1]
    assert bits(scene.mirror.sync_dirty(5)) == [1]
    scene.kernel.vm.mark_page_dirty(201)
    scene.kernel.vm.mark_page_dirty(100)
    with scene.vm.transaction() as t:
        t.move(5, 102 * PAGE)
        t.merge(0, 5)
    assert bits(scene.mirror.sync_dirty(0)) == [0, 3]


def test_the_last_bits_reach_the_other_listeners(scene):
    class Last(Listener):
        def commit(self, change: Change) -> None:
            got.append((change.old.id, bits(change.dirty)))

    got: list[tuple[int, list[int]]] = []
    scene.vm.add_listener(Last())
    scene.kernel.vm.mark_page_dirty(1)
    scene.vm.mark_page_dirty(2)
    scene.vm.delete(0)
    scene.kernel.vm.mark_page_dirty(9)
    scene.vm.set_flags(1, clear=LOG)
    assert got == [(0, [1, 2]), (1, [1])]


def test_an_update_passes_the_bits_on(scene):
    scene.kernel.vm.mark_page_dirty(1)
    move_by_update(scene.vm, 0, 300)
    assert bits(scene.mirror.sync_dirty(0)) == [1]
    scene.kernel.vm.mark_page_dirty(302)
    move_by_update(scene.vm, 0, None)
    assert bits(scene.mirror.sync_dirty(0)) == [2]
    with pytest.raises(errors.NoSuchSlotError):
        scene.mirror.sync_dirty(0)


def test_last_bits_are_not_those_of_a_new_slot(scene):
    scene.kernel.vm.mark_page_dirty(1)
    move_by_update(scene.vm, 0, None)
    put(scene.vm, 0, 0, 4, LOG)
    scene.vm.delete(0)
    with pytest.raises(errors.NoSuchSlotError):
        scene.mirror.sync_dirty(0)


def test_a_slot_that_is_created_again_has_a_fresh_log(scene):
    scene.kernel.vm.mark_page_dirty(1)
    transact(scene.vm, again)
    scene.same()
    assert bits(scene.mirror.sync_dirty(0)) == []
    scene.kernel.vm.mark_page_dirty(2)
    assert bits(scene.mirror.sync_dirty(0)) == [2]


@pytest.fixture
def quick_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_switches")
def test_no_bit_is_lost_between_threads(scene):
    """A thread moves the slot.  Meanwhile each page that the fake guest writes is in the next result only."""
    stop, wrong = threading.Event(), []

    def change() -> None:
        try:
            for n in range(2000):
                scene.vm.move(0, (100 + 8 * (n % 3)) * PAGE)
                if n % 2 == 0:
                    move_by_update(scene.vm, 0, 40 + 8 * (n // 2 % 2))
        except BaseException as e:
            wrong.append(e)
        finally:
            stop.set()

    guest = scene.kernel.vm
    thread = threading.Thread(target=change)
    thread.start()
    n = 0
    while not stop.is_set():
        with guest.read():
            guest.mark_page_dirty(guest.id_to_memslot(0).base_gfn + n % 4)
        assert bits(scene.mirror.sync_dirty(0)) == [n % 4]
        n += 1
    thread.join()
    assert not wrong
    assert n >= 10
    scene.same()


def test_bits_that_were_taken_in_the_middle_of_an_update_are_not_lost(scene):
    """sync_dirty() takes the kernel's bits while another thread's draft is published."""
    scene.kernel.vm.mark_page_dirty(1)
    update = scene.vm.begin_update()
    with update:
        old = update.find(0)
        draft = update.copy(old, base_gfn=300)
        update.replace(old, draft)
        update.activate(old, draft)
        scene.mirror._pull((0, 0))
        assert not scene.mirror._push((0, 0))
    assert bits(scene.mirror.sync_dirty(0)) == [1]


# ---- exits ---------------------------------------------------------------------------------------


class Devices:
    def __init__(self) -> None:
        self.calls: list[tuple[int, bytes, bool]] = []

    def __call__(self, gpa: int, data: bytes, is_write: bool) -> int | None:
        self.calls.append((gpa, data, is_write))
        return None if is_write else 0x55


def access(gpa: int, size: int, data: bytes | None = None) -> tuple[Mmio, list[bytes]]:
    got: list[bytes] = []
    return Mmio(data is not None, data or b"", size, got.append, gpa, size), got


def test_serve_reads_ram_that_is_there_now():
    vm, kernel, devices = VM(), FakeKernel(), Devices()
    mirror = kvm.mirror(vm, kernel)
    memory = memslots.alloc(PAGE)
    memory[8:12] = b"\1\2\3\4"
    exit, got = access(0x1008, 4)
    assert mirror.serve(exit, devices)
    assert got == [b"\x55\0\0\0"]
    mapping = vm.map_buffer(0x1000, memory, log_dirty=True)
    assert mirror.serve(exit, devices)
    assert got == [b"\x55\0\0\0", b"\1\2\3\4"]
    exit, _ = access(0x1010, 2, b"ab")
    assert mirror.serve(exit, devices)
    assert bytes(memory[0x10:0x12]) == b"ab"
    assert bits(mirror.sync_dirty(mapping.slot)) == [0]
    mapping.unmap()
    assert mirror.serve(exit, devices)
    assert devices.calls == [(0x1008, bytes(4), False), (0x1010, b"ab", True)]


def test_serve_of_a_write_to_rom_is_mmio():
    vm, kernel, devices = VM(), FakeKernel(), Devices()
    mirror = kvm.mirror(vm, kernel)
    vm.map_buffer(0x1000, memslots.alloc(PAGE), readonly=True)
    exit, _ = access(0x1000, 1, b"x")
    assert mirror.serve(exit, devices)
    assert devices.calls == [(0x1000, b"x", True)]
    exit, got = access(0x1000, 1)
    assert mirror.serve(exit, devices)
    assert got == [b"\0"]
    assert len(devices.calls) == 1


def test_serve_leaves_other_exits_alone(scene):
    assert not scene.mirror.serve(Hlt(), Devices())


def test_serve_of_a_raw_address_names_the_way_out(scene):
    exit, _ = access(0, 1)
    with pytest.raises(errors.GuestAccessError, match="dereference_raw_addresses"):
        scene.mirror.serve(exit, Devices())


# ---- the rest ------------------------------------------------------------------------------------


def test_verify_needs_the_probe(scene):
    with pytest.raises(errors.NotSupportedError, match="GUEST_MEMFD"):
        scene.mirror.verify()


def test_a_vm_has_one_mirror(scene):
    with pytest.raises(errors.ListenerError):
        kvm.mirror(scene.vm, FakeKernel())
    scene.same()


def test_a_slot_id_beyond_the_kernel_s_limit_is_refused():
    vm, kernel = VM(user_mem_slots=40000), FakeKernel(user_mem_slots=40000)
    kvm.mirror(vm, kernel)
    with pytest.raises(errors.InvalidRegionError, match="slot limit"):
        put(vm, 39000, 0, 1)
    assert len(vm) == 0
