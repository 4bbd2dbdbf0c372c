# SPDX-License-Identifier: MIT
"""flatten(): overlapping regions with priorities become a layout, as in the flat view of an emulator."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..constants import (
    HVA_ERR_BAD,
    HVA_ERR_MIN,
    MEM_MAX_NR_PAGES,
    MEMSLOT_DTYPE,
    PAGE_SHIFT,
    PAGE_SIZE,
)
from .tables import GFN_END, RUN_COLUMNS, RUN_DTYPE, Rows, joined


class Region(NamedTuple):
    """A region for flatten().  hva None is a hole: it hides the memory of regions below it, as MMIO does."""

    gfn: int
    npages: int
    hva: int | None = None
    flags: int = 0
    priority: int = 0


REGION_DTYPE = np.dtype(
    [("gfn", "u8"), ("npages", "u8"), ("hva", "u8"), ("flags", "u4"), ("priority", "i8")],
    align=True,
)


def flatten(regions: Iterable[Any] | npt.NDArray[Any]) -> Rows:
    """Return the layout that overlapping regions show: runs (gfn, npages, hva, flags), by ascending gfn.

    The region with the highest priority wins.  Among equal priorities the last one wins.  A region is a tuple (gfn,
    npages, hva, flags, priority), of which flags and priority may be missing; or an object with these attributes; or a
    row of a structured array with these fields.  An hva of None (in an array: of HVA_ERR_MIN or more) makes a hole.
    Runs are joined where gfn and hva are contiguous and the flags are equal.

    The result is an array of RUN_DTYPE.  `plan`, `VM.apply` and `numpy` read it.  Cost: O(n log n)."""
    table = _table(regions)
    _check(table)
    edges = np.unique(np.concatenate((table["gfn"], table["gfn"] + table["npages"])))
    winner = _winners(table, edges)
    return _runs(table, edges[:-1], np.diff(edges), winner)


# ---- read ------------------------------------------------------------------------------------------------------------


def _table(regions: Any) -> Rows:
    if isinstance(regions, np.ndarray) and regions.dtype.names is not None:
        table = np.zeros(regions.shape, REGION_DTYPE)
        for name in REGION_DTYPE.names or ():
            if name in regions.dtype.names:
                _refuse_misfit(name, regions[name])
                table[name] = regions[name]
            elif name in ("gfn", "npages", "hva"):
                raise ValueError(
                    f"the regions have no field {name}, only {', '.join(regions.dtype.names)}"
                )
        return table.reshape(-1)
    rows = [_row(at, region) for at, region in enumerate(regions)]
    return np.array(rows, REGION_DTYPE)


def _refuse_misfit(name: str, column: Rows) -> None:
    if column.dtype.kind not in "ui":
        raise TypeError(f"{name} of regions must be integers, not {column.dtype}")
    limits = np.iinfo(REGION_DTYPE[name])
    if column.size and (int(column.min()) < limits.min or int(column.max()) > limits.max):
        raise OverflowError(f"{name} of a region must be {limits.min:#x} to {limits.max:#x}")


def _row(at: int, region: Any) -> tuple[int, ...]:
    """Return a region as a tuple of REGION_DTYPE."""
    try:
        r = Region(*region) if isinstance(region, tuple) else _from_attributes(region)
        hva = HVA_ERR_BAD if r.hva is None else r.hva
        row = tuple(map(index, (r.gfn, r.npages, hva, r.flags, r.priority)))
    except (TypeError, AttributeError):
        raise TypeError(
            f"region {at} must be (gfn, npages, hva, flags, priority) or have these attributes, not {region!r}"
        ) from None
    for name, value in zip(REGION_DTYPE.names or (), row, strict=True):
        limits = np.iinfo(REGION_DTYPE[name])
        if not limits.min <= value <= limits.max:
            raise OverflowError(
                f"region {at}: {name} must be {limits.min:#x} to {limits.max:#x}, not {value}"
            )
    return row


def _from_attributes(region: Any) -> Region:
    optional = (getattr(region, "flags", 0), getattr(region, "priority", 0))
    return Region(region.gfn, region.npages, region.hva, *optional)


def _check(table: Rows) -> None:
    """Raise ValueError for the first region that is empty, too long or not aligned."""
    gfn, npages, hva = table["gfn"], table["npages"], table["hva"]
    hole = hva >= np.uint64(HVA_ERR_MIN)
    room = np.uint64(HVA_ERR_MIN) - np.where(hole, np.uint64(0), hva)
    wrong = (
        (npages == 0, "has no pages"),
        (
            (npages > GFN_END) | (gfn > np.uint64(GFN_END) - np.minimum(npages, GFN_END)),
            "ends beyond gfn 2**52",
        ),
        (
            ~hole & (hva % np.uint64(PAGE_SIZE) != 0),
            f"has an hva that is not a multiple of {PAGE_SIZE}",
        ),
        (
            ~hole & (npages > room >> np.uint64(PAGE_SHIFT)),
            f"has host memory beyond {HVA_ERR_MIN:#x}",
        ),
    )
    for bad, reason in wrong:
        if bad.any():
            at = int(np.argmax(bad))
            r = Region(*table[at].tolist())
            raise ValueError(
                f"region {at} (gfn {r.gfn:#x}, {r.npages} pages, hva {r.hva:#x}) {reason}"
            )


# ---- the winner of each piece ----------------------------------------------------------------------------------------


def _winners(table: Rows, edges: Rows) -> npt.NDArray[np.int64]:
    """Return the winning region of each piece between two edges, or -1.

    Every region covers its pieces with two spans of 2^k pieces, which may overlap.  The highest rank is stored where a
    span begins.  From the longest spans down, each value is passed to the two halves of its span.  That costs O(n) for
    each of the log n lengths."""
    order = np.argsort(table["priority"], kind="stable")  # rank r belongs to region order[r]
    first = np.searchsorted(edges, table["gfn"][order])
    count = np.searchsorted(edges, (table["gfn"] + table["npages"])[order]) - first
    level = np.frexp(count)[1] - 1  # 2^level <= count < 2^(level + 1)
    best = np.full(max(len(edges) - 1, 0), -1, np.int64)
    for k in range(int(level.max(initial=-1)), -1, -1):
        here = np.flatnonzero(level == k)
        np.maximum.at(best, first[here], here)
        np.maximum.at(best, first[here] + count[here] - (1 << k), here)
        if k:
            half = 1 << (k - 1)
            best[half:] = np.maximum(best[half:], best[:-half])
    return np.where(best >= 0, order[best], -1) if len(order) else best


def _runs(table: Rows, begin: Rows, length: Rows, winner: npt.NDArray[np.int64]) -> Rows:
    """Return the pieces that have memory, as joined runs."""
    shown = np.flatnonzero(winner >= 0)
    shown = shown[table["hva"][winner[shown]] < np.uint64(HVA_ERR_MIN)]
    region = table[winner[shown]]
    pieces = np.zeros(len(shown), MEMSLOT_DTYPE)
    pieces["base_gfn"], pieces["npages"], pieces["flags"] = (
        begin[shown],
        length[shown],
        region["flags"],
    )
    pieces["userspace_addr"] = region["hva"] + (
        (begin[shown] - region["gfn"]) << np.uint64(PAGE_SHIFT)
    )
    rows = _cut(joined(pieces, limit=False))
    runs = np.zeros(len(rows), RUN_DTYPE)
    for name, field in zip(RUN_DTYPE.names or (), RUN_COLUMNS, strict=True):
        runs[name] = rows[field]
    return runs


def _cut(pieces: Rows) -> Rows:
    """Cut runs that are longer than a slot can be."""
    limit = np.uint64(MEM_MAX_NR_PAGES)
    parts = (-(-pieces["npages"].astype(np.int64) // MEM_MAX_NR_PAGES)).astype(np.int64)
    if not len(parts) or parts.max() == 1:
        return pieces
    rows = np.repeat(pieces, parts)
    number = (np.arange(len(rows)) - np.repeat(np.cumsum(parts) - parts, parts)).astype(np.uint64)
    skipped = number * limit
    rows["base_gfn"] += skipped
    rows["userspace_addr"] += skipped << np.uint64(PAGE_SHIFT)
    rows["npages"] = np.minimum(rows["npages"] - skipped, limit)
    return rows
