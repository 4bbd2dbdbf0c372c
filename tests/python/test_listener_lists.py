# SPDX-License-Identifier: MIT
"""Lists of changes and the end of a VM: prepare_many, closed, add_listener(last=True), and updates.

Hooks of single changes are in test_listeners.py.
"""

from __future__ import annotations

import errno
import gc
import mmap
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scene import Calls, held, put, runs, slot

from memslots import (
    MEMSLOT_DTYPE,
    VM,
    Change,
    ChangeKind,
    Listener,
    ListenerError,
    MemFlag,
    ReentrantChangeError,
    UpdateError,
)

LOG, INVALID = MemFlag.LOG_DIRTY_PAGES, MemFlag.INVALID


class Notes(Listener):
    """Notes each hook with the ids of its slots; refuses or raises in the hook that ``fail`` names."""

    def __init__(self, calls: Calls | None = None, name: str = "a", fail: str = "") -> None:
        self.calls: Calls = [] if calls is None else calls
        self.name, self.fail = name, fail

    def note(self, hook: str, *ids: int) -> None:
        self.calls.append((self.name, hook, *ids))
        if hook == self.fail:
            raise OneError(hook)

    def prepare(self, change: Change) -> None:
        self.note("prepare", id_of(change))

    def abort(self, change: Change) -> None:
        self.note("abort", id_of(change))

    def flush(self, active: Any, old: Any) -> None:
        self.note("flush", old.id)

    def commit(self, change: Change) -> None:
        self.note("commit", id_of(change))


class Lists(Notes):
    def prepare_many(self, changes: list[Change]) -> None:
        assert type(changes) is list
        self.note("prepare_many", *map(id_of, changes))


class Ends(Notes):
    def closed(self) -> None:
        self.note("closed")


class OneError(Exception):
    """A hook raises it."""


def id_of(change: Change) -> int:
    some = change.new or change.old
    assert some is not None
    return some.id


def load(vm: VM, *ids: int) -> None:
    rows = np.zeros(len(ids), dtype=MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"] = ids, [16 * i for i in ids], 4
    vm.load_memslots(rows)


# ---- prepare_many ----------------------------------------------------------------------------------


def test_prepare_many_gets_one_or_all() -> None:
    """A load reaches it once, in place of prepare; so does each single change."""
    listener = Lists()
    with VM() as vm:
        vm.add_listener(listener)
        put(vm, 3, 10, 4)
        load(vm, 7, 8, 9)
    (first, second, *rest) = [call[1:] for call in listener.calls]
    assert (first, second) == (("prepare_many", 3), ("commit", 3))
    assert (rest[0][0], sorted(rest[0][1:])) == ("prepare_many", [7, 8, 9])
    assert [call[0] for call in rest[1:]] == ["commit"] * 3


def test_base_prepare_many_calls_prepare() -> None:
    """super().prepare_many() calls prepare for each change; after a refusal it aborts those before it."""

    class Super(Notes):
        def prepare_many(self, changes: list[Change]) -> None:
            self.note("prepare_many", len(changes))
            super().prepare_many(changes)

        def prepare(self, change: Change) -> None:
            super().prepare(change)
            if [call[1] for call in self.calls].count("prepare") == 3:
                raise OneError

    listener = Super()
    with VM() as vm:
        vm.add_listener(listener)
        with pytest.raises(OneError):
            load(vm, 1, 2, 3, 4)
        hooks = [call[1] for call in listener.calls]
        assert hooks == ["prepare_many", *["prepare"] * 3, *["abort"] * 2]
        assert listener.calls[-1] == ("a", "abort", listener.calls[1][2])
        assert len(vm) == 0


@pytest.mark.parametrize("fail", ["prepare", "prepare_many"])
def test_refused_list(fail: str) -> None:
    """The listeners before the one that refuses get abort for each change, in reverse order."""
    calls: Calls = []
    with VM() as vm:
        vm.add_listener(Notes(calls, "a"))
        vm.add_listener((Lists if fail == "prepare_many" else Notes)(calls, "b", fail))
        with pytest.raises(OneError, match=fail):
            load(vm, 1, 2, 3)
        prepared = [id for name, hook, *id in calls if (name, hook) == ("a", "prepare")]
        aborted = [id for name, hook, *id in calls if (name, hook) == ("a", "abort")]
        assert len(prepared) == 3
        assert aborted == prepared[::-1]
        assert len(vm) == 0
        vm.check()


@pytest.mark.parametrize("value", [-12, False, [1]])
def test_value_of_prepare_many_refuses(value: object) -> None:
    class Returns(Listener):
        def prepare_many(self, changes: list[Change]) -> Any:
            return value

    with VM() as vm:
        vm.add_listener(Returns())
        with pytest.raises(
            TypeError, match=r"prepare_many\(\) of Returns must return None.*refuse the change"
        ):
            load(vm, 1, 2)
        assert len(vm) == 0


@pytest.mark.parametrize("hook", ["prepare_many", "closed"])
def test_new_hooks_are_checked(hook: str) -> None:
    async def coroutine(self: object, *args: object) -> None: ...

    def generator(self: object, *args: object) -> Any:
        yield

    with VM() as vm:
        for function, word in ((coroutine, "coroutine"), (generator, "generator")):
            listener = type("Wrong", (Listener,), {hook: function})()
            with pytest.raises(TypeError, match=f"{hook} of Wrong is a {word} function"):
                vm.add_listener(listener)
        with pytest.raises(TypeError, match=f"{hook} of Wrong is not callable"):
            vm.add_listener(type("Wrong", (Listener,), {hook: 3})())


@pytest.mark.parametrize("name", ["prepare_mny", "prepare_all_", "preparemany", "closd", "close_d"])
def test_misspelled_new_hooks(name: str) -> None:
    arguments = "self" if name.startswith("cl") else "self, changes"
    method = eval(f"lambda {arguments}: None")
    if name == "prepare_all_":  # too far away
        type("Other", (Listener,), {name: method})
        return
    with pytest.raises(TypeError, match="did you mean"):
        type("Wrong", (Listener,), {name: method})


def test_close_is_no_misspelled_hook() -> None:
    """A listener may have methods with these names, such as one that owns a file."""
    type("Owner", (Listener,), {"close": lambda self: None, "clone": lambda self: None})


def test_objects_without_the_new_hooks() -> None:
    """They were not there in the first version: an object with the four hooks is a listener."""

    class Duck:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def __getattr__(self, name: str) -> Callable[..., None]:
            if name not in ("prepare", "abort", "flush", "commit"):
                raise AttributeError(name)
            return lambda *args: self.calls.append(name)

    duck = Duck()
    with VM() as vm:
        vm.add_listener(duck)  # type: ignore[arg-type]
        load(vm, 1, 2)
    assert duck.calls == ["prepare", "prepare", "commit", "commit"]


# ---- the last listener -----------------------------------------------------------------------------


def test_last_listener_stays_behind() -> None:
    calls: Calls = []
    with VM() as vm:
        last = Notes(calls, "last")
        vm.add_listener(last, last=True)
        for name in "ab":
            vm.add_listener(Notes(calls, name))
        put(vm, 1, 10, 4)
        assert [call[0] for call in calls] == ["a", "b", "last"] * 2
        with pytest.raises(ListenerError, match="at most one") as caught:
            vm.add_listener(Notes(), last=True)
        assert (caught.value.errno, caught.value.rule) == (errno.EEXIST, "LAST_LISTENER")
        with pytest.raises(ListenerError, match="there already"):
            vm.add_listener(last, last=True)
        vm.remove_listener(last)
        vm.add_listener(Notes(calls, "c"), last=True)
        calls.clear()
        put(vm, 1, 10, 0)
        assert [call[0] for call in calls[:3]] == ["a", "b", "c"]


@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_last_is_a_bool(value: Any) -> None:
    with VM() as vm, pytest.raises(TypeError, match="last"):
        vm.add_listener(Listener(), last=value)


# ---- closed ----------------------------------------------------------------------------------------


def test_closed_runs_once_at_close() -> None:
    listeners = [Ends(name=name) for name in "ab"]
    vm = VM()
    put(vm, 1, 10, 4)
    for listener in listeners:
        vm.add_listener(listener)
    vm.close()
    vm.close()
    del vm
    gc.collect()
    assert [listener.calls for listener in listeners] == [[("a", "closed")], [("b", "closed")]]


def test_lookups_and_changes_in_closed() -> None:
    """Lookups find holes; the buffers of slots are alive; changes are refused."""
    seen: list[object] = []

    class Looks(Listener):
        def closed(self) -> None:
            seen.append((len(vm), list(vm), vm.gfn_to_memslot(10)))
            try:
                put(vm, 1, 10, 4)
            except ReentrantChangeError as error:
                seen.append(error.errno)
            seen.append(is_exported())

    def is_exported() -> bool:
        """Whether something holds the buffer: then it cannot be closed."""
        try:
            buffer.close()
        except BufferError:
            return True
        return False

    buffer = mmap.mmap(-1, 4096)
    vm = VM()
    vm.map_buffer(10 * 4096, buffer)
    vm.add_listener(Looks())
    vm.close()
    assert seen == [(0, [], None), errno.EDEADLK, True]
    assert not is_exported()


def test_exceptions_of_closed_come_afterwards() -> None:
    vm = VM()
    calls: Calls = []
    vm.add_listener(Ends(calls, "a", fail="closed"))
    vm.add_listener(Ends(calls, "b"))
    with pytest.raises(OneError) as caught:
        vm.close()
    assert any("the change itself is complete" in note for note in caught.value.__notes__)
    assert vm.closed
    assert calls == [("a", "closed"), ("b", "closed")]
    vm.close()


def test_removed_listener_gets_no_closed() -> None:
    listener = Ends()
    with VM() as vm:
        vm.add_listener(listener)
        vm.remove_listener(listener)
    assert listener.calls == []


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(100_000):  # a pending call runs between two instructions of the main thread
        if condition():
            return
    raise AssertionError("the hook did not run")


def test_closed_without_close() -> None:
    listener = Ends()
    vm = VM()
    put(vm, 1, 10, 4)
    vm.add_listener(listener)
    del vm
    wait_for(lambda: listener.calls)
    gc.collect()
    assert listener.calls == [("a", "closed")]


class InCycle(Ends):
    """A listener that refers to its VM."""

    def __init__(self, vm: VM, calls: Calls, inside: list[bool]) -> None:
        super().__init__(calls)
        self.vm, self.inside = vm, inside

    def closed(self) -> None:
        super().closed()
        assert len(self.vm) == 0
        gc.disable()  # the next lines cause no collection of their own
        garbage: list[object] = []
        garbage.append(garbage)
        del garbage
        self.inside.append(gc.collect() == 0)  # inside of a collection another one does nothing
        gc.enable()


@pytest.fixture
def no_gc_callbacks() -> Iterator[None]:
    """A pending call can begin in any Python code.  hypothesis adds such code to each collection."""
    saved = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks.extend(saved)


@pytest.mark.usefixtures("no_gc_callbacks")
def test_closed_of_a_cycle_runs_outside_of_the_collector() -> None:
    """The hook finds its listener and its VM whole.  The next collection frees both."""
    calls: Calls = []
    inside: list[bool] = []

    gc.collect()
    vm = VM()
    put(vm, 1, 10, 4)
    vm.add_listener(InCycle(vm, calls, inside))
    gone = weakref.ref(vm)
    del vm
    gc.collect()
    wait_for(lambda: calls)
    gc.collect()
    assert (calls, inside, gone()) == ([("a", "closed")], [False], None)


def test_closed_waits_for_the_end_of_a_section() -> None:
    """A VM that ends inside a section of another VM is closed after it."""
    listener = Ends()
    vm, other = VM(), VM()
    vm.add_listener(listener)
    with other.read():
        del vm
        for _ in range(1000):
            pass
        assert listener.calls == []
    wait_for(lambda: listener.calls)
    other.close()


def test_error_of_closed_without_close_is_unraisable(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda error: errors.append(error.exc_type))
    vm = VM()
    listener = Ends(fail="closed")
    vm.add_listener(listener)
    del vm
    wait_for(lambda: errors)
    assert errors == [OneError]


def test_closed_at_exit_and_in_a_child() -> None:
    """Neither the exit of the interpreter nor a forked child calls the hook."""
    runs(
        """
        class Ends(Listener):
            def closed(self):
                os.write(1, b"called")
        vm = VM()
        vm.add_listener(Ends())
        child = os.fork()
        if not child:
            try:
                vm.close()
            except ForkedError:
                pass
            del vm
            gc.collect()
            for _ in range(1000):
                pass
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print("well")
        """
    )


def test_section_that_was_lost() -> None:
    """A thread that goes on has never left its section: to close the VM would wait for it."""
    listener = Ends()
    vm = VM()
    put(vm, 1, 10, 4)
    vm.add_listener(listener)
    box = [vm.read()]
    entered, leave = threading.Event(), threading.Event()

    def enter() -> None:
        box[0].__enter__()
        entered.set()
        leave.wait()

    thread = threading.Thread(target=enter)
    thread.start()
    entered.wait()
    with pytest.warns(ResourceWarning, match="dropped"):
        box.clear()
    del vm  # ends at once
    leave.set()
    thread.join()
    assert listener.calls == []


# ---- updates ---------------------------------------------------------------------------------------


def edit(vm: VM, update: Any) -> None:
    """Slot 1 goes, 2 moves, 3 becomes smaller, 9 is new."""
    found = {slot.memslot.id: slot for slot in update.active}
    drafts = [
        (found[1], None),
        (found[2], update.copy(found[2], base_gfn=0x500)),
        (found[3], update.copy(found[3], npages=2)),
        (None, update.copy(None, id=9, base_gfn=0x900, npages=1, userspace_addr=0, flags=0)),
    ]
    for pair in drafts:
        update.replace(*pair)
    update.swap()
    for pair in drafts:
        update.replace(*pair)


@pytest.fixture
def vm() -> Any:
    with VM() as vm:
        put(vm, 1, 0x100, 4, LOG)
        put(vm, 2, 0x200, 4)
        put(vm, 3, 0x300, 4, LOG)
        for gfn in (0x101, 0x300, 0x303):
            vm.mark_page_dirty(gfn)
        yield vm


def test_update_reaches_listeners_as_one(vm: VM) -> None:
    changes: list[Change] = []

    class Keeps(Lists):
        def commit(self, change: Change) -> None:
            super().commit(change)
            changes.append(change)

    listener = Keeps()
    vm.add_listener(listener)
    with vm.begin_update() as update:
        edit(vm, update)
        assert listener.calls == []
    assert [call[1:] for call in listener.calls] == [
        ("prepare_many", 1, 2, 3, 9),
        *(("flush", id) for id in (1, 2, 3)),
        *(("commit", id) for id in (1, 2, 3, 9)),
    ]
    assert [change.kind.name for change in changes] == ["DELETE", "MOVE", "RESIZE", "CREATE"]
    assert changes[2] == Change(ChangeKind.RESIZE, slot(3, 0x300, 4, LOG), slot(3, 0x300, 2, LOG))


def test_last_bits_of_an_update(vm: VM) -> None:
    """A deleted slot gives all its bits, a resized one those of the pages that it lost."""
    bits: dict[int, Any] = {}

    class Keeps(Listener):
        def commit(self, change: Change) -> None:
            bits[id_of(change)] = change.dirty

    vm.add_listener(Keeps())
    with vm.begin_update() as update:
        edit(vm, update)
    assert bits.pop(1).tolist() == [2]
    assert bits.pop(3).tolist() == [8]
    assert bits == {2: None, 9: None}
    assert vm.get_dirty_log(3).tolist() == [1]


@pytest.mark.parametrize("fail", ["prepare", "prepare_many"])
def test_refused_update_is_rolled_back(vm: VM, fail: str) -> None:
    calls: Calls = []
    before = list(vm)
    vm.add_listener(Notes(calls, "a"))
    vm.add_listener((Lists if fail == "prepare_many" else Notes)(calls, "b", fail))
    update = vm.begin_update()
    with pytest.raises(OneError, match=fail), update:
        edit(vm, update)
    assert list(vm) == before
    assert [call[1:] for call in calls if call[1] == "abort"] == [
        ("abort", id) for id in (9, 3, 2, 1)
    ]
    assert not any(call[1] in ("flush", "commit") for call in calls)
    vm.check()
    with pytest.raises(UpdateError, match="not running"):
        update.swap()  # the update has ended


def test_exceptions_of_an_update_that_is_kept(vm: VM) -> None:
    vm.add_listener(Notes(fail="commit"))
    with pytest.raises(OneError) as caught, vm.begin_update() as update:
        edit(vm, update)
    assert len(vm) == 3
    notes = caught.value.__notes__
    assert any("the change itself is complete" in note for note in notes)
    assert sum("a hook of the same change raised" in note for note in notes) == 3
    vm.check()


def test_update_without_an_effect(vm: VM) -> None:
    """Rolled back by an exception, by an early end, or without a step."""
    listener = Lists()
    vm.add_listener(listener)
    with pytest.raises(ZeroDivisionError), vm.begin_update() as update:  # noqa: PT012
        edit(vm, update)
        raise ZeroDivisionError
    with pytest.raises(UpdateError), vm.begin_update() as update:
        update.replace(update.find(1), None)
    with vm.begin_update():
        pass
    assert listener.calls == []


def test_change_of_the_vm_in_a_hook_of_an_update(vm: VM) -> None:
    errors: list[object] = []

    class Changes(Listener):
        def prepare(self, change: Change) -> None:
            try:
                put(vm, 7, 0x700, 1)
            except ReentrantChangeError as error:
                errors.append(error.errno)

    vm.add_listener(Changes())
    with vm.begin_update() as update:
        edit(vm, update)
    assert errors == [errno.EDEADLK] * 4


def test_closed_while_another_thread_reads() -> None:
    """close() waits for the reader; then the hook runs."""
    listener = Ends()
    vm = VM()
    put(vm, 1, 10, 4)
    vm.add_listener(listener)
    closer = threading.Thread(target=vm.close)
    with held(vm.read()):
        closer.start()
        assert listener.calls == []
    closer.join()
    assert listener.calls == [("a", "closed")]
