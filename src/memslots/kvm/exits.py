# SPDX-License-Identifier: MIT
"""The reasons why KVM_RUN returned, one class for each.  `Vcpu.run()` makes them from the run page (kvm_run).

An exit is a value: it copies all it needs.  Only `reply()` writes to the run page, and only before the next `run()`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, SupportsIndex

if TYPE_CHECKING:
    from typing_extensions import Buffer

# The offsets in kvm_run of <linux/kvm.h>.
IMMEDIATE_EXIT = 1
REASON = 8
PAYLOAD = 32  # a union with one member for each reason
PAYLOAD_SIZE = 256

_IO = struct.Struct("<BBHIQ")
_MMIO = struct.Struct("<Q8sIB")
_MMIO_DATA = PAYLOAD + 8

Answer = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Exit:
    """The base of all exits."""


@dataclass(frozen=True, slots=True)
class _Access(Exit):
    is_write: bool
    data: bytes  # of a write; b"" of a read
    _length: int = field(repr=False, compare=False)
    _answer: Answer = field(repr=False, compare=False)

    def reply(self, data: SupportsIndex | Buffer) -> None:
        """Gives the guest the data of its read: bytes, or an int (little-endian).  Call it before the next `run()`.

        Without a reply the guest reads zeros.  ValueError: the guest wrote, the data has another size, or the vCPU has
        run on."""
        if self.is_write:
            raise ValueError(f"{self!r} is a write: the guest expects no data")
        raw = self._bytes(data)
        if len(raw) != self._length:
            raise ValueError(f"{self!r} reads {self._length} bytes, but data has {len(raw)}")
        self._answer(raw)

    def _bytes(self, data: SupportsIndex | Buffer) -> bytes:
        if hasattr(data, "__index__"):
            return data.__index__().to_bytes(self._length, "little")
        return bytes(data)


@dataclass(frozen=True, slots=True)
class Io(_Access):
    """KVM_EXIT_IO: the guest accessed an I/O port.  ``data`` has count values of size bytes."""

    port: int
    size: int
    count: int


@dataclass(frozen=True, slots=True)
class Mmio(_Access):
    """KVM_EXIT_MMIO: the guest accessed a guest address in no slot, or wrote to a READONLY slot."""

    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class Hlt(Exit):
    """KVM_EXIT_HLT: the guest executed HLT.  (With an irqchip the kernel waits instead.)"""


@dataclass(frozen=True, slots=True)
class Shutdown(Exit):
    """KVM_EXIT_SHUTDOWN: a triple fault, for example because the guest ran into memory without code."""


@dataclass(frozen=True, slots=True)
class Intr(Exit):
    """KVM_EXIT_INTR: `kick()` or a signal ended the run.

    ``kicked`` is False for another signal than that of a kick.  Its Python handler has run or runs next."""

    kicked: bool


@dataclass(frozen=True, slots=True)
class FailEntry(Exit):
    """KVM_EXIT_FAIL_ENTRY: the CPU refused the guest's state."""

    hardware_entry_failure_reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class InternalError(Exit):
    """KVM_EXIT_INTERNAL_ERROR.  Suberror 1: KVM's emulator does not know the instruction."""

    suberror: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SystemEvent(Exit):
    """KVM_EXIT_SYSTEM_EVENT: the guest asks for a shutdown (1), a reset (2) or reports a crash (3)."""

    type: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MemoryFault(Exit):
    """KVM_EXIT_MEMORY_FAULT: the kernel could not resolve an access.  Bit 3 of flags: a private access."""

    flags: int
    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class DirtyRingFull(Exit):
    """KVM_EXIT_DIRTY_RING_FULL: collect and reset the dirty ring."""


@dataclass(frozen=True, slots=True)
class Unknown(Exit):
    """An exit without a class of its own.  ``reason`` is KVM_EXIT_..., ``payload`` the union of kvm_run."""

    reason: int
    payload: bytes = field(repr=False)


_Page = memoryview
_Write = Callable[[int, bytes], None]


def read_exit(page: _Page, write: _Write) -> Exit:
    """The exit that the run page describes.  `write` stores a reply at an offset of the page."""
    (reason,) = struct.unpack_from("<I", page, REASON)
    make = _MAKERS.get(reason)
    if make is None:
        return Unknown(reason, bytes(page[PAYLOAD : PAYLOAD + PAYLOAD_SIZE]))
    return make(page, write)


def _io(page: _Page, write: _Write) -> Exit:
    direction, size, port, count, offset = _IO.unpack_from(page, PAYLOAD)
    return Io(*_accessed(page, write, bool(direction), offset, size * count), port, size, count)


def _mmio(page: _Page, write: _Write) -> Exit:
    gpa, _, size, is_write = _MMIO.unpack_from(page, PAYLOAD)
    return Mmio(*_accessed(page, write, bool(is_write), _MMIO_DATA, size), gpa, size)


def _accessed(
    page: _Page, write: _Write, is_write: bool, offset: int, length: int
) -> tuple[bool, bytes, int, Answer]:
    if is_write:
        data = bytes(page[offset : offset + length])
    else:
        data = b""
        page[offset : offset + length] = bytes(length)  # the answer if nobody replies
    return is_write, data, length, lambda raw: write(offset, raw)


def _counted(page: _Page) -> tuple[int, tuple[int, ...]]:
    """The first word, and the words whose number is the second one."""
    first, count = struct.unpack_from("<II", page, PAYLOAD)
    return first, struct.unpack_from(f"<{min(count, 16)}Q", page, PAYLOAD + 8)


_MAKERS: dict[int, Callable[[_Page, _Write], Exit]] = {
    2: _io,
    5: lambda page, write: Hlt(),
    6: _mmio,
    8: lambda page, write: Shutdown(),
    9: lambda page, write: FailEntry(*struct.unpack_from("<QI", page, PAYLOAD)),
    17: lambda page, write: InternalError(*_counted(page)),
    24: lambda page, write: SystemEvent(*_counted(page)),
    31: lambda page, write: DirtyRingFull(),
    39: lambda page, write: MemoryFault(*struct.unpack_from("<QQQ", page, PAYLOAD)),
}
