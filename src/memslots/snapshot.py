# SPDX-License-Identifier: MIT
"""An immutable copy of one set, for those who want to keep, compare or send a memory map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .constants import HVA_ERR_BAD, HVA_ERR_RO_BAD, MEMSLOT_DTYPE, PAGE_SHIFT, MemFlag

if TYPE_CHECKING:
    from ._memslots import MemorySlot


class Snapshot:
    """The slots of one address space as one read section saw them.

    ``array`` is read-only, of dtype MEMSLOT_DTYPE, by ascending base_gfn; ``generation`` and ``as_id`` say of what.
    """

    __slots__ = ("array", "as_id", "generation")

    array: npt.NDArray[Any]
    as_id: int
    generation: int

    def __init__(self, array: npt.NDArray[Any], as_id: int, generation: int) -> None:
        own = np.array(array, dtype=MEMSLOT_DTYPE, copy=True)
        own.flags.writeable = False
        object.__setattr__(self, "array", own)
        object.__setattr__(self, "as_id", as_id)
        object.__setattr__(self, "generation", generation)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Snapshot is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Snapshot is immutable: {name} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        return Snapshot, (self.array, self.as_id, self.generation)

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[MemorySlot]:
        from ._memslots import MemorySlot

        for row in self.array:
            yield MemorySlot(*(int(row[name]) for name in MemorySlot.__match_args__))

    def __eq__(self, other: object) -> bool:
        """Equal slots in the same address space; the generation does not count."""
        if not isinstance(other, Snapshot):
            return NotImplemented
        return self.as_id == other.as_id and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        columns = tuple(self.array[name].tobytes() for name in MEMSLOT_DTYPE.names or ())
        return hash((self.as_id, columns))

    def __repr__(self) -> str:
        return f"<Snapshot of address space {self.as_id}: {len(self)} slots, generation {self.generation}>"

    def gfn_to_hva_many(
        self,
        gfns: npt.NDArray[np.uint64] | npt.NDArray[np.int64],
        out: npt.NDArray[np.uint64] | None = None,
        write: bool = True,
    ) -> npt.NDArray[np.uint64]:
        """As ``VM.gfn_to_hva_many``, arguments and errors too: uint64 addresses in bytes, HVA_ERR_BAD in holes and
        INVALID slots, HVA_ERR_RO_BAD for writes to READONLY ones.  O(log n) a gfn."""
        from ._memslots import check_numbers, check_result

        wanted = check_numbers(gfns, "gfns")
        result = check_result(out, wanted)
        hvas = np.full(wanted.shape, HVA_ERR_BAD, dtype=np.uint64)
        if len(self):
            self._translate(wanted.astype(np.uint64).reshape(-1), hvas.reshape(-1), write)
        result[...] = hvas
        return result

    def _translate(
        self, gfns: npt.NDArray[np.uint64], hvas: npt.NDArray[np.uint64], write: bool
    ) -> None:
        base = np.ascontiguousarray(self.array["base_gfn"])
        at = np.searchsorted(base, gfns, side="right") - 1
        slot = self.array[np.maximum(at, 0)]
        page = gfns - slot["base_gfn"]
        hit = (at >= 0) & (page < slot["npages"]) & (slot["flags"] & int(MemFlag.INVALID) == 0)
        hvas[hit] = (slot["userspace_addr"] + (page << np.uint64(PAGE_SHIFT)))[hit]
        if write:
            hvas[hit & (slot["flags"] & int(MemFlag.READONLY) != 0)] = HVA_ERR_RO_BAD
