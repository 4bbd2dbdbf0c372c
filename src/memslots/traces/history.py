# SPDX-License-Identifier: MIT
"""The slots that a vector file describes, over all its operations.

No VM is involved: the slots follow from the changes that the recording kernel accepted.  A life is a slot without
changes, from one operation to another.  A change of a slot ends one life and begins the next one.  The history of a
file is a list of lives; each is a rectangle of guest addresses and operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..constants import MemFlag
from . import vectors
from .schema import CHANGES, parse_number, unpack_slot

KINDS = ("RAM", "RAM, logged", "READONLY", "READONLY, logged")


class Life(NamedTuple):
    """One slot without changes.  It exists after `begin` to `end` - 1 operations, and has the bytes [gpa, end_gpa)."""

    id: int
    as_id: int
    gpa: int
    size: int
    hva: str  # as it stands in the file
    flags: int
    begin: int
    end: int

    @property
    def end_gpa(self) -> int:
        return self.gpa + self.size

    @property
    def kind(self) -> str:
        logged = bool(self.flags & MemFlag.LOG_DIRTY_PAGES)
        return KINDS[2 * bool(self.flags & MemFlag.READONLY) + logged]


def name_of(file: vectors.VectorFile) -> str:
    """Return the name of the file for a title."""
    return str(file.header.get("name") or vectors.stem(file.path))


def lives(file: vectors.VectorFile) -> list[Life]:
    """Return all lives of all slots of the file, in the order of their beginnings."""
    found: list[Life] = []
    alive: dict[int, Life] = {}  # by the ioctl's slot, which includes the address space
    for n, op in changes(file):
        slot, new = op.fields["slot"], _born(op, n, len(file.ops) + 1)
        old = alive.get(slot)
        if old and new._replace(begin=old.begin) == old:
            continue  # the change had no effect
        if old:
            found.append(alive.pop(slot)._replace(end=n))
        if new.size:
            alive[slot] = new
    return sorted(found + list(alive.values()), key=lambda life: (life.begin, life.gpa))


def changes(file: vectors.VectorFile) -> Iterator[tuple[int, vectors.Op]]:
    """Yield each accepted change with its number among all operations.  The first operation has number 1."""
    for n, op in enumerate(file.ops, 1):
        if op.kind in CHANGES and op.fields["ret"] == 0:
            yield n, op


def _born(op: vectors.Op, begin: int, end: int) -> Life:
    f = op.fields
    slot, as_id = unpack_slot(f["slot"])
    gpa, size = parse_number(f["gpa"]), parse_number(f["size"])
    return Life(slot, as_id, gpa, size, f["hva"], f["flags"], begin, end)


def slots_at(all_lives: Iterable[Life], n: int) -> list[Life]:
    """Return the slots after n operations, by address space and gpa."""
    now = [life for life in all_lives if life.begin <= n < life.end]
    return sorted(now, key=lambda life: (life.as_id, life.gpa))


def most_slots(all_lives: Iterable[Life]) -> int:
    """Return the largest number of slots at one time."""
    steps = [step for life in all_lives for step in ((life.begin, 1), (life.end, -1))]
    count = most = 0
    for _, change in sorted(steps):  # at one operation the end (-1) sorts before the beginning
        count += change
        most = max(most, count)
    return most


def size_text(size: int) -> str:
    """Format a size in the largest unit that gives a value of at least 1: 640 KiB, 3.5 GiB."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >> shift:
            return f"{size / (1 << shift):.4g} {unit}"
    return f"{size} B"
