# SPDX-License-Identifier: MIT
"""Code that runs inside a call: hooks that raise, re-enter, linger, close, recurse without end.

A watchdog ends each case after five seconds: what is promised is an error at once, never a hang.
"""

from __future__ import annotations

import faulthandler
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from scene import put, slot

from memslots import (
    HVA_ERR_BAD,
    VM,
    Change,
    ChangeKind,
    Listener,
    MemFlag,
    MemorySlot,
    MemslotsError,
    ReadSection,
    ReentrantChangeError,
    build_info,
)

LOG = MemFlag.LOG_DIRTY_PAGES
SANITIZED = build_info()["sanitizer"] != "none"
HOOKS = ("prepare", "abort", "flush", "commit")
Deed = Callable[[VM], object]


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """It needs no GIL: whoever holds it for ever is shown with his stack."""
    faulthandler.dump_traceback_later(5 * (8 if SANITIZED else 1), exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Does(Listener):
    """Does something in some hooks, once in each, and writes down which ran."""

    def __init__(self, **deeds: Callable[[], object]) -> None:
        self.deeds, self.ran = deeds, []

    def run(self, hook: str) -> None:
        self.ran.append(hook)
        self.deeds.pop(hook, lambda: None)()

    def prepare(self, change: Change) -> None:
        self.run("prepare")

    def abort(self, change: Change) -> None:
        self.run("abort")

    def flush(self, active: MemorySlot, old: MemorySlot) -> None:
        self.run("flush")

    def commit(self, change: Change) -> None:
        self.run("commit")


class StopError(Exception):
    """What refuses a change, so that abort is run."""


class Refuses(Listener):
    """Every change."""

    def prepare(self, change: Change) -> None:
        raise StopError


# ---- what a hook does, in each of the four hooks -----------------------------------------------------------------


def with_section(deed: Deed) -> Deed:
    def run(vm: VM) -> None:
        with vm.read():
            deed(vm)

    return run


def in_thread(deed: Deed) -> Deed:
    """In another thread, which the hook waits for, but not for ever."""

    def meanwhile(vm: VM) -> None:
        with suppress(StopError):
            deed(vm)

    def run(vm: VM) -> None:
        thread = threading.Thread(target=meanwhile, args=(vm,), daemon=True)
        thread.start()
        thread.join(0.05)
        LATER.append(thread)

    return run


def other_vm(vm: VM) -> None:
    with VM() as other:
        put(other, 0, 0, 1)
        other.check()
        with other.begin_update():
            pass


def change_of_other(vm: VM) -> None:
    with VM() as other:
        other.add_listener(Does(prepare=lambda: vm.gfn_to_memslot(0), commit=lambda: vm.memslots()))
        put(other, 0, 0, 1)
        put(other, 0, 5, 1)
        put(other, 0, 0, 0)


def recursion(vm: VM) -> None:
    recursion(vm)


def drops(vm: VM) -> None:
    """An update and a VM die here, by hand and by the collector."""
    other = VM()
    put(other, 0, 0, 1)
    update = other.begin_update
    ring: list[Any] = [other, update]
    ring.append(ring)
    del other, update, ring
    gc.collect()


def batch(vm: VM) -> None:
    hvas = vm.gfn_to_hva_many(np.arange(10_000, dtype=np.uint64))
    assert (hvas == HVA_ERR_BAD).any()


def odd_error(vm: VM) -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

        __repr__ = __str__

    raise OddError


def raises(error: type[BaseException]) -> Deed:
    def deed(vm: VM) -> None:
        raise error("from the hook")

    return deed


LATER: list[threading.Thread] = []
# What comes out of the change when the hook lets it through; None: nothing does.
DEEDS: dict[str, tuple[Deed, type[BaseException] | None]] = {
    "raise Exception": (raises(ValueError), ValueError),
    "raise KeyboardInterrupt": (raises(KeyboardInterrupt), KeyboardInterrupt),
    "raise SystemExit": (raises(SystemExit), SystemExit),
    "raise GeneratorExit": (raises(GeneratorExit), GeneratorExit),
    "raise MemoryError": (raises(MemoryError), MemoryError),
    "raise what cannot be printed": (odd_error, Exception),
    "recursion": (recursion, RecursionError),
    "change": (lambda vm: put(vm, 9, 900, 1), ReentrantChangeError),
    "change in a section": (with_section(lambda vm: put(vm, 9, 900, 1)), ReentrantChangeError),
    "close": (lambda vm: vm.close(), ReentrantChangeError),
    "with vm": (lambda vm: vm.__exit__(None, None, None), ReentrantChangeError),
    "begin_update": (lambda vm: vm.begin_update().__enter__(), ReentrantChangeError),
    "begin_update of another": (other_vm, ReentrantChangeError),
    "check": (lambda vm: vm.check(), ReentrantChangeError),
    "get_dirty_log": (lambda vm: vm.get_dirty_log(3), ReentrantChangeError),
    "add itself": (lambda vm: vm.add_listener(Listener()), ReentrantChangeError),
    "create_vcpu": (lambda vm: vm.create_vcpu(), ReentrantChangeError),
    "another thread changes": (in_thread(lambda vm: put(vm, 9, 900, 1)), None),
    "another thread closes": (in_thread(lambda vm: vm.close()), None),
    "another thread looks": (in_thread(lambda vm: [vm.memslots(), vm.gfn_to_memslot(0)]), None),
    "change of another": (change_of_other, None),
    "look": (
        lambda vm: [vm.memslots(), vm.snapshot(), vm.hva_to_gfns(0), vm.stats(), vm.generation()],
        None,
    ),
    "look in a section": (with_section(batch), None),
    "mark": (lambda vm: vm.mark_page_dirty_many(np.arange(999, dtype=np.uint64)), None),
    "collect": (drops, None),
    "linger": (lambda vm: time.sleep(0.05), None),
}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("hook", HOOKS)
def test_deed_in_a_hook(hook: str, deed: str) -> None:
    """What it raises arrives; the change is whole or none; the VM goes on."""
    act, error = DEEDS[deed]
    vm = VM()
    put(vm, 3, 10, 4, LOG)
    does = Does(**{hook: lambda: act(vm)})
    refuses = Refuses()
    vm.add_listener(does)
    if hook == "abort":
        vm.add_listener(refuses)
        error = StopError
    if error is None:
        put(vm, 3, 50, 4, LOG)
    else:
        with pytest.raises(error):
            put(vm, 3, 50, 4, LOG)
    undone = hook == "abort" or (hook == "prepare" and error is not None)
    for thread in LATER:
        thread.join()
    LATER.clear()
    assert (
        does.ran
        == {
            "prepare": ["flush", "prepare"] + (["commit"] if error is None else []),
            "abort": ["flush", "prepare", "abort"],
        }.get(hook, ["flush", "prepare", "commit"])
        or deed == "another thread changes"
    )
    if vm.closed:
        assert deed == "another thread closes"
        return
    assert vm.id_to_memslot(3) == slot(3, 10 if undone else 50, 4, LOG)
    vm.remove_listener(does)
    if hook == "abort":
        vm.remove_listener(refuses)
    put(vm, 8, 800, 1)
    vm.check()
    vm.close()


def test_enough_cases() -> None:
    assert len(DEEDS) * len(HOOKS) >= 20


# ---- sections that a hook leaves open ----------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["prepare", "flush"])
@pytest.mark.parametrize("backend", ["tree", "array", "list"])
def test_section_that_a_hook_leaves_open(hook: str, backend: str) -> None:
    """The change does not wait for its own thread; the section goes on, holds others up, and ends by its owner."""
    with VM(backend=backend) as vm:
        put(vm, 3, 10, 4)
        section = vm.read()
        does = Does(**{hook: section.__enter__})
        vm.add_listener(does)
        put(vm, 3, 50, 4)
        assert does.ran == ["flush", "prepare", "commit"]
        with pytest.raises(ReentrantChangeError) as caught:
            put(vm, 3, 60, 4)
        assert caught.value.rule == "READ_SECTION"
        thread = threading.Thread(target=put, args=(vm, 4, 900, 1))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        vm.gfn_to_memslot(50)
        vm.gfn_to_hva_many(np.arange(100, dtype=np.uint64))
        section.__exit__(None, None, None)
        thread.join()
        assert [s.base_gfn for s in vm.memslots()] == [50, 900]
        vm.check()


def test_section_from_flush_to_commit() -> None:
    """Entered in one hook, left in another: every swap in between passes it."""
    with VM() as vm:
        section = vm.read()
        vm.add_listener(
            Does(prepare=section.__enter__, commit=lambda: section.__exit__(None, None, None))
        )
        for i in range(20):
            put(vm, i, 10 * i, 5)
            put(vm, i, 10 * i + 5, 5)
            vm.check()
        assert len(vm) == 20


def test_nested_sections_left_open() -> None:
    kept: list[ReadSection] = []

    def enter() -> None:
        for _ in range(3):
            kept.append(vm.read())
            kept[-1].__enter__()

    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Does(prepare=enter))
        put(vm, 3, 50, 4)
        assert len(kept) == 3
        kept.clear()
        put(vm, 4, 900, 1) if not kept else None
        kept.clear()
        vm.check()


# ---- rings of VMs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["prepare", "flush", "commit"])
def test_ring_of_vms_in_one_thread(hook: str) -> None:
    """Each one's hook changes the next: the last would change the first, which is in the middle of a change."""
    vms, errors = [VM() for _ in range(5)], []

    def on(i: int) -> Callable[[], None]:
        def deed() -> None:
            try:
                put(vms[(i + 1) % 5], 3, 50, 1)
            except ReentrantChangeError as error:
                errors.append(error.rule)

        return deed

    for i, vm in enumerate(vms):
        put(vm, 3, 10, 1)
        vm.add_listener(Does(**{hook: on(i)}))
    put(vms[0], 3, 50, 1)
    assert errors == ["HOOK"]
    assert [vm.id_to_memslot(3).base_gfn for vm in vms] == [50] * 5
    for vm in vms:
        vm.check()


@pytest.mark.parametrize("hook", ["prepare", "flush", "commit"])
@pytest.mark.parametrize("number", [2, 3])
def test_ring_of_vms_in_as_many_threads(number: int, hook: str) -> None:
    """Locks are only tried from inside a hook: EBUSY where they meet, and all get through."""
    vms, other = [VM() for _ in range(number)], {"EBUSY": 0}
    met = threading.Barrier(number)

    def on(i: int) -> Callable[[], None]:
        def deed() -> None:
            if threading.current_thread().name != str(i):
                return
            met.wait()  # all make as many rounds
            try:
                put(vms[(i + 1) % number], 100 + i, 1000 + i, 1)
            except ReentrantChangeError:
                other["EBUSY"] += 1

        return deed

    def work(i: int) -> None:
        for n in range(100):
            put(vms[i], 3, 10 + n % 2, 1)

    for i, vm in enumerate(vms):
        put(vm, 3, 50, 1)
        vm.add_listener(Does(**{hook: on(i)}))
    threads = [
        threading.Thread(target=work, args=(i,), name=str(i), daemon=True) for i in range(number)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other["EBUSY"] >= 1
    for vm in vms:
        vm.check()
        vm.close()


def test_hooks_that_close_each_others_vms() -> None:
    """Whoever is in a change is not closed; whoever is not, is."""
    a, b = VM(), VM()
    a.add_listener(Does(commit=b.close))
    put(a, 0, 0, 1)
    assert b.closed
    b = VM()
    inner = Does(prepare=a.close)
    b.add_listener(inner)
    a.add_listener(Does(prepare=lambda: put(b, 0, 0, 1)))
    with pytest.raises(ReentrantChangeError):
        put(a, 1, 10, 1)
    assert not a.closed
    a.check()


def test_hook_that_lingers_holds_up_no_reader() -> None:
    """Lookups and sections of other threads come and go; a change waits; what it had to wait for is then over."""
    with VM() as vm:
        put(vm, 3, 10, 4)
        looked, begun = threading.Event(), threading.Event()

        def linger() -> None:
            begun.set()
            assert looked.wait()

        vm.add_listener(Does(commit=lambda: linger() if not looked.is_set() else None))
        changes = [threading.Thread(target=put, args=(vm, 3 + i, 50 + 10 * i, 4)) for i in range(3)]
        for thread in changes:
            thread.start()
        begun.wait()
        for _ in range(100):
            with vm.read():
                vm.memslots()
            vm.gfn_to_memslot(10)
        assert sum(thread.is_alive() for thread in changes) == 3
        looked.set()
        for thread in changes:
            thread.join()
        assert len(vm) == 3


def test_listener_that_loses_everything() -> None:
    """Its methods, its class, itself: AttributeError refuses, and it can still be removed."""
    with VM() as vm:
        does = Does()
        vm.add_listener(does)
        does.prepare = None
        with pytest.raises(TypeError):
            put(vm, 0, 0, 1)
        del does.prepare
        does.__dict__.clear()
        with pytest.raises(AttributeError):
            put(vm, 0, 0, 1)
        does.__class__ = type("Other", (Listener,), {"prepare": 5})
        with pytest.raises(TypeError):
            put(vm, 0, 0, 1)
        assert len(vm) == 0
        vm.remove_listener(does)
        put(vm, 0, 0, 1)


def test_listener_whose_methods_meddle_when_asked_for() -> None:
    """A property that changes, adds or closes while add_listener looks whether it is one."""

    class Meddles:
        abort = flush = commit = staticmethod(lambda *args: None)

        def __init__(self, deed: Callable[[], object]) -> None:
            self.deed = deed

        @property
        def prepare(self) -> Callable[[Change], None]:
            deed, self.deed = self.deed, lambda: None
            deed()
            return lambda change: None

    vm = VM()
    vm.add_listener(Meddles(lambda: put(vm, 0, 0, 1)))
    one = Meddles(lambda: vm.add_listener(one))
    with pytest.raises(ValueError, match="there already"):
        vm.add_listener(one)
    vm.check()
    with pytest.raises(MemslotsError, match="closed"):
        vm.add_listener(Meddles(vm.close))


def test_error_of_a_hook_releases_its_frames() -> None:
    """An exception's traceback holds the hook's frame, which holds whatever it likes: gone with the exception."""

    class Big:
        """Something with a weak reference."""

    references = []

    def deed() -> None:
        big = Big()
        references.append(weakref.ref(big))
        raise StopError(big)

    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Does(flush=deed, prepare=deed, commit=deed))
        with pytest.raises(StopError):
            put(vm, 3, 50, 4)
        gc.collect()
        assert [reference() for reference in references] == [None, None]


# ---- recursion -----------------------------------------------------------------------------------------------------


def test_recursion_through_hooks_of_many_vms() -> None:
    """Every hook makes a VM whose hook makes a VM: RecursionError, and every level is undone."""
    depth: list[int] = []

    def deeper() -> None:
        depth.append(1)
        with VM() as vm:
            vm.add_listener(Does(prepare=deeper))
            put(vm, 0, 0, 1)

    with pytest.raises(RecursionError):
        deeper()
    assert len(depth) > 20
    with VM() as vm:
        put(vm, 0, 0, 1)


def test_recursion_beside_a_section() -> None:
    """The section that the recursion began in is still one, and ends."""
    with VM() as vm:
        put(vm, 0, 0, 1)

        def deeper() -> None:
            with vm.read():
                vm.gfn_to_hva(0)
                deeper()

        with pytest.raises(RecursionError):
            deeper()
        put(vm, 0, 5, 1)
        assert vm.gfn_to_hva(5) == 0


def test_kinds_are_all_there() -> None:
    """The hooks above see every kind of change there is."""
    assert [kind.name for kind in ChangeKind] == ["CREATE", "DELETE", "MOVE", "FLAGS_ONLY"]
    assert sys.getrecursionlimit() >= 500
