# SPDX-License-Identifier: MIT
"""The hooks that a change runs where KVM runs its architecture's."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ._memslots import MemorySlot


class ChangeKind(enum.IntEnum):
    """enum kvm_mr_change."""

    CREATE = 0
    DELETE = 1
    MOVE = 2
    FLAGS_ONLY = 3


class Change(NamedTuple):
    """One change: ``old`` is None in a CREATE, ``new`` in a DELETE."""

    kind: ChangeKind
    old: MemorySlot | None
    new: MemorySlot | None


class Listener:
    """Base of what ``VM.add_listener`` takes; override what you want to hear.

    All four are called by the thread that makes the change, while it holds the VM's lock: lookups are fine, a change
    of the same VM raises ReentrantChangeError.  A read section that a hook leaves open does not hold up its own
    change, but every one after it.
    """

    def prepare(self, change: Change) -> None:
        """May refuse: an exception undoes the change and reaches the caller.  A DELETE or MOVE has published its
        INVALID copy by now.  An ioctl that mirrors the change belongs in the last listener's prepare."""

    def abort(self, change: Change) -> None:
        """The change that this listener had prepared is undone; called in reverse order."""

    def flush(self, active: MemorySlot, old: MemorySlot) -> None:
        """A slot is about to go or move: drop what was derived from it.  ``active`` is the INVALID copy that
        readers see from now on, ``old`` the slot as it was.  (Linux 5.17 and later hand over ``old`` alone.)"""

    def commit(self, change: Change) -> None:
        """The change is complete.  An exception from here or from flush reaches the caller afterwards."""
