# SPDX-License-Identifier: MIT
"""Layouts as tables: read a layout in any of its forms, check it, sort it, join its runs.

A layout is a set of runs of guest frames, each with its host address and its flags, in one address space.  It can be

- a Snapshot, or a structured array with the fields of MEMSLOT_DTYPE: slots with ids;
- a structured array with the fields of RUN_DTYPE, or integers of shape (n, 4), or a list of such rows: runs
  (gfn, npages, hva, flags) without ids.

Inside this package a layout is a Table: rows of MEMSLOT_DTYPE by ascending base_gfn, without overlap.  Every step works
on whole columns, because a layout may have hundreds of thousands of runs.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .._memslots import Snapshot, look_at_rows, rows_of_runs
from ..constants import MEM_MAX_NR_PAGES, MEMSLOT_DTYPE, PAGE_SHIFT, MemFlag
from ..errors import InvalidRegionError, Request, refused

Rows: TypeAlias = npt.NDArray[Any]
Layout: TypeAlias = Snapshot | npt.NDArray[Any] | Sequence[Any]

#: A run of guest frames without an id: the rows of a layout that flatten() returns.  hva is in bytes.
RUN_DTYPE = np.dtype([("gfn", "u8"), ("npages", "u8"), ("hva", "u8"), ("flags", "u4")], align=True)

USER_FLAGS = int(MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY | MemFlag.GUEST_MEMFD)
GFN_END = 2**52  # base_gfn + npages of a slot is below it

# A field of MEMSLOT_DTYPE, and the names that it may have in a table.
_NAMES = {
    "base_gfn": ("base_gfn", "gfn"),
    "npages": ("npages",),
    "userspace_addr": ("userspace_addr", "hva"),
    "flags": ("flags",),
    "id": ("id",),
    "as_id": ("as_id",),
}
_UNSORTED, _BROKEN, _JOINS = 1, 2, 4  # the results of look_at_rows()
_OPTIONAL = ("flags", "id", "as_id")
RUN_COLUMNS = ("base_gfn", "npages", "userspace_addr", "flags")


class Table(NamedTuple):
    """Checked rows of MEMSLOT_DTYPE, by ascending base_gfn.  Without has_ids, the ids are 0, 1, 2, ..."""

    rows: Rows
    has_ids: bool


def normalise(layout: Layout, *, coalesce: bool = True, as_id: int | None = None) -> Table:
    """Return the layout as a Table: sorted, checked, and with its neighbours joined if coalesce is true.

    A row that no VM could hold raises the exception of ``VM.load_memslots()``.  An as_id of None is that of the layout,
    or 0.  Neighbours are joined if their guest frames and their host addresses are contiguous and their flags are
    equal, up to MEM_MAX_NR_PAGES.  The joined run has the id of the first.  Runs of guest_memfd are never joined."""
    rows, has_ids = _read(layout, as_id)
    given = rows
    found = look_at_rows(rows, USER_FLAGS, MemFlag.GUEST_MEMFD)
    if found & _UNSORTED:
        rows = rows[np.argsort(rows["base_gfn"], kind="stable")]
        found = look_at_rows(rows, USER_FLAGS, MemFlag.GUEST_MEMFD)
    if found & _BROKEN or (has_ids and not isinstance(layout, Snapshot) and _repeats(rows["id"])):
        _refuse(given, has_ids)
    if coalesce and found & _JOINS:
        rows = joined(rows)
    if not has_ids and rows is not given:
        rows["id"] = np.arange(len(rows))
    return Table(rows, has_ids)


# ---- read ------------------------------------------------------------------------------------------------------------


def _read(layout: Layout, as_id: int | None) -> Table:
    """Copy a layout in any form to rows of MEMSLOT_DTYPE, in the order of the layout.  A Snapshot has such rows."""
    if isinstance(layout, Snapshot):
        _refuse_as_id(layout.array[:1], as_id)  # all rows have one
        return Table(layout.array, has_ids=True)
    table = layout
    if isinstance(table, np.ndarray) and table.dtype.names is not None:
        columns = _fields(table)
    else:
        columns = dict(zip(RUN_COLUMNS, _runs(table).T, strict=True))
    columns.setdefault("flags", np.zeros(len(columns["npages"]), np.uint32))
    fitting = {name: _fitting(name, column) for name, column in columns.items()}
    gfn, npages, hva, flags = (fitting[name] for name in RUN_COLUMNS)
    rows = rows_of_runs(gfn, npages, hva, flags, as_id or 0)
    if "id" in columns:
        rows["id"] = fitting["id"]
    if "as_id" in columns:
        rows["as_id"] = fitting["as_id"]
        _refuse_as_id(rows, as_id)
    return Table(rows, "id" in columns)


def _fields(table: Rows) -> dict[str, Rows]:
    if table.ndim != 1:
        raise ValueError(f"a layout has one dimension, not {table.ndim}; use array.ravel()")
    names = table.dtype.names or ()
    columns = {}
    for field, aliases in _NAMES.items():
        found = [name for name in aliases if name in names]
        if found:
            columns[field] = table[found[0]]
        elif field not in _OPTIONAL:
            raise ValueError(
                f"the layout has no field {' or '.join(aliases)}, only {', '.join(names)}"
            )
    return columns


def _runs(table: Any) -> Rows:
    """Return runs as an array of shape (n, 4), of an integer dtype or of Python's integers."""
    if not isinstance(table, (np.ndarray, Sequence)) or isinstance(table, (str, bytes)):
        raise TypeError(
            "a layout is a Snapshot, a structured array (MEMSLOT_DTYPE or RUN_DTYPE), or rows "
            f"(gfn, npages, hva, flags), not {type(table).__name__}"
        )
    runs = table if isinstance(table, np.ndarray) else np.array(list(table), dtype=object)
    if runs.size == 0:
        return np.zeros((0, 4), np.uint64)
    if runs.ndim != 2 or runs.shape[1] != 4:
        raise ValueError(
            f"runs are rows (gfn, npages, hva, flags), with shape (n, 4), not {runs.shape}"
        )
    return runs


def _fitting(field: str, column: Rows) -> Rows:
    """Return a column as an array of its field's dtype.  OverflowError names the first value that does not fit."""
    dtype = MEMSLOT_DTYPE[field]
    if column.ndim == 1 and column.dtype.kind == "u" and np.can_cast(column.dtype, dtype):
        return np.require(column, dtype, "A")
    if column.dtype.kind == "O":
        if not all(isinstance(value, (int, np.integer)) for value in column):
            raise TypeError(f"{field} of a layout must be integers")
    elif column.dtype.kind not in "ui" or column.ndim != 1:
        raise TypeError(f"{field} of a layout must be one integer per row, not {column.dtype}")
    most = np.iinfo(dtype).max
    if column.size and (column.min() < 0 or column.max() > most):
        at = int(np.argmax((column < 0) | (column > most)))
        raise OverflowError(f"entry {at}: {field} must be 0 to {most:#x}, not {column[at]}")
    return column.astype(dtype)


def _refuse_as_id(rows: Rows, as_id: int | None) -> None:
    """ValueError if a row is of another address space than as_id, or than the first row."""
    if not len(rows):
        return
    if as_id is None:
        as_id = int(rows["as_id"][0])
    other = rows["as_id"] != as_id
    if other.any():
        at = int(np.argmax(other))
        raise ValueError(f"entry {at} has as_id {rows['as_id'][at]}, not {as_id}")


# ---- check -----------------------------------------------------------------------------------------------------------


def _repeats(ids: Rows) -> bool:
    """Whether an id occurs twice, or is not below 2^31."""
    if not len(ids):
        return False
    most = int(ids.max())
    if most >= 2**31:
        return True
    if most > 4 * len(ids) + 1000:  # sparse ids: a table of all of them would be large
        return len(np.unique(ids)) != len(ids)
    seen = np.zeros(most + 1, bool)
    seen[ids] = True
    return int(np.count_nonzero(seen)) != len(ids)


def _refuse(rows: Rows, has_ids: bool) -> None:
    """Raise the exception for the first bad row.  Returns if all rows are fine."""
    Snapshot(rows, rows["as_id"][0], 0)
    invalid = np.flatnonzero(rows["flags"] & ~np.uint32(USER_FLAGS))
    if len(invalid):
        at = int(invalid[0])
        raise refused(
            errno.EINVAL, "FLAGS", USER_FLAGS, None, request_of(rows[at]), f"entry {at}: "
        )


def request_of(row: Any) -> Request:
    """Return the arguments that set_user_memory_region() would have for a row."""
    gpa, size = int(row["base_gfn"]) << PAGE_SHIFT, int(row["npages"]) << PAGE_SHIFT
    hva, flags = int(row["userspace_addr"]), int(row["flags"])
    return Request(int(row["id"]), int(row["as_id"]), gpa, size, hva, flags)


def check_count(needed: int, max_slots: int | None, coalesce: bool, joined_count: int) -> None:
    """Raise InvalidRegionError if a layout needs more slots than it may have."""
    if max_slots is None or needed <= max_slots:
        return
    message = f"the layout needs {needed} slots, and max_slots is {max_slots}"
    if coalesce:
        message += "; its neighbours are joined already"
    else:
        message += f"; with coalesce=True it needs {joined_count}"
    raise InvalidRegionError(errno.EINVAL, message)


# ---- join ------------------------------------------------------------------------------------------------------------


def joined(rows: Rows, limit: bool = True) -> Rows:
    """Join neighbours in sorted rows.  Returns the same array if there is nothing to join.

    With `limit` no joined run has more than MEM_MAX_NR_PAGES.  Rows are never cut."""
    base, npages = rows["base_gfn"], rows["npages"]
    begins = np.ones(len(rows), bool)  # the row begins a joined run
    touching = 1 + np.flatnonzero(base[1:] == (base + npages)[:-1])
    left, right = rows[touching - 1], rows[touching]
    hva_end = left["userspace_addr"] + (left["npages"] << np.uint64(PAGE_SHIFT))
    same = (hva_end == right["userspace_addr"]) & (left["flags"] == right["flags"])
    begins[touching] = ~same | (left["flags"] & np.uint32(MemFlag.GUEST_MEMFD) != 0)
    if begins.all():
        return rows
    if limit:
        _limit(begins, npages)
    first = np.flatnonzero(begins)
    result = rows[first]
    result["npages"] = np.add.reduceat(npages, first)
    return result


def _limit(begins: npt.NDArray[np.bool_], npages: Rows) -> None:
    """Begin one more run wherever a joined run would have more than MEM_MAX_NR_PAGES."""
    first = np.flatnonzero(begins)
    ends = [*first[1:].tolist(), len(begins)]
    for at in np.flatnonzero(np.add.reduceat(npages, first) > MEM_MAX_NR_PAGES).tolist():
        total = 0
        for row in range(int(first[at]), ends[at]):
            total += int(npages[row])
            if total > MEM_MAX_NR_PAGES:
                begins[row], total = True, int(npages[row])
