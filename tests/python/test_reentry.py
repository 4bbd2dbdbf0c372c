# SPDX-License-Identifier: MIT
"""Hooks that call the engine: refused calls, sections left open, VMs that change each other, recursion.

A watchdog ends each case after five seconds: a call that must fail has to fail immediately, not hang.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from scene import HOOKS, SANITIZED, Recorder, held, put, slot

from memslots import (
    HVA_ERR_BAD,
    MEMSLOT_DTYPE,
    VM,
    Change,
    Listener,
    MemFlag,
    MemslotsError,
    ReadSection,
    ReentrantChangeError,
)

LOG = MemFlag.LOG_DIRTY_PAGES
Action = Callable[[VM], object]


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """It works without the GIL: it also prints the stack of a thread that never releases the GIL."""
    faulthandler.dump_traceback_later(5 * (8 if SANITIZED else 1), exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def in_hooks(**actions: Callable[[], object]) -> Recorder:
    """A listener that runs each action in the first call of its hook."""
    return Recorder(once=True, **actions)


class StopError(Exception):
    """A hook raises it to refuse a change."""


class Refuses(Listener):
    """It refuses every change."""

    def prepare(self, change: Change) -> None:
        raise StopError


# ---- actions in each of the four hooks ---------------------------------------------------------------------------


def in_section(action: Action) -> Action:
    def run(vm: VM) -> None:
        with vm.read():
            action(vm)

    return run


def in_thread(action: Action) -> Action:
    """Run the action in another thread, which may have to wait for the hook; so the hook waits only briefly."""

    def meanwhile(vm: VM) -> None:
        with suppress(StopError):
            action(vm)

    def run(vm: VM) -> None:
        thread = threading.Thread(target=meanwhile, args=(vm,), daemon=True)
        thread.start()
        thread.join(0.05)
        LATER.append(thread)

    return run


def update_of_another(vm: VM) -> None:
    with VM() as other:
        put(other, 0, 0, 1)
        other.check()
        with other.begin_update():
            pass


def change_of_another(vm: VM) -> None:
    with VM() as other:
        other.add_listener(
            in_hooks(prepare=lambda: vm.gfn_to_memslot(0), commit=lambda: vm.memslots())
        )
        put(other, 0, 0, 1)
        put(other, 0, 5, 1)
        put(other, 0, 0, 0)


def recursion(vm: VM) -> None:
    recursion(vm)


def collect(vm: VM) -> None:
    """Drop a VM and its update in a reference cycle, and collect them."""
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


LATER: list[threading.Thread] = []
# Calls that change the VM of the hook, or belong to its changes.
REFUSED: dict[str, Callable[[VM, Recorder], object]] = {
    "set": lambda vm, _: put(vm, 9, 900, 1),
    "no-op": lambda vm, _: put(vm, 3, 10, 4, LOG),
    "load": lambda vm, _: vm.load_memslots(np.zeros(0, MEMSLOT_DTYPE)),
    "get_dirty_log": lambda vm, _: vm.get_dirty_log(3),
    "clear_dirty_log": lambda vm, _: vm.clear_dirty_log(3, 0, 0, None),
    "harvest_dirty": lambda vm, _: vm.harvest_dirty(),
    "merge_dirty_log": lambda vm, _: vm.merge_dirty_log(3, np.zeros(1, np.uint64)),
    "protect": lambda vm, _: setattr(vm, "manual_dirty_log_protect", 1),
    "check": lambda vm, _: vm.check(),
    "close": lambda vm, _: vm.close(),
    "with vm": lambda vm, _: vm.__exit__(None, None, None),
    "begin_update": lambda vm, _: vm.begin_update().__enter__(),
    "create_vcpu": lambda vm, _: vm.create_vcpu(),
    "add_listener": lambda vm, _: vm.add_listener(Listener()),
    "remove_listener": lambda vm, recorder: vm.remove_listener(recorder),
    "set in a section": lambda vm, _: in_section(lambda vm: put(vm, 9, 900, 1))(vm),
}
# Other actions, and the error that each one raises.
ACTIONS: dict[str, tuple[Action, type[BaseException] | None]] = {
    "recursion": (recursion, RecursionError),
    "update of another VM": (update_of_another, ReentrantChangeError),
    "another thread changes": (in_thread(lambda vm: put(vm, 9, 900, 1)), None),
    "another thread closes": (in_thread(lambda vm: vm.close()), None),
    "another thread looks up": (
        in_thread(lambda vm: [vm.memslots(), vm.gfn_to_memslot(0)]),
        None,
    ),
    "change of another VM": (change_of_another, None),
    "lookups": (
        lambda vm: [vm.memslots(), vm.snapshot(), vm.hva_to_gfns(0), vm.stats(), vm.generation()],
        None,
    ),
    "batch in a section": (in_section(batch), None),
    "mark": (lambda vm: vm.mark_page_dirty_many(np.arange(999, dtype=np.uint64)), None),
    "garbage collection": (collect, None),
    "sleep": (lambda vm: time.sleep(0.05), None),
}


def move_with(
    vm: VM, hook: str, recorder: Recorder, error: type[BaseException] | None
) -> BaseException | None:
    """Move slot 3 from 10 to 50 with the recorder, then join the threads that its actions started.

    Returns the error that the move raised, which must be of the given type.  The slot has moved
    unless prepare refused: with hook "abort" another listener does that.
    """
    put(vm, 3, 10, 4, LOG)
    vm.add_listener(recorder)
    caught = None
    if hook == "abort":
        vm.add_listener(Refuses())
        error = StopError
    try:
        put(vm, 3, 50, 4, LOG)
    except BaseException as raised:
        caught = raised
    for thread in LATER:
        thread.join()
    LATER.clear()
    assert type(caught) is (error or type(None))
    if not vm.closed:
        rolled_back = hook == "abort" or (hook == "prepare" and error is not None)
        assert vm.id_to_memslot(3) == slot(3, 10 if rolled_back else 50, 4, LOG)
        vm.check()
    return caught


def hooks_of_move(hook: str, error: type[BaseException] | None) -> list[str]:
    """The hooks that run in a move with an action in `hook` that raises `error`."""
    if hook == "abort":
        return ["flush", "prepare", "abort"]
    return ["flush", "prepare"] + ["commit"] * (hook != "prepare" or error is None)


@pytest.mark.parametrize("caught", [False, True], ids=["uncaught", "caught"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("call", REFUSED)
def test_refused_in_a_hook(call: str, hook: str, caught: bool) -> None:
    """The call fails immediately with EDEADLK.  If the hook catches that, the change goes on;
    if not, prepare refuses the change, and flush and commit raise after it."""
    errors: list[ReentrantChangeError] = []

    def action() -> None:
        try:
            REFUSED[call](vm, recorder)
        except ReentrantChangeError as error:
            errors.append(error)
            if not caught:
                raise

    vm, recorder = VM(), in_hooks(**{hook: action})
    expected = None if caught else ReentrantChangeError
    raised = move_with(vm, hook, recorder, expected)
    if expected and hook != "abort":
        assert raised is errors[0]
    rule = "READ_SECTION" if call == "set in a section" else "HOOK"
    assert [(error.errno, error.rule) for error in errors] == [(errno.EDEADLK, rule)]
    assert recorder.hooks == hooks_of_move(hook, expected)
    assert len(vm) == 1
    vm.close()


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("hook", HOOKS)
def test_action_in_a_hook(hook: str, action: str) -> None:
    """The exception of the action reaches the caller, the change is complete or rolled back, and
    the VM can be changed again."""
    act, error = ACTIONS[action]
    vm = VM()
    recorder = in_hooks(**{hook: lambda: act(vm)})
    move_with(vm, hook, recorder, error)
    if action != "another thread changes":  # its change calls the hooks too
        assert recorder.hooks == hooks_of_move(hook, error)
    if vm.closed:
        assert action == "another thread closes"
        return
    vm.remove_listener(recorder)
    if hook != "abort":  # else Refuses is still there
        put(vm, 8, 800, 1)
        vm.check()
    vm.close()


@pytest.mark.parametrize("hook", ["flush", "prepare", "commit"])
def test_refused_call_keeps_the_exception_of_another_hook(hook: str) -> None:
    """One listener raises in flush; the next one tries a change and catches its EDEADLK."""

    def change() -> None:
        with pytest.raises(ReentrantChangeError) as caught:
            put(vm, 9, 900, 1)
        assert not hasattr(caught.value, "__notes__")  # it is unrelated to the other exception
        with vm.read(), pytest.raises(ReentrantChangeError):
            put(vm, 9, 900, 1)

    def stop() -> None:
        raise StopError("flush")

    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Recorder(flush=stop))
        vm.add_listener(Recorder(**{hook: change}))
        with pytest.raises(StopError, match="flush"):
            put(vm, 3, 50, 4)
        assert vm.memslots() == [slot(3, 50, 4)]


# ---- sections that a hook leaves open ----------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["prepare", "flush"])
@pytest.mark.parametrize("backend", ["tree", "array", "list"])
def test_section_that_a_hook_leaves_open(hook: str, backend: str) -> None:
    """The change does not wait for its own thread.  Other changes wait until the section's thread leaves it."""
    with VM(backend=backend) as vm:
        put(vm, 3, 10, 4)
        section = vm.read()
        recorder = in_hooks(**{hook: section.__enter__})
        vm.add_listener(recorder)
        put(vm, 3, 50, 4)
        assert recorder.hooks == ["flush", "prepare", "commit"]
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
    """A section is entered in prepare and left in commit: the swap in between does not wait for it."""
    with VM() as vm:
        section = vm.read()
        vm.add_listener(
            in_hooks(prepare=section.__enter__, commit=lambda: section.__exit__(None, None, None))
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
        vm.add_listener(in_hooks(prepare=enter))
        put(vm, 3, 50, 4)
        assert len(kept) == 3
        kept.clear()
        put(vm, 4, 900, 1)  # does not wait: the sections ended with their objects
        vm.check()


# ---- hooks that change other VMs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["prepare", "flush", "commit"])
def test_ring_of_vms_in_one_thread(hook: str) -> None:
    """The hook of each VM changes the next one.  The last one finds the first in the middle of a change."""
    vms, errors = [VM() for _ in range(5)], []

    def on(i: int) -> Callable[[], None]:
        def action() -> None:
            try:
                put(vms[(i + 1) % 5], 3, 50, 1)
            except ReentrantChangeError as error:
                errors.append(error.rule)

        return action

    for i, vm in enumerate(vms):
        put(vm, 3, 10, 1)
        vm.add_listener(in_hooks(**{hook: on(i)}))
    put(vms[0], 3, 50, 1)
    assert errors == ["HOOK"]
    assert [vm.id_to_memslot(3).base_gfn for vm in vms] == [50] * 5
    for vm in vms:
        vm.check()


@pytest.mark.parametrize("hook", ["prepare", "flush", "commit"])
@pytest.mark.parametrize("number", [2, 3])
def test_ring_of_vms_in_as_many_threads(number: int, hook: str) -> None:
    """A hook tries the lock of another VM and does not wait: where the threads meet, each gets EBUSY."""
    vms, errors = [VM() for _ in range(number)], []
    met = threading.Barrier(number)

    def on(i: int) -> Callable[[], None]:
        def action() -> None:
            if threading.current_thread().name != str(i):
                return
            met.wait()  # all threads are in a hook now, in each round
            try:
                put(vms[(i + 1) % number], 100 + i, 1000 + i, 1)
            except ReentrantChangeError as error:
                errors.append(error.errno)

        return action

    def work(i: int) -> None:
        for n in range(100):
            put(vms[i], 3, 10 + n % 2, 1)

    for i, vm in enumerate(vms):
        put(vm, 3, 50, 1)
        vm.add_listener(Recorder(**{hook: on(i)}))
    threads = [
        threading.Thread(target=work, args=(i,), name=str(i), daemon=True) for i in range(number)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(errors) == {errno.EBUSY}
    for vm in vms:
        vm.check()
        vm.close()


def test_change_of_another_vm() -> None:
    """It works, and fails with EBUSY while another thread holds the lock of that VM."""
    with VM() as vm, VM() as other:
        vm.add_listener(Recorder(commit=lambda: put(other, 3, 10, 4)))
        put(vm, 3, 10, 4)
        assert other.memslots() == [slot(3, 10, 4)]
        with held(other.begin_update()), pytest.raises(ReentrantChangeError) as caught:
            put(vm, 3, 10, 0)
        assert caught.value.errno == errno.EBUSY
        assert len(vm) == 0


def test_hooks_that_close_each_others_vms() -> None:
    """A hook can close another VM, but not one that is in the middle of a change."""
    a, b = VM(), VM()
    a.add_listener(in_hooks(commit=b.close))
    put(a, 0, 0, 1)
    assert b.closed
    b = VM()
    inner = in_hooks(prepare=a.close)
    b.add_listener(inner)
    a.add_listener(in_hooks(prepare=lambda: put(b, 0, 0, 1)))
    with pytest.raises(ReentrantChangeError):
        put(a, 1, 10, 1)
    assert not a.closed
    a.check()


def test_slow_hook_does_not_delay_readers() -> None:
    """While a hook waits, other threads look up and enter sections, and their changes wait."""
    with VM() as vm:
        put(vm, 3, 10, 4)
        looked, begun = threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            assert looked.wait()

        vm.add_listener(in_hooks(commit=lambda: wait() if not looked.is_set() else None))
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


def test_listener_whose_property_calls_the_engine() -> None:
    """add_listener() reads the property `prepare`, which changes the VM, adds the listener, or closes the VM."""

    class Property:
        abort = flush = commit = staticmethod(lambda *args: None)

        def __init__(self, action: Callable[[], object]) -> None:
            self.action = action

        @property
        def prepare(self) -> Callable[[Change], None]:
            action, self.action = self.action, lambda: None
            action()
            return lambda change: None

    vm = VM()
    vm.add_listener(Property(lambda: put(vm, 0, 0, 1)))
    one = Property(lambda: vm.add_listener(one))
    with pytest.raises(ValueError, match="there already"):
        vm.add_listener(one)
    vm.check()
    with pytest.raises(MemslotsError, match="closed"):
        vm.add_listener(Property(vm.close))


# ---- recursion -----------------------------------------------------------------------------------------------------


def test_recursion_through_hooks_of_many_vms() -> None:
    """Each hook makes a VM whose hook makes another: RecursionError rolls back the change of every level."""
    depth: list[int] = []

    def deeper() -> None:
        depth.append(1)
        with VM() as vm:
            vm.add_listener(in_hooks(prepare=deeper))
            put(vm, 0, 0, 1)

    with pytest.raises(RecursionError):
        deeper()
    assert len(depth) > 20
    with VM() as vm:
        put(vm, 0, 0, 1)


def test_recursion_inside_a_section() -> None:
    """Every level enters a section.  RecursionError leaves all of them, so a change does not wait."""
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
