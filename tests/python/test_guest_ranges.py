# SPDX-License-Identifier: MIT
"""Guest ranges as host ranges and as slots, one at a time and many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scene import PAGE, put

from memslots import (
    MEMSLOT_DTYPE,
    VM,
    GuestAccessError,
    HostRanges,
    MemFlag,
    alloc,
    backends,
)

READONLY = MemFlag.READONLY
GIB = 2**30


@pytest.fixture(params=backends())
def vm(request: pytest.FixtureRequest) -> Iterator[VM]:
    """Slots 1 and 2 are neighbours in host memory too, slot 3 follows them, slot 4 is READONLY, then a hole."""
    with VM(backend=request.param, address_spaces=2) as vm:
        put(vm, 1, 0x10, 2, hva=GIB)
        put(vm, 2, 0x12, 3, hva=GIB + 2 * PAGE)
        put(vm, 3, 0x15, 1, hva=3 * GIB)
        put(vm, 4, 0x16, 2, READONLY, hva=3 * GIB + PAGE)
        put(vm, 5, 0x20, 1, hva=5 * GIB)
        put(vm, 6, 0x10, 1, as_id=1, hva=6 * GIB)
        yield vm


def naive(vm: VM, gpa: int, n: int, as_id: int, write: bool) -> HostRanges:
    """Page by page."""
    ranges: list[tuple[int, int]] = []
    done = 0
    while done < n:
        part = min(n - done, PAGE - (gpa + done) % PAGE)
        try:
            if gpa + done >= 2**64:
                return HostRanges(ranges, 0)
            hva = vm.gpa_to_hva(gpa + done, as_id, write=write)
        except GuestAccessError:
            return HostRanges(ranges, gpa + done)
        if ranges and sum(ranges[-1]) == hva:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + part)
        else:
            ranges.append((hva, part))
        done += part
    return HostRanges(ranges, None)


CASES = [
    (0x10000, 8 * PAGE, 0),
    (0x10000, 8 * PAGE + 1, 0),
    (0x10FFF, 2, 0),
    (0x11FFF, 3 * PAGE, 0),
    (0x14000, PAGE, 0),
    (0x14123, 2 * PAGE, 0),
    (0, 1, 0),
    (0xFFFF, 2, 0),
    (0x10000, 0, 0),
    (0, 0, 0),
    (0x20FFF, 1, 0),
    (0x20FFF, 2, 0),
    (0x10000, 2 * PAGE, 1),
    (2**64 - 1, 1, 0),
]


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(("gpa", "n", "as_id"), CASES)
def test_ranges_are_those_of_the_pages_joined(
    vm: VM, gpa: int, n: int, as_id: int, write: bool
) -> None:
    assert vm.host_ranges(gpa, n, as_id, write) == naive(vm, gpa, n, as_id, write)


def test_example(vm: VM) -> None:
    assert vm.host_ranges(0x10800, 6 * PAGE) == HostRanges(
        [(GIB + 0x800, 5 * PAGE - 0x800), (3 * GIB, PAGE + 0x800)], None
    )
    assert vm.host_ranges(0x10000, 2**40) == HostRanges(
        [(GIB, 5 * PAGE), (3 * GIB, 3 * PAGE)], 0x18000
    )
    assert vm.host_ranges(0x10000, 2**40, write=True).hole == 0x16000
    ranges, hole = vm.host_ranges(2**64 - PAGE, 2**64 - 1)
    assert (ranges, hole) == ([], 2**64 - PAGE)


def test_slot_at_the_end_of_guest_memory() -> None:
    with VM(gpa_bits=64) as vm:
        put(vm, 0, 2**52 - 2, 1, hva=GIB)
        assert vm.host_ranges(2**64 - 2 * PAGE, 2 * PAGE) == HostRanges([(GIB, PAGE)], 2**64 - PAGE)


def test_more_ranges_than_the_first_try_has_room_for() -> None:
    with VM() as vm:
        for id in range(500):
            put(vm, id, id, 1, hva=(1000 - 2 * id) * GIB)
        ranges, hole = vm.host_ranges(0, 501 * PAGE)
        assert ranges == [((1000 - 2 * id) * GIB, PAGE) for id in range(500)]
        assert hole == 500 * PAGE
        many = vm.host_ranges_many([0, 0, 0], 500 * PAGE)
        assert many.offsets.tolist() == [0, 500, 1000, 1500]
        slots = vm.memslots_in_gfn_range_many(np.zeros((3, 2), np.uint64), 2**64 - 1)
        assert slots.offsets.tolist() == [500 * n for n in range(7)]
        assert slots.slots["id"].tolist() == list(range(500)) * 6


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("dtype", [np.uint64, np.int64, ">u8"])
def test_many_ranges_are_those_of_single_calls(vm: VM, write: bool, dtype: Any) -> None:
    cases = [(gpa, n) for gpa, n, as_id in CASES if not as_id and gpa < 2**63] * 20
    gpas = np.array([gpa for gpa, _ in cases], np.uint64).astype(dtype)
    sizes = np.array([n for _, n in cases], np.uint64).astype(dtype)
    ranges, offsets, holes = vm.host_ranges_many(gpas, sizes, write=write)
    assert (ranges.dtype, offsets.dtype, holes.dtype) == (np.uint64, np.int64, np.uint64)
    assert (ranges.shape, offsets.shape, holes.shape) == (
        (offsets[-1], 2),
        (len(cases) + 1,),
        (len(cases),),
    )
    for i, (gpa, n) in enumerate(cases):
        single = vm.host_ranges(gpa, n, write=write)
        assert [tuple(row) for row in ranges[offsets[i] : offsets[i + 1]].tolist()] == single.ranges
        assert holes[i] == (gpa + n if single.hole is None else single.hole)
    vm.close()


def test_slots_of_many_ranges_are_those_of_single_calls(vm: VM) -> None:
    starts = np.array([[0, 0x10, 0x11], [0x15, 0x18, 0x20]], np.uint64)
    ends = np.array([2**40, 0x11, 0x17], np.uint64)
    slots, offsets = vm.memslots_in_gfn_range_many(starts, ends)
    assert (slots.dtype, offsets.dtype) == (MEMSLOT_DTYPE, np.int64)
    wanted = np.broadcast_to(ends, (2, 3)).ravel().tolist()
    for i, (start, end) in enumerate(zip(starts.ravel().tolist(), wanted, strict=True)):
        found = [s.id for s in vm.memslots_in_gfn_range(start, end)]
        assert slots[offsets[i] : offsets[i + 1]]["id"].tolist() == found
    assert (
        vm.memslots_in_gfn_range_many([0], 2**40, as_id=1).slots.tolist()
        == vm.memslots_array(1).tolist()
    )


def test_nothing_gives_empty_arrays(vm: VM) -> None:
    ranges, offsets, holes = vm.host_ranges_many([], [])
    assert (ranges.shape, offsets.tolist(), holes.shape) == ((0, 2), [0], (0,))
    slots, offsets = vm.memslots_in_gfn_range_many([], 5)
    assert (slots.shape, offsets.tolist()) == ((0,), [0])


@pytest.mark.parametrize(
    ("call", "args", "error", "words"),
    [
        ("host_ranges", (0, -1), OverflowError, "n must be"),
        ("host_ranges", (0, 2**64), OverflowError, "n must be"),
        (
            "host_ranges_many",
            ([0, 1], [1, 2, 3]),
            ValueError,
            r"sizes has shape \(3,\), but gpas has \(2,\)",
        ),
        ("host_ranges_many", ([0], -1), OverflowError, "sizes must be"),
        ("host_ranges_many", ([0], [-1]), ValueError, "sizes must not be negative"),
        ("host_ranges_many", ([0.5], [1]), TypeError, "gpas must be"),
        ("memslots_in_gfn_range_many", ([0], 0.5), TypeError, "ends must be"),
        ("memslots_in_gfn_range_many", ([0], [[1], [2]]), ValueError, "ends has shape"),
    ],
)
def test_bad_arguments(
    vm: VM, call: str, args: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        getattr(vm, call)(*args)


def test_ranges_of_mapped_buffers_are_their_memory() -> None:
    with VM() as vm:
        memory = alloc(4 * PAGE)
        for n in range(4):
            vm.map_buffer(0x10000 + n * PAGE, memoryview(memory)[n * PAGE : (n + 1) * PAGE])
        assert vm.host_ranges(0x10000, 4 * PAGE) == HostRanges([(memory.address, 4 * PAGE)], None)
