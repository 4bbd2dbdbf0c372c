# SPDX-License-Identifier: MIT
"""Listeners: order and arguments of the hooks, refusals, exceptions, adding, removing, lifetimes.

Hooks that call the engine are in test_reentry.py.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scene import HOOKS, Calls, Recorder, put, slot

from memslots import (
    MEMSLOT_DTYPE,
    VM,
    Change,
    ChangeKind,
    ClosedError,
    InvalidRegionError,
    Listener,
    ListenerError,
    MemFlag,
    MemorySlot,
)

LOG, INVALID = MemFlag.LOG_DIRTY_PAGES, MemFlag.INVALID


class OneError(Exception):
    """A hook raises it."""


class OtherError(Exception):
    """Another hook raises it."""


class UnprintableError(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


def raising(error: BaseException | type[BaseException]) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


def brief(calls: Calls) -> list[str]:
    """Name and hook of each call, without its arguments."""
    return [f"{name} {hook}" for name, hook, *_ in calls]


# ---- order and arguments ---------------------------------------------------------------------------

CREATE, DELETE, MOVE, FLAGS, RESIZE = ChangeKind
A, MOVED, LOGGED = slot(3, 10, 4), slot(3, 50, 4, LOG), slot(3, 10, 4, LOG)
ORDER: dict[str, tuple[tuple[int, int, int], list[tuple[Any, ...]]]] = {
    "delete": (
        (10, 0, 0),
        [
            ("flush", slot(3, 10, 4, INVALID), A),
            ("prepare", DELETE, A, None),
            ("commit", DELETE, A, None),
        ],
    ),
    "move": (
        (50, 4, LOG),
        [
            ("flush", slot(3, 10, 4, INVALID), A),
            ("prepare", MOVE, A, MOVED),
            ("commit", MOVE, A, MOVED),
        ],
    ),
    "flags": ((10, 4, LOG), [("prepare", FLAGS, A, LOGGED), ("commit", FLAGS, A, LOGGED)]),
    "nothing": ((10, 4, 0), []),
}


@pytest.mark.parametrize("as_id", [0, 1])
@pytest.mark.parametrize("kind", ORDER)
def test_order_and_arguments(kind: str, as_id: int) -> None:
    """The hooks of each kind of change, in either of two address spaces."""

    def here(value: Any) -> Any:
        if not isinstance(value, MemorySlot):
            return value
        return slot(value.id, value.base_gfn, value.npages, value.flags, as_id)

    calls: Calls = []
    with VM(address_spaces=2) as vm:
        vm.add_listener(Recorder(calls))
        put(vm, 3, 10, 4, as_id=as_id)
        assert calls == [
            ("recorder", hook, CREATE, None, here(A)) for hook in ("prepare", "commit")
        ]
        calls.clear()
        (base, npages, flags), rest = ORDER[kind]
        put(vm, 3, base, npages, flags, as_id)
        assert calls == [("recorder", *map(here, call)) for call in rest]


def test_change_is_a_named_tuple() -> None:
    changes: list[Change] = []

    class Keeps(Listener):
        def commit(self, change: Change) -> None:
            changes.append(change)

    with VM() as vm:
        vm.add_listener(Keeps())
        put(vm, 3, 10, 4)
        put(vm, 3, 10, 0)
    assert changes == [Change(CREATE, None, A), Change(DELETE, A, None)]
    assert [type(change.kind) for change in changes] == [ChangeKind, ChangeKind]
    assert changes[0].new.base_gfn == changes[1].old.base_gfn == 10
    kinds = ["CREATE", "DELETE", "MOVE", "FLAGS_ONLY", "RESIZE"]
    assert [(kind.name, kind.value) for kind in ChangeKind] == [(k, i) for i, k in enumerate(kinds)]


def test_several_listeners_in_order_of_addition() -> None:
    calls: Calls = []
    with VM() as vm:
        recorders = [Recorder(calls, name) for name in "abc"]
        for recorder in recorders:
            vm.add_listener(recorder)
        put(vm, 0, 0, 1)
        calls.clear()
        put(vm, 0, 1, 1)
        assert brief(calls) == [
            f"{name} {hook}" for hook in ("flush", "prepare", "commit") for name in "abc"
        ]
        vm.remove_listener(recorders[1])
        calls.clear()
        put(vm, 0, 0, 0)
        assert brief(calls) == [
            f"{name} {hook}" for hook in ("flush", "prepare", "commit") for name in "ac"
        ]


def test_load_calls_the_hooks_for_every_slot() -> None:
    """All prepare hooks run before the first commit, in the same order."""
    calls: Calls = []
    rows = np.zeros(3, MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"] = [4, 5, 6], [10, 20, 30], 1
    with VM() as vm:
        vm.add_listener(Recorder(calls))
        vm.load_memslots(rows)
    assert brief(calls) == ["recorder prepare"] * 3 + ["recorder commit"] * 3
    for hook in (calls[:3], calls[3:]):
        assert sorted(call[4].id for call in hook) == [4, 5, 6]
        assert {call[2] for call in hook} == {CREATE}


def test_validation_comes_before_the_hooks() -> None:
    calls: Calls = []
    with VM() as vm:
        vm.add_listener(Recorder(calls))
        with pytest.raises(InvalidRegionError):
            put(vm, 0, 0, 0)
        with pytest.raises(InvalidRegionError):
            put(vm, 0, 2**40, 1)  # beyond gpa_bits: refused before prepare
        assert calls == []
        put(vm, 0, 0, 1)
        calls.clear()
        with pytest.raises(InvalidRegionError):
            put(vm, 0, 2**40, 1)  # the slot is INVALID already when the limit is checked
        assert brief(calls) == ["recorder flush"]
        assert vm.gfn_to_hva(0) == 0


# ---- refusals ----------------------------------------------------------------------------------------


def digest(vm: VM) -> tuple[Any, ...]:
    return vm.memslots(), len(vm), vm.nr_memslot_pages, vm.memslots(1)


CHANGES: dict[str, tuple[tuple[int, ...], int]] = {
    "create": ((4, 100, 1), 0),
    "create with log": ((4, 100, 70, LOG), 0),
    "delete": ((3, 10, 0), 2),
    "move": ((3, 50, 4), 2),
    "move and log": ((3, 50, 4, LOG), 2),
    "flags": ((3, 10, 4, LOG), 0),
}


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("kind", CHANGES)
def test_refusal(kind: str, position: int) -> None:
    """Listeners whose prepare succeeded get abort in reverse order.  The exception reaches the caller.
    Nothing has changed except the generation of a DELETE or MOVE."""
    calls: Calls = []
    error = OneError("no")
    change, swaps = CHANGES[kind]
    with VM(address_spaces=2) as vm:
        put(vm, 3, 10, 4)
        for i in range(3):
            actions = {"prepare": raising(error)} if i == position else {}
            vm.add_listener(Recorder(calls, str(i), **actions))
        before, generation, memory = digest(vm), vm.generation(), vm.stats()["blocks"]
        with pytest.raises(OneError) as caught:
            put(vm, *change)
        assert caught.value is error
        assert digest(vm) == before
        assert vm.generation() - generation == swaps * 2
        assert vm.generation(1) == 1
        assert vm.stats()["blocks"] == memory
        vm.check()
    flushed = [f"{i} flush" for i in range(3)] if swaps else []
    prepared = [f"{i} prepare" for i in range(position + 1)]
    assert brief(calls) == flushed + prepared + [f"{i} abort" for i in reversed(range(position))]
    assert [call[2:] for call in calls if call[1] == "abort"] == [
        call[2:] for call in calls if call[1] == "prepare"
    ][:position]


def test_refused_log_is_kept() -> None:
    """A refused change keeps the bits of the slot's dirty log."""
    with VM() as vm:
        put(vm, 3, 10, 4, LOG)
        vm.mark_page_dirty(11)
        vm.add_listener(Recorder(prepare=raising(OneError)))
        for change in ((3, 50, 4, LOG), (3, 10, 4), (3, 10, 0)):
            with pytest.raises(OneError):
                put(vm, *change)
        vm.mark_page_dirty(12)
        assert vm.get_dirty_log(3).tolist() == [0b110]
        vm.check()


def test_refused_load_adds_no_slot() -> None:
    """prepare refuses the third of four entries: the first two get abort, and no slot exists."""
    calls: Calls = []
    rows = np.zeros(4, MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"], rows["flags"] = (
        [4, 5, 6, 7],
        [10, 20, 30, 40],
        1,
        LOG,
    )

    class Third(Recorder):
        def prepare(self, change: Change) -> None:
            super().prepare(change)
            if sum(hook == "prepare" for _, hook, *_ in calls) == 3:
                raise OneError

    with VM() as vm:
        vm.add_listener(Third(calls))
        with pytest.raises(OneError):
            vm.load_memslots(rows)
        assert (len(vm), vm.generation(), vm.memslots()) == (0, 0, [])
        vm.check()
    prepared = [call[4] for call in calls if call[1] == "prepare"]
    assert [call[4] for call in calls if call[1] == "abort"] == prepared[1::-1]


@pytest.mark.parametrize(
    "error",
    [
        ValueError,
        KeyboardInterrupt,
        SystemExit,
        GeneratorExit,
        RecursionError,
        MemoryError,
        UnprintableError,
    ],
)
@pytest.mark.parametrize("hook", HOOKS)
def test_any_exception_reaches_the_caller(hook: str, error: type[BaseException]) -> None:
    """The change is complete or rolled back.  An exception of abort is a note of the refusal."""
    with VM() as vm:
        put(vm, 3, 10, 4, LOG)
        recorder = Recorder(**{hook: raising(error)})
        vm.add_listener(recorder)
        if hook == "abort":
            vm.add_listener(Recorder(prepare=raising(OneError)))
        with pytest.raises(OneError if hook == "abort" else error):
            put(vm, 3, 50, 4, LOG)
        last = {"prepare": [], "abort": ["abort"]}.get(hook, ["commit"])
        assert recorder.hooks == ["flush", "prepare", *last]
        rolled_back = hook in ("prepare", "abort")
        assert vm.memslots() == [slot(3, 10 if rolled_back else 50, 4, LOG)]
        vm.check()


# ---- exceptions afterwards -----------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["flush", "commit"])
def test_exceptions_of_flush_and_commit_come_afterwards(hook: str) -> None:
    """The change is complete, the other listeners got all their hooks, and a note says so."""
    calls: Calls = []
    error = OneError("late")
    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Recorder(calls, "a", **{hook: raising(error)}))
        vm.add_listener(Recorder(calls, "b"))
        with pytest.raises(OneError) as caught:
            put(vm, 3, 50, 4)
        assert caught.value is error
        assert any("change itself is complete" in note for note in error.__notes__)
        assert vm.memslots() == [slot(3, 50, 4)]
        vm.check()
        assert brief(calls) == [
            f"{name} {hook}" for hook in ("flush", "prepare", "commit") for name in "ab"
        ]
        put(vm, 4, 0, 1) if hook == "flush" else None  # the exception is not raised again
        assert vm.gfn_to_hva(50) == 3 * 2**30


def test_several_hooks_raise() -> None:
    """The caller gets the first exception; the others are in its notes."""
    calls: Calls = []
    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(
            Recorder(
                calls, "a", flush=raising(OneError("first")), commit=raising(OtherError("third"))
            )
        )
        vm.add_listener(Recorder(calls, "b", flush=raising(OtherError("second"))))
        with pytest.raises(OneError, match="first") as caught:
            put(vm, 3, 10, 0)
    notes = "\n".join(caught.value.__notes__)
    assert notes.index("complete") >= 0
    assert "OtherError('second')" in notes
    assert "OtherError('third')" in notes
    assert len(vm) == 0


def test_refusal_goes_before_exceptions_of_flush_and_abort() -> None:
    calls: Calls = []
    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(
            Recorder(
                calls, "a", flush=raising(OtherError("flush")), abort=raising(OtherError("abort"))
            )
        )
        vm.add_listener(Recorder(calls, "b", prepare=raising(OneError("no"))))
        with pytest.raises(OneError, match="no") as caught:
            put(vm, 3, 10, 0)
        notes = "\n".join(caught.value.__notes__)
        assert "OtherError('flush')" in notes
        assert "OtherError('abort')" in notes
        assert "complete" not in notes
        assert vm.memslots() == [A]
        vm.check()


def test_engine_refusal_after_flush_raised() -> None:
    """flush raises, then the gpa limit refuses the MOVE: the refusal has a note about flush."""
    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Recorder(flush=raising(OtherError("flush"))))
        with pytest.raises(InvalidRegionError) as caught:
            put(vm, 3, 2**40, 4)
        assert caught.value.rule == "GPA_LIMIT"
        assert "OtherError('flush')" in "\n".join(caught.value.__notes__)
        assert vm.memslots() == [A]


def test_next_change_raises_nothing_again() -> None:
    """Neither the same thread nor another one gets the exception of an earlier change."""
    calls: Calls = []
    with VM() as vm:
        recorder = Recorder(calls, commit=raising(OneError))
        vm.add_listener(recorder)
        with pytest.raises(OneError):
            put(vm, 3, 10, 4)
        recorder.actions.clear()
        put(vm, 3, 11, 4)
        thread = threading.Thread(target=put, args=(vm, 3, 12, 4))
        thread.start()
        thread.join()
        assert vm.memslots() == [slot(3, 12, 4)]


# ---- what a hook can see ---------------------------------------------------------------------------------


def test_lookups_in_hooks() -> None:
    """The results of lookups in each hook of a MOVE."""
    seen: dict[str, Any] = {}

    class Looks(Listener):
        def look(self, hook: str) -> None:
            seen[hook] = [(s.base_gfn, s.is_invalid) for s in vm.memslots()]
            assert vm.generation() == vm.snapshot().generation
            with vm.read():
                seen[hook].append(vm.is_visible_gfn(10))

        def prepare(self, change: Change) -> None:
            self.look("prepare")

        def flush(self, active: MemorySlot, old: MemorySlot) -> None:
            self.look("flush")

        def commit(self, change: Change) -> None:
            self.look("commit")

    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Looks())
        put(vm, 3, 50, 4)
    assert seen == {
        "flush": [(10, True), False],
        "prepare": [(10, True), False],
        "commit": [(50, False), False],
    }


@pytest.mark.timeout(240)
def test_hooks_from_many_threads() -> None:
    """A hook runs in the thread of its change, which alone gets the exception; one hook at a time."""
    inside: list[int] = []
    wrong: list[str] = []

    class Watch(Listener):
        def prepare(self, change: Change) -> None:
            inside.append(threading.get_ident())
            if len(inside) != 1:
                wrong.append("two at once")
            if (change.new or change.old).id % 100 != names[threading.get_ident()]:
                wrong.append("in another thread")
            inside.pop()
            if change.kind is ChangeKind.DELETE:
                raise OneError(threading.get_ident())

    names: dict[int, int] = {}

    def work(me: int) -> None:
        names[threading.get_ident()] = me
        for i in range(150):
            id = 100 * i + me
            put(vm, id, id * 10, 1)
            try:
                put(vm, id, 0, 0)
            except OneError as error:
                if error.args != (threading.get_ident(),):
                    wrong.append("another thread's error")

    with VM() as vm:
        vm.add_listener(Watch())
        threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(vm) == 600
        vm.check()


# ---- adding and removing ---------------------------------------------------------------------------------


def test_add_and_remove_twice() -> None:
    """Listeners are compared by identity: an equal listener is another one."""

    class Equal(Listener):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    with VM() as vm:
        first, second = Equal(), Equal()
        vm.add_listener(first)
        with pytest.raises(ListenerError, match="there already") as caught:
            vm.add_listener(first)
        assert (caught.value.errno, caught.value.rule) == (errno.EEXIST, "LISTENER_EXISTS")
        vm.add_listener(second)
        vm.remove_listener(first)
        with pytest.raises(ListenerError, match="not there") as caught:
            vm.remove_listener(first)
        assert (caught.value.errno, caught.value.rule) == (errno.ENOENT, "NO_SUCH_LISTENER")
        vm.remove_listener(second)
        vm.add_listener(first)


def test_removed_listener_gets_no_hooks_and_is_released() -> None:
    calls: Calls = []
    with VM() as vm:
        recorder = Recorder(calls)
        vm.add_listener(recorder)
        vm.remove_listener(recorder)
        put(vm, 0, 0, 1)
        reference = weakref.ref(recorder)
        del recorder
        gc.collect()
        assert calls == []
        assert reference() is None


def test_one_listener_of_two_vms() -> None:
    calls: Calls = []
    recorder = Recorder(calls)
    with VM() as vm, VM() as other:
        vm.add_listener(recorder)
        other.add_listener(recorder)
        put(vm, 0, 0, 1)
        put(other, 1, 0, 1)
        vm.remove_listener(recorder)
        put(vm, 2, 5, 1)
        put(other, 3, 5, 1)
    assert [call[4].id for call in calls if call[1] == "commit"] == [0, 1, 3]


@pytest.mark.parametrize("listener", [None, 1, object(), "listener", Listener])
def test_objects_that_are_no_listeners(listener: Any) -> None:
    """A listener is any object with four callables; a class has them too, but they expect a self."""
    with VM() as vm:
        words = "not a class" if listener is Listener else "prepare, abort, flush and commit"
        with pytest.raises(TypeError, match=words):
            vm.add_listener(listener)
        put(vm, 0, 0, 1)


def test_duck_listener() -> None:
    class Duck:
        calls: Calls = []  # noqa: RUF012

        def __getattr__(self, name: str) -> Callable[..., None]:
            if name not in HOOKS:
                raise AttributeError(name)
            return lambda *args: self.calls.append((name, len(args)))

    with VM() as vm:
        vm.add_listener(Duck())
        put(vm, 0, 0, 1)
        put(vm, 0, 0, 0)
    assert Duck.calls == [
        ("prepare", 1),
        ("commit", 1),
        ("flush", 2),
        ("prepare", 1),
        ("commit", 1),
    ]


def test_listener_that_loses_its_hooks() -> None:
    """Hooks are looked up at each call.  Without prepare the change is refused, without commit it is
    complete and then raises; the listener can still be removed."""
    recorder: Any = Recorder()
    with VM() as vm:
        vm.add_listener(recorder)
        recorder.prepare = None
        with pytest.raises(TypeError):
            put(vm, 0, 0, 1)
        assert len(vm) == 0
        del recorder.prepare
        recorder.commit = None
        with pytest.raises(TypeError):
            put(vm, 0, 0, 1)
        assert len(vm) == 1
        recorder.__dict__.clear()
        with pytest.raises(AttributeError):
            put(vm, 0, 0, 0)
        recorder.__class__ = type("Other", (Listener,), {"prepare": 5})
        with pytest.raises(TypeError):
            put(vm, 0, 0, 0)
        assert len(vm) == 1
        vm.remove_listener(recorder)
        put(vm, 0, 0, 0)


def test_base_class_does_nothing() -> None:
    with VM() as vm:
        vm.add_listener(Listener())
        put(vm, 0, 0, 1)
        put(vm, 0, 5, 1)
        put(vm, 0, 5, 0)
        vm.check()


# ---- lifetimes -------------------------------------------------------------------------------------------


def test_listener_that_drops_its_vm() -> None:
    """A hook drops the last reference to the VM: the change ends first, then the VM."""

    class Drops(Listener):
        def commit(self, change: Change) -> None:
            holder.clear()
            gc.collect()

    holder = [VM()]
    reference = weakref.ref(holder[0])
    holder[0].add_listener(Drops())
    put(holder[0], 0, 0, 1)
    assert holder == []
    gc.collect()
    assert reference() is None


def test_listener_that_closes_its_vm_afterwards() -> None:
    calls: Calls = []
    vm = VM()
    vm.add_listener(Recorder(calls, commit=raising(OneError)))
    with pytest.raises(OneError):
        put(vm, 0, 0, 1)
    vm.close()
    with pytest.raises(ClosedError):
        put(vm, 1, 1, 1)


class Cyclic(Listener):
    """It refers to the VM whose listener it is."""

    def __init__(self, vm: VM) -> None:
        self.vm, self.vcpu = vm, vm.create_vcpu()
        self.section, self.update = vm.read(), vm.begin_update()

    def prepare(self, change: Change) -> None:
        self.vm.gfn_to_memslot(0)


def one_cycle() -> weakref.ref[VM]:
    vm = VM()
    vm.add_listener(Cyclic(vm))
    put(vm, 0, 0, 64, LOG)
    with vm.begin_update() as update:
        Cyclic.handle = update.find(0)
    return weakref.ref(vm)


def test_cycles_are_collected() -> None:
    """1,000 cycles of VM, listener, vCPU, section and update are released, and memory does not grow."""
    references = [one_cycle() for _ in range(20)]
    Cyclic.handle = None
    gc.collect()
    assert [reference() for reference in references] == [None] * 20
    objects = len(gc.get_objects())
    for _ in range(10):
        references = [one_cycle() for _ in range(100)]
        Cyclic.handle = None
        gc.collect()
        assert not any(reference() for reference in references)
    del references
    gc.collect()
    assert len(gc.get_objects()) - objects < 100


def test_error_of_a_hook_releases_its_frames() -> None:
    """The traceback holds the frame of the hook; the exception releases both."""

    class Big:
        """Something with a weak reference."""

    references = []

    def action() -> None:
        big = Big()
        references.append(weakref.ref(big))
        raise OneError(big)

    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Recorder(flush=action, prepare=action, commit=action))
        with pytest.raises(OneError):
            put(vm, 3, 50, 4)
        gc.collect()
        assert [reference() for reference in references] == [None, None]


def test_error_of_a_hook_does_not_keep_the_vm() -> None:
    vm = VM()
    reference = weakref.ref(vm)
    vm.add_listener(Recorder(commit=raising(OneError)))
    with pytest.raises(OneError):
        put(vm, 0, 0, 1)
    del vm
    gc.collect()
    assert reference() is None


# ---- hooks that return a value -------------------------------------------------------------------


async def forgotten() -> None: ...


def numbers() -> Iterator[int]:
    yield 1


VALUES: dict[str, Callable[[], Any]] = {
    "-ENOMEM": lambda: -errno.ENOMEM,
    "0": lambda: 0,
    "False": lambda: False,
    "True": lambda: True,
    "str": lambda: "no",
    "NotImplemented": lambda: NotImplemented,
    "coroutine": forgotten,
    "generator": numbers,
    "exception": lambda: OSError(errno.ENOMEM, "returned, not raised"),
    "future": lambda: asyncio.Future(loop=asyncio.new_event_loop()),
}
SHOWN = {"-ENOMEM": "-12", "0": "0", "False": "type bool", "coroutine": "type coroutine"}


def returning(hook: str, make: Callable[[], Any]) -> Any:
    return type("Returning", (Listener,), {hook: lambda self, *args: make()})()


@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("hook", HOOKS)
def test_hook_that_returns_a_value(hook: str, kind: str) -> None:
    """TypeError, which refuses the change where prepare returned the value and comes after it elsewhere."""
    with VM() as vm:
        put(vm, 1, 10, 4)
        vm.add_listener(returning(hook, VALUES[kind]))
        if hook == "abort":
            vm.add_listener(Recorder(prepare=raising(OneError)))
        before = vm.memslots()
        with pytest.raises(OneError if hook == "abort" else TypeError) as caught:
            put(vm, 1, 50, 4)
        words = f"{hook}() of Returning must return None, not {'' if kind in ('-ENOMEM', '0') else 'a value of '}"
        said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
        assert words + SHOWN.get(kind, "") in said
        refused = hook in ("prepare", "abort")
        assert (vm.memslots() == before) == refused
        assert vm.memslots() == [slot(1, 10 if refused else 50, 4)]
        assert ("to refuse the change, raise an exception" in said) == (hook == "prepare")
        vm.check()
    gc.collect()  # no coroutine was left that "was never awaited": that would be an error


def test_value_of_prepare_refuses_a_load() -> None:
    rows = np.zeros(2, MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"] = [1, 2], [10, 20], 1
    with VM() as vm:
        vm.add_listener(returning("prepare", lambda: -errno.ENOMEM))
        with pytest.raises(TypeError, match="not -12"):
            vm.load_memslots(rows)
        assert len(vm) == 0


def test_value_of_a_hook_in_an_update() -> None:
    """flush runs after the step has made the slot INVALID.  The step is complete, and its error names the value."""
    with VM() as vm:
        put(vm, 1, 10, 4)
        vm.add_listener(returning("flush", lambda: 5))
        update = vm.begin_update()
        with (
            pytest.raises(TypeError, match=r"flush\(\) of Returning must return None, not 5"),
            update,
        ):
            update.invalidate(update.find(1))
        assert vm.memslots() == [slot(1, 10, 4)]
        vm.check()


# ---- hooks that do not run at once ---------------------------------------------------------------


class AsyncCall:
    async def __call__(self, change: Change) -> None: ...


async def plain_async(change: Change) -> None: ...


DEFERRED: dict[str, Any] = {
    "async def": plain_async,
    "partial": functools.partial(plain_async),
    "partial of partial": functools.partial(functools.partial(plain_async)),
    "async __call__": AsyncCall(),
    "generator": lambda change: (yield),
}


@pytest.mark.parametrize("kind", DEFERRED)
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_that_do_not_run_at_once(hook: str, kind: str) -> None:
    """add_listener() refuses them, because a call would not run their code."""
    listener: Any = Listener()
    setattr(listener, hook, DEFERRED[kind])
    words = "generator" if kind == "generator" else "coroutine"
    with VM() as vm:
        with pytest.raises(TypeError, match=rf"{hook} of Listener is a {words} function"):
            vm.add_listener(listener)
        put(vm, 0, 0, 1)
        delattr(listener, hook)
        vm.add_listener(listener)


def test_async_methods_and_generators() -> None:
    class Async(Listener):
        async def prepare(self, change: Change) -> None: ...  # type: ignore[override]

    class Yields(Listener):
        def commit(self, change: Change) -> Iterator[int]:  # type: ignore[override]
            yield 1

    class Both(Listener):
        async def flush(self, active: MemorySlot, old: MemorySlot) -> Any:  # type: ignore[override]
            yield 1

    with VM() as vm:
        for cls, words in (
            (Async, "prepare of Async is a coroutine function"),
            (Yields, "commit of Yields is a generator function"),
            (Both, "flush of Both is a generator function"),
        ):
            with pytest.raises(TypeError, match=words):
                vm.add_listener(cls())
        put(vm, 0, 0, 1)
        assert len(vm) == 1


def test_async_hook_that_is_set_after_add_listener() -> None:
    """One that replaces a hook of a listener that is there is found when it is called; its coroutine is closed."""
    listener: Any = Listener()
    with VM() as vm:
        vm.add_listener(listener)
        listener.prepare = plain_async
        with pytest.raises(TypeError, match="a value of type coroutine"):
            put(vm, 0, 0, 1)
        assert len(vm) == 0
    gc.collect()


# ---- misspelled hooks ----------------------------------------------------------------------------

MISSPELLED = {
    "prepaer": "prepare",
    "prepar": "prepare",
    "prepared": "prepare",
    "on_prepare": None,
    "Prepare": "prepare",
    "comit": "commit",
    "commits": "commit",
    "committed": None,
    "flsh": "flush",
    "flushed": "flush",
    "abrot": "abort",
    "aborted": "abort",
    "_prepare": None,
    "run": None,
    "p": None,
}


def method(arguments: int) -> Callable[..., None]:
    return {
        0: lambda self: None,
        1: lambda self, a: None,
        2: lambda self, a, b: None,
        3: lambda self, a, b, c: None,
    }[arguments]


@pytest.mark.parametrize("arguments", range(4))
@pytest.mark.parametrize("name", MISSPELLED)
def test_misspelled_hooks(name: str, arguments: int) -> None:
    """TypeError when the class is made, if the method is at most two edits from a hook and has its arity."""
    hook = MISSPELLED[name]
    if hook is not None and arguments == (2 if hook == "flush" else 1):
        with pytest.raises(
            TypeError, match=rf"Mine\.{name}\(\) is not a hook .* did you mean {hook}\(\)"
        ):
            type("Mine", (Listener,), {name: method(arguments)})
    else:
        mine = type("Mine", (Listener,), {name: method(arguments)})()
        with VM() as vm:
            vm.add_listener(mine)


def test_forms_of_a_misspelled_hook() -> None:
    """Static and class methods, any callable; a value or a property is no hook."""

    def of_class(cls: type, change: Change) -> None: ...

    for wrong in (
        staticmethod(lambda change: None),
        classmethod(of_class),
        functools.partial(print, "x"),
        lambda self, *args: None,
        lambda self, change, more=None: None,
    ):
        with pytest.raises(TypeError, match=r"did you mean prepare\(\)"):
            type("Mine", (Listener,), {"prepaer": wrong})
    for right in (
        5,
        None,
        property(lambda self: None),
        int,
        staticmethod(lambda: None),
        lambda self, *, change: None,
    ):
        type("Mine", (Listener,), {"prepaer": right})


def test_a_name_next_to_its_hook_is_no_mistake() -> None:
    """A class may have both the hook and a method with a similar name.  A subclass with only that name is refused."""

    class Knows(Listener):
        def commit(self, change: Change) -> None:
            self.commits(change)

        def commits(self, change: Change) -> None: ...

    with VM() as vm:
        vm.add_listener(Knows())
        put(vm, 0, 0, 1)
    with pytest.raises(TypeError, match=r"did you mean commit\(\)"):
        type("Sub", (Knows,), {"comit": method(1)})


def test_misspelled_hooks_of_ducks() -> None:
    """A listener without the base class is looked at when it is added."""
    hooks = {"prepare": method(1), "abort": method(1), "flush": method(2), "commit": method(1)}
    base = type("Base", (), hooks)
    wrong = dict(hooks)
    wrong["prepaer"] = wrong.pop("prepare")
    late: Any = base()
    late.comit = lambda change: None
    for listener in (
        type("Duck", (), wrong)(),
        type("Duck", (base,), {"prepaer": method(1)})(),
        late,
    ):
        with VM() as vm:
            with pytest.raises(TypeError, match=r"did you mean (prepare|commit)\(\)"):
                vm.add_listener(listener)
            put(vm, 0, 0, 1)
    with VM() as vm:
        vm.add_listener(type("Duck", (base,), {"prepaer": method(2), "committed": method(1)})())


def test_repr_of_a_listener() -> None:
    """It names the hooks that the class overrides."""

    class Mirror(Listener):
        def commit(self, change: Change) -> None: ...

        def flush(self, active: MemorySlot, old: MemorySlot) -> None: ...

    assert repr(Mirror()) == "<Mirror: flush, commit>"
    assert repr(Listener()) == "<Listener: no hooks>"


def test_init_subclass_passes_keywords_on() -> None:
    class Keyed:
        def __init_subclass__(cls, key: int = 0, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            cls.key = key

    class Mine(Listener, Keyed, key=3): ...

    assert Mine.key == 3
    with pytest.raises(TypeError):
        type("Mine", (Listener,), {}, key=3)
