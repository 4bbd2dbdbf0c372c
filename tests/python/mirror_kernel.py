# SPDX-License-Identifier: MIT
"""A kernel's VM for the tests of the mirror, without /dev/kvm.  It refuses where a test wants it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from memslots import VM
from memslots.errors import MemslotsError, from_errno
from memslots.kvm import Region

PAGE = 4096


class RefusedError(MemslotsError):
    """The refusal that a test has planted."""


class FakeKernel:
    """The interface of kvm.Vm that the mirror uses.  Its rules and its dirty logs are those of an engine of its own."""

    def __init__(self, **limits: int) -> None:
        self.vm = VM(**limits)
        self.calls = 0
        self.refuse: set[int] = set()  # the numbers of the ioctls to refuse, once each, from 0
        self.closed = False
        self.deletes_in_pause: list[bool] = []
        self.pauses = 0
        self.is_paused = False

    @contextmanager
    def pause(self) -> Iterator[None]:
        assert not self.is_paused
        self.pauses += 1
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def refuse_from_here(self, *steps: int) -> None:
        self.calls, self.refuse = 0, set(steps)

    def set_user_memory_region(self, slot: int, **fields: Any) -> None:
        n, self.calls = self.calls, self.calls + 1
        if n in self.refuse:
            self.refuse.discard(n)
            raise RefusedError(errno.ENOMEM, f"ioctl {n} is refused", slot=slot)
        if slot >= 1 << 15:
            raise from_errno(errno.EINVAL, "the slot limit", slot=slot)
        if not fields["memory_size"]:
            self.deletes_in_pause.append(self.is_paused)
        self.vm.set_user_memory_region(slot, **fields)

    def get_dirty_log(self, slot: int, as_id: int = 0) -> np.ndarray:
        return self.vm.get_dirty_log(slot, as_id)

    def clear_dirty_log(
        self, slot: int, first: int, n: int, words: np.ndarray, as_id: int = 0
    ) -> None:
        self.vm.clear_dirty_log(slot, first, n, words, as_id)

    @property
    def manual_dirty_log_protect(self) -> int:
        return self.vm.manual_dirty_log_protect

    def check_extension(self, name: str) -> int:
        return {"nr_memslots": self.vm.user_mem_slots}.get(name, 0)

    @property
    def regions(self) -> tuple[Region, ...]:
        return tuple(
            Region(s.id, s.as_id, s.gpa, s.size, s.userspace_addr, int(s.flags)) for s in self.vm
        )


def slots_of(vm: VM) -> list[Region]:
    return [Region(s.id, s.as_id, s.gpa, s.size, s.userspace_addr, int(s.flags)) for s in vm]
