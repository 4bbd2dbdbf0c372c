# SPDX-License-Identifier: MIT
"""KVM's memory slots in user space: lookups map guest frames to host memory while changes go on.

`VM` is the main class; start with `help(memslots.VM)`.
"""

import os as _os
from pathlib import Path as _Path

from . import _interpreter as _interpreter  # first: refuses before the extension is loaded
from ._memslots import (
    VCPU,
    VM,
    Mapping,
    MemorySlot,
    ReadSection,
    SlotHandle,
    Snapshot,
    Transaction,
    Update,
    __version__,
    _use_layout,
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
from .diff import Diff
from .errors import (
    ClosedError,
    ForkedError,
    GfnNotMappedError,
    GuestAccessError,
    GuestMemfdError,
    InvalidRegionError,
    InvariantError,
    ListenerError,
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
from .layout import Plan, flatten, plan
from .layout import apply_layout as _apply_layout
from .layout import restore_layout as _restore_layout
from .listener import Change, ChangeKind, Listener
from .memory import HostRanges, HostRangesMany, Memory, PinnedBy, SlotsOfRanges, alloc
from .recorder import Recorder

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
    "Diff",
    "ForkedError",
    "GfnNotMappedError",
    "GuestAccessError",
    "GuestMemfdError",
    "HostRanges",
    "HostRangesMany",
    "InvalidRegionError",
    "InvariantError",
    "Listener",
    "ListenerError",
    "Mapping",
    "MemFlag",
    "Memory",
    "MemorySlot",
    "MemslotsError",
    "NoSuchSlotError",
    "NotSupportedError",
    "OutOfMemoryError",
    "PinnedBy",
    "Plan",
    "ReadOnlySlotError",
    "ReadSection",
    "ReaderStallWarning",
    "Recorder",
    "ReentrantChangeError",
    "RegionOverlapError",
    "SlotHandle",
    "SlotsOfRanges",
    "Snapshot",
    "Transaction",
    "Update",
    "UpdateError",
    "__version__",
    "alloc",
    "backends",
    "build_info",
    "flatten",
    "get_include",
    "load",
    "plan",
]

_use_layout(_apply_layout, _restore_layout)


def __dir__() -> list[str]:
    return sorted(__all__)


def get_include() -> str:
    """The directory of memslots.h, for C and Cython modules that build against this package.

    An editable install has the package in the checkout, and the header where it was installed.  ``__path__`` lists both
    folders.  The last candidate is the header in the checkout.
    """
    candidates = [_os.path.join(folder, "include") for folder in __path__]
    candidates.append(_os.path.join(_os.path.dirname(__file__), "..", "_core", "include"))
    for candidate in candidates:
        if _os.path.isfile(_os.path.join(candidate, "memslots.h")):
            return _os.path.abspath(candidate)
    raise FileNotFoundError(
        f"this install of memslots has no memslots.h: it is not in {', '.join(candidates)}"
    )


def load(
    path: str | _Path, *, vm_fd: int | None = None, strict: bool = False, backend: str = "tree"
) -> VM:
    """A VM with the slots that a real run had at the end of its log.

    path: the output of ``strace -f -e trace=ioctl``, of QEMU's ``-trace kvm_set_user_memory``, or of its monitor's
    ``info mtree -f``, plain or .gz; or a vector file (.jsonl, .jsonl.gz).  Host addresses are those of the log: the VM
    translates to them, and reads no memory through them.  ``docs/vectors.md`` says how to record a run.
    vm_fd: the file descriptor of the VM, if an strace log has the changes of several VMs.
    strict: whether a line that is not understood raises LogError.  If not, it causes a ``LogWarning``.

    ``memslots.traces.logs.LogError`` (a ValueError): the file is no such log, or has no change of a slot.  OSError: the
    file cannot be opened.
    """
    from .traces.logs import load

    return load(path, vm_fd=vm_fd, strict=strict, backend=backend)
