# SPDX-License-Identifier: MIT
"""Helpers that the Python tests share: slots in pages, a listener that records, scripts in their own process.

A test that may crash or hang runs as a script: a crash then fails one test, and a hang ends after a limit.
The limit is far from tight, and a script waits for nothing but progress, so a busy machine fails no test.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from memslots import VM, Change, Listener, MemorySlot, build_info

PAGE = 4096
SANITIZED = build_info()["sanitizer"] != "none"
HOOKS = ("prepare", "abort", "flush", "commit")


def put(
    vm: VM,
    id: int,
    base: int,
    npages: int,
    flags: int = 0,
    as_id: int = 0,
    *,
    hva: int | None = None,
    **fields: int,
) -> None:
    """set_user_memory_region() in pages.

    The host address is the id in units of 1 GiB unless `hva` gives another one.  `fields` are further
    arguments, or replace those that put() computes: guest_phys_addr, for one that is not whole pages.
    """
    request = {
        "guest_phys_addr": base * PAGE,
        "memory_size": npages * PAGE,
        "userspace_addr": id * 2**30 if hva is None else hva,
        "flags": flags,
        "as_id": as_id,
    }
    vm.set_user_memory_region(id, **request | fields)


# The first lines of every script; put() is among them.
PRELUDE = f"""
import ctypes, errno, gc, os, signal, sys, threading, time, warnings, weakref
import numpy as np
import memslots
from memslots import *
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: threads and fork
warnings.simplefilter("ignore", ReaderStallWarning)  # a busy machine makes any reader slow
signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent may be a job that ignores SIGINT

PAGE = {PAGE}
{inspect.getsource(put)}
def refused(error, call, *args):
    try:
        call(*args)
    except error as caught:
        return caught
    raise AssertionError(f"{{call}} was not refused")
"""


# attempt(call, n): calls with the n-th allocation of Python failing, and returns the name of the exception.
#
# If CPython finds no memory for a new function, it may release the function's code object once too often: gh-122752,
# seen in 3.12.1 and 3.13.0, not in 3.11.7.  A later call that makes the function then crashes, for example
# broadcast_to() of numpy.  So every such code object gets more references than a script can lose.
ATTEMPT = """
import types
import _testcapi
spare = []
def keep_codes():
    codes = [f.__code__ for f in gc.get_objects() if isinstance(f, types.FunctionType)]
    while codes:
        inner = [c for c in codes.pop().co_consts if isinstance(c, types.CodeType)]
        codes += inner
        spare.extend(inner * 1000)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(spare))  # the end of the process releases nothing
def attempt(call, n):
    if not spare:
        keep_codes()
    failed = None
    _testcapi.set_nomemory(n, n + 1)
    try:
        call()
    except BaseException as error:
        failed = error
    finally:
        _testcapi.remove_mem_hooks()
    name = type(failed).__name__
    failed = None  # its traceback has this frame, and a cycle would keep everything that the call has made
    return name
"""


def memslot(
    id: int, as_id: int, base_gfn: int, npages: int, userspace_addr: int, flags: int = 0
) -> MemorySlot:
    """A MemorySlot of its fields in the order of its repr."""
    return MemorySlot(
        id=id,
        as_id=as_id,
        base_gfn=base_gfn,
        npages=npages,
        userspace_addr=userspace_addr,
        flags=flags,
    )


def slot(id: int, base: int, npages: int, flags: int = 0, as_id: int = 0) -> MemorySlot:
    """The MemorySlot that put() makes with the same arguments."""
    return memslot(id, as_id, base, npages, id * 2**30, flags)


Calls = list[tuple[Any, ...]]


class Recorder(Listener):
    """Records every call of its hooks, then runs the action that was given for that hook.

    `calls` gets one (name, hook, *arguments) for each call; several recorders may share one list.
    With `once`, each action runs in the first call of its hook only.
    """

    def __init__(
        self,
        calls: Calls | None = None,
        name: str = "recorder",
        *,
        once: bool = False,
        **actions: Callable[[], object],
    ) -> None:
        self.calls: Calls = [] if calls is None else calls
        self.name, self.once, self.actions = name, once, actions

    @property
    def hooks(self) -> list[str]:
        return [hook for _, hook, *_ in self.calls]

    def record(self, hook: str, *arguments: Any) -> None:
        self.calls.append((self.name, hook, *arguments))
        action = self.actions.pop(hook, None) if self.once else self.actions.get(hook)
        if action:
            action()

    def prepare(self, change: Change) -> None:
        self.record("prepare", *change)

    def abort(self, change: Change) -> None:
        self.record("abort", *change)

    def flush(self, active: MemorySlot, old: MemorySlot) -> None:
        self.record("flush", active, old)

    def commit(self, change: Change) -> None:
        self.record("commit", *change)


@contextmanager
def held(manager: AbstractContextManager[object]) -> Iterator[None]:
    """Another thread is inside `manager` (a read section, an update) until the body ends."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with manager:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()


def runs(script: str, *, prints: str = "well", limit: float = 300, imports: bool = True) -> None:
    """Run the script in its own process: it must print `prints` and nothing else, and end within the limit."""
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
    """Every (call, parameter) of the package's classes and timing functions, without self."""
    import memslots
    from memslots import _memslots

    for cls in (
        VM,
        memslots.Mapping,
        memslots.VCPU,
        memslots.Update,
        memslots.Transaction,
        memslots.ReadSection,
        memslots.SlotHandle,
    ):
        for name, method in methods(cls):
            for parameter in inspect.signature(method).parameters.values():
                if parameter.name != "self":
                    yield f"{cls.__name__}.{name}", parameter.name
    for name in ("time_changes", "time_lookups", "time_nothing"):
        for parameter in inspect.signature(getattr(_memslots, name)).parameters:
            yield name, parameter


def methods(cls: type) -> Iterator[tuple[str, object]]:
    """The public methods of a class, and those that `with` calls."""
    for name, value in vars(cls).items():
        if callable(value) and (not name.startswith("__") or name in ("__enter__", "__exit__")):
            yield name, value
