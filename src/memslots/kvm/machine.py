# SPDX-License-Identifier: MIT
"""A VM of this machine's kernel that can run a guest.  (KvmVM, in vm.py, has slots only, for comparisons.)

Invariants
  V1  `_regions` holds the slots of the kernel, with the buffers that they map.  An entry changes only after an ioctl
      that returned 0, under `_lock`.
  V2  The buffer of a region is held until the kernel has deleted the region, or until the descriptors of the VM and of
      all its vCPUs are closed.  So no guest can reach memory that was freed.
  V3  The array for a dirty log has the size of the region in `_regions`, so the kernel never writes beyond it.  For a
      slot that is not in `_regions` the kernel gets a NULL pointer.
"""

from __future__ import annotations

import errno
import struct
import weakref
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np
import numpy.typing as npt

from .._memslots import Mapping, bitmap_words
from ..constants import PAGE_SIZE
from ..errors import from_errno
from . import _ioctl, ioctls
from .handle import Handle, extension_number
from .refusals import errno_of, misfit, nr_words, refused_log, refused_region
from .vcpu import Vcpu

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Region(NamedTuple):
    """A memory region of a Vm, as `set_user_memory_region` made it."""

    slot: int
    as_id: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    flags: int


class _Held(NamedTuple):
    region: Region
    buffer: Any  # keeps the memory alive (V2); None for a raw address


class Vm(Handle):
    """A VM of this machine's kernel.  `Device.create_vm()` makes it.

    A region that maps a buffer keeps it alive.  Change regions only through this object: an ioctl that another library
    makes on `fileno()` does not reach `regions`.

    Every call may come from any thread.  A VM whose vCPU is in `run()` cannot be closed: kick the vCPU first."""

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        self._run_size = run_size
        self._regions: dict[tuple[int, int], _Held] = {}  # (as_id, slot)
        self._vcpus: weakref.WeakSet[Vcpu] = weakref.WeakSet()
        self._next_vcpu = 0
        self._manual_dirty_log_protect = 0

    def __del__(self) -> None:
        self._release()  # no Vcpu is left: each has a reference to its Vm

    def close(self) -> None:
        """Closes the VM and its vCPUs, and releases the buffers of its regions.  A second call does nothing.

        VcpuBusyError: a vCPU is in run().  Nothing is closed then."""
        with self._lock_of_process():
            vcpus = list(self._vcpus)
            for n, vcpu in enumerate(vcpus):
                try:
                    vcpu._claim_for_close()
                except BaseException:
                    for claimed in vcpus[:n]:
                        claimed._unclaim()
                    raise
            for vcpu in vcpus:
                vcpu._release()
            self._release()
            self._regions.clear()  # V2: after all descriptors

    # ---- capabilities ----------------------------------------------------------------------------

    def check_extension(self, extension: str | SupportsIndex) -> int:
        """KVM_CHECK_EXTENSION for this VM, as `Device.check_extension()`."""
        number = extension_number(extension)
        return self._call("KVM_CHECK_EXTENSION", number)

    @property
    def capabilities(self) -> dict[str, int]:
        """The result of KVM_CHECK_EXTENSION for each name of `memslots.kvm.ioctls.EXTENSIONS`."""
        return {name: self.check_extension(name) for name in ioctls.EXTENSIONS}

    def enable_cap(self, extension: str | SupportsIndex, *args: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP with at most four arguments."""
        if len(args) > 4:
            raise TypeError(f"KVM_ENABLE_CAP has at most 4 arguments, not {len(args)}")
        words = [*map(index, args), 0, 0, 0, 0][:4]
        try:
            cap = ioctls.ENABLE_CAP_ARGS.pack(extension_number(extension), flags, *words)
        except struct.error as e:
            raise misfit(e) from None
        self._call("KVM_ENABLE_CAP", bytearray(cap))

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: interrupt controllers in the kernel.  Call it before the first `create_vcpu()`."""
        self._call("KVM_CREATE_IRQCHIP")

    def set_tss_addr(self, gpa: SupportsIndex) -> None:
        """KVM_SET_TSS_ADDR: three guest pages below 4 GiB that Intel CPUs need for real mode."""
        self._call("KVM_SET_TSS_ADDR", index(gpa))

    def set_identity_map_addr(self, gpa: SupportsIndex) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one guest page below 4 GiB, as `set_tss_addr()`; before the first vCPU."""
        try:
            argument = bytearray(index(gpa).to_bytes(8, "little"))
        except OverflowError:
            raise OverflowError(f"gpa {gpa} does not fit 64 bits") from None
        self._call("KVM_SET_IDENTITY_MAP_ADDR", argument)

    def create_vcpu(self, id: SupportsIndex | None = None) -> Vcpu:
        """KVM_CREATE_VCPU.  Without an id it is one more than that of the last vCPU.

        NotSupportedError: this is no x86-64 machine, or the kernel is older than 4.11 (KVM_CAP_IMMEDIATE_EXIT)."""
        with self._using():
            number = self._next_vcpu if id is None else index(id)
            vcpu = Vcpu(self, number, self._run_size)
            self._vcpus.add(vcpu)
            self._next_vcpu = number + 1
            return vcpu

    def _call(self, name: str, argument: SupportsIndex | Buffer = 0) -> int:
        return self._ioctl(getattr(ioctls, name), argument, name)

    # ---- regions ---------------------------------------------------------------------------------

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions, by address space and guest address.  KVM has no ioctl that lists them."""
        with self._lock_of_process():
            found = [held.region for held in self._regions.values()]
        return tuple(sorted(found, key=lambda r: (r.as_id, r.guest_phys_addr)))

    def set_user_memory_region(
        self,
        slot: SupportsIndex,
        *,
        guest_phys_addr: SupportsIndex,
        memory_size: SupportsIndex | None = None,
        userspace_addr: SupportsIndex | None = None,
        flags: SupportsIndex = 0,
        as_id: SupportsIndex = 0,
        memory: Buffer | Mapping | None = None,
        guest_memfd: SupportsIndex | None = None,
        guest_memfd_offset: SupportsIndex = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION, or KVM_SET_USER_MEMORY_REGION2 if a guest_memfd is given.

        memory: a page-aligned buffer, such as a `memslots.Memory` or a part of its memoryview, or a `memslots.Mapping`.
        The region keeps it alive.  memory_size is its length if it is not given, and userspace_addr is its address.
        userspace_addr: without memory, the address of host memory that the caller keeps mapped.
        memory_size: 0 deletes the region.

        The exceptions are those of `memslots.VM.set_user_memory_region`, with the errno of the kernel."""
        buffer, hva, size = _host_memory(memory, userspace_addr, memory_size)
        new = Region(*map(index, (slot, as_id, guest_phys_addr, size, hva, flags)))
        given = (new.slot, new.as_id, new.flags, *new[2:5])  # in the order of the structure
        try:
            if guest_memfd is None:
                name, argument = "KVM_SET_USER_MEMORY_REGION", ioctls.REGION.pack(*given)
            else:
                gmem = (index(guest_memfd_offset), index(guest_memfd))
                name, argument = "KVM_SET_USER_MEMORY_REGION2", ioctls.REGION2.pack(*given, *gmem)
        except struct.error as e:
            raise misfit(e) from None
        with self._using() as fd:
            try:
                _ioctl.call(fd, getattr(ioctls, name), bytearray(argument))
            except OSError as e:
                raise refused_region(errno_of(e), *given) from None
            self._note(new, buffer)

    def _note(self, new: Region, buffer: Any) -> None:
        """Notes a change that the kernel has made (V1).  A MOVE or a change of flags keeps the buffer."""
        key = (new.as_id, new.slot)
        if not new.memory_size:
            del self._regions[key]
        else:
            old = self._regions.get(key)
            self._regions[key] = _Held(new, buffer if buffer is not None else old and old.buffer)

    # ---- dirty logs ------------------------------------------------------------------------------

    def get_dirty_log(
        self, slot: SupportsIndex, as_id: SupportsIndex = 0
    ) -> npt.NDArray[np.uint64]:
        """KVM_GET_DIRTY_LOG: a new array of ceil(npages / 64) words.  A log that is not manual is cleared."""
        slot, as_id = index(slot), index(as_id)
        with self._using() as fd:
            held = self._regions.get((as_id, slot))
            npages = held.region.memory_size // PAGE_SIZE if held else 0
            words = np.zeros(nr_words(npages), np.uint64)
            address = words.ctypes.data if npages else 0
            self._log_ioctl(fd, "KVM_GET_DIRTY_LOG", ioctls.DIRTY_LOG, slot, as_id, 0, address)
            return words

    def clear_dirty_log(
        self,
        slot: SupportsIndex,
        first_page: SupportsIndex,
        num_pages: SupportsIndex,
        bitmap: npt.NDArray[np.uint64],
        as_id: SupportsIndex = 0,
    ) -> None:
        """KVM_CLEAR_DIRTY_LOG of the pages whose bits are set in the bitmap, which has ceil(num_pages / 64) words."""
        words = bitmap_words(bitmap, "bitmap")
        slot, as_id, count = index(slot), index(as_id), index(num_pages)
        if words.size != nr_words(count):
            wanted = f"bitmap has {words.size} words, {nr_words(count)} are needed"
            raise from_errno(errno.EINVAL, wanted, slot=slot)
        with self._using() as fd:
            self._log_ioctl(
                fd, "KVM_CLEAR_DIRTY_LOG", ioctls.CLEAR_LOG,
                slot, as_id, count, index(first_page), words.ctypes.data,
            )  # fmt: skip

    @staticmethod
    def _log_ioctl(
        fd: int, name: str, layout: struct.Struct, slot: int, as_id: int, *rest: int
    ) -> None:
        try:
            _ioctl.call(fd, getattr(ioctls, name), bytearray(layout.pack(slot, as_id, *rest)))
        except struct.error as e:
            raise misfit(e) from None
        except OSError as e:
            raise refused_log(errno_of(e), name, slot, as_id) from None

    @property
    def manual_dirty_log_protect(self) -> int:
        """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: bit 0 is ENABLE, bit 1 INITIALLY_SET."""
        return self._manual_dirty_log_protect

    @manual_dirty_log_protect.setter
    def manual_dirty_log_protect(self, value: SupportsIndex) -> None:
        with self._using():
            self.enable_cap("manual_dirty_log_protect2", index(value))
            self._manual_dirty_log_protect = index(value)


def _host_memory(
    memory: Buffer | Mapping | None,
    userspace_addr: SupportsIndex | None,
    memory_size: SupportsIndex | None,
) -> tuple[Any, int, int]:
    """The object that keeps the memory alive, its address, and the size of the region."""
    if memory is None:
        if memory_size is None:
            raise TypeError("memory_size is needed where no memory is given")
        return None, index(userspace_addr or 0), index(memory_size)
    if userspace_addr is not None:
        raise TypeError("give memory or userspace_addr, not both")
    view = memory.view() if isinstance(memory, Mapping) else memoryview(memory)
    buffer = np.frombuffer(view, np.uint8)
    size = buffer.nbytes if memory_size is None else index(memory_size)
    if size > buffer.nbytes:
        raise ValueError(
            f"memory_size {size:#x} is more than the {buffer.nbytes:#x} bytes of memory"
        )
    return buffer, int(buffer.ctypes.data), size
