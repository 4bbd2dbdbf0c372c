# SPDX-License-Identifier: MIT
"""The registers of an x86-64 vCPU: kvm_regs and kvm_sregs of <asm/kvm.h> as immutable values.

`dataclasses.replace(vcpu.regs, rip=0x1000)` makes a changed copy to assign.
"""

import struct
from dataclasses import astuple, dataclass
from typing import Any, Self

from .refusals import misfit

_REGS = struct.Struct("<18Q")
_SEGMENT = struct.Struct("<QIHBBBBBBBBBx")
_TABLE = struct.Struct("<QH6x")
_CONTROL = struct.Struct("<11Q")
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
TABLES = ("gdt", "idt")
REGS_SIZE = _REGS.size
SREGS_SIZE = len(SEGMENTS) * _SEGMENT.size + len(TABLES) * _TABLE.size + _CONTROL.size


@dataclass(frozen=True, slots=True)
class Regs:
    """The general registers (kvm_regs)."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2  # bit 1 is always set

    @classmethod
    def unpack(cls, raw: bytes | bytearray) -> Self:
        return cls(*_REGS.unpack_from(raw))

    def pack(self) -> bytes:
        return _pack(_REGS, *astuple(self))


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part (kvm_segment)."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 - the kernel's name
    g: int = 0
    avl: int = 0
    unusable: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """The register of a descriptor table (kvm_dtable)."""

    base: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Sregs:
    """The segment, table and control registers (kvm_sregs)."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Table
    idt: Table
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0
    interrupt_bitmap: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def unpack(cls, raw: bytes | bytearray) -> Self:
        at = 0
        parts: list[Any] = []
        for kind, layout, names in ((Segment, _SEGMENT, SEGMENTS), (Table, _TABLE, TABLES)):
            for _ in names:
                parts.append(kind(*layout.unpack_from(raw, at)))
                at += layout.size
        control = _CONTROL.unpack_from(raw, at)
        fields = (*parts, *control[:7], control[7:])
        return cls(*fields)

    def pack(self) -> bytes:
        segments = b"".join(_pack(_SEGMENT, *astuple(getattr(self, name))) for name in SEGMENTS)
        tables = b"".join(_pack(_TABLE, *astuple(getattr(self, name))) for name in TABLES)
        control = (self.cr0, self.cr2, self.cr3, self.cr4, self.cr8, self.efer, self.apic_base)
        return segments + tables + _pack(_CONTROL, *control, *self.interrupt_bitmap)


def _pack(layout: struct.Struct, *values: int) -> bytes:
    try:
        return layout.pack(*values)
    except struct.error as e:
        raise misfit(e) from None
