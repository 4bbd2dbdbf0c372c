# SPDX-License-Identifier: MIT
"""The exceptions for calls that the kernel refuses.  The errno is the kernel's; the class is that of the engine."""

import errno
import os
import struct

from ..errors import MemslotsError, from_errno


def refused_region(
    number: int, slot: int, as_id: int, flags: int, gpa: int, size: int, hva: int
) -> MemslotsError:
    message = (
        f"KVM refuses slot {slot} [{gpa:#x}, {gpa + size:#x}) at {hva:#x}, flags {flags:#x}, "
        f"in address space {as_id}: {os.strerror(number)}"
    )
    # The VM's own descriptor is open, so EBADF is about that of the guest_memfd.
    rule = "GMEM_FD" if number == errno.EBADF else None
    return from_errno(number, message, slot=slot, rule=rule)


def refused_log(number: int, what: str, slot: int, as_id: int) -> MemslotsError:
    return from_errno(
        number, f"{what}, slot {slot} in address space {as_id}: {os.strerror(number)}", slot=slot
    )


def misfit(error: struct.error) -> OverflowError:
    return OverflowError(f"a number does not fit the kernel's field: {error}")


def errno_of(error: OSError) -> int:
    return error.errno or 0


def nr_words(npages: int) -> int:
    """The number of 64-bit words in a dirty log."""
    return (npages + 63) // 64
