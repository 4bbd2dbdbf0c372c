# SPDX-License-Identifier: MIT
"""A VM of plain lists and dictionaries: the reference for the answers of the engine.

The model has the calls of `memslots.VM` with the same argument names, but no trees, no second set, no
hints and no threads.  It must stay readable enough for a comparison with KVM's rules line by line, so its
only optimization keeps the slots of an address space in a list sorted by gfn.

A refused call raises `ModelError`, whose `rule` is the name from memslots.h without MS_RULE_; a lookup
that finds nothing has no rule.
"""

import errno
import fcntl
import os
from bisect import bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np

PAGE_SIZE = 4096
U64 = 2**64
MAX_NR_PAGES = 2**31 - 1

LOG_DIRTY_PAGES = 1
READONLY = 2
GUEST_MEMFD = 4

MANUAL_PROTECT_ENABLE = 1
INITIALLY_SET = 2

HVA_ERR_BAD = U64 - 8192
HVA_ERR_RO_BAD = U64 - 4096


class ModelError(OSError):
    """A refused call."""

    def __init__(self, number: int, rule: str | None = None) -> None:
        super().__init__(number, f"{os.strerror(number)} ({rule})" if rule else os.strerror(number))
        self.rule = rule


class ModelNotMappedError(ModelError, LookupError):
    """A lookup of a host address in a hole."""


class ModelReadOnlyError(ModelError, PermissionError):
    """A lookup of a writable host address in a READONLY slot."""


@dataclass(frozen=True)
class Slot:
    """One slot; `id` and `as_id` are separate fields, as everywhere except in the ioctls."""

    id: int
    as_id: int
    base_gfn: int
    npages: int
    userspace_addr: int
    flags: int

    @property
    def gpa(self) -> int:
        return self.base_gfn * PAGE_SIZE

    @property
    def size(self) -> int:
        return self.npages * PAGE_SIZE

    @property
    def is_invalid(self) -> bool:
        return False  # no caller sees the middle of a change

    @property
    def end_gfn(self) -> int:
        return self.base_gfn + self.npages

    @property
    def last_hva(self) -> int:
        return self.userspace_addr + self.size - 1

    def hva_of(self, gfn: int) -> int:
        return self.userspace_addr + (gfn - self.base_gfn) * PAGE_SIZE


BY_GFN = attrgetter("base_gfn")


class AddressSpace:
    """The slots of one address space; no two of them share a frame."""

    def __init__(self, slots: Iterable[Slot] = ()) -> None:
        self.by_id = {s.id: s for s in slots}
        self.by_gfn = sorted(self.by_id.values(), key=BY_GFN)
        self.npages = sum(s.npages for s in self.by_gfn)

    def copy(self) -> "AddressSpace":
        return AddressSpace(self.by_gfn)

    def add(self, slot: Slot) -> None:
        self.by_id[slot.id] = slot
        insort(self.by_gfn, slot, key=BY_GFN)
        self.npages += slot.npages

    def remove(self, slot: Slot) -> None:
        del self.by_id[slot.id]
        del self.by_gfn[bisect_right(self.by_gfn, slot.base_gfn, key=BY_GFN) - 1]
        self.npages -= slot.npages

    def in_gfn_range(self, start: int, end: int) -> list[Slot]:
        """The slots that share a frame with [start, end); the first may begin before `start`."""
        found = []
        for i in range(max(0, bisect_right(self.by_gfn, start, key=BY_GFN) - 1), len(self.by_gfn)):
            s = self.by_gfn[i]
            if s.base_gfn >= end:
                break
            if max(s.base_gfn, start) < min(s.end_gfn, end):
                found.append(s)
        return found


class ModelVM:
    """The naive VM."""

    def __init__(
        self,
        *,
        address_spaces: int = 1,
        user_mem_slots: int = 32764,
        gpa_bits: int = 52,
        hva_end_max: int = 0x7FFFFFFFF000,
    ) -> None:
        self.address_spaces = address_spaces
        self.user_mem_slots = user_mem_slots
        self.gpa_bits = gpa_bits
        self.hva_end_max = hva_end_max
        self._spaces = [AddressSpace() for _ in range(address_spaces)]
        # (as_id, id) of each slot with a log -> its bitmap: bit n is page n
        self._dirty: dict[tuple[int, int], int] = {}
        self.last_bits: list[
            np.ndarray
        ] = []  # the logs that the last set_user_memory_region() has ended
        self._generation = list(range(address_spaces))
        self._manual = 0

    # ---- changes --------------------------------------------------------------------------------

    def set_user_memory_region(
        self,
        slot: int,
        *,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int = 0,
        flags: int = 0,
        as_id: int = 0,
        guest_memfd: int = -1,
        guest_memfd_offset: int = 0,
    ) -> None:
        self.last_bits = []
        _fit(32, slot, flags, as_id)
        _fit(64, guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset)
        self._check_request(
            slot, guest_phys_addr, memory_size, userspace_addr, flags, as_id, guest_memfd_offset
        )
        old = self._spaces[as_id].by_id.get(slot)
        if memory_size == 0:
            _refuse_if(old is None, errno.EINVAL, "NO_SUCH_SLOT")
            return self._delete(old)
        base_gfn, npages = guest_phys_addr // PAGE_SIZE, memory_size // PAGE_SIZE
        new = Slot(slot, as_id, base_gfn, npages, userspace_addr, flags)
        if old is None:
            return self._create(new, guest_memfd)
        self._check_against_old(old, new)
        if new.base_gfn != old.base_gfn:
            return self._move(old, new)
        if new.flags != old.flags:
            self._put(old, new)
            self._swap(as_id)

    def _check_request(
        self, id: int, gpa: int, size: int, hva: int, flags: int, as_id: int, gmem_offset: int
    ) -> None:
        """The checks that need no slot, in KVM's order."""
        allowed = GUEST_MEMFD if flags & GUEST_MEMFD else LOG_DIRTY_PAGES | READONLY
        invalid = errno.EINVAL
        _refuse_if(id >= self.user_mem_slots, invalid, "SLOT_ID")
        _refuse_if(flags & ~allowed, invalid, "FLAGS")
        _refuse_if(size % PAGE_SIZE, invalid, "SIZE_ALIGN")
        _refuse_if(gpa % PAGE_SIZE, invalid, "GPA_ALIGN")
        _refuse_if(hva % PAGE_SIZE, invalid, "HVA_ALIGN")
        _refuse_if(hva + size > self.hva_end_max, invalid, "HVA_RANGE")
        bad_offset = gmem_offset % PAGE_SIZE or gmem_offset + size >= U64
        _refuse_if(flags & GUEST_MEMFD and bad_offset, invalid, "GMEM_OFFSET")
        _refuse_if(as_id >= self.address_spaces, invalid, "AS_ID")
        _refuse_if(gpa + size >= U64, invalid, "GPA_WRAP")
        _refuse_if(size // PAGE_SIZE > MAX_NR_PAGES, invalid, "NPAGES")

    def _check_against_old(self, old: Slot, new: Slot) -> None:
        _refuse_if(new.flags & GUEST_MEMFD, errno.EINVAL, "GMEM_EXISTING")
        _refuse_if(new.userspace_addr != old.userspace_addr, errno.EINVAL, "HVA_CHANGE")
        _refuse_if(new.npages != old.npages, errno.EINVAL, "SIZE_CHANGE")
        _refuse_if((new.flags ^ old.flags) & READONLY, errno.EINVAL, "FLAGS_TOGGLE")

    def _check_overlap(self, space: AddressSpace, new: Slot) -> None:
        others = [s for s in space.in_gfn_range(new.base_gfn, new.end_gfn) if s.id != new.id]
        _refuse_if(others, errno.EEXIST, "OVERLAP")

    def _check_gpa_limit(self, new: Slot) -> None:
        """The check of the architecture's prepare hook."""
        _refuse_if(new.end_gfn * PAGE_SIZE > 2**self.gpa_bits, errno.EINVAL, "GPA_LIMIT")

    def _check_create(self, space: AddressSpace, new: Slot, guest_memfd: int = -1) -> None:
        _refuse_if(self.nr_memslot_pages + new.npages >= U64, errno.EINVAL, "TOTAL_PAGES")
        self._check_overlap(space, new)
        number = errno.EINVAL if _is_open(guest_memfd) else errno.EBADF
        _refuse_if(new.flags & GUEST_MEMFD, number, "GMEM_FD")

    def _create(self, new: Slot, guest_memfd: int) -> None:
        self._check_create(self._spaces[new.as_id], new, guest_memfd)
        self._check_gpa_limit(new)
        self._put(None, new)
        self._swap(new.as_id)

    def _delete(self, old: Slot) -> None:
        self._swap(old.as_id)
        self._spaces[old.as_id].remove(old)
        self._end_log(old)
        self._swap(old.as_id)

    def _move(self, old: Slot, new: Slot) -> None:
        """The slot is INVALID between the two swaps.  The prepare hook runs there, so a refused MOVE swaps twice."""
        self._check_overlap(self._spaces[old.as_id], new)
        self._swap(old.as_id)
        try:
            self._check_gpa_limit(new)
            self._put(old, new)
        finally:
            self._swap(old.as_id)

    def _put(self, old: Slot | None, new: Slot) -> None:
        """Stores `new` with its dirty bitmap: none, the one of `old`, or a fresh one."""
        key = new.as_id, new.id
        if old is not None:
            self._spaces[old.as_id].remove(old)
        self._spaces[new.as_id].add(new)
        if not new.flags & LOG_DIRTY_PAGES:
            self._end_log(old or new)
        elif old is None or not old.flags & LOG_DIRTY_PAGES:
            self._dirty[key] = _ones(new.npages) if self._manual & INITIALLY_SET else 0

    def _end_log(self, slot: Slot) -> None:
        bits = self._dirty.pop((slot.as_id, slot.id), None)
        if bits is not None:
            self.last_bits.append(_words(bits, slot.npages))

    def resize(self, id: int, as_id: int, base_gfn: int, npages: int, userspace_addr: int) -> None:
        """A change that only begin_update() can make.  A page is known by its host address and keeps its dirty bit."""
        old = self._spaces[as_id].by_id[id]
        new = replace(old, base_gfn=base_gfn, npages=npages, userspace_addr=userspace_addr)
        self._check_overlap(self._spaces[as_id], new)
        self._check_gpa_limit(new)
        bits = self._dirty.get((as_id, id))
        self._put(old, new)
        if bits is not None:
            first = (userspace_addr - old.userspace_addr) // PAGE_SIZE
            fresh = int(bool(self._manual & INITIALLY_SET))
            self._dirty[as_id, id] = sum(
                (bits >> page & 1 if 0 <= page < old.npages else fresh) << page - first
                for page in range(first, first + npages)
            )
        self._swap(as_id)

    def _swap(self, as_id: int) -> None:
        self._generation[as_id] += self.address_spaces

    def load_memslots(self, array: Iterable, as_id: int = 0) -> None:
        """Creates one slot for each row, all or none, in one swap."""
        trial = self._space(as_id).copy()
        news = [_slot_of_row(row, as_id) for row in array]
        for new in news:
            self._check_row(trial, new)
            self._check_gpa_limit(new)
            trial.add(new)
        for new in news:
            self._put(None, new)
        if news:
            self._swap(as_id)

    def _check_row(self, space: AddressSpace, new: Slot) -> None:
        _refuse_if(new.gpa >= U64, errno.EINVAL, "GPA_WRAP")
        _refuse_if(not 0 < new.npages <= MAX_NR_PAGES, errno.EINVAL, "NPAGES")
        self._check_request(new.id, new.gpa, new.size, new.userspace_addr, new.flags, new.as_id, 0)
        _refuse_if(new.id in space.by_id, errno.EEXIST, "DUPLICATE_ID")
        self._check_create(space, new)

    # ---- lookups --------------------------------------------------------------------------------

    def memslots(self, as_id: int = 0) -> list[Slot]:
        """The slots by ascending gfn."""
        return list(self._space(as_id).by_gfn)

    def _space(self, as_id: int) -> AddressSpace:
        _fit(32, as_id)
        _refuse_if(as_id >= self.address_spaces, errno.EINVAL, "AS_ID")
        return self._spaces[as_id]

    def __len__(self) -> int:
        return sum(len(space.by_id) for space in self._spaces)

    @property
    def nr_memslot_pages(self) -> int:
        return sum(space.npages for space in self._spaces)

    def generation(self, as_id: int = 0) -> int:
        self._space(as_id)
        return self._generation[as_id]

    def gfn_to_memslot(self, gfn: int, as_id: int = 0) -> Slot | None:
        _fit(64, gfn)
        found = self._space(as_id).in_gfn_range(gfn, gfn + 1)
        return found[0] if found else None

    def id_to_memslot(self, id: int, as_id: int = 0) -> Slot | None:
        return self._space(as_id).by_id.get(id)

    def gfn_to_hva_prot(self, gfn: int, as_id: int = 0) -> tuple[int, bool]:
        s = self.gfn_to_memslot(gfn, as_id)
        if s is None:
            raise ModelNotMappedError(errno.EFAULT)
        return s.hva_of(gfn), not s.flags & READONLY

    def gfn_to_hva(self, gfn: int, as_id: int = 0) -> int:
        hva, writable = self.gfn_to_hva_prot(gfn, as_id)
        if not writable:
            raise ModelReadOnlyError(errno.EFAULT)
        return hva

    def gpa_to_hva(self, gpa: int, as_id: int = 0) -> int:
        _fit(64, gpa)
        return self.gfn_to_hva(gpa // PAGE_SIZE, as_id) + gpa % PAGE_SIZE

    def is_visible_gfn(self, gfn: int, as_id: int = 0) -> bool:
        return self.gfn_to_memslot(gfn, as_id) is not None

    def gfn_to_hva_many(
        self, gfns: np.ndarray, out: np.ndarray | None = None, as_id: int = 0, write: bool = True
    ) -> np.ndarray:
        return _many(lambda gfn: self._hva_or_error(gfn, 0, as_id, write), gfns, out, np.uint64)

    def gpa_to_hva_many(
        self, gpas: np.ndarray, out: np.ndarray | None = None, as_id: int = 0, write: bool = True
    ) -> np.ndarray:
        def hva(gpa: int) -> int:
            return self._hva_or_error(gpa // PAGE_SIZE, gpa % PAGE_SIZE, as_id, write)

        return _many(hva, gpas, out, np.uint64)

    def _hva_or_error(self, gfn: int, offset: int, as_id: int, write: bool) -> int:
        try:
            hva, writable = self.gfn_to_hva_prot(gfn, as_id)
        except ModelNotMappedError:
            return HVA_ERR_BAD
        return hva + offset if writable or not write else HVA_ERR_RO_BAD

    def gfn_to_slot_id_many(
        self, gfns: np.ndarray, out: np.ndarray | None = None, as_id: int = 0
    ) -> np.ndarray:
        def slot_id(gfn: int) -> int:
            s = self.gfn_to_memslot(gfn, as_id)
            return -1 if s is None else s.id

        return _many(slot_id, gfns, out, np.int32)

    def memslots_in_gfn_range(self, start: int, end: int, as_id: int = 0) -> list[Slot]:
        """The slots that share a frame with [start, end)."""
        return self._space(as_id).in_gfn_range(start, end)

    def memslots_in_hva_range(self, start: int, last: int, as_id: int = 0) -> list[Slot]:
        """The slots that share a byte with [start, last], by (hva, base_gfn)."""
        slots = [
            s for s in self.memslots(as_id) if max(s.userspace_addr, start) <= min(s.last_hva, last)
        ]
        return sorted(slots, key=lambda s: (s.userspace_addr, s.base_gfn))

    def hva_to_gfns(self, hva: int) -> list[tuple[Slot, int]]:
        """Pairs (slot, gfn), sorted by (as_id, hva, base_gfn) of the slot."""
        return [
            (s, s.base_gfn + (hva - s.userspace_addr) // PAGE_SIZE)
            for as_id in range(self.address_spaces)
            for s in self.memslots_in_hva_range(hva, hva, as_id)
        ]

    # ---- dirty log ------------------------------------------------------------------------------

    def mark_page_dirty(self, gfn: int, as_id: int = 0) -> None:
        s = self.gfn_to_memslot(gfn, as_id)
        if s is not None and s.flags & LOG_DIRTY_PAGES:
            self._dirty[as_id, s.id] |= 1 << (gfn - s.base_gfn)

    def mark_page_dirty_many(self, gfns: np.ndarray, as_id: int = 0) -> None:
        for gfn in np.unique(gfns).tolist():  # marking a page twice has no further effect
            self.mark_page_dirty(gfn, as_id)

    def _logged_slot(self, id: int, as_id: int) -> Slot:
        s = self._spaces[as_id].by_id.get(id)
        _refuse_if(s is None, errno.ENOENT, "NO_SUCH_SLOT")
        _refuse_if(not s.flags & LOG_DIRTY_PAGES, errno.ENOENT, "NO_DIRTY_LOG")
        return s

    def _check_log_ids(self, id: int, as_id: int) -> None:
        _fit(32, id, as_id)
        _refuse_if(as_id >= self.address_spaces, errno.EINVAL, "AS_ID")
        _refuse_if(id >= self.user_mem_slots, errno.EINVAL, "SLOT_ID")

    def get_dirty_log(self, slot: int, as_id: int = 0) -> np.ndarray:
        self._check_log_ids(slot, as_id)
        s = self._logged_slot(slot, as_id)
        bits = self._dirty[as_id, slot]
        if not self._manual & MANUAL_PROTECT_ENABLE:
            self._dirty[as_id, slot] = 0
        return _words(bits, s.npages)

    def harvest_dirty(
        self, as_id: int = 0, *, clear: bool = True, start_gfn: int = 0, room: int | None = None
    ) -> np.ndarray:
        """`room` stands for the length of `out`."""
        _fit(32, as_id)
        _fit(64, start_gfn)
        _refuse_if(as_id >= self.address_spaces, errno.EINVAL, "AS_ID")
        ranges: list[list[int]] = []
        for slot, page in self._dirty_pages(as_id, start_gfn):
            if ranges and sum(ranges[-1]) == slot.base_gfn + page:
                ranges[-1][1] += 1
            elif len(ranges) == room:
                break
            else:
                ranges.append([slot.base_gfn + page, 1])
            if clear:
                self._dirty[as_id, slot.id] &= ~(1 << page)
        return np.array(ranges, np.uint64).reshape(-1, 2)

    def _dirty_pages(self, as_id: int, start_gfn: int) -> list[tuple[Slot, int]]:
        return [
            (slot, page)
            for slot in self.memslots(as_id)
            if (as_id, slot.id) in self._dirty
            for page in _bits(self._dirty[as_id, slot.id])
            if slot.base_gfn + page >= start_gfn
        ]

    def merge_dirty_log(self, slot: int, words: np.ndarray, as_id: int = 0) -> None:
        self._check_log_ids(slot, as_id)
        npages = self._logged_slot(slot, as_id).npages
        _refuse_if(len(words) != _nr_words(npages), errno.EINVAL, "BITMAP_SIZE")
        bits = int.from_bytes(np.asarray(words).astype("<u8").tobytes(), "little")
        self._dirty[as_id, slot] |= bits & _ones(npages)

    def _get_dirty_log_null(self, slot: int, as_id: int = 0) -> None:
        """KVM_GET_DIRTY_LOG with a NULL buffer: EFAULT, after the harvest."""
        self.get_dirty_log(slot, as_id)
        raise ModelError(errno.EFAULT, "NULL_BUFFER")

    def clear_dirty_log(
        self,
        slot: int,
        first_page: int,
        num_pages: int,
        bitmap: np.ndarray | None,
        as_id: int = 0,
    ) -> None:
        """A bitmap of None stands for a bad pointer."""
        _fit(64, first_page)
        _fit(32, num_pages)
        self._check_log_ids(slot, as_id)
        _refuse_if(first_page % 64, errno.EINVAL, "FIRST_PAGE")
        rest = self._logged_slot(slot, as_id).npages - first_page
        _refuse_if(rest < 0 or num_pages > rest, errno.EINVAL, "CLEAR_RANGE")
        _refuse_if(num_pages < rest and num_pages % 64, errno.EINVAL, "CLEAR_RANGE")
        _refuse_if(num_pages and bitmap is None, errno.EFAULT, "NULL_BUFFER")
        if bitmap is not None:
            wrong = len(bitmap) != _nr_words(num_pages)
            _refuse_if(wrong, errno.EINVAL, "BITMAP_SIZE")
            self._clear(as_id, slot, first_page, bitmap)

    def _clear(self, as_id: int, id: int, first_page: int, bitmap: np.ndarray) -> None:
        mask = int.from_bytes(np.asarray(bitmap).astype("<u8").tobytes(), "little")
        self._dirty[as_id, id] &= ~(mask << first_page)

    @property
    def manual_dirty_log_protect(self) -> int:
        return self._manual

    @manual_dirty_log_protect.setter
    def manual_dirty_log_protect(self, value: int) -> None:
        _refuse_if(value not in (0, 1, 3), errno.EINVAL, "MANUAL_PROTECT")
        self._manual = value


def _slot_of_row(row: np.void, as_id: int) -> Slot:
    fields = ("base_gfn", "npages", "userspace_addr", "flags")
    return Slot(int(row["id"]), as_id, *(int(row[field]) for field in fields))


def _is_open(fd: int) -> bool:
    """Whether the number is an open file, as the kernel's fget() decides: O_PATH does not count."""
    try:
        return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
    except (OSError, ValueError):
        return False


def _words(bits: int, npages: int) -> np.ndarray:
    raw = bits.to_bytes(_nr_words(npages) * 8, "little")
    return np.frombuffer(raw, "<u8").astype(np.uint64)


def _bits(word: int) -> list[int]:
    """The numbers of the bits that are set, ascending."""
    raw = word.to_bytes((word.bit_length() + 7) // 8, "little")
    bits: list[int] = np.flatnonzero(
        np.unpackbits(np.frombuffer(raw, "u1"), bitorder="little")
    ).tolist()
    return bits


def _refuse_if(condition: object, number: int, rule: str) -> None:
    if condition:
        raise ModelError(number, rule)


def _fit(bits: int, *numbers: int) -> None:
    for number in numbers:
        if not 0 <= number < 1 << bits:
            raise OverflowError(f"{number} is not in [0, 2^{bits})")


def _ones(n: int) -> int:
    return (1 << n) - 1


def _nr_words(npages: int) -> int:
    return (npages + 63) // 64


def _many(one, numbers: np.ndarray, out: np.ndarray | None, dtype: type) -> np.ndarray:
    numbers = np.asarray(numbers)
    out = np.empty(numbers.shape, dtype) if out is None else out
    for i in np.ndindex(numbers.shape):
        out[i] = one(int(numbers[i]))
    return out
