# SPDX-License-Identifier: MIT
"""Asks the machine's own kernel: the memory and dirty-log calls of /dev/kvm, named as in `VM`.

An engine that claims to behave as KVM does has to be compared with KVM; this is the other side of
that comparison.  No memory is mapped and no guest runs: these calls never touch the host addresses
they are given, so `KvmVM` changes slots and reads dirty logs but translates nothing.

Invariants
  K1  `_regions` is what the kernel holds: an entry changes only where a call returned 0, under
      `_lock`.  A dirty log is sized by it, so the kernel never writes beyond the array; for a slot
      that is not in it the kernel gets a NULL pointer.
  K2  no call is made that would build a slot of more than MAX_BUILT_PAGES.
  K3  `_shadows` holds every id whose state the kernel was not allowed to decide (K2, or a
      collision with such an id) and all ranges that it may occupy; what depends on one raises
      NotCompared.  A range of a shadow overlaps no entry of `_regions` that is not a shadow itself.
"""

import errno
import fcntl
import functools
import mmap
import os
import struct
import sys
import threading
from operator import index
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from ..errors import MemslotsError, from_errno
from . import ioctls
from .ioctls import MAX_NR_PAGES, MEM_GUEST_MEMFD, MEM_LOG_DIRTY_PAGES, MEM_READONLY, PAGE_SIZE

# With shadow paging a slot costs the kernel about 10 bytes a page: 160 MiB for this many pages,
# 20 GiB for MAX_NR_PAGES.
MAX_BUILT_PAGES = 1 << 24


class NotCompared(Exception):  # noqa: N818 - no error: nothing went wrong
    """The kernel must not be asked: it would use gigabytes, or the answer depends on such a slot.

    A change that raises it counts as one that may have been made: the state of its slot stays
    unknown until the slot is deleted.
    """


def available() -> str | None:
    """Returns None where `KvmVM` works, else the reason in words why it does not."""
    if sys.byteorder != "little" or mmap.PAGESIZE != PAGE_SIZE:
        return f"{ioctls.DEVICE}: needs a little-endian machine with pages of {PAGE_SIZE} bytes"
    try:
        version = ioctls.api_version()
        if version != ioctls.API_VERSION:
            return (
                f"{ioctls.DEVICE} speaks version {version} of the KVM API, not {ioctls.API_VERSION}"
            )
        KvmVM().close()
    except OSError as e:
        name = errno.errorcode.get(_number(e), "no errno")
        return f"{ioctls.DEVICE} is not usable: {name}, {os.strerror(_number(e))}"
    return None


class _Range(NamedTuple):
    gpa: int
    size: int

    def overlaps(self, other: "_Range") -> bool:
        return self.gpa < other.gpa + other.size and other.gpa < self.gpa + self.size


class KvmVM:
    """A VM of the running kernel, for its memory slots and dirty logs alone."""

    translates = False  # it has no lookups: KVM's translations show only in a running guest

    def __init__(self) -> None:
        self._fd = -1
        self._lock = threading.Lock()  # K1; and the argument buffers below are shared
        self._regions: dict[tuple[int, int], _Range] = {}  # (as_id, slot)
        self._shadows: dict[tuple[int, int], list[_Range]] = {}
        self._manual_dirty_log_protect = 0
        self._region = bytearray(ioctls.REGION.size)
        self._region2 = bytearray(ioctls.REGION2.size)
        self._dirty_log = bytearray(ioctls.DIRTY_LOG.size)
        self._clear_log = bytearray(ioctls.CLEAR_LOG.size)
        self._fd = ioctls.create_vm()
        self.user_mem_slots = self.check_extension("nr_memslots")
        self.address_spaces = max(1, self.check_extension("multi_address_space"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Gives the VM back to the kernel; closing twice is harmless."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # ---- what this kernel offers -----------------------------------------------------------------

    def check_extension(self, extension: str | int) -> int:
        """KVM_CHECK_EXTENSION, by number or by a name of ioctls.EXTENSIONS."""
        if isinstance(extension, str):
            if extension not in ioctls.EXTENSIONS:
                raise ValueError(
                    f"unknown extension {extension!r}; known: {', '.join(ioctls.EXTENSIONS)}"
                )
            extension = ioctls.EXTENSIONS[extension]
        if not 0 <= extension < 1 << 31:
            raise OverflowError(f"extension {extension} is not in [0, 2^31)")
        with self._lock:
            return fcntl.ioctl(self._open_fd(), ioctls.KVM_CHECK_EXTENSION, extension)

    @property
    def gpa_bits(self) -> int:
        """A slot must end at or below 2^gpa_bits."""
        return _gpa_bits()

    @property
    def hva_end_max(self) -> int:
        """The highest userspace_addr + memory_size that is accepted."""
        return _hva_end_max()

    # ---- slots -----------------------------------------------------------------------------------

    def set_user_memory_region(
        self,
        slot: int,
        *,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int = 0,
        flags: int = 0,
        as_id: int = 0,
        guest_memfd: int | None = None,
        guest_memfd_offset: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION; KVM_SET_USER_MEMORY_REGION2 where a guest_memfd is given.

        A guest_memfd of -1 is a descriptor that is none.
        """
        given = (slot, as_id, flags, guest_phys_addr, memory_size, userspace_addr)
        region = tuple(map(index, given))  # a numpy number would wrap in the sums below
        with self._lock:
            fd = self._open_fd()
            try:
                if guest_memfd is None:
                    request, argument = ioctls.KVM_SET_USER_MEMORY_REGION, self._region
                    ioctls.REGION.pack_into(argument, 0, *region)
                else:
                    request, argument = ioctls.KVM_SET_USER_MEMORY_REGION2, self._region2
                    ioctls.REGION2.pack_into(argument, 0, *region, guest_memfd_offset, guest_memfd)
            except struct.error as e:
                raise _misfit(e) from None
            if self._shadows or memory_size > MAX_BUILT_PAGES * PAGE_SIZE:
                self._refuse_what_cannot_be_asked(*region)
            try:
                fcntl.ioctl(fd, request, argument, True)
            except OSError as e:
                raise _refused(_number(e), *region) from None
            self._note(*region)

    def _note(self, slot: int, as_id: int, flags: int, gpa: int, size: int, hva: int) -> None:
        if size:
            self._regions[as_id, slot] = _Range(gpa, size)
        else:
            del self._regions[as_id, slot]

    # ---- slots that are too large to ask for -----------------------------------------------------

    def _refuse_what_cannot_be_asked(
        self, slot: int, as_id: int, flags: int, gpa: int, size: int, hva: int
    ) -> None:
        """Raises NotCompared unless the kernel's answer is sure to be true and cheap (K2, K3)."""
        key, new = (as_id, slot), _Range(gpa, size)
        if not self._may_pass_static_checks(slot, as_id, flags, gpa, size, hva):
            return
        tainted = key in self._shadows or self._depends_on_shadow(key, new)
        if not tainted and not self._would_be_built(key, new):
            return
        if size:
            was = [self._regions[key]] if key in self._regions else []
            self._shadows.setdefault(key, was).append(new)
        elif flags <= MEM_LOG_DIRTY_PAGES | MEM_READONLY:  # with others a delete may be refused
            self._forget(key)
        raise NotCompared(
            f"slot {slot} [{gpa:#x}, {gpa + size:#x}) in address space {as_id} is, or meets, "
            f"one of more than {MAX_BUILT_PAGES} pages, which the kernel is not asked to build"
        )

    def _may_pass_static_checks(
        self, slot: int, as_id: int, flags: int, gpa: int, size: int, hva: int
    ) -> bool:
        """False only where KVM refuses with EINVAL whatever slots there are."""
        return not (
            (gpa | size | hva) % PAGE_SIZE
            or flags >= MEM_GUEST_MEMFD << 1
            or slot >= self.user_mem_slots
            or as_id >= self.address_spaces
            or gpa + size >= 1 << 64
            or hva + size > self.hva_end_max
            or size > MAX_NR_PAGES * PAGE_SIZE
        )

    def _depends_on_shadow(self, key: tuple[int, int], new: _Range) -> bool:
        """Would a shadow decide?  Not over another size (EINVAL) or a known slot (EEXIST)."""
        known = self._regions.get(key)
        if not new.size or (known and known.size != new.size) or self._meets_known_slot(key, new):
            return False
        return any(
            as_id == key[0] and new.overlaps(r)
            for (as_id, _), ranges in self._shadows.items()
            for r in ranges
        )

    def _would_be_built(self, key: tuple[int, int], new: _Range) -> bool:
        too_large = new.size > MAX_BUILT_PAGES * PAGE_SIZE
        return too_large and key not in self._regions and not self._meets_known_slot(key, new)

    def _meets_known_slot(self, key: tuple[int, int], new: _Range) -> bool:
        return any(
            k != key and k[0] == key[0] and k not in self._shadows and new.overlaps(r)
            for k, r in self._regions.items()
        )

    def _forget(self, key: tuple[int, int]) -> None:
        """A shadow is deleted, and with it what the kernel held under its id before."""
        self._shadows.pop(key)
        if self._regions.pop(key, None):
            ioctls.REGION.pack_into(self._region, 0, key[1], key[0], 0, 0, 0, 0)
            fcntl.ioctl(self._fd, ioctls.KVM_SET_USER_MEMORY_REGION, self._region, True)

    # ---- dirty logs ------------------------------------------------------------------------------

    def get_dirty_log(self, slot: int, as_id: int = 0) -> np.ndarray:
        """KVM_GET_DIRTY_LOG: ceil(npages / 64) words of uint64, the caller's own."""
        slot, as_id = index(slot), index(as_id)
        with self._lock:
            npages = self._regions.get((as_id, slot), _Range(0, 0)).size // PAGE_SIZE
            words = np.zeros(_nr_words(npages), np.uint64)
            self._ask_dirty_log(slot, as_id, words.ctypes.data if npages else 0)
            return words

    def _get_dirty_log_null(self, slot: int, as_id: int = 0) -> None:
        """KVM_GET_DIRTY_LOG with a NULL bitmap: EFAULT, and a log that is not manual is lost."""
        with self._lock:
            self._ask_dirty_log(index(slot), index(as_id), 0)

    def _ask_dirty_log(self, slot: int, as_id: int, address: int) -> None:
        fd = self._open_fd()
        self._refuse_shadow(slot, as_id)
        try:
            ioctls.DIRTY_LOG.pack_into(self._dirty_log, 0, slot, as_id, 0, address)
            fcntl.ioctl(fd, ioctls.KVM_GET_DIRTY_LOG, self._dirty_log, True)
        except struct.error as e:
            raise _misfit(e) from None
        except OSError as e:
            raise _log_error(_number(e), "KVM_GET_DIRTY_LOG", slot, as_id) from None

    def clear_dirty_log(
        self, slot: int, first_page: int, num_pages: int, bitmap: np.ndarray | None, as_id: int = 0
    ) -> None:
        """KVM_CLEAR_DIRTY_LOG; a bitmap of None is a bad pointer.

        A bitmap that has not ceil(num_pages / 64) words is replaced by a NULL pointer, so that
        the kernel makes its own checks first and reads nothing; where they pass, the size is the
        error.
        """
        words = _as_words(bitmap)
        slot, as_id, num_pages = index(slot), index(as_id), index(num_pages)
        with self._lock:
            fits = words is not None and words.size == _nr_words(num_pages)
            address = words.ctypes.data if words is not None and fits and words.size else 0
            error = self._ask_clear(slot, as_id, first_page, num_pages, address)
        if words is not None and not fits and error in (0, errno.EFAULT):
            raise from_errno(
                errno.EINVAL,
                f"bitmap has {words.size} words, {_nr_words(num_pages)} are needed",
                slot=slot,
            )
        if error:
            what = f"KVM_CLEAR_DIRTY_LOG of {num_pages} pages from page {first_page}"
            raise _log_error(error, what, slot, as_id)

    def _ask_clear(
        self, slot: int, as_id: int, first_page: int, num_pages: int, address: int
    ) -> int:
        fd = self._open_fd()
        self._refuse_shadow(slot, as_id)
        try:
            page = index(first_page)
            ioctls.CLEAR_LOG.pack_into(self._clear_log, 0, slot, as_id, num_pages, page, address)
            fcntl.ioctl(fd, ioctls.KVM_CLEAR_DIRTY_LOG, self._clear_log, True)
        except struct.error as e:
            raise _misfit(e) from None
        except OSError as e:
            return _number(e)
        return 0

    def _refuse_shadow(self, slot: int, as_id: int) -> None:
        if (as_id, slot) in self._shadows:
            raise NotCompared(
                f"slot {slot} in address space {as_id}: the kernel was not asked to build it"
            )

    @property
    def manual_dirty_log_protect(self) -> int:
        """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: bit 0 is ENABLE, bit 1 INITIALLY_SET."""
        return self._manual_dirty_log_protect

    @manual_dirty_log_protect.setter
    def manual_dirty_log_protect(self, value: int) -> None:
        value = index(value)
        with self._lock:
            self._enable_cap(ioctls.EXTENSIONS["manual_dirty_log_protect2"], value)
            self._manual_dirty_log_protect = value

    def _enable_cap(self, cap: int, value: int) -> None:
        fd = self._open_fd()
        try:
            fcntl.ioctl(fd, ioctls.KVM_ENABLE_CAP, ioctls.ENABLE_CAP.pack(cap, 0, value))
        except struct.error as e:
            raise _misfit(e) from None
        except OSError as e:
            message = f"KVM_ENABLE_CAP {cap} with {value:#x}: {os.strerror(_number(e))}"
            raise from_errno(_number(e), message) from None

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise from_errno(errno.EBADF, "the VM is closed")
        return self._fd


# ---- helpers -------------------------------------------------------------------------------------


@functools.cache
def _gpa_bits() -> int:
    """The host's physical address width, 52 with shadow paging: no ioctl tells, so it is tried."""
    with KvmVM() as vm:
        return next(b for b in range(63, 12, -1) if _accepts(vm, (1 << b) - PAGE_SIZE, 0))


@functools.cache
def _hva_end_max() -> int:
    """TASK_SIZE_MAX, which depends on the levels of the host's page tables, by bisection."""
    low, high = 1, 1 << 52  # in pages: an end that is accepted, and one that is not
    with KvmVM() as vm:
        while low + 1 < high:
            middle = (low + high) // 2
            if _accepts(vm, 0, (middle - 1) * PAGE_SIZE):
                low = middle
            else:
                high = middle
    return low * PAGE_SIZE


def _accepts(vm: KvmVM, gpa: int, hva: int) -> bool:
    try:
        vm.set_user_memory_region(0, guest_phys_addr=gpa, memory_size=PAGE_SIZE, userspace_addr=hva)
    except MemslotsError as e:
        if e.errno != errno.EINVAL:
            raise
        return False
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0)
    return True


def _nr_words(npages: int) -> int:
    return (npages + 63) // 64


def _as_words(bitmap: np.ndarray | None) -> np.ndarray | None:
    if bitmap is None:
        return None
    words = np.ascontiguousarray(bitmap)
    if words.dtype != np.uint64:
        raise TypeError(f"bitmap must be an array of uint64, not of {words.dtype}")
    return words


def _number(error: OSError) -> int:
    return error.errno or 0


def _misfit(error: struct.error) -> OverflowError:
    return OverflowError(f"a number does not fit the kernel's field: {error}")


def _refused(
    number: int, slot: int, as_id: int, flags: int, gpa: int, size: int, hva: int
) -> MemslotsError:
    message = (
        f"KVM refuses slot {slot} [{gpa:#x}, {gpa + size:#x}) at {hva:#x}, flags {flags:#x}, "
        f"in address space {as_id}: {os.strerror(number)}"
    )
    rule = "GMEM_FD" if number == errno.EBADF else None  # the VM's own descriptor is open
    return from_errno(number, message, slot=slot, rule=rule)


def _log_error(number: int, what: str, slot: int, as_id: int) -> MemslotsError:
    return from_errno(
        number, f"{what}, slot {slot} in address space {as_id}: {os.strerror(number)}", slot=slot
    )
