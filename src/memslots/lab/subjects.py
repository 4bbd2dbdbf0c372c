# SPDX-License-Identifier: MIT
"""Who is measured, each with the slots of a layout: designs of the engine by name, the tree with an index, this
machine's kernel.
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

ROOM = (
    32_764  # ids of a VM on x86-64; the array has a table of as many, however few slots there are
)

#: The tree with the index that lookups by gfn derive from it; to everything else it is the tree.
INDEXED = "tree+index"


def design_of(backend: str) -> str:
    """The design of the engine that stands behind this name."""
    return "tree" if backend == INDEXED else backend


def regions(slots: Layout, **fields: Any) -> NDArray[Any]:
    """The changes that create these slots, or with other fields given, do something else to them."""
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
    """What takes changes: a VM of the engine or of the kernel."""

    backend: str

    def changes(self, rows: NDArray[Any], group: int = 1) -> Changed: ...
    def contents(self) -> Layout | None: ...
    def made(self) -> dict[str, int] | None: ...
    def close(self) -> None: ...


class Engine:
    """A VM of one design, and the loops that time it.

    A design is measured by itself, so without an index.  INDEXED has one as soon as it has its slots: single lookups
    among more than a few slots use an index that is there, but make none of many.
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
        """All slots by rising gfn."""
        return self.vm.memslots_array()

    def made(self) -> dict[str, int]:
        """How many changes of each kind it has made so far."""
        return {kind: n for kind, n in self.vm.stats().items() if kind in CHANGES}

    def close(self) -> None:
        self.vm.close()


CHANGES = ("creates", "deletes", "moves", "flag_changes")


class Kernel:
    """A VM of the running kernel.  It shows neither slots nor translations: only its results can be checked."""

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


#: struct kvm_userspace_memory_region, with the two halves of `slot` apart.
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
    """What the way into the kernel and back costs: a call that its first rule refuses, median."""
    rows = np.zeros(calls, dtype=REGION_DTYPE)
    rows["memory_size"] = PAGE_SIZE // 2
    with closing(Kernel()) as kernel:
        ns, results = kernel.changes(rows)
    if (results != -errno.EINVAL).any():
        raise OSError(errno.EIO, "the kernel accepted half a page")
    return float(np.median(ns))


SLOW_TO_FILL = 0.5  # seconds


class Subjects:
    """VMs with layouts in them, made when first asked for and kept until they are renewed, or the end of the block.

    `room`: how many ids a VM of the engine has, if not more are needed.
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
        """Closes all but those that took long to fill: the next round gets VMs that lie elsewhere in memory."""
        for key in [key for key in self._made if key not in self._slow]:
            self._made.pop(key).close()

    def new(self, backend: str, slots_to_come: int) -> Any:
        """An empty VM with room for them, which the caller closes."""
        if backend == "kvm":
            return Kernel()
        return Engine(backend, room=max(self.room, slots_to_come))

    def get(self, backend: str, key: str, slots: Callable[[], Layout]) -> Any:
        """The VM of this backend that holds the layout called `key`."""
        if (backend, key) not in self._made:
            layout, start = slots(), perf_counter()
            made = Kernel(layout) if backend == "kvm" else Engine(backend, layout, self.room)
            if perf_counter() - start > SLOW_TO_FILL:
                self._slow.add((backend, key))
            self._made[backend, key] = made
        return self._made[backend, key]

    def keep(self, backend: str, key: str, subject: Any) -> None:
        """From now on this is the one that `get` gives, if there is none, and closed when that would be."""
        if (backend, key) in self._made:
            subject.close()
        else:
            self._made[backend, key] = subject
