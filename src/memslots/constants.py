# SPDX-License-Identifier: MIT
"""KVM's constants in the interface of memslots, and the layout of a slot in numpy arrays."""

from __future__ import annotations

import enum

import numpy as np

__all__ = [
    "DIRTY_LOG_INITIALLY_SET",
    "DIRTY_LOG_MANUAL_PROTECT_ENABLE",
    "HVA_ERR_BAD",
    "HVA_ERR_MIN",
    "HVA_ERR_RO_BAD",
    "MEMSLOT_DTYPE",
    "MEM_MAX_NR_PAGES",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "MemFlag",
]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

#: The error values that calls such as gfn_to_hva_many() return in place of an address: BAD in a hole or an INVALID
#: slot, RO_BAD for writing to a READONLY slot.  Every value of HVA_ERR_MIN or more is an error value.
HVA_ERR_BAD = 2**64 - 8192
HVA_ERR_RO_BAD = 2**64 - 4096
HVA_ERR_MIN = HVA_ERR_BAD

#: The most pages that one slot can have (KVM_MEM_MAX_NR_PAGES).
MEM_MAX_NR_PAGES = 2**31 - 1

#: Bits of ``VM.manual_dirty_log_protect`` (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).
DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1
DIRTY_LOG_INITIALLY_SET = 2


class MemFlag(enum.IntFlag):
    """The flags of a slot: KVM_MEM_* from the user, and INVALID for a slot that is being deleted or moved."""

    LOG_DIRTY_PAGES = 1 << 0
    READONLY = 1 << 1
    GUEST_MEMFD = 1 << 2
    INVALID = 1 << 16


#: One slot in an array: the layout of ``struct ms_memslot``, 40 bytes.  base_gfn and npages count pages, userspace_addr
#: is in bytes.
MEMSLOT_DTYPE = np.dtype(
    {
        "names": ["base_gfn", "npages", "userspace_addr", "id", "as_id", "flags"],
        "formats": ["u8", "u8", "u8", "u4", "u4", "u4"],
        "offsets": [0, 8, 16, 24, 28, 32],
        "itemsize": 40,
    }
)
