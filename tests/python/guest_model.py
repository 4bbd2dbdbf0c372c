# SPDX-License-Identifier: MIT
"""A naive model of guest memory: slots over bytearrays, read and written page by page as in KVM.

`GuestPair` makes each call on a VM and on the model, and compares results, errors, bytes and dirty logs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from memslots import VM, GuestAccessError, Mapping, Memory, alloc

PAGE = 4096
U64 = 2**64
LOG, READONLY = 1, 2
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


class Fault(Exception):  # noqa: N818
    """An access that ends early: (class of the exception, gpa of the piece, bytes before it)."""


@dataclass(eq=False)
class Buffer:
    """A buffer and the bytes that it must have."""

    memory: Memory
    mirror: bytearray


@dataclass(eq=False)
class Slot:
    base: int  # gfn
    npages: int
    buffer: Buffer
    offset: int  # of the first page in the buffer, in bytes
    raw: bool
    flags: int
    mapping: Mapping | None
    dirty: set[int] = field(default_factory=set)


class GuestModel:
    """The slots of one address space."""

    def __init__(self, dereference_raw: bool) -> None:
        self.slots: dict[int, Slot] = {}
        self.dereference_raw = dereference_raw

    def slot_at(self, gpa: int) -> Slot | None:
        gfn = gpa // PAGE
        return next((s for s in self.slots.values() if s.base <= gfn < s.base + s.npages), None)

    def find(self, gpa: int, write: bool, done: int, first: int) -> tuple[Slot, int]:
        """The slot and the offset in its buffer.  `first`: the begin of the failed piece in a Fault."""
        slot = self.slot_at(gpa)
        if slot is None:
            raise Fault("GfnNotMappedError", first, done)
        if write and slot.flags & READONLY:
            raise Fault("ReadOnlySlotError", first, done)
        if slot.raw and not self.dereference_raw:
            raise Fault("GuestAccessError", first, done)
        return slot, slot.offset + gpa - slot.base * PAGE

    @staticmethod
    def pieces(gpa: int, n: int) -> Iterator[tuple[int, int, int]]:
        """(gpa, offset in the access, bytes) of each page."""
        done = 0
        while done < n:
            part = min(n - done, PAGE - (gpa + done) % PAGE)
            yield (gpa + done) % U64, done, part
            done += part

    def read(self, gpa: int, n: int, into: bytearray | None = None) -> bytes:
        data = bytearray() if into is None else into
        for start, done, part in self.pieces(gpa, n):
            if start < gpa:
                raise Fault("GfnNotMappedError", start, done)
            slot, at = self.find(start, False, done, start)
            data[done : done + part] = slot.buffer.mirror[at : at + part]
        return bytes(data)

    def write(self, gpa: int, data: bytes) -> None:
        for start, done, part in self.pieces(gpa, len(data)):
            if start < gpa:
                raise Fault("GfnNotMappedError", start, done)
            slot, at = self.find(start, True, done, start)
            slot.buffer.mirror[at : at + part] = data[done : done + part]
            self.mark(slot, start)

    @staticmethod
    def mark(slot: Slot, gpa: int) -> None:
        if slot.flags & LOG:
            slot.dirty.add(gpa // PAGE - slot.base)

    def reach(self, gpa: int, n: int, write: bool) -> tuple[int, Fault | None]:
        """The bytes before the first one that cannot be accessed, and the reason."""
        try:
            for start, done, _ in self.pieces(gpa, n):
                if start < gpa:
                    raise Fault("GfnNotMappedError", start, done)
                self.find(start, write, done, start)
        except Fault as fault:
            return fault.args[2], fault
        return n, None

    def copy(self, to: int, source: int, n: int) -> None:
        (readable, no_read), (writable, no_write) = (
            self.reach(source, n, False),
            self.reach(to, n, True),
        )
        fault = no_read if readable <= writable else no_write
        self.write(to, self.read(source, min(readable, writable)))
        if fault is not None:
            raise fault

    def has_aliases(self, *ranges: tuple[int, int]) -> bool:
        """Whether two frames of the ranges are the same host page."""
        gfns = {gfn for gpa, n in ranges for gfn in range(gpa // PAGE, (gpa + n) // PAGE + 1)}
        found = [(s, gfn) for gfn in gfns if (s := self.slot_at(gfn * PAGE))]
        pages = {(id(s.buffer), s.offset // PAGE + gfn - s.base) for s, gfn in found}
        return len(pages) < len(found)

    def read_many(self, gpas: list[int]) -> list[int]:
        return [
            int.from_bytes(self.of_element(n, self.read, gpa, 8), "little")
            for n, gpa in enumerate(gpas)
        ]

    def write_many(self, gpas: list[int], values: list[int]) -> None:
        for n, (gpa, value) in enumerate(zip(gpas, values, strict=True)):
            self.of_element(n, self.write, gpa, value.to_bytes(8, "little"))

    @staticmethod
    def of_element(n: int, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except Fault as fault:
            kind, gpa, done = fault.args
            raise Fault(kind, gpa, 8 * n + done) from None


def answer_of(call: Callable[[], Any]) -> Any:
    """The result of a call, or the description of its error."""
    try:
        return call()
    except Fault as fault:
        return fault.args
    except GuestAccessError as error:
        return type(error).__name__, error.gpa, error.done


class GuestPair:
    """A VM with some buffers, and its model.  Several slots may map the same pages."""

    SPAN = 40  # gfns that are in use
    PAGES = 6  # of a buffer

    def __init__(self, backend: str, rng: Random, dereference_raw: bool = False) -> None:
        self.vm = VM(backend=backend, dereference_raw_addresses=dereference_raw, user_mem_slots=9)
        self.model = GuestModel(dereference_raw)
        self.rng = rng
        self.buffers: list[Buffer] = []
        self.tally: Counter[str] = Counter()

    # ---- changes ----

    def make_buffer(self) -> Buffer:
        """A new buffer, or one that other slots map too."""
        if self.buffers and self.rng.random() < 0.3:
            return self.rng.choice(self.buffers)
        memory = alloc(self.PAGES * PAGE, shared=self.rng.random() < 0.3)
        memory[:] = self.rng.randbytes(len(memory))
        self.buffers.append(Buffer(memory, bytearray(memory)))
        del self.buffers[:-5]  # slots keep the others alive
        return self.buffers[-1]

    def make_slot(self) -> None:
        rng, buffer = self.rng, self.make_buffer()
        npages = rng.randint(1, self.PAGES)
        offset = rng.randint(0, self.PAGES - npages) * PAGE
        slot = Slot(
            rng.randrange(self.SPAN),
            npages,
            buffer,
            offset,
            rng.random() < 0.15,
            rng.choice((0, 0, LOG, LOG, READONLY, LOG | READONLY)),
            None,
        )
        if any(
            s.base < slot.base + npages and slot.base < s.base + s.npages
            for s in self.model.slots.values()
        ):
            return self.remove_slot()
        self.put(slot)

    def put(self, slot: Slot) -> None:
        free = next((n for n in range(9) if n not in self.model.slots), None)
        if free is None:
            return
        if slot.raw:
            self.vm.set_user_memory_region(
                free,
                guest_phys_addr=slot.base * PAGE,
                memory_size=slot.npages * PAGE,
                userspace_addr=slot.buffer.memory.address + slot.offset,
                flags=slot.flags,
            )
        else:
            part = memoryview(slot.buffer.memory)[slot.offset : slot.offset + slot.npages * PAGE]
            slot.mapping = self.vm.map_buffer(
                slot.base * PAGE,
                part,
                readonly=bool(slot.flags & READONLY),
                log_dirty=bool(slot.flags & LOG),
            )
            assert slot.mapping.slot == free
        self.model.slots[free] = slot
        self.tally["make_slot"] += 1

    def fill_span(self) -> None:
        """Slots without holes, so that long accesses succeed."""
        base = 0
        while base < self.SPAN:
            npages = min(self.PAGES, self.SPAN - base)
            memory = alloc(self.PAGES * PAGE)
            self.buffers.append(Buffer(memory, bytearray(memory)))
            flags = self.rng.choice((0, LOG))
            self.put(Slot(base, npages, self.buffers[-1], 0, False, flags, None))
            base += npages

    def any_id(self) -> int | None:
        return self.rng.choice(list(self.model.slots)) if self.model.slots else None

    def remove_slot(self) -> None:
        if (id := self.any_id()) is None:
            return
        slot = self.model.slots.pop(id)
        if slot.mapping is not None and self.rng.random() < 0.5:
            slot.mapping.unmap()
        else:
            self.vm.delete(id)
        self.tally["remove_slot"] += 1

    def move_slot(self) -> None:
        if (id := self.any_id()) is None:
            return
        slot, base = self.model.slots[id], self.rng.randrange(self.SPAN)
        others = [s for s in self.model.slots.values() if s is not slot]
        if any(s.base < base + slot.npages and base < s.base + s.npages for s in others):
            return
        slot.base = base
        if slot.mapping is not None and self.rng.random() < 0.5:
            slot.mapping.move(base * PAGE)
        else:
            self.vm.move(id, base * PAGE)
        self.tally["move_slot"] += 1

    def toggle_log(self) -> None:
        if (id := self.any_id()) is None:
            return
        slot = self.model.slots[id]
        slot.flags ^= LOG
        slot.dirty.clear()
        self.vm.set_flags(id, set=slot.flags & LOG, clear=LOG & ~slot.flags)
        self.tally["toggle_log"] += 1

    # ---- accesses ----

    def gpa(self, n: int) -> int:
        """Mostly near the begin or the end of a page, so that accesses cross pages."""
        near = self.rng.choice((0, 0, -1, -n, -n + 1, -n // 2, 1, self.rng.randrange(PAGE)))
        gpa = self.rng.randrange(self.SPAN + 2) * PAGE + near
        return (
            gpa % U64
            if self.rng.random() < 0.98
            else self.rng.choice((U64 - n, U64 - 1, U64 - PAGE)) % U64
        )

    def length(self) -> int:
        return self.rng.choice(
            (0, 1, 2, 8, 100, PAGE, PAGE + 1, self.rng.randrange(5 * PAGE), 70_000, 140_000)
        )

    def compare(self, name: str, got: Callable[[], Any], want: Callable[[], Any]) -> None:
        self.tally[name] += 1
        a, b = answer_of(got), answer_of(want)
        assert a == b, f"{name}: the VM says {a!r:.200}, the model {b!r:.200}"
        self.tally["faults"] += isinstance(b, tuple)

    def read(self) -> None:
        n = self.length()
        gpa = self.gpa(n)
        self.compare(
            f"read_guest({gpa:#x}, {n})",
            lambda: self.vm.read_guest(gpa, n),
            lambda: self.model.read(gpa, n),
        )

    def readinto(self) -> None:
        """After a Fault the bytes before it are compared."""
        n = self.length()
        gpa, out, mirror = self.gpa(n), bytearray(b"\xaa" * n), bytearray(b"\xaa" * n)
        fault = answer_of(lambda: self.model.read(gpa, n, mirror))
        done = fault[2] if isinstance(fault, tuple) else n
        self.compare(
            "readinto_guest",
            lambda: self.vm.readinto_guest(gpa, out),
            lambda: fault if done < n else None,
        )
        assert out[:done] == mirror[:done]

    def write(self) -> None:
        data = self.rng.randbytes(self.length())
        gpa = self.gpa(len(data))
        self.compare(
            "write_guest",
            lambda: self.vm.write_guest(gpa, data),
            lambda: self.model.write(gpa, data),
        )

    def fill(self) -> None:
        n, byte = self.length(), self.rng.randrange(256)
        gpa = self.gpa(n)
        self.compare(
            "fill_guest",
            lambda: self.vm.fill_guest(gpa, n, byte),
            lambda: self.model.write(gpa, bytes([byte]) * n),
        )

    def copy(self) -> None:
        """Often of ranges that overlap.  If the two have the same host pages, the result is unspecified."""
        n = self.length()
        source = self.gpa(n)
        to = self.rng.choice((self.gpa(n), (source + self.rng.randint(-2 * PAGE, 2 * PAGE)) % U64))
        if not self.model.has_aliases((source, n), (to, n)):
            self.compare(
                f"copy_guest({to:#x}, {source:#x}, {n})",
                lambda: self.vm.copy_guest(to, source, n),
                lambda: self.model.copy(to, source, n),
            )

    def value(self) -> None:
        kind = self.rng.choice(list(SIZES))
        size = SIZES[kind]
        gpa = self.gpa(size)
        if self.rng.random() < 0.5:
            self.compare(
                f"read_{kind}",
                lambda: getattr(self.vm, f"read_{kind}")(gpa),
                lambda: int.from_bytes(self.model.read(gpa, size), "little"),
            )
        else:
            value = self.rng.getrandbits(8 * size)
            self.compare(
                f"write_{kind}",
                lambda: getattr(self.vm, f"write_{kind}")(gpa, value),
                lambda: self.model.write(gpa, value.to_bytes(size, "little")),
            )

    def some_gpas(self) -> list[int]:
        """Either all inside slots that can be written, or anywhere."""
        n = self.rng.choice((0, 1, 5, 64, 65, 300))
        good = [
            s
            for s in self.model.slots.values()
            if not s.flags & READONLY and (not s.raw or self.model.dereference_raw)
        ]
        if not good or self.rng.random() < 0.3:
            return [self.gpa(8) for _ in range(n)]
        chosen = [self.rng.choice(good) for _ in range(n)]
        return [s.base * PAGE + self.rng.randrange(s.npages * PAGE - 7) for s in chosen]

    def many(self) -> None:
        gpas = self.some_gpas()
        array = np.array(gpas, np.uint64)
        if self.rng.random() < 0.5:
            out = np.empty_like(array) if self.rng.random() < 0.5 else None
            self.compare(
                "read_u64_many",
                lambda: self.vm.read_u64_many(array, out).tolist(),
                lambda: self.model.read_many(gpas),
            )
        else:
            values = [self.rng.getrandbits(64) for _ in gpas]
            self.compare(
                "write_u64_many",
                lambda: self.vm.write_u64_many(array, np.array(values, np.uint64)),
                lambda: self.model.write_many(gpas, values),
            )

    def log(self) -> None:
        if (id := self.any_id()) is None:
            return
        slot = self.model.slots[id]
        if slot.flags & LOG:
            self.tally["get_dirty_log"] += 1
            words = self.vm.get_dirty_log(id)
            assert sum(1 << page for page in slot.dirty) == int.from_bytes(
                words.tobytes(), "little"
            )
            slot.dirty.clear()

    # ---- a run ----

    OPERATIONS = (
        (make_slot, 6),
        (remove_slot, 2),
        (move_slot, 2),
        (toggle_log, 1),
        (read, 8),
        (readinto, 4),
        (write, 8),
        (fill, 3),
        (copy, 5),
        (value, 8),
        (many, 5),
        (log, 3),
    )

    def play(self, count: int, changes: bool = True) -> None:
        operations = self.OPERATIONS if changes else self.OPERATIONS[4:]
        calls, weights = zip(*operations, strict=True)
        for call in self.rng.choices(calls, weights, k=count):
            call(self)
        self.agree()

    def agree(self) -> None:
        """All bytes of all buffers."""
        for buffer in {id(s.buffer): s.buffer for s in self.model.slots.values()}.values():
            assert buffer.memory[:] == buffer.mirror
        for buffer in self.buffers:
            assert buffer.memory[:] == buffer.mirror
        self.vm.check()
