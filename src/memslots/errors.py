# SPDX-License-Identifier: MIT
"""The exceptions of memslots: one class for each errno that KVM would return.

Each class also derives from the built-in exception that is closest to it, such as ValueError.
"""

from __future__ import annotations

import errno as _errno
import threading as _threading
from collections.abc import Callable
from typing import Any, NamedTuple

from .constants import PAGE_SIZE, MemFlag

__all__ = [
    "ClosedError",
    "ForkedError",
    "GfnNotMappedError",
    "GuestAccessError",
    "GuestMemfdError",
    "InvalidRegionError",
    "InvariantError",
    "ListenerError",
    "MemslotsError",
    "NoSuchSlotError",
    "NotSupportedError",
    "OutOfMemoryError",
    "ReadOnlySlotError",
    "ReaderStallWarning",
    "ReentrantChangeError",
    "RegionOverlapError",
    "UpdateError",
]


class MemslotsError(OSError):
    """The base of all exceptions of memslots.  An errno without a class of its own raises this class.

    ``.errno`` is the number.  ``.slot`` is the id that the call named, or None.  ``.other`` is the
    :class:`MemorySlot` that conflicts with the call, or None.  ``.rule`` is the name of the rule that refused
    the call, from the table ``MS_RULES`` in memslots.h, or None.

    After an access of guest memory, ``.gpa`` is the guest address of the piece that was refused, and ``.done`` the
    number of bytes before it, which are complete.  The content of the refused piece is unspecified.  After another call
    ``.gpa`` is None.

    ``.step`` is the number of the step of a transaction that was refused, or None.
    """

    slot: int | None
    other: Any
    rule: str | None
    gpa: int | None = None
    done: int = 0
    step: int | None = None

    def __init__(
        self,
        errno: int,
        message: str,
        slot: int | None = None,
        other: Any = None,
        rule: str | None = None,
    ) -> None:
        super().__init__(errno, message)
        self.slot = slot
        self.other = other
        self.rule = rule


class InvalidRegionError(MemslotsError, ValueError):
    """EINVAL: a rule of KVM_SET_USER_MEMORY_REGION or of the dirty log refused the arguments."""


class RegionOverlapError(MemslotsError, ValueError):
    """EEXIST: another slot (``.other``) has some of these guest frames, or this id."""


class ListenerError(MemslotsError, ValueError):
    """EEXIST: the listener was added before, or another listener is the last one.  ENOENT: it was not added, or it was
    removed.

    Another errno: the ``prepare`` of a listener that is not written in Python refused the change."""


class NoSuchSlotError(MemslotsError, LookupError):
    """ENOENT: there is no such slot, or it has no dirty log."""


class OutOfMemoryError(MemslotsError, MemoryError):
    """ENOMEM: an allocation failed; nothing was changed."""


class GuestAccessError(MemslotsError, ValueError):
    """EFAULT: the guest frame has no address for this use, or its host memory is gone.

    Also EFAULT: ``clear_dirty_log()`` got no bitmap.  ``.gpa`` is None then."""


class GfnNotMappedError(GuestAccessError, LookupError):
    """EFAULT: the guest frame is in no slot, or in one that is being deleted or moved."""


class ReadOnlySlotError(GuestAccessError, PermissionError):
    """EFAULT: the guest frame is in a READONLY slot, and the call asked for an address to write to."""


class ReentrantChangeError(MemslotsError, RuntimeError):
    """EDEADLK: the call would deadlock, because this thread is inside a read section, a hook or an update of the VM.

    EBUSY: this thread is inside a hook of another VM, and the call could wait.  Or the update belongs to another
    thread."""


class ClosedError(MemslotsError, ValueError):
    """EBADF: the VM is closed, or its subclass has not called ``super().__init__()`` yet."""


class GuestMemfdError(MemslotsError, ValueError):
    """EBADF: the guest_memfd is not an open file.  EINVAL: it is an open file, but not a guest_memfd."""


class NotSupportedError(MemslotsError, NotImplementedError):
    """ENOSYS, ENXIO: this build or this backend does not offer what was asked for."""


class ForkedError(MemslotsError, RuntimeError):
    """EIO: the VM belongs to the parent process.  A forked child may make lookups but no changes.

    Also EIO: a write of the child to a slot with a dirty log, whose mark would be lost.  ``.gpa`` and ``.done`` say how
    far the write came."""


class UpdateError(MemslotsError, RuntimeError):
    """EINVAL: a slot of an update's step is not in the set where it must be, or the step comes outside of the update.

    Also EINVAL: the update ended with two different sets or with an INVALID slot, and was rolled back."""


class InvariantError(MemslotsError, AssertionError):
    """EUCLEAN: ``check()`` found a broken invariant.  ``.invariant`` is its number, such as "T1"."""

    invariant: str = ""


class ReaderStallWarning(RuntimeWarning):
    """A change has waited for a long read section.  ``VM.stall_warning_ms`` sets the time.

    ``.thread_id`` is the system's id of the reader's thread (``Thread.native_id``), or None if it is unknown.
    ``.thread_name`` is the name of the thread in Python, or None.
    ``.waited`` is how long the change has waited, in seconds.  The read section is at least as old.
    """

    thread_id: int | None
    thread_name: str | None
    waited: float

    def __init__(
        self, message: str, thread_id: int | None, thread_name: str | None, waited: float
    ) -> None:
        super().__init__(message)
        self.thread_id = thread_id
        self.thread_name = thread_name
        self.waited = waited


_CLASSES: dict[int, type[MemslotsError]] = {
    _errno.EINVAL: InvalidRegionError,
    _errno.EEXIST: RegionOverlapError,
    _errno.ENOENT: NoSuchSlotError,
    _errno.ENOMEM: OutOfMemoryError,
    _errno.EFAULT: GuestAccessError,
    _errno.EDEADLK: ReentrantChangeError,
    _errno.EBUSY: ReentrantChangeError,
    _errno.EBADF: ClosedError,
    _errno.ENOSYS: NotSupportedError,
    _errno.ENXIO: NotSupportedError,
    _errno.EIO: ForkedError,
    _errno.EUCLEAN: InvariantError,
}

_CLASSES_BY_RULE: dict[str, type[MemslotsError]] = {
    "GMEM_FD": GuestMemfdError,
    "LISTENER_REFUSED": ListenerError,
    "LISTENER_EXISTS": ListenerError,
    "LAST_LISTENER": ListenerError,
    "NO_SUCH_LISTENER": ListenerError,
    "HANDLE": UpdateError,
    "SETS_DIFFER": UpdateError,
    "GUEST_HOLE": GfnNotMappedError,
    "GUEST_READONLY": ReadOnlySlotError,
}


def from_errno(
    errno: int,
    message: str,
    slot: int | None = None,
    other: Any = None,
    rule: str | None = None,
) -> MemslotsError:
    """The exception for a rule or an errno.  MemslotsError itself if neither has a class of its own."""
    cls = _CLASSES_BY_RULE.get(rule or "") or _CLASSES.get(errno, MemslotsError)
    return cls(errno, message, slot, other, rule)


class Request(NamedTuple):
    """The arguments of a refused call, for its message.  An argument that the call does not have is the default."""

    slot: int | None = None
    as_id: int = 0
    guest_phys_addr: int = 0
    memory_size: int = 0
    userspace_addr: int = 0
    flags: int = 0
    guest_memfd: int = -1
    guest_memfd_offset: int = 0
    first_page: int = 0
    num_pages: int = 0
    value: int = 0
    gpa: int | None = None  # of the first byte that a copy of guest memory could not access
    done: int = 0  # the bytes before it
    in_snapshot: bool = False  # a read of a Snapshot
    bits_lost: bool = False  # get_dirty_log() has cleared the log before it failed
    is_hole: bool = False  # the range of punch()

    @property
    def name(self) -> str:
        """The slot in a message.  map_buffer() may leave the choice of the id to the engine."""
        if self.is_hole:
            return "the hole"
        return "the new slot" if self.slot is None else f"slot {self.slot}"


def _span(gpa: int, size: int) -> str:
    return f"[{gpa:#x}, {gpa + size:#x})"


def _flags(flags: int) -> str:
    """Flags as in "0x5 (LOG_DIRTY_PAGES | GUEST_MEMFD)".  Bits without a name are shown as one number."""
    names = [flag.name or "" for flag in MemFlag if flags & flag]
    rest = flags & ~sum(MemFlag)
    parts = names + ([hex(rest)] if rest and names else [])
    return f"{flags:#x} ({' | '.join(parts)})" if names else f"{flags:#x}"


def _other(other: Any) -> str:
    return f"slot {other.id} {_span(other.gpa, other.size)}"


def _place(q: Request) -> str:
    return f"guest address {q.gpa or 0:#x} of address space {q.as_id}"


def _complete(q: Request) -> str:
    return f"{q.done} bytes before it are complete"


def _way_to_memory(q: Request) -> str:
    if q.in_snapshot:
        return (
            "only a snapshot of VM.snapshot() that is not closed reads memory, and only that of map_buffer(); "
            "one from a pickle or a file does not"
        )
    return "create the slot with map_buffer(), or the VM with dereference_raw_addresses=True"


_MESSAGES: dict[str, Callable[[Request, int, Any], str]] = {
    "SLOT_ID": lambda q, limit, o: f"{q.name} is not below {limit}, the number of slots",
    "FLAGS": lambda q, limit, o: (
        f"flags {_flags(q.flags)} of {q.name}: {_flags(q.flags & ~limit)} is not allowed"
        f"{' with GUEST_MEMFD' if limit == MemFlag.GUEST_MEMFD else ''}; allowed is {_flags(limit)}"
    ),
    "SIZE_ALIGN": lambda q, limit, o: (
        f"memory_size {q.memory_size:#x} of {q.name} is not a multiple of the page size {PAGE_SIZE}"
    ),
    "GPA_ALIGN": lambda q, limit, o: (
        f"guest_phys_addr {q.guest_phys_addr:#x} of {q.name} is not a multiple of {PAGE_SIZE}"
    ),
    "HVA_ALIGN": lambda q, limit, o: (
        f"userspace_addr {q.userspace_addr:#x} of {q.name} is not a multiple of {PAGE_SIZE}"
    ),
    "HVA_RANGE": lambda q, limit, o: (
        f"host range {_span(q.userspace_addr, q.memory_size)} of {q.name} ends beyond {limit:#x}"
    ),
    "GMEM_OFFSET": lambda q, limit, o: (
        f"guest_memfd_offset {q.guest_memfd_offset:#x} of {q.name} is not a multiple of {PAGE_SIZE}, "
        f"or wraps with memory_size {q.memory_size:#x}"
    ),
    "AS_ID": lambda q, limit, o: (
        f"address space {q.as_id} is not below {limit}, the number of address spaces"
    ),
    "GPA_WRAP": lambda q, limit, o: (
        f"guest range {_span(q.guest_phys_addr, q.memory_size)} of {q.name} reaches 2**64"
    ),
    "NPAGES": lambda q, limit, o: (
        f"{q.name} would have {q.memory_size // PAGE_SIZE} pages; a slot has 1 to {limit}"
    ),
    "NO_SUCH_SLOT": lambda q, limit, o: f"there is no {q.name} in address space {q.as_id}",
    "TOTAL_PAGES": lambda q, limit, o: (
        f"with {q.name} the number of pages of the VM would reach 2**64"
    ),
    "GMEM_EXISTING": lambda q, limit, o: f"{q.name} exists: GUEST_MEMFD is only for a new one",
    "HVA_CHANGE": lambda q, limit, o: (
        f"userspace_addr of {q.name} is {o.userspace_addr:#x} and cannot become {q.userspace_addr:#x}"
    ),
    "SIZE_CHANGE": lambda q, limit, o: (
        f"{q.name} has {o.npages} pages and cannot be resized to {q.memory_size // PAGE_SIZE}"
    ),
    "FLAGS_TOGGLE": lambda q, limit, o: (
        f"READONLY of {q.name} cannot change: its flags are {int(o.flags):#x}, the call has {q.flags:#x}"
    ),
    "OVERLAP": lambda q, limit, o: (
        f"{q.name} {_span(q.guest_phys_addr, q.memory_size)} overlaps {_other(o)} "
        f"in address space {q.as_id}"
    ),
    "GMEM_FD": lambda q, limit, o: (
        f"guest_memfd {q.guest_memfd} of {q.name} is "
        f"{'an open file, but no guest_memfd' if limit else 'not an open file'}"
    ),
    "GPA_LIMIT": lambda q, limit, o: (
        f"{q.name} {_span(q.guest_phys_addr, q.memory_size)} ends beyond {limit:#x}, "
        "which is 2**gpa_bits"
    ),
    "NO_MEMORY": lambda q, limit, o: "out of memory; nothing was changed",
    "LISTENER_REFUSED": lambda q, limit, o: (
        "a listener's prepare refused the change; nothing was changed"
    ),
    "LISTENER_EXISTS": lambda q, limit, o: "the listener is there already",
    "LAST_LISTENER": lambda q, limit, o: (
        "another listener stays behind the others; a VM has at most one such listener"
    ),
    "NO_SUCH_LISTENER": lambda q, limit, o: "the listener is not there",
    "NO_DIRTY_LOG": lambda q, limit, o: (
        f"{q.name} in address space {q.as_id} does not log dirty pages"
    ),
    "FIRST_PAGE": lambda q, limit, o: f"first_page {q.first_page} is not a multiple of {limit}",
    "CLEAR_RANGE": lambda q, limit, o: (
        f"pages [{q.first_page}, {q.first_page + q.num_pages}) of {q.name}, which has {limit} pages: the range "
        "must lie inside the slot, and its length must be a multiple of 64 unless it ends where the slot ends"
    ),
    "BITMAP_SIZE": lambda q, limit, o: f"the bitmap has {q.value} words, not {limit}",
    "NULL_BUFFER": lambda q, limit, o: (
        "no bitmap was given; "
        + ("the log was cleared, and its bits are lost" if q.bits_lost else "the log is as it was")
    ),
    "DUPLICATE_ID": lambda q, limit, o: f"{q.name} is there already: {_other(o)}",
    "MANUAL_PROTECT": lambda q, limit, o: f"manual_dirty_log_protect is 0, 1 or 3, not {q.value}",
    "READ_SECTION": lambda q, limit, o: (
        "this thread is inside a read section, which the change would wait for"
    ),
    "HOOK": lambda q, limit, o: (
        "this thread is inside a hook: it may neither change the same VM nor make a step of an update"
    ),
    "HOOK_BUSY": lambda q, limit, o: (
        "this thread is inside a hook of another VM: there it may neither wait for this VM, whose lock is taken, "
        "nor begin an update"
    ),
    "UPDATE": lambda q, limit, o: (
        "this thread is inside begin_update() of the VM; the call is possible after its end"
    ),
    "UPDATE_OWNER": lambda q, limit, o: (
        "the update belongs to another thread, the one that entered begin_update()"
    ),
    "FORKED": lambda q, limit, o: (
        "the VM belongs to the parent process: a forked child may only make lookups"
        if q.gpa is None
        else f"{_other(o)} has a dirty log, and the marks of a forked child would be lost: the VM belongs to "
        f"the parent process; {q.done} bytes before guest address {q.gpa:#x} are complete"
    ),
    "CLOSED": lambda q, limit, o: "the VM is closed",
    "HANDLE": lambda q, limit, o: (
        "a slot of this step is not in the set where it must be, or is already in the set"
    ),
    "SETS_DIFFER": lambda q, limit, o: (
        "the update ended with two different sets, or with an INVALID slot; it was rolled back"
    ),
    "BACKEND": lambda q, limit, o: "this backend does not offer the call",
    "STRUCT_SIZE": lambda q, limit, o: (
        f"a struct of the caller has fewer than {limit} bytes: it is older than this library"
    ),
    "BACKING_RANGE": lambda q, limit, o: (
        f"host range {_span(q.userspace_addr, q.memory_size)} of {q.name} is not inside its memory, "
        f"which ends at {limit:#x}"
    ),
    "BACKING_READONLY": lambda q, limit, o: (
        f"{q.name} is not READONLY, but its memory is read-only: map it with READONLY"
    ),
    "NO_FREE_SLOT": lambda q, limit, o: (
        f"all {limit} slot ids of address space {q.as_id} are in use: delete a slot, or give the VM more user_mem_slots"
    ),
    "GUEST_HOLE": lambda q, limit, o: (
        f"{_place(q)} is in no slot, or in one that is being deleted or moved; {_complete(q)}"
    ),
    "GUEST_READONLY": lambda q, limit, o: (
        f"{_place(q)} is in {_other(o)}, which is READONLY; {_complete(q)}"
    ),
    "GUEST_RAW": lambda q, limit, o: (
        f"{_place(q)} is in {_other(o)}, which has no memory: {_way_to_memory(q)}; {_complete(q)}"
    ),
    "GUEST_FAULT": lambda q, limit, o: (
        f"the host memory of {_place(q)}, in {_other(o)}, is truncated, "
        f"unmapped or protected; {_complete(q)}"
    ),
    "STEP_KIND": lambda q, limit, o: f"the kind of a step is 0 to {limit}, not {q.value}",
    "SPLIT": lambda q, limit, o: (
        f"guest_phys_addr {q.guest_phys_addr:#x} is the first byte of {_other(o)}, or not inside it"
    ),
    "MERGE_PLACE": lambda q, limit, o: (
        f"{q.name} {_span(q.guest_phys_addr, q.memory_size)} and {_other(o)} are no neighbours in guest memory"
    ),
    "MERGE_HVA": lambda q, limit, o: (
        f"{q.name} {_span(q.userspace_addr, q.memory_size)} and slot {o.id} "
        f"{_span(o.userspace_addr, o.size)} are no neighbours in host memory"
    ),
    "MERGE_FLAGS": lambda q, limit, o: (
        f"{q.name} has flags {_flags(q.flags)}, and slot {o.id} has {_flags(int(o.flags))}"
    ),
    "MERGE_BACKING": lambda q, limit, o: (
        f"{q.name} and {_other(o)} do not have the memory of the same call of map_buffer()"
    ),
    "CACHE_RANGE": lambda q, limit, o: (
        f"the range of the cache is empty or wraps, or the access ends beyond its {limit} bytes"
    ),
    "INTERRUPTED": lambda q, limit, o: "the wait for the VM's lock was ended; nothing was changed",
}


def refused(
    errno: int, rule: str, limit: int, other: Any, request: Request, where: str = ""
) -> MemslotsError:
    """The exception for a call that a rule refused.  Its message names the slot of the call and the other slot."""
    message = where + _MESSAGES[rule](request, limit, other)
    error = from_errno(errno, message, request.slot, other, rule)
    if request.gpa is not None:
        error.gpa, error.done = request.gpa, request.done
    return error


def reader_stall(thread_id: int, waited_ns: int, again: bool = False) -> ReaderStallWarning:
    """The warning that a change has waited for the read section of a thread (0: unknown).

    again: the warning repeats one that an interrupt cut short.  Its text then differs, because Python shows each text
    only once."""
    names = [t.name for t in _threading.enumerate() if thread_id and t.native_id == thread_id]
    name, waited = (names[0] if names else None), waited_ns / 1e9
    thread = "an unknown thread" if not thread_id else f"thread {thread_id}"
    if name is not None:
        thread += f" ({name})"
    message = f"a change has waited for {waited:.3f} s for the read section of {thread}"
    if again:
        message += "; an interrupt came during the first warning"
    return ReaderStallWarning(message, thread_id or None, name, waited)
