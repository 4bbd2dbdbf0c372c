# SPDX-License-Identifier: MIT
"""What the tests of hostile callers share: slots in pages, scripts in processes of their own, the methods there are.

A test that may crash or hang runs as a script: a crash is then a failed test and no more, a hang ends after a limit.
The limit is far from tight, and all else that a script waits for is progress: a busy machine fails no test.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator

from memslots import VM, MemorySlot

PAGE = 4096

# What every script begins with.
PRELUDE = """
import ctypes, errno, gc, os, signal, sys, threading, time, warnings, weakref
import numpy as np
import memslots
from memslots import *
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: threads and fork
warnings.simplefilter("ignore", ReaderStallWarning)  # a busy machine makes any reader slow

def put(vm, id, base, npages, flags=0):
    vm.set_user_memory_region(id, guest_phys_addr=base * 4096, memory_size=npages * 4096,
                              userspace_addr=id << 30, flags=flags)

def refused(error, call, *args):
    try:
        call(*args)
    except error as caught:
        return caught
    raise AssertionError(f"{call} was not refused")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may be started without
"""


def put(
    vm: VM, id: int, base: int, npages: int, flags: int = 0, as_id: int = 0, hva: int | None = None
) -> None:
    """set_user_memory_region in pages; the host address says the id."""
    vm.set_user_memory_region(
        id,
        guest_phys_addr=base * PAGE,
        memory_size=npages * PAGE,
        userspace_addr=id * 2**30 if hva is None else hva,
        flags=flags,
        as_id=as_id,
    )


def slot(id: int, base: int, npages: int, flags: int = 0, as_id: int = 0) -> MemorySlot:
    """The value of what put() makes."""
    return MemorySlot(id, as_id, base, npages, id * 2**30, flags)


def runs(script: str, *, prints: str = "well", limit: float = 300, imports: bool = True) -> None:
    """The script, in a process of its own, prints this and nothing else, and ends by itself within the limit."""
    command = [sys.executable, "-c", PRELUDE * imports + textwrap.dedent(script)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired as hung:
        raise AssertionError(f"hangs: {hung.stdout!r} {hung.stderr!r}") from None
    outcome = (done.stdout.strip(), done.stderr, done.returncode)
    assert outcome == (prints, "", 0), (
        f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    )


def parameters() -> Iterator[tuple[str, str]]:
    """Every (call, parameter) of the package's own classes and timing functions, but for self."""
    import memslots
    from memslots import _memslots

    for cls in (VM, memslots.VCPU, memslots.Update, memslots.ReadSection, memslots.SlotHandle):
        for name, method in methods(cls):
            for parameter in inspect.signature(method).parameters.values():
                if parameter.name != "self":
                    yield f"{cls.__name__}.{name}", parameter.name
    for name in ("time_changes", "time_lookups", "time_nothing"):
        for parameter in inspect.signature(getattr(_memslots, name)).parameters:
            yield name, parameter


def methods(cls: type) -> Iterator[tuple[str, object]]:
    """The methods of a class, those that `with` calls among them; not what every object has."""
    for name, value in vars(cls).items():
        if callable(value) and (not name.startswith("__") or name in ("__enter__", "__exit__")):
            yield name, value
