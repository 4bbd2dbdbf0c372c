# SPDX-License-Identifier: MIT
"""Hooks: what they hear and when, how they refuse, what becomes of what they raise."""

from __future__ import annotations

import errno
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scene import put, slot

from memslots import (
    MEMSLOT_DTYPE,
    VM,
    Change,
    ChangeKind,
    ClosedError,
    InvalidRegionError,
    Listener,
    MemFlag,
    MemorySlot,
    NoSuchSlotError,
    ReentrantChangeError,
    RegionOverlapError,
)

LOG, INVALID = MemFlag.LOG_DIRTY_PAGES, MemFlag.INVALID
HOOKS = ("prepare", "abort", "flush", "commit")


Heard = list[tuple[Any, ...]]


class Ear(Listener):
    """Writes down what it hears; does, in each hook, what it was given to do there."""

    def __init__(self, heard: Heard, name: str = "ear", **deeds: Callable[[], object]) -> None:
        self.heard, self.name, self.deeds = heard, name, deeds

    def hear(self, hook: str, *what: Any) -> None:
        self.heard.append((self.name, hook, *what))
        if hook in self.deeds:
            self.deeds[hook]()

    def prepare(self, change: Change) -> None:
        self.hear("prepare", *change)

    def abort(self, change: Change) -> None:
        self.hear("abort", *change)

    def flush(self, active: MemorySlot, old: MemorySlot) -> None:
        self.hear("flush", active, old)

    def commit(self, change: Change) -> None:
        self.hear("commit", *change)


class OneError(Exception):
    """What a hook raises."""


class OtherError(Exception):
    """What another hook raises."""


def raising(error: BaseException | type[BaseException]) -> Callable[[], object]:
    def deed() -> None:
        raise error

    return deed


def brief(heard: Heard) -> list[str]:
    """Who heard what, without the slots."""
    return [f"{name} {hook}" for name, hook, *_ in heard]


# ---- order and arguments ---------------------------------------------------------------------------

CREATE, DELETE, MOVE, FLAGS = ChangeKind
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
    """What each kind of change tells, in both of two address spaces."""

    def here(value: Any) -> Any:
        if not isinstance(value, MemorySlot):
            return value
        return slot(value.id, value.base_gfn, value.npages, value.flags, as_id)

    heard: Heard = []
    with VM(address_spaces=2) as vm:
        vm.add_listener(Ear(heard))
        put(vm, 3, 10, 4, as_id=as_id)
        assert heard == [("ear", hook, CREATE, None, here(A)) for hook in ("prepare", "commit")]
        heard.clear()
        (base, npages, flags), told = ORDER[kind]
        put(vm, 3, base, npages, flags, as_id)
        assert heard == [("ear", *map(here, what)) for what in told]


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
    assert [kind.value for kind in ChangeKind] == [0, 1, 2, 3]


def test_several_listeners_in_order_of_addition() -> None:
    heard: Heard = []
    with VM() as vm:
        ears = [Ear(heard, name) for name in "abc"]
        for ear in ears:
            vm.add_listener(ear)
        put(vm, 0, 0, 1)
        heard.clear()
        put(vm, 0, 1, 1)
        assert brief(heard) == [
            f"{name} {hook}" for hook in ("flush", "prepare", "commit") for name in "abc"
        ]
        vm.remove_listener(ears[1])
        heard.clear()
        put(vm, 0, 0, 0)
        assert brief(heard) == [
            f"{name} {hook}" for hook in ("flush", "prepare", "commit") for name in "ac"
        ]


def test_load_tells_of_every_slot() -> None:
    """First all prepare, then all commit, in one order."""
    heard: Heard = []
    rows = np.zeros(3, MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"] = [4, 5, 6], [10, 20, 30], 1
    with VM() as vm:
        vm.add_listener(Ear(heard))
        vm.load_memslots(rows)
    assert brief(heard) == ["ear prepare"] * 3 + ["ear commit"] * 3
    for hook in (heard[:3], heard[3:]):
        assert sorted(what[4].id for what in hook) == [4, 5, 6]
        assert {what[2] for what in hook} == {CREATE}


def test_what_validation_refuses_is_not_heard() -> None:
    heard: Heard = []
    with VM() as vm:
        vm.add_listener(Ear(heard))
        with pytest.raises(InvalidRegionError):
            put(vm, 0, 0, 0)
        with pytest.raises(InvalidRegionError):
            put(vm, 0, 2**40, 1)  # beyond gpa_bits: before the listeners' prepare
        assert heard == []
        put(vm, 0, 0, 1)
        heard.clear()
        with pytest.raises(InvalidRegionError):
            put(vm, 0, 2**40, 1)  # a MOVE is INVALID when this is seen
        assert brief(heard) == ["ear flush"]
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
    """Those who had prepared hear abort in reverse; the exception itself arrives; nothing has changed
    but the generation of a DELETE or MOVE."""
    heard: Heard = []
    error = OneError("no")
    change, swaps = CHANGES[kind]
    with VM(address_spaces=2) as vm:
        put(vm, 3, 10, 4)
        for i in range(3):
            deeds = {"prepare": raising(error)} if i == position else {}
            vm.add_listener(Ear(heard, str(i), **deeds))
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
    assert brief(heard) == flushed + prepared + [f"{i} abort" for i in reversed(range(position))]
    assert [what[2:] for what in heard if what[1] == "abort"] == [
        what[2:] for what in heard if what[1] == "prepare"
    ][:position]


def test_refused_log_is_kept() -> None:
    """Bits of a slot whose change was refused are still there."""
    with VM() as vm:
        put(vm, 3, 10, 4, LOG)
        vm.mark_page_dirty(11)
        vm.add_listener(Ear([], prepare=raising(OneError)))
        for change in ((3, 50, 4, LOG), (3, 10, 4), (3, 10, 0)):
            with pytest.raises(OneError):
                put(vm, *change)
        vm.mark_page_dirty(12)
        assert vm.get_dirty_log(3).tolist() == [0b110]
        vm.check()


def test_refused_load_is_none() -> None:
    """The third of four entries is refused: the other three are told abort, and no slot is there."""
    heard: Heard = []
    rows = np.zeros(4, MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"], rows["flags"] = (
        [4, 5, 6, 7],
        [10, 20, 30, 40],
        1,
        LOG,
    )

    class Third(Ear):
        def prepare(self, change: Change) -> None:
            super().prepare(change)
            if sum(hook == "prepare" for _, hook, *_ in heard) == 3:
                raise OneError

    with VM() as vm:
        vm.add_listener(Third(heard))
        with pytest.raises(OneError):
            vm.load_memslots(rows)
        assert (len(vm), vm.generation(), vm.memslots()) == (0, 0, [])
        vm.check()
    prepared = [what[4] for what in heard if what[1] == "prepare"]
    assert [what[4] for what in heard if what[1] == "abort"] == prepared[1::-1]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GeneratorExit, RecursionError, MemoryError]
)
@pytest.mark.parametrize("hook", ["prepare", "flush", "commit"])
def test_any_exception_goes_through(hook: str, error: type[BaseException]) -> None:
    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Ear([], **{hook: raising(error)}))
        with pytest.raises(error):
            put(vm, 3, 10, 0)
        assert len(vm) == (1 if hook == "prepare" else 0)
        vm.check()


# ---- exceptions afterwards -----------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["flush", "commit"])
def test_what_flush_and_commit_raise_comes_afterwards(hook: str) -> None:
    """The change is complete, the other listeners have heard all of it, and a note says so."""
    heard: Heard = []
    error = OneError("late")
    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Ear(heard, "a", **{hook: raising(error)}))
        vm.add_listener(Ear(heard, "b"))
        with pytest.raises(OneError) as caught:
            put(vm, 3, 50, 4)
        assert caught.value is error
        assert any("change itself is complete" in note for note in error.__notes__)
        assert vm.memslots() == [slot(3, 50, 4)]
        vm.check()
        assert brief(heard) == [
            f"{name} {what}" for what in ("flush", "prepare", "commit") for name in "ab"
        ]
        put(vm, 4, 0, 1) if hook == "flush" else None  # nothing of it is left over
        assert vm.gfn_to_hva(50) == 3 * 2**30


def test_several_hooks_raise() -> None:
    """The first arrives; the others are in its notes."""
    heard: Heard = []
    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(
            Ear(heard, "a", flush=raising(OneError("first")), commit=raising(OtherError("third")))
        )
        vm.add_listener(Ear(heard, "b", flush=raising(OtherError("second"))))
        with pytest.raises(OneError, match="first") as caught:
            put(vm, 3, 10, 0)
    notes = "\n".join(caught.value.__notes__)
    assert notes.index("complete") >= 0
    assert "OtherError('second')" in notes
    assert "OtherError('third')" in notes
    assert len(vm) == 0


def test_refusal_goes_before_what_flush_and_abort_raise() -> None:
    heard: Heard = []
    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(
            Ear(heard, "a", flush=raising(OtherError("flush")), abort=raising(OtherError("abort")))
        )
        vm.add_listener(Ear(heard, "b", prepare=raising(OneError("no"))))
        with pytest.raises(OneError, match="no") as caught:
            put(vm, 3, 10, 0)
        notes = "\n".join(caught.value.__notes__)
        assert "OtherError('flush')" in notes
        assert "OtherError('abort')" in notes
        assert "complete" not in notes
        assert vm.memslots() == [A]
        vm.check()


def test_engine_refusal_after_flush_raised() -> None:
    """The gpa limit refuses a MOVE whose flush had raised: the refusal arrives, flush is in its notes."""
    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Ear([], flush=raising(OtherError("flush"))))
        with pytest.raises(InvalidRegionError) as caught:
            put(vm, 3, 2**40, 4)
        assert caught.value.rule == "GPA_LIMIT"
        assert "OtherError('flush')" in "\n".join(caught.value.__notes__)
        assert vm.memslots() == [A]


def test_nothing_is_left_for_the_next_change() -> None:
    """What one change raised is not raised again, and not by another thread."""
    heard: Heard = []
    with VM() as vm:
        ear = Ear(heard, commit=raising(OneError))
        vm.add_listener(ear)
        with pytest.raises(OneError):
            put(vm, 3, 10, 4)
        ear.deeds.clear()
        put(vm, 3, 11, 4)
        thread = threading.Thread(target=put, args=(vm, 3, 12, 4))
        thread.start()
        thread.join()
        assert vm.memslots() == [slot(3, 12, 4)]


# ---- hooks that call the engine --------------------------------------------------------------------------


def test_lookups_in_hooks() -> None:
    """What readers see at each point of a MOVE."""
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


IN_HOOK: dict[str, Callable[[VM], object]] = {
    "set": lambda vm: put(vm, 9, 900, 1),
    "no-op": lambda vm: put(vm, 3, 10, 4),
    "load": lambda vm: vm.load_memslots(np.zeros(0, MEMSLOT_DTYPE)),
    "get_dirty_log": lambda vm: vm.get_dirty_log(3),
    "clear_dirty_log": lambda vm: vm.clear_dirty_log(3, 0, 0, None),
    "protect": lambda vm: setattr(vm, "manual_dirty_log_protect", 1),
    "check": lambda vm: vm.check(),
    "close": lambda vm: vm.close(),
    "begin_update": lambda vm: vm.begin_update().__enter__(),
    "create_vcpu": lambda vm: vm.create_vcpu(),
    "add_listener": lambda vm: vm.add_listener(Listener()),
    "remove_listener": lambda vm: [vm.remove_listener(hook) for hook in LISTENERS],
}
LISTENERS: list[Listener] = []


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("call", IN_HOOK)
def test_changes_in_hooks_are_refused(call: str, hook: str) -> None:
    """EDEADLK at once, in each of the four; the change around them goes on."""
    refused: list[BaseException] = []

    def deed() -> None:
        try:
            IN_HOOK[call](vm)
        except ReentrantChangeError as error:
            refused.append(error)

    with VM() as vm:
        put(vm, 3, 10, 4)
        ear = Ear([], **{hook: deed})
        LISTENERS[:] = [ear]
        vm.add_listener(ear)
        if hook == "abort":
            vm.add_listener(Ear([], prepare=raising(OneError)))
            with pytest.raises(OneError):
                put(vm, 3, 50, 4)
        else:
            put(vm, 3, 50, 4)
        assert len(refused) == 1
        assert (refused[0].errno, refused[0].rule) == (errno.EDEADLK, "HOOK")
        assert vm.memslots() == [slot(3, 10 if hook == "abort" else 50, 4)]
        vm.check()
        put(vm, 9, 900, 1) if hook != "abort" else None


def test_change_in_prepare_refuses_the_change_if_it_is_let_through() -> None:
    with VM() as vm:
        vm.add_listener(Ear([], prepare=lambda: put(vm, 9, 900, 1)))
        with pytest.raises(ReentrantChangeError):
            put(vm, 3, 10, 4)
        assert len(vm) == 0


@pytest.mark.parametrize("hook", ["flush", "prepare", "commit"])
def test_refused_change_in_a_hook_does_not_swallow_what_another_raised(hook: str) -> None:
    """What one listener raised arrives, though the next tried a change and caught its EDEADLK."""

    def tries() -> None:
        with pytest.raises(ReentrantChangeError) as caught:
            put(vm, 9, 900, 1)
        assert not hasattr(caught.value, "__notes__")  # it has nothing to do with the other one
        with vm.read(), pytest.raises(ReentrantChangeError):
            put(vm, 9, 900, 1)

    with VM() as vm:
        put(vm, 3, 10, 4)
        vm.add_listener(Ear([], flush=raising(OneError("flush"))))
        vm.add_listener(Ear([], **{hook: tries}))
        with pytest.raises(OneError, match="flush"):
            put(vm, 3, 50, 4)
        assert vm.memslots() == [slot(3, 50, 4)]


def test_another_vm_may_be_changed() -> None:
    """Its lock is only tried."""
    with VM() as vm, VM() as other:
        vm.add_listener(Ear([], commit=lambda: put(other, 3, 10, 4)))
        put(vm, 3, 10, 4)
        assert other.memslots() == [A]
        started, done = threading.Event(), threading.Event()

        def hold() -> None:
            with other.begin_update():
                started.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        started.wait()
        try:
            with pytest.raises(ReentrantChangeError) as caught:
                put(vm, 3, 10, 0)
        finally:
            done.set()
            thread.join()
        assert caught.value.errno == errno.EBUSY
        assert len(vm) == 0


@pytest.mark.timeout(240)
def test_two_vms_whose_hooks_change_each_other() -> None:
    """From two threads: EBUSY where they meet, never a wait for each other."""
    vms = [VM(), VM()]
    refused: set[int] = set()

    class Mirror(Listener):
        def __init__(self, to: int) -> None:
            self.to = to

        def commit(self, change: Change) -> None:
            if change.new.id >= 100:
                return
            try:
                put(vms[self.to], 100 + change.new.id, change.new.base_gfn, 1)
            except ReentrantChangeError as error:
                refused.add(error.errno)

    def work(me: int) -> None:
        for i in range(1, 2000):
            put(vms[me], 1, 1000 * me + i % 500, 1)

    for me in range(2):
        vms[me].add_listener(Mirror(1 - me))
    threads = [threading.Thread(target=work, args=(me,), daemon=True) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert refused <= {errno.EBUSY}
    for vm in vms:
        vm.check()
        vm.close()


@pytest.mark.timeout(240)
def test_hooks_from_many_threads() -> None:
    """Each hook runs in the thread of its change, one at a time; each thread gets what its own raised."""
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
    """By identity: an equal listener is another one."""

    class Equal(Listener):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    with VM() as vm:
        first, second = Equal(), Equal()
        vm.add_listener(first)
        with pytest.raises(RegionOverlapError, match="there already") as caught:
            vm.add_listener(first)
        assert (caught.value.errno, caught.value.rule) == (errno.EEXIST, "LISTENER")
        vm.add_listener(second)
        vm.remove_listener(first)
        with pytest.raises(NoSuchSlotError, match="not there") as caught:
            vm.remove_listener(first)
        assert (caught.value.errno, caught.value.rule) == (errno.ENOENT, "LISTENER")
        vm.remove_listener(second)
        vm.add_listener(first)


def test_removed_listeners_hear_nothing_and_are_released() -> None:
    heard: Heard = []
    with VM() as vm:
        ear = Ear(heard)
        vm.add_listener(ear)
        vm.remove_listener(ear)
        put(vm, 0, 0, 1)
        reference = weakref.ref(ear)
        del ear
        gc.collect()
        assert heard == []
        assert reference() is None


def test_one_listener_of_two_vms() -> None:
    heard: Heard = []
    ear = Ear(heard)
    with VM() as vm, VM() as other:
        vm.add_listener(ear)
        other.add_listener(ear)
        put(vm, 0, 0, 1)
        put(other, 1, 0, 1)
        vm.remove_listener(ear)
        put(vm, 2, 5, 1)
        put(other, 3, 5, 1)
    assert [what[4].id for what in heard if what[1] == "commit"] == [0, 1, 3]


@pytest.mark.parametrize("listener", [None, 1, object(), "listener", Listener])
def test_what_is_no_listener(listener: Any) -> None:
    """Duck typing: four callables, of an object: the class has them too, but they want a self."""
    with VM() as vm:
        words = "not a class" if listener is Listener else "prepare, abort, flush and commit"
        with pytest.raises(TypeError, match=words):
            vm.add_listener(listener)
        put(vm, 0, 0, 1)


def test_duck_listener() -> None:
    class Duck:
        heard: Heard = []  # noqa: RUF012

        def __getattr__(self, name: str) -> Callable[..., None]:
            if name not in HOOKS:
                raise AttributeError(name)
            return lambda *args: self.heard.append((name, len(args)))

    with VM() as vm:
        vm.add_listener(Duck())
        put(vm, 0, 0, 1)
        put(vm, 0, 0, 0)
    assert Duck.heard == [
        ("prepare", 1),
        ("commit", 1),
        ("flush", 2),
        ("prepare", 1),
        ("commit", 1),
    ]


def test_hook_that_loses_its_method() -> None:
    """Looked up at each call: what is missing then refuses or is raised, nothing breaks."""
    ear: Any = Ear([])
    with VM() as vm:
        vm.add_listener(ear)
        ear.prepare = None
        with pytest.raises(TypeError):
            put(vm, 0, 0, 1)
        assert len(vm) == 0
        del ear.prepare
        ear.commit = None
        with pytest.raises(TypeError):
            put(vm, 0, 0, 1)
        assert len(vm) == 1


def test_base_class_does_nothing() -> None:
    with VM() as vm:
        vm.add_listener(Listener())
        put(vm, 0, 0, 1)
        put(vm, 0, 5, 1)
        put(vm, 0, 5, 0)
        vm.check()


# ---- lifetimes -------------------------------------------------------------------------------------------


def test_listener_that_drops_its_vm() -> None:
    """The last reference goes while the change is under way: it ends, and then the VM does."""

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
    heard: Heard = []
    vm = VM()
    vm.add_listener(Ear(heard, commit=raising(OneError)))
    with pytest.raises(OneError):
        put(vm, 0, 0, 1)
    vm.close()
    with pytest.raises(ClosedError):
        put(vm, 1, 1, 1)


class Cyclic(Listener):
    """Knows the VM whose listener it is."""

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
    """1,000 cycles of VM, listener, vCPU, section, update: all released, no growth."""
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


def test_error_of_a_hook_does_not_keep_the_vm() -> None:
    vm = VM()
    reference = weakref.ref(vm)
    vm.add_listener(Ear([], commit=raising(OneError)))
    with pytest.raises(OneError):
        put(vm, 0, 0, 1)
    del vm
    gc.collect()
    assert reference() is None
