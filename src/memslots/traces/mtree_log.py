# SPDX-License-Identifier: MIT
"""Reads the answer of QEMU's monitor command `info mtree -f`: the slots at one moment.

QEMU marks the ranges that KVM's slots back with " KVM".  It merges neighbours that continue each other, so KVM may have
more slots than there are ranges.  The listing has neither slot ids nor host addresses.  The reader numbers the slots,
and gives each memory region of QEMU a range of the arena, so that aliases of one region share their host memory.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..constants import PAGE_SIZE, MemFlag
from .changes import LONGEST_CALL, Change, FieldError, Lines, Log, printable
from .schema import U64

NAME = "info mtree -f"
SIGNATURE = re.compile(r"^\s*FlatView #\d+\s*$")

_VIEW = re.compile(r"\s*FlatView #\d+\s*")
_SPACE = re.compile(r'\s*AS "(?P<name>.*)", root: .*')
_RANGE = re.compile(
    r"\s*(?P<first>[0-9a-f]{8,16})-(?P<last>[0-9a-f]{8,16}) \(prio -?\d+, (?P<type>[\w/-]+)\): (?P<name>.*)"
)
_NAME = re.compile(
    r"(?P<name>.*?)(?: @(?P<offset>[0-9a-f]{8,16}))?(?: (?:owner|parent):.*?)?(?P<kvm>(?: KVM)*)\s*"
)
_ROOT = re.compile(
    r"\s*(?:Root memory region: .*|No rendered FlatView|Dispatch|Physical sections|Nodes .*)"
)
_PROMPT = re.compile(r"\s*(?:\(qemu\).*|QEMU \d.*)")

SMRAM = re.compile(r"KVM-SMRAM|cpu-smm-\d+")
ALIGNMENT = 2 << 20  # of a memory region in the arena: that of a huge page
ARENA_SIZE = 16 << 40
NOTES = (
    "info mtree -f merges neighbours that continue each other, so KVM may have more slots than ranges",
    "info mtree -f has no slot ids: they are numbered here by guest address",
    "info mtree -f has no host addresses: each memory region got a range of the arena",
)


class _Range(NamedTuple):
    line: int
    first: int
    size: int
    readonly: bool
    name: str
    offset: int


def read(lines: Lines) -> Log:
    reader = _Reader()
    for number, text in lines:
        reader.line(number, text)
    return reader.result()


class _Reader:
    def __init__(self) -> None:
        self.log = Log(NAME)
        self.ranges: dict[int, list[_Range]] = {}  # by address space, of the last view of each
        self.as_id: int | None = None  # of this view; None where KVM has no slots for it
        self.is_new_view = False  # no range of this view was read yet

    def line(self, number: int, text: str) -> None:
        if len(text) > LONGEST_CALL:
            self.log.miss(number, f"a line of more than {LONGEST_CALL} characters", text)
        elif _VIEW.fullmatch(text):
            self.as_id, self.is_new_view = None, True
            self.log.leave_out("headings")
        elif space := _SPACE.fullmatch(text):
            self.as_id = _as_id(space["name"], self.as_id)
            self.log.leave_out("headings")
        elif found := _RANGE.fullmatch(text):
            self.range(number, found, text)
        elif _ROOT.fullmatch(text) or _PROMPT.fullmatch(text):
            self.log.leave_out("headings")
        elif text.strip():
            self.log.miss(number, "no line of info mtree -f", text)

    def range(self, number: int, found: re.Match[str], text: str) -> None:
        named = _NAME.fullmatch(found["name"])
        if named is None or self.as_id is None or not named["kvm"]:
            self.log.leave_out("ranges without a slot of KVM")
            return
        if self.is_new_view and (earlier := self.ranges.pop(self.as_id, [])):
            self.log.left_out["ranges of an earlier view of the same address space"] += len(earlier)
        self.is_new_view = False
        view = self.ranges.setdefault(self.as_id, [])
        new = _range_of(number, found, named)
        wrong = _wrong(new, view)
        if wrong:
            self.log.miss(number, wrong, text)
        else:
            view.append(new)

    def result(self) -> Log:
        bases = _places([r for view in self.ranges.values() for r in view])
        self.log.changes = [
            change
            for as_id, view in sorted(self.ranges.items())
            for change in _changes(as_id, view, bases)
        ]
        if self.log.changes:
            self.log.notes += NOTES
        return self.log


def _as_id(name: str, other: int | None) -> int | None:
    """The address space of KVM for one of QEMU, or `other`, that of the same view's other names."""
    if name == "memory":
        return 0
    return 1 if other is None and SMRAM.fullmatch(name) else other


def _range_of(number: int, found: re.Match[str], named: re.Match[str]) -> _Range:
    first, last = int(found["first"], 16), int(found["last"], 16)
    begin = -first % PAGE_SIZE  # as QEMU, which gives KVM only whole pages
    size = (last - first + 1 - begin) // PAGE_SIZE * PAGE_SIZE
    offset = int(named["offset"] or "0", 16) + begin
    readonly = found["type"].removeprefix("nv-") in ("rom", "romd")
    return _Range(number, first + begin, size, readonly, named["name"], offset)


def _wrong(new: _Range, view: list[_Range]) -> str | None:
    """The reason why the range cannot be a slot, or None.  A view lists its ranges by ascending address."""
    if new.size <= 0:
        return "a range without a whole page"
    if (
        new.first + new.size > U64 - PAGE_SIZE
        or new.offset % PAGE_SIZE
        or new.offset + new.size > ARENA_SIZE
    ):
        return "an address that no slot can have"
    if view and new.first < view[-1].first + view[-1].size:
        return f"not above the range of line {view[-1].line}"
    return None


def _changes(as_id: int, view: list[_Range], bases: dict[str, int]) -> Iterator[Change]:
    for id, r in enumerate(view):
        op: dict[str, Any] = {"op": "set", "slot": as_id << 16 | id}
        op |= {"flags": int(MemFlag.READONLY) if r.readonly else 0, "gpa": f"{r.first:#x}"}
        op |= {"size": f"{r.size:#x}", "hva": f"arena+{bases[r.name] + r.offset:#x}"}
        yield Change(r.line, None, op | {"ret": 0, "note": printable(r.name)})


def _places(ranges: list[_Range]) -> dict[str, int]:
    """An offset in the arena for each memory region, by the name."""
    ends: dict[str, int] = {}
    for r in ranges:
        ends[r.name] = max(ends.get(r.name, 0), r.offset + r.size)
    bases, base = {}, 0
    for name, end in ends.items():
        bases[name] = base
        base += -(-end // ALIGNMENT) * ALIGNMENT
    if base > ARENA_SIZE:
        raise FieldError("the memory regions do not fit into the 16 TiB of the arena")
    return bases
