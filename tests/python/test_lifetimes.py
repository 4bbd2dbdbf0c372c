# SPDX-License-Identifier: MIT
"""Lifetimes: closed VMs, collected cycles, results that outlive their VM, and no memory left at the end."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from scene import PAGE, SANITIZED, methods, put, runs, slot

from memslots import (
    HVA_ERR_BAD,
    MEMSLOT_DTYPE,
    VCPU,
    VM,
    Change,
    ClosedError,
    Listener,
    Mapping,
    MemFlag,
    MemslotsError,
    ReadSection,
    SlotHandle,
    Snapshot,
    Update,
    alloc,
)
from memslots._memslots import REGION_DTYPE, time_changes, time_lookups
from memslots.layout import STEP_DTYPE

LOG = MemFlag.LOG_DIRTY_PAGES


# ---- after close --------------------------------------------------------------------------------------------------


class Parts:
    """An open VM with one object of each class that belongs to it."""

    def __init__(self) -> None:
        self.vm = VM(address_spaces=2)
        put(self.vm, 0, 0, 64, LOG)
        self.mapping = self.vm.map_buffer(GPA, alloc(PAGE), slot=9)
        self.vcpu, self.section, self.update = (
            self.vm.create_vcpu(),
            self.vm.read(),
            self.vm.begin_update(),
        )
        with self.update:
            self.handle = self.update.find(0)

    def of(self, cls: type) -> Any:
        return {
            VM: self.vm,
            Mapping: self.mapping,
            VCPU: self.vcpu,
            ReadSection: self.section,
            Update: self.update,
            SlotHandle: self.handle,
        }[cls]


GFNS = np.zeros(1, np.uint64)
GPA = 2**20 * PAGE  # of the mapping
EMPTY = Snapshot(np.zeros(0, MEMSLOT_DTYPE), 0, 0)

# Valid arguments by class and method; a method that is missing here takes no argument.
ARGUMENTS: dict[str, Callable[[Parts], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "VM.set_user_memory_region": lambda p: ((0,), {"guest_phys_addr": 0, "memory_size": 0}),
    "VM.load_memslots": lambda p: ((np.zeros(0, MEMSLOT_DTYPE),), {}),
    "VM.delete": lambda p: ((0,), {}),
    "VM.move": lambda p: ((0, 0), {}),
    "VM.set_flags": lambda p: ((0,), {}),
    "VM.map_buffer": lambda p: ((2**21 * PAGE, alloc(PAGE)), {}),
    "VM.pinned_by": lambda p: ((b"",), {}),
    "VM.add_listener": lambda p: ((Listener(),), {}),
    "VM.remove_listener": lambda p: ((Listener(),), {}),
    "VM.gfn_to_memslot": lambda p: ((0,), {}),
    "VM.id_to_memslot": lambda p: ((0,), {}),
    "VM.gfn_to_hva": lambda p: ((0,), {}),
    "VM.gpa_to_hva": lambda p: ((0,), {}),
    "VM.gfn_to_hva_prot": lambda p: ((0,), {}),
    "VM.is_visible_gfn": lambda p: ((0,), {}),
    "VM.gfn_to_hva_many": lambda p: ((GFNS,), {}),
    "VM.gpa_to_hva_many": lambda p: ((GFNS,), {}),
    "VM.gfn_to_slot_id_many": lambda p: ((GFNS,), {}),
    "VM.memslots_in_gfn_range": lambda p: ((0, 1), {}),
    "VM.memslots_in_hva_range": lambda p: ((0, 1), {}),
    "VM.hva_to_gfns": lambda p: ((0,), {}),
    "VM.read_guest": lambda p: (
        (
            GPA,
            8,
        ),
        {},
    ),
    "VM.readinto_guest": lambda p: (
        (
            GPA,
            bytearray(8),
        ),
        {},
    ),
    "VM.write_guest": lambda p: (
        (
            GPA,
            bytes(8),
        ),
        {},
    ),
    "VM.read_u8": lambda p: ((GPA,), {}),
    "VM.read_u16": lambda p: ((GPA,), {}),
    "VM.read_u32": lambda p: ((GPA,), {}),
    "VM.read_u64": lambda p: ((GPA,), {}),
    "VM.write_u8": lambda p: (
        (
            GPA,
            1,
        ),
        {},
    ),
    "VM.write_u16": lambda p: (
        (
            GPA,
            1,
        ),
        {},
    ),
    "VM.write_u32": lambda p: (
        (
            GPA,
            1,
        ),
        {},
    ),
    "VM.write_u64": lambda p: (
        (
            GPA,
            1,
        ),
        {},
    ),
    "VM.fill_guest": lambda p: (
        (
            GPA,
            8,
            1,
        ),
        {},
    ),
    "VM.copy_guest": lambda p: (
        (
            GPA,
            GPA,
            8,
        ),
        {},
    ),
    "VM.read_u64_many": lambda p: (([GPA],), {}),
    "VM.write_u64_many": lambda p: (
        (
            [GPA],
            1,
        ),
        {},
    ),
    "VM.host_ranges": lambda p: ((GPA, 8), {}),
    "VM.host_ranges_many": lambda p: (([GPA], 8), {}),
    "VM.memslots_in_gfn_range_many": lambda p: (([0], 9), {}),
    "VM.mark_page_dirty": lambda p: ((0,), {}),
    "VM.mark_page_dirty_many": lambda p: ((GFNS,), {}),
    "VM.get_dirty_log": lambda p: ((0,), {}),
    "VM._get_dirty_log_null": lambda p: ((0,), {}),
    "VM.clear_dirty_log": lambda p: ((0, 0, 64, GFNS), {}),
    "VM.merge_dirty_log": lambda p: ((0, GFNS), {}),
    "VCPU.gfn_to_memslot": lambda p: ((0,), {}),
    "VCPU.gfn_to_hva": lambda p: ((0,), {}),
    "VCPU.gpa_to_hva": lambda p: ((0,), {}),
    "ReadSection.__exit__": lambda p: ((None, None, None), {}),
    "Update.__exit__": lambda p: ((None, None, None), {}),
    "Update.find": lambda p: ((0,), {}),
    "Update.copy": lambda p: ((p.handle,), {}),
    "Update.replace": lambda p: ((p.handle, None), {}),
    "Update.invalidate": lambda p: ((p.handle,), {}),
    "Update.activate": lambda p: ((p.handle, None), {}),
    "VM.__exit__": lambda p: ((None, None, None), {}),
    "VM.apply": lambda p: ((EMPTY,), {}),
    "VM.restore": lambda p: ((EMPTY,), {}),
    "VM.from_snapshot": lambda p: ((EMPTY,), {}),
    "VM._compare": lambda p: ((np.zeros(0, MEMSLOT_DTYPE), True), {}),
    "VM._load_into_empty": lambda p: ((EMPTY, 0), {}),
    "VM._change_many": lambda p: ((np.zeros(0, STEP_DTYPE),), {}),
    "Mapping.move": lambda p: ((0x100000,), {}),
    "Mapping.__exit__": lambda p: ((None, None, None), {}),
}
CLASSES = (VM, Mapping, VCPU, ReadSection, Update, SlotHandle)
METHODS = [(cls, name) for cls in CLASSES for name, _ in methods(cls)]
# Methods that succeed on a closed VM: close is idempotent, and so are unmap and the end of `with`; from_snapshot()
# makes another VM; views and Snapshots, which pinned_by() counts, outlive the VM.
STILL = {
    "VM.close",
    "VM.__exit__",
    "VM.from_snapshot",
    "VM.pinned_by",
    "Mapping.unmap",
    "Mapping.__exit__",
}
# Methods that raise another error than ClosedError, because their section or update is not running.
NOT_RUNNING = {
    "ReadSection.__exit__": RuntimeError,
    **{
        f"Update.{name}": MemslotsError
        for name in ("__exit__", "find", "copy", "replace", "invalidate", "swap")
    },
    "Update.activate": MemslotsError,
}


def call(parts: Parts, cls: type, name: str) -> Any:
    args, kwargs = ARGUMENTS.get(f"{cls.__name__}.{name}", lambda p: ((), {}))(parts)
    return getattr(parts.of(cls), name)(*args, **kwargs)


@pytest.mark.parametrize(("cls", "name"), METHODS)
def test_every_method_on_a_closed_vm_raises(cls: type, name: str) -> None:
    """The test finds the methods itself: a new one must have arguments in ARGUMENTS, and must raise."""
    parts, full = Parts(), f"{cls.__name__}.{name}"
    parts.vm.close()
    for _ in range(2):
        if full in STILL:
            call(parts, cls, name)
            continue
        with pytest.raises(NOT_RUNNING.get(full, ClosedError)):
            call(parts, cls, name)
    assert len(parts.vm) == 0


def test_every_method_accepts_its_arguments_on_an_open_vm() -> None:
    """Makes sure that the errors in the test above come from the closed VM, not from wrong arguments."""
    refused: dict[str, type[Exception]] = {}
    for cls, name in METHODS:
        parts = Parts()
        full = f"{cls.__name__}.{name}"
        try:
            call(parts, cls, name)
        except (MemslotsError, RuntimeError) as error:
            refused[full] = type(error)
        if name == "__enter__" and cls is not VM:
            parts.of(cls).__exit__(None, None, None)
        if not parts.vm.closed:
            parts.vm.check()
    assert ClosedError not in refused.values()
    assert set(refused) == {*NOT_RUNNING, "VM.remove_listener", "VM._get_dirty_log_null"}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_property_on_a_closed_vm_has_a_value_or_raises(cls: type) -> None:
    """Reading gives a value or a MemslotsError; writing raises."""
    parts = Parts()
    parts.vm.close()
    thing = parts.of(cls)
    for name, value in vars(cls).items():
        if name.startswith("_") or callable(value):
            continue
        try:
            now = getattr(thing, name)
        except MemslotsError:
            now = 0
        with pytest.raises((AttributeError, MemslotsError)):
            setattr(thing, name, now)
    repr(thing)


def test_timing_functions_and_constructors_on_a_closed_vm_raise_closederror() -> None:
    parts = Parts()
    parts.vm.close()
    for bad in (
        lambda: time_lookups(parts.vm, "gfn_to_hva", GFNS),
        lambda: time_lookups(parts.vm, "gfn_to_hva", GFNS, vcpu=parts.vcpu),
        lambda: time_changes(parts.vm, np.zeros(1, REGION_DTYPE)),
        lambda: VCPU(parts.vm),
        lambda: Update(parts.vm),
    ):
        with pytest.raises(ClosedError):
            bad()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copy_and_pickle_raise_typeerror(duplicate: Callable[[Any], Any]) -> None:
    """Covers every class whose objects stand for a part of the engine."""
    parts = Parts()
    for cls in CLASSES:
        with pytest.raises(TypeError):
            duplicate(parts.of(cls))
    parts.vm.check()


# ---- close while readers or an update are active -------------------------------------------------------------------


def assert_close_fails_inside(where: Callable[[VM], Iterator[None]]) -> None:
    vm = VM()
    put(vm, 0, 0, 1)
    for _ in where(vm):
        with pytest.raises(MemslotsError):
            vm.close()
        assert not vm.closed
        assert vm.gfn_to_hva(0) == 0
    vm.close()
    vm.close()
    assert vm.closed


def test_close_inside_a_section_or_an_update_raises() -> None:
    def in_section(vm: VM) -> Iterator[None]:
        with VM() as other, vm.read(), other.read():
            yield

    def in_update(vm: VM) -> Iterator[None]:
        with vm.begin_update():
            yield

    def in_other_section(vm: VM) -> Iterator[None]:
        with VM() as other, other.read():
            yield

    for where in (in_section, in_update, in_other_section):
        assert_close_fails_inside(where)


@pytest.mark.parametrize("_", range(5))
def test_close_waits_for_every_reader(_: int) -> None:
    """Each batch, range or section of another thread sees the VM either before or after the close, never in between."""
    vm, entered = VM(), threading.Barrier(4)
    answers: list[set[bool]] = []
    put(vm, 0, 0, 5000)

    def batch() -> None:
        hvas = vm.gfn_to_hva_many(np.arange(5000, dtype=np.uint64))
        answers.append(set((hvas == HVA_ERR_BAD).tolist()))

    def section() -> None:
        with vm.read():
            time.sleep(0.02)
            answers.append({vm.gfn_to_memslot(0) is None})

    def ranges() -> None:
        answers.append({len(vm.memslots()) == 0})

    def run(work: Callable[[], None]) -> None:
        entered.wait()
        with suppress(ClosedError):
            work()

    threads = [threading.Thread(target=run, args=(work,)) for work in (batch, section, ranges)]
    for thread in threads:
        thread.start()
    entered.wait()
    vm.close()
    for thread in threads:
        thread.join()
    assert all(len(answer) == 1 for answer in answers)


CLOSES_ITSELF = """
class Owner:
    def __init__(self, **closing):
        self.vm = VM()
        put(self.vm, 0, 0, 5)
        self.closing = closing
    def __del__(self):
        if "thread" in self.closing:
            thread = threading.Thread(target=self.vm.close)
            thread.start()
            thread.join()
        self.vm.close()
        closed.append(self.vm.closed)

class Late(VM):
    def __del__(self):
        self.close()
        self.close()
        closed.append(self.closed)

class Resurrected(VM):
    def __del__(self):
        self.close()
        revived.append(self)

closed, revived = [], []
Owner()
Owner(thread=1)
Late()
owner = Owner(); owner.self = owner; del owner
late = Late(); late.self = late; late.add_listener(type("L", (Listener,), {"vm": late})()); del late
gc.collect()
assert closed == [True] * 5, closed
Resurrected(); gc.collect()
resurrected, = revived
refused(ClosedError, resurrected.memslots)
assert len(resurrected) == 0 and resurrected.gpa_bits == 52
revived.clear(); del resurrected; gc.collect()
with VM() as other, other.read():
    late = Late()
    try:
        del late     # close() would deadlock on this thread: it fails, Python ignores that, and the VM is freed
    except BaseException:
        pass
print("well")
"""


def test_close_from_del_works_in_every_situation() -> None:
    """Situations: collected cycles, a thread that __del__ starts, a VM's own __del__, a VM that __del__ resurrects."""
    runs("sys.unraisablehook = lambda u: closed.append(type(u.exc_value))\n" + CLOSES_ITSELF)


# ---- collection ------------------------------------------------------------------------------------------------------


class CyclicListener(Listener):
    """Forms reference cycles with a VM and every kind of object of the VM."""

    def __init__(self, vm: VM) -> None:
        self.vm, self.vcpu, self.section, self.update = (
            vm,
            vm.create_vcpu(),
            vm.read(),
            vm.begin_update(),
        )
        self.me = self

    def prepare(self, change: Change) -> None:
        self.last = change


def cyclic_vm(**limits: Any) -> weakref.ref[VM]:
    vm = VM(**limits)
    vm.add_listener(CyclicListener(vm))
    put(vm, 0, 0, 1, LOG)
    return weakref.ref(vm)


def test_cycles_with_every_kind_of_object_are_collected() -> None:
    """Cycles of VM, listener, vCPU, section and update; the main thread and other threads collect in turn.

    10,000 cycles, or 2,000 under a sanitizer, which finds a fault in the first one of its kind."""
    for round in range(2 if SANITIZED else 10):
        references = [cyclic_vm() for _ in range(1000)]
        collector = threading.Thread(target=gc.collect)
        if round % 2:
            collector.start()
            collector.join()
        else:
            gc.collect()
        assert not any(reference() for reference in references)


@pytest.fixture
def frequent_switches_and_collections() -> Iterator[None]:
    """Python switches threads and runs the collector as often as possible."""
    switch, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-5)
    gc.set_threshold(50, 2, 2)
    yield
    sys.setswitchinterval(switch)
    gc.set_threshold(*threshold)


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("frequent_switches_and_collections")
def test_collection_during_reads_and_changes_frees_every_cycle() -> None:
    """Each thread makes cycles, so each one runs the collector: inside sections, in hooks and between changes.
    No deadlock occurs, and every cycle is freed."""
    vm, stop, wrong = VM(), threading.Event(), []
    rings: list[weakref.ref[VM]] = []

    class Rings(Listener):
        def prepare(self, change: Change) -> None:
            rings.append(cyclic_vm())
            gc.collect(0)

    def work(turn: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                while not stop.is_set():
                    turn()
            except BaseException as error:
                wrong.append(error)

        return run

    def reads() -> None:
        with vm.read():
            rings.append(take_ready_cycle())
            assert vm.gfn_to_hva(0) == 0
            gc.collect(1)

    def drops_updates() -> None:
        other = VM()
        put(other, 0, 0, 1)
        update = other.begin_update().__enter__()
        update.invalidate(update.find(0))
        ring: list[Any] = [update]
        ring.append(ring)

    ready: list[weakref.ref[VM]] = []

    def take_ready_cycle() -> weakref.ref[VM]:
        """Pops a cycle that was made outside of sections, so that it can be freed inside this one."""
        return ready.pop() if ready else weakref.ref(vm)

    put(vm, 0, 0, 1)
    vm.add_listener(Rings())
    turns = [reads, reads, drops_updates, lambda: ready.append(cyclic_vm()), lambda: gc.collect()]
    threads = [threading.Thread(target=work(turn), daemon=True) for turn in turns]
    for thread in threads:
        thread.start()
    for change in range(100 if SANITIZED else 300):
        put(vm, 1, 10 + change % 2, 1)
    stop.set()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    ready.clear()
    gc.collect()
    assert not any(ring() for ring in rings if ring() is not vm)
    vm.check()


HELD_UP = """
def hold_up(collect):
    vm = VM()
    put(vm, 0, 0, 1)
    inside, leave = threading.Event(), threading.Event()
    lock = threading.Lock()

    def read():
        with vm.read():
            inside.set()
            with lock:     # held by the thread that drops the update
                vm.gfn_to_memslot(0)

    def drop():
        update = vm.begin_update().__enter__()
        {steps}
        thread.start()
        inside.wait()
        if collect:
            ring = [update]
            ring.append(ring)
            del ring
        update = None      # the deallocation must not wait for the reader: deadlock
        gc.collect()
        assert vm.gfn_to_hva(0) == 0 and vm.gfn_to_memslot(9) is None

    thread = threading.Thread(target=read)
    with lock:
        drop()
    thread.join()
    assert [(slot.base_gfn, slot.is_invalid) for slot in vm.memslots()] == [(0, False)] and len(vm) == 1
    vm.check()
    put(vm, 1, 5, 1)

hold_up(False)
hold_up(True)
print("well")
"""
STEPS = {
    "nothing": "pass",
    "draft": "update.copy(None, id=5, npages=1)",
    "edited": "update.replace(update.find(0), None)",
    "swapped": "update.swap()",
    "invalid": "update.invalidate(update.find(0))",
    "deleted": "inv = update.invalidate(update.find(0)); update.activate(inv, None); del inv",
    "moved": "old = update.find(0); new = update.copy(old, base_gfn=9); inv = update.invalidate(old); "
    "update.replace(old, new); update.swap(); del old, new, inv",
}


@pytest.mark.parametrize("steps", STEPS)
def test_deallocation_of_an_update_does_not_wait_for_readers(steps: str) -> None:
    """A thread drops the update, or collects it, while a reader waits for a lock of this thread.  Readers see the
    original slots at once; the next change finishes the roll-back."""
    runs(HELD_UP.format(steps=STEPS[steps]))


def test_section_dropped_by_another_thread_warns_and_ends_with_its_thread() -> None:
    """Another thread cannot end a section: a ResourceWarning reports that."""
    runs(
        """
        warned = []
        warnings.showwarning = lambda message, category, *rest: warned.append((category, str(message)))
        warnings.simplefilter("always")
        vm, dropped, inside = VM(), threading.Event(), threading.Event()
        sections = [vm.read()]
        def enter():
            sections[0].__enter__()
            inside.set()
            dropped.wait()
        thread = threading.Thread(target=enter)
        thread.start()
        inside.wait()
        sections.clear()
        assert [category for category, _ in warned] == [ResourceWarning] and "another thread" in warned[0][1], warned
        dropped.set()
        thread.join()
        put(vm, 0, 0, 1)
        print("well")
        """
    )


# ---- results that outlive their VM ------------------------------------------------------------------------------


def everything(vm: VM) -> list[Any]:
    """One result of each call of a VM that returns a value."""
    vcpu, gfns = vm.create_vcpu(), np.arange(70, dtype=np.uint64)
    with vm.read(), vm.read():
        inside = [vm.memslots(), vm.gfn_to_memslot(0)]
    return [
        *inside,
        vm.id_to_memslot(0),
        vcpu.gfn_to_memslot(0),
        vm.memslots_in_gfn_range(0, 9),
        vm.memslots_in_hva_range(0, 2**63),
        vm.hva_to_gfns(0),
        vm.memslots_array(),
        vm.snapshot(),
        vm.get_dirty_log(0),
        vm.gfn_to_hva_many(gfns),
        vm.gfn_to_slot_id_many(gfns),
        vm.stats(),
        vm.generation(),
    ]


@pytest.mark.parametrize("how", ["slot deleted", "closed", "collected"])
def test_results_outlive_their_slot_and_vm(how: str) -> None:
    """A result stays the same after its slot, its VM, or both are gone."""
    vm = VM()
    put(vm, 0, 0, 64, LOG)
    vm.mark_page_dirty(3)
    kept = everything(vm)
    before = [repr(value) for value in kept]
    reference = weakref.ref(vm)
    if how == "slot deleted":
        put(vm, 0, 0, 0)
        put(vm, 0, 7, 9)
    elif how == "closed":
        vm.close()
    else:
        del vm
        gc.collect()
        assert reference() is None
    assert [repr(value) for value in kept] == before
    for value in kept:
        if isinstance(value, np.ndarray):
            assert value.base is None or isinstance(value.base, np.ndarray)
            value.view(np.uint8)[...] = 0xFF  # the array owns its memory
    if how != "collected":
        reference = None
    assert kept[0][0] == slot(0, 0, 64, LOG)


def test_no_call_keeps_its_arguments() -> None:
    """Covers arrays, a removed listener, and the exception of a hook."""

    class Own(np.ndarray):
        """An array type that allows weak references."""

    vm, references = VM(), []
    put(vm, 0, 0, 64, LOG)

    def own(values: Any, dtype: Any = np.uint64) -> Any:
        array = np.array(values, dtype).view(Own)
        references.append(weakref.ref(array))
        return array

    vm.gfn_to_hva_many(own([1, 2]), own([0, 0]))
    vm.gfn_to_slot_id_many(own(range(100)), own(range(100), np.int32))
    vm.mark_page_dirty_many(own([1]))
    vm.clear_dirty_log(0, 0, 64, own([1]))
    rows = np.zeros(1, MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"] = 5, 500, 1
    vm.load_memslots(own(rows, MEMSLOT_DTYPE))
    for bad in (
        lambda: vm.gfn_to_hva_many(own([1, 2]), own([0])),
        lambda: vm.load_memslots(own(rows, MEMSLOT_DTYPE)),
    ):
        with pytest.raises((ValueError, MemslotsError)):
            bad()

    class Refuses(Listener):
        def prepare(self, change: Change) -> None:
            raise self.error

    listener = Refuses()
    listener.error = ZeroDivisionError(own([1]))
    references += [weakref.ref(listener)]
    vm.add_listener(listener)
    with pytest.raises(ZeroDivisionError):
        put(vm, 9, 900, 1)
    vm.remove_listener(listener)
    del listener, bad
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)
    vm.check()


# ---- nothing is left -----------------------------------------------------------------------------------------------


LIVES = """
names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]

def heap():
    info = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if info is None:
        return 0
    info.restype = Mallinfo2
    return info().uordblks + info().hblkhd

ways = [lambda vm: vm.close(), lambda vm: None, lambda vm: (vm.add_listener(Listener()), vm.close()),
        lambda vm: vm.snapshot(), lambda vm: vm.read().__enter__(), lambda vm: vm.begin_update().__enter__().swap()]

def lives(n):
    for i in range(n):
        vm = VM(backend=backends()[i % len(backends())])
        put(vm, 0, 0, 64, 1)
        put(vm, 1, 100, 1)
        vm.mark_page_dirty(1)
        vm.create_vcpu().gfn_to_hva(5)
        put(vm, 1, 200, 1)
        put(vm, 1, 0, 0)
        ways[i % 6 if vm.backend == "tree" else i % 5](vm)
    gc.collect()

lives(600)
blocks, used = sys.getallocatedblocks(), heap()
lives(20_000)
grown = sys.getallocatedblocks() - blocks, heap() - used
assert grown[0] < 100, grown
assert grown[1] < 64 * 1024 or SANITIZED, grown
print("well")
"""


def test_memory_stays_constant_over_twenty_thousand_vms() -> None:
    """Each VM is used, then closed or dropped.  Neither Python's blocks nor the C library's bytes grow."""
    runs(LIVES.replace("SANITIZED", str(SANITIZED)), limit=120)


def test_block_count_returns_to_the_start_after_all_deletes() -> None:
    """Only the grown buckets of the two sets remain."""
    vm = VM()
    empty = vm.stats()["blocks"]
    for i in range(300):
        put(vm, i, i * 10, 5, LOG if i % 2 else 0)
    assert vm.stats()["blocks"] >= empty + 450
    for i in range(300):
        put(vm, i, 0, 0)
    hashes = 2  # the grown buckets of the two sets
    assert vm.stats()["blocks"] <= empty + hashes


def test_page_size_of_the_tests_is_that_of_the_package() -> None:
    """A guest address splits into a frame number and an offset at PAGE bytes."""
    with VM() as vm:
        put(vm, 0, 1, 1)
        assert vm.gpa_to_hva(PAGE + 5) == 5


DESTROYS = """
def destroys(drop_in_section):
    warned = []
    warnings.showwarning = lambda message, category, *rest: warned.append(category)
    warnings.simplefilter("always")
    vm, dropped, inside = VM(), threading.Event(), threading.Event()
    put(vm, 0, 0, 1)
    vm.stall_warning_ms = 1
    update = vm.begin_update().__enter__()
    update.replace(update.find(0), None)
    update.swap()
    sections = [vm.read()]

    def enter():
        sections[0].__enter__()
        inside.set()
        dropped.wait()     # needs the GIL: a deallocation that waited here would keep it

    if drop_in_section:
        with VM() as other, other.read():
            update = None
    else:
        update = None      # readers see the original slots; the next change has to wait for the grace period
    thread = threading.Thread(target=enter)
    thread.start()
    inside.wait()
    sections.clear()
    assert ResourceWarning in warned, warned
    reference = weakref.ref(vm)
    del vm
    gc.collect()
    assert reference() is None
    dropped.set()
    thread.join()

destroys(False)
destroys(True)
print("well")
"""


def test_deallocation_of_a_vm_does_not_wait_for_readers() -> None:
    """The VM has a dropped update that is still to be rolled back, and an open section that no other thread can end."""
    runs(DESTROYS, limit=15)
