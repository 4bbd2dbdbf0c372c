# SPDX-License-Identifier: MIT
"""The loads and stores of the vector files with real memory: the bytes are compared with those that a kernel gave.

The recording machine filled each page of the arena when it was first touched: the 8 bytes at offset o hold
0xA5E0 << 48 | o.  So the value of a load says where it went.  Here the page at the recorded address of an access is
mapped and filled before each operation, and removed after it.  A load or a store that goes to another address faults
or finds other bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scene import SANITIZED
from test_player import GUEST_OPS, SMALL, named

from memslots import VM, GfnNotMappedError, ReadOnlySlotError, backends
from memslots.traces import player, vectors
from memslots.traces.regions import ARENA_BASE, machine_of
from memslots.traces.schema import format_address, parse_number, parts_of_access

PAGE = 4096

pytestmark = pytest.mark.skipif(
    SANITIZED,
    reason="a sanitizer uses the recorded host addresses: the loads and stores of the vectors are NOT tested",
)
PATHS = [p for p in SMALL if any(op.kind in GUEST_OPS for op in vectors.read(p).ops)]

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
READ_WRITE, PRIVATE_ANONYMOUS, FIXED_NOREPLACE = 3, 0x22, 0x100000


def pattern(hva: int, npages: int = 1) -> np.ndarray:
    """The fresh content of the arena."""
    offsets = np.arange(hva - ARENA_BASE, hva - ARENA_BASE + npages * PAGE, 8, dtype=np.int64)
    return np.uint64(0xA5E0 << 48) | offsets.view(np.uint64) & np.uint64(2**48 - 1)


def differing(hva: int, data: bytes | bytearray) -> dict[int, int]:
    """The bytes, by address, that a store of the data changes in fresh pages."""
    start = hva // PAGE * PAGE
    fresh = pattern(start, 2).view(np.uint8)
    return {hva + i: byte for i, byte in enumerate(data) if byte != fresh[hva - start + i]}


class Pages:
    """Fresh pages of the arena, for one operation."""

    def __init__(self, hvas: set[int]) -> None:
        self.words: dict[int, np.ndarray] = {}
        for hva in sorted(hvas):
            got = libc.mmap(hva, PAGE, READ_WRITE, PRIVATE_ANONYMOUS | FIXED_NOREPLACE, -1, 0)
            if got != hva:
                self.close()
                raise OSError(ctypes.get_errno(), f"mmap at {hva:#x}")
            self.words[hva] = np.ctypeslib.as_array(
                (ctypes.c_uint64 * (PAGE // 8)).from_address(hva)
            )
            self.words[hva][:] = pattern(hva)

    def changed(self) -> dict[int, int]:
        """The bytes that differ from fresh ones, by address."""
        found = {}
        for hva, words in self.words.items():
            now, fresh = words.view(np.uint8), pattern(hva).view(np.uint8)
            found |= {hva + int(i): int(now[i]) for i in np.flatnonzero(now != fresh)}
        return found

    def close(self) -> None:
        for hva in self.words:
            assert libc.munmap(hva, PAGE) == 0
        self.words.clear()


class MemoryPlayer(player._Player):
    """Makes the loads and stores of a file as reads and writes of guest memory."""

    accesses = 0

    @contextmanager
    def pages(self, gpa: int, n: int) -> Iterator[Pages]:
        """The host pages that the recorded slots have for the range."""
        hvas = set()
        for at, _ in parts_of_access(gpa, n):
            for slot in self.recorded.slots.values():
                if slot.gpa <= at < slot.gpa + slot.size:
                    hvas.add((slot.hva + at - slot.gpa) // PAGE * PAGE)
        pages = Pages(hvas)
        MemoryPlayer.accesses += 1
        try:
            yield pages
        finally:
            pages.close()

    def hva_of_load(self, gpa: int) -> int | None:
        try:
            word = self.vm.read_u64(gpa)
        except GfnNotMappedError:
            return None
        assert self.vm.read_guest(gpa, 8) == word.to_bytes(8, "little")
        assert self.vm.read_u64_many([gpa]).tolist() == [word]
        assert word >> 48 == 0xA5E0, hex(word)
        return ARENA_BASE + ((word & 2**48 - 1) ^ 2**47) - 2**47

    def read(self, op: Any) -> player.Outcome:
        gpa = parse_number(op.fields["gpa"])
        with self.pages(gpa, 8) as pages:
            hva = self.hva_of_load(gpa)
            assert not pages.changed()
        return 0, {"hva": hva if hva is None else format_address(hva, ARENA_BASE)}

    def write(self, op: Any) -> player.Outcome:
        gpa = parse_number(op.fields["gpa"])
        data = bytes(range(1, 13 if op.kind == "host_write" else 9))
        with self.pages(gpa, len(data)) as pages:
            hva, wrote = self.hva_of_load(gpa), True
            refusal = GfnNotMappedError if hva is None else ReadOnlySlotError
            try:
                if len(data) == 8:
                    self.vm.write_u64(gpa, int.from_bytes(data, "little"))
                else:
                    self.vm.write_guest(gpa, data)
            except refusal:
                wrote = False
            assert pages.changed() == (differing(hva, data) if wrote else {})
        return 0, {"hva": hva if hva is None else format_address(hva, ARENA_BASE), "wrote": wrote}

    def access(self, op: Any) -> player.Outcome:
        """One access; after an error the rest of it, part by part, as KVM's emulator does."""
        f = op.fields
        gpa, n, store = parse_number(f["gpa"]), f["len"], f["write"]
        data = bytearray(
            (parse_number(f["value"]) % 2 ** (8 * n)).to_bytes(n, "little") if store else n
        )
        with self.pages(gpa, n) as pages:
            exits = self.access_parts(gpa, data, store)
            left = pages.changed()
            if store:
                self.compare_bytes(pages, gpa, data, exits)
            else:
                assert not left
        out: dict[str, Any] = {"mmio": exits}
        if not store:
            out["value"] = f"{int.from_bytes(data, 'little'):#x}"
        return 0, out

    def access_parts(self, gpa: int, data: bytearray, store: bool) -> list[list[Any]]:
        exits: list[list[Any]] = []
        done = 0
        while done < len(data):
            part = memoryview(data)[done:]
            try:
                if store:
                    self.vm.write_guest(gpa + done, part)
                else:
                    self.vm.readinto_guest(gpa + done, part)
                return exits
            except (GfnNotMappedError, ReadOnlySlotError) as error:
                done += error.done
                nbytes = parts_of_access(gpa + done, len(data) - done)[0][1]
                exits.append([f"{error.gpa:#x}", nbytes, "w" if store else "r"])
                data[done : done + nbytes] = (
                    b"\xee" * nbytes if not store else data[done : done + nbytes]
                )
                done += nbytes
        return exits

    def compare_bytes(
        self, pages: Pages, gpa: int, data: bytearray, exits: list[list[Any]]
    ) -> None:
        """Each part that was stored lies where a load finds it.  Nothing else has changed."""
        refused = {int(at, 16) for at, _, _ in exits}
        stored: dict[int, int] = {}
        for at, nbytes in parts_of_access(gpa, len(data)):
            if at not in refused:
                slot = next(s for s in self.recorded.slots.values() if s.gpa <= at < s.gpa + s.size)
                stored |= differing(slot.hva + at - slot.gpa, data[at - gpa : at - gpa + nbytes])
        assert pages.changed() == stored


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("path", PATHS, ids=named)
def test_loads_and_stores_reach_the_bytes_that_kvm_reached(
    path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = vectors.read(path)
    for kind, method in (
        ("read", "read"),
        ("write", "write"),
        ("host_write", "write"),
        ("access", "access"),
    ):
        monkeypatch.setitem(player._HANDLERS, kind, getattr(MemoryPlayer, method))
    monkeypatch.setattr(player, "_Player", MemoryPlayer)
    before = MemoryPlayer.accesses
    limits = machine_of(file.header)._asdict()
    with VM(**limits, backend=backend, dereference_raw_addresses=True) as vm:
        result = player.play(file, vm)
        vm.check()
    assert result.mismatches == []
    assert MemoryPlayer.accesses - before == sum(op.kind in GUEST_OPS for op in file.ops)


def test_an_access_that_goes_elsewhere_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM whose loads go one page too far: each file with loads in a slot has mismatches."""

    class Wrong(VM):
        def read_u64(self, gpa: Any, as_id: Any = 0) -> int:
            return super().read_u64(gpa + PAGE, as_id)

    path = next(p for p in PATHS if p.name.startswith("25"))
    file = vectors.read(path)
    monkeypatch.setitem(player._HANDLERS, "read", MemoryPlayer.read)
    monkeypatch.setattr(player, "_Player", MemoryPlayer)
    with Wrong(**machine_of(file.header)._asdict(), dereference_raw_addresses=True) as vm:
        assert player.play(file, vm).mismatches
