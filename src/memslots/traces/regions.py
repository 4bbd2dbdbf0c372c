# SPDX-License-Identifier: MIT
"""The slots after a series of accepted changes, from the fields of a vector file; no engine is involved.

The reader of a file follows the changes that the recording kernel accepted.  The player also follows the changes that
its VM accepts.  Both limit the pages under dirty logging before the VM allocates a log.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..constants import MEM_MAX_NR_PAGES, PAGE_SIZE, MemFlag
from .schema import parse_address, parse_number, unpack_slot

ARENA_BASE = 1 << 44  # as on the recording machine; 16 TiB from here end below hva_end_max
LOG_DIRTY_PAGES = int(MemFlag.LOG_DIRTY_PAGES)  # an int, because operations on a MemFlag are slow

# Defaults for fields that a file lacks: x86-64 with shadow paging and 4-level page tables.
DEFAULT_GPA_BITS = 52
DEFAULT_HVA_END_MAX = 0x7FFFFFFFF000
DEFAULT_USER_MEM_SLOTS = 32764


class Machine(NamedTuple):
    """The limits of the machine that a file was recorded on."""

    user_mem_slots: int
    gpa_bits: int
    hva_end_max: int
    address_spaces: int = 1


def machine_of(header: Mapping[str, Any]) -> Machine:
    oracle = header.get("oracle", {})
    caps, limits = oracle.get("caps", {}), oracle.get("limits", {})
    return Machine(
        caps.get("nr_memslots", DEFAULT_USER_MEM_SLOTS),
        limits.get("gpa_bits", DEFAULT_GPA_BITS),
        parse_number(limits.get("hva_end_max", DEFAULT_HVA_END_MAX)),
        max(1, caps.get("multi_address_space", 0)),
    )


class Region(NamedTuple):
    gpa: int
    size: int
    flags: int
    hva: int

    @property
    def pages(self) -> int:
        return self.size // PAGE_SIZE

    @property
    def is_logged(self) -> bool:
        return bool(self.size and self.flags & LOG_DIRTY_PAGES)

    def fits(self, machine: Machine) -> bool:
        """False only for a region that every engine refuses for any set of slots."""
        return (
            self.pages <= MEM_MAX_NR_PAGES
            and self.gpa + self.size <= 1 << machine.gpa_bits
            and self.hva + self.size <= machine.hva_end_max
        )


def region_of(fields: Mapping[str, Any]) -> Region:
    """Return the region of a `set` or `set2`."""
    return Region(
        parse_number(fields["gpa"]),
        parse_number(fields["size"]),
        fields["flags"],
        parse_address(fields["hva"], ARENA_BASE),
    )


class Regions:
    """Slots by the ioctl's slot number, which includes the address space."""

    def __init__(self) -> None:
        self.slots: dict[int, Region] = {}
        self.logged_pages = 0

    def change(self, slot: int, new: Region) -> None:
        """Apply an accepted `set` or `set2`."""
        self.logged_pages = self._logged_after(slot, new)
        if new.size:
            self.slots[slot] = new
        else:
            self.slots.pop(slot, None)

    def kind_of_change(self, slot: int, new: Region) -> str:
        """Return the kind of a change, assuming that it is accepted."""
        old = self.slots.get(slot)
        if not new.size:
            return "delete"
        if old is None:
            return "create"
        if new.gpa != old.gpa:
            return "move"
        return "no-op" if new.flags == old.flags else "flags"

    def logged_at(self, gpa: int) -> list[int]:
        """Return the slot of address space 0 that contains gpa, if it is under dirty logging.  Cost: O(slots)."""
        return [
            slot
            for slot, s in self.slots.items()
            if s.is_logged and unpack_slot(slot)[1] == 0 and s.gpa <= gpa < s.gpa + s.size
        ]

    def logged_after(self, slot: int, new: Region, machine: Machine) -> int:
        """Return the number of pages under dirty logging after the change, assuming that it is accepted."""
        accepted = not new.is_logged or new.fits(machine)
        return self._logged_after(slot, new) if accepted else self.logged_pages

    def _logged_after(self, slot: int, new: Region) -> int:
        old = self.slots.get(slot)
        less = old.pages if old and old.is_logged else 0
        return self.logged_pages - less + (new.pages if new.is_logged else 0)
