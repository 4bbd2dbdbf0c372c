# SPDX-License-Identifier: MIT
"""kvm.mirror() on /dev/kvm: refusals of the kernel at each step of a plan, verify(), and a vCPU that runs meanwhile."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import guest as guests
import numpy as np
import pytest
from mirror_kernel import PAGE, slots_of
from running_guest import RunningGuest, running_guest
from scene import put

import memslots
from memslots import VM, MemFlag, errors, kvm
from memslots.kvm import MirrorError, ioctls

LOG = int(MemFlag.LOG_DIRTY_PAGES)
BEHIND = 99  # the id of a region that the mirror does not know


class Pair:
    """A VM and its mirror: slots 0, 1 and 2 of 4 pages at pages 0, 8 and 16; all but slot 2 have a log."""

    def __init__(self, **limits: int) -> None:
        with kvm.open() as device:
            self.kernel = device.create_vm()
        self.vm = VM(**limits)
        self.mirror = kvm.mirror(self.vm, self.kernel, pause=nullcontext)
        for id, flags in enumerate((LOG, LOG, 0)):
            put(self.vm, id, 8 * id, 4, flags)

    def behind(self, slot: int, base: int, npages: int, flags: int = 0) -> None:
        """Changes the kernel without the knowledge of the mirror, or of the kvm.Vm."""
        given = (slot, 0, flags, base * PAGE, npages * PAGE, slot << 30)
        self.kernel.ioctl(ioctls.KVM_SET_USER_MEMORY_REGION, bytearray(ioctls.REGION.pack(*given)))

    def same(self) -> None:
        assert slots_of(self.vm) == list(self.kernel.regions)
        assert self.mirror.verify() == []

    def close(self) -> None:
        with suppress(errors.InvalidRegionError):  # a region was deleted behind its back
            self.vm.close()
        self.kernel.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    guests.needs_kvm()
    made = Pair()
    try:
        yield made
    finally:
        made.close()


# ---- refusals at each step of a plan -------------------------------------------------------------


def many(vm: VM) -> None:
    """On the kernel: a delete, a change of flags, two moves, three creates."""
    with vm.transaction() as t:
        t.delete(0)
        t.create(3, guest_phys_addr=0, memory_size=4 * PAGE, userspace_addr=3 << 30)
        t.move(1, 40 * PAGE)
        t.move(2, 48 * PAGE)
        t.create(4, guest_phys_addr=56 * PAGE, memory_size=PAGE, flags=LOG)
        t.create(5, guest_phys_addr=64 * PAGE, memory_size=PAGE)


@pytest.mark.parametrize("gfn", [42, 50, 56, 64])
def test_an_overlap_that_was_planted_refuses_the_plan(pair, gfn):
    before = slots_of(pair.vm)
    pair.behind(BEHIND, gfn, 1)
    with pytest.raises(errors.RegionOverlapError) as caught:
        many(pair.vm)
    assert caught.value.errno == errno.EEXIST
    assert slots_of(pair.vm) == before == list(pair.kernel.regions)
    assert [d.slot for d in pair.mirror.verify()] == [BEHIND]
    pair.behind(BEHIND, 0, 0)
    pair.same()
    many(pair.vm)
    pair.same()


def with_ids(vm: VM, ids: list[int]) -> None:
    with vm.transaction() as t:
        t.move(2, 100 * PAGE)
        t.delete(0)
        for n, id in enumerate(ids):
            t.create(id, guest_phys_addr=(60 + n) * PAGE, memory_size=PAGE)


@pytest.mark.parametrize("position", range(4))
def test_the_slot_limit_refuses_the_plan(position):
    guests.needs_kvm()
    pair = Pair(user_mem_slots=40000)
    limit = pair.kernel.check_extension("nr_memslots")
    before = slots_of(pair.vm)
    with pytest.raises(errors.InvalidRegionError) as caught:
        with_ids(pair.vm, [limit if n == position else 10 + n for n in range(4)])
    assert caught.value.slot == limit
    assert slots_of(pair.vm) == before
    pair.same()
    pair.close()


def test_an_undo_that_the_kernel_refuses_breaks_the_mirror(pair):
    """The plan moves slot 1 away.  Then its old place is taken, and a later step is refused."""
    make = pair.kernel.set_user_memory_region

    def meddle(slot, **fields):
        make(slot, **fields)
        if slot == 1:
            pair.behind(BEHIND, 8, 1)

    pair.behind(BEHIND - 1, 64, 1)
    pair.kernel.set_user_memory_region = meddle
    with pytest.raises(errors.RegionOverlapError):
        many(pair.vm)
    del pair.kernel.set_user_memory_region
    assert "slot 1" in pair.mirror.broken
    with pytest.raises(MirrorError, match="broken"):
        put(pair.vm, 7, 300, 1)
    found = pair.mirror.verify()
    assert {d.slot for d in found} >= {1, BEHIND, BEHIND - 1}
    assert "slot 1 in address space 0: the kernel has" in "\n".join(map(str, found))
    assert len(pair.vm) == 3


# ---- verify() ------------------------------------------------------------------------------------


def test_verify_changes_nothing(pair):
    pair.vm.mark_page_dirty(1)
    pair.kernel.manual_dirty_log_protect = 3
    put(pair.vm, 5, 100, 4, LOG)  # INITIALLY_SET: all bits
    before = slots_of(pair.vm)
    assert pair.mirror.verify() == []
    assert slots_of(pair.vm) == before == list(pair.kernel.regions)
    assert pair.kernel.get_dirty_log(5).tolist() == [0xF]
    assert pair.vm.get_dirty_log(0).tolist() == [2]


@pytest.mark.parametrize(
    ("behind", "found"),
    [
        ((0, 0, 0), ["slot 0 in address space 0: the kernel does not have it"]),
        ((BEHIND, 500, 1), [f"slot {BEHIND} in address space 0: the engine does not have it"]),
        ((2, 16, 4, LOG), ["slot 2 in address space 0: the kernel has a dirty log"]),
        ((1, 8, 4, 0), ["slot 1 in address space 0: the kernel has no dirty log"]),
        ((2, 100, 4), ["slot 2 in address space 0: the kernel has no slot at its first or last page"]),
    ],
)  # fmt: skip
def test_verify_finds_what_was_changed_behind_its_back(pair, behind, found):
    pair.behind(*behind)
    assert [str(d) for d in pair.mirror.verify()] == found


def test_verify_compares_the_values_that_the_kernel_accepted(pair):
    pair.kernel.set_user_memory_region(
        2, guest_phys_addr=64 * PAGE, memory_size=4 * PAGE, userspace_addr=2 << 30
    )
    assert "guest_phys_addr=262144" in str(pair.mirror.verify()[0])


def test_verify_next_to_changes_finds_nothing(pair):
    stop = threading.Event()

    def change() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            pair.vm.move(0, (100 + 8 * (n % 2)) * PAGE)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert [pair.mirror.verify() for _ in range(10)] == [[]] * 10
    finally:
        stop.set()
        thread.join()


def test_verify_is_refused_where_it_could_deadlock(pair):
    with pair.vm.read(), pytest.raises(errors.ReentrantChangeError):
        pair.mirror.verify()


def test_close_deletes_the_regions_of_the_kernel(pair):
    pair.mirror.close()
    assert pair.kernel.regions == ()
    assert len(pair.vm) == 3


# ---- next to a vCPU that runs ---------------------------------------------------------------------


@pytest.fixture
def guest() -> Iterator[RunningGuest]:
    guests.needs_kvm()
    with running_guest(VM(), lambda gpa, data, is_write: exits.append(gpa)) as made:
        yield made


exits: list[int] = []


def test_dirty_bits_follow_their_pages(guest):
    memory = memslots.alloc(4 * PAGE)
    guest.vm.map_buffer(0x10_0000, memory, slot=3, log_dirty=True)
    guest.store(0x10_1000)
    guest.vm.move(3, 0x20_0000)
    guest.store(0x20_3000)
    with guest.vm.transaction() as t:
        t.split(3, 0x20_2000, 5)
        t.move(5, 0x30_0000)
    guest.store(0x30_0000)
    assert guest.mirror.sync_dirty(3).tolist() == [0b10]
    assert guest.mirror.sync_dirty(5).tolist() == [0b11]
    assert bytes(memory[::PAGE]) == b"\0\1\1\1"
    assert guest.mirror.verify() == []


def test_slots_trade_places_next_to_a_vcpu(guest):
    """The guest stores to the first place all the time.  No store may leave the guest: the plan has a delete."""
    exits.clear()
    memories = [memslots.alloc(PAGE) for _ in range(2)]
    for n, memory in enumerate(memories):
        guest.vm.map_buffer(0x10_0000 + n * PAGE, memory, slot=3 + n, log_dirty=True)
    for n in range(100):
        memories[0][0] = memories[1][0] = 0
        guest.box[0] = 0x10_0000
        with guest.vm.transaction() as t:
            t.move(3, 0x10_0000 + (n % 2 == 0) * PAGE)
            t.move(4, 0x10_0000 + (n % 2 == 1) * PAGE)
        guest._until(lambda: not guest.box[0])
        written = [memory[0] for memory in memories]
        assert sum(written) == 1
        assert [guest.mirror.sync_dirty(slot)[0] for slot in (3, 4)] == written
    assert exits == []
    assert guest.mirror.verify() == []


def test_an_exit_is_served_from_ram_that_was_plugged_meanwhile(guest):
    exits.clear()
    memory = memslots.alloc(PAGE)
    for _ in range(50):
        memory[0] = 0
        guest.box[0] = 0x10_0000
        with guest.vm.map_buffer(0x10_0000, memory):
            guest._until(lambda: not guest.box[0])
            assert (memory[0], len(exits)) in ((1, 0), (0, 1))
        exits.clear()


def test_words_have_the_type_of_the_engine(pair):
    assert pair.mirror.sync_dirty(0).dtype == np.uint64
