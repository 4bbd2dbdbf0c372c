# SPDX-License-Identifier: MIT
"""The subjects of the measurements: designs of the engine, the tree with an index, and this machine's kernel.

Each subject is a VM that holds the slots of a layout.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import closing
from time import perf_counter, perf_counter_ns
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._memslots import REGION_DTYPE, VM, time_changes, time_lookups
from ..constants import PAGE_SHIFT, PAGE_SIZE
from ..kvm import ioctls
from .layouts import Layout, Numbers

Answered = tuple[Numbers, Numbers]  # ns of each group, answers
Changed = tuple[Numbers, NDArray[np.int32]]  # ns of each group, results

#: The number of ids of a VM on x86-64.  The array has a table of this size for any number of slots.
ROOM = 32_764

#: The tree with an index for lookups by gfn.  All other operations use the tree alone.
INDEXED = "tree+index"


def design_of(backend: str) -> str:
    """Return the design of the engine for this name of a backend."""
    return "tree" if backend == INDEXED else backend


def regions(slots: Layout, **fields: Any) -> NDArray[Any]:
    """Return the changes that create these slots.  `fields` replace values, for other kinds of changes."""
    rows = np.zeros(len(slots), dtype=REGION_DTYPE)
    rows["guest_memfd"] = -1
    for name in ("as_id", "flags", "userspace_addr"):
        rows[name] = slots[name]
    rows["slot"] = slots["id"]
    rows["guest_phys_addr"] = slots["base_gfn"] << np.uint64(PAGE_SHIFT)
    rows["memory_size"] = slots["npages"] << np.uint64(PAGE_SHIFT)
    for name, value in fields.items():
        rows[name] = value
    return rows


def alternating(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """first[0], second[0], first[1], ..."""
    both = np.empty(2 * len(first), dtype=first.dtype)
    both[0::2], both[1::2] = first, second
    return both


class Changeable(Protocol):
    """A subject that can change slots: a VM of the engine or of the kernel."""

    backend: str

    def changes(self, rows: NDArray[Any], group: int = 1) -> Changed: ...
    def contents(self) -> Layout | None: ...
    def made(self) -> dict[str, int] | None: ...
    def close(self) -> None: ...


class Engine:
    """A VM of one design, and the loops that time it.

    A design is measured without an index.  For INDEXED the constructor builds the index by a batch, because single
    lookups use an existing index but do not build one for many slots.
    """

    def __init__(self, backend: str, slots: Layout | None = None, room: int = ROOM) -> None:
        needed = 0 if slots is None else int(slots["id"].max()) + 1
        self.backend = backend
        self.vm = VM(backend=design_of(backend), user_mem_slots=max(room, needed))
        self.vm.index_policy = "eager" if backend == INDEXED else "off"
        self.vcpu = self.vm.create_vcpu()
        if slots is not None:
            self.vm.load_memslots(slots)
            if backend == INDEXED:
                self.vm.gfn_to_hva_many(np.resize(slots["base_gfn"], 65))

    def gfns(self, numbers: Numbers, group: int) -> Answered:
        return time_lookups(self.vm, "gfn_to_hva", numbers, group=group)

    def vcpu_gfns(self, numbers: Numbers, group: int) -> Answered:
        return time_lookups(self.vm, "gfn_to_hva", numbers, group=group, vcpu=self.vcpu)

    def ids(self, numbers: Numbers, group: int) -> Answered:
        return time_lookups(self.vm, "id_to_memslot", numbers, group=group)

    def hvas(self, starts: Numbers, lasts: Numbers, group: int) -> Answered:
        return time_lookups(self.vm, "hva_range", starts, lasts, group=group)

    def changes(self, rows: NDArray[Any], group: int = 1) -> Changed:
        return time_changes(self.vm, rows, group=group)

    def contents(self) -> Layout:
        """Return all slots in ascending order of gfn."""
        return self.vm.memslots_array()

    def made(self) -> dict[str, int]:
        """Return the number of changes of each kind so far."""
        return {kind: n for kind, n in self.vm.stats().items() if kind in CHANGES}

    def close(self) -> None:
        self.vm.close()


CHANGES = ("creates", "deletes", "moves", "flag_changes")


class Kernel:
    """A VM of the running kernel.  Its slots and translations are not visible, so only its results are checked."""

    backend = "kvm"

    def __init__(self, slots: Layout | None = None) -> None:
        self._fd = ioctls.create_vm()
        if slots is not None and self.changes(regions(slots))[1].any():
            raise OSError(errno.EIO, "the kernel refused a slot of the layout")

    def changes(self, rows: NDArray[Any], group: int = 1) -> Changed:
        calls = _packed(rows)
        ns = np.zeros(len(calls), dtype=np.uint64)
        results = np.zeros(len(calls), dtype=np.int32)
        for i, call in enumerate(calls):
            start = perf_counter_ns()
            try:
                fcntl.ioctl(self._fd, ioctls.KVM_SET_USER_MEMORY_REGION, call)
            except OSError as e:
                results[i] = -(e.errno or errno.EIO)
            ns[i] = perf_counter_ns() - start
        return np.add.reduceat(ns, np.arange(0, len(ns), group)), results

    def contents(self) -> None:
        return None

    def made(self) -> None:
        return None

    def close(self) -> None:
        os.close(self._fd)


#: struct kvm_userspace_memory_region, with `slot` split into its two halves.
_KVM_REGION = np.dtype(
    [
        ("slot", "<u2"),
        ("as_id", "<u2"),
        ("flags", "<u4"),
        ("guest_phys_addr", "<u8"),
        ("memory_size", "<u8"),
        ("userspace_addr", "<u8"),
    ]
)


def _packed(rows: NDArray[Any]) -> list[bytes]:
    packed = np.zeros(len(rows), dtype=_KVM_REGION)
    for name in _KVM_REGION.names or ():
        packed[name] = rows[name]
    return [row.tobytes() for row in packed]


def refused_call_ns(calls: int = 2000) -> float:
    """Return the median time of a call that the kernel refuses at once: the cost of the system call itself."""
    rows = np.zeros(calls, dtype=REGION_DTYPE)
    rows["memory_size"] = PAGE_SIZE // 2
    with closing(Kernel()) as kernel:
        ns, results = kernel.changes(rows)
    if (results != -errno.EINVAL).any():
        raise OSError(errno.EIO, "the kernel accepted half a page")
    return float(np.median(ns))


SLOW_TO_FILL = 0.5  # seconds


class Subjects:
    """VMs that hold layouts.  `get` creates a VM at the first request; it lives until `renew` or the end of the block.

    `room` is the number of ids of a VM of the engine, unless the layout needs more.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self._made: dict[tuple[str, str], Any] = {}
        self._slow: set[tuple[str, str]] = set()

    def __enter__(self) -> Subjects:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._slow.clear()
        self.renew()

    def renew(self) -> None:
        """Close all VMs except those that took long to fill.  The next round gets VMs elsewhere in memory."""
        for key in [key for key in self._made if key not in self._slow]:
            self._made.pop(key).close()

    def new(self, backend: str, slots_to_come: int) -> Any:
        """Return an empty VM with room for `slots_to_come` slots.  The caller closes it."""
        if backend == "kvm":
            return Kernel()
        return Engine(backend, room=max(self.room, slots_to_come))

    def get(self, backend: str, key: str, slots: Callable[[], Layout]) -> Any:
        """Return the VM of this backend that holds the layout `key`."""
        if (backend, key) not in self._made:
            layout, start = slots(), perf_counter()
            made = Kernel(layout) if backend == "kvm" else Engine(backend, layout, self.room)
            if perf_counter() - start > SLOW_TO_FILL:
                self._slow.add((backend, key))
            self._made[backend, key] = made
        return self._made[backend, key]

    def keep(self, backend: str, key: str, subject: Any) -> None:
        """Let `get` return this VM from now on.  If `get` has one for this key already, close this one."""
        if (backend, key) in self._made:
            subject.close()
        else:
            self._made[backend, key] = subject
