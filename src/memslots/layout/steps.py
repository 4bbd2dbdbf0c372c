# SPDX-License-Identifier: MIT
"""The steps of one transaction that make a difference.

A page that both layouts have at the same guest frame and host address keeps its dirty bit and its buffer.  So a run that
is joined of several slots is a MERGE, and a new run inside of an old slot is a SPLIT, or a PUNCH if it keeps the id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..constants import PAGE_SHIFT
from .differences import FIXED, Difference, Places, without
from .tables import Rows

#: One step for ms_change_memslots(): the fields of ``struct ms_step`` without its backing.
STEP_DTYPE = np.dtype(
    [
        ("kind", "u4"),
        ("slot", "u4"),
        ("other", "u4"),
        ("flags", "u4"),
        ("guest_phys_addr", "u8"),
        ("memory_size", "u8"),
        ("userspace_addr", "u8"),
    ]
)
CREATE, DELETE, MOVE, SET_FLAGS, RESIZE, SPLIT, MERGE, PUNCH = range(8)  # enum ms_step_kind

Row = tuple[int, ...]


class Memory(NamedTuple):
    """A number for each row of a Difference, equal for equal buffers; 0: no buffer."""

    gone: npt.NDArray[np.uint64]
    new: npt.NDArray[np.uint64] | None  # None: the new rows say nothing about buffers


def changes(difference: Difference, memory: Memory | None = None) -> Rows:
    """Return the fewest steps of STEP_DTYPE that make the difference in one transaction.

    A transaction checks its final state only, so the order of the slots does not matter and cycles need no delete.
    A slot stays the same slot if only its place, its logging, or its size at the same place differs."""
    gone, new = difference.gone, difference.new
    a, b = difference.pairs()
    old, now = gone[a], new[b]
    moves, resizes = _differ(old, now, "base_gfn"), _differ(old, now, "npages")
    stays = ~_differ(old, now, "userspace_addr") & (old["flags"] & FIXED == now["flags"] & FIXED)
    stays &= ~(moves & resizes)
    if memory and memory.new is not None:
        stays &= memory.gone[a] == memory.new[b]
    flags = _differ(old, now, "flags")
    ends, begins = _others(len(gone), a[stays]), _others(len(new), b[stays])
    shrunk = stays & resizes
    grown = shrunk & (now["npages"] > old["npages"])
    shrunk &= ~grown
    merges = _merges(gone, ends, a[grown], now[grown], memory)
    ends = ends[~np.isin(ends, [other for merge in merges for other in merge.others])]
    parts = _parts(difference, ends, begins, a[shrunk], memory)
    resizes &= ~np.isin(old["id"], [merge.slot for merge in merges if merge.is_whole])
    renewed = [p.source for p in parts if new["id"][p.place] == gone["id"][p.source]]
    ends = ends[~np.isin(ends, renewed)]
    is_cut = np.isin(ends, [part.source for part in parts])
    return np.concatenate(
        (
            _steps(DELETE, gone[ends[~is_cut]]),
            _rows_of(
                _row(MERGE, merge.slot, other=gone["id"][other])
                for merge in merges
                for other in merge.others
            ),
            _rows_of(_splits(difference, parts)),
            _steps(DELETE, gone[ends[is_cut]]),
            _steps(MOVE, now[stays & moves]),
            _steps(RESIZE, now[stays & resizes]),
            _steps(SET_FLAGS, now[stays & flags]),
            _steps(CREATE, new[begins[~np.isin(begins, [part.place for part in parts])]]),
        )
    )


def _differ(a: Rows, b: Rows, name: str) -> npt.NDArray[np.bool_]:
    result: npt.NDArray[np.bool_] = a[name] != b[name]
    return result


def _others(n: int, places: Places) -> Places:
    rest = np.ones(n, bool)
    rest[places] = False
    return np.flatnonzero(rest)


# ---- joined and cut slots --------------------------------------------------------------------------------------------


class _Merge(NamedTuple):
    slot: int
    others: list[int]  # the places in `gone` of the slots that it gets, from the lowest gfn up
    is_whole: bool  # it has its final size then


def _merges(gone: Rows, ends: Places, growing: Places, now: Rows, memory: Memory | None) -> list[_Merge]:
    """The slots of `gone` that grow, to the size in `now`, over neighbours of the same memory that end."""
    at = dict(zip(gone["base_gfn"][ends].tolist(), ends.tolist(), strict=True)) if len(growing) else {}
    found = []
    for place, npages in zip(growing.tolist(), now["npages"].tolist(), strict=True):
        others, last, end = [], place, int(gone["base_gfn"][place]) + npages
        while (other := at.get(_end(gone[last]))) is not None:
            if _end(gone[other]) > end or not _continues(gone, last, other, memory):
                break
            others.append(other)
            last = other
        if others:
            found.append(_Merge(int(gone["id"][place]), others, _end(gone[last]) == end))
    return found


def _end(row: np.void) -> int:
    return int(row["base_gfn"]) + int(row["npages"])


def _continues(gone: Rows, lower: int, upper: int, memory: Memory | None) -> bool:
    """Whether two neighbours in guest memory can be one slot."""
    a, b = gone[lower], gone[upper]
    hva = int(a["userspace_addr"]) + (int(a["npages"]) << PAGE_SHIFT)
    same = memory is None or memory.gone[lower] == memory.gone[upper]
    return bool(hva == b["userspace_addr"] and a["flags"] == b["flags"] and same)


class _Part(NamedTuple):
    place: int  # in `new`
    source: int  # the place in `gone` of the slot that has its pages


def _parts(
    difference: Difference,
    ends: Places,
    begins: Places,
    shrunk: Places,
    memory: Memory | None,
) -> list[_Part]:
    """The rows of `new` at `begins` that are inside of a slot of `gone`, with the same memory, and not its first pages.

    The slot ends, or it shrinks.  The lowest part of a slot that ends can have its id.  Other rows have an id that is free
    at the SPLIT: not that of a slot that is cut, because only the others that end are deleted before."""
    gone, new = difference.gone, difference.new
    if not len(gone) or not len(begins):
        return []
    rows = new[begins]
    source = np.searchsorted(gone["base_gfn"], rows["base_gfn"], side="right") - 1
    a = gone[np.maximum(source, 0)]
    offset = (rows["base_gfn"] - a["base_gfn"]) << np.uint64(PAGE_SHIFT)
    inside = (source >= 0) & (a["base_gfn"] < rows["base_gfn"])
    inside &= rows["base_gfn"] + rows["npages"] <= a["base_gfn"] + a["npages"]
    inside &= (rows["userspace_addr"] == a["userspace_addr"] + offset) & (rows["flags"] & FIXED == a["flags"] & FIXED)
    inside &= np.isin(source, ends) | np.isin(source, shrunk)
    if memory and memory.new is not None:
        inside &= memory.gone[np.maximum(source, 0)] == memory.new[begins]
    first = np.zeros(len(rows), bool)
    first[np.flatnonzero(inside)[np.unique(source[inside], return_index=True)[1]]] = True
    inside &= ~np.isin(rows["id"], gone["id"][source[inside]]) | first & (rows["id"] == a["id"])
    return [
        _Part(place, of)
        for place, of in zip(begins[inside].tolist(), source[inside].tolist(), strict=True)
    ]


def _splits(difference: Difference, parts: list[_Part]) -> Iterator[Row]:
    """The steps of the parts.  The highest part of a slot is split off first."""
    gone, new = difference.gone, difference.new
    above: dict[int, int] = {}  # the end of the pages that a source still has
    for part in reversed(parts):
        row, source = new[part.place], gone[part.source]
        end = above.get(part.source, _end(source))
        if row["id"] == source["id"]:
            below = row["base_gfn"] - source["base_gfn"]
            yield _row(PUNCH, 0, gfn=source["base_gfn"], npages=below)
        else:
            yield _row(SPLIT, source["id"], other=row["id"], gfn=row["base_gfn"])
        if _end(row) < end:
            yield _row(RESIZE, row["id"], npages=row["npages"])
        if row["flags"] != source["flags"]:
            yield _row(SET_FLAGS, row["id"], flags=row["flags"])
        above[part.source] = int(row["base_gfn"])


# ---- rows ------------------------------------------------------------------------------------------------------------

_FIELDS = {  # the fields of a step that each kind uses; the others are 0
    CREATE: ("flags", "guest_phys_addr", "memory_size", "userspace_addr"),
    DELETE: (),
    MOVE: ("guest_phys_addr",),
    SET_FLAGS: ("flags",),
    RESIZE: ("memory_size",),
}


def _steps(kind: int, rows: Rows) -> Rows:
    steps = np.zeros(len(rows), STEP_DTYPE)
    steps["kind"], steps["slot"] = kind, rows["id"]
    values = {
        "flags": rows["flags"],
        "guest_phys_addr": rows["base_gfn"] << np.uint64(PAGE_SHIFT),
        "memory_size": rows["npages"] << np.uint64(PAGE_SHIFT),
        "userspace_addr": rows["userspace_addr"],
    }
    for name in _FIELDS[kind]:
        steps[name] = values[name]
    return steps


def _row(kind: int, slot: int, other: int = 0, flags: int = 0, gfn: int = 0, npages: int = 0) -> Row:
    return kind, int(slot), int(other), int(flags), int(gfn) << PAGE_SHIFT, int(npages) << PAGE_SHIFT, 0


def _rows_of(rows: Iterable[Row]) -> Rows:
    return np.array(list(rows), STEP_DTYPE)
