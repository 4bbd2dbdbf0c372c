# SPDX-License-Identifier: MIT
"""Reads and writes of guest memory: bytes, errors, marks, and memory that goes away."""

from __future__ import annotations

import ctypes
import errno
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from guest_model import GuestPair
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from scene import PAGE, SANITIZED, Recorder, put, runs

from memslots import (
    VM,
    ClosedError,
    GfnNotMappedError,
    GuestAccessError,
    Mapping,
    MemFlag,
    Memory,
    ReadOnlySlotError,
    alloc,
    backends,
)

LOG, READONLY = MemFlag.LOG_DIRTY_PAGES, MemFlag.READONLY
every_backend = pytest.mark.parametrize("backend", backends())


@pytest.fixture
def vm() -> Iterator[VM]:
    """Four pages at 0x10000 of two slots, a READONLY slot at 0x20000, a raw one at 0x30000."""
    with VM(address_spaces=2) as vm:
        for slot, size, gpa in ((0, 1, 0x10000), (1, 3, 0x11000)):
            vm.map_buffer(gpa, alloc(size * PAGE), slot=slot, log_dirty=True)
        vm.map_buffer(0x20000, alloc(PAGE), slot=2, readonly=True)
        put(vm, 3, 0x30, 1)
        vm.map_buffer(0x10000, alloc(PAGE), slot=7, as_id=1)
        vm.write_guest(0x10000, bytes(range(256)) * 64)
        vm.get_dirty_log(0), vm.get_dirty_log(1)
        yield vm


CONTENT = bytes(range(256)) * 64


# ---- against the model ----------------------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("dereference_raw", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_accesses_agree_with_the_model(
    backend: str, dereference_raw: bool, seed: int
) -> None:
    pair = GuestPair(backend, Random(seed), dereference_raw)
    pair.play(1500)
    assert pair.tally["faults"] > 100
    assert pair.tally["make_slot"] > 50
    pair.vm.close()


@every_backend
@pytest.mark.parametrize("seed", [4, 5])
def test_long_accesses_agree_with_the_model(backend: str, seed: int) -> None:
    """Slots without holes.  Accesses of more than 64 KiB run outside of read sections."""
    pair = GuestPair(backend, Random(seed))
    pair.fill_span()
    pair.play(400, changes=False)
    assert pair.tally.total() > 2 * pair.tally["faults"]
    pair.vm.close()


class Machine(RuleBasedStateMachine):
    """The operations of a GuestPair, which hypothesis draws and shrinks one by one."""

    @initialize(backend=st.sampled_from(backends()), dereference_raw=st.booleans())
    def start(self, backend: str, dereference_raw: bool) -> None:
        self.pair = GuestPair(backend, Random(0), dereference_raw)

    @rule(operation=st.sampled_from(GuestPair.OPERATIONS), seed=st.integers(0, 2**16))
    def play(self, operation: tuple[Callable[[GuestPair], None], int], seed: int) -> None:
        self.pair.rng = Random(seed)
        operation[0](self.pair)

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.agree()
            self.pair.vm.close()


@pytest.mark.slow
def test_state_machine_with_bytes_finds_no_difference_to_the_model() -> None:
    run_state_machine_as_test(Machine, settings=settings(max_examples=150, stateful_step_count=60))


# ---- bytes and numbers ----------------------------------------------------------------------------------------------


def test_bytes_cross_pages_and_slots(vm: VM) -> None:
    for gpa, n in ((0x10000, 4 * PAGE), (0x10FFF, 2), (0x10123, 2 * PAGE), (0x13FFF, 1)):
        want = CONTENT[gpa - 0x10000 :][:n]
        assert vm.read_guest(gpa, n) == want
        out = bytearray(n)
        assert vm.readinto_guest(gpa, out) is None
        assert out == want
        array = np.zeros((n, 1), np.uint8)
        vm.readinto_guest(gpa, array)
        assert array.tobytes() == want


def test_writes_take_any_contiguous_buffer_and_mark_pages(vm: VM) -> None:
    for data in (b"\x01" * 5000, bytearray(5000), memoryview(bytes(5000)), np.ones(625)):
        vm.write_guest(0x10800, data)
        assert vm.read_guest(0x10800, 5000) == bytes(memoryview(data).cast("B"))
        assert (vm.get_dirty_log(0)[0], vm.get_dirty_log(1)[0]) == (0b1, 0b1)
    vm.write_guest(0x12FFF, b"12")
    assert (vm.get_dirty_log(0)[0], vm.get_dirty_log(1)[0]) == (0, 0b110)
    vm.read_guest(0x10000, 4 * PAGE)
    assert (vm.get_dirty_log(0)[0], vm.get_dirty_log(1)[0]) == (0, 0)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("gpa", [0x10100, 0x10103, 0x10FFF, 0x10FFD, 0x10FF9])
def test_numbers_are_little_endian_at_every_address(vm: VM, bits: int, gpa: int) -> None:
    read, write = getattr(vm, f"read_u{bits}"), getattr(vm, f"write_u{bits}")
    want = int.from_bytes(CONTENT[gpa - 0x10000 :][: bits // 8], "little")
    assert read(gpa) == want
    for value in (0, 1, 2**bits - 1, 0x0102030405060708 % 2**bits):
        assert write(gpa, value) is None
        assert read(gpa) == value
        assert vm.read_guest(gpa, bits // 8) == value.to_bytes(bits // 8, "little")
    crosses = (gpa & 0xFFF) + bits // 8 > PAGE
    assert (vm.get_dirty_log(0)[0], vm.get_dirty_log(1)[0]) == (1, int(crosses))


def test_fill_and_copy(vm: VM) -> None:
    assert vm.fill_guest(0x10FFE, 4, 0xAB) is None
    assert vm.read_guest(0x10FFC, 8) == b"\xfc\xfd\xab\xab\xab\xab\x02\x03"
    for to, source, n in (
        (0x11000, 0x10000, 100),
        (0x10010, 0x10000, 5000),
        (0x10000, 0x10010, 5000),
    ):
        before = bytearray(vm.read_guest(0x10000, 4 * PAGE))
        before[to - 0x10000 : to - 0x10000 + n] = before[source - 0x10000 : source - 0x10000 + n]
        assert vm.copy_guest(to, source, n) is None
        assert vm.read_guest(0x10000, 4 * PAGE) == before


def test_other_address_space_has_other_memory(vm: VM) -> None:
    vm.write_guest(0x10000, b"other", as_id=1)
    assert vm.read_guest(0x10000, 5, 1) == b"other"
    assert vm.read_guest(0x10000, 5) == CONTENT[:5]
    vm.write_u64(0x10008, 7, as_id=1)
    vm.fill_guest(0x10010, 3, 9, as_id=1)
    vm.copy_guest(0x10018, 0x10008, 8, as_id=1)
    vm.write_u64_many([0x10020], 5, as_id=1)
    assert vm.read_u64_many([0x10008, 0x10010, 0x10018, 0x10020], as_id=1).tolist() == [
        7,
        0x90909,
        7,
        5,
    ]
    assert vm.read_guest(0x10000, PAGE) == CONTENT[:PAGE]


def test_view_and_guest_are_the_same_memory() -> None:
    with VM() as vm:
        memory = alloc(PAGE)
        view = vm.map_buffer(0x5000, memory).view()
        view[3] = 77
        assert vm.read_u8(0x5003) == 77
        vm.write_u8(0x5004, 78)
        assert (view[4], memory[4]) == (78, 78)


# ---- errors ---------------------------------------------------------------------------------------------------------

HOLE, RO, BASE = GfnNotMappedError, ReadOnlySlotError, GuestAccessError
ACCESSES: list[tuple[str, tuple[Any, ...], type[GuestAccessError], int, int, str]] = [
    ("read_guest", (0, 1), HOLE, 0, 0, "in no slot"),
    (
        "read_guest",
        (0x13FF0, 32),
        HOLE,
        0x14000,
        16,
        "0x14000 of address space 0 is in no slot.*16 bytes",
    ),
    ("read_guest", (0xFFFF, 3), HOLE, 0xFFFF, 0, "0xffff"),
    ("read_guest", (2**64 - 1, 2), HOLE, 2**64 - 1, 0, "0xffffffffffffffff"),
    ("read_guest", (0x10000, 2**20), HOLE, 0x14000, 4 * PAGE, "16384 bytes"),
    ("readinto_guest", (0x13FF0, bytearray(17)), HOLE, 0x14000, 16, "0x14000"),
    ("write_guest", (0x13FF0, bytes(17)), HOLE, 0x14000, 16, "0x14000"),
    ("write_guest", (0x20010, b"x"), RO, 0x20010, 0, r"slot 2 \[0x20000, 0x21000\).*READONLY"),
    ("write_guest", (0x30010, b"x"), BASE, 0x30010, 0, r"slot 3 \[0x30000, .*map_buffer\(\)"),
    ("read_guest", (0x30010, 1), BASE, 0x30010, 0, "dereference_raw_addresses=True"),
    ("read_u8", (0x14000,), HOLE, 0x14000, 0, "0x14000"),
    ("read_u64", (0x13FFC,), HOLE, 0x14000, 4, "4 bytes"),
    ("write_u32", (0x13FFF, 5), HOLE, 0x14000, 1, "1 bytes"),
    ("write_u16", (0x20000, 5), RO, 0x20000, 0, "READONLY"),
    ("read_u16", (0x30000,), BASE, 0x30000, 0, "slot 3"),
    ("fill_guest", (0x13000, 2 * PAGE, 1), HOLE, 0x14000, PAGE, "4096 bytes"),
    ("fill_guest", (0x20000, 1, 1), RO, 0x20000, 0, "READONLY"),
    ("copy_guest", (0x13FF0, 0x10000, 32), HOLE, 0x14000, 16, "0x14000"),
    ("copy_guest", (0x10000, 0x13FF0, 32), HOLE, 0x14000, 16, "0x14000"),
    ("copy_guest", (0x20000, 0x10000, 32), RO, 0x20000, 0, "READONLY"),
    ("read_u64_many", ([0x10000, 0x13FFC, 0x10008],), HOLE, 0x14000, 12, "12 bytes"),
    ("read_u64_many", ([0x10000] * 99 + [0x30000],), BASE, 0x30000, 792, "slot 3"),
    ("write_u64_many", ([0x10000, 0x20000], 5), RO, 0x20000, 8, "READONLY"),
]


@pytest.mark.parametrize(("name", "args", "error", "gpa", "done", "words"), ACCESSES)
def test_refused_access_says_where_and_how_far(
    vm: VM,
    name: str,
    args: tuple[Any, ...],
    error: type[Exception],
    gpa: int,
    done: int,
    words: str,
) -> None:
    with pytest.raises(GuestAccessError, match=words) as caught:
        getattr(vm, name)(*args)
    assert type(caught.value) is error
    assert (caught.value.errno, caught.value.gpa, caught.value.done) == (errno.EFAULT, gpa, done)


def test_pieces_before_the_failed_one_are_written_and_marked(vm: VM) -> None:
    with pytest.raises(GfnNotMappedError) as caught:
        vm.write_guest(0x12800, b"\x07" * 3 * PAGE)
    assert (caught.value.gpa, caught.value.done) == (0x14000, 0x1800)
    assert vm.read_guest(0x12800, 0x1800) == b"\x07" * 0x1800
    assert vm.get_dirty_log(1)[0] == 0b110
    out = bytearray(b"\xaa" * 3 * PAGE)
    with pytest.raises(GfnNotMappedError):
        vm.readinto_guest(0x12800, out)
    assert out[:0x1800] == b"\x07" * 0x1800


def test_no_bytes_are_no_access(vm: VM) -> None:
    for gpa in (0, 0x20000, 0x30000, 2**64 - 1):
        assert vm.read_guest(gpa, 0) == b""
        vm.readinto_guest(gpa, bytearray())
        vm.write_guest(gpa, b"")
        vm.fill_guest(gpa, 0, 1)
        vm.copy_guest(gpa, gpa, 0)
    assert vm.read_u64_many([]).shape == (0,)
    vm.write_u64_many(np.zeros((0, 3), np.uint64), 1)


def test_error_of_another_call_has_no_place(vm: VM) -> None:
    with pytest.raises(GuestAccessError) as caught:
        vm.gfn_to_hva(0)
    assert (caught.value.gpa, caught.value.done) == (None, 0)


BAD_ARGUMENTS: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("read_guest", (0x10000, -1), OverflowError, "n must be"),
    ("read_guest", (0x10000, 2**63), OverflowError, "n must be"),
    ("read_guest", (0x10000, 1.0), TypeError, "n must be an int"),
    (
        "readinto_guest",
        (0x10000, b"bytes"),
        ValueError,
        r"out \(bytes\) is read-only; use a bytearray",
    ),
    (
        "readinto_guest",
        (0x10000, memoryview(b"bytes")),
        ValueError,
        r"out \(memoryview\) is read-only",
    ),
    (
        "readinto_guest",
        (0x10000, np.zeros(8)[::2]),
        ValueError,
        r"out \(ndarray\) is not C-contiguous; use a bytearray",
    ),
    (
        "readinto_guest",
        (0x10000, memoryview(bytearray(8))[::2]),
        ValueError,
        "out .* not C-contiguous",
    ),
    ("readinto_guest", (0x10000, 5), TypeError, "out must have the buffer protocol.*int"),
    ("readinto_guest", (0x10000, [0] * 8), TypeError, "out must have the buffer protocol.*list"),
    ("write_guest", (0x10000, "text"), TypeError, "data must have the buffer protocol.*str"),
    ("write_guest", (0x10000, None), TypeError, "data must have the buffer protocol.*NoneType"),
    ("write_guest", (0x10000, np.zeros((4, 4)).T), ValueError, "data .* not C-contiguous"),
    ("write_u8", (0x10000, 256), OverflowError, "value must be 0 to 0xff, not 256"),
    ("write_u16", (0x10000, 2**16), OverflowError, "value must be 0 to 0xffff"),
    ("write_u32", (0x10000, -1), OverflowError, "value must be 0 to 0xffffffff, not -1"),
    ("write_u64", (0x10000, 2**64), OverflowError, "value must be"),
    ("write_u64", (0x10000, 1.5), TypeError, "value must be an int"),
    ("fill_guest", (0x10000, 4, 256), OverflowError, "byte must be 0 to 0xff"),
    ("fill_guest", (0x10000, 4, b"x"), TypeError, "byte must be an int"),
    ("write_u64_many", ([0x10000], 2**64), OverflowError, "values must be"),
    ("write_u64_many", ([0x10000], -1), OverflowError, "values must be"),
    ("write_u64_many", ([0x10000], [-1]), ValueError, "values must not be negative"),
    ("write_u64_many", ([0x10000], 0.5), TypeError, "values must be"),
    (
        "write_u64_many",
        ([0x10000] * 3, [1, 2]),
        ValueError,
        r"values has shape \(2,\), but gpas has \(3,\)",
    ),
    (
        "write_u64_many",
        ([0x10000] * 3, np.zeros((2, 3), np.uint64)),
        ValueError,
        "values has shape",
    ),
    ("write_u64_many", ([0.5], 1), TypeError, "gpas must be"),
    (
        "read_u64_many",
        ([0x10000], np.zeros(1, np.int64)),
        TypeError,
        "out must be an array of uint64",
    ),
]


@pytest.mark.parametrize(("name", "args", "error", "words"), BAD_ARGUMENTS)
def test_bad_argument_raises_before_anything_is_written(
    vm: VM, name: str, args: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        getattr(vm, name)(*args)
    assert vm.read_guest(0x10000, 4 * PAGE) == CONTENT
    assert vm.get_dirty_log(0)[0] == 0


def test_closed_buffers_raise_their_own_error(vm: VM) -> None:
    closed = alloc(PAGE)
    closed.close()
    for call in (vm.readinto_guest, vm.write_guest):
        with pytest.raises(ValueError, match="closed"):
            call(0x10000, closed)


def test_buffers_of_a_call_are_released(vm: VM) -> None:
    array = bytearray(8)
    vm.readinto_guest(0x10000, array)
    vm.write_guest(0x10000, array)
    for call in (vm.readinto_guest, vm.write_guest):
        with pytest.raises(GuestAccessError):
            call(0, array)
        with pytest.raises(TypeError):
            call("0", array)
    array.append(1)  # BufferError if a call still held it


def test_closed_vm_raises() -> None:
    vm = VM()
    vm.map_buffer(0, alloc(PAGE))
    vm.close()
    calls: list[Callable[[], object]] = [
        lambda: vm.read_guest(0, 1),
        lambda: vm.read_u64(0),
        lambda: vm.write_u64(0, 1),
        lambda: vm.write_guest(0, b"x"),
        lambda: vm.read_u64_many([0]),
        lambda: vm.fill_guest(0, 1, 1),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()


# ---- many numbers ---------------------------------------------------------------------------------------------------


OBJECTS: dict[str, Callable[[], Any]] = {
    "array": lambda: np.full(4, None),
    "records": lambda: np.zeros(4, [("a", "u8"), ("b", object)]),
    "memoryview": lambda: memoryview(np.full(8, None))[2:6],
    "memoryview of records": lambda: memoryview(np.zeros(4, [("a", "u8"), ("b", object)])),
    "PickleBuffer": lambda: pickle.PickleBuffer(np.full(4, None)),
    "ctypes": lambda: (ctypes.py_object * 4)(),
    "ctypes records": lambda: (Record * 4)(),
}


class Record(ctypes.Structure):
    _fields_ = (("Offset", ctypes.c_uint64), ("thing", ctypes.py_object))


class PlainRecord(ctypes.Structure):
    _fields_ = (("Offset", ctypes.c_uint64),)


@pytest.mark.parametrize("kind", OBJECTS)
def test_guest_memory_never_replaces_python_objects(kind: str) -> None:
    """A read into references to objects would crash the interpreter.  A write from them is only bytes."""
    out = OBJECTS[kind]()
    before = bytes(memoryview(out).tobytes())
    with VM() as vm:
        vm.map_buffer(0, alloc(PAGE))
        vm.fill_guest(0, PAGE, 0x41)
        with pytest.raises(TypeError, match=r"out .*contains Python objects"):
            vm.readinto_guest(0, out)
        assert memoryview(out).tobytes() == before
        record = PlainRecord()
        vm.readinto_guest(0, record)
        assert record.Offset == 0x4141414141414141
        vm.write_guest(0, out)
        assert vm.read_guest(0, len(before)) == before


@pytest.mark.parametrize("n", [1, 64, 65, 5000])
def test_many_numbers_are_read_and_written_in_every_layout(n: int) -> None:
    rng = np.random.default_rng(n)
    with VM() as vm:
        memory = alloc(64 * PAGE)
        memory[:] = rng.bytes(len(memory))
        for k in range(8):
            part = memoryview(memory)[k * 8 * PAGE : (k + 1) * 8 * PAGE]
            vm.map_buffer(0x100000 + k * 8 * PAGE, part, log_dirty=True)
        offsets = rng.integers(0, 64 * PAGE - 7, n)
        gpas = (offsets + 0x100000).astype(np.uint64)
        want = np.array([int.from_bytes(memory[o : o + 8], "little") for o in offsets], np.uint64)
        layouts = [
            gpas,
            gpas[::-1],
            gpas.astype(np.int64),
            gpas.reshape(n, 1),
            np.repeat(gpas, 2)[::2],
        ]
        layouts += [gpas.astype(">u8"), np.broadcast_to(gpas, (2, n)).T]
        for layout in layouts:
            wanted = (
                np.broadcast_to(want, (2, n)).T
                if layout.ndim == 2 and layout.shape[1] == 2
                else want
            )
            wanted = want[::-1] if layout is layouts[1] else wanted.reshape(layout.shape)
            result = vm.read_u64_many(layout)
            assert result.dtype == np.uint64
            assert (result == wanted).all()
            out = np.zeros(layout.shape, np.uint64)
            assert vm.read_u64_many(layout, out=out) is out
            assert (out == wanted).all()
        in_place = gpas.copy()
        vm.read_u64_many(in_place, out=in_place)
        assert (in_place == want).all()
        pages = np.unique(offsets // PAGE * PAGE + 0x100000)
        values = rng.integers(0, 2**63, len(pages)).astype(np.uint64)
        vm.write_u64_many(pages, values)
        assert (vm.read_u64_many(pages) == values).all()
        vm.write_u64_many(pages[::-1], values.astype(np.int64)[::-1])
        assert (vm.read_u64_many(pages) == values).all()
        vm.write_u64_many(pages, 2**64 - 1)
        assert (vm.read_u64_many(pages) == 2**64 - 1).all()
        vm.write_u64_many(
            np.broadcast_to(pages, (3, len(pages))), np.arange(3, dtype=np.uint8)[:, None]
        )
        assert (vm.read_u64_many(pages) == 2).all()
        logs = {s.base_gfn: int(vm.get_dirty_log(s.id)[0]) for s in vm.memslots()}
        marked = {gfn + page for gfn, log in logs.items() for page in range(8) if log >> page & 1}
        assert marked == set((pages // PAGE).tolist())


def test_scalars_of_many_calls(vm: VM) -> None:
    number = vm.read_u64_many(np.array(0x10008))
    assert number.shape == ()
    assert number == vm.read_u64(0x10008)
    vm.write_u64_many(np.array(0x10008), 5)
    assert vm.read_u64(0x10008) == 5


def test_read_many_writes_the_values_before_the_failed_one(vm: VM) -> None:
    out = np.full(200, 7, np.uint64)
    gpas = np.full(200, 0x10008, np.uint64)
    gpas[150] = 0
    with pytest.raises(GfnNotMappedError) as caught:
        vm.read_u64_many(gpas, out)
    assert (caught.value.gpa, caught.value.done) == (0, 150 * 8)
    assert (out[:150] == vm.read_u64(0x10008)).all()
    assert (out[150:] == 7).all()


def test_read_many_leaves_what_it_has_not_read_in_every_layout(vm: VM) -> None:
    for order in "CF":
        out = np.full((2, 3), 7, np.uint64, order=order)
        with pytest.raises(GfnNotMappedError):
            vm.read_u64_many(np.array([[0x10000, 0x10008, 0x10010], [0, 0x10000, 0x10000]]), out)
        assert out[1].tolist() == [7, 7, 7], order
        assert (out[0] != 7).all()


# ---- raw slots ------------------------------------------------------------------------------------------------------


@every_backend
def test_raw_addresses_are_used_only_if_the_vm_allows_it(backend: str) -> None:
    memory = alloc(2 * PAGE)
    memory[0:5] = b"hello"
    with VM(backend=backend, dereference_raw_addresses=True) as vm:
        put(vm, 0, 0x10, 2, LOG, hva=memory.address)
        assert vm.read_guest(0x10000, 5) == b"hello"
        vm.write_u8(0x11000, 3)
        assert memory[PAGE] == 3
        assert vm.get_dirty_log(0)[0] == 0b10
        assert not vm.pinned_by(memory)
    with VM(backend=backend) as vm:
        put(vm, 0, 0x10, 2, hva=8 * PAGE)  # not even looked at
        for call in (lambda: vm.read_u64(0x10000), lambda: vm.write_guest(0x10000, b"x")):
            with pytest.raises(GuestAccessError) as caught:
                call()
            assert caught.value.rule == "GUEST_RAW"


# ---- states ---------------------------------------------------------------------------------------------------------


def test_reads_inside_a_section_see_one_state_and_hooks_see_the_present_one(vm: VM) -> None:
    seen: list[bytes | str] = []

    def look() -> None:
        try:
            seen.append(vm.read_guest(0x10000, 3))
        except GfnNotMappedError:
            seen.append("hole")

    with vm.read():
        assert vm.read_guest(0x10000, 3) == vm.read_guest(0x10000, 3)
        vm.write_u8(0x10000, 9)
    vm.add_listener(Recorder(prepare=look, flush=look, commit=look))
    vm.delete(0)
    assert seen == ["hole"] * 3
    seen.clear()
    memory = alloc(PAGE)
    memory[0:3] = b"new"
    vm.map_buffer(0x10000, memory)
    assert seen == ["hole", b"new"]


def test_failed_access_in_a_hook_leaves_the_exceptions_of_the_change(vm: VM) -> None:
    class RefusedError(Exception):
        pass

    def refuse() -> None:
        raise RefusedError

    def fail() -> None:
        with pytest.raises(GfnNotMappedError):
            vm.read_u8(0)
        with pytest.raises(GfnNotMappedError):
            vm.read_u64_many([0])

    vm.add_listener(Recorder(abort=fail))
    vm.add_listener(Recorder(prepare=refuse))
    with pytest.raises(RefusedError):
        vm.delete(0)


def close_when_free(memory: Memory) -> None:
    """A long read of another thread may still hold it.  Then the next memory often gets the same address."""
    while not memory.closed:
        try:
            memory.close()
        except BufferError:
            time.sleep(0)


@every_backend
def test_no_reader_sees_the_bytes_of_another_slot(backend: str) -> None:
    """Each page of a slot holds the number of its incarnation and its gfn.  A slot is mapped, moved, deleted and its
    memory is closed and used again while readers of every kind run.  A reader sees only numbers that were mapped there
    during its call, and all pages of one call come from one incarnation."""
    pages, stop, wrong = 24, threading.Event(), []
    current = [0]  # the newest incarnation that may be visible
    done = [0]  # every incarnation up to this one has ended
    counts = [0] * 4

    def stamped(number: int) -> Memory:
        memory = alloc(pages * PAGE)
        words = np.frombuffer(memory, np.uint64).reshape(pages, PAGE // 8)
        words[:] = number
        words[:, 1] = np.arange(pages)
        return memory

    def check(first: int, words: np.ndarray, last: int) -> None:
        numbers = set(words.reshape(-1, PAGE // 8)[:, [0, 2, -1]].ravel().tolist())
        if len(numbers) != 1 or not first < min(numbers) <= last:
            wrong.append((first, numbers, last))

    def read(kind: int) -> None:
        out = np.zeros(pages * PAGE // 8, np.uint64)
        gpas = (np.arange(pages) * PAGE).astype(np.uint64)
        while not stop.is_set() and not wrong:
            first = done[0]
            try:
                if kind == 0:
                    vm.readinto_guest(0, out)  # more than 64 KiB: by references
                elif kind == 1:
                    out = np.frombuffer(vm.read_guest(4 * PAGE, 8 * PAGE), np.uint64)
                elif kind == 2:
                    numbers = set(vm.read_u64_many(gpas).tolist())
                    if len(numbers) != 1 or not first < min(numbers) <= current[0]:
                        wrong.append((first, numbers, current[0]))
                    counts[kind] += 1
                    continue
                else:
                    number = vm.read_u64(7 * PAGE)
                    if not first < number <= current[0]:
                        wrong.append((first, number, current[0]))
                    counts[kind] += 1
                    continue
            except GfnNotMappedError:
                continue
            check(first, out, current[0])
            counts[kind] += 1
            out = np.zeros(pages * PAGE // 8, np.uint64) if kind == 1 else out

    with VM(backend=backend) as vm:
        threads = [threading.Thread(target=read, args=(kind,)) for kind in range(4)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 120
        number = 0
        while not wrong and (min(counts) < 30 or number < 150) and time.monotonic() < end:
            number += 1
            memory = stamped(number)
            current[0] = number
            mapping = vm.map_buffer(0, memory, log_dirty=number % 2 == 0)
            if number % 3 == 0:
                mapping.move(2**30)
                mapping.move(0)
            time.sleep(0)
            mapping.unmap()
            done[0] = number
            if number % 4:
                close_when_free(memory)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert min(counts) >= 30
        vm.check()


def test_slot_that_is_deleted_during_long_writes_keeps_its_memory() -> None:
    """Writers of 1 MiB next to a thread that maps and deletes their slot.  Each write ends complete or in the hole."""
    with VM() as vm:
        stop, wrong = threading.Event(), []

        def write(byte: int) -> None:
            data = bytes([byte]) * 2**20
            while not stop.is_set():
                try:
                    vm.write_guest(0, data)
                except GfnNotMappedError as error:
                    if error.done or error.gpa:
                        wrong.append(error)
                except BaseException as error:
                    wrong.append(error)
                    raise

        threads = [threading.Thread(target=write, args=(byte,)) for byte in (1, 2)]
        for thread in threads:
            thread.start()
        for n in range(150):
            mapping = vm.map_buffer(0, alloc(2**20), log_dirty=bool(n % 2))
            if n % 2:
                vm.get_dirty_log(mapping.slot)
            mapping.unmap()
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        vm.check()


# ---- memory that goes away ------------------------------------------------------------------------------------------

GONE = """
import mmap, tempfile
def file_of(pages):
    file = tempfile.TemporaryFile()
    file.truncate(pages * PAGE)
    return file, mmap.mmap(file.fileno(), pages * PAGE)
def fails(call, gpa, done):
    error = refused(GuestAccessError, call)
    assert error.rule == "GUEST_FAULT", error
    assert (error.gpa, error.done) == (gpa, done), (hex(error.gpa), error.done)
    assert "truncated, unmapped or protected" in str(error) and "slot 0" in str(error)
vm = VM()
libc = ctypes.CDLL(None)
"""


def test_truncated_file_raises_and_does_not_end_the_process() -> None:
    runs(
        GONE
        + """
for pages in (4, 40):  # 40 pages: without a read section
    file, memory = file_of(pages)
    memory[:] = b"x" * len(memory)
    with vm.map_buffer(0, memory, log_dirty=True) as mapping:
        file.truncate(2 * PAGE)
        all = pages * PAGE
        for gpa in (0, 1, PAGE - 1, PAGE, 2 * PAGE - 1):
            gone, n = 2 * PAGE - gpa, all - gpa
            fails(lambda: vm.read_guest(gpa, n), 2 * PAGE, gone)
            out = bytearray(n)
            fails(lambda: vm.readinto_guest(gpa, out), 2 * PAGE, gone)
            assert out[:gone] == b"x" * gone
            vm.get_dirty_log(0)
            fails(lambda: vm.write_guest(gpa, b"x" * n), 2 * PAGE, gone)
            assert vm.get_dirty_log(0)[0] == (0b111 if gpa < PAGE else 0b110)  # the page that is gone too
            fails(lambda: vm.fill_guest(gpa, n, 120), 2 * PAGE, gone)
        fails(lambda: vm.read_u8(2 * PAGE), 2 * PAGE, 0)
        fails(lambda: vm.read_u64(2 * PAGE - 4), 2 * PAGE, 4)
        fails(lambda: vm.write_u64(2 * PAGE + 8, 1), 2 * PAGE + 8, 0)
        fails(lambda: vm.copy_guest(2 * PAGE, 0, 16), 2 * PAGE, 0)
        fails(lambda: vm.copy_guest(0, 2 * PAGE, 16), 2 * PAGE, 0)
        for n in (3, 300):
            fails(lambda: vm.read_u64_many([0] * n + [2 * PAGE]), 2 * PAGE, 8 * n)
            fails(lambda: vm.write_u64_many([0] * n + [2 * PAGE], 120), 2 * PAGE, 8 * n)
        file.truncate(all)
        assert vm.read_guest(2 * PAGE, PAGE) == bytes(PAGE)
print("well")
"""
    )


def test_unmapped_and_protected_memory_raises() -> None:
    runs(
        GONE
        + """
memory = alloc(3 * PAGE)
address = memory.address
vm.map_buffer(0, memory)
assert libc.mprotect(ctypes.c_void_p(address + PAGE), PAGE, 1) == 0   # PROT_READ
assert vm.read_guest(0, 3 * PAGE) == bytes(3 * PAGE)
fails(lambda: vm.write_guest(8, bytes(2 * PAGE)), PAGE, PAGE - 8)
assert libc.munmap(ctypes.c_void_p(address + PAGE), PAGE) == 0
fails(lambda: vm.read_guest(0, 3 * PAGE), PAGE, PAGE)
fails(lambda: vm.write_u32(PAGE, 1), PAGE, 0)
assert vm.read_guest(2 * PAGE, PAGE) == bytes(PAGE)
print("well")
os._exit(0)
""".replace('print("well")\n', 'print("well", flush=True)\n')
    )


ADDRESS_ZERO = """
vm = VM(dereference_raw_addresses=True)
vm.set_user_memory_region(0, guest_phys_addr=0x1000, memory_size=2 * PAGE)  # userspace_addr is 0
vm.map_buffer(0x10000, memslots.alloc(PAGE))
for call in (
    lambda: vm.read_guest(0x1000, 1), lambda: vm.read_guest(0x1000, 2 * PAGE), lambda: vm.read_u8(0x1000),
    lambda: vm.read_u64(0x1000), lambda: vm.write_u64(0x1000, 1), lambda: vm.write_guest(0x1000, bytes(2 * PAGE)),
    lambda: vm.fill_guest(0x1000, PAGE, 0), lambda: vm.copy_guest(0x10000, 0x1000, 8),
    lambda: vm.copy_guest(0x1000, 0x10000, 8), lambda: vm.read_u64_many([0x1000] * 100),
    lambda: vm.write_u64_many([0x1000], 1),
):
    error = refused(GuestAccessError, call)
    assert (error.gpa, error.done) == (0x1000, 0)
print("well")
"""


@pytest.mark.skipif(SANITIZED, reason="UBSan refuses a copy at address 0 itself")
def test_host_address_zero_raises_and_does_not_end_the_process() -> None:
    runs(ADDRESS_ZERO)


def test_truncation_during_copies_raises_only_errors() -> None:
    runs(
        GONE
        + """
file, memory = file_of(512)
vm.map_buffer(0, memory)
stop, wrong = threading.Event(), []
def work(turn):
    while not stop.is_set():
        try:
            turn()
        except GuestAccessError as error:
            if error.rule != "GUEST_FAULT": wrong.append(error)
        except BaseException as error:
            wrong.append(error)
            raise
out, data = bytearray(512 * PAGE), bytes(512 * PAGE)
turns = [lambda: vm.readinto_guest(0, out), lambda: vm.write_guest(0, data), lambda: vm.read_guest(PAGE, 9 * PAGE),
         lambda: vm.read_u64(256 * PAGE), lambda: vm.copy_guest(0, 100 * PAGE, 300 * PAGE)]
threads = [threading.Thread(target=work, args=(turn,)) for turn in turns]
for thread in threads: thread.start()
for n in range(300):
    file.truncate((n * 37 % 512) * PAGE)
    time.sleep(0.001)
    file.truncate(512 * PAGE)
stop.set()
for thread in threads: thread.join()
assert not wrong, wrong
print("well")
"""
    )


@pytest.mark.skipif(
    SANITIZED, reason="a sanitizer handles SIGSEGV itself and reports it in its own way"
)
@pytest.mark.parametrize("order", ["before", "after"])
def test_faulthandler_still_reports_other_faults(order: str) -> None:
    """A fault outside of guest memory is a crash as before, in both orders of the handlers."""
    script = """
import faulthandler, mmap, tempfile, signal, os, sys, ctypes, subprocess
child = '''
import faulthandler, tempfile, mmap, ctypes
order = "{order}"
if order == "before": faulthandler.enable()
from memslots import *
vm = VM()
file = tempfile.TemporaryFile()
file.truncate(8192)
memory = mmap.mmap(file.fileno(), 8192)
vm.map_buffer(0, memory)
if order == "after": faulthandler.enable()
if order == "before":
    file.truncate(0)
    try:
        vm.read_u64(0)
        print("no error")
    except GuestAccessError:
        print("error", flush=True)
ctypes.string_at(16)
'''
done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
assert done.returncode == -signal.SIGSEGV, done
assert "Fatal Python error: Segmentation fault" in done.stderr and "string_at" in done.stderr, done.stderr
assert done.stdout == ("error\\n" if "{order}" == "before" else ""), done
print("well")
""".replace("{order}", order)
    runs(script)


# ---- processes ------------------------------------------------------------------------------------------------------


def test_child_of_fork_reads_and_writes_but_marks_nothing() -> None:
    runs(
        """
        vm, private, shared = VM(), alloc(PAGE), alloc(PAGE, shared=True)
        vm.map_buffer(0, private), vm.map_buffer(PAGE, shared)
        vm.map_buffer(2 * PAGE, alloc(PAGE), log_dirty=True)
        vm.write_guest(0, b"a" * 3 * PAGE)
        vm.get_dirty_log(2)
        if not (child := os.fork()):
            assert vm.read_guest(0, 3 * PAGE) == b"a" * 3 * PAGE
            error = refused(ForkedError, vm.write_guest, 0, b"b" * 3 * PAGE)
            assert (error.errno, error.gpa, error.done) == (errno.EIO, 2 * PAGE, 2 * PAGE)
            assert "slot 2 [0x2000, 0x3000) has a dirty log" in str(error) and "8192 bytes" in str(error)
            assert refused(ForkedError, vm.delete, 0).gpa is None
            assert refused(ForkedError, vm.write_u64, 2 * PAGE, 1).errno == errno.EIO
            assert vm.read_guest(0, 3 * PAGE) == b"b" * 2 * PAGE + b"a" * PAGE
            vm.fill_guest(0, PAGE, 99)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert vm.read_guest(0, PAGE) == b"a" * PAGE            # private memory
        assert vm.read_guest(PAGE, PAGE) == b"b" * PAGE         # shared memory
        assert vm.get_dirty_log(2)[0] == 0
        print("well")
        """
    )


GIL = """
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    print("well")
    sys.exit()
sys.setswitchinterval(1000)  # a thread runs only after the other one has released the GIL by itself
ran, end = [], []
def run():
    while not end:
        ran.append(1)
        time.sleep(0)
vm, out, data = VM(), bytearray(16384), bytes(16384)
vm.map_buffer(0, alloc(16 * PAGE))
calls = [lambda n: vm.read_guest(0, n), lambda n: vm.readinto_guest(0, memoryview(out)[:n]),
         lambda n: vm.write_guest(0, memoryview(data)[:n]), lambda n: vm.fill_guest(0, n, 1),
         lambda n: vm.copy_guest(8 * PAGE, 0, n)]
thread = threading.Thread(target=run)
thread.start()
while not ran: time.sleep(0.001)
for k, call in enumerate(calls):
    until = time.monotonic() + 0.02  # the other thread waits for the GIL from now on
    while time.monotonic() < until: pass
    before = len(ran)
    for _ in range(500): call(16383)
    assert len(ran) == before, k
    while len(ran) == before: call(16384)
end.append(1)
thread.join()
print("well")
"""


def test_copies_release_the_gil_from_16_kib_on() -> None:
    runs(GIL)


def test_threads_that_copy_while_the_interpreter_exits() -> None:
    runs(
        """
        vm = VM()
        vm.map_buffer(0, alloc(1024 * PAGE))
        out = bytearray(1024 * PAGE)
        def work(turn):
            while True: turn()
        turns = [lambda: vm.readinto_guest(0, out), lambda: vm.write_guest(0, out), lambda: vm.read_u64(0),
                 lambda: vm.map_buffer(2**30, alloc(PAGE)).unmap()]
        for turn in turns:
            threading.Thread(target=work, args=(turn,), daemon=True).start()
        time.sleep(0.1)
        print("well")
        """
    )


def test_interrupt_ends_a_long_batch() -> None:
    runs(
        """
        vm = VM()
        vm.map_buffer(0, alloc(PAGE))
        gpas = np.broadcast_to(np.zeros(1, np.uint64), (2_000_000_000,))
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        refused(KeyboardInterrupt, vm.write_u64_many, gpas, 1)
        print("well")
        """
    )


def test_mapping_of_memory_that_the_caller_reads_directly(vm: VM) -> None:
    """host addresses of gpa_to_hva() and reads of the guest agree."""
    mapping = vm.map_buffer(0x50000, alloc(PAGE))
    assert isinstance(mapping, Mapping)
    hva = vm.gpa_to_hva(0x50010)
    vm.write_u64(0x50010, 0x0123456789ABCDEF)
    import ctypes

    assert ctypes.c_uint64.from_address(hva).value == 0x0123456789ABCDEF
