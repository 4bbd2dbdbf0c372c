# SPDX-License-Identifier: MIT
"""ReaderStallWarning: a change that waits long for a read section names the thread, and still completes."""

from __future__ import annotations

import _thread
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pytest
from scene import PAGE, put

from memslots import (
    MEMSLOT_DTYPE,
    VM,
    Change,
    Listener,
    ReaderStallWarning,
    ReentrantChangeError,
    backends,
)


class Reader:
    """A thread that stays inside a section of the VM until `enough` holds.

    It polls the condition itself, because the test's own thread waits for it."""

    def __init__(self, vm: VM, enough: Callable[[], bool], name: str = "the slow reader") -> None:
        self.vm, self.enough, self.inside = vm, enough, threading.Event()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, name=name)

    def run(self) -> None:
        with self.vm.read():
            self.inside.set()
            while not self.enough():
                time.sleep(0.001)
        self.over.wait()  # keep the thread alive: the warning needs its name

    def __enter__(self) -> Reader:
        self.thread.start()
        self.inside.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.over.set()
        self.thread.join()


@pytest.fixture
def vm() -> Iterator[VM]:
    with VM() as vm:
        put(vm, 0, 0, 8)
        vm.stall_warning_ms = 5
        yield vm
        if not vm.closed:
            vm.check()


def test_vm_created_inside_a_section_of_another_vm_warns() -> None:
    with VM() as other, other.read():
        vm = VM()
    with vm, pytest.warns(ReaderStallWarning), Reader(vm, reported(vm)):
        put(vm, 1, 10, 1)


def reported(vm: VM) -> Callable[[], bool]:
    return lambda: vm.stats()["stalls"] > 0


@contextmanager
def shown_by(
    monkeypatch: pytest.MonkeyPatch,
    show: Callable[..., None],
    which: Literal["always", "default"] = "always",
) -> Iterator[None]:
    """Passes warnings to `show`: each one ("always"), or each text once ("default")."""
    with warnings.catch_warnings():
        warnings.simplefilter(which)
        monkeypatch.setattr(warnings, "showwarning", show)
        yield


def test_warning_names_the_thread_and_repeats(vm: VM) -> None:
    with (
        pytest.warns(ReaderStallWarning) as seen,
        Reader(vm, lambda: len(seen) >= 4) as reader,
    ):
        put(vm, 1, 10, 1)
    assert len(vm) == 2
    assert vm.stats()["stalls"] == 1
    waited = [warning.message.waited for warning in seen]
    assert waited == sorted(set(waited))
    assert all(now >= 0.005 * 2**i for i, now in enumerate(waited))
    for warning in seen:
        stall = warning.message
        assert isinstance(stall, ReaderStallWarning)
        assert isinstance(stall, RuntimeWarning)
        assert (stall.thread_id, stall.thread_name) == (reader.thread.native_id, "the slow reader")
        assert str(stall) == (
            f"a change has waited for {stall.waited:.3f} s for the read section of thread "
            f"{reader.thread.native_id} (the slow reader)"
        )
        assert warning.filename == put.__code__.co_filename  # the caller of the change


def update(vm: VM) -> None:
    with vm.begin_update() as u:
        slot = u.find(0)
        u.invalidate(slot)
        u.replace(u.find(0, active=False), None)
        u.activate(u.find(0), None)


def swap_once(vm: VM, then: Callable[[], object] = lambda: None) -> None:
    with vm.begin_update() as u:
        u.replace(u.find(0, active=False), None)
        u.swap()
        then()


CALLS: dict[str, Callable[[VM], object]] = {
    "create": lambda vm: put(vm, 1, 10, 1),
    "delete": lambda vm: put(vm, 0, 0, 0),
    "move": lambda vm: put(vm, 0, 20, 8),
    "load": lambda vm: vm.load_memslots(np.array([(5, 0, 50, 1, 0, 0)], MEMSLOT_ROW)),
    "close": VM.close,
    "update": update,
}
MEMSLOT_ROW = [
    (name, "u8") for name in ("id", "as_id", "base_gfn", "npages", "userspace_addr", "flags")
]
LEFT = {"create": 2, "delete": 0, "move": 1, "load": 2, "close": 0, "update": 0}


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("call", CALLS)
def test_every_call_that_waits_warns(backend: str, call: str) -> None:
    if call == "update" and backend != "tree":
        pytest.skip("only the tree has begin_update()")
    with VM(backend=backend) as vm:
        put(vm, 0, 0, 8)
        vm.stall_warning_ms = 2
        with pytest.warns(ReaderStallWarning, match="the slow reader"), Reader(vm, reported(vm)):
            CALLS[call](vm)
        assert len(vm) == LEFT[call]


@pytest.mark.parametrize("call", CALLS)
def test_warning_as_error_is_raised_after_the_change_is_complete(vm: VM, call: str) -> None:
    """As with the exception of a commit hook, the call raises after it has completed the change."""
    with warnings.catch_warnings(), Reader(vm, reported(vm)):
        warnings.simplefilter("error", ReaderStallWarning)
        with pytest.raises(ReaderStallWarning, match="the slow reader") as caught:
            CALLS[call](vm)
    assert "raised as a warning; the change itself is complete" in caught.value.__notes__
    # A step of an update is complete too, but the exception ends its block, which rolls back.
    assert len(vm) == LEFT[call] + (call == "update")
    assert vm.closed == (call == "close")


def test_roll_back_that_waits_for_a_reader_warns(vm: VM) -> None:
    """The reader enters after the swap; the second swap, which rolls back, waits for it."""
    reader = Reader(vm, reported(vm))

    def then() -> None:
        reader.__enter__()
        raise KeyError

    with pytest.warns(ReaderStallWarning), pytest.raises(KeyError):
        swap_once(vm, then)
    reader.__exit__()
    assert len(vm) == 1


def test_warning_as_error_keeps_later_exceptions_as_notes(vm: VM) -> None:
    """The call raises the warning and adds the exception of the commit hook as a note."""
    stalls: list[float] = []

    class Loud(Listener):
        def commit(self, change: Change) -> None:
            stalls.append(1.0)
            raise RuntimeError("a commit hook")

    vm.add_listener(Loud())
    with warnings.catch_warnings(), Reader(vm, reported(vm)):
        warnings.simplefilter("error", ReaderStallWarning)
        with pytest.raises(ReaderStallWarning) as caught:
            put(vm, 1, 10, 1)
    assert len(stalls) == 1
    assert len(vm) == 2
    assert any("RuntimeError('a commit hook')" in note for note in caught.value.__notes__)


def test_refusal_by_a_hook_keeps_the_warning_as_note(vm: VM) -> None:
    class No(Listener):
        def prepare(self, change: Change) -> None:
            raise KeyError("no")

    vm.add_listener(No())
    with warnings.catch_warnings(), Reader(vm, reported(vm)):
        warnings.simplefilter("error", ReaderStallWarning)
        with pytest.raises(KeyError) as caught:
            put(vm, 0, 20, 8)  # its first swap waits, then prepare refuses
    assert any("ReaderStallWarning" in note for note in caught.value.__notes__)
    assert vm.gfn_to_slot_id_many(np.array([0, 20], np.uint64)).tolist() == [0, -1]


def test_warning_about_a_thread_unknown_to_python_has_no_name(vm: VM) -> None:
    inside, native = threading.Event(), []

    def work() -> None:
        with vm.read():
            native.append(threading.get_native_id())
            inside.set()
            while not vm.stats()["stalls"]:
                time.sleep(0.001)

    _thread.start_new_thread(work, ())
    inside.wait()
    with pytest.warns(ReaderStallWarning) as seen:
        put(vm, 1, 10, 1)
    stall = seen[0].message
    assert isinstance(stall, ReaderStallWarning)
    assert (stall.thread_id, stall.thread_name) == (native[0], None)
    assert str(stall).endswith(f"of thread {native[0]}")


def test_threshold_of_0_disables_the_warning(vm: VM) -> None:
    vm.stall_warning_ms = 0
    left = time.monotonic() + 0.05
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Reader(vm, lambda: time.monotonic() > left):
            put(vm, 1, 10, 1)
    assert [w for w in seen if w.category is ReaderStallWarning] == []
    assert vm.stats()["stalls"] == 0


def test_warning_hook_may_read_but_not_change_the_vm(
    vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """warnings.showwarning runs inside the change: it may look up, but any change raises ReentrantChangeError."""
    seen: list[Any] = []

    def show(*arguments: object, **more: object) -> None:
        seen.append(vm.gfn_to_hva(0))
        with vm.read():
            seen.append(len(vm.memslots()))
        with pytest.raises(ReentrantChangeError):
            put(vm, 2, 30, 1)
        with pytest.raises(ReentrantChangeError):
            vm.stall_warning_ms = 0
        with pytest.raises(ReentrantChangeError):
            vm.close()

    with shown_by(monkeypatch, show), Reader(vm, lambda: len(seen) >= 2):
        put(vm, 1, 10, 1)
    assert seen[:2] == [0, 2]
    assert len(vm) == 2


def test_exception_of_the_warning_hook_is_raised_once_after_the_change(
    vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with shown_by(monkeypatch, show), Reader(vm, reported(vm)), pytest.raises(KeyboardInterrupt):
        put(vm, 1, 10, 1)
    assert len(vm) == 2
    put(vm, 2, 30, 1)  # does not raise again


@pytest.mark.parametrize("bad", [-1, 2**32, 1.5, True, "5", None])
def test_bad_stall_warning_ms_raises_and_keeps_the_old_value(vm: VM, bad: Any) -> None:
    with pytest.raises((TypeError, OverflowError), match="stall_warning_ms"):
        vm.stall_warning_ms = bad
    assert vm.stall_warning_ms == 5


def test_stall_warning_ms_is_set_only_on_an_open_vm_outside_sections() -> None:
    with VM() as vm:
        assert vm.stall_warning_ms == 1000
        vm.stall_warning_ms = 2**32 - 1
        assert vm.stall_warning_ms == 2**32 - 1
        with vm.read(), pytest.raises(ReentrantChangeError):
            vm.stall_warning_ms = 1
        assert vm.stall_warning_ms == 2**32 - 1
    with pytest.raises(ValueError, match="closed"):
        vm.stall_warning_ms = 1
    assert vm.stall_warning_ms == 2**32 - 1


def test_memslot_row_has_the_fields_of_memslot_dtype() -> None:
    assert set(np.dtype(MEMSLOT_ROW).names or ()) == set(MEMSLOT_DTYPE.names or ())


LOCKED: dict[str, Callable[[VM], object]] = {
    "get_dirty_log": lambda vm: vm.get_dirty_log(0),
    "get_dirty_log(out=)": lambda vm: vm.get_dirty_log(0, out=np.zeros(1, np.uint64)),
    "clear_dirty_log": lambda vm: vm.clear_dirty_log(0, 0, 8, np.array([1], np.uint64)),
    "merge_dirty_log": lambda vm: vm.merge_dirty_log(0, np.array([1], np.uint64)),
    "harvest_dirty": lambda vm: vm.harvest_dirty(),
    "harvest_dirty(out=)": lambda vm: vm.harvest_dirty(out=np.zeros((1, 2), np.uint64)),
    "add_listener": lambda vm: vm.add_listener(Listener()),
    "remove_listener": lambda vm: vm.remove_listener(LISTENER),
    "create_vcpu": VM.create_vcpu,
    "manual_dirty_log_protect": lambda vm: setattr(vm, "manual_dirty_log_protect", 0),
    "stall_warning_ms": lambda vm: setattr(vm, "stall_warning_ms", 5),
    "check": VM.check,
}
LISTENER = Listener()


@pytest.mark.parametrize("call", LOCKED)
def test_call_that_rolls_back_a_dropped_update_warns(vm: VM, call: str) -> None:
    """The first call that takes the lock rolls back and waits for the readers; the next call does not warn."""
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=8 * PAGE, flags=1)
    vm.mark_page_dirty(3)
    vm.add_listener(LISTENER)
    update = vm.begin_update()
    update.__enter__()
    update.replace(update.find(0, active=False), None)
    update.swap()
    with warnings.catch_warnings(), Reader(vm, reported(vm)):
        warnings.simplefilter("error", ReaderStallWarning)
        del update
        with pytest.raises(ReaderStallWarning, match="the slow reader") as caught:
            LOCKED[call](vm)
    assert len(vm) == 1
    assert "the change itself is complete" in caught.value.__notes__[0]
    if call.startswith("get_dirty_log"):  # the exception carries the log, so no bits are lost
        assert caught.value.dirty_log.tolist() == [8]
        assert vm.get_dirty_log(0).tolist() == [0]
    if call.startswith("harvest_dirty"):
        assert [part.tolist() for part in caught.value.dirty_ranges] == [[[3, 1]]]
        assert vm.get_dirty_log(0).tolist() == [0]
    put(vm, 1, 10, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_warning_that_an_interrupt_ended_is_shown_again(
    vm: VM, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """The second text differs, because Python shows each text only once."""
    seen: list[str] = []

    def show(message: Warning | str, *arguments: object, **more: object) -> None:
        seen.append(str(message))
        if len(seen) == 1:
            raise error

    with (
        shown_by(monkeypatch, show, "default"),
        Reader(vm, lambda: len(seen) > 1),
        pytest.raises(error),
    ):
        put(vm, 1, 10, 1)
    assert len(vm) == 2
    first, second, *_ = seen
    assert second == f"{first}; an interrupt came during the first warning"
    assert all("interrupt" not in text for text in seen[2:])


def test_warning_whose_hook_raises_is_not_marked_as_interrupted(
    vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def show(message: Warning | str, *arguments: object, **more: object) -> None:
        seen.append(str(message))
        raise ZeroDivisionError

    with shown_by(monkeypatch, show), Reader(vm, reported(vm)), pytest.raises(ZeroDivisionError):
        put(vm, 1, 10, 1)
    assert all("interrupt" not in text for text in seen)
