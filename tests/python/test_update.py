# SPDX-License-Identifier: MIT
"""begin_update(): each step compared with the pictures of docs/design.md, and every way to leave an update."""

from __future__ import annotations

import errno
import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from scene import PAGE, memslot, put

from memslots import (
    VM,
    ClosedError,
    GfnNotMappedError,
    InvalidRegionError,
    Listener,
    MemFlag,
    MemorySlot,
    MemslotsError,
    ReaderStallWarning,
    ReentrantChangeError,
    RegionOverlapError,
    SlotHandle,
    Update,
    UpdateError,
)

LOG, READONLY = MemFlag.LOG_DIRTY_PAGES, MemFlag.READONLY


@pytest.fixture(params=[0, 1])
def as_id(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def vm(as_id: int) -> Iterator[VM]:
    """Slots a, b, c of the pictures, with ids 0, 1, 2, at gfns 10, 20, 30, in one of two address spaces."""
    with VM(address_spaces=2) as vm:
        for id in range(3):
            put(vm, id, 10 + 10 * id, 4, LOG, as_id)
        yield vm
        vm.check()


def pictured(update: Update) -> tuple[str, str]:
    """The two sets (active, inactive) in the notation of the pictures, such as "a b! c"; ' marks a draft."""

    def letter(handle: SlotHandle) -> str:
        slot = handle.memslot
        moved = slot.base_gfn != 10 + 10 * slot.id or slot.flags & READONLY
        return "abcdefgh"[slot.id] + "'" * bool(moved) + "!" * slot.is_invalid

    return tuple(" ".join(map(letter, slots)) for slots in (update.active, update.inactive))


def state(vm: VM) -> tuple[Any, ...]:
    """Everything except the generation."""
    return (len(vm), vm.nr_memslot_pages, vm.memslots(0), vm.memslots(1))


class GivenUpError(Exception):
    """Raised by these tests to leave an update."""


@contextmanager
def given_up(vm: VM, as_id: int) -> Iterator[Update]:
    """An update that ends with an exception."""
    with suppress(GivenUpError), vm.begin_update(as_id) as u:
        yield u
        raise GivenUpError


def in_thread(call: Callable[[], Any]) -> Any:
    """Makes the call in another thread; returns its value or its exception."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


# ---- the steps -----------------------------------------------------------------------------------


def test_delete_by_steps_follows_the_picture(vm: VM, as_id: int) -> None:
    """Checks the sets, and the lookups of this thread and of another one, after each step."""
    generation = vm.generation(as_id)

    def lookup_results() -> list[Any]:
        own = [
            vm.gfn_to_memslot(21, as_id) and vm.gfn_to_memslot(21, as_id).is_invalid,
            vm.is_visible_gfn(21, as_id),
        ]
        assert in_thread(lambda: vm.is_visible_gfn(21, as_id)) == own[1]
        return [*own, (vm.generation(as_id) - generation) // 2]

    with vm.begin_update(as_id) as u:
        assert (u.vm, u.as_id) == (vm, as_id)
        assert pictured(u) == ("a b c", "a b c")
        b = u.find(1)
        assert b == u.find(1, active=False) == u.active[1]
        inv = u.invalidate(b)
        assert pictured(u) == ("a b! c", "a b c")
        assert u.find(1) == inv != b
        assert inv.memslot == memslot(1, as_id, 20, 4, 2**30, LOG | MemFlag.INVALID)
        assert lookup_results() == [True, False, 1]
        with pytest.raises(GfnNotMappedError):
            vm.gfn_to_hva(21, as_id)
        u.replace(b, None)
        assert pictured(u) == ("a b! c", "a c")
        assert lookup_results() == [True, False, 1]
        u.swap()
        assert pictured(u) == ("a c", "a b! c")
        assert lookup_results() == [None, False, 2]
        u.replace(inv, None)
        assert pictured(u) == ("a c", "a c")
        assert b.memslot.id == 1  # a handle lives as long as the update
        assert u.find(1) is None
    assert (len(vm), vm.nr_memslot_pages) == (2, 8)
    assert [slot.id for slot in vm.memslots(as_id)] == [0, 2]
    with pytest.raises(MemslotsError):
        vm.get_dirty_log(1, as_id)


def test_move_by_steps_keeps_the_dirty_log(vm: VM, as_id: int) -> None:
    """Steps: invalidate, copy, replace, activate."""
    vm.mark_page_dirty(22, as_id)
    with vm.begin_update(as_id) as u:
        b = u.find(1)
        inv = u.invalidate(b)
        vm.mark_page_dirty(23, as_id)  # the INVALID copy shares the log
        new = u.copy(b, base_gfn=50)
        assert new.memslot == memslot(1, as_id, 50, 4, 2**30, LOG)
        assert pictured(u) == ("a b! c", "a b c")
        u.replace(b, new)
        assert pictured(u) == ("a b! c", "a c b'")
        assert not vm.is_visible_gfn(50, as_id)
        u.activate(inv, new)
        assert pictured(u) == ("a c b'", "a c b'")
        assert vm.gfn_to_hva(50, as_id) == 2**30
    assert vm.generation(as_id) == as_id + 2 * (3 + 2)
    assert (len(vm), vm.nr_memslot_pages) == (3, 12)
    assert vm.get_dirty_log(1, as_id).tolist() == [0b1100]


def test_create_by_steps_is_visible_after_activate(vm: VM, as_id: int) -> None:
    with vm.begin_update(as_id) as u:
        d = u.copy(None, id=3, base_gfn=40, npages=2, userspace_addr=PAGE, flags=READONLY)
        assert pictured(u) == ("a b c", "a b c")
        u.replace(None, d)
        assert pictured(u) == ("a b c", "a b c d'")
        assert vm.gfn_to_memslot(40, as_id) is None
        assert len(vm) == 3
        u.activate(None, d)
        assert pictured(u) == ("a b c d'", "a b c d'")
        assert in_thread(lambda: vm.gfn_to_memslot(40, as_id)) == memslot(3, as_id, 40, 2, PAGE, 2)
    assert vm.generation(as_id) == as_id + 2 * (3 + 1)
    assert (len(vm), vm.nr_memslot_pages) == (4, 14)


def test_flags_change_by_steps_needs_one_swap(vm: VM, as_id: int) -> None:
    """An O(1) replacement without an INVALID slot."""
    vm.mark_page_dirty(20, as_id)
    with vm.begin_update(as_id) as u:
        b = u.find(1)
        new = u.copy(b, flags=LOG | READONLY)
        u.replace(b, new)
        assert pictured(u) == ("a b c", "a b' c")
        u.activate(b, new)
        assert pictured(u) == ("a b' c", "a b' c")
    assert vm.generation(as_id) == as_id + 2 * (3 + 1)
    assert vm.get_dirty_log(1, as_id).tolist() == [1]


def test_turning_logging_on_by_steps_gives_a_fresh_log(vm: VM, as_id: int) -> None:
    """The same as with set_user_memory_region(); INITIALLY_SET applies."""
    vm.mark_page_dirty(20, as_id)
    vm.manual_dirty_log_protect = 3
    for flags, log in ((0, None), (LOG, [0b1111])):
        with vm.begin_update(as_id) as u:
            old = u.find(1)
            new = u.copy(old, flags=flags)
            u.replace(old, new)
            u.activate(old, new)
        if log:
            assert vm.get_dirty_log(1, as_id).tolist() == log


def test_resize_with_another_hva_by_steps_gives_a_fresh_log(vm: VM, as_id: int) -> None:
    """KVM refuses this change; an update allows it and adjusts the totals."""
    vm.mark_page_dirty(20, as_id)
    with vm.begin_update(as_id) as u:
        old = u.find(1)
        new = u.copy(old, npages=8, userspace_addr=5 * PAGE)
        u.replace(old, new)
        u.activate(old, new)
    assert vm.nr_memslot_pages == 16
    assert vm.gfn_to_hva(27, as_id) == 12 * PAGE
    assert vm.get_dirty_log(1, as_id).tolist() == [0]


# Slot b has 4 pages, at gfn 20 and at host page 2**18; its pages 1 and 3 are dirty.  Each row is a change of b.
HOST = 2**30
RESIZES: dict[str, tuple[dict[str, int], list[int], list[int]]] = {
    # name: fields, pages of the new slot that are dirty, its pages that are new
    "grow": ({"npages": 8}, [1, 3], [4, 5, 6, 7]),
    "grow far": ({"base_gfn": 40, "npages": 130}, [1, 3], list(range(4, 130))),
    "shrink": ({"npages": 3}, [1], []),
    "grow downwards": (
        {"base_gfn": 18, "npages": 6, "userspace_addr": HOST - 2 * PAGE},
        [3, 5],
        [0, 1],
    ),
    "lose the first page": (
        {"base_gfn": 21, "npages": 3, "userspace_addr": HOST + PAGE},
        [0, 2],
        [],
    ),
    "grow and move": ({"base_gfn": 60, "npages": 5}, [1, 3], [4]),
    "slide in the host": ({"userspace_addr": HOST + 2 * PAGE}, [1], [2, 3]),
    "other memory": ({"userspace_addr": 5 * PAGE}, [], [0, 1, 2, 3]),
    "other memory, larger": ({"npages": 5, "userspace_addr": 5 * PAGE}, [], [0, 1, 2, 3, 4]),
}


def dirty_pages(vm: VM, as_id: int) -> list[int]:
    words = vm.get_dirty_log(1, as_id)
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


@pytest.mark.parametrize("initially_set", [False, True])
@pytest.mark.parametrize("name", RESIZES)
def test_resized_slot_keeps_the_dirty_bits_of_its_host_pages(
    vm: VM, as_id: int, name: str, initially_set: bool
) -> None:
    """The host address identifies a page.  Page 3 is marked after the copy was made."""
    fields, dirty, new_pages = RESIZES[name]
    vm.mark_page_dirty(21, as_id)
    if initially_set:
        vm.manual_dirty_log_protect = 3
    with vm.begin_update(as_id) as u:
        old = u.find(1)
        new = u.copy(old, **fields)
        vm.mark_page_dirty(23, as_id)
        u.replace(old, new)
        u.activate(old, new)
    want = sorted(dirty + new_pages) if initially_set else dirty
    assert dirty_pages(vm, as_id) == want
    vm.mark_page_dirty(vm.id_to_memslot(1, as_id).base_gfn, as_id)
    assert dirty_pages(vm, as_id)[0] == 0


@pytest.mark.parametrize("name", RESIZES)
def test_roll_back_of_a_resize_keeps_marks_of_the_old_pages(vm: VM, as_id: int, name: str) -> None:
    """Marks every page of the new slot while readers see it; the old slot gets the marks of its own pages."""
    fields = RESIZES[name][0]
    vm.mark_page_dirty(21, as_id)
    with given_up(vm, as_id) as u:
        old = u.find(1)
        new = u.copy(old, **fields)
        u.replace(old, new)
        u.swap()
        first = new.memslot.base_gfn
        vm.mark_page_dirty_many(
            np.arange(first, first + new.memslot.npages, dtype=np.uint64), as_id
        )
        shift = (new.memslot.userspace_addr - HOST) // PAGE
        marked = {page + shift for page in range(new.memslot.npages)}
    assert dirty_pages(vm, as_id) == sorted(({1} | marked) & {0, 1, 2, 3})


def test_several_resizes_in_one_update_keep_marks(vm: VM, as_id: int) -> None:
    """Slot b grows, shrinks and grows again in one update, with a mark in each state."""
    with vm.begin_update(as_id) as u:
        b = u.find(1)
        large = u.copy(b, base_gfn=40, npages=80)
        small = u.copy(large, npages=2)
        last = u.copy(small, npages=81)
        vm.mark_page_dirty(23, as_id)
        u.replace(b, large)
        u.activate(b, small)
        vm.mark_page_dirty(40 + 79, as_id)
        u.activate(large, last)
        vm.mark_page_dirty(41, as_id)
        u.activate(small, last)
    assert dirty_pages(vm, as_id) == [1, 3, 79]


def test_several_changes_in_one_swap_appear_together(vm: VM, as_id: int) -> None:
    """Deletes a, grows b and creates d; readers see all three changes or none."""
    with vm.begin_update(as_id) as u:
        a, b = u.find(0), u.find(1)
        bigger, d = u.copy(b, npages=10), u.copy(None, id=3, base_gfn=10, npages=1)
        for old, new in ((a, None), (b, bigger), (None, d)):
            u.replace(old, new)
        assert [slot.id for slot in vm.memslots(as_id)] == [0, 1, 2]
        u.swap()
        assert [slot.id for slot in vm.memslots(as_id)] == [3, 1, 2]
        for old, new in ((a, None), (b, bigger), (None, d)):
            u.replace(old, new)
    assert (len(vm), vm.nr_memslot_pages, vm.generation(as_id)) == (3, 1 + 10 + 4, as_id + 2 * 4)


def test_swap_of_equal_sets_changes_only_the_generation(vm: VM, as_id: int) -> None:
    before = state(vm)
    with vm.begin_update(as_id) as u:
        for _ in range(5):
            u.swap()
            assert pictured(u) == ("a b c", "a b c")
    assert state(vm) == before
    assert vm.generation(as_id) == as_id + 2 * (3 + 5)
    assert vm.generation(1 - as_id) == 1 - as_id


def test_hints_never_give_a_replaced_slot(vm: VM, as_id: int) -> None:
    """Covers last_used_slot and the hint of a vCPU."""
    vcpu = vm.create_vcpu()
    vcpu.as_id = as_id
    for step in range(20):
        assert vcpu.gfn_to_hva(21) == vm.gfn_to_hva(21, as_id)
        with vm.begin_update(as_id) as u:
            old = u.find(1)
            new = u.copy(old, userspace_addr=step * PAGE)
            u.replace(old, new)
            assert vcpu.gfn_to_hva(21) == vm.gfn_to_hva(21, as_id)
            u.activate(old, new)
            assert vcpu.gfn_to_hva(21) == vm.gfn_to_hva(21, as_id) == (step + 1) * PAGE


def test_invalidate_calls_flush_and_no_other_hook(vm: VM, as_id: int) -> None:
    heard: list[tuple[MemorySlot, MemorySlot]] = []

    class FlushRecorder(Listener):
        def flush(self, active: MemorySlot, old: MemorySlot) -> None:
            heard.append((active, old))

        def prepare(self, change: object) -> None:
            pytest.fail("the steps run no other hook")

    vm.add_listener(FlushRecorder())
    with given_up(vm, as_id) as u:
        u.invalidate(u.find(1))
    old = memslot(1, as_id, 20, 4, 2**30, LOG)
    assert heard == [(memslot(1, as_id, 20, 4, 2**30, LOG | MemFlag.INVALID), old)]


def test_exception_of_flush_rolls_the_update_back(vm: VM, as_id: int) -> None:
    """The step is complete when flush runs; the exception ends the block, which rolls back."""

    class Raises(Listener):
        def flush(self, active: MemorySlot, old: MemorySlot) -> None:
            raise ZeroDivisionError

    before = state(vm)
    vm.add_listener(Raises())
    with pytest.raises(ZeroDivisionError), vm.begin_update(as_id) as u:
        u.invalidate(u.find(1))
    assert state(vm) == before


# ---- leaving ------------------------------------------------------------------------------------------

Step = Callable[[Update, dict[str, SlotHandle]], object]


def steps(kind: str) -> list[Step]:
    """The steps of a change; they keep their handles in the dictionary."""
    delete: list[Step] = [
        lambda u, h: h.update(old=u.find(1), inv=u.invalidate(u.find(1))),
        lambda u, h: u.replace(h["old"], None),
        lambda u, h: u.swap(),
        lambda u, h: u.replace(h["inv"], None),
    ]
    create: list[Step] = [
        lambda u, h: h.update(new=u.copy(None, id=5, base_gfn=90, npages=3, flags=LOG)),
        lambda u, h: u.replace(None, h["new"]),
        lambda u, h: u.swap(),
        lambda u, h: u.replace(None, h["new"]),
    ]
    move: list[Step] = [
        lambda u, h: h.update(old=u.find(1), inv=u.invalidate(u.find(1))),
        lambda u, h: h.update(new=u.copy(h["old"], base_gfn=70)),
        lambda u, h: u.replace(h["old"], h["new"]),
        lambda u, h: u.activate(h["inv"], h["new"]),
    ]
    flags: list[Step] = [
        lambda u, h: h.update(old=u.find(1), new=u.copy(u.find(1), flags=0)),
        lambda u, h: u.replace(h["old"], h["new"]),
        lambda u, h: u.swap(),
        lambda u, h: u.replace(h["old"], h["new"]),
    ]
    return {"delete": delete, "create": create, "move": move, "flags": flags}[kind]


# Character n: after n steps the sets are alike (=) or differ (!).
ALIKE = {"delete": "=!!!=", "create": "==!!=", "move": "=!!!=", "flags": "==!!="}
KINDS_AND_STOPS = [(kind, stop) for kind in ALIKE for stop in range(5)]


@pytest.mark.parametrize(("kind", "stop"), KINDS_AND_STOPS)
def test_update_left_half_done_raises_and_rolls_back(
    vm: VM, as_id: int, kind: str, stop: int
) -> None:
    """An update whose sets are alike at the end keeps its result and does not raise."""
    vm.mark_page_dirty(21, as_id)
    before, memory = state(vm), vm.stats()["blocks"]
    half_done = ALIKE[kind][stop] == "!"

    def some_steps() -> None:
        with vm.begin_update(as_id) as u:
            handles: dict[str, SlotHandle] = {}
            for step in steps(kind)[:stop]:
                step(u, handles)

    if half_done:
        with pytest.raises(UpdateError) as caught:
            some_steps()
        assert (caught.value.errno, caught.value.rule) == (errno.EINVAL, "SETS_DIFFER")
    else:
        some_steps()
    if stop == 4:
        assert state(vm) != before
    else:
        assert state(vm) == before
        assert vm.stats()["blocks"] == memory
        assert vm.get_dirty_log(1, as_id).tolist() == [2]
    vm.check()
    put(vm, 6, 600, 1, as_id=as_id)


@pytest.mark.parametrize(("kind", "stop"), KINDS_AND_STOPS)
def test_update_left_by_an_exception_rolls_back(vm: VM, as_id: int, kind: str, stop: int) -> None:
    """The roll-back needs one more swap if the update has swapped."""
    vm.mark_page_dirty(21, as_id)
    before, memory, generation = state(vm), vm.stats()["blocks"], vm.generation(as_id)
    with given_up(vm, as_id) as u:
        handles: dict[str, SlotHandle] = {}
        for step in steps(kind)[:stop]:
            step(u, handles)
        made = (vm.generation(as_id) - generation) // 2
    assert state(vm) == before
    assert vm.stats()["blocks"] == memory
    assert vm.get_dirty_log(1, as_id).tolist() == [2]
    assert (vm.generation(as_id) - generation) // 2 in (made, made + 1)
    assert vm.generation(1 - as_id) == 1 - as_id
    vm.check()


@pytest.mark.parametrize(("kind", "stop"), KINDS_AND_STOPS)
def test_dropped_update_rolls_back_and_releases_the_lock(
    vm: VM, as_id: int, kind: str, stop: int
) -> None:
    before = state(vm)

    def begun_and_dropped() -> None:
        u = vm.begin_update(as_id).__enter__()
        handles: dict[str, SlotHandle] = {}
        for step in steps(kind)[:stop]:
            step(u, handles)

    begun_and_dropped()
    gc.collect()
    assert state(vm) == before
    put(vm, 6, 600, 1, as_id=as_id)


DROPPED_IN_SECTION = """
    from memslots import VM
    vm, other = VM(), VM()
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=4096)
    update = vm.begin_update()
    update.__enter__()
    update.replace(update.find(0), None)
    with READ.read():
        del update
    vm.set_user_memory_region(1, guest_phys_addr=4096, memory_size=4096)
    assert len(vm) == 2
    vm.check()
"""


@pytest.mark.parametrize("read", ["vm", "other"])
def test_update_dropped_inside_a_section_releases_the_lock(read: str) -> None:
    """The garbage collector may drop an update at any place."""
    runs(DROPPED_IN_SECTION.replace("READ", read))


def test_update_left_with_an_invalid_slot_in_both_sets_rolls_back(vm: VM, as_id: int) -> None:
    before = state(vm)

    def leave_it_invalid() -> None:
        with vm.begin_update(as_id) as u:
            b = u.find(1)
            u.replace(b, u.invalidate(b))
            assert pictured(u) == ("a b! c", "a b! c")

    with pytest.raises(UpdateError):
        leave_it_invalid()
    assert state(vm) == before


def test_exception_in_the_block_reaches_the_caller(vm: VM, as_id: int) -> None:
    """Also if a step raised it, and if there is nothing to roll back."""
    with pytest.raises(ZeroDivisionError), vm.begin_update(as_id):
        raise ZeroDivisionError
    with pytest.raises(UpdateError, match="in the set") as caught, vm.begin_update(as_id) as u:
        u.replace(None, u.find(0))
    assert caught.value.rule == "HANDLE"
    put(vm, 6, 600, 1, as_id=as_id)


def test_unused_drafts_are_freed(vm: VM, as_id: int) -> None:
    memory = vm.stats()["blocks"]
    with vm.begin_update(as_id) as u:
        for n in range(50):
            u.copy(u.find(n % 3), base_gfn=1000)
    assert vm.stats()["blocks"] == memory


def test_replace_and_its_reverse_keep_the_sets_alike(vm: VM, as_id: int) -> None:
    """Replacing a slot and taking the replacement out again leaves equal sets, so the update ends normally."""
    before = state(vm)
    with vm.begin_update(as_id) as u:
        d = u.copy(None, id=3, base_gfn=40, npages=2)
        u.replace(None, d)
        u.replace(d, None)
        b, other = u.find(1), u.copy(u.find(1), base_gfn=60)
        u.replace(b, other)
        u.replace(other, b)
    assert state(vm) == before


# ---- handles in the wrong place -------------------------------------------------------------------------

WRONG: dict[str, Callable[[Update], object]] = {
    "replace nothing": lambda u: u.replace(None, None),
    "activate nothing": lambda u: u.activate(None, None),
    "new is there already": lambda u: u.replace(None, u.find(1)),
    "new for itself": lambda u: u.replace(u.find(1), u.find(1)),
    "new is another slot": lambda u: u.replace(u.find(0), u.find(1)),
    "old is a draft": lambda u: u.replace(u.copy(u.find(1)), None),
    "old twice": lambda u: [u.replace(h, None) for h in (u.find(1),) * 2],
    "invalidate a draft": lambda u: u.invalidate(u.copy(u.find(1))),
    "invalidate a removed one": lambda u: [u.replace(u.find(1), None), u.invalidate(u.find(1))],
    "invalidate twice": lambda u: u.invalidate(u.invalidate(u.find(1))),
    "activate removes a draft": lambda u: u.activate(u.copy(u.find(1)), None),
}


@pytest.mark.parametrize("kind", WRONG)
def test_handle_in_the_wrong_place_is_refused(vm: VM, as_id: int, kind: str) -> None:
    """The step changes nothing, and the update continues."""
    before = state(vm)
    with given_up(vm, as_id) as u:
        with pytest.raises(UpdateError) as caught:
            WRONG[kind](u)
        assert (caught.value.errno, caught.value.rule) == (errno.EINVAL, "HANDLE")
        u.swap()
    assert state(vm) == before


def test_replace_refuses_overlap_and_duplicate_id(vm: VM, as_id: int) -> None:
    """The message names both slots."""
    with vm.begin_update(as_id) as u:
        d = u.copy(None, id=3, base_gfn=22, npages=1)
        with pytest.raises(
            RegionOverlapError, match=r"slot 3 \[0x16000, 0x17000\) overlaps slot 1 "
        ) as caught:
            u.replace(None, d)
        assert caught.value.rule == "OVERLAP"
        again = u.copy(None, id=1, base_gfn=90, npages=1)
        with pytest.raises(RegionOverlapError, match="slot 1 is there already") as caught:
            u.replace(None, again)
        assert caught.value.rule == "DUPLICATE_ID"
        with pytest.raises(RegionOverlapError):
            u.activate(None, d)
        assert pictured(u) == ("a b c", "a b c")


BAD_VALUES = [
    ({"npages": 0}, "NPAGES"),
    ({"npages": 2**31}, "NPAGES"),
    ({"base_gfn": 2**52}, "GPA_WRAP"),
    ({"base_gfn": 2**40}, "GPA_LIMIT"),
    ({"flags": 8}, "FLAGS"),
    ({"flags": 1 << 16}, "FLAGS"),
    ({"userspace_addr": 1}, "HVA_ALIGN"),
    ({"userspace_addr": 2**47}, "HVA_RANGE"),
    ({"flags": 4}, "GMEM_FD"),
]


@pytest.mark.parametrize(("fields", "rule"), BAD_VALUES)
def test_draft_that_breaks_a_rule_is_refused(
    vm: VM, as_id: int, fields: dict[str, int], rule: str
) -> None:
    with vm.begin_update(as_id) as u:
        with pytest.raises(MemslotsError) as caught:
            u.copy(u.find(1), **fields)
        assert caught.value.rule == rule
        with pytest.raises(InvalidRegionError, match="32764") as caught:
            u.copy(None, id=32764, npages=1)
        assert caught.value.rule == "SLOT_ID"


def test_handle_of_another_or_ended_update_is_refused(vm: VM, as_id: int) -> None:
    with VM() as other:
        put(other, 0, 0, 1)
        with other.begin_update() as theirs, vm.begin_update(as_id) as ours:
            handle = theirs.find(0)
            for use in (
                lambda: ours.replace(handle, None),
                lambda: ours.activate(None, handle),
                lambda: ours.invalidate(handle),
                lambda: ours.copy(handle),
            ):
                with pytest.raises(UpdateError, match="another update"):
                    use()
            assert handle != ours.find(0)
        assert "ended" in repr(handle)
        for use in (lambda: handle.memslot, lambda: theirs.replace(handle, None)):
            with pytest.raises(UpdateError):
                use()


def test_handles_of_one_slot_are_equal(vm: VM, as_id: int) -> None:
    with vm.begin_update(as_id) as u:
        b = u.find(1)
        assert b == u.active[1]
        assert hash(b) == hash(u.active[1])
        assert b != u.find(0)
        assert b != 1
        assert b.update is u
        assert "id=1" in repr(b)
        assert u.find(77) is None
        assert u.find(1, False) == u.find(1, active=True)
    with pytest.raises(TypeError):
        SlotHandle()


USES: dict[str, Callable[[Update], object]] = {
    "active": lambda u: u.active,
    "inactive": lambda u: u.inactive,
    "find": lambda u: u.find(1),
    "copy": lambda u: u.copy(None, id=9, npages=1),
    "replace": lambda u: u.replace(None, None),
    "swap": lambda u: u.swap(),
    "activate": lambda u: u.activate(None, None),
    "__exit__": lambda u: u.__exit__(None, None, None),
}


@pytest.mark.parametrize("use", USES)
def test_update_used_outside_its_block_raises(vm: VM, as_id: int, use: str) -> None:
    u = vm.begin_update(as_id)
    with pytest.raises(UpdateError, match="not running"):
        USES[use](u)
    with u:
        pass
    with pytest.raises(UpdateError, match="not running"):
        USES[use](u)


def test_entering_a_running_update_raises(vm: VM, as_id: int) -> None:
    u = vm.begin_update(as_id)
    with u:
        with pytest.raises(UpdateError, match="running already"):
            u.__enter__()
        with pytest.raises(ReentrantChangeError), vm.begin_update(as_id):
            pass
    with u:  # entering again after the end is valid
        assert pictured(u) == ("a b c", "a b c")


@pytest.mark.parametrize("bad", [1, "slot", memslot(1, 0, 20, 4, 0)])
def test_argument_that_is_not_a_handle_raises_typeerror(vm: VM, as_id: int, bad: Any) -> None:
    """A MemorySlot is a value, not a handle of a slot in a set."""
    with vm.begin_update(as_id) as u:
        for use in (
            lambda: u.replace(bad, None),
            lambda: u.replace(None, bad),
            lambda: u.invalidate(bad),
            lambda: u.copy(bad),
            lambda: u.activate(bad, None),
        ):
            with pytest.raises(TypeError):
                use()
        with pytest.raises(TypeError):
            u.invalidate(None)


# ---- other calls during an update -------------------------------------------------------------------------

MEANWHILE: dict[str, Callable[[VM, int], object]] = {
    "set": lambda vm, n: put(vm, 5, 500, 1, as_id=n),
    "set in the other space": lambda vm, n: put(vm, 5, 500, 1, as_id=1 - n),
    "get_dirty_log": lambda vm, n: vm.get_dirty_log(1, n),
    "check": lambda vm, n: vm.check(),
    "close": lambda vm, n: vm.close(),
    "create_vcpu": lambda vm, n: vm.create_vcpu(),
    "add_listener": lambda vm, n: vm.add_listener(Listener()),
    "begin_update": lambda vm, n: vm.begin_update(1 - n).__enter__(),
}


@pytest.mark.parametrize("call", MEANWHILE)
def test_change_by_the_thread_of_the_update_raises_edeadlk(vm: VM, as_id: int, call: str) -> None:
    before = state(vm)
    with vm.begin_update(as_id):
        with pytest.raises(ReentrantChangeError) as caught:
            MEANWHILE[call](vm, as_id)
        assert (caught.value.errno, caught.value.rule) == (errno.EDEADLK, "UPDATE")
    assert state(vm) == before


def test_change_by_another_thread_waits_for_the_update(vm: VM, as_id: int) -> None:
    done = threading.Event()

    def change() -> None:
        put(vm, 5, 500, 1, as_id=as_id)
        done.set()

    with vm.begin_update(as_id):
        thread = threading.Thread(target=change)
        thread.start()
        assert not done.wait(0.1)
        assert vm.id_to_memslot(5, as_id) is None
    thread.join()
    assert vm.id_to_memslot(5, as_id) is not None


def test_step_by_another_thread_is_refused(vm: VM, as_id: int) -> None:
    """Only the thread that entered the update may make steps."""
    before = state(vm)
    with vm.begin_update(as_id) as u:
        b = u.find(1)
        for use in (
            lambda: u.swap(),
            lambda: u.replace(b, None),
            lambda: u.invalidate(b),
            lambda: u.copy(b),
            lambda: u.activate(b, None),
        ):
            error = in_thread(use)
            assert isinstance(error, MemslotsError), error
            assert error.rule == "UPDATE_OWNER"
        assert pictured(u) == ("a b c", "a b c")
    assert state(vm) == before


def test_step_that_swaps_inside_a_section_raises_edeadlk(vm: VM, as_id: int) -> None:
    """The swap would wait for a section of its own thread."""
    with vm.begin_update(as_id) as u:
        with vm.read():
            for use in (u.swap, lambda: u.invalidate(u.find(1))):
                with pytest.raises(ReentrantChangeError) as caught:
                    use()
                assert caught.value.rule == "READ_SECTION"
        u.swap()


def test_leaving_inside_a_section_raises_and_keeps_the_update(vm: VM, as_id: int) -> None:
    """Leaving may have to wait for readers, too."""
    u = vm.begin_update(as_id)
    u.__enter__()
    u.replace(u.find(1), None)
    with vm.read(), pytest.raises(ReentrantChangeError):
        u.__exit__(None, None, None)
    assert pictured(u) == ("a b c", "a c")
    u.__exit__(ValueError, None, None)
    assert len(vm.memslots(as_id)) == 3


def test_begin_update_inside_a_section_raises_edeadlk(vm: VM, as_id: int) -> None:
    with vm.read(), pytest.raises(ReentrantChangeError):
        vm.begin_update(as_id).__enter__()


def test_swap_waits_for_a_reader_that_keeps_its_view(vm: VM, as_id: int) -> None:
    """The section of another thread sees the old slot until it ends; then the swap continues."""
    inside, swapped = threading.Event(), threading.Event()
    seen: list[Any] = []
    vm.stall_warning_ms = 1

    def read() -> None:
        with vm.read():
            seen.append(vm.gfn_to_memslot(20, as_id))
            inside.set()
            while not (vm.stats()["stalls"] or swapped.is_set()):
                time.sleep(0.001)
            seen.append(vm.gfn_to_memslot(20, as_id))
            swapped_early.append(swapped.is_set())
        swapped.wait()
        seen.append(vm.gfn_to_memslot(20, as_id))

    swapped_early: list[bool] = []
    reader = threading.Thread(target=read)
    with vm.begin_update(as_id) as u:
        b = u.find(1)
        u.replace(b, None)
        reader.start()
        inside.wait()
        with pytest.warns(ReaderStallWarning):
            u.swap()
        swapped.set()
        u.replace(b, None)
        reader.join()
    b_value = memslot(1, as_id, 20, 4, 2**30, LOG)
    assert seen == [b_value, b_value, None]
    assert swapped_early == [False]
    assert vm.stats()["grace_waits"] >= 1


def test_begin_update_refuses_a_bad_space_and_a_closed_vm() -> None:
    vm = VM(address_spaces=2)
    with pytest.raises(InvalidRegionError):
        vm.begin_update(2)
    update = vm.begin_update()
    vm.close()
    with pytest.raises(ClosedError):
        update.__enter__()


# ---- hostile use --------------------------------------------------------------------------------------------


def runs(script: str) -> None:
    """Runs the script in its own process and requires exit status 0; a crash fails only this test."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"


ENDS_ITSELF = """
    from memslots import VM, MemslotsError
    vm = VM()
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=4096)
    update = vm.begin_update()
    update.__enter__()
    handle = update.find(0)

    class Ends:
        def __index__(self):
            update.__exit__(None, None, None)
            return 0
        def __bool__(self):
            update.__exit__(None, None, None)
            return True

    try:
        {call}
    except MemslotsError:
        pass
    vm.check()
    vm.set_user_memory_region(1, guest_phys_addr=4096, memory_size=4096)
"""


@pytest.mark.parametrize(
    "call",
    [
        "update.copy(handle, base_gfn=Ends())",
        "update.copy(None, id=Ends(), npages=1)",
        "update.find(Ends())",
        "update.find(0, Ends())",
        "update.find(0, active=Ends())",
    ],
)
def test_argument_that_ends_the_update_does_not_crash(call: str) -> None:
    """The call notices the end of the update and raises UpdateError."""
    runs(ENDS_ITSELF.format(call=call))


OLD_HANDLE = """
    from memslots import VM, UpdateError
    vm = VM()
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=4096)
    update = vm.begin_update()
    with update:
        handle = update.find(0)
        draft = update.copy(handle, base_gfn=9)
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0)
    refused = 0
    with update:
        for old in (handle, draft):
            for use in (lambda: old.memslot, lambda: update.replace(old, None), lambda: update.invalidate(old),
                        lambda: update.copy(old), lambda: update.replace(None, old)):
                try:
                    use()
                except UpdateError:
                    refused += 1
    assert refused == 10, refused
    vm.check()
"""


def test_handle_of_an_earlier_run_of_an_update_is_refused() -> None:
    """The slot of such a handle may no longer exist."""
    runs(OLD_HANDLE)


LEFT_BY_ITS_OWN_FLUSH = """
    from memslots import VM, Listener, MemslotsError
    vm = VM()
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=4096)

    class Leaves(Listener):
        def flush(self, active, old):
            try:
                update.__exit__(ValueError, None, None)
            except MemslotsError as error:
                refused.append(error)

    refused = []
    vm.add_listener(Leaves())
    update = vm.begin_update()
    update.__enter__()
    inv = update.invalidate(update.find(0))
    assert refused
    assert inv.memslot.is_invalid
    update.__exit__(ValueError, None, None)
    assert len(vm) == 1
    vm.check()
"""


def test_leaving_an_update_from_its_own_hook_is_refused() -> None:
    """The step that calls the hook still needs the update."""
    runs(LEFT_BY_ITS_OWN_FLUSH)


OTHER_THREAD = """
    import sys, threading
    from memslots import VM, MemslotsError
    sys.setswitchinterval(1e-5)
    vm = VM()
    for n in range(20):
        vm.set_user_memory_region(n, guest_phys_addr=n * 4096, memory_size=4096)
    update, stop = vm.begin_update(), threading.Event()

    def misuse():
        while not stop.is_set():
            for use in (lambda: update.active[3].memslot, lambda: update.find(3).memslot, update.swap,
                        lambda: update.copy(None, id=77, npages=1)):
                try:
                    use()
                except MemslotsError:
                    pass

    thread = threading.Thread(target=misuse)
    thread.start()
    for n in range(3000):
        with update:
            old = update.find(n % 20)
            new = update.copy(old, userspace_addr=n * 4096)
            update.replace(old, new)
            update.activate(old, new)
    stop.set()
    thread.join()
    vm.check()
"""


@pytest.mark.parametrize("_", range(2))
def test_calls_of_another_thread_during_updates_break_nothing(_: int) -> None:
    """The other thread gets answers or errors while the owner begins and ends updates."""
    runs(OTHER_THREAD)


def test_many_updates_leave_memory_constant(vm: VM, as_id: int) -> None:
    with vm.begin_update(as_id):
        pass
    memory = vm.stats()["blocks"]
    for n in range(500):
        with vm.begin_update(as_id) as u:
            old = u.find(n % 3)
            new = u.copy(old, userspace_addr=n * PAGE)
            u.replace(old, new)
            u.activate(old, new)
    assert vm.stats()["blocks"] == memory
    assert np.array_equal(
        vm.memslots_array(as_id)["userspace_addr"], np.array([498, 499, 497]) * PAGE
    )
