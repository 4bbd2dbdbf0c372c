# SPDX-License-Identifier: MIT
"""The slots and dirty logs of this machine's kernel, through the ioctls of /dev/kvm; methods have the names of `VM`.

Tests compare the engine with this class, because the engine must behave as KVM does.  No memory is mapped and no guest
runs.  The kernel does not access the host addresses of these slots.  `KvmVM` therefore changes slots and reads dirty
logs, but translates nothing.

Invariants
  K1  `_regions` holds the slots of the kernel.  An entry changes only after an ioctl that returned 0, under `_lock`.
      The size of a dirty log comes from `_regions`, so the kernel never writes beyond the array.  For a slot that is
      not in `_regions` the kernel gets a NULL pointer.
  K2  No ioctl is made that would build a slot of more than MAX_BUILT_PAGES.
  K3  A shadow is an id whose change was not passed to the kernel, because of K2 or because it depends on another
      shadow.  `_shadows` holds every shadow with all ranges that it may occupy.  A call that depends on a shadow
      raises NotCompared.  A range of a shadow overlaps no entry of `_regions`, except entries of shadows.
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
from typing import NamedTuple

import numpy as np

from .._memslots import bitmap_words
from ..constants import MEM_MAX_NR_PAGES, PAGE_SIZE, MemFlag
from ..errors import MemslotsError, from_errno
from . import ioctls
from .closing import Closing
from .refusals import errno_of, misfit, nr_words, refused_log, refused_region

# With shadow paging a slot costs the kernel about 10 bytes for each page: 160 MiB for MAX_BUILT_PAGES,
# 20 GiB for MEM_MAX_NR_PAGES.
MAX_BUILT_PAGES = 1 << 24


class NotCompared(Exception):  # noqa: N818 - not an error
    """The call was not passed to the kernel.  It would use gigabytes, or it depends on such a slot.

    After a change that raises NotCompared, the state of its slot is unknown until the slot is deleted.
    """


def available() -> str | None:
    """Return None if `KvmVM` works, otherwise the reason in words."""
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
        name = errno.errorcode.get(errno_of(e), "no errno")
        return f"{ioctls.DEVICE} is not usable: {name}, {os.strerror(errno_of(e))}"
    return None


class _Range(NamedTuple):
    gpa: int
    size: int

    def overlaps(self, other: "_Range") -> bool:
        return self.gpa < other.gpa + other.size and other.gpa < self.gpa + self.size


class KvmVM(Closing):
    """A VM of the running kernel, with memory slots and dirty logs only."""

    translates = False  # no lookups: KVM translates only for a running guest

    def __init__(self) -> None:
        self._fd = -1
        self._lock = threading.Lock()  # protects _regions (K1) and the argument buffers below
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

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the VM.  Closing it again does nothing."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # ---- limits and extensions of this kernel ----------------------------------------------------

    def check_extension(self, extension: str | int) -> int:
        """Call KVM_CHECK_EXTENSION with a number or a name of ioctls.EXTENSIONS."""
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
        """The highest userspace_addr + memory_size that the kernel accepts."""
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
        """Call KVM_SET_USER_MEMORY_REGION, or KVM_SET_USER_MEMORY_REGION2 if a guest_memfd is given.

        A guest_memfd of -1 is passed to the kernel as an invalid descriptor.
        """
        given = (slot, as_id, flags, guest_phys_addr, memory_size, userspace_addr)
        region = tuple(map(index, given))  # sums of numpy numbers would wrap
        with self._lock:
            self._open_fd()
            try:
                if guest_memfd is None:
                    request, argument = ioctls.KVM_SET_USER_MEMORY_REGION, self._region
                    ioctls.REGION.pack_into(argument, 0, *region)
                else:
                    request, argument = ioctls.KVM_SET_USER_MEMORY_REGION2, self._region2
                    ioctls.REGION2.pack_into(argument, 0, *region, guest_memfd_offset, guest_memfd)
            except struct.error as e:
                raise misfit(e) from None
            if self._shadows or memory_size > MAX_BUILT_PAGES * PAGE_SIZE:
                self._refuse_not_comparable(*region)
            self._change(request, argument, *region)

    def _change(
        self, request: int, argument: bytearray,
        slot: int, as_id: int, flags: int, gpa: int, size: int, hva: int,
    ) -> None:  # fmt: skip
        """Make the ioctl, and after a success note the slot in `_regions` (K1)."""
        try:
            fcntl.ioctl(self._open_fd(), request, argument, True)
        except OSError as e:
            raise refused_region(errno_of(e), slot, as_id, flags, gpa, size, hva) from None
        if size:
            self._regions[as_id, slot] = _Range(gpa, size)
        else:
            del self._regions[as_id, slot]

    # ---- slots that are too large for the kernel -------------------------------------------------

    def _refuse_not_comparable(
        self, slot: int, as_id: int, flags: int, gpa: int, size: int, hva: int
    ) -> None:
        """Raise NotCompared if the call would break K2 or depends on a shadow (K3)."""
        key, new = (as_id, slot), _Range(gpa, size)
        if not self._may_pass_static_checks(slot, as_id, flags, gpa, size, hva):
            return
        tainted = key in self._shadows or self._depends_on_shadow(key, new)
        if not tainted and not self._would_be_built(key, new):
            return
        if size:
            was = [self._regions[key]] if key in self._regions else []
            self._shadows.setdefault(key, was).append(new)
        elif flags <= MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY:
            # With other flags KVM may refuse a delete.
            self._delete_shadow(slot, as_id)
        raise NotCompared(
            f"slot {slot} [{gpa:#x}, {gpa + size:#x}) in address space {as_id} is, or meets, "
            f"one of more than {MAX_BUILT_PAGES} pages, which is not passed to the kernel"
        )

    def _may_pass_static_checks(
        self, slot: int, as_id: int, flags: int, gpa: int, size: int, hva: int
    ) -> bool:
        """False only if KVM refuses the call with EINVAL for any set of slots."""
        return not (
            (gpa | size | hva) % PAGE_SIZE
            or flags >= MemFlag.GUEST_MEMFD << 1
            or slot >= self.user_mem_slots
            or as_id >= self.address_spaces
            or gpa + size >= 1 << 64
            or hva + size > self.hva_end_max
            or size > MEM_MAX_NR_PAGES * PAGE_SIZE
        )

    def _depends_on_shadow(self, key: tuple[int, int], new: _Range) -> bool:
        """Whether the result depends on a shadow.  Not if another size (EINVAL) or a known slot (EEXIST) decides."""
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

    def _delete_shadow(self, slot: int, as_id: int) -> None:
        """Delete the kernel's slot of the same id if there is one, and then the shadow."""
        if (as_id, slot) in self._regions:
            region = (slot, as_id, 0, 0, 0, 0)
            ioctls.REGION.pack_into(self._region, 0, *region)
            self._change(ioctls.KVM_SET_USER_MEMORY_REGION, self._region, *region)
        del self._shadows[as_id, slot]

    # ---- dirty logs ------------------------------------------------------------------------------

    def get_dirty_log(self, slot: int, as_id: int = 0) -> np.ndarray:
        """Call KVM_GET_DIRTY_LOG.  Return a new array of ceil(npages / 64) words of uint64."""
        slot, as_id = index(slot), index(as_id)
        with self._lock:
            npages = self._regions.get((as_id, slot), _Range(0, 0)).size // PAGE_SIZE
            words = np.zeros(nr_words(npages), np.uint64)
            self._ioctl_get_dirty_log(slot, as_id, words.ctypes.data if npages else 0)
            return words

    def _get_dirty_log_null(self, slot: int, as_id: int = 0) -> None:
        """Call KVM_GET_DIRTY_LOG with a NULL bitmap.  It fails with EFAULT, and a log that is not manual is lost."""
        with self._lock:
            self._ioctl_get_dirty_log(index(slot), index(as_id), 0)

    def _ioctl_get_dirty_log(self, slot: int, as_id: int, address: int) -> None:
        fd = self._open_fd()
        self._refuse_shadow(slot, as_id)
        try:
            ioctls.DIRTY_LOG.pack_into(self._dirty_log, 0, slot, as_id, 0, address)
            fcntl.ioctl(fd, ioctls.KVM_GET_DIRTY_LOG, self._dirty_log, True)
        except struct.error as e:
            raise misfit(e) from None
        except OSError as e:
            raise refused_log(errno_of(e), "KVM_GET_DIRTY_LOG", slot, as_id) from None

    def clear_dirty_log(
        self, slot: int, first_page: int, num_pages: int, bitmap: np.ndarray | None, as_id: int = 0
    ) -> None:
        """Call KVM_CLEAR_DIRTY_LOG.  A bitmap of None is passed as a NULL pointer.

        If the bitmap does not have ceil(num_pages / 64) words, the kernel gets a NULL pointer too.  It then makes its
        own checks and reads nothing.  If these checks pass, the call fails because of the size.
        """
        words = None if bitmap is None else bitmap_words(bitmap, "bitmap")
        slot, as_id, num_pages = index(slot), index(as_id), index(num_pages)
        with self._lock:
            fits = words is not None and words.size == nr_words(num_pages)
            address = words.ctypes.data if words is not None and fits and words.size else 0
            error = self._ioctl_clear_dirty_log(slot, as_id, first_page, num_pages, address)
        if words is not None and not fits and error in (0, errno.EFAULT):
            raise from_errno(
                errno.EINVAL,
                f"bitmap has {words.size} words, {nr_words(num_pages)} are needed",
                slot=slot,
            )
        if error:
            what = f"KVM_CLEAR_DIRTY_LOG of {num_pages} pages from page {first_page}"
            raise refused_log(error, what, slot, as_id)

    def _ioctl_clear_dirty_log(
        self, slot: int, as_id: int, first_page: int, num_pages: int, address: int
    ) -> int:
        fd = self._open_fd()
        self._refuse_shadow(slot, as_id)
        try:
            page = index(first_page)
            ioctls.CLEAR_LOG.pack_into(self._clear_log, 0, slot, as_id, num_pages, page, address)
            fcntl.ioctl(fd, ioctls.KVM_CLEAR_DIRTY_LOG, self._clear_log, True)
        except struct.error as e:
            raise misfit(e) from None
        except OSError as e:
            return errno_of(e)
        return 0

    def _refuse_shadow(self, slot: int, as_id: int) -> None:
        if (as_id, slot) in self._shadows:
            raise NotCompared(
                f"slot {slot} in address space {as_id}: it was not passed to the kernel"
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
            raise misfit(e) from None
        except OSError as e:
            message = f"KVM_ENABLE_CAP {cap} with {value:#x}: {os.strerror(errno_of(e))}"
            raise from_errno(errno_of(e), message) from None

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise from_errno(errno.EBADF, "the VM is closed")
        return self._fd


# ---- helpers -------------------------------------------------------------------------------------


@functools.cache
def _gpa_bits() -> int:
    """Return the host's physical address width, or 52 with shadow paging.  No ioctl returns it, so try all widths."""
    with KvmVM() as vm:
        return next(b for b in range(63, 12, -1) if _accepts(vm, (1 << b) - PAGE_SIZE, 0))


@functools.cache
def _hva_end_max() -> int:
    """Find TASK_SIZE_MAX by bisection.  It depends on the levels of the host's page tables."""
    low, high = 1, 1 << 52  # in pages; the kernel accepts an end at low, and refuses one at high
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
