# SPDX-License-Identifier: MIT
# ruff: noqa: PT012, PT017 (the end of a block raises; the model's refusal is compared with the engine's)
"""Transactions: compared with the naive model, refusals that name the step and both parties, previews, buffers."""

from __future__ import annotations

import mmap
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import ModelVM
from scene import ATTEMPT, PAGE, SANITIZED, Recorder, put, runs
from test_bad_input import digest
from transaction_model import Step, StepRefusedError, Steps, change_many

import memslots
from memslots import (
    VM,
    ClosedError,
    InvalidRegionError,
    Listener,
    MemslotsError,
    NoSuchSlotError,
    ReentrantChangeError,
    RegionOverlapError,
    Transaction,
    backends,
)

LOG, READONLY = 1, 2
IDS = 10
GPA_BITS = 18  # 64 pages of guest memory


# ---- against the model -------------------------------------------------------------------------------------------

KEYWORDS = ("guest_phys_addr", "memory_size", "userspace_addr", "flags")


def collect(t: Transaction, step: Step) -> None:
    name, *arguments = step
    if name == "create":
        id, *values = arguments
        assert t.create(id, **dict(zip(KEYWORDS, values, strict=True))) == id
    elif name == "set_flags":
        t.set_flags(arguments[0], set=arguments[1], clear=arguments[2])
    else:
        getattr(t, name)(*arguments)


class Draw:
    """Random steps: most of them are legal after the steps before, some are not."""

    def __init__(self, rng: Random, model: ModelVM) -> None:
        self.rng, self.work = rng, Steps(model, 0)

    def steps(self, count: int) -> list[Step]:
        found = []
        for _ in range(count):
            step = self.step()
            found.append(step)
            try:
                getattr(self.work, step[0])(*step[1:])
            except StepRefusedError:
                break
        return found

    def step(self) -> Step:
        rng, parts = self.rng, list(self.work.parts.values())
        if not parts or rng.random() < 0.2:
            return self.create()
        slot = rng.choice(parts).slot
        match rng.randrange(8):
            case 0:
                return "delete", slot.id
            case 1 | 2:
                return "move", slot.id, self.gpa()
            case 3:
                return (
                    "set_flags",
                    slot.id,
                    rng.choice((0, LOG, READONLY, 8)),
                    rng.choice((0, LOG, 0xFF)),
                )
            case 4:
                return "resize", slot.id, rng.choice((0, 1, 2, 3, slot.npages + 1, slot.npages))
            case 5:
                return "split", slot.id, slot.gpa + rng.randint(0, slot.npages) * PAGE, self.id()
            case 6:
                return "merge", slot.id, self.neighbour(slot.end_gfn)
            case _:
                return self.punch()

    def create(self) -> Step:
        rng = self.rng
        gpa = self.gpa()
        hva = rng.choice((gpa // PAGE, rng.randint(0, 40))) * PAGE  # neighbours can often be joined
        return (
            "create",
            self.id(),
            gpa,
            rng.randint(1, 5) * PAGE,
            hva,
            rng.choice((0, LOG, LOG, READONLY)),
        )

    def id(self) -> int:
        free = [id for id in range(IDS) if id not in self.work.parts]
        return (
            self.rng.choice(free)
            if free and self.rng.random() < 0.9
            else self.rng.randrange(IDS + 1)
        )

    def gpa(self) -> int:
        return self.rng.randint(0, 65) * PAGE + (self.rng.random() < 0.02)

    def neighbour(self, gfn: int) -> int:
        found = [p.slot.id for p in self.work.parts.values() if p.slot.base_gfn == gfn]
        return found[0] if found else self.rng.randrange(IDS)

    def punch(self) -> Step:
        """Where slots overlap in between, the order in which they are cut decides about the id of a second part."""
        gpa, n = self.gpa(), self.rng.randint(0, 4) * PAGE
        hit = [
            p
            for p in self.work.parts.values()
            if p.slot.gpa < gpa + n and gpa < p.slot.gpa + p.slot.size
        ]
        return ("punch", gpa, n) if len(hit) < 2 else ("delete", hit[0].slot.id)


class Both:
    """A VM and the model of it, with the same changes."""

    def __init__(self, backend: str, protect: int) -> None:
        limits = {"user_mem_slots": IDS, "gpa_bits": GPA_BITS}
        self.vm, self.model = VM(backend=backend, **limits), ModelVM(**limits)
        self.vm.manual_dirty_log_protect = self.model.manual_dirty_log_protect = protect

    def transact(self, steps: list[Step]) -> bool:
        before, previewed, error = self.seen(), None, None
        try:
            with self.vm.transaction() as t:
                for step in steps:
                    collect(t, step)
                previewed = t.preview()
        except MemslotsError as caught:
            error = caught
        try:
            change_many(self.model, steps)
        except StepRefusedError as refused:
            assert error is not None, (steps, refused)
            assert (error.errno, error.rule) == (refused.errno, refused.rule), steps
            assert (error.step, error.other and error.other.id) in refused.found, (steps, error)
            assert f"step {error.step} ({steps[error.step][0]})" in str(error)
            assert self.seen() == before, steps
            return False
        assert error is None, (steps, error)
        assert previewed == self.vm.snapshot(), steps
        return True

    def seen(self) -> tuple[Any, ...]:
        return self.vm.memslots(), self.vm.generation(), self.vm.harvest_dirty(clear=False).tolist()

    def mark(self, gfns: list[int]) -> None:
        for side in (self.vm, self.model):
            side.mark_page_dirty_many(np.array(gfns, np.uint64))

    def agree(self, steps: list[Step]) -> None:
        assert [vars_of(s) for s in self.vm] == [vars_of(s) for s in self.model.memslots()], steps
        assert self.vm.generation() == self.model.generation(), steps
        dirty = [side.harvest_dirty(clear=False).tolist() for side in (self.vm, self.model)]
        assert dirty[0] == dirty[1], steps
        self.vm.check()


def vars_of(slot: Any) -> tuple[int, ...]:
    return slot.id, slot.base_gfn, slot.npages, slot.userspace_addr, int(slot.flags)


@pytest.mark.parametrize("backend", backends())
@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 25), st.sampled_from([0, 1, 3]))
def test_transactions_agree_with_the_model(
    backend: str, seed: int, count: int, protect: int
) -> None:
    rng, both = Random(seed), Both(backend, protect)
    with both.vm:
        for _ in range(count):
            steps = Draw(rng, both.model).steps(rng.randint(0, 6))
            both.transact(steps)
            both.agree(steps)
            both.mark([rng.randrange(66) for _ in range(6)])


def test_random_steps_are_both_accepted_and_refused() -> None:
    """The comparison above covers every kind of step, many refusals, and final states of several steps."""
    rng, both, outcomes = Random(5), Both("tree", 1), []
    kinds: set[str] = set()
    for _ in range(400):
        steps = Draw(rng, both.model).steps(rng.randint(1, 4))
        done = both.transact(steps)
        kinds |= {step[0] for step in steps} if done else set()
        outcomes.append((done, len(steps)))
    assert kinds == {"create", "delete", "move", "set_flags", "resize", "split", "merge", "punch"}
    assert sum(done and n > 1 for done, n in outcomes) > 50
    assert sum(not done for done, _ in outcomes) > 50


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.fixture
def vm() -> Iterator[VM]:
    """Slot 0 logs, slots 1 and 2 are neighbours in guest memory, slot 3 is READONLY, slots 4 and 5 have memory."""
    with VM(user_mem_slots=9, gpa_bits=32) as vm:
        put(vm, 0, 0, 16, LOG)
        put(vm, 1, 16, 16)
        put(vm, 2, 32, 16)
        put(vm, 3, 64, 16, READONLY)
        halves = np.frombuffer(memslots.alloc(32 * PAGE), np.uint8).reshape(2, -1)
        for id, half in enumerate(halves, 4):
            vm.map_buffer(id * 32 * PAGE, half, slot=id)
        vm.manual_dirty_log_protect = 1
        vm.mark_page_dirty(3)
        yield vm


SPACE = {"guest_phys_addr": 200 * PAGE, "memory_size": PAGE}
# rule -> the refused step, and the slot in the way
REFUSED: dict[str, tuple[Callable[[Transaction], object], int | None]] = {
    "SLOT_ID": (lambda t: t.create(9, **SPACE), None),
    "FLAGS": (lambda t: t.set_flags(1, set=8), None),
    "SIZE_ALIGN": (lambda t: t.create(**SPACE | {"memory_size": 1}), None),
    "GPA_ALIGN": (lambda t: t.move(1, 1), None),
    "HVA_ALIGN": (lambda t: t.create(**SPACE, userspace_addr=1), None),
    "HVA_RANGE": (lambda t: t.create(**SPACE, userspace_addr=2**47), None),
    "GPA_WRAP": (lambda t: t.move(1, 2**64 - PAGE), None),
    "NPAGES": (lambda t: t.resize(1, 0), None),
    "NO_SUCH_SLOT": (lambda t: t.delete(7), None),
    "GMEM_EXISTING": (lambda t: t.set_flags(1, set=4), 1),
    "GMEM_FD": (lambda t: t.create(**SPACE, flags=4), None),
    "FLAGS_TOGGLE": (lambda t: t.set_flags(3, clear=READONLY), 3),
    "OVERLAP": (lambda t: t.move(1, 40 * PAGE), 2),
    "GPA_LIMIT": (lambda t: t.move(1, 2**32 - PAGE), None),
    "DUPLICATE_ID": (lambda t: t.split(1, 17 * PAGE, 2), 2),
    "BACKING_RANGE": (lambda t: t.resize(4, 17), None),
    "SPLIT": (lambda t: t.split(1, 16 * PAGE), 1),
    "MERGE_PLACE": (lambda t: t.merge(1, 3), 3),
    "MERGE_HVA": (lambda t: t.merge(1, 2), 2),
    "MERGE_FLAGS": (lambda t: (t.move(3, 2 * PAGE), t.merge(0, 8)), 8),
    "MERGE_BACKING": (lambda t: t.merge(4, 5), 5),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_refusal_names_step_rule_and_both_parties_and_changes_nothing(vm: VM, rule: str) -> None:
    collects, other = REFUSED[rule]
    buffer = memslots.alloc(PAGE)
    if rule in ("MERGE_FLAGS", "MERGE_BACKING"):
        make_neighbours(vm, rule)
    before, generation = digest(vm), vm.generation()
    with pytest.raises(MemslotsError) as caught, vm.transaction() as t:
        mapping = t.map_buffer(0x900000, buffer)
        t.set_flags(2, set=LOG)
        collects(t)
    error = caught.value
    last = 3 if rule == "MERGE_FLAGS" else 2
    assert (error.rule, error.step) == (rule, last), error
    assert (error.other and error.other.id) == other
    assert str(error).startswith(f"[Errno {error.errno}] step {last} (")
    assert other is None or f"slot {other}" in str(error)
    assert (digest(vm), vm.generation()) == (before, generation)
    assert not vm.pinned_by(buffer)
    assert not mapping.mapped
    buffer.close()
    vm.check()


def make_neighbours(vm: VM, rule: str) -> None:
    if rule == "MERGE_BACKING":
        vm.move(5, vm.id_to_memslot(4).gpa + 16 * PAGE)
    else:
        put(vm, 8, 0x1000, 16, hva=16 * PAGE)
        vm.move(8, 2**20)
        vm.delete(1)
        vm.move(8, 16 * PAGE)


def test_both_slots_of_an_overlap_can_be_of_the_transaction(vm: VM) -> None:
    with (
        pytest.raises(
            RegionOverlapError, match=r"step 1 \(move\): slot 2 .* overlaps slot 1 "
        ) as caught,
        vm.transaction() as t,
    ):
        t.move(1, 100 * PAGE)
        t.move(2, 101 * PAGE)
        t.set_flags(1, set=LOG)
    assert (caught.value.step, caught.value.other.gpa) == (1, 100 * PAGE)


def test_flags_never_take_the_blame_for_a_place(vm: VM) -> None:
    with (
        pytest.raises(RegionOverlapError, match=r"step 0 \(create\): slot 6") as caught,
        vm.transaction() as t,
    ):
        t.create(guest_phys_addr=20 * PAGE, memory_size=PAGE)
        t.set_flags(1, set=LOG)
    assert (caught.value.step, caught.value.other.id) == (0, 1)


def test_no_free_id_is_refused_where_the_id_is_needed(vm: VM) -> None:
    with (
        pytest.raises(MemslotsError, match="step 3: all 9 slot ids") as caught,
        vm.transaction() as t,
    ):
        for k in range(10):
            t.create(**SPACE | {"guest_phys_addr": (300 + k) * PAGE})
    assert (caught.value.rule, caught.value.step) == ("NO_FREE_SLOT", 3)
    with vm.transaction() as t:
        t.delete(2)
        assert t.create(**SPACE) == 2


def test_listener_that_refuses_gets_a_note_with_the_step(vm: VM) -> None:
    class Refuser(Listener):
        def prepare(self, change: memslots.Change) -> None:
            if change.old is not None and change.old.id == 2:
                raise ZeroDivisionError("no")

    calls = Recorder()
    vm.add_listener(calls)
    vm.add_listener(Refuser())
    before = digest(vm)
    with pytest.raises(ZeroDivisionError) as caught, vm.transaction() as t:
        t.delete(1)
        t.move(2, 2**20)
    assert caught.value.__notes__ == [
        "step 1 (move): a listener refused this change; nothing was changed"
    ]
    assert digest(vm) == before
    assert [call[1] for call in calls.calls] == ["prepare", "prepare", "abort", "abort"]


def test_listeners_get_a_transaction_as_one_list(vm: VM) -> None:
    got: list[list[memslots.Change]] = []

    class Many(Listener):
        def prepare_many(self, changes: list[memslots.Change]) -> None:
            got.append(changes)

    vm.add_listener(Many())
    with vm.transaction() as t:
        t.move(1, 32 * PAGE)
        t.move(2, 16 * PAGE)
        t.split(0, 8 * PAGE)
    (changes,) = got
    assert sorted(c.kind.name for c in changes) == ["CREATE", "MOVE", "MOVE", "RESIZE"]


# ---- begin and end -----------------------------------------------------------------------------------------------


def test_exception_in_the_block_drops_the_steps(vm: VM) -> None:
    before, buffer = digest(vm), memslots.alloc(PAGE)
    with pytest.raises(KeyError), vm.transaction() as t:
        t.delete(0)
        t.map_buffer(2**20, buffer)
        raise KeyError
    assert digest(vm) == before
    buffer.close()
    assert len(t) == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda t: t.create(**SPACE),
        lambda t: t.map_buffer(2**20, memslots.alloc(PAGE)),
        lambda t: t.delete(1),
        lambda t: t.move(1, 0),
        lambda t: t.set_flags(1),
        lambda t: t.resize(1, 1),
        lambda t: t.split(1, 17 * PAGE),
        lambda t: t.merge(1, 2),
        lambda t: t.punch(0, PAGE),
        lambda t: t.preview(),
        lambda t: t.diff(),
        lambda t: t.__exit__(None, None, None),
    ],
)
def test_steps_outside_of_the_block_are_refused(
    vm: VM, use: Callable[[Transaction], object]
) -> None:
    before = digest(vm)
    for t in (vm.transaction(), Transaction(vm), Transaction.__new__(Transaction)):
        with pytest.raises(RuntimeError, match=r"with vm\.transaction|not begun"):
            use(t)
    with vm.transaction() as t:
        pass
    with pytest.raises(RuntimeError, match="ended"):
        use(t)
    assert digest(vm) == before


def test_transaction_runs_once(vm: VM) -> None:
    with vm.transaction() as t, pytest.raises(RuntimeError, match="runs once"), t:
        pass
    with pytest.raises(RuntimeError, match="runs once"), t:
        pass


def test_transaction_is_made_once(vm: VM) -> None:
    t = Transaction(vm, as_id=0)
    with pytest.raises(RuntimeError, match="made once"):
        t.__init__(vm)
    with t:
        t.move(1, 2**20)
        with pytest.raises(RuntimeError, match="made once"):
            t.__init__(VM())
    assert vm.id_to_memslot(1).gpa == 2**20
    blank = Transaction.__new__(Transaction)
    assert (len(blank), blank.vm) == (0, None)
    with pytest.raises(RuntimeError, match=r"has no VM: .* vm\.transaction\(\) makes"), blank:
        pass
    with pytest.raises(InvalidRegionError, match="address space 9"):
        blank.__init__(vm, 9)
    with pytest.raises(TypeError):
        Transaction(None)


def test_inner_transaction_is_an_earlier_change(vm: VM) -> None:
    with (
        pytest.raises(InvalidRegionError, match=r"step 0 \(move\): there is no slot 1"),
        vm.transaction() as outer,
    ):
        outer.move(1, 2**20)
        with vm.transaction() as inner:
            inner.delete(1)
        assert vm.id_to_memslot(1) is None


def test_end_is_refused_in_sections_hooks_and_updates(vm: VM) -> None:
    before = digest(vm)

    def transact() -> None:
        with vm.transaction() as t:
            t.delete(0)

    with vm.read(), pytest.raises(ReentrantChangeError) as caught:
        transact()
    assert (caught.value.rule, caught.value.step) == ("READ_SECTION", None)
    with vm.begin_update(), pytest.raises(ReentrantChangeError) as caught:
        transact()
    assert caught.value.rule == "UPDATE"
    errors: list[str | None] = []

    class Nested(Listener):
        def prepare(self, change: memslots.Change) -> None:
            try:
                transact()
            except ReentrantChangeError as error:
                errors.append(error.rule)

    nested = Nested()
    vm.add_listener(nested)
    vm.move(1, 2**20)
    vm.move(1, 16 * PAGE)
    assert errors == ["HOOK", "HOOK"]
    vm.remove_listener(nested)
    assert digest(vm)[:3] == before[:3]
    with pytest.raises(ClosedError), vm.transaction() as t:
        t.delete(0)
        vm.close()
    with pytest.raises(ClosedError):
        vm.transaction()


def test_transaction_is_not_copied(vm: VM) -> None:
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(vm.transaction())
    assert "not begun" in repr(vm.transaction())


# ---- ids, previews, buffers --------------------------------------------------------------------------------------


def test_ids_are_visible_at_once(vm: VM) -> None:
    with vm.transaction() as t:
        assert t.create(**SPACE) == 6
        assert t.split(1, 20 * PAGE) == 7
        t.delete(2)
        assert t.punch(4 * PAGE, PAGE) == [2]
        assert t.punch(500 * PAGE, PAGE) == []
        t.move(2, 2**30)
        t.merge(1, 7)
        assert t.create(7, **SPACE | {"guest_phys_addr": 2**29}) == 7
        assert t.map_buffer(2**28, memslots.alloc(PAGE)).slot == 8
    assert [slot.id for slot in vm] == [0, 1, 3, 4, 5, 6, 8, 7, 2]
    assert vm.id_to_memslot(2).npages == 11


def test_preview_reads_new_buffers_and_keeps_them(vm: VM) -> None:
    buffer = memslots.alloc(PAGE)
    memoryview(buffer)[:3] = b"abc"
    with vm.transaction() as t:
        t.map_buffer(2**20, buffer)
        preview = t.preview()
        assert preview.read_guest(2**20, 3) == b"abc"
        assert preview.generation == vm.generation()
        t.delete(6)
    assert preview.pinned
    with pytest.raises(BufferError):
        buffer.close()
    preview.close()
    buffer.close()


def test_preview_grows_with_the_vm() -> None:
    with VM() as vm, vm.transaction() as t:
        for k in range(500):
            t.punch(k * 2**20, PAGE) if k % 3 else t.create(
                guest_phys_addr=k * 2**20, memory_size=PAGE * 8
            )
        assert len(t.preview()) == 167
        assert len(t.diff().created) == 167


def test_mapping_is_valid_from_the_end_on(vm: VM) -> None:
    buffer = memslots.alloc(4 * PAGE)
    with vm.transaction() as t:
        mapping = t.map_buffer(2**20, buffer, log_dirty=True)
        assert not mapping.mapped
        with pytest.raises(NoSuchSlotError):
            mapping.view()
    assert mapping.mapped
    vm.write_guest(2**20, b"xyz")
    assert bytes(memoryview(buffer)[:3]) == b"xyz"
    with vm.transaction() as t:
        second = t.split(mapping.slot, 2**20 + 2 * PAGE)
    assert vm.read_guest(2**20, 3) == b"xyz"
    assert vm.get_dirty_log(mapping.slot).tolist() == [1]
    vm.delete(mapping.slot)
    with pytest.raises(BufferError):
        buffer.close()
    vm.delete(second)
    buffer.close()


def test_buffers_of_a_transaction_that_never_ends_are_released() -> None:
    with VM() as vm:
        memory = mmap.mmap(-1, PAGE)
        t = vm.transaction().__enter__()
        t.map_buffer(0, memory)
        with pytest.raises(BufferError):
            memory.close()
        del t
        memory.close()


@pytest.mark.parametrize("n", [1, 4, 5, 16, 17, 40])
def test_lists_of_any_length_keep_their_steps_and_buffers(n: int) -> None:
    """A short list lies inside the Transaction, a longer one in an array."""
    buffers = [mmap.mmap(-1, PAGE) for _ in range(n)]

    def collect_all(t: Transaction) -> None:
        for k, buffer in enumerate(buffers):
            assert len(t) == k
            assert t.map_buffer((n - k) * PAGE, buffer).slot == k
        assert [slot.gpa for slot in t.preview()] == [(k + 1) * PAGE for k in range(n)]

    with VM() as vm:
        with suppress(ArithmeticError), vm.transaction() as t:
            collect_all(t)
            raise ArithmeticError
        for k in range(n):  # no reference is left, so that a buffer can be closed
            buffers[k].close()
            buffers[k] = mmap.mmap(-1, PAGE)
        with vm.transaction() as t:
            collect_all(t)
        assert len(t) == 0
        assert [slot.id for slot in vm] == list(range(n))[::-1]
        with pytest.raises(BufferError):
            buffers[-1].close()
    for buffer in buffers:
        buffer.close()


def test_set_flags_is_relative_to_the_end(vm: VM) -> None:
    """Another change of the flags between the step and the end is not lost."""
    with vm.transaction() as t:
        t.set_flags(3, set=LOG)
        t.set_flags(0, clear=0)
        vm.set_flags(0, clear=LOG)
    assert (vm.id_to_memslot(3).flags, vm.id_to_memslot(0).flags) == (READONLY | LOG, 0)


def test_threads_that_share_a_transaction_never_crash() -> None:
    """A call that another thread disturbs raises RuntimeError."""
    with VM() as vm:
        put(vm, 0, 0, 16)
        outcomes: list[str] = []

        def use(t: Transaction) -> None:
            for k in range(150):
                for call in (
                    lambda k=k: t.punch(k * 2**20, PAGE),
                    t.preview,
                    lambda: t.resize(0, 9),
                ):
                    try:
                        call()
                    except RuntimeError as error:
                        outcomes.append(str(error))

        with suppress(RuntimeError), vm.transaction() as t:
            threads = [threading.Thread(target=use, args=(t,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert {"another thread uses the transaction"}.issuperset(outcomes)
        assert vm.id_to_memslot(0).npages == 9
        vm.check()


def test_threads_see_the_state_before_or_after() -> None:
    """Four slots rotate through four places; no reader sees a hole or two equal answers."""
    with VM() as vm:
        for id in range(4):
            put(vm, id, 16 * id, 16)
        gfns = np.arange(0, 64, 16, dtype=np.uint64)
        states = {tuple((k + r) % 4 * 2**30 for k in range(4)) for r in range(4)}
        wrong: list[object] = []
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                with vm.read():
                    found = tuple(vm.gfn_to_hva_many(gfns).tolist())
                if found not in states:
                    wrong.append(found)

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(1, 150):
                with vm.transaction() as t:
                    for id in range(4):
                        t.move(id, (id + turn) % 4 * 16 * PAGE)
                assert vm.stats()["swaps"] == 4 + turn
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not wrong


# ---- no memory for Python ----------------------------------------------------------------------------------------

NO_MEMORY = """
memory, other = memslots.alloc(8 * PAGE), np.zeros(3 * PAGE, np.uint8)
other = other[-other.ctypes.data % PAGE:][:2 * PAGE]
vm = VM()
kept = vm.map_buffer(0, memory, slot=0, log_dirty=True)
put(vm, 1, 100, 16)
before, wanted = vm.snapshot(), vm.memslots()
def transact(*calls):
    with vm.transaction() as t:
        for call in calls:
            call(t)
        raise ArithmeticError
def refuse(*calls):
    with vm.transaction() as t:
        for call in calls:
            call(t)
        t.create(guest_phys_addr=0, memory_size=PAGE)
def succeed():
    with vm.transaction() as t:
        t.map_buffer(2**30, other)
        t.split(1, 104 * PAGE, 7)
def go_back():
    vm.restore(before)
buffered = lambda t: t.map_buffer(2**30, other)
CALLS = [lambda: transact(buffered, lambda t: t.preview(), lambda t: t.diff()),
         lambda: transact(lambda t: t.punch(PAGE, PAGE), lambda t: t.create(guest_phys_addr=2**31, memory_size=PAGE)),
         lambda: refuse(buffered, lambda t: t.split(1, 104 * PAGE)), lambda: refuse(lambda t: t.delete(99)),
         lambda: vm.apply(before, coalesce=False), lambda: vm.apply([(0, 1, 0, 0), (0, 1, 0, 0)]),
         lambda: VM.from_snapshot(before).close()]
def failing(n):
    outcomes = []
    for call in CALLS:
        outcomes.append(attempt(call, n))
        assert not vm.pinned_by(other), (n, outcomes)
        assert vm.memslots() == wanted, (n, outcomes)
        vm.check()
    outcomes.append(attempt(succeed, n))
    assert len(vm) in (2, 4) and bool(vm.pinned_by(other)) == (len(vm) == 4), (n, outcomes)
    outcomes.append(attempt(go_back, n))
    vm.restore(before)
    assert vm.memslots() == wanted and not vm.pinned_by(other), (n, outcomes)
    return outcomes.count("MemoryError") + outcomes.count("OutOfMemoryError")
gc.disable()
found = [failing(n) for n in range(80)]
assert sum(found) > 150, found
print("well")
"""


@pytest.mark.skipif(
    SANITIZED, reason="a sanitizer replaces the allocator, so none can be made to fail"
)
def test_failed_allocation_of_python_leaves_no_step_slot_or_buffer() -> None:
    pytest.importorskip("_testcapi", reason="this Python has no _testcapi to fail allocations with")
    runs(ATTEMPT + NO_MEMORY)


def test_errno_of_a_changed_state_is_eagain(vm: VM) -> None:
    assert vm._change_many(np.zeros(0, memslots.layout.STEP_DTYPE), 0, vm.generation() + 1) is False
    assert vm._change_many(np.zeros(0, memslots.layout.STEP_DTYPE), 0, vm.generation()) is True
