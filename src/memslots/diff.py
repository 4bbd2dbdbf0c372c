# SPDX-License-Identifier: MIT
"""The differences between two layouts: which slots were created, deleted, moved, resized, replaced or changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

from .constants import MemFlag

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._memslots import MemorySlot

__all__ = ["Diff", "diff_rows"]


def _text(slot: MemorySlot) -> str:
    start, flags = slot.gpa, MemFlag(slot.flags).name or "no flags"
    return f"[{start:#x}, {start + slot.size:#x}) at host {slot.userspace_addr:#x}, {flags}"


@dataclass(frozen=True, repr=False)
class Diff:
    """The way from an old layout to a new one, from ``old.diff(new)``.  False if the layouts have the same slots.

    A slot is known by its id.  Each list is by ascending guest address in the new layout (deleted: in the old one).

        created     the slots whose id only the new layout has
        deleted     the slots whose id only the old layout has
        replaced    pairs (old, new) of one id with other host memory: userspace_addr differs.  No pair of this list is
                    in the next three lists.
        moved       pairs with the same userspace_addr and another base_gfn
        resized     pairs with the same userspace_addr and other npages
        flags       pairs with the same userspace_addr and other flags, of any bit

    A pair can be in several of the last three lists.  The host address is all that a row says about memory: a buffer
    that was mapped later at the same address is no difference.
    """

    created: list[MemorySlot] = field(default_factory=list)
    deleted: list[MemorySlot] = field(default_factory=list)
    moved: list[tuple[MemorySlot, MemorySlot]] = field(default_factory=list)
    resized: list[tuple[MemorySlot, MemorySlot]] = field(default_factory=list)
    replaced: list[tuple[MemorySlot, MemorySlot]] = field(default_factory=list)
    flags: list[tuple[MemorySlot, MemorySlot]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(getattr(self, part.name) for part in fields(self))

    def __repr__(self) -> str:
        counts = {part.name: len(getattr(self, part.name)) for part in fields(self)}
        words = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
        return f"<Diff: {words or 'no difference'}>"

    def __str__(self) -> str:
        """One line for each entry of each list."""
        lines = [f"created  slot {slot.id} {_text(slot)}" for slot in self.created]
        lines += [f"deleted  slot {slot.id} {_text(slot)}" for slot in self.deleted]
        for name in ("moved", "resized", "replaced", "flags"):
            lines += [
                f"{name:8} slot {old.id} {_text(old)} -> {_text(new)}"
                for old, new in getattr(self, name)
            ]
        return "\n".join(lines) or "no difference"


def diff_rows(
    old: npt.NDArray[np.void],
    new: npt.NDArray[np.void],
    slots_of: Callable[[npt.NDArray[np.void]], list[MemorySlot]],
) -> Diff:
    """The Diff of two arrays of MEMSLOT_DTYPE.  In each the ids are unique, and the rows ascend by base_gfn.

    slots_of: makes the MemorySlots of rows; this module is below the extension, which has that function.
    O(n log n) without a loop over the rows; most of it is spent on those that differ."""
    old, new = _without_equal(old, new)
    before, after = _common(old["id"], new["id"])
    replaced: npt.NDArray[np.bool_] = old["userspace_addr"][before] != new["userspace_addr"][after]

    def pairs(which: npt.NDArray[np.bool_]) -> list[tuple[MemorySlot, MemorySlot]]:
        return list(zip(slots_of(old[before[which]]), slots_of(new[after[which]]), strict=True))

    def kept_with_other(name: str) -> npt.NDArray[np.bool_]:
        other: npt.NDArray[np.bool_] = old[name][before] != new[name][after]
        return ~replaced & other

    return Diff(
        created=slots_of(np.delete(new, after)),
        deleted=slots_of(np.delete(old, before)),
        moved=pairs(kept_with_other("base_gfn")),
        resized=pairs(kept_with_other("npages")),
        replaced=pairs(replaced),
        flags=pairs(kept_with_other("flags")),
    )


def _without_equal(
    old: npt.NDArray[np.void], new: npt.NDArray[np.void]
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """The rows that the other array does not have.  Equal rows have equal base_gfns, by which both are sorted."""
    if not len(old) or not len(new):
        return old, new
    bases = np.ascontiguousarray(old["base_gfn"])
    at = np.searchsorted(bases, new["base_gfn"])
    at[at == len(old)] = 0
    equal = bases[at] == new["base_gfn"]
    for name in ("npages", "userspace_addr", "id", "flags"):
        equal &= old[name][at] == new[name]
    is_left = np.ones(len(old), dtype=bool)
    is_left[at[equal]] = False
    return old[is_left], new[~equal]


def _common(
    old: npt.NDArray[np.uint32], new: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The places of the ids that both arrays have, in the order of the new one."""
    order = np.argsort(old)
    at = np.searchsorted(old, new, sorter=order)
    known = np.flatnonzero(at < len(old))
    places = order[at[known]]
    found = old[places] == new[known]
    return places[found], known[found]
