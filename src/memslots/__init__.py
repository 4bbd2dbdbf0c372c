# SPDX-License-Identifier: MIT
"""KVM's memory slots in user space: maps guest frames to host memory while a writer rearranges them."""

from __future__ import annotations

import os as _os

from . import _interpreter as _interpreter  # first: it refuses before the extension is loaded
from ._memslots import (
    VCPU,
    VM,
    MemorySlot,
    ReadSection,
    SlotHandle,
    Update,
    __version__,
    backends,
    build_info,
)
from .constants import (
    DIRTY_LOG_INITIALLY_SET,
    DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    HVA_ERR_BAD,
    HVA_ERR_MIN,
    HVA_ERR_RO_BAD,
    MEM_MAX_NR_PAGES,
    MEMSLOT_DTYPE,
    PAGE_SHIFT,
    PAGE_SIZE,
    MemFlag,
)
from .errors import (
    ClosedError,
    ForkedError,
    GfnNotMappedError,
    GuestAccessError,
    GuestMemfdError,
    InvalidRegionError,
    InvariantError,
    MemslotsError,
    NoSuchSlotError,
    NotSupportedError,
    OutOfMemoryError,
    ReaderStallWarning,
    ReadOnlySlotError,
    ReentrantChangeError,
    RegionOverlapError,
    UpdateError,
)
from .listener import Change, ChangeKind, Listener
from .snapshot import Snapshot

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
    "VCPU",
    "VM",
    "Change",
    "ChangeKind",
    "ClosedError",
    "ForkedError",
    "GfnNotMappedError",
    "GuestAccessError",
    "GuestMemfdError",
    "InvalidRegionError",
    "InvariantError",
    "Listener",
    "MemFlag",
    "MemorySlot",
    "MemslotsError",
    "NoSuchSlotError",
    "NotSupportedError",
    "OutOfMemoryError",
    "ReadOnlySlotError",
    "ReadSection",
    "ReaderStallWarning",
    "ReentrantChangeError",
    "RegionOverlapError",
    "SlotHandle",
    "Snapshot",
    "Update",
    "UpdateError",
    "__version__",
    "backends",
    "build_info",
    "get_include",
]


def get_include() -> str:
    """The directory of memslots.h, for C and Cython modules that build against this package."""
    return _os.path.join(_os.path.dirname(__file__), "include")
