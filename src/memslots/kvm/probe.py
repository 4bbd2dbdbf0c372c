# SPDX-License-Identifier: MIT
"""Finds differences between the slots of a kernel's VM and of an engine's VM, and changes neither.

KVM cannot list its slots.  Two calls depend on them and change nothing:

- KVM_SET_USER_MEMORY_REGION2 with the flag GUEST_MEMFD and the descriptor -1 always fails: EINVAL if the slot id
  exists, EEXIST if some page of the range is in another slot, EBADF if id and range are free.
- KVM_CLEAR_DIRTY_LOG of no page: ENOENT if the slot has no dirty log.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .._memslots import VM, MemorySlot
from ..constants import MEM_MAX_NR_PAGES, PAGE_SIZE, MemFlag
from ..errors import MemslotsError, NotSupportedError
from .machine import Region, Vm

_GPA_END = 1 << 52
_MOST = MEM_MAX_NR_PAGES * PAGE_SIZE  # the largest range of a probe
_USER_FLAGS = MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY | MemFlag.GUEST_MEMFD
_NO_WORDS = np.zeros(0, np.uint64)


class Difference(NamedTuple):
    """One difference that `Mirror.verify()` has found."""

    as_id: int
    slot: int
    text: str

    def __str__(self) -> str:
        return f"slot {self.slot} in address space {self.as_id}: {self.text}"


def needs_probe(kernel: Vm) -> None:
    """NotSupportedError: the kernel gives no other answer than EINVAL to a probe."""
    if not kernel.check_extension("guest_memfd"):
        raise NotSupportedError(
            errno.ENOSYS,
            "this kernel lacks KVM_CAP_GUEST_MEMFD (Linux 6.8), which a probe of its slots needs",
        )


def differences(vm: VM, kernel: Vm) -> list[Difference]:
    """All differences that the calls above can show, and those of the regions that the kernel has accepted."""
    found: list[Difference] = []
    for as_id in range(max(1, kernel.check_extension("multi_address_space"), vm.address_spaces)):
        slots = vm.memslots(as_id) if as_id < vm.address_spaces else []
        found += _of_values(slots, [r for r in kernel.regions if r.as_id == as_id], as_id)
        if as_id < max(1, kernel.check_extension("multi_address_space")):
            found += _of_probes(slots, _Prober(kernel, as_id))
    return list(dict.fromkeys(found))


def _of_values(slots: list[MemorySlot], regions: list[Region], as_id: int) -> Iterator[Difference]:
    has = {r.slot: r for r in regions}
    for slot in slots:
        flags = int(slot.flags & _USER_FLAGS)
        wanted = Region(slot.id, as_id, slot.gpa, slot.size, slot.userspace_addr, flags)
        region = has.pop(slot.id, None)
        if region is None:
            yield Difference(as_id, slot.id, "the kernel does not have it")
        elif region != wanted:
            yield Difference(as_id, slot.id, f"the kernel has {region}, the engine {wanted}")
    for region in has.values():
        yield Difference(as_id, region.slot, "the engine does not have it")


def _of_probes(slots: list[MemorySlot], prober: _Prober) -> Iterator[Difference]:
    """`slots` by ascending address."""
    there = {slot.id for slot in slots if prober.has_id(slot.id)}
    for slot in slots:
        if slot.id not in there:
            yield Difference(prober.as_id, slot.id, "the kernel does not have it")
        elif prober.has_log(slot.id) != bool(slot.flags & MemFlag.LOG_DIRTY_PAGES):
            has = "no " if slot.flags & MemFlag.LOG_DIRTY_PAGES else "a "
            yield Difference(prober.as_id, slot.id, f"the kernel has {has}dirty log")
    free_id = prober.free_id()
    if free_id is None:
        return
    for slot in slots:
        if slot.id not in there:
            continue
        ends = {slot.gpa, slot.gpa + slot.size - PAGE_SIZE}
        if any(prober.is_free(free_id, gpa, PAGE_SIZE) for gpa in ends):
            yield Difference(
                prober.as_id, slot.id, "the kernel has no slot at its first or last page"
            )
    if not all(prober.is_free(free_id, gpa, size) for gpa, size in _gaps(slots)):
        yield from _extra(slots, prober)


def _extra(slots: list[MemorySlot], prober: _Prober) -> Iterator[Difference]:
    """The ids that only the kernel has.  There may be none: on some CPUs KVM has slots without a user's id."""
    known = {slot.id for slot in slots}
    for id in range(prober.ids):
        if id not in known and prober.has_id(id):
            yield Difference(prober.as_id, id, "the engine does not have it")


def _gaps(slots: list[MemorySlot]) -> Iterator[tuple[int, int]]:
    """The ranges between the slots, in pieces that a probe accepts."""
    begin = 0
    for end, after in [*((s.gpa, s.gpa + s.size) for s in slots), (_GPA_END, _GPA_END)]:
        for gpa in range(begin, end, _MOST):
            yield gpa, min(_MOST, end - gpa)
        begin = after


class _Prober:
    """The questions to the kernel, for one address space."""

    def __init__(self, kernel: Vm, as_id: int) -> None:
        self.kernel, self.as_id = kernel, as_id
        self.ids = kernel.check_extension("nr_memslots")

    def has_id(self, slot: int) -> bool:
        return self._probe(slot, 0, PAGE_SIZE) == errno.EINVAL

    def is_free(self, free_id: int, gpa: int, size: int) -> bool:
        return self._probe(free_id, gpa, size) == errno.EBADF

    def free_id(self) -> int | None:
        return next((id for id in reversed(range(self.ids)) if not self.has_id(id)), None)

    def has_log(self, slot: int) -> bool:
        try:
            self.kernel.clear_dirty_log(slot, 0, 0, _NO_WORDS, self.as_id)
        except MemslotsError as e:
            if e.errno != errno.ENOENT:
                raise
            return False
        return True

    def _probe(self, slot: int, gpa: int, size: int) -> int:
        try:
            self.kernel.set_user_memory_region(
                slot,
                guest_phys_addr=gpa,
                memory_size=size,
                flags=MemFlag.GUEST_MEMFD,
                as_id=self.as_id,
                guest_memfd=-1,
            )
        except MemslotsError as e:
            return e.errno or 0
        raise AssertionError(f"the kernel has accepted a probe of slot {slot} with descriptor -1")
