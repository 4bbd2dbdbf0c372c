# SPDX-License-Identifier: MIT
"""A naive model of guest memory: slots over bytearrays, read and written page by page as in KVM.

`GuestPair` makes a call on a VM and on the model and compares the result, the error and the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from memslots import (
    VM,
    GfnNotMappedError,
    GuestAccessError,
    Memory,
    MemslotsError,
    ReadOnlySlotError,
    alloc,
)

PAGE = 4096
LOG, READONLY = 1, 2


class Fault(Exception):
    """An access that ends early: the class of the error, the begin of the piece, the bytes before it."""

    def __init__(self, kind: type[Exception], gpa: int, done: int) -> None:
        super().__init__(kind.__name__, hex(gpa), done)


@dataclass
class Buffer:
    """A buffer and the bytes that it must have."""

    memory: Memory
    mirror: bytearray


@dataclass
class Slot:
    base: int  # gfn
    npages: int
    buffer: Buffer
    offset: int  # of the first page in the buffer, in bytes
    raw: bool
    flags: int
    dirty: set[int] = field(default_factory=set)


class GuestModel:
    """The slots of one address space."""

    def __init__(self, raw_allowed: bool) -> None:
        self.slots: dict[int, Slot] = {}
        self.raw_allowed = raw_allowed

    def at(self, gfn: int) -> Slot | None:
        return next((s for s in self.slots.values() if s.base <= gfn < s.base + s.npages), None)

    def place(self, gpa: int, write: bool, done: int, failed_gpa: int | None = None) -> tuple[Slot, int]:
        """The slot and the offset in its buffer, or a Fault."""
        slot, where = self.at(gpa // PAGE), gpa if failed_gpa is None else failed_gpa
        if slot is None:
            raise Fault(GfnNotMappedError, where, done)
        if write and slot.flags & READONLY:
            raise Fault(ReadOnlySlotError, where, done)
        if slot.raw and not self.raw_allowed:
            raise Fault(GuestAccessError, where, done)
        return slot, slot.offset + gpa - slot.base * PAGE

    def pieces(self, gpa: int, n: int) -> Iterator[tuple[int, int, int]]:
        """(gpa, offset in the access, bytes) of each page."""
        done = 0
        while done < n:
            part = min(n - done, PAGE - (gpa + done) % PAGE)
            yield (gpa + done) % 2**64, done, part
            done += part

    def read(self, gpa: int, n: int) -> bytes:
        data = b""
        for start, done, part in self.pieces(gpa, n):
            slot, at = self.place(start, False, done)
            data += slot.buffer.mirror[at : at + part]
        return data

    def write(self, gpa: int, data: bytes) -> None:
        for start, done, part in self.pieces(gpa, len(data)):
            slot, at = self.place(start, True, done)
            slot.buffer.mirror[at : at + part] = data[done : done + part]
            if slot.flags & LOG:
                slot.dirty.add(start // PAGE - slot.base)

    def read_many(self, gpas: list[int]) -> list[int]:
        values = []
        for n, gpa in enumerate(gpas):
            try:
                values.append(int.from_bytes(self.read(gpa, 8), "little"))
            except Fault as fault:
                kind, where, done = fault.args
                raise fault_of(kind, where, 8 * n + done) from None
        return values


def fault_of(kind: str, where: str, done: int) -> Fault:
    fault = Fault(Exception, 0, 0)
    fault.args = (kind, where, done)
    return fault


def answer_of(call: Any) -> Any:
    """The result of a call, or the kind, place and progress of its error."""
    try:
        return call()
    except Fault as fault:
        return ("fault", *fault.args)
    except GuestAccessError as error:
        assert error.gpa is not None
        return ("fault", type(error).__name__, hex(error.gpa), error.done)
    except MemslotsError as error:
        return ("refused", error.errno)
