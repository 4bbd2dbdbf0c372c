# SPDX-License-Identifier: MIT
"""Threads and forks: concurrent calls, read sections, and which calls wait for which."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
import pytest
from scene import PAGE, PRELUDE, put

from memslots import (
    HVA_ERR_BAD,
    MEMSLOT_DTYPE,
    VM,
    Change,
    ClosedError,
    GfnNotMappedError,
    Listener,
    MemFlag,
    MemslotsError,
    ReadSection,
    ReentrantChangeError,
    alloc,
)

LOG = MemFlag.LOG_DIRTY_PAGES


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Python switches threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Crew:
    """Threads that work until the body of `with` ends, which then raises the first exception of a thread."""

    def __init__(self, *works: Callable[[Crew], object]) -> None:
        self.stop, self.errors, self.rounds = False, [], [0] * len(works)
        self.threads = [
            threading.Thread(target=self.run, args=(i, work), daemon=True)
            for i, work in enumerate(works)
        ]

    def run(self, i: int, work: Callable[[Crew], object]) -> None:
        try:
            while not self.stop:
                work(self)
                self.rounds[i] += 1
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Crew:
        for thread in self.threads:
            thread.start()
        return self

    def worked(self, rounds: int) -> bool:
        """Whether each thread has done that many rounds, or one has failed.  A busy machine may need long for that;
        faulthandler_timeout ends a test whose threads make no progress."""
        return bool(self.errors) or min(self.rounds) >= rounds

    def __exit__(self, *exc_info: object) -> None:
        self.stop = True
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise self.errors[0]


# ---- lookups whose answers reveal the slots they come from -------------------------------------------

# Slot i has the pages [64 i, 64 i + 64), and its host address depends on its place.  A lookup of a gfn gives
# hva_of(gfn, shift) for one of two shifts, or a hole; any other answer is a mixture of two states.
SLOTS = 40
SHIFTS = (0, 2**40)


def hva_of(gfn: int, shift: int) -> int:
    return gfn * PAGE + shift


def plausible(gfn: int, hva: int) -> bool:
    return hva in (HVA_ERR_BAD, *(hva_of(gfn, shift) for shift in SHIFTS))


def fill(vm: VM) -> None:
    for i in range(SLOTS):
        put(vm, i, 64 * i, 64, hva=hva_of(64 * i, 0))


def shift_slot(vm: VM, i: int, shift: int) -> None:
    """Deletes slot i and creates it again at another host address."""
    put(vm, i, 0, 0)
    put(vm, i, 64 * i, 64, hva=hva_of(64 * i, shift))


def look_scalar(vm: VM) -> Callable[[Crew], None]:
    rng = Random(1)

    def work(crew: Crew) -> None:
        gfn = rng.randrange(64 * SLOTS)
        try:
            assert plausible(gfn, vm.gfn_to_hva(gfn))
            assert plausible(gfn, vm.gpa_to_hva(gfn * PAGE + 5) - 5)
        except GfnNotMappedError:
            pass
        slot = vm.gfn_to_memslot(gfn)
        assert slot is None or (slot.id == gfn // 64 and slot.base_gfn == gfn // 64 * 64)
        slot = vm.id_to_memslot(gfn // 64)
        assert slot is None or plausible(slot.base_gfn, slot.userspace_addr)
        assert vm.is_visible_gfn(gfn) in (True, False)

    return work


def look_vcpu(vm: VM, vcpu: Any) -> Callable[[Crew], None]:
    rng = Random(2)

    def work(crew: Crew) -> None:
        gfn = rng.randrange(64 * SLOTS)
        with suppress(GfnNotMappedError):
            assert plausible(gfn, vcpu.gfn_to_hva(gfn))
        slot = vcpu.gfn_to_memslot(gfn)
        assert slot is None or slot.base_gfn <= gfn < slot.base_gfn + slot.npages

    return work


def look_many(vm: VM) -> Callable[[Crew], None]:
    gfns = np.arange(64 * SLOTS, dtype=np.uint64)
    out = np.empty_like(gfns)

    def work(crew: Crew) -> None:
        vm.gfn_to_hva_many(gfns, out)
        blocks = out.reshape(SLOTS, 64)
        first = blocks[:, :1]
        steps = np.arange(64, dtype=np.uint64) * np.uint64(PAGE)
        whole = np.where(first == HVA_ERR_BAD, first, first + steps)
        assert np.array_equal(blocks, whole), "half a slot"
        assert all(plausible(64 * i, int(first[i, 0])) for i in range(SLOTS))
        assert (first == HVA_ERR_BAD).sum() <= 1, "all answers come from one set"
        ids = vm.gfn_to_slot_id_many(gfns[::64])
        assert set((ids - np.arange(SLOTS))[ids >= 0].tolist()) <= {0}

    return work


def look_section(vm: VM) -> Callable[[Crew], None]:
    rng = Random(4)
    gfns = np.arange(0, 64 * SLOTS, 64, dtype=np.uint64)

    def work(crew: Crew) -> None:
        with vm.read() as same:
            assert same is vm
            before = (vm.memslots(), vm.generation(), vm.gfn_to_hva_many(gfns).tolist())
            for _ in range(rng.randrange(4)):
                time.sleep(0)
            with vm.read():
                assert (vm.memslots(), vm.gfn_to_hva_many(gfns).tolist()) == (before[0], before[2])
            assert list(vm.snapshot()) == before[0] == list(vm.snapshot())
            assert [s.id for s in vm.memslots_in_gfn_range(0, 2**52)] == [s.id for s in before[0]]
            hvas = [s.userspace_addr for s in before[0]]
            assert [s.userspace_addr for s in vm.memslots_in_hva_range(0, 2**64 - 1)] == sorted(
                hvas
            )

    return work


def look_around(vm: VM) -> Callable[[Crew], None]:
    def work(crew: Crew) -> None:
        assert len(vm.memslots_array()) in (SLOTS - 1, SLOTS)
        assert SLOTS - 1 <= len(vm.snapshot()) <= SLOTS
        for slot, gfn in vm.hva_to_gfns(hva_of(100, 0) + 7):
            assert (slot.id, gfn) == (1, 100)
        vm.mark_page_dirty(5)
        vm.mark_page_dirty_many(np.arange(9, dtype=np.uint64))
        assert 0 <= vm.nr_memslot_pages <= 64 * SLOTS
        assert vm.stats()["swaps"] > 0

    return work


@pytest.mark.slow
@pytest.mark.usefixtures("frequent_switches")
def test_lookups_during_changes_never_mix_two_states(vm: VM) -> None:
    """Each kind of lookup has its own thread while the main thread deletes and creates slots."""
    fill(vm)
    vcpu = vm.create_vcpu()
    looks = [
        look_scalar(vm),
        look_many(vm),
        look_vcpu(vm, vcpu),
        look_vcpu(vm, vcpu),
        look_section(vm),
        look_around(vm),
    ]
    rng, end, changes = Random(9), time.monotonic() + 3, 0
    with Crew(*looks) as crew:
        while time.monotonic() < end or changes < 20 or not crew.worked(5):
            shift_slot(vm, rng.randrange(SLOTS), rng.choice(SHIFTS))
            changes += 1
            if changes % 50 == 0:
                vm.check()
    vm.check()


@pytest.mark.usefixtures("frequent_switches")
def test_changes_from_many_threads_all_take_effect(vm: VM) -> None:
    """Each thread has its own ids and gfns."""

    def work(me: int) -> None:
        for i in range(100):
            put(vm, me * 1000 + i, me * 10**6 + i * 10, 5)
            put(vm, me * 1000 + i, me * 10**6 + i * 10 + 2, 5)
            if i % 3 == 0:
                put(vm, me * 1000 + i, 0, 0)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    vm.check()
    assert (len(vm), vm.nr_memslot_pages) == (6 * 66, 6 * 66 * 5)
    assert vm.generation() == 6 * (100 + 200 + 34 * 2)


@pytest.mark.usefixtures("frequent_switches")
def test_no_dirty_bit_is_lost_during_harvests_and_swaps(vm: VM) -> None:
    """Two threads mark and two harvest while the main thread swaps the sets; the harvests contain every mark."""
    put(vm, 0, 0, 640, flags=LOG)
    put(vm, 1, 10_000, 1)
    harvested, marked, lock = np.zeros(10, np.uint64), [], threading.Lock()

    rng = Random(3)

    def mark(crew: Crew) -> None:
        gfn = rng.randrange(640)
        vm.mark_page_dirty(gfn)
        vm.mark_page_dirty_many(np.array([(gfn * 7) % 640], np.uint64))
        with lock:
            marked.extend((gfn, (gfn * 7) % 640))

    def harvest(crew: Crew | None) -> None:
        words = vm.get_dirty_log(0)
        with lock:
            np.bitwise_or(harvested, words, out=harvested)
            assert bits() <= set(range(640))

    def bits() -> set[int]:
        return {i for i in range(640) if int(harvested[i // 64]) >> (i % 64) & 1}

    moves = 0
    with Crew(mark, mark, harvest, harvest) as crew:
        while moves < 300 or not crew.worked(50):
            put(vm, 1, 10_000 + moves % 2 * 100, 1)
            moves += 1
    harvest(None)
    assert bits() == set(marked)


def test_mark_during_a_move_reaches_the_log(vm: VM) -> None:
    """The hooks of the MOVE mark the old place of the slot, then the new one."""

    class Marks(Listener):
        def prepare(self, change: Change) -> None:
            vm.mark_page_dirty(3)  # the INVALID copy is active

        def commit(self, change: Change) -> None:
            vm.mark_page_dirty(1005)

    put(vm, 0, 0, 64, flags=LOG)
    vm.mark_page_dirty(1)
    vm.add_listener(Marks())
    put(vm, 0, 1000, 64, flags=LOG)
    assert vm.get_dirty_log(0).tolist() == [1 << 1 | 1 << 3 | 1 << 5]


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.usefixtures("frequent_switches")
def test_close_during_lookups_gives_old_answers_or_closederror(as_array: bool) -> None:
    """Each answer is that of the open VM, a hole, or ClosedError."""
    for _ in range(10):
        vm = VM()
        fill(vm)
        vcpu = vm.create_vcpu()

        def work(crew: Crew, vm: VM = vm, vcpu: Any = vcpu) -> None:
            try:
                if as_array:
                    assert len(vm.memslots()) in (0, SLOTS)
                    hvas = vm.gfn_to_hva_many(np.arange(200, dtype=np.uint64))
                    assert len(set((hvas == HVA_ERR_BAD).tolist())) == 1
                else:
                    assert vm.gfn_to_hva(70) == hva_of(70, 0)
                    assert vcpu.gfn_to_hva(71) == hva_of(71, 0)
            except (GfnNotMappedError, ClosedError):
                pass

        with Crew(work, work, work) as crew:
            while sum(crew.rounds) < 20 and not crew.errors:
                time.sleep(0)
            vm.close()
        assert vm.closed
        with pytest.raises(ClosedError):
            vm.memslots()


def test_concurrent_close_from_several_threads_succeeds() -> None:
    vm = VM()
    fill(vm)
    threads = [threading.Thread(target=vm.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vm.closed


@pytest.mark.usefixtures("frequent_switches")
def test_vcpu_shared_by_threads_gives_right_answers(vm: VM) -> None:
    """Only one thread at a time uses the vCPU's hint; the others look up without it."""
    fill(vm)
    vcpu = vm.create_vcpu()
    moves = 0
    with Crew(*[look_vcpu(vm, vcpu)] * 4) as crew:
        while moves < 300 or not crew.worked(1):
            shift_slot(vm, moves % SLOTS, SHIFTS[moves % 2])
            moves += 1
    vm.check()


def test_ended_thread_returns_its_record(vm: VM) -> None:
    """Memory does not grow with the number of threads that have ever looked up."""
    put(vm, 0, 0, 1)

    def one() -> None:
        thread = threading.Thread(target=vm.gfn_to_hva, args=(0,))
        thread.start()
        thread.join()
        # The thread returns its record last.
        while os.path.exists(f"/proc/self/task/{thread.native_id}"):
            time.sleep(0)

    for _ in range(5):
        one()
    before = vm.stats()["blocks"]
    for _ in range(200):
        one()
    assert vm.stats()["blocks"] <= before + 2


def test_section_of_an_ended_thread_does_not_block_changes(vm: VM) -> None:
    """The section ends with its thread."""
    put(vm, 0, 0, 1)
    kept: list[ReadSection] = []

    def die() -> None:
        section = vm.read()
        section.__enter__()
        kept.append(section)

    thread = threading.Thread(target=die)
    thread.start()
    thread.join()
    put(vm, 0, 5, 1)
    assert vm.gfn_to_hva(5) == 0
    with pytest.raises(RuntimeError):
        kept[0].__exit__(None, None, None)
    kept.clear()
    put(vm, 0, 6, 1)
    vm.check()


# ---- read sections -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::memslots.ReaderStallWarning")
def test_change_waits_for_a_section_that_sees_the_old_slots(vm: VM) -> None:
    """The change continues when the section ends."""
    put(vm, 0, 0, 1, hva=PAGE)
    vm.stall_warning_ms = 1
    done = threading.Event()

    def change() -> None:
        put(vm, 0, 7, 1, hva=PAGE)
        done.set()

    thread = threading.Thread(target=change)
    with vm.read():
        assert vm.gfn_to_hva(0) == PAGE
        thread.start()
        while not (vm.stats()["stalls"] or done.is_set()):
            time.sleep(0.001)
        assert not done.is_set()
        assert vm.gfn_to_hva(0) == PAGE
        assert vm.gfn_to_memslot(7) is None
        assert not vm.gfn_to_memslot(0).is_invalid
        assert [slot.base_gfn for slot in vm.memslots()] == [0]
        assert vm.hva_to_gfns(PAGE)[0][1] == 0
    done.wait()
    thread.join()
    assert vm.gfn_to_hva(7) == PAGE
    assert vm.stats()["grace_waits"] >= 1


def null_bitmap(vm: VM) -> None:
    with pytest.raises(MemslotsError):
        vm._get_dirty_log_null(0)


WAITING: dict[str, Callable[[VM, Listener], object]] = {
    "set": lambda vm, _: put(vm, 1, 1, 1),
    "delete": lambda vm, _: vm.delete(0),
    "move": lambda vm, _: vm.move(0, 0x100000),
    "set_flags": lambda vm, _: vm.set_flags(0, clear=LOG),
    "free_slot_id": lambda vm, _: vm.free_slot_id(),
    "map_buffer": lambda vm, _: vm.map_buffer(0x100000, alloc(PAGE)),
    "load": lambda vm, _: vm.load_memslots(np.array([(9, 1, 0, 9, 0, 0)], MEMSLOT_DTYPE)),
    "get_dirty_log": lambda vm, _: vm.get_dirty_log(0),
    "get_dirty_log of NULL": lambda vm, _: null_bitmap(vm),
    "clear_dirty_log": lambda vm, _: vm.clear_dirty_log(0, 0, 0, None),
    "harvest_dirty": lambda vm, _: vm.harvest_dirty(),
    "merge_dirty_log": lambda vm, _: vm.merge_dirty_log(0, np.zeros(1, np.uint64)),
    "protect": lambda vm, _: setattr(vm, "manual_dirty_log_protect", 1),
    "stall_warning": lambda vm, _: setattr(vm, "stall_warning_ms", 1000),
    "check": lambda vm, _: vm.check(),
    "close": lambda vm, _: vm.close(),
    "create_vcpu": lambda vm, _: vm.create_vcpu(),
    "add_listener": lambda vm, _: vm.add_listener(Listener()),
    "remove_listener": lambda vm, listener: vm.remove_listener(listener),
    "begin_update": lambda vm, _: vm.begin_update().__enter__().swap(),
}


@pytest.mark.parametrize("call", WAITING)
def test_call_that_waits_for_the_lock_releases_the_gil(vm: VM, call: str) -> None:
    """The call waits for a change that waits for a section.  A call that kept the GIL would hang here, because the
    thread that leaves the section needs it.  Stall warnings are off: to show one, a change takes the GIL."""
    listener = Listener()
    vm.add_listener(listener)
    put(vm, 0, 0, 1, flags=LOG)
    vm.stall_warning_ms = 0
    published = threading.Event()

    def look() -> None:
        while vm.gfn_to_memslot(5) is None:
            time.sleep(0.001)
        published.set()

    threads = [
        threading.Thread(target=put, args=(vm, 5, 5, 1)),
        threading.Thread(target=look),
        threading.Thread(target=WAITING[call], args=(vm, listener)),
    ]
    with vm.read():
        for thread in threads[:2]:
            thread.start()
        published.wait()
        threads[2].start()
        time.sleep(0.02)
        assert threads[0].is_alive()
        assert threads[2].is_alive()
        assert vm.gfn_to_memslot(5) is None
    for thread in threads:
        thread.join()


def test_lookups_do_not_wait_for_a_change_that_waits_for_a_section(vm: VM) -> None:
    put(vm, 0, 0, 1)
    inside, leave = threading.Event(), threading.Event()

    def reader() -> None:
        with vm.read():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=reader)
    thread.start()
    inside.wait()
    changer = threading.Thread(target=put, args=(vm, 1, 1, 1))
    changer.start()
    time.sleep(0.05)
    assert changer.is_alive()
    for _ in range(1000):
        assert vm.gfn_to_hva(0) == 0
    assert len(vm.memslots()) in (1, 2)
    leave.set()
    for t in (thread, changer):
        t.join()
    assert len(vm) == 2


REFUSED: dict[str, Callable[[VM], object]] = {
    "set": lambda vm: put(vm, 1, 1, 1),
    "no-op": lambda vm: put(vm, 0, 0, 1, flags=LOG),
    "load": lambda vm: vm.load_memslots(np.zeros(0, MEMSLOT_DTYPE)),
    "get_dirty_log": lambda vm: vm.get_dirty_log(0),
    "clear_dirty_log": lambda vm: vm.clear_dirty_log(0, 0, 0, None),
    "harvest_dirty": lambda vm: vm.harvest_dirty(),
    "merge_dirty_log": lambda vm: vm.merge_dirty_log(0, np.zeros(1, np.uint64)),
    "protect": lambda vm: setattr(vm, "manual_dirty_log_protect", 1),
    "check": lambda vm: vm.check(),
    "close": lambda vm: vm.close(),
    "create_vcpu": lambda vm: vm.create_vcpu(),
    "begin_update": lambda vm: vm.begin_update().__enter__(),
}


@pytest.mark.parametrize("call", REFUSED)
def test_change_inside_a_section_raises_edeadlk(vm: VM, call: str) -> None:
    """A section of another VM makes no difference: the call fails immediately."""
    put(vm, 0, 0, 1, flags=LOG)
    with VM() as other:
        put(other, 0, 0, 1, flags=LOG)
        for inside in (vm, other):
            with inside.read(), inside.read():
                with pytest.raises(ReentrantChangeError) as caught:
                    REFUSED[call](vm)
                assert (caught.value.errno, caught.value.rule) == (errno.EDEADLK, "READ_SECTION")
    put(vm, 1, 1, 1)


def test_sections_nest_until_the_outermost_ends(vm: VM) -> None:
    """Nests one section object in itself and in another one."""
    section = vm.read()
    with section, section, vm.read(), section as same:
        assert same is vm
        with pytest.raises(ReentrantChangeError):
            put(vm, 0, 0, 1)
    put(vm, 0, 0, 1)
    with section:
        assert vm.gfn_to_hva(0) == 0
    put(vm, 1, 1, 1)


def test_leaving_a_section_twice_raises(vm: VM) -> None:
    section = vm.read()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="left once"):
            section.__exit__(None, None, None)
        with section:
            pass
    put(vm, 0, 0, 1)


def test_section_of_another_thread_cannot_be_left_or_entered(vm: VM) -> None:
    """The failed calls leave the section open for its own thread."""
    put(vm, 0, 0, 1)
    section = vm.read()
    errors: list[BaseException] = []

    def misuse() -> None:
        for call in (lambda: section.__exit__(None, None, None), section.__enter__):
            try:
                call()
            except RuntimeError as error:
                errors.append(error)
        put(vm, 0, 9, 1)  # waits for the section

    with section:
        thread = threading.Thread(target=misuse)
        thread.start()
        time.sleep(0.05)
        assert vm.gfn_to_hva(0) == 0
        assert thread.is_alive()
    thread.join()
    assert len(errors) == 2
    assert vm.gfn_to_hva(9) == 0
    with pytest.raises(TypeError):
        ReadSection(None)


def test_dropped_section_ends(vm: VM) -> None:
    section = vm.read()
    section.__enter__()
    section.__enter__()
    with pytest.raises(ReentrantChangeError):
        put(vm, 0, 0, 1)
    del section
    put(vm, 0, 0, 1)


@pytest.mark.parametrize("end", ["leave", "drop"])
def test_section_does_not_pass_to_a_thread_with_a_reused_ident(vm: VM, end: str) -> None:
    """The system may give the ident of an ended thread to a new one, which must not own the old section."""
    left: list[ReadSection] = []
    idents: list[int] = []

    def enter() -> None:
        idents.append(threading.get_ident())
        left.append(vm.read())
        left[0].__enter__()

    def end_it() -> None:
        idents.append(threading.get_ident())
        if end == "leave":
            with pytest.raises(RuntimeError, match="by the thread that entered it"):
                left[0].__exit__(None, None, None)
        left.clear()
        # This change fails inside a section, and hangs if the old section is still open.
        put(vm, 1, len(idents), 1)

    for _ in range(50):
        for target in (enter, end_it):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    if len(set(idents)) == len(idents):
        pytest.skip("this system did not reuse an ident")
    vm.check()


def test_exception_leaves_the_section(vm: VM) -> None:
    with pytest.raises(ZeroDivisionError), vm.read():
        raise ZeroDivisionError
    put(vm, 0, 0, 1)


def test_entering_a_section_of_a_closed_vm_raises_closederror(vm: VM) -> None:
    """The section object was made before the close."""
    section = vm.read()
    vm.close()
    with pytest.raises(ClosedError), section:
        pass


def test_close_waits_for_a_section(vm: VM) -> None:
    put(vm, 0, 0, 1)
    thread = threading.Thread(target=vm.close)
    with vm.read():
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert vm.gfn_to_hva(0) == 0
    thread.join()
    assert vm.closed


def test_sections_may_be_left_in_the_order_of_entry(vm: VM) -> None:
    put(vm, 0, 0, 1)
    sections = [vm.read() for _ in range(10)]
    for section in sections:
        section.__enter__()
    for section in sections:
        assert vm.gfn_to_hva(0) == 0
        section.__exit__(None, None, None)
    put(vm, 0, 1, 1)
    vm.check()


# ---- fork ---------------------------------------------------------------------------------------------

FORK = """
vm = VM()
for id in range(20):
    put(vm, id, id * 10, 5, 1)
vcpu = vm.create_vcpu()
vcpu.gfn_to_hva(11)
vm.mark_page_dirty(10)

def looks():
    assert vm.gfn_to_hva(11) == (1 << 30) + 4096 == vcpu.gfn_to_hva(11)
    assert len(vm) == 20 == len(vm.memslots()) == len(vm.snapshot()) == len(vm.memslots_array())
    assert vm.gfn_to_slot_id_many(np.array([0, 5, 190], np.uint64)).tolist() == [0, -1, 19]
    with vm.read():
        assert vm.hva_to_gfns(1 << 30)[0][1] == 10
    assert vm.generation() == 20 and vm.stats()["swaps"] == 20

def changes():
    rows = np.zeros(1, MEMSLOT_DTYPE)
    for call in (lambda: put(vm, 0, 0, 0), lambda: put(vm, 0, 0, 5, 1), lambda: vm.load_memslots(rows),
                 lambda: vm.get_dirty_log(1), lambda: vm.clear_dirty_log(1, 0, 0, None), vm.check, vm.close,
                 vm.harvest_dirty, lambda: vm.merge_dirty_log(1, np.zeros(1, np.uint64)),
                 lambda: setattr(vm, "manual_dirty_log_protect", 1), lambda: vm.begin_update().__enter__(),
                 vm.create_vcpu, lambda: vm.add_listener(Listener())):
        try:
            call()
        except ForkedError as error:
            assert error.errno == 5 and error.rule == "FORKED" and isinstance(error, RuntimeError), error
        else:
            raise AssertionError("a change in the child")
    assert not vm.closed and len(vm) == 20

def own():
    # A VM that the child makes works normally, in several threads.
    with VM() as mine:
        put(mine, 0, 0, 5)
        threads = [threading.Thread(target=put, args=(mine, n, 10 * n, 5)) for n in range(1, 5)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert len(mine) == 5
        mine.check()

def fork(*calls):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            for call in calls: call()
            status = 0
        except BaseException:
            import traceback; traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    raise AssertionError("the child hangs")

inside, leave = threading.Event(), threading.Event()
def in_section():
    with vm.read():
        inside.set(); leave.wait()
def in_update():
    with vm.begin_update():
        inside.set(); leave.wait()
def start_and_wait(work):
    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    return thread
"""

FORKS = {
    "alone": "for _ in range(5): fork(looks, changes, own)",
    "twice": "fork(looks, lambda: fork(looks, changes, own), changes)",
    "in a section": "with vm.read(): fork(looks)",
    "reader inside": "t = start_and_wait(in_section)\nfor _ in range(5): fork(looks, changes, own)\n"
    "leave.set(); t.join()",
    "update inside": "t = start_and_wait(in_update)\nfor _ in range(5): fork(looks, changes, own)\n"
    "leave.set(); t.join()",
    "in an update": "with vm.begin_update() as u:\n    fork(looks, changes, lambda: u.active)",
    "dropped update": "u = vm.begin_update().__enter__()\ndef drop():\n    global u; del u\n"
    "fork(drop, looks, changes)\nu.__exit__(None, None, None)",
    "dropped VM": "def drop():\n    global vm, vcpu; del vm, vcpu\nfork(drop, own)",
    "in a section, dropped": "s = vm.read(); s.__enter__()\ndef drop():\n    global s; del s\n"
    "fork(looks, drop, looks)\ns.__exit__(None, None, None)",
    "threads look and change": (
        "other = VM()\nput(other, 0, 0, 1)\nstop = []\n"
        "def look():\n    while not stop: vm.gfn_to_hva(11); other.memslots()\n"
        "def change():\n    while not stop: put(other, 1, 5, 1); put(other, 1, 5, 0)\n"
        "ts = [threading.Thread(target=f) for f in (look, look, change)]\n"
        "for t in ts: t.start()\n"
        "for _ in range(20): fork(looks, changes, lambda: other.memslots(), own)\n"
        "stop.append(1)\nfor t in ts: t.join()"
    ),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("kind", FORKS)
def test_forked_child_reads_but_cannot_change_the_vm(kind: str) -> None:
    """The child gets the parent's answers from lookups, and ForkedError from changes; it never hangs.  The fork does
    not affect the parent."""
    after = "\nlooks(); vm.check(); put(vm, 50, 5000, 1); put(vm, 0, 0, 0); assert len(vm) == 20; print('well')\n"
    script = PRELUDE + FORK + FORKS[kind] + after
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("well", "", 0)


# ---- the end of the interpreter -----------------------------------------------------------------------

EXITS = {
    "daemon inside a section": """
        def work():
            with vm.read():
                time.sleep(100)
    """,
    "daemon that looks": """
        def work():
            while True: vm.gfn_to_hva(0); vm.memslots()
    """,
    "daemon that changes": """
        def work():
            while True: put(vm, 1, 5, 1); put(vm, 1, 6, 1)
    """,
    "daemon in an update": """
        def work():
            with vm.begin_update() as u:
                time.sleep(100)
    """,
}


@pytest.mark.parametrize("kind", EXITS)
def test_interpreter_exits_silently_with_daemon_threads(kind: str) -> None:
    """The process exits with status 0 and prints nothing, wherever the daemon thread is."""
    script = f"""{PRELUDE}
vm = VM()
put(vm, 0, 0, 1)
{textwrap.dedent(EXITS[kind])}
threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_concurrent_errors_name_the_slot_of_their_own_call(vm: VM) -> None:
    """Four threads get errors at the same time."""
    wrong: list[str] = []

    def work(me: int) -> None:
        for i in range(300):
            try:
                put(vm, me * 1000 + i, 0, 0)
            except MemslotsError as error:
                if error.slot != me * 1000 + i or f"slot {error.slot} " not in str(error):
                    wrong.append(str(error))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert vm.stats()["refused"] == 1200
