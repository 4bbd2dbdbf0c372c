# SPDX-License-Identifier: MIT
"""apply_layout(): the steps of its transaction are the fewest, and they lead to the wanted layout."""

from __future__ import annotations

import importlib
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from plan_model import LOG, READONLY, Row, Slots, comparison, rows_of, runs_of, slots_of
from test_plan import packed, random_pair

import memslots
from memslots import MEMSLOT_DTYPE, VM, InvalidRegionError, Plan, backends
from memslots._memslots import _backings_in, compare_rows, look_at_rows
from memslots.layout import STEP_DTYPE, apply_layout, compare, normalise
from memslots.layout.steps import CREATE, DELETE, MERGE, MOVE, RESIZE, SET_FLAGS, SPLIT
from memslots.traces import vectors

BENCH = Path(__file__).resolve().parents[2] / "bench"
PAGE = 4096
A, B, C = 0x10000, 0x20000000, 0x30000000
NAMES = {
    CREATE: "create",
    DELETE: "delete",
    MOVE: "move",
    SET_FLAGS: "set_flags",
    RESIZE: "resize",
    SPLIT: "split",
    MERGE: "merge",
}


class Machine:
    """The slots of a VM that changes by lists of steps, after the rules of a transaction: ids in the order of the
    steps, places only at the end."""

    def __init__(self, slots: Slots) -> None:
        self.slots = dict(slots)
        self.calls: list[np.ndarray] = []

    def memslots_array(self, as_id: int = 0) -> np.ndarray:
        assert as_id == 0
        rows = rows_of(self.slots)
        return rows[np.argsort(rows["base_gfn"])]

    def _compare(self, wanted: np.ndarray, with_ids: bool, as_id: int = 0) -> tuple:
        gone, ids = comparison(self.memslots_array(as_id), wanted, with_ids)
        return gone, np.zeros(len(gone), np.uint64), ids, len(self.calls)

    def _change_many(self, steps: np.ndarray, as_id: int, generation: int) -> bool:
        assert steps.dtype == STEP_DTYPE
        assert generation == len(self.calls)
        assert len(steps)
        slots = dict(self.slots)
        for step in steps:
            self._step(slots, *step.tolist())
        rows = sorted(slots.values())
        assert all(a.end <= b.base for a, b in itertools.pairwise(rows)), "slots overlap"
        self.slots = slots
        self.calls.append(steps)
        return True

    @staticmethod
    def _step(slots: Slots, kind, slot, other, flags, gpa, size, hva) -> None:
        assert other == 0 or kind in (SPLIT, MERGE)
        if kind == SPLIT:
            assert other not in slots
            old, base = slots[slot], gpa >> 12
            assert old.base < base < old.end
            slots[other] = Row(base, old.end - base, old.hva + (base - old.base) * PAGE, old.flags)
            slots[slot] = old._replace(npages=base - old.base)
        elif kind == MERGE:
            lower, upper = slots[slot], slots.pop(other)
            assert (lower.end, lower.hva + lower.npages * PAGE) == (upper.base, upper.hva)
            assert lower.flags == upper.flags
            slots[slot] = lower._replace(npages=lower.npages + upper.npages)
        elif kind == CREATE:
            assert slot not in slots
            slots[slot] = Row(gpa >> 12, size >> 12, hva, flags)
        elif kind == DELETE:
            assert (flags, gpa, size, hva) == (0, 0, 0, 0)
            del slots[slot]
        elif kind == MOVE:
            assert (flags, size, hva) == (0, 0, 0)
            slots[slot] = slots[slot]._replace(base=gpa >> 12)
        elif kind == RESIZE:
            assert (flags, gpa, hva) == (0, 0, 0)
            slots[slot] = slots[slot]._replace(npages=size >> 12)
        else:
            assert kind == SET_FLAGS
            assert (gpa, size, hva) == (0, 0, 0)
            assert (flags ^ slots[slot].flags) == LOG, "only logging can change"
            slots[slot] = slots[slot]._replace(flags=flags)

    def kinds(self) -> list[tuple[str, int]]:
        return [(NAMES[s["kind"]], int(s["slot"])) for steps in self.calls for s in steps]


def steps_for(current: Slots, wanted: Slots, **options) -> list[tuple[str, int]]:
    machine = Machine(current)
    made = apply_layout(machine, runs_of(wanted), coalesce=False, **options)
    assert sorted(machine.slots.values()) == sorted(wanted.values())
    assert machine.slots == slots_of(made.final)
    assert len(machine.calls) <= 1
    return machine.kinds()


def test_equal_layouts_need_no_transaction() -> None:
    slots = {3: Row(0, 4, A, LOG), 8: Row(9, 1, B, 0)}
    machine = Machine(slots)
    assert not apply_layout(machine, runs_of(slots))
    assert not machine.calls


def test_each_difference_is_one_step() -> None:
    slot = {3: Row(0, 4, A, 0)}
    assert steps_for(slot, {0: Row(9, 4, A, 0)}) == [("move", 3)]
    assert steps_for(slot, {0: Row(0, 4, A, LOG)}) == [("set_flags", 3)]
    assert steps_for(slot, {0: Row(9, 4, A, LOG)}) == [("move", 3), ("set_flags", 3)]
    assert steps_for(slot, {0: Row(0, 9, A, 0)}) == [("resize", 3)]
    assert steps_for(slot, {0: Row(0, 1, A, LOG)}) == [("resize", 3), ("set_flags", 3)]
    assert steps_for(slot, {0: Row(0, 4, A, READONLY)}) == [("delete", 3), ("create", 3)]
    assert steps_for(slot, {0: Row(0, 4, B, 0)}) == [("delete", 3), ("create", 0)]
    assert steps_for(slot, {0: Row(9, 5, A, 0)}) == [("delete", 3), ("create", 3)]
    assert steps_for(slot, {}) == [("delete", 3)]


def test_a_trade_is_two_moves() -> None:
    current = {1: Row(0, 4, A, 0), 2: Row(8, 4, B, 0)}
    machine = Machine(current)
    made = apply_layout(machine, [(8, 4, A, 0), (0, 4, B, 0)])
    assert sorted(machine.kinds()) == [("move", 1), ("move", 2)]
    assert (made.deletes, made.calls) == (1, 3), "one ioctl at a time, the trade needs a delete"


def test_a_joined_run_grows_its_first_slot() -> None:
    machine = Machine({1: Row(0, 4, A, 0), 2: Row(4, 4, A + 4 * PAGE, 0)})
    apply_layout(machine, machine.memslots_array())
    assert machine.kinds() == [("merge", 1)]
    assert machine.slots == {1: Row(0, 8, A, 0)}


def test_refused_before_any_step() -> None:
    machine = Machine({1: Row(0, 4, A, 0)})
    with pytest.raises(InvalidRegionError, match="needs 2 slots, and max_slots is 1"):
        apply_layout(machine, [(0, 4, A, 0), (9, 1, B, 0)], max_slots=1)
    with pytest.raises(ValueError, match="entry 0 has as_id 0, not 1"):
        apply_layout(Other(), rows_of({1: Row(0, 4, A, 0)}), as_id=1)
    assert not machine.calls


class Other(Machine):
    def __init__(self) -> None:
        super().__init__({})

    def memslots_array(self, as_id: int = 0) -> np.ndarray:
        return rows_of({})


def test_keep_ids_false_gives_the_ids_of_the_layout() -> None:
    current = {1: Row(0, 4, A, 0), 2: Row(8, 4, B, 0)}
    machine = Machine(current)
    apply_layout(machine, runs_of(current), keep_ids=False)
    assert machine.slots == {0: current[1], 1: current[2]}
    wanted = {9: Row(0, 4, A, 0), 2: Row(20, 4, B, LOG)}
    apply_layout(machine, rows_of(wanted), keep_ids=False)
    assert machine.slots == wanted


def fewest(current: Slots, wanted: Slots) -> int:
    """A lower bound for the steps: each wanted row that is new costs one, each old slot that cannot continue one."""
    old, new = set(current.values()), set(wanted.values())
    gone, born = sorted(old - new), sorted(new - old)
    return max(len(gone), len(born))


@pytest.mark.parametrize("n", [1, 2, 4, 8, 30])
def test_random_layouts(n) -> None:
    rng = random.Random(n)
    for _ in range(100):
        current, wanted = random_pair(rng, min(n, 12)) if n < 30 else (
            packed(rng, [rng.randint(1, 4) for _ in range(30)]) for _ in range(2)
        )  # fmt: skip
        assert len(steps_for(current, wanted)) >= fewest(current, wanted)
        machine = Machine(current)
        made = apply_layout(machine, rows_of(wanted), coalesce=False, keep_ids=False)
        assert machine.slots == wanted == slots_of(made.final)


@pytest.mark.parametrize("changed", [0, 1, 60, 400, 3000])
def test_large_layouts_with_rows_less_and_more(changed) -> None:
    rng = random.Random(changed)
    rows = {k: Row(4 * k, rng.randint(1, 3), A * (k + 1), 0) for k in range(3000)}
    current, wanted = dict(rows), dict(rows)
    for k in rng.sample(range(3000), changed):
        match rng.randrange(4):
            case 0:
                del current[k]
            case 1:
                del wanted[k]
            case 2:
                wanted[k] = wanted[k]._replace(flags=LOG)
            case 3:
                wanted[k] = wanted[k]._replace(hva=B + (k << 20))
    steps = steps_for(current, wanted)
    assert len(steps) >= fewest(current, wanted)
    assert len(steps) <= 2 * changed


def test_the_comparison_of_a_vm_finds_what_the_model_finds() -> None:
    """Both comparisons of the core, with rows and with the slots of a VM of each design."""
    rng = random.Random(7)
    for turn in range(1500):
        pair = random_pair(rng, 1 + turn % 9)
        current, wanted = (np.sort(rows_of(slots), order="base_gfn") for slots in pair)
        with VM(backend=backends()[turn % len(backends())]) as vm:
            vm.load_memslots(current)
            for with_ids in (False, True):
                expected = comparison(current, wanted, with_ids)
                gone, numbers, ids, generation = vm._compare(wanted, with_ids)
                assert generation == vm.generation()
                assert not numbers.any()
                for found in ((gone, ids), compare_rows(current, wanted, with_ids)):
                    np.testing.assert_array_equal(found[0], expected[0])
                    np.testing.assert_array_equal(found[1], expected[1])


def test_apply_makes_the_plan_of_the_two_layouts() -> None:
    """The comparison with the slots of the VM leads to the same plan as the comparison of two tables."""
    rng = random.Random(9)
    for turn in range(200):
        current, wanted = random_pair(rng, 1 + turn % 12)
        options = {"keep_ids": rng.random() < 0.7, "coalesce": rng.random() < 0.5}
        target = runs_of(wanted) if rng.random() < 0.5 else rows_of(wanted)
        now = normalise(rows_of(current), coalesce=False)
        then = normalise(target, coalesce=options["coalesce"])
        expected = compare(now, then, options["keep_ids"])
        with VM() as vm:
            vm.load_memslots(now.rows)
            made = vm.apply(target, **options)
            assert made.steps == Plan(expected).steps
            np.testing.assert_array_equal(made.changes, Plan(expected).changes)
            np.testing.assert_array_equal(made.final, expected.final())
            np.testing.assert_array_equal(made.final, vm.memslots_array())


def test_a_comparison_takes_only_rows_that_it_can_read() -> None:
    rows = rows_of({1: Row(0, 4, A, 0), 2: Row(8, 4, A, 0)})
    with VM() as vm:
        flat = (np.zeros((50_000, 0), MEMSLOT_DTYPE), rows.reshape(1, 2), rows[0:1].reshape(()))
        for wrong in (rows.repeat(2)[::2], rows[["id"]], np.zeros(2), *flat):
            with pytest.raises(TypeError, match="a contiguous array of MEMSLOT_DTYPE"):
                vm._compare(wrong, False)
            with pytest.raises(TypeError, match="a contiguous array of MEMSLOT_DTYPE"):
                compare_rows(wrong, rows, False)
            with pytest.raises(TypeError, match="a contiguous array of MEMSLOT_DTYPE"):
                look_at_rows(wrong, 0, 0)
        vm.map_buffer(0, memslots.alloc(PAGE))
        with pytest.raises(ValueError, match="there are 1 backings for 2 rows"):
            vm._compare(rows, False, 0, _backings_in(vm.snapshot()))


def test_a_hundred_thousand_runs_with_ten_differences() -> None:
    n = 100_000
    rng = np.random.default_rng(1)
    rows = np.zeros(n, rows_of({}).dtype)
    rows["npages"] = rng.integers(1, 8, n)
    rows["npages"][[1000, 1001]] = 2
    rows["base_gfn"] = np.cumsum(rows["npages"] + np.uint64(1)) - rows["npages"]
    rows["userspace_addr"] = rng.permutation(n).astype(np.uint64) << np.uint64(16)
    rows["id"] = rng.permutation(n)
    wanted = rows.copy()
    wanted["flags"][[3, 50_000]] = LOG
    wanted["npages"][[9, 60_000]] += 1
    wanted["userspace_addr"][[1000, 1001]] = wanted["userspace_addr"][[1001, 1000]]
    wanted["base_gfn"][[5, 77_000]] += 1 << 30
    wanted["userspace_addr"][[5, 77_000]] += 1 << 40
    wanted = wanted[["base_gfn", "npages", "userspace_addr", "flags"]]  # without ids
    with VM(user_mem_slots=n) as vm:
        vm.load_memslots(rows)
        machine = Machine({})
        machine._compare = vm._compare
        machine._change_many = lambda steps, *_: machine.calls.append(steps) or True
        made = apply_layout(machine, wanted)
        kinds = [kind for kind, _ in machine.kinds()]
        assert {k: kinds.count(k) for k in kinds} == {
            "delete": 2, "move": 2, "resize": 2, "set_flags": 2, "create": 2,
        }  # fmt: skip
        assert len(made.final) == n


@pytest.mark.skipif(not BENCH.is_dir(), reason="there is no checkout around the tests")
@pytest.mark.parametrize("name", ["pc-pam-smram", "pc-reset-x4", "q35-vbe-vnc-refresh"])
def test_a_burst_of_a_trace_is_one_transaction(name, monkeypatch) -> None:
    """as_bursts() compares the slots at the end with those of the trace."""
    pytest.importorskip("tabulate")
    monkeypatch.syspath_prepend(str(BENCH))
    bench = importlib.import_module("bursts")
    (path,) = [path for path in vectors.packaged_traces() if vectors.stem(path) == name]
    series = list(bench.bursts(vectors.read(path), 1000))
    machine = Machine({})
    machine.stats = lambda: {"swaps": len(machine.calls)}
    swaps = bench.as_bursts(machine, series)
    assert 0 < swaps <= len(series)
    with VM() as vm:
        assert bench.one_by_one(vm, series) > 3 * swaps
        np.testing.assert_array_equal(vm.memslots_array(), machine.memslots_array())
