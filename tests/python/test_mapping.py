# SPDX-License-Identifier: MIT
"""Slots that map buffers: map_buffer(), Mapping, and how long a buffer stays in use."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import pytest
from scene import PAGE, Recorder, held, put, runs

from memslots import (
    VM,
    ClosedError,
    InvalidRegionError,
    Listener,
    Mapping,
    MemFlag,
    MemslotsError,
    NoSuchSlotError,
    PinnedBy,
    ReentrantChangeError,
    RegionOverlapError,
    UpdateError,
    alloc,
    backends,
)

LOG, READONLY = MemFlag.LOG_DIRTY_PAGES, MemFlag.READONLY
every_backend = pytest.mark.parametrize("backend", backends())


class Buffer(mmap.mmap):
    """Two pages, with weak references and attributes."""

    def __new__(cls, pages: int = 2) -> Buffer:
        return super().__new__(cls, -1, pages * PAGE)


def is_free(buffer: mmap.mmap) -> bool:
    """Closes the buffer if nothing uses it."""
    try:
        buffer.close()
    except BufferError:
        return False
    return True


def aligned_array(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    bytes_ = np.zeros(size + PAGE, np.uint8)
    start = -bytes_.ctypes.data % PAGE
    return bytes_[start : start + size].view(dtype).reshape(shape)


def aligned_objects() -> np.ndarray:
    """Two pages of references to None, a part of a larger array."""
    objects = np.full(3 * PAGE // 8, None)
    start = -objects.ctypes.data % PAGE // 8
    return objects[start : start + 2 * PAGE // 8]


# ---- what can be mapped ---------------------------------------------------------------------------------------------


def shared_block() -> tuple[shared_memory.SharedMemory, Any]:
    block = shared_memory.SharedMemory(create=True, size=2 * PAGE)
    return block, block.buf


BUFFERS: dict[str, Callable[[], Any]] = {
    "Memory": lambda: alloc(2 * PAGE),
    "shared Memory": lambda: alloc(2 * PAGE, shared=True),
    "mmap": Buffer,
    "part of a memoryview": lambda: memoryview(alloc(4 * PAGE))[PAGE : 3 * PAGE],
    "array": lambda: aligned_array(2 * PAGE),
    "array of two dimensions": lambda: aligned_array(16, PAGE // 64, dtype=np.uint64),
    "ctypes": lambda: (ctypes.c_char * (2 * PAGE)).from_buffer(alloc(2 * PAGE)),
}


@every_backend
@pytest.mark.parametrize("kind", BUFFERS)
def test_every_kind_of_buffer_becomes_a_slot_of_its_memory(kind: str, backend: str) -> None:
    buffer = BUFFERS[kind]()
    array = np.frombuffer(buffer, np.uint8)
    with VM(backend=backend) as vm:
        mapping = vm.map_buffer(0x10000, buffer)
        assert isinstance(mapping, Mapping)
        slot = vm.id_to_memslot(mapping.slot)
        assert (slot.gpa, slot.size, slot.userspace_addr) == (0x10000, 2 * PAGE, array.ctypes.data)
        assert (mapping.vm, mapping.as_id, mapping.slot) == (vm, 0, 0)
        assert (mapping.gpa, mapping.size, mapping.log_dirty) == (0x10000, 2 * PAGE, False)
        assert vm.gpa_to_hva(0x11234) == array.ctypes.data + 0x1234
        array.flat[0x1234] = 77
        assert mapping.view()[0x1234] == 77
        vm.check()


def test_shared_memory_can_be_closed_after_the_slot() -> None:
    block, buffer = shared_block()
    try:
        with VM() as vm:
            mapping = vm.map_buffer(0, buffer)
            mapping.view()[0] = 3
            assert block.buf[0] == 3
            del buffer
            with pytest.raises(BufferError):
                block.close()
            mapping.unmap()
        block.close()
    finally:
        block.unlink()


@pytest.mark.parametrize(
    "buffer",
    [bytes(3 * PAGE), memoryview(bytes(3 * PAGE)), np.frombuffer(bytes(3 * PAGE), np.uint8)],
)
def test_readonly_buffer_needs_readonly(buffer: Any) -> None:
    """A bytes object does not begin at a page.  So the part of it that does is mapped."""
    start = -np.frombuffer(buffer, np.uint8).ctypes.data % PAGE
    pages = memoryview(buffer)[start : start + PAGE]
    with VM() as vm:
        with pytest.raises(InvalidRegionError, match="readonly=True") as caught:
            vm.map_buffer(0, pages)
        assert (caught.value.errno, caught.value.rule) == (errno.EINVAL, "BACKING_READONLY")
        mapping = vm.map_buffer(0, pages, readonly=True)
        assert vm.id_to_memslot(0).flags == READONLY
        assert mapping.readonly
        assert mapping.view().readonly


def test_writable_buffer_can_be_readonly_for_the_guest() -> None:
    memory = alloc(PAGE)
    with VM() as vm, vm.map_buffer(0, memory, readonly=True, log_dirty=True) as mapping:
        assert vm.id_to_memslot(0).flags == READONLY | LOG
        assert mapping.view().readonly
        memory[0] = 5
        assert mapping.view()[0] == 5


BAD_BUFFERS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "None": (lambda: None, TypeError, r"alloc\(size\).*NoneType"),
    "number": (lambda: 4096, TypeError, r"alloc\(size\).*int"),
    "list": (lambda: [0] * PAGE, TypeError, r"alloc\(size\).*list"),
    "objects": (lambda: np.zeros(PAGE // 8, object), TypeError, "Python objects"),
    "view of objects": (
        lambda: memoryview(aligned_objects())[PAGE // 8 :],
        TypeError,
        "Python objects",
    ),
    "view of records with objects": (
        lambda: memoryview(np.zeros(PAGE, [("a", "u8"), ("b", object)])),
        TypeError,
        "Python objects",
    ),
    "pickle buffer of objects": (
        lambda: pickle.PickleBuffer(aligned_objects()),
        TypeError,
        "Python objects",
    ),
    "objects of ctypes": (
        lambda: (ctypes.py_object * (PAGE // 8))(),
        TypeError,
        "Python objects",
    ),
    "unaligned": (
        lambda: memoryview(alloc(2 * PAGE))[8 : 8 + PAGE],
        InvalidRegionError,
        r"begins at 0x\w+008, .* 4096; memslots.alloc\(0x1000\)",
    ),
    "unaligned array": (
        lambda: aligned_array(2 * PAGE)[1 : PAGE + 1],
        InvalidRegionError,
        r"begins at 0x\w+001, .*alloc\(0x1000\)",
    ),
    "not whole pages": (
        lambda: memoryview(alloc(2 * PAGE))[: PAGE + 1],
        InvalidRegionError,
        r"0x1001 bytes.*alloc\(0x2000\)",
    ),
    "empty": (lambda: memoryview(alloc(PAGE))[:0], InvalidRegionError, "empty"),
    "steps": (lambda: aligned_array(2 * PAGE)[::2], ValueError, "contiguous"),
    "columns first": (
        lambda: np.asfortranarray(aligned_array(64, 64)),
        ValueError,
        "contiguous",
    ),
    "steps of a memoryview": (lambda: memoryview(alloc(2 * PAGE))[::2], ValueError, "contiguous"),
}


@pytest.mark.parametrize("kind", BAD_BUFFERS)
def test_bad_buffer_raises_names_the_way_out_and_is_not_held(kind: str) -> None:
    make, error, words = BAD_BUFFERS[kind]
    with VM() as vm:
        buffer = make()
        with pytest.raises(error, match=words):
            vm.map_buffer(0, buffer)
        assert len(vm) == 0
        base = getattr(buffer, "obj", None)
        if isinstance(base, mmap.mmap):
            buffer.release()
            assert is_free(base)


def test_closed_buffer_raises_its_own_error() -> None:
    closed = alloc(PAGE)
    closed.close()
    released = memoryview(alloc(PAGE))
    released.release()
    with VM() as vm:
        for buffer in (closed, released):
            with pytest.raises(ValueError, match=r"closed|released"):
                vm.map_buffer(0, buffer)


@pytest.mark.parametrize("value", ["False", "", 0, 1, None, np.uint8(1)])
def test_flag_is_a_bool(value: Any) -> None:
    """The text "False" is true for Python."""
    with VM() as vm:
        vm.map_buffer(0, alloc(PAGE), readonly=np.False_, log_dirty=np.True_)
        calls: dict[str, Callable[[], object]] = {
            "readonly": lambda: vm.map_buffer(PAGE, alloc(PAGE), readonly=value),
            "log_dirty": lambda: vm.map_buffer(PAGE, alloc(PAGE), log_dirty=value),
            "clear": lambda: vm.harvest_dirty(clear=value),
            "write": lambda: vm.host_ranges(0, 1, write=value),
            "write ": lambda: vm.host_ranges_many([0], 1, write=value),
            "dereference_raw_addresses": lambda: VM(dereference_raw_addresses=value),
            "shared": lambda: alloc(PAGE, shared=value),
        }
        for name, call in calls.items():
            with pytest.raises(TypeError, match=f"{name.strip()} must be a bool, not"):
                call()
        assert len(vm) == 1


# ---- the id of the slot ---------------------------------------------------------------------------------------------


@every_backend
def test_slot_none_takes_the_lowest_free_id(backend: str) -> None:
    with VM(backend=backend, user_mem_slots=4, address_spaces=2) as vm:
        ids = [vm.map_buffer(n * PAGE, alloc(PAGE)).slot for n in range(4)]
        assert ids == [0, 1, 2, 3]
        with pytest.raises(MemslotsError, match="all 4 slot ids of address space 0") as caught:
            vm.map_buffer(9 * PAGE, alloc(PAGE))
        assert (caught.value.errno, caught.value.rule) == (errno.ENOSPC, "NO_FREE_SLOT")
        assert vm.free_slot_id(1) == 0
        with pytest.raises(MemslotsError, match="all 4 slot ids"):
            vm.free_slot_id()
        vm.delete(2)
        vm.delete(1)
        assert vm.free_slot_id() == 1
        assert vm.map_buffer(9 * PAGE, alloc(PAGE)).slot == 1
        assert vm.map_buffer(8 * PAGE, alloc(PAGE), as_id=1, slot=3).slot == 3
        assert vm.map_buffer(9 * PAGE, alloc(PAGE), as_id=1).slot == 0
        vm.check()


def test_threads_that_map_at_the_same_time_get_different_ids() -> None:
    with VM() as vm:
        ids: list[int] = []

        def work(first: int) -> None:
            ids.extend(vm.map_buffer((first + n) * PAGE, alloc(PAGE)).slot for n in range(50))

        threads = [threading.Thread(target=work, args=(n * 50,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ids) == list(range(200))


BAD_SLOTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"slot": 0}, RegionOverlapError, r"slot 0 is there already: slot 0 \[0x1000, 0x3000\)"),
    ({"gpa": 0x2000}, RegionOverlapError, r"new slot \[0x2000, 0x4000\) overlaps slot 0 \[0x1000"),
    ({"slot": 7, "gpa": 0}, RegionOverlapError, r"slot 7 \[0x0, 0x2000\) overlaps slot 0"),
    ({"slot": 9}, InvalidRegionError, "slot 9 is not below 9"),
    ({"slot": 2**32 - 1}, InvalidRegionError, "slot 4294967295 is not below 9"),
    ({"slot": 2**32}, OverflowError, "slot must be"),
    ({"slot": -1}, OverflowError, "slot must be"),
    ({"slot": "0"}, TypeError, "slot must be an int"),
    ({"slot": True}, TypeError, "slot must be an int"),
    ({"gpa": 0x8800}, InvalidRegionError, "guest_phys_addr 0x8800 of the new slot"),
    ({"gpa": 2**40}, InvalidRegionError, "ends beyond 0x10000000000"),
    ({"gpa": 2**64 - PAGE}, InvalidRegionError, "reaches 2.*64"),
    ({"as_id": 1}, InvalidRegionError, "address space 1 is not below 1"),
]


@pytest.mark.parametrize(("changed", "error", "words"), BAD_SLOTS)
def test_refused_map_names_the_slots_and_does_not_hold_the_buffer(
    changed: dict[str, Any], error: type[Exception], words: str
) -> None:
    with VM(gpa_bits=40, user_mem_slots=9) as vm:
        vm.map_buffer(0x1000, alloc(2 * PAGE))
        before, buffer = vm.memslots(), Buffer()
        with pytest.raises(error, match=words):
            vm.map_buffer(**{"gpa": 0x10000, "buffer": buffer} | changed)
        assert vm.memslots() == before
        assert not vm.pinned_by(buffer)
        assert is_free(buffer)


def test_refusal_of_a_listener_releases_the_buffer() -> None:
    class RefusedError(Exception):
        pass

    def refuse() -> None:
        raise RefusedError

    with VM() as vm:
        vm.add_listener(Recorder(prepare=refuse))
        buffer = Buffer()
        with pytest.raises(RefusedError):
            vm.map_buffer(0, buffer)
        assert is_free(buffer)


def test_exception_after_the_change_carries_the_mapping() -> None:
    class LateError(Exception):
        pass

    def fail() -> None:
        raise LateError

    with VM() as vm:
        vm.add_listener(Recorder(commit=fail, once=True))
        with pytest.raises(LateError) as caught:
            vm.map_buffer(0x5000, alloc(PAGE))
        assert caught.value.mapping.gpa == 0x5000
        caught.value.mapping.unmap()
        assert len(vm) == 0


# ---- Mapping --------------------------------------------------------------------------------------------------------


@every_backend
def test_mapping_moves_and_logs(backend: str) -> None:
    with VM(backend=backend, gpa_bits=40) as vm:
        vm.map_buffer(0, alloc(PAGE))
        mapping = vm.map_buffer(0x10000, alloc(2 * PAGE))
        mapping.move(0x20000)
        assert mapping.gpa == 0x20000
        assert vm.gfn_to_memslot(0x10) is None
        mapping.log_dirty = True
        assert mapping.log_dirty
        vm.mark_page_dirty(0x21)
        mapping.move(0x30000)
        assert vm.get_dirty_log(mapping.slot)[0] == 0b10
        mapping.log_dirty = False
        assert vm.id_to_memslot(mapping.slot).flags == 0
        for gpa, error, words in (
            (0, RegionOverlapError, r"slot 1 \[0x0, 0x2000\) overlaps slot 0 \[0x0, 0x1000\)"),
            (0x123, InvalidRegionError, "guest_phys_addr 0x123 of slot 1"),
            (2**40, InvalidRegionError, r"slot 1 \[0x10000000000, 0x10000002000\) ends beyond"),
            (-1, OverflowError, "gpa must be"),
            ("0", TypeError, "gpa must be an int"),
        ):
            with pytest.raises(error, match=words):
                mapping.move(gpa)
            assert mapping.gpa == 0x30000
        for value in (1, None, "yes"):
            with pytest.raises(TypeError, match="log_dirty must be a bool"):
                mapping.log_dirty = value
        vm.check()


def ends_of(vm: VM, mapping: Mapping) -> dict[str, Callable[[], object]]:
    return {
        "unmap": mapping.unmap,
        "with": lambda: mapping.__exit__(None, None, None),
        "delete": lambda: vm.delete(mapping.slot),
        "ioctl": lambda: vm.set_user_memory_region(mapping.slot, guest_phys_addr=0, memory_size=0),
        "close": vm.close,
    }


@every_backend
@pytest.mark.parametrize("end", ["unmap", "with", "delete", "ioctl", "close"])
def test_end_of_the_slot_releases_the_buffer_at_once(end: str, backend: str) -> None:
    vm, buffer = VM(backend=backend), Buffer()
    mapping = vm.map_buffer(0x10000, buffer)
    assert not is_free(buffer)
    ends_of(vm, mapping)[end]()
    assert is_free(buffer)
    assert not mapping.mapped
    assert "unmapped" in repr(mapping)
    mapping.unmap()
    error: type[Exception] = ClosedError if end == "close" else NoSuchSlotError
    calls: list[Callable[[], object]] = [
        lambda: mapping.gpa,
        lambda: mapping.size,
        lambda: mapping.readonly,
        lambda: mapping.log_dirty,
        mapping.view,
        lambda: mapping.move(0),
        lambda: setattr(mapping, "log_dirty", True),
        mapping.__enter__,
    ]
    for call in calls:
        with pytest.raises(error):
            call()


@every_backend
def test_mapping_never_touches_a_later_slot_with_its_id(backend: str) -> None:
    with VM(backend=backend) as vm:
        buffer = Buffer()
        address = np.frombuffer(buffer, np.uint8).ctypes.data
        for replace in (
            lambda: vm.map_buffer(0, alloc(2 * PAGE), slot=3),
            lambda: vm.map_buffer(0, buffer, slot=3),
            lambda: put(vm, 3, 0, 2, hva=address),
        ):
            mapping = vm.map_buffer(0, buffer, slot=3)
            vm.delete(3)
            replace()
            now = vm.memslots()
            assert not mapping.mapped
            with pytest.raises(NoSuchSlotError, match="slot 3 of address space 0"):
                mapping.move(0x10000)
            with pytest.raises(NoSuchSlotError):
                mapping.log_dirty = True
            mapping.unmap()
            assert vm.memslots() == now
            vm.delete(3)
        assert is_free(buffer)


def test_mapping_is_made_by_map_buffer_only() -> None:
    for make in (Mapping, lambda: Mapping.__new__(Mapping), lambda: Mapping(VM())):
        with pytest.raises(TypeError, match="map_buffer"):
            make()


def test_mapping_keeps_its_vm_alive_but_not_its_buffer() -> None:
    vm, buffer = VM(), Buffer()
    mapping, reference = vm.map_buffer(0, buffer), weakref.ref(vm)
    del vm
    assert reference() is mapping.vm
    mapping.vm.delete(0)
    assert is_free(buffer)


# ---- views and pinned_by --------------------------------------------------------------------------------------------


def test_view_shows_the_memory_and_outlives_slot_and_vm() -> None:
    vm, buffer = VM(), Buffer()
    mapping = vm.map_buffer(0x10000, buffer)
    view = mapping.view()
    assert (view.nbytes, view.format, view.readonly) == (2 * PAGE, "B", False)
    array = np.frombuffer(view, np.uint32)
    array[1] = 0x01020304
    assert buffer[4:8] == b"\x04\x03\x02\x01"
    del view, mapping, vm
    assert not is_free(buffer)
    assert array[1] == 0x01020304
    del array
    assert is_free(buffer)


def test_views_and_accesses_leak_no_reference() -> None:
    with VM() as vm:
        mapping = vm.map_buffer(0, alloc(PAGE))
        data = bytearray(8)
        before = [sys.getrefcount(thing) for thing in (None, vm, mapping, data)]
        for _ in range(1000):
            with mapping.view(), mapping.view():
                vm.readinto_guest(0, data)
                vm.write_guest(0, data)
        after = [sys.getrefcount(thing) for thing in (None, vm, mapping, data)]
        assert max(abs(a - b) for a, b in zip(after, before, strict=True)) < 100


def test_pinned_by_names_the_slots_and_counts_the_views() -> None:
    with VM(address_spaces=2) as vm, VM() as other:
        buffer = Buffer(4)
        assert vm.pinned_by(buffer) == PinnedBy([], 0)
        assert not vm.pinned_by(buffer)
        whole = vm.map_buffer(0x10000, buffer, slot=5)
        half = vm.map_buffer(0x20000, memoryview(buffer)[2 * PAGE :], slot=2, as_id=1)
        other.map_buffer(0, buffer)
        put(vm, 1, 0x100, 4, hva=vm.id_to_memslot(5).userspace_addr)  # raw: holds nothing
        assert vm.pinned_by(buffer).slots == [vm.id_to_memslot(5), vm.id_to_memslot(2, 1)]
        with memoryview(buffer)[:PAGE] as part:
            assert vm.pinned_by(part) == PinnedBy([vm.id_to_memslot(5)], 0)
        first, second = whole.view(), half.view()
        assert vm.pinned_by(buffer).views == 2
        whole.unmap()
        assert vm.pinned_by(buffer) == PinnedBy([vm.id_to_memslot(2, 1)], 2)
        del first
        assert vm.pinned_by(buffer) == PinnedBy([vm.id_to_memslot(2, 1)], 1)
        half.unmap()
        assert vm.pinned_by(buffer) == PinnedBy([], 1)
        del second
        assert not vm.pinned_by(buffer)
        assert not is_free(buffer)
        other.close()
        assert is_free(buffer)
        for bad in (None, 4096):
            with pytest.raises(TypeError):
                vm.pinned_by(bad)


def test_pinned_by_counts_the_views_of_slots_that_have_ended() -> None:
    """The views end in another order than the slots, and after their VM."""
    vm = VM()
    buffer = Buffer()
    views = []
    for _ in range(4):
        with vm.map_buffer(0, buffer) as mapping:
            views.append(mapping.view())
    assert vm.pinned_by(buffer) == PinnedBy([], 4)
    assert vm.pinned_by(buffer)
    for left, index in ((3, 1), (2, 0), (1, 1)):
        del views[index]
        assert vm.pinned_by(buffer) == PinnedBy([], left)
    again = memoryview(views[0].obj)
    views.clear()
    assert vm.pinned_by(buffer) == PinnedBy([], 1)
    del vm, mapping
    assert not is_free(buffer)
    del again
    assert is_free(buffer)


@every_backend
def test_slot_keeps_its_buffer_through_every_change(backend: str) -> None:
    with VM(backend=backend) as vm:
        buffer = Buffer()
        mapping = vm.map_buffer(0x10000, buffer)
        slot = vm.id_to_memslot(0)
        for gpa in range(0x20000, 0x80000, 0x10000):
            vm.move(0, gpa)
            vm.set_flags(0, set=LOG)
            vm.set_flags(0, clear=LOG)
            put(vm, 1, gpa // PAGE + 8, 1)
            vm.delete(1)
            assert mapping.gpa == gpa
            assert vm.pinned_by(buffer).slots == vm.memslots()
        vm.move(0, 0x10000)
        assert vm.memslots() == [slot]
        vm.check()
        vm.delete(0)
        assert is_free(buffer)


def test_update_keeps_the_buffer_of_each_copy_inside_it() -> None:
    """A copy with other pages of the buffer holds it.  A copy with pages outside of it is raw."""
    with VM() as vm:
        buffer = Buffer(4)
        buffer[PAGE] = 9
        mapping = vm.map_buffer(0x10000, buffer)
        address = vm.id_to_memslot(0).userspace_addr
        with vm.begin_update() as update:
            old = update.find(0)
            new = update.copy(old, npages=2, userspace_addr=address + PAGE)
            update.replace(old, new)
            update.swap()
            update.replace(old, new)
        assert mapping.size == 2 * PAGE
        assert mapping.view()[0] == 9
        assert len(mapping.view()) == 2 * PAGE
        with vm.begin_update() as update:
            old = update.find(0)
            new = update.copy(old, npages=4, userspace_addr=address + PAGE)
            update.replace(old, new)
            update.swap()
            update.replace(old, new)
        assert not mapping.mapped
        assert len(vm) == 1
        assert is_free(buffer)


def test_view_of_a_slot_that_an_update_made_readonly_is_readonly() -> None:
    with VM() as vm:
        buffer = Buffer()
        mapping = vm.map_buffer(0x10000, buffer)
        before = mapping.view()
        with vm.begin_update() as update:
            old = update.find(0)
            new = update.copy(old, flags=READONLY)
            update.replace(old, new)
            update.swap()
            update.replace(old, new)
        assert mapping.readonly
        assert mapping.view().readonly
        assert not before.readonly
        assert vm.pinned_by(buffer).views == 1
        with pytest.raises(TypeError):
            mapping.view()[0] = 1


def test_update_that_is_rolled_back_releases_nothing_of_the_slot() -> None:
    with VM() as vm:
        buffer = Buffer()
        mapping = vm.map_buffer(0x10000, buffer)
        with pytest.raises(UpdateError), vm.begin_update() as update:
            update.invalidate(update.find(0))
        assert mapping.mapped
        assert not is_free(buffer)
        mapping.unmap()
        assert is_free(buffer)


# ---- the moment of the release --------------------------------------------------------------------------------------


class Told(Buffer):
    """Calls a function when it is freed."""

    def __new__(cls, tell: Callable[[], object]) -> Told:
        buffer = super().__new__(cls)
        buffer.tell = tell
        return buffer

    def __del__(self) -> None:
        self.tell()


def test_buffer_is_released_after_the_last_reader_has_left() -> None:
    with VM() as vm:
        freed = threading.Event()
        mapping = vm.map_buffer(0, Told(freed.set))
        thread = threading.Thread(target=mapping.unmap)
        with vm.read():
            thread.start()
            assert not freed.wait(0.05)
            assert vm.gfn_to_hva(0)
        thread.join()
        assert freed.is_set()


@every_backend
def test_finalizer_may_use_and_change_the_vm(backend: str) -> None:
    with VM(backend=backend) as vm:
        put(vm, 1, 0x100, 1)
        done: list[int] = []

        def change() -> None:
            vm.check()
            vm.delete(1)
            put(vm, 2, 0x200, 1)
            with vm.read():
                done.append(len(vm))

        vm.map_buffer(0, Told(change), slot=0)
        vm.delete(0)
        assert done == [1]
        vm.check()


def test_long_chain_of_finalizers_needs_no_stack() -> None:
    """The release of each buffer deletes the next slot."""
    with VM() as vm:
        order: list[int] = []
        n = 20_000

        def delete_next(id: int) -> Callable[[], None]:
            def tell() -> None:
                order.append(id)
                if id + 1 < n:
                    vm.delete(id + 1)

            return tell

        for id in range(n):
            buffer = mmap.mmap(-1, PAGE)
            weakref.finalize(buffer, delete_next(id))
            vm.map_buffer(id * PAGE, buffer, slot=id)
        del buffer
        vm.delete(0)
        assert order == list(range(n))


@pytest.mark.parametrize("depth", [1, 15])
def test_finalizer_releases_the_buffers_of_the_slots_that_it_ends(depth: int) -> None:
    """The buffer of the last slot has no finalizer, and the finalizer before can close it."""
    with VM() as vm:
        last, free = Buffer(), []
        vm.map_buffer(depth * 2 * PAGE, last, slot=depth)

        def delete_next(id: int) -> Callable[[], None]:
            def tell() -> None:
                vm.delete(id + 1)
                free.append(is_free(last))

            return tell

        for id in range(depth):
            vm.map_buffer(id * 2 * PAGE, Told(delete_next(id)), slot=id)
        vm.delete(0)
        assert free == [True] * depth


def test_slow_finalizer_holds_no_buffer_that_another_thread_can_release() -> None:
    """The end of the VM puts all three buffers into the queue.  The finalizer waits for a change of another thread."""
    buffers, free = [Buffer(), Buffer()], []

    def change() -> None:
        with VM() as other:
            put(other, 0, 0, 1)

    def wait() -> None:
        thread = threading.Thread(target=change)
        thread.start()
        thread.join()
        free.extend(is_free(buffer) for buffer in buffers)

    with VM() as vm:
        for n, buffer in enumerate([buffers[0], Told(wait), buffers[1]]):
            vm.map_buffer(n * 2 * PAGE, buffer)
        del buffer
    assert free == [True, True]


def test_release_waits_for_the_end_of_hooks_updates_and_sections() -> None:
    """A finalizer that changes the VM would be refused there."""
    outer, inner = VM(), VM()
    wrong: list[BaseException] = []

    def change() -> None:
        try:
            with VM() as new:
                put(new, 0, 0, 1)
            put(outer, 9, 0x900, 1)
            outer.delete(9)
        except BaseException as error:
            wrong.append(error)
        freed.append(True)

    freed: list[bool] = []
    seen: list[list[bool]] = []

    class Nested(Listener):
        def commit(self, change: object) -> None:
            if freed or seen:
                return
            inner.delete(0)
            seen.append(list(freed))

    outer.add_listener(Nested())
    inner.map_buffer(0, Told(change), slot=0)
    put(outer, 0, 0, 1)
    assert (seen, freed, wrong) == ([[]], [True], [])


@pytest.mark.parametrize("block", ["read", "begin_update"])
def test_map_that_is_refused_in_a_block_releases_the_buffer_at_its_end(block: str) -> None:
    with VM() as vm:
        buffer = Buffer()
        with getattr(vm, block)():
            with pytest.raises(ReentrantChangeError):
                vm.map_buffer(0, buffer)
            assert not is_free(buffer)
        assert is_free(buffer)


def test_finalizer_of_another_thread_waits_for_the_end_of_the_section() -> None:
    """The release of a buffer in another thread adds a pending call, which the main thread makes inside its section."""
    runs(
        """
        wrong = []
        class Changes(memslots.Memory):
            def __del__(self):
                try:
                    with VM() as new: put(new, 0, 0, 1)
                except BaseException as error:
                    wrong.append(error)
        with VM() as busy, VM() as vm:
            for _ in range(30):
                vm.map_buffer(0, Changes(PAGE), slot=0)
                thread = threading.Thread(target=vm.delete, args=(0,))
                with busy.read():
                    thread.start()
                    while thread.is_alive():
                        pass
                thread.join()
        assert not wrong, wrong
        print("well")
        """
    )


def test_exception_of_a_finalizer_does_not_reach_the_change() -> None:
    runs(
        """
        class Fails(memslots.Memory):
            def __del__(self):
                raise KeyError("from a finalizer")
        caught = []
        sys.unraisablehook = lambda u: caught.append(type(u.exc_value))
        with VM() as vm:
            vm.map_buffer(0, Fails(PAGE))
            vm.delete(0)
            assert caught == [KeyError], caught
        print("well")
        """
    )


# ---- the end of the VM ----------------------------------------------------------------------------------------------


def test_last_reference_of_the_vm_releases_the_buffers() -> None:
    """In another thread than the main one, which would run the pending call of the release."""
    buffers, free = [Buffer() for _ in range(3)], []

    def work() -> None:
        vm = VM()
        for n, buffer in enumerate(buffers):
            vm.map_buffer(n * 2 * PAGE, buffer)
        vm.delete(1)
        free.append([is_free(buffer) for buffer in buffers])
        del vm
        free.append([is_free(buffer) for buffer in buffers])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert free == [[False, True, False], [True, True, True]]


def test_finalizer_cannot_get_hold_of_a_vm_that_ends() -> None:
    """The release of a buffer runs while the VM is freed.  A weak reference to the VM is dead by then."""
    found: list[Any] = []
    vm = VM()
    reference = weakref.ref(vm)
    vm.map_buffer(0, Told(lambda: found.append(reference())))
    del vm
    assert found == [None]


def test_vm_that_is_dropped_in_a_hook_of_its_own_is_freed_later() -> None:
    """The hook has the last reference to the VM.  The VM ends after the change, and its buffers after it."""
    runs(
        """
        freed = []
        class Told(memslots.Memory):
            def __del__(self):
                freed.append(True)

        class Drops(Listener):
            def commit(self, change):
                holder.clear()
                gc.collect()

        holder = [VM()]
        holder[0].map_buffer(0, Told(PAGE), slot=0)
        reference = weakref.ref(holder[0])
        holder[0].add_listener(Drops())
        holder[0].delete(0)
        assert reference() is None
        assert freed == [True]
        print("well")
        """
    )


@pytest.mark.parametrize("change", ["drop", "close"])
def test_vm_that_a_finalizer_ends(change: str) -> None:
    """The release of the buffer of one VM ends another VM, whose buffers are released too."""
    holder, freed = {"vm": VM()}, []
    holder["vm"].map_buffer(0, Told(lambda: freed.append("inner")))

    def end() -> None:
        if change == "close":
            holder["vm"].close()
        holder.clear()
        freed.append("outer")

    with VM() as vm:
        vm.map_buffer(0, Told(end))
        vm.delete(0)
        assert sorted(freed) == ["inner", "outer"]


# ---- the garbage collector ------------------------------------------------------------------------------------------


def ring_of_slot(vm: VM, buffer: Any) -> None:
    buffer.vm = vm
    vm.map_buffer(0, buffer)


def ring_of_mapping(vm: VM, buffer: Any) -> None:
    buffer.mapping = vm.map_buffer(0, buffer)


def ring_of_view(vm: VM, buffer: Any) -> None:
    buffer.view = vm.map_buffer(0, buffer).view()
    vm.delete(0)


def ring_of_listener(vm: VM, buffer: Any) -> None:
    listener = Recorder()
    listener.buffer, listener.vm = buffer, vm
    vm.add_listener(listener)
    vm.map_buffer(0, buffer)


def ring_of_two_vms(vm: VM, buffer: Any) -> None:
    other, more = VM(), Buffer()
    buffer.vm, more.vm = other, vm
    vm.map_buffer(0, buffer)
    other.map_buffer(0, more)


def ring_of_array(vm: VM, buffer: Any) -> None:
    class Array(np.ndarray):
        pass

    array = np.frombuffer(buffer, np.uint8).view(Array)
    array.vm = vm
    vm.map_buffer(0, array)


RINGS = (
    ring_of_slot,
    ring_of_mapping,
    ring_of_view,
    ring_of_listener,
    ring_of_two_vms,
    ring_of_array,
)


@pytest.mark.parametrize("ring", RINGS)
def test_cycle_of_vm_and_buffer_is_collected(ring: Callable[[VM, Any], None]) -> None:
    vm, buffer = VM(), Buffer()
    references = weakref.ref(vm), weakref.ref(buffer)
    ring(vm, buffer)
    del vm, buffer
    gc.collect()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("ring", [ring_of_slot, ring_of_mapping, ring_of_listener, ring_of_array])
def test_cycle_that_is_in_use_is_not_collected(ring: Callable[[VM, Any], None]) -> None:
    vm, buffer = VM(), Buffer()
    reference = weakref.ref(buffer)
    ring(vm, buffer)
    del buffer
    gc.collect()
    assert reference() is not None
    assert not is_free(reference())
    assert vm.gfn_to_hva(0)


CLEARED = """
from multiprocessing import shared_memory

class Owner:
    pass

def shared():
    block = shared_memory.SharedMemory(create=True, size=2 * PAGE)
    block.unlink()
    blocks.append(block)
    return block.buf

def view_of_another_vm(memory):
    return other.map_buffer(len(other) << 20, memory).view()

def cycle(buffer):
    owner = Owner()  # younger than the buffer: the collector comes to the buffer first
    owner.itself, owner.vm = owner, VM()
    owner.vm.map_buffer(0, buffer)
    owner.vm.write_guest(0, b"x")
    return weakref.ref(owner.vm)

blocks, other = [], VM()
KINDS = [
    lambda memory: memory,
    lambda memory: np.frombuffer(memory, np.uint8),
    lambda memory: memoryview(memory),
    lambda memory: memoryview(memory)[PAGE:],
    lambda memory: memoryview(memoryview(memory).cast("Q")),
    lambda memory: (ctypes.c_char * (2 * PAGE)).from_buffer(memory),
    lambda memory: shared(),
    view_of_another_vm,
]
gc.disable()
for kind in KINDS:
    memory = memslots.alloc(2 * PAGE)
    gone = cycle(kind(memory))
    assert gone() is not None
    gc.collect()
    assert gone() is None, KINDS.index(kind)
    other.close()
    other = VM()
    memory.close()
for block in blocks:
    block.close()
at_exit = [memoryview(memslots.alloc(PAGE)), VM()]
at_exit[1].map_buffer(0, at_exit[0])
at_exit.append(at_exit)
print("well")
"""


def test_collector_clears_no_buffer_that_a_slot_maps() -> None:
    """A memoryview that is cleared while it is in use prints an error, and then ends the process."""
    runs(CLEARED)


def test_collector_finds_no_cycle_through_a_memoryview_that_a_slot_maps() -> None:
    vm, buffer = VM(), Buffer()
    reference = weakref.ref(vm)
    buffer.vm = vm
    vm.map_buffer(0, memoryview(buffer))
    del vm, buffer
    gc.collect()
    vm = reference()
    assert vm is not None
    vm.close()
    del vm
    gc.collect()
    assert reference() is None


def test_collector_sees_each_buffer_once() -> None:
    """gc.get_referents() calls tp_traverse, as the collector does."""
    with VM() as vm:
        buffers = [Buffer() for _ in range(5)]
        for n, buffer in enumerate(buffers):
            vm.map_buffer(n * 2 * PAGE, buffer)
        vm.delete(2)
        seen, todo = [], gc.get_referents(vm)
        pins = [thing for thing in todo if type(thing).__name__ == "_Pin"]
        while pins:
            inner = [gc.get_referents(pin) for pin in pins]
            seen += [thing for things in inner for thing in things if isinstance(thing, Buffer)]
            pins = [t for things in inner for t in things if type(t).__name__ == "_Pin"]
        assert sorted(map(id, seen)) == sorted(id(b) for n, b in enumerate(buffers) if n != 2)


def test_collections_during_changes_free_everything() -> None:
    """Every thread maps, moves, views and drops buffers of its own rings while the collector runs all the time."""
    threshold = gc.get_threshold()
    gc.set_threshold(30, 2, 2)
    references: list[weakref.ref[Any]] = []
    wrong: list[BaseException] = []
    try:

        def work(base: int) -> None:
            try:
                for n in range(60):
                    vm, buffer = VM(), Buffer()
                    references.extend((weakref.ref(vm), weakref.ref(buffer)))
                    RINGS[n % len(RINGS)](vm, buffer)
                    mapping = shared.map_buffer(base + 2 * n * PAGE, Buffer())
                    mapping.move(base + 2**30 + 2 * n * PAGE)
                    with mapping.view():
                        mapping.unmap()
            except BaseException as error:
                wrong.append(error)

        with VM() as shared:
            threads = [threading.Thread(target=work, args=(n * 2**32,)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(shared) == 0
            shared.check()
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    gc.collect()
    assert not wrong
    assert not any(reference() for reference in references)


# ---- short forms ----------------------------------------------------------------------------------------------------


@every_backend
def test_short_forms_are_the_changes_of_the_ioctl(backend: str) -> None:
    with VM(backend=backend, address_spaces=2, gpa_bits=40) as vm:
        put(vm, 4, 0x10, 3, LOG, as_id=1)
        vm.mark_page_dirty(0x11, 1)
        vm.move(4, 0x20000, as_id=1)
        slot = vm.id_to_memslot(4, 1)
        assert (slot.gpa, slot.size, slot.flags, slot.userspace_addr) == (
            0x20000,
            3 * PAGE,
            LOG,
            4 * 2**30,
        )
        assert vm.get_dirty_log(4, 1)[0] == 0b10
        vm.set_flags(4, clear=LOG, as_id=1)
        assert vm.id_to_memslot(4, 1).flags == 0
        vm.set_flags(4, set=LOG, clear=LOG, as_id=1)
        assert vm.id_to_memslot(4, 1).flags == LOG
        put(vm, 5, 0x1, 1, READONLY, as_id=1)
        assert (vm.free_slot_id(), vm.free_slot_id(1)) == (0, 0)
        for call, error, words in (
            (
                lambda: vm.move(4, 0x0, 1),
                RegionOverlapError,
                r"slot 4 \[0x0, 0x3000\) overlaps slot 5",
            ),
            (lambda: vm.move(4, 0x10, 1), InvalidRegionError, "guest_phys_addr 0x10 of slot 4"),
            (
                lambda: vm.move(4, 2**40, 1),
                InvalidRegionError,
                r"slot 4 \[0x10000000000, 0x10000003000\)",
            ),
            (lambda: vm.move(4, 0x0), InvalidRegionError, "there is no slot 4 in address space 0"),
            (
                lambda: vm.set_flags(4, set=READONLY, as_id=1),
                InvalidRegionError,
                "READONLY of slot 4 cannot change: its flags are 0x1, the call has 0x3",
            ),
            (lambda: vm.set_flags(4, set=2**16, as_id=1), InvalidRegionError, "flags 0x10001 "),
            (lambda: vm.set_flags(7, set=LOG), InvalidRegionError, "there is no slot 7"),
            (lambda: vm.delete(4), InvalidRegionError, "there is no slot 4 in address space 0"),
            (lambda: vm.delete(32764), InvalidRegionError, "slot 32764 is not below 32764"),
            (lambda: vm.delete(0, 2), InvalidRegionError, "address space 2 is not below 2"),
            (lambda: vm.free_slot_id(2), InvalidRegionError, "address space 2 is not below 2"),
        ):
            before = vm.memslots(1)
            with pytest.raises(error, match=words):
                call()
            assert vm.memslots(1) == before
        vm.delete(4, 1)
        vm.delete(5, as_id=1)
        assert len(vm) == 0
        vm.check()


def test_short_forms_are_changes_for_listeners_sections_and_updates() -> None:
    with VM() as vm:
        recorder = Recorder()
        vm.add_listener(recorder)
        mapping = vm.map_buffer(0, alloc(PAGE), slot=0)
        vm.move(0, 0x10000)
        vm.set_flags(0, set=LOG)
        mapping.log_dirty = False
        mapping.move(0)
        vm.delete(0)
        kinds = [arguments[0].name for _, hook, *arguments in recorder.calls if hook == "commit"]
        assert kinds == ["CREATE", "MOVE", "FLAGS_ONLY", "FLAGS_ONLY", "MOVE", "DELETE"]
        vm.remove_listener(recorder)
        mapping = vm.map_buffer(0, alloc(PAGE), slot=0)
        calls: list[Callable[[], object]] = [
            lambda: vm.map_buffer(0x10000, alloc(PAGE)),
            lambda: vm.move(0, 0x10000),
            lambda: vm.set_flags(0, set=LOG),
            lambda: vm.delete(0),
            vm.free_slot_id,
            mapping.unmap,
            lambda: mapping.move(0x10000),
            lambda: setattr(mapping, "log_dirty", True),
        ]
        for block in (vm.read, vm.begin_update):
            with block():
                for call in calls:
                    with pytest.raises(ReentrantChangeError):
                        call()
        assert mapping.gpa == 0
        with held(vm.read()):
            assert vm.free_slot_id() == 1


def test_gpa_to_hva_for_reading_finds_readonly_slots() -> None:
    with VM() as vm:
        put(vm, 1, 0x10, 1, READONLY)
        assert vm.gpa_to_hva(0x10123, write=False) == 2**30 + 0x123
        with pytest.raises(PermissionError):
            vm.gpa_to_hva(0x10123)
        with pytest.raises(LookupError, match="gpa 0x123 "):
            vm.gpa_to_hva(0x123, write=False)
        with pytest.raises(TypeError):
            vm.gpa_to_hva(0x10123, 0, False)


def test_dereference_raw_addresses_is_a_limit_of_the_vm() -> None:
    class Own(VM):
        def __init__(self, **limits: Any) -> None:
            super().__init__(**limits)

    assert not VM().dereference_raw_addresses
    for cls in (VM, Own):
        vm = cls(dereference_raw_addresses=True)
        assert vm.dereference_raw_addresses
        vm.__init__(dereference_raw_addresses=True)
        with pytest.raises(TypeError, match="dereference_raw_addresses=True"):
            VM.__init__(vm, dereference_raw_addresses=False)


# ---- processes ------------------------------------------------------------------------------------------------------


def test_threads_that_map_while_the_interpreter_exits() -> None:
    """Daemon threads go on changing slots without the GIL.  Nothing is released any more, and nothing crashes."""
    for _ in range(3):
        runs(
            """
            vm = VM()
            def work(base):
                while True:
                    with vm.map_buffer(base, alloc(PAGE)) as mapping:
                        view = mapping.view()
            for n in range(3):
                threading.Thread(target=work, args=(n * PAGE,), daemon=True).start()
            kept = VM()
            kept.map_buffer(0, alloc(PAGE))
            view = kept.map_buffer(PAGE, alloc(PAGE)).view()
            time.sleep(0.05)
            print("well")
            """
        )


def test_child_of_fork_may_use_views_but_not_change_slots() -> None:
    runs(
        """
        vm, private, shared = VM(), alloc(PAGE), alloc(PAGE, shared=True)
        a, b = vm.map_buffer(0, private), vm.map_buffer(PAGE, shared)
        views = a.view(), b.view()
        if not (child := os.fork()):
            for call in (a.unmap, lambda: a.move(2 * PAGE), lambda: vm.delete(0), vm.free_slot_id,
                         lambda: vm.map_buffer(2 * PAGE, alloc(PAGE)), lambda: setattr(a, "log_dirty", True)):
                assert refused(ForkedError, call).errno == errno.EIO
            assert (a.gpa, b.gpa, len(vm.pinned_by(private).slots)) == (0, PAGE, 1)
            views[0][0], views[1][0] = 2, 3
            views = None
            del a, b, vm
            private.close(), shared.close()
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert (private[0], shared[0]) == (0, 3)
        a.unmap(), b.unmap()
        views = None
        private.close(), shared.close()
        print("well")
        """
    )
