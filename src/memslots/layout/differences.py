# SPDX-License-Identifier: MIT
"""The differences between two layouts: the rows that differ, and the ids of the new rows.

A slot is the same slot before and after if its id is the same.  So each difference is a pair of rows with one id, or a
row of one side only.  A row that is equal on both sides is no difference and costs only the comparison.
"""

from __future__ import annotations

import errno
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..constants import MEMSLOT_DTYPE, MemFlag
from ..errors import InvalidRegionError
from .tables import Rows, Table, request_of

Places: TypeAlias = npt.NDArray[np.intp]
Pairs: TypeAlias = tuple[
    Places, Places
]  # the k-th of the first continues in the k-th of the second

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

    The rows of `new` have their final ids.  `current` are all rows before, and `kept` the places of the rows among them
    that are equal afterwards.  They are not copied: most rows of a large layout are equal."""

    gone: Rows
    new: Rows
    current: Rows
    kept: Places

    def pairs(self) -> Pairs:
        """Return the places of the slots that are in `gone` and in `new`, in the order of `gone`."""
        _, a, b = np.intersect1d(
            self.gone["id"], self.new["id"], assume_unique=True, return_indices=True
        )
        order = np.argsort(a)
        return a[order], b[order]

    def final(self) -> Rows:
        """Return all rows of the layout afterwards, by ascending base_gfn."""
        rows = np.empty(len(self.kept) + len(self.new), MEMSLOT_DTYPE)
        rows[: len(self.kept)], rows[len(self.kept) :] = self.current[self.kept], self.new
        result: Rows = rows[np.argsort(rows["base_gfn"], kind="stable")]
        return result


def compare(
    current: Table, wanted: Table, keep_ids: bool, moves: Pairs | None = None
) -> Difference:
    """Return the difference of two layouts, with ids for all new rows.

    keep_ids true: a slot of the current layout keeps its id if its memory is in the wanted one; see `_carry_ids`.
    keep_ids false: the ids are those of the wanted layout.  `moves` decides where some slots continue.  Cost: O(n), and
    O(d log d) for d rows that differ."""
    equal = equal_rows(current.rows, wanted.rows, with_ids=not keep_ids)
    difference = difference_of(current.rows, wanted.rows, equal)
    if keep_ids:
        _carry_ids(difference, wanted.has_ids, moves)
    return difference


def difference_of(current: Rows, wanted: Rows, equal: Pairs) -> Difference:
    """Return the difference of two layouts whose rows at `equal` are the same slots."""
    a, b = equal
    new = without(wanted, b)
    _refuse_guest_memfd(new)
    return Difference(without(current, a), new, current, a)


#: The columns that are equal in equal rows.
_VALUES = ("base_gfn", "npages", "userspace_addr", "flags")
#: So many times `_equal_runs` may find its place again.  Then many rows differ, and `_equal_pairs` is faster.
_RESYNCS = 100
#: Tables with fewer rows always go to `_equal_pairs`, which makes fewer calls of numpy.
_SMALL = 1000


def equal_rows(a: Rows, b: Rows, with_ids: bool) -> Pairs:
    """Return the places of the rows that are equal in both tables, in their order."""
    names = (*_VALUES, "id") if with_ids else _VALUES
    if min(len(a), len(b)) < _SMALL:
        return _equal_pairs(a, b, names)
    pairs = _equal_runs([a[name] for name in names], [b[name] for name in names])
    return pairs or _equal_pairs(a, b, names)


def _equal_pairs(a: Rows, b: Rows, names: tuple[str, ...]) -> Pairs:
    """Merge both tables by base_gfn.  O(n)."""
    bases = np.concatenate((a["base_gfn"], b["base_gfn"]))
    order = np.argsort(bases, kind="stable")  # merges two sorted halves, in O(n)
    bases = bases[order]
    same = np.flatnonzero(bases[1:] == bases[:-1])
    at_a, at_b = order[same], order[same + 1] - len(a)
    equal = np.ones(len(same), bool)
    for name in names:
        equal &= a[name][at_a] == b[name][at_b]
    return at_a[equal], at_b[equal]


def _equal_runs(a: list[Rows], b: list[Rows]) -> Pairs | None:
    """Compare columns from the start, and go on behind each difference.  None if there are too many.

    Costs about two comparisons of all columns, which is a third of `_equal_pairs`."""
    i = j = 0
    at_a, at_b = [np.arange(0)], [np.arange(0)]
    for _ in range(_RESYNCS):
        length = _equal_prefix([c[i:] for c in a], [c[j:] for c in b])
        at_a.append(np.arange(i, i + length))
        at_b.append(np.arange(j, j + length))
        i, j = i + length, j + length
        if i == len(a[0]) or j == len(b[0]):
            return np.concatenate(at_a), np.concatenate(at_b)
        left, right = a[0][i], b[0][j]
        i, j = i + int(left <= right), j + int(right <= left)
    return None


def _equal_prefix(a: list[Rows], b: list[Rows]) -> int:
    """Return the number of equal rows before the first difference.  Compares windows that grow."""
    count, size, most = 0, 64, min(len(a[0]), len(b[0]))
    while count < most:
        end = min(count + size, most)
        differ = a[0][count:end] != b[0][count:end]
        for left, right in zip(a[1:], b[1:], strict=True):
            differ |= left[count:end] != right[count:end]
        if differ.any():
            return count + int(differ.argmax())
        count, size = end, 4 * size
    return most


def without(rows: Rows, places: Places) -> Rows:
    rest = np.ones(len(rows), bool)
    rest[places] = False
    return rows[np.flatnonzero(rest)]


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
        used = _Ids(difference.current["id"][difference.kept], ids[ids >= 0], len(b))
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
    """The ids in use, below the number of ids that can be needed, and above it."""

    def __init__(self, kept: Rows, carried: npt.NDArray[np.int64], more: int) -> None:
        self.used = np.zeros(len(kept) + len(carried) + more, bool)
        self.high = np.concatenate((self._mark(kept), self._mark(carried)))

    def _mark(self, ids: Rows) -> Rows:
        """Mark low ids as used; return the others."""
        low = ids < len(self.used)
        self.used[ids[low]] = True
        high: Rows = ids[~low]
        return high

    def take(self, ids: npt.NDArray[np.int64], places: Places, own: Rows) -> Places:
        """Give the rows at `places` their own ids where these are free; return the other places."""
        wanted = own[places]
        low = wanted < len(self.used)
        free = ~np.isin(wanted, self.high)
        free[low] = ~self.used[wanted[low]]
        ids[places[free]] = wanted[free]
        self._mark(wanted[free])
        return places[~free]

    def lowest(self, count: int) -> Places:
        return np.flatnonzero(~self.used)[:count]
