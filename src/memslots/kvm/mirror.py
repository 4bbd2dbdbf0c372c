# SPDX-License-Identifier: MIT
"""mirror(): a kernel's VM that has the slots of a `memslots.VM`, after every change.

A change of the engine calls `prepare_many()` with its list of changes.  The mirror makes the ioctls there, so a refusal
of the kernel refuses the change.  The mirror is the last listener: no other one can refuse afterwards.  A list that
needs several ioctls becomes the steps of `memslots.plan()`.

Invariants
  M1  `_slots` holds the slots that the kernel has, as the mirror made them.  It changes under `_lock`, in the same
      critical section as the kernel.  It equals the engine's slots except while a change is under way, or if the
      mirror is broken.
  M2  A step that ends a dirty log of the kernel comes after the rescue of its bits: they are marked in the engine, or
      they are in `_kept`.  No vCPU is in KVM_RUN between the rescue and the end of the change, if there is a pause.
  M3  `_kept` has dirty bits that the kernel has no more and the engine has not yet, for slots that the kernel has.
      A change that ends the log of such a slot takes its bits along.
  M4  Locking: a change holds the VM's lock, then takes `_lock`.  So nothing waits for the VM's lock under `_lock`:
      lookups, marks and ioctls only.  No hook keeps `_lock`: a reader that waits for it would delay the change.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from operator import index
from typing import TYPE_CHECKING, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from .._memslots import VM, MemorySlot
from ..constants import MEMSLOT_DTYPE, PAGE_SIZE, MemFlag
from ..errors import (
    GfnNotMappedError,
    MemslotsError,
    NoSuchSlotError,
    ReadOnlySlotError,
    from_errno,
)
from ..layout import Step, plan
from ..listener import Change, ChangeKind, Listener
from .closing import Closing
from .exits import Exit, Mmio
from .machine import Region, Vm
from .probe import Difference, differences, needs_probe

if TYPE_CHECKING:
    from typing_extensions import Buffer

Key: TypeAlias = tuple[int, int]  # as_id, slot
Words: TypeAlias = npt.NDArray[np.uint64]
Pause: TypeAlias = Callable[[], AbstractContextManager[object]]
MmioHandler: TypeAlias = "Callable[[int, bytes, bool], SupportsIndex | Buffer | None]"

_USER_FLAGS = MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY | MemFlag.GUEST_MEMFD
_NO_WORDS = np.zeros(0, np.uint64)


class MirrorError(MemslotsError, RuntimeError):
    """EBUSY: the change takes several ioctls and the mirror has no pause.  EIO: the mirror is broken or closed."""


def mirror(vm: VM, kvm_vm: Vm, *, pause: Pause | None = None) -> Mirror:
    """Gives the kernel's VM the slots of the engine's VM, now and after every change.  See `Mirror`.

    kvm_vm: a VM without regions, or with regions that the engine has as slots with the same values.  From now on change
    it only through `vm`.
    pause: a callable that returns a context manager.  No vCPU of kvm_vm may be in KVM_RUN while it is entered.

    MemslotsError: the kernel refuses a slot, or it has a region that the engine lacks.  The kernel is as before then.
    RuntimeError: another thread changed the VM meanwhile."""
    made = Mirror(vm, kvm_vm, pause)
    made._begin()
    return made


class _Change(NamedTuple):
    """A list of changes that the kernel has made already, and the engine not yet."""

    changes: list[Change]
    # Old slots that no reader of the engine can find any more, with the last bits of their logs.
    ended: list[tuple[MemorySlot, Words]]
    pause: ExitStack


class Mirror(Closing, Listener):
    """Keeps a kernel's VM equal to a `memslots.VM`.  `memslots.kvm.mirror()` makes it.

    Every change of the VM reaches the kernel before readers of the VM see it: single changes, loads, updates,
    transactions, and `VM.close()`.  If the kernel refuses, the caller gets the kernel's exception, and both VMs are as
    before.  If the kernel also refuses to undo a part of a list, the mirror is broken: `broken` has the reason, every
    later change raises MirrorError, and `verify()` shows the differences.

    A list that takes more than one ioctl, one of them a DELETE or a MOVE, is made inside of `pause()`.  Without a pause
    it raises MirrorError.  A change that is one ioctl needs no pause: the kernel makes it alone.  With a pause, a
    change that ends a dirty log is made inside of it too, so no mark is lost.

    Before a step that ends a dirty log of the kernel, its bits go to the engine's log.  So they follow their pages into
    other slots, and `Change.dirty` has them.

    The regions of the kernel use the memory of the engine's slots, so they end with the mirror: `close()` deletes
    them."""

    def __init__(self, vm: VM, kvm_vm: Vm, pause: Pause | None) -> None:
        self._vm, self._kernel, self._pause = vm, kvm_vm, pause
        self._lock = threading.Lock()
        self._slots: dict[Key, MemorySlot] = {}  # M1
        self._kept: dict[Key, Words] = {}  # M3
        self._gone: dict[Key, Words] = {}  # last bits of slots whose log an update has ended
        self._current: _Change | None = None
        self._left = 0  # commits or aborts of this change that are still to come
        self._broken: str | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._broken or f"{len(self._slots)} slots"
        return f"<memslots.kvm.Mirror: {state}>"

    @property
    def broken(self) -> str | None:
        """The reason why the two VMs may differ and every change raises, or None."""
        return self._broken

    # ---- begin and end ---------------------------------------------------------------------------

    def _begin(self) -> None:
        """M4 does not hold for add_listener() here: no hook can wait for the lock yet."""
        before = self._generations()
        created: list[MemorySlot] = []
        try:
            with self._lock:
                self._vm.add_listener(self, last=True)
                created = self._adopt([_value(slot) for slot in self._vm])
            if self._generations() != before:
                raise RuntimeError("another thread changed the VM while the mirror began")
        except BaseException:
            self._give_up(created)
            raise

    def _adopt(self, slots: list[MemorySlot]) -> list[MemorySlot]:
        """Creates the slots that the kernel lacks, and returns them."""
        there = {(r.as_id, r.slot): r for r in self._kernel.regions}
        wanted = {_key(slot): slot for slot in slots}
        for key, region in there.items():
            if key not in wanted or _region(wanted[key]) != region:
                raise from_errno(
                    errno.EINVAL,
                    f"the kernel has {region}, and the VM has {wanted.get(key)}: give mirror() a kernel's VM without "
                    "regions, or with the same slots",
                    slot=region.slot,
                )
        created = [slot for key, slot in wanted.items() if key not in there]
        changes = [Change(ChangeKind.CREATE, None, slot) for slot in created]
        self._carry_out(_creates(created), changes)
        self._slots = wanted
        return created

    def _give_up(self, created: list[MemorySlot]) -> None:
        """Ends a mirror that could not begin.  The regions that it has created go."""
        with self._lock:
            self._broken = "it could not begin"  # a change of another thread may wait for the lock
            for slot in created:
                self._kernel.set_user_memory_region(**_delete(slot))
        with suppress(MemslotsError):
            self._vm.remove_listener(self)

    def close(self) -> None:
        """Ends the mirror: the kernel's regions are deleted, and the engine's VM stays as it is.

        Dirty bits of the kernel go to the engine's logs first.  A second call does nothing."""
        if self._closed:
            return
        if not self._vm.closed:
            self._vm.remove_listener(self)
        self._end(list(self._slots.values()))

    def closed(self) -> None:
        self._end([])

    def _end(self, to_rescue: list[MemorySlot]) -> None:
        """The regions go even if the pause or the rescue fails: the engine may release the memory of the slots next."""
        with ExitStack() as stack:
            try:
                self._enter_pause(stack)
            finally:
                with self._lock:
                    self._rescue_and_delete(to_rescue)

    def _rescue_and_delete(self, to_rescue: list[MemorySlot]) -> None:
        try:
            if not self._broken and not self._kernel.closed:
                self._rescue(to_rescue)
        finally:
            self._delete_all()

    def _delete_all(self) -> None:
        """Deletes all regions.  Raises the first refusal at the end."""
        self._closed = True
        self._broken = self._broken or "it is closed"
        self._slots.clear()
        refused = None
        for region in () if self._kernel.closed else self._kernel.regions:
            try:
                self._kernel.set_user_memory_region(**_delete_region(region))
            except MemslotsError as e:
                refused = refused or e
        if refused:
            raise refused

    def _generations(self) -> list[int]:
        return [self._vm.generation(as_id) for as_id in range(self._vm.address_spaces)]

    # ---- a change: the hooks ---------------------------------------------------------------------

    def prepare_many(self, changes: list[Change]) -> None:
        steps = steps_of(changes)
        ended = _ended(changes, steps)
        with ExitStack() as stack:
            self._check(changes, steps)
            if ended or _is_plan(steps):
                self._enter_pause(stack)
            with self._lock:
                self._check_intact()
                self._rescue(ended)
                self._carry_out(steps, changes)
                rest = [
                    (old, self._kept.pop(_key(old))) for old in ended if _key(old) in self._kept
                ]
                self._note(changes)
            self._current, self._left = _Change(changes, rest, stack.pop_all()), len(changes)
            return
        raise MirrorError(errno.EIO, "the pause suppressed the exception that refuses the change")

    def abort(self, change: Change) -> None:
        """The first abort of a list undoes all of it."""
        if not self._current:
            return
        current, self._current = self._current, None
        with current.pause, self._lock:
            refused = MirrorError(errno.EIO, "the change was undone")
            self._undo(current.changes, refused)
            self._note([Change(c.kind, c.new, c.old) for c in current.changes])
            for old, words in current.ended:
                self._keep(old, words)
            if self._broken:
                raise refused

    def commit(self, change: Change) -> None:
        self._left -= 1
        if self._left or not self._current:
            return
        current, self._current = self._current, None
        with current.pause, self._lock:
            for old, words in current.ended:
                self._route(old, words, current.changes)

    # ---- a change: the kernel --------------------------------------------------------------------

    def _check(self, changes: list[Change], steps: Sequence[Step]) -> None:
        for change in changes:
            if (
                change.new
                and change.new.flags & MemFlag.GUEST_MEMFD
                and change.kind is ChangeKind.CREATE
            ):
                raise from_errno(
                    errno.ENOSYS,
                    f"a mirror cannot create {change.new}: the change does not name its guest_memfd",
                )
        if _is_plan(steps) and not self._pause:
            raise MirrorError(
                errno.EBUSY,
                f"the change takes {len(steps)} ioctls, and a guest could run between a delete or a move and the next "
                "one: give mirror() a pause, or make single changes",
            )

    def _check_intact(self) -> None:
        if self._broken:
            raise MirrorError(
                errno.EIO,
                f"the mirror is broken: {self._broken}; verify() shows the differences, close() ends it",
            )

    def _enter_pause(self, stack: ExitStack) -> None:
        if self._pause:
            stack.enter_context(self._pause())

    def _carry_out(self, steps: Iterable[Step], changes: list[Change]) -> None:
        try:
            for step in steps:
                self._kernel.set_user_memory_region(**step)
        except BaseException as e:
            self._undo(changes, e)
            raise

    def _undo(self, changes: list[Change], refused: BaseException) -> None:
        """Leads the kernel back to the old slots, from where it is."""
        try:
            for step in self._steps_back(changes):
                self._kernel.set_user_memory_region(**step)
        except BaseException as e:
            self._broken = (
                f"a change was refused ({refused}), and the kernel refused to undo it ({e})"
            )
            refused.add_note(
                f"The mirror is broken now: the kernel refused to undo its part of the change: {e}"
            )

    def _steps_back(self, changes: list[Change]) -> Iterable[Step]:
        keys = {_key(slot) for change in changes for slot in (change.old, change.new) if slot}
        there = [_slot(r) for r in self._kernel.regions if (r.as_id, r.slot) in keys]
        olds = [change.old for change in changes if change.old]
        return _plan(there, olds)

    def _note(self, changes: list[Change]) -> None:
        for change in changes:
            if change.old:
                del self._slots[_key(change.old)]
        for change in changes:
            if change.new:
                self._slots[_key(change.new)] = change.new
                if change.new.flags & MemFlag.LOG_DIRTY_PAGES:
                    self._gone.pop(_key(change.new), None)

    # ---- dirty bits ------------------------------------------------------------------------------

    def sync_dirty(self, slot: SupportsIndex, as_id: SupportsIndex = 0) -> Words:
        """The dirty log of a slot: the pages that the guest wrote, and those that the engine has marked.

        The kernel's bits go to the engine's log, and the result is that of `VM.get_dirty_log()`.  So the log is
        cleared, unless the engine's VM has manual_dirty_log_protect.  The kernel's manual mode makes no difference.

        After an update has deleted a slot, or has switched its log off, the first call returns the last bits of the
        kernel's log, if there were any.  Other changes give them to the engine's log, so `Change.dirty` has them.

        Raises as `VM.get_dirty_log()`.  It may not be called in a hook, an update or a read section."""
        key = index(as_id), index(slot)
        try:
            self._wait(key)
        except NoSuchSlotError:
            last = self._gone.pop(key, None)
            if last is None:
                raise
            return last
        self._pull(key)
        while not self._push(key):
            self._wait(key)
        return self._vm.get_dirty_log(key[1], key[0])

    def _wait(self, key: Key) -> None:
        """Waits until no change is under way.  Raises what get_dirty_log() would raise, before a bit is moved."""
        self._vm.clear_dirty_log(key[1], 0, 0, _NO_WORDS, key[0])

    def _pull(self, key: Key) -> None:
        """Takes the bits from the kernel's log to `_kept`."""
        with self._lock:
            if slot := self._slots.get(key):
                self._take(slot)

    def _take(self, slot: MemorySlot) -> None:
        words = self._kernel.get_dirty_log(slot.id, slot.as_id)
        self._keep(slot, words)
        if self._kernel.manual_dirty_log_protect:
            # In this mode KVM_GET_DIRTY_LOG does not clear the log.
            self._kernel.clear_dirty_log(slot.id, 0, slot.npages, words, slot.as_id)

    def _push(self, key: Key) -> bool:
        """Marks the bits of `_kept` in the engine.  False: a change of the slot is under way.

        The lookup and the marks are in one read section, so the marks reach the slot that was found."""
        with self._lock, self._vm.read():
            slot, words = self._slots.get(key), self._kept.get(key)
            if words is None or not slot:
                return True
            if not self._is_active(slot):
                return False
            self._mark(slot.base_gfn, slot.as_id, words)
            del self._kept[key]
            return True

    def _is_active(self, slot: MemorySlot) -> bool:
        """Whether readers of the engine find this slot, or its INVALID copy, which has the same log."""
        found = self._vm.id_to_memslot(slot.id, slot.as_id)
        return found is not None and _region(found) == _region(slot)

    def _keep(self, slot: MemorySlot, words: Words) -> None:
        if words.any():
            before = self._kept.get(_key(slot))
            self._kept[_key(slot)] = words if before is None else words | before

    def _rescue(self, slots: list[MemorySlot]) -> None:
        """Saves the bits of the kernel's logs that are about to end (M2).

        Marks reach the log of the engine's old slot, which is still active.  At the end of an update it is not: readers
        see the new slots already, and commit() passes the bits on."""
        for slot in slots:
            if slot.flags & MemFlag.LOG_DIRTY_PAGES:
                self._take(slot)
        for slot in slots:
            if _key(slot) in self._kept and self._is_active(slot):
                self._mark(slot.base_gfn, slot.as_id, self._kept[_key(slot)])
                del self._kept[_key(slot)]

    def _route(self, old: MemorySlot, words: Words, changes: list[Change]) -> None:
        """Marks the bits of an update's old slot in the new slots of its memory, or keeps them for sync_dirty()."""
        found = False
        for new in _heirs(old, changes):
            first = (new.userspace_addr - old.userspace_addr) // PAGE_SIZE
            pages = _pages(words) - first
            pages = pages[(pages >= 0) & (pages < new.npages)]
            self._vm.mark_page_dirty_many(pages + new.base_gfn, new.as_id)
            found = True
        if not found:
            self._gone[_key(old)] = words

    def _mark(self, gfn: int, as_id: int, words: Words) -> None:
        self._vm.mark_page_dirty_many(_pages(words) + gfn, as_id)

    # ---- the guest's accesses --------------------------------------------------------------------

    def serve(self, exit: Exit, mmio: MmioHandler, as_id: SupportsIndex = 0) -> bool:
        """Serves an access that has left the guest: from RAM if the VM has a slot there at this moment, or by mmio().

        The map may have changed since the guest's access, so an exit can be for RAM.  A write to a READONLY slot goes
        to mmio().  mmio(gpa, data, is_write) returns None for a write, and for a read the data: bytes or an int.  For a
        read, its argument data has as many zero bytes as the guest reads; None gives the guest zeros.

        Returns False, and does nothing, for an exit that is no Mmio.  GuestAccessError: the slot has no memory that
        this process may read (see `VM(dereference_raw_addresses=True)`)."""
        if not isinstance(exit, Mmio):
            return False
        if not self._serve_from_ram(exit, as_id):
            answer = mmio(exit.gpa, exit.data or bytes(exit.size), exit.is_write)
            if not exit.is_write and answer is not None:
                exit.reply(answer)
        return True

    def _serve_from_ram(self, exit: Mmio, as_id: SupportsIndex) -> bool:
        """One call looks up and copies, so the map cannot change in between."""
        try:
            if exit.is_write:
                self._vm.write_guest(exit.gpa, exit.data, as_id)
            else:
                exit.reply(self._vm.read_guest(exit.gpa, exit.size, as_id))
        except (GfnNotMappedError, ReadOnlySlotError):
            return False
        return True

    # ---- comparison ------------------------------------------------------------------------------

    def verify(self) -> list[Difference]:
        """Compares the kernel with the engine and changes nothing.  An empty list: no difference was found.

        It compares the values that the kernel's VM object has accepted, and asks the kernel by probes that always fail
        (docs/kvm.md): whether each slot id is there, whether each slot has a dirty log, whether its first and last page
        are mapped, and whether all other memory is free.

        NotSupportedError: the kernel lacks KVM_CAP_GUEST_MEMFD.  It may not be called in a hook, an update or a read
        section."""
        if self._closed:
            raise MirrorError(errno.EIO, "the mirror is closed")
        needs_probe(self._kernel)
        last: list[Difference] | None = None
        while True:
            before = self._generations()
            found = self._differences()
            self._wait_for_changes()
            if not found or found == last or self._generations() == before:
                return found
            last = found  # a change of another thread may have been under way

    def _differences(self) -> list[Difference]:
        self._wait_for_changes()
        with self._lock:
            return differences(self._vm, self._kernel)

    def _wait_for_changes(self) -> None:
        with suppress(NoSuchSlotError):
            self._wait((0, 0))


# ---- lists of changes as ioctls ------------------------------------------------------------------


def steps_of(changes: Sequence[Change]) -> Sequence[Step]:
    """The ioctls that make the changes, in an order that the kernel accepts.

    A slot that was deleted and created again with equal values gets a new dirty log, so the kernel does both too."""
    if len(changes) == 1 and changes[0].kind is not ChangeKind.RESIZE:
        return [_single(changes[0])]
    deleted = {c.old for c in changes if c.old and not c.new}
    again = {c.new for c in changes if c.new and not c.old and c.new in deleted}
    olds = [c.old for c in changes if c.old and c.old not in again]
    news = [c.new for c in changes if c.new and c.new not in again]
    return [*map(_delete, again), *_plan(olds, news), *_creates(again)]


def _single(change: Change) -> Step:
    if change.new is None:
        assert change.old is not None
        return _delete(change.old)
    return _step(change.kind, change.new)


def _plan(olds: Sequence[MemorySlot], news: Sequence[MemorySlot]) -> Sequence[Step]:
    """The rest of the layout does not matter: it is in the way neither of old nor of new slots."""
    if not olds:
        return _creates(news)
    return plan(_rows(olds), _rows(news), coalesce=False, keep_ids=False).steps


def _rows(slots: Sequence[MemorySlot]) -> npt.NDArray[np.void]:
    rows = np.zeros(len(slots), MEMSLOT_DTYPE)
    for name in ("id", "as_id", "base_gfn", "npages", "userspace_addr", "flags"):
        rows[name] = [getattr(slot, name) for slot in slots]
    return rows


def _is_plan(steps: Sequence[Step]) -> bool:
    """Whether a guest could notice that the change is made in several steps, by a hole."""
    return len(steps) > 1 and any(s.op in (ChangeKind.DELETE, ChangeKind.MOVE) for s in steps)


def _ended(changes: Iterable[Change], steps: Iterable[Step]) -> list[MemorySlot]:
    """The slots whose dirty log in the kernel ends.  Every ioctl on a slot with a log ends it: a change of flags can
    only switch it off."""
    touched = {step.slot for step in steps}
    return [
        c.old
        for c in changes
        if c.old and c.old.flags & MemFlag.LOG_DIRTY_PAGES and c.old.id in touched
    ]


def _heirs(old: MemorySlot, changes: Iterable[Change]) -> Iterator[MemorySlot]:
    """The new slots with a log that have some of the old slot's memory.  A slot that was deleted and created again
    under its id begins with a log of its own."""
    for change in changes:
        new = change.new
        if new is None or not new.flags & MemFlag.LOG_DIRTY_PAGES:
            continue
        if change.kind is ChangeKind.CREATE and new.id == old.id:
            continue
        if (
            new.userspace_addr < old.userspace_addr + old.size
            and old.userspace_addr < new.userspace_addr + new.size
        ):
            yield new


def _creates(slots: Iterable[MemorySlot]) -> list[Step]:
    return [_step(ChangeKind.CREATE, slot) for slot in slots]


def _step(op: ChangeKind, slot: MemorySlot) -> Step:
    return Step(op, slot.id, slot.gpa, slot.size, slot.userspace_addr, int(slot.flags), slot.as_id)


def _delete(slot: MemorySlot) -> Step:
    return Step(ChangeKind.DELETE, slot.id, slot.gpa, 0, slot.userspace_addr, 0, slot.as_id)


def _delete_region(region: Region) -> Step:
    return _delete(_slot(region))


# ---- slots and regions ---------------------------------------------------------------------------


def _key(slot: MemorySlot) -> Key:
    return slot.as_id, slot.id


def _region(slot: MemorySlot) -> Region:
    """The region of a slot.  An INVALID copy has the region of its slot."""
    flags = int(slot.flags & _USER_FLAGS)
    return Region(slot.id, slot.as_id, slot.gpa, slot.size, slot.userspace_addr, flags)


def _slot(region: Region) -> MemorySlot:
    return MemorySlot(
        id=region.slot,
        as_id=region.as_id,
        base_gfn=region.guest_phys_addr // PAGE_SIZE,
        npages=region.memory_size // PAGE_SIZE,
        userspace_addr=region.userspace_addr,
        flags=region.flags,
    )


def _value(slot: MemorySlot) -> MemorySlot:
    return _slot(_region(slot))


def _pages(words: Words) -> npt.NDArray[np.int64]:
    """The numbers of the pages whose bits are set."""
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
