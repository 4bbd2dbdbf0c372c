# SPDX-License-Identifier: MIT
"""P11: reads and writes of guest memory compared with a lookup, with memmove, with a memcpy in C, and with unicorn."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import memslots
from memslots import PAGE_SIZE, VM

from .build import QUICK, cython_module
from .scorecard import Scorecard
from .timing import WALL, turns
from .work import Settings

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

#: A memcpy without checks, so that a call from Python costs the same as one of memslots.  copy_parts() copies parts of
#: `each` bytes, the last one first: some C libraries copy short parts in another way than one long piece.
BARE = """
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

def copy(uintptr_t to, uintptr_t start, size_t size):
    with nogil:
        memcpy(<void *>to, <void *>start, size)

def copy_parts(uintptr_t to, uintptr_t start, size_t size, size_t each):
    cdef size_t at = 0
    with nogil:
        while at < size:
            memcpy(<void *>(to + at), <void *>(start + size - at - each), each)
            at += each
"""

SLOTS = 64
CALLS, QUICK_CALLS = 100_000, 500
READ, WRITE = 1.6, 2.0  # of a lookup
SMALL = (64, 4 * KIB, 16 * KIB)
LARGE = (64 * KIB, MIB, 16 * MIB)
UNALIGNED_SIZES = (64 * KIB, MIB)
AS_MEMMOVE, AS_MEMCPY = 1.02, 1.15
BYTES = 256 * MIB  # that one turn copies, at most
#: Buffers begin so many bytes behind a page boundary.  malloc() puts a large one at 16; an array inside a structure can
#: be anywhere.  The guest memory is at a boundary, and a C library may copy at different speeds.
BEHIND, UNALIGNED = 16, 7
READ_AGAINST_MEMCPY = "readinto_guest / memcpy in C, called from Python"
ACROSS = 16  # slots of one copy
MANY = 1.5  # of a translation and np.take
MANY_BYTES, QUICK_BYTES = 4 * GIB, 16 * MIB
REGIONS = (1, 64, 500)

Bytes = npt.NDArray[np.uint8]


def guest(card: Scorecard, settings: Settings, folder: Path) -> None:
    scalars(card, settings)
    bare = cython_module(folder, "bare_copy", BARE, *(QUICK if settings.quick else ()))
    copies(card, settings, bare, slots=1)
    copies(card, settings, bare, slots=ACROSS)
    many(card, settings)
    if importlib.util.find_spec("unicorn") is None:
        card.skip("P11", "unicorn's mem_read and mem_write", "unicorn is not installed")
    else:
        for regions in REGIONS:
            against_unicorn(card, settings, regions)


def filled(size: int) -> memslots.Memory:
    """Return memory whose every page has been written, so that no timed access is a page fault."""
    memory = memslots.alloc(size)
    numbers = np.frombuffer(memory, np.uint64)
    numbers[:] = np.arange(len(numbers), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return memory


def vm_of(size: int, slots: int, **options: Any) -> tuple[VM, list[memslots.Memory]]:
    """Return a VM with `size` bytes from gpa 0 on, in equal slots that have memory of their own."""
    vm = VM()
    each = size // slots
    memories = [filled(each) for _ in range(slots)]
    for i, memory in enumerate(memories):
        vm.map_buffer(i * each, memory, **options)
    return vm, memories


# ---- single values ----------------------------------------------------------------------------------


def each_of(call: Callable[..., object], numbers: list[int], *more: int) -> None:
    for number in numbers:
        call(number, *more)


def scalars(card: Scorecard, settings: Settings) -> None:
    vm, memories = vm_of(SLOTS * MIB, SLOTS)
    logged, _ = vm_of(SLOTS * MIB, SLOTS, log_dirty=True)
    count = QUICK_CALLS if settings.quick else CALLS
    rng = np.random.default_rng(11)
    gpas = (3 * MIB + 8 * rng.integers(0, MIB // 8, count)).tolist()
    gfns = [gpa // PAGE_SIZE for gpa in gpas]
    right = np.frombuffer(memories[3], np.uint64)[[gpa % MIB // 8 for gpa in gpas]].tolist()
    card.check(list(map(vm.read_u64, gpas)) == right, "read_u64")
    each_of(logged.write_u64, gpas, 7)
    card.check({logged.read_u64(gpa) for gpa in gpas} == {7}, "write_u64")
    calls = {
        "lookup": partial(each_of, vm.gfn_to_hva, gfns),
        "read": partial(each_of, vm.read_u64, gpas),
        "write": partial(each_of, logged.write_u64, gpas, 7),
    }
    times = turns(calls, 3 * settings.rounds)
    at = f"hot, {SLOTS} slots"
    card.ratio("P11", "read_u64 / gfn_to_hva", at, times["read"], times["lookup"], "<=", READ)
    what = "write_u64 with a dirty log / gfn_to_hva"
    card.ratio("P11", what, at, times["write"], times["lookup"], "<=", WRITE)


# ---- copies -----------------------------------------------------------------------------------------


def buffer(size: int, behind: int) -> Bytes:
    """Return an array that begins `behind` bytes after a page boundary."""
    whole = np.ones(size + 2 * PAGE_SIZE, np.uint8)
    first = -whole.ctypes.data % PAGE_SIZE + behind
    return whole[first : first + size]


def again(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def sizes_of(settings: Settings, slots: int) -> tuple[int, ...]:
    if settings.quick:
        return (64 * KIB,)
    return (*SMALL, *LARGE) if slots == 1 else tuple(n for n in LARGE if n >= MIB)


def named(size: int) -> str:
    return (
        f"{size // MIB} MiB"
        if size >= MIB
        else f"{size // KIB} KiB"
        if size >= KIB
        else f"{size} bytes"
    )


def copies(card: Scorecard, settings: Settings, bare: Any, slots: int) -> None:
    memory = filled(max(LARGE))
    for size in sizes_of(settings, slots):
        one_size(card, settings, bare, memory, size, slots)
        if slots == 1 and size in UNALIGNED_SIZES:
            unaligned(card, settings, bare, memory, size)


def backward(memory: memslots.Memory, size: int, slots: int) -> tuple[VM, bytes]:
    """Return a VM whose slots have the parts of the memory from the last one on, and the bytes that it has at gpa 0."""
    vm, each = VM(), max(size // slots, PAGE_SIZE)
    parts = [memoryview(memory)[at : at + each] for at in range(0, slots * each, each)][::-1]
    for i, part in enumerate(parts):
        vm.map_buffer(i * each, part)
    return vm, b"".join(parts)[:size]


def turns_of(settings: Settings, size: int) -> tuple[int, int]:
    """Return the copies of one turn and the number of rounds.

    Copies of the largest size wait for main memory, whose speed depends on other users of the machine.  They take
    shorter turns, and more of them.
    """
    if settings.quick:
        return 1, 3 * settings.rounds
    shorter = 8 if size == max(LARGE) else 1
    return min(20_000, BYTES // size // shorter), 3 * shorter * settings.rounds


def one_size(
    card: Scorecard, settings: Settings, bare: Any, memory: memslots.Memory, size: int, slots: int
) -> None:
    """Compare a copy through the slots with copies of the same memory in one piece."""
    vm, content = backward(memory, size, slots)
    out = buffer(size, BEHIND)
    to, start = out.ctypes.data, memory.address
    card.check(vm.readinto_guest(0, out) is None, "readinto_guest returns None")
    card.check(out.tobytes() == content, f"readinto_guest of {named(size)}")
    times_each, rounds = turns_of(settings, size)
    calls: dict[str, Callable[[], object]] = {
        "guest": partial(vm.readinto_guest, 0, out),
        "memmove": partial(ctypes.memmove, to, start, size),
        "memcpy": partial(bare.copy, to, start, size),
    }
    if slots > 1:
        calls["parts"] = partial(bare.copy_parts, to, start, size, size // slots)
        out.fill(0)
        calls["parts"]()
        card.check(out.tobytes() == content, f"the parts of {named(size)}")
    turn = {name: partial(again, call, times_each) for name, call in calls.items()}
    times = turns(turn, rounds, WALL)
    at = named(size) if slots == 1 else f"{named(size)} in {slots} slots"
    what = "readinto_guest / ctypes.memmove"
    bound = 1.0 if size <= max(SMALL) else AS_MEMMOVE
    card.ratio(
        "P11", what, at, times["guest"], times["memmove"], "<=", bound if slots == 1 else None
    )
    what = READ_AGAINST_MEMCPY
    bound_c = AS_MEMCPY if size >= min(LARGE) else None
    card.ratio("P11", what, at, times["guest"], times["memcpy"], "<=", bound_c)
    if slots > 1:
        what = "readinto_guest / a memcpy in C for each slot"
        card.ratio("P11", what, at, times["guest"], times["parts"], "<=", AS_MEMCPY)


def unaligned(
    card: Scorecard, settings: Settings, bare: Any, memory: memslots.Memory, size: int
) -> None:
    """Compare reads and writes with memcpy() if the buffer has no alignment."""
    vm, content = backward(memory, size, 1)
    out, data = buffer(size, UNALIGNED), buffer(size, PAGE_SIZE - UNALIGNED)
    start = memory.address
    vm.readinto_guest(0, out)
    card.check(out.tobytes() == content, f"readinto_guest of {named(size)}, not aligned")
    data[:] = out
    vm.fill_guest(0, size, 0)
    vm.write_guest(0, data)
    card.check(vm.read_guest(0, size) == content, f"write_guest of {named(size)}, not aligned")
    calls: dict[str, Callable[[], object]] = {
        "read": partial(vm.readinto_guest, 0, out),
        "memcpy out": partial(bare.copy, out.ctypes.data, start, size),
        "write": partial(vm.write_guest, 0, data),
        "memcpy in": partial(bare.copy, start, data.ctypes.data, size),
    }
    times_each, rounds = turns_of(settings, size)
    turn = {name: partial(again, call, times_each) for name, call in calls.items()}
    times = turns(turn, rounds, WALL)
    at = f"{named(size)}, buffer not aligned"
    what = READ_AGAINST_MEMCPY
    card.ratio("P11", what, at, times["read"], times["memcpy out"], "<=", AS_MEMCPY)
    what = "write_guest / memcpy in C, called from Python"
    card.ratio("P11", what, at, times["write"], times["memcpy in"])


def many(card: Scorecard, settings: Settings) -> None:
    size = QUICK_BYTES if settings.quick else MANY_BYTES
    vm, memories = vm_of(size, SLOTS)
    rng = np.random.default_rng(12)
    gpas = rng.integers(0, size // 8, settings.queries).astype(np.uint64) * np.uint64(8)
    whole = np.arange(size // 8, dtype=np.uint64)  # an array of the same size
    places = gpas // np.uint64(8)
    out, hvas, taken = (np.empty(len(gpas), np.uint64) for _ in range(3))
    vm.read_u64_many(gpas, out=out)
    each = size // SLOTS
    factor = np.uint64(0x9E3779B97F4A7C15)
    card.check(
        np.array_equal(out, gpas % np.uint64(each) // np.uint64(8) * factor), "read_u64_many"
    )

    def by_hand() -> None:
        vm.gpa_to_hva_many(gpas, out=hvas)
        np.take(whole, places, out=taken, mode="clip")

    calls = {"many": lambda: vm.read_u64_many(gpas, out=out), "hand": by_hand}
    times = turns(calls, 3 * settings.rounds)
    what = "read_u64_many / gpa_to_hva_many and np.take of as many places"
    at = f"{len(gpas):,} of {size // MIB:,} MiB"
    card.ratio("P11", what, at, times["many"], times["hand"], "<=", MANY)
    del memories


# ---- unicorn ----------------------------------------------------------------------------------------


def against_unicorn(card: Scorecard, settings: Settings, regions: int) -> None:
    import unicorn  # an extra: only this part needs it

    each = 2 * MIB if not settings.quick else 64 * KIB
    vm, memories = vm_of(regions * each, regions)
    peer = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    for i, memory in enumerate(memories):
        peer.mem_map(i * each, each)
        peer.mem_write(i * each, bytes(memory))
    rng = np.random.default_rng(13)
    for size in (8, 4 * KIB, each // 2):
        most = regions * each - size
        count = 3 if settings.quick else max(3, min(20_000, BYTES // 8 // size))
        gpas = (rng.integers(0, most // 8 + 1, count) * 8).tolist()
        data = rng.bytes(size)
        same = all(
            vm.read_guest(gpa, size) == bytes(peer.mem_read(gpa, size)) for gpa in gpas[:100]
        )
        card.check(same, f"read_guest next to unicorn, {regions} regions")
        calls = {
            "read": partial(each_of, vm.read_guest, gpas, size),
            "peer_read": partial(each_of, peer.mem_read, gpas, size),
            "write": partial(write_each, vm.write_guest, gpas, data),
            "peer_write": partial(write_each, peer.mem_write, gpas, data),
        }
        times = turns(calls, settings.rounds)
        at = f"{named(size)}, {regions} regions"
        what = "unicorn's mem_read / read_guest"
        card.ratio("P11", what, at, times["peer_read"], times["read"])
        what = "unicorn's mem_write / write_guest"
        card.ratio("P11", what, at, times["peer_write"], times["write"])


def write_each(call: Callable[[int, bytes], object], gpas: list[int], data: bytes) -> None:
    for gpa in gpas:
        call(gpa, data)
