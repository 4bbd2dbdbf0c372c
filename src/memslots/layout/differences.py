# SPDX-License-Identifier: MIT
"""The differences between two layouts: the rows that differ, and the ids of the new rows.

A slot is the same slot before and after if its id is the same.  So each difference is a pair of rows with one id, or a
row of one side only.  A row that is equal on both sides is no difference and costs only the comparison, which the core
makes.
"""

from __future__ import annotations

import errno
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .._memslots import compare_rows, mark_ids
from ..constants import MemFlag
from ..errors import InvalidRegionError
from .tables import Rows, Table, request_of

Places: TypeAlias = npt.NDArray[np.intp]
Pairs: TypeAlias = tuple[
    Places, Places
]  # the k-th of the first continues in the k-th of the second

NO_ID = np.uint32(0xFFFFFFFF)  # MS_SLOT_ANY of the core
LOG = np.uint32(MemFlag.LOG_DIRTY_PAGES)
FIXED = ~LOG  # a slot keeps these flags for its life
GUEST_MEMFD = np.uint32(MemFlag.GUEST_MEMFD)
MEMORY = (
    "npages",
    "userspace_addr",
    "fixed",
)  # a slot that only moves or changes its logging keeps these


class Difference(NamedTuple):
    """The rows of two layouts that differ, by ascending base_gfn: `gone` before, `new` afterwards.

    The rows of `new` have their final ids.  `wanted` are all rows afterwards, of any ids.  `ids` has the id of each of
    them that is equal before; it is NO_ID for the rows of `new`.  So only rows that differ are copied: most rows of a
    large layout are equal."""

    gone: Rows
    new: Rows
    wanted: Rows
    ids: npt.NDArray[np.uint32]

    def pairs(self) -> Pairs:
        """Return the places of the slots that are in `gone` and in `new`, in the order of `gone`."""
        _, a, b = np.intersect1d(
            self.gone["id"], self.new["id"], assume_unique=True, return_indices=True
        )
        order = np.argsort(a)
        return a[order], b[order]

    def places(self) -> Places:
        """Return the places of the rows of `new` in `wanted`."""
        return np.flatnonzero(self.ids == NO_ID)

    def final(self) -> Rows:
        """Return all rows of the layout afterwards, by ascending base_gfn."""
        rows = self.wanted.copy()
        rows["id"] = self.ids
        rows["id"][self.places()] = self.new["id"]
        return rows


def compare(
    current: Table, wanted: Table, keep_ids: bool, moves: Pairs | None = None
) -> Difference:
    """Return the difference of two layouts, with ids for all new rows.  `difference_of` explains the ids.

    Cost: O(n), and O(d log d) for d rows that differ."""
    gone, ids = compare_rows(current.rows, wanted.rows, not keep_ids)
    return difference_of(gone, ids, wanted, keep_ids, moves)


def difference_of(
    gone: Rows,
    ids: npt.NDArray[np.uint32],
    wanted: Table,
    keep_ids: bool,
    moves: Pairs | None = None,
) -> Difference:
    """Return the Difference of a comparison, with ids for all new rows.

    keep_ids true: a slot of the current layout keeps its id if its memory is in the wanted one; see `_carry_ids`.
    keep_ids false: the ids are those of the wanted layout.  `moves` decides where some slots continue."""
    new = wanted.rows[np.flatnonzero(ids == NO_ID)]
    _refuse_guest_memfd(new)
    difference = Difference(gone, new, wanted.rows, ids)
    if keep_ids:
        _carry_ids(difference, wanted.has_ids, moves)
    return difference


def _refuse_guest_memfd(new: Rows) -> None:
    """A slot of guest_memfd can stay or go.  To create or to change one takes a file, which a layout does not have."""
    found = np.flatnonzero(new["flags"] & GUEST_MEMFD)
    if len(found):
        q = request_of(new[int(found[0])])
        raise InvalidRegionError(
            errno.EINVAL,
            f"the layout has a GUEST_MEMFD slot [{q.guest_phys_addr:#x}, {q.guest_phys_addr + q.memory_size:#x}) that "
            "is not there already: create it with set_user_memory_region() and its guest_memfd",
            q.slot,
            None,
            "GMEM_EXISTING",
        )


# ---- ids -------------------------------------------------------------------------------------------------------------


def _carry_ids(difference: Difference, has_ids: bool, moves: Pairs | None) -> None:
    """Set the ids of `new`.  A slot that continues keeps its id, and other rows get free ids.

    A slot continues as `moves` has it; else in the new row with the same place and memory (its logging changes); else
    with the same memory at another place (it moves); else with the same place and the same first host address (its size
    changes); else with the same first host address.  Equal candidates are taken in the order of base_gfn."""
    gone, new = difference.gone, difference.new
    a, b = np.arange(len(gone)), np.arange(len(new))
    ids = np.full(len(new), -1, np.int64)
    for keys in (
        None,
        ("base_gfn", *MEMORY),
        MEMORY,
        ("base_gfn", "userspace_addr", "fixed"),
        ("userspace_addr",),
    ):
        if len(a) and len(b) and (keys or moves):
            first, second = join_rows(gone, new, a, b, keys) if keys else moves or (a[:0], b[:0])
            ids[second] = gone["id"][first]
            a, b = a[~np.isin(a, first)], b[~np.isin(b, second)]
    if len(b):
        used = _Ids(difference.ids, ids[ids >= 0])
        if has_ids:
            b = used.take(ids, b, new["id"])
        ids[b] = used.lowest(len(b))
    new["id"] = ids


def join_rows(gone: Rows, new: Rows, a: Places, b: Places, keys: tuple[str, ...]) -> Pairs:
    """Pair the rows a of `gone` with the rows b of `new` that have equal keys: the k-th with the k-th of each key."""
    columns = [np.concatenate((_key(gone, name)[a], _key(new, name)[b])) for name in keys]
    order = np.lexsort(columns)  # stable: inside a group, first a and then b, each in its order
    begins = np.ones(len(order), bool)
    begins[1:] = np.logical_or.reduce([c[order[1:]] != c[order[:-1]] for c in columns])
    group = np.cumsum(begins) - 1
    is_new = order >= len(a)
    olds = np.bincount(group, ~is_new).astype(np.intp)
    news = np.bincount(group, is_new).astype(np.intp)
    rank = np.arange(len(order)) - np.flatnonzero(begins)[group]
    rank[is_new] -= olds[group[is_new]]
    paired = rank < np.minimum(olds, news)[group]
    return a[order[paired & ~is_new]], b[order[paired & is_new] - len(a)]


def _key(rows: Rows, name: str) -> Rows:
    column: Rows = rows["flags"] & FIXED if name == "fixed" else rows[name]
    return column


class _Ids:
    """The ids in use.  Those below the number of slots are marked in a table: one of them is free for each new row.

    `kept` has an entry for each slot afterwards, NO_ID for a new one."""

    def __init__(self, kept: Rows, carried: npt.NDArray[np.int64]) -> None:
        self.parts: list[Rows] = []
        self.used = np.zeros(len(kept), np.uint8)
        self._mark(kept)
        self._mark(carried.astype(np.uint32))

    def _mark(self, ids: Rows) -> None:
        self.parts.append(ids)
        mark_ids(self.used, ids)

    def _high(self) -> Rows:
        """The used ids that the table has no entry for."""
        ids = np.concatenate(self.parts)
        found: Rows = ids[(ids >= len(self.used)) & (ids != NO_ID)]
        return found

    def take(self, ids: npt.NDArray[np.int64], places: Places, own: Rows) -> Places:
        """Give the rows at `places` their own ids where these are free; return the other places."""
        wanted = own[places]
        high = wanted >= len(self.used)
        free = np.ones(len(wanted), bool)
        free[~high] = self.used[wanted[~high]] == 0
        if high.any():  # isin() sorts all ids, however few are looked up
            free[high] = ~np.isin(wanted[high], self._high())
        ids[places[free]] = wanted[free]
        self._mark(wanted[free])
        return places[~free]

    def lowest(self, count: int) -> Places:
        return np.flatnonzero(self.used == 0)[:count]
