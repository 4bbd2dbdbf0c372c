# SPDX-License-Identifier: MIT
"""The timed part of each measurement: no cold pass, no untimed pass, new VMs in each round, and the process as before.

A clock that only the measured calls advance makes every time known.
"""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from memslots import HVA_ERR_BAD, kvm
from memslots.commands import perf, scale
from memslots.kvm import ioctls
from memslots.lab import costs, layouts, lookups, machine, scaling, selftest, subjects
from memslots.lab.case import Budget, Case, Run
from memslots.lab.sample import Sample
from memslots.lab.subjects import INDEXED, ROOM, Engine, Kernel, Subjects, regions
from memslots.measure import crossover, rounds
from memslots.measure.rounds import Results, measure, plan, turns

BUDGET = Budget(0.001, 1.0, 1.0, 64, 8, 4)


class Clock:
    """A clock that stands still until a call advances it."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (lookups, scaling, subjects, machine):
        monkeypatch.setattr(module, "perf_counter_ns", made)
    return made


def numbers(*values: int) -> Any:
    return np.array(values, dtype=np.uint64)


# ---- loops in C ---------------------------------------------------------------------------------


def test_loop_is_timed_in_its_second_pass_and_then_alone() -> None:
    calls: list[tuple[list[int], int]] = []
    ns = iter([numbers(1, 1), numbers(640, 30), numbers(5, 900)])  # the first pass is not used

    def loop(given: Any, group: int) -> Any:
        calls.append((given.tolist(), group))
        return next(ns), given + np.uint64(len(calls))

    given = np.arange(66, dtype=np.uint64)
    value, singles, answers = lookups.time_loop(loop, given, 2)
    assert calls == [(given.tolist(), costs.RUN), (given.tolist(), costs.RUN), ([0, 1], 1)]
    assert value == 12.5  # the median of 640 / 64 and 30 / 2
    assert singles.tolist() == [5, 900]
    assert answers.tolist() == [*range(2, 68), 3, 4]


def test_ranges_are_timed_in_their_second_pass() -> None:
    calls: list[int] = []
    ns = iter([numbers(1, 1), numbers(640, 12), numbers(7, 9, 11, 13)])

    class Ranges(selftest.Unmap):
        def engine(self, run: Run) -> Any:
            return self

        def hvas(self, starts: Any, lasts: Any, group: int) -> Any:
            calls.append(group)
            return next(ns), layouts.expected_counts(self.slots, starts, lasts)

    case = Ranges(8, 1)
    starts, lasts = (part[:65] for part in case.chunks(case.halves[0], 1))
    timed = selftest.time_ranges(case, Run("tree", Subjects(), BUDGET), (starts, lasts))
    assert calls == [costs.RUN, costs.RUN, 1]
    assert (timed.value, timed.ops, timed.wrong) == (11, 69, None)  # 640 / 64 and 12 / 1
    assert timed.singles.tolist() == [7, 9, 11, 13]
    assert len(timed.answers) == 65


# ---- loops in Python ----------------------------------------------------------------------------


def test_batches_are_timed_call_by_call(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 numbers in batches of 2, 2 and 1, in three passes after a cold call."""
    monkeypatch.setattr(lookups, "BATCH", 2)
    cost = iter([10**9, 20, 40, 5, 22, 44, 6, 24, 48, 7])
    seen: list[list[int]] = []

    def many(part: Any, out: Any) -> None:
        assert (out == 0).all(), "an answer that is not written keeps no answer of a pass before"
        seen.append(part.tolist())
        out[:] = part + np.uint64(len(seen))
        clock.now += next(cost)

    value, singles, answers = lookups.time_batches(many, numbers(1, 2, 3, 4, 5))
    assert singles.tolist() == [10, 20, 5, 11, 22, 6, 12, 24, 7]
    assert value == 11
    assert seen == [[1, 2, 3, 4, 5], *[[1, 2], [3, 4], [5]] * 3]
    assert answers.tolist() == [3, 4, 6, 7, 9, 6, 7, 9, 10, 12, 9, 10, 12, 13, 15]


def test_calls_are_timed_in_groups_and_then_alone(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 numbers in groups of 2, 2 and 1, after 5 cold calls; then two calls alone, of which one raises."""
    monkeypatch.setattr(lookups, "RUN", 2)
    cost = iter([10**9] * 5 + [10, 20, 30, 50, 7] + [100, 200])

    def call(number: int) -> int:
        clock.now += next(cost)
        if number == 2:
            raise LookupError
        return number * 10

    value, singles, answers = lookups.time_calls(call, numbers(1, 2, 3, 4, 5), 2)
    assert value == 15  # the median of 15, 40 and 7
    assert singles.tolist() == [100, 200]
    assert answers.tolist() == [10, HVA_ERR_BAD, 30, 40, 50, 10, HVA_ERR_BAD]


@pytest.mark.parametrize(
    ("level", "method", "cached"),
    [("vm", "gfns", False), ("vcpu", "vcpu_gfns", True)],
)
def test_each_level_times_its_own_loop(
    level: str, method: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Any] = []

    def time_lookups(vm: Any, what: str, given: Any, group: int, vcpu: Any = None) -> Any:
        used.append((what, vcpu is not None))
        return numbers(*[1] * -(-len(given) // group)), layouts.expected_hvas(case.slots, given)

    monkeypatch.setattr(subjects, "time_lookups", time_lookups)
    case = lookups.GfnLookup("hot", level, 8, 1)
    with Subjects() as made:
        (sample,) = case.run(Run("tree", made, BUDGET))
    assert set(used) == {("gfn_to_hva", cached)}
    assert sample.wrong is None


@pytest.mark.parametrize("pattern", lookups.PATTERNS)
def test_each_pattern_has_its_stream_on_its_layout(pattern: str) -> None:
    """A slow backend gets a part of the same stream, with the answers of that part."""
    name = "adversarial" if pattern == "adversarial" else "uniform"
    slots = layouts.layout(name, 20, 3)
    stream = layouts.STREAMS["random" if pattern == "adversarial" else pattern](slots, 500, 3)
    case = lookups.GfnLookup(pattern, "vm", 20, 3)
    whole, answers = case.stream(500, 500)
    assert whole.tolist() == stream.tolist()
    assert answers.tolist() == layouts.expected_hvas(slots, stream).tolist()
    part, answers = case.stream(500, 100)
    assert part.tolist() == stream[costs.spread(500, 100)].tolist()
    assert answers.tolist() == layouts.expected_hvas(slots, part).tolist()
    assert (case.names, case.layout_name) == ((f"lookup/{pattern}/vm",), name)


def test_lookups_of_a_size_are_all_patterns_on_all_levels() -> None:
    names = [case.names[0] for case in lookups.all_lookups(8, 1)]
    wanted = [f"lookup/{p}/{level}" for p in ("hot", "sequential", "random", "misses")
              for level in ("vm", "vcpu", "batch", "python")]  # fmt: skip
    assert names == ["lookup/id/vm", *wanted, "lookup/adversarial/vm", "lookup/adversarial/batch"]


@pytest.mark.parametrize(
    ("kind", "pages"),
    [(selftest.Map, 32), (selftest.Unmap, 128), (selftest.UnmapChunked, 128), (selftest.ReadWrite, 512),
     (selftest.MoveActive, 512), (selftest.MoveInactive, 512), (selftest.SlotSetup, 512)],
)  # fmt: skip
def test_each_kernel_test_has_the_memory_of_the_kernel(kind: Any, pages: int) -> None:
    """In MiB, and one page for messages.  More slots than pages are not possible."""
    case = kind(10, 1)
    assert int(case.slots["npages"][1:].sum()) == pages * 256 + 1
    assert kind(10**6, 1).n_slots == pages * 256 + 2
    assert case.key == f"selftest {pages * 256 + 1}"


# ---- sums of several loops ----------------------------------------------------------------------


def timed(value: float, ops: int, *singles: float) -> selftest.Timed:
    answers = numbers(int(value))
    return selftest.Timed(value, np.array(singles), ops, answers, None)


def test_map_adds_the_share_of_the_unmaps_to_each_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 slots: 8,192 pages in two halves.  The unmaps have one call for each slot and half."""
    written = iter([timed(10, 1, 1, 2), timed(30, 2, 3)])
    unmapped = iter([timed(100, 4, 50), timed(300, 8, 60)])
    calls: list[int] = []

    def time_ranges(case: Any, run: Any, ranges: Any) -> Any:
        calls.append(len(ranges[0]))
        return next(unmapped)

    monkeypatch.setattr(selftest, "time_pages", lambda *_: next(written))
    monkeypatch.setattr(selftest, "time_ranges", time_ranges)
    with Subjects() as made:
        (sample,) = selftest.Map(8, 1).run(Run("tree", made, BUDGET))
    assert calls == [4, 4]
    assert sample.value == pytest.approx(20 + 200 * 8 / 8192)
    assert (sample.ops, sample.iteration_ops) == (15, 8192)
    assert sample.singles.tolist() == [1, 2, 3]


def test_read_write_is_the_mean_of_host_and_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    made_by: list[bool] = []

    def time_pages(case: Any, run: Any, pages: Any, by_vcpu: bool) -> Any:
        made_by.append(by_vcpu)
        return timed(40, 3, 7, 9) if by_vcpu else timed(10, 2, 5)

    monkeypatch.setattr(selftest, "time_pages", time_pages)
    case = selftest.ReadWrite(8, 1)
    with Subjects() as made:
        (sample,) = case.run(Run("tree", made, BUDGET))
    assert made_by == [False, True]
    assert (sample.value, sample.ops) == (25, 5)
    assert sample.singles.tolist() == [5, 7, 9]
    assert sample.iteration_ops == 4 * (512 << 20 >> 12)


def test_moves_are_timed_without_the_lookups_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ns = iter(range(100, 200))

    class Moves(Engine):
        log: ClassVar[list[str]] = []

        def changes(self, rows: Any, group: int = 1) -> Any:
            self.log.append("move")
            return numbers(next(ns)), super().changes(rows, group)[1]

        def vcpu_gfns(self, given: Any, group: int) -> Any:
            self.log.append("look")
            return super().vcpu_gfns(given, group)

    monkeypatch.setattr(subjects, "Engine", Moves)
    case = selftest.MoveActive(8, 1)
    with Subjects() as made:
        (sample,) = case.run(Run("tree", made, BUDGET))
    assert Moves.log == ["move", "look"] * 8
    assert sample.singles.tolist() == list(range(100, 108))
    assert (sample.value, sample.ops, sample.iteration_ops) == (103.5, 8, 2)


def test_setup_is_the_whole_time_by_the_number_of_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    class Creates(Engine):
        def changes(self, rows: Any, group: int = 1) -> Any:
            results = super().changes(rows, group)[1]
            return numbers(*range(10, 10 + -(-len(rows) // group))), results

    monkeypatch.setattr(subjects, "Engine", Creates)
    with Subjects() as made:
        run = Run("tree", made, BUDGET)
        (sample,) = selftest.SlotSetup(5, 1).run(run)
        assert (sample.value, sample.ops, sample.group, sample.iteration_ops) == (12, 5, 1, 5)
        assert sample.singles.tolist() == [10, 11, 12, 13, 14]
        (sample,) = scaling.SetupSlots(5, 1).run(run)
    assert (sample.value, sample.ops, sample.group, sample.iteration_ops) == (2, 5, 5, 5)
    assert sample.singles.tolist() == [2]


def test_load_is_timed_without_the_new_vm(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loads(Engine):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            clock.now += 10**9
            self.right, self.vm = self.vm, self  # type: ignore[assignment]

        def load_memslots(self, slots: Any) -> None:
            clock.now += 400
            self.right.load_memslots(slots)

        def memslots_array(self) -> Any:
            clock.now += 10**9
            return self.right.memslots_array()

    monkeypatch.setattr(scaling, "Engine", Loads)
    with Subjects() as made:
        made.keep = lambda *_: None  # type: ignore[method-assign]
        (sample,) = scaling.LoadSlots(8, 1).run(Run("tree", made, BUDGET))
    assert (sample.value, sample.ops, sample.group, sample.wrong) == (50, 8, 8, None)
    assert sample.singles.tolist() == [50]


# ---- host ranges --------------------------------------------------------------------------------


def test_chunks_are_cut_at_slots_and_at_multiples() -> None:
    """5 slots share 4,097 pages: 1,024 each, and 1,025 in the last one.  The area begins in the first at page 1."""

    class Small(selftest.KernelTest):
        names = ("small",)
        total_pages = 4097

        def run(self, run: Run) -> Any:
            raise NotImplementedError

    case = Small(5, 1)
    one, other = case.halves
    assert (len(one), len(other)) == (2048, 2048)
    assert (int(one[0]), int(other[-1])) == (layouts.TEST_GFN + 1, layouts.TEST_GFN + 4096)

    def sizes(gfns: Any, npages: int) -> list[int]:
        starts, lasts = case.chunks(gfns, npages)
        ends = (lasts + np.uint64(1) - starts) // np.uint64(4096)
        assert starts.tolist()[0] == layouts.expected_hvas(case.slots, gfns[:1])[0]
        return ends.tolist()

    assert sizes(one, 4097) == [1023, 1024, 1]
    assert sizes(other, 4097) == [1023, 1025]
    assert sizes(one, 512) == [512, 511, 1, 512, 511, 1]
    assert sizes(one[:3], 1) == [1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "ops"),
    [(selftest.Unmap, 2 * 16_384), (selftest.UnmapChunked, 66), (selftest.SlotSetup, 4)],
)
def test_iteration_has_the_operations_of_the_test(kind: Any, ops: int) -> None:
    with Subjects() as made:
        (sample,) = kind(4, 1).run(Run("tree", made, BUDGET))
    assert sample.iteration_ops == ops


@pytest.mark.parametrize(
    ("kind", "below"), [(selftest.MoveActive, 25), (selftest.MoveInactive, 50)]
)
def test_guest_writes_fifty_pages_near_the_moved_slot(kind: Any, below: int) -> None:
    case = kind(8, 1)
    pages = case.guest_pages().tolist()
    moved = int(case.slots[-1]["base_gfn"])
    assert pages == list(range(moved - below, moved - below + 50))
    away, back = case.steps()
    assert int(away["guest_phys_addr"][0]) == (layouts.TEST_GFN + (512 << 20 >> 12) + 1) << 12
    assert int(back["guest_phys_addr"][0]) == moved << 12


# ---- the kernel ---------------------------------------------------------------------------------


@contextmanager
def fake_kernel(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, refuse: Any
) -> Iterator[list[bytes]]:
    """A Kernel whose ioctl takes 100 ns, 101 ns and so on; `refuse` returns the errno of a call."""
    cost, seen = count(100), list[bytes]()

    def ioctl(fd: int, request: int, argument: bytes) -> int:
        assert (fd, request) == (-7, ioctls.KVM_SET_USER_MEMORY_REGION)
        seen.append(argument)
        clock.now += next(cost)
        if number := refuse(len(seen) - 1):
            raise OSError(number, "no")
        return 0

    monkeypatch.setattr(ioctls, "create_vm", lambda: -7)
    monkeypatch.setattr(subjects.os, "close", lambda fd: None)
    monkeypatch.setattr(subjects, "fcntl", SimpleNamespace(ioctl=ioctl))
    yield seen


def test_ioctls_are_timed_one_by_one(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = {2: errno.EINVAL, 4: errno.EEXIST}
    slots = layouts.uniform(5, 1)
    with fake_kernel(monkeypatch, clock, refusals.get) as seen, closing(Kernel()) as kernel:
        ns, results = kernel.changes(regions(slots))
        assert ns.tolist() == [100, 101, 102, 103, 104]
        assert results.tolist() == [0, 0, -errno.EINVAL, 0, -errno.EEXIST]
        ns, results = kernel.changes(regions(slots), 2)
    assert ns.tolist() == [105 + 106, 107 + 108, 109]
    assert len(results) == 5
    assert seen[0] == ioctls.REGION.pack(
        int(slots["id"][0]), 0, 0, int(slots["base_gfn"][0]) << 12,
        int(slots["npages"][0]) << 12, int(slots["userspace_addr"][0]),
    )  # fmt: skip


def test_refused_call_is_the_median_of_refusals(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_kernel(monkeypatch, clock, lambda i: errno.EINVAL) as seen:
        assert subjects.refused_call_ns(5) == 102
    assert seen == [ioctls.REGION.pack(0, 0, 0, 0, 2048, 0)] * 5
    with (
        fake_kernel(monkeypatch, clock, lambda i: errno.EINVAL if i != 3 else 0),
        pytest.raises(OSError, match="accepted half a page"),
    ):
        subjects.refused_call_ns(5)


def test_layout_that_the_kernel_refuses_is_an_error(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in (0, 4):
        with (
            fake_kernel(monkeypatch, clock, lambda i, at=at: errno.EINVAL * (i == at)),
            pytest.raises(OSError, match="refused a slot of the layout"),
        ):
            Kernel(layouts.uniform(5, 1))


# ---- rounds -------------------------------------------------------------------------------------


class Watcher(Case):
    """Notes the VM, the room and the collector of each run."""

    def __init__(self, name: str, n_slots: int = 8, wrong_in: int = -1) -> None:
        super().__init__(n_slots, 1)
        self.names = (name,)
        self.seen: list[Any] = []
        self.setups: list[str] = []
        self.wrong_in = wrong_in

    def setup(self, run: Run) -> None:
        self.setups.append(run.backend)

    def run(self, run: Run) -> list[Sample]:
        vm = run.subjects.get(run.backend, "uniform", lambda: layouts.uniform(8, 1)).vm
        assert not gc.isenabled()
        wrong = "off by one" if len(self.seen) == self.wrong_in else None
        self.seen.append((run.backend, vm, run.subjects.room, vm.user_mem_slots))
        value = float(len(self.seen))
        return [Sample(self.names[0], value, np.array([value]), 1, 1, "d", wrong)]


def test_each_round_has_new_vms_that_its_cases_share() -> None:
    one, two, other = Watcher("a"), Watcher("b"), Watcher("c", 16)
    results = Results()
    cells = plan([one, two, other], ["tree", "array"], 3, BUDGET, results)
    assert turns(cells) == 18
    done: list[int] = []
    measure(cells, BUDGET, results, lambda n=1: done.append(n), 77)
    assert sum(done) == 18
    for backend in ("tree", "array"):
        vms = [[vm for name, vm, *_ in case.seen if name == backend] for case in (one, two, other)]
        assert [len(set(map(id, found))) for found in vms] == [3, 3, 3]
        assert [id(vm) for vm in vms[0]] == [id(vm) for vm in vms[1]]
        assert all(vm.closed for found in vms for vm in found)
        assert not {id(vm) for vm in vms[0]} & {id(vm) for vm in vms[2]}
    assert {seen[2:] for seen in one.seen + other.seen} == {(77, 77)}
    assert one.setups.count("tree") == one.setups.count("array") == 1
    assert {row["rounds"] for row in results.rows()} == {3}
    assert [(row["case"], row["backend"]) for row in results.rows()] == [
        (name, backend) for name in "abc" for backend in ("tree", "array")
    ]


@pytest.mark.parametrize("i", range(3))
def test_one_wrong_round_in_each_position_is_reported(i: int) -> None:
    results = Results()
    cells = plan([Watcher("a"), Watcher("b", wrong_in=i)], ["tree"], 3, BUDGET, results)
    measure(cells, BUDGET, results, lambda: None)
    assert [(w["case"], w["what"]) for w in results.wrong] == [("b", "off by one")]
    assert [(row["case"], row["checked"]) for row in results.rows()] == [("a", True), ("b", False)]
    assert [row["median"] for row in results.rows()] == [2, 2]


@pytest.mark.parametrize("i", range(3))
def test_cell_that_raises_runs_no_more_and_the_others_go_on(i: int) -> None:
    class Raises(Watcher):
        def run(self, run: Run) -> list[Sample]:
            if len(self.seen) == i:
                self.seen.append(None)
                raise ValueError("no")
            return super().run(run)

    bad, good, results = Raises("a"), Watcher("b"), Results()
    measure(plan([bad, good], ["tree"], 3, BUDGET, results), BUDGET, results, lambda: None)
    assert (len(bad.seen), len(good.seen)) == (i + 1, 3)
    assert [(w["case"], w["what"]) for w in results.wrong] == [("a", "ValueError: no")]


def test_cell_with_fewer_rounds_runs_in_the_first_ones() -> None:
    class Slow(Watcher):
        def rounds(self, backend: str, wanted: int, budget: Budget) -> int:
            return 1

    slow, quick, results = Slow("a"), Watcher("b"), Results()
    cells = plan([slow, quick], ["tree"], 4, BUDGET, results)
    assert turns(cells) == 5
    measure(cells, BUDGET, results, lambda: None)
    assert (len(slow.seen), len(quick.seen)) == (1, 4)


def test_collector_is_as_before() -> None:
    for state in (gc.enable, gc.disable):
        state()
        before = gc.isenabled()
        try:
            results = Results()
            measure(
                plan([Watcher("a")], ["tree"], 1, BUDGET, results), BUDGET, results, lambda: None
            )
            assert gc.isenabled() == before
            with pytest.raises(KeyboardInterrupt), rounds._without_gc():
                raise KeyboardInterrupt
            assert gc.isenabled() == before
        finally:
            gc.enable()


def test_vms_have_the_requested_room() -> None:
    slots = layouts.uniform(100, 1)
    for room, ids in ((1, 100), (100, 100), (509, 509), (ROOM, ROOM)):
        with Subjects(room) as made:
            assert made.get("array", "uniform", lambda: slots).vm.user_mem_slots == ids
            with closing(made.new("tree", 100)) as empty:
                assert (empty.vm.user_mem_slots, len(empty.vm)) == (ids, 0)
    with Subjects() as made, closing(made.new("tree", 1)) as empty:
        assert empty.vm.user_mem_slots == ROOM


def test_each_table_measures_in_vms_of_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, int]] = []

    def note(cells: Any, budget: Any, results: Any, progress: Any, room: int = ROOM) -> None:
        used.extend((cell.case.names[0], room) for cell in cells)

    for module in (perf, scale, crossover):
        monkeypatch.setattr(module, "measure", note)
    monkeypatch.setattr(crossover, "SIZES", {509: (2,), ROOM: (4,)})
    lab = perf._Lab(perf.QUICK._replace(slots=(8,)), ["tree", "array"], 1, "change/move")
    lab.measure()
    assert (
        used
        == [("change/move", ROOM)] * 2 + [("change/move", 509)] * 2 + [("change/move", ROOM)] * 2
    )
    used.clear()
    scaling_ = scale._Scaling(scale.QUICK._replace(max_slots=30), ["tree"], 1, "*u*")
    scaling_.measure()
    assert set(used) >= {("setup/load", 1), ("unmap", ROOM)}
    assert ("unmap", 1) not in used


def test_index_is_that_of_the_indexed_backend_only() -> None:
    slots = layouts.uniform(8, 1)
    for backend, policy in (("tree", "off"), ("array", "off"), (INDEXED, "eager")):
        with closing(Engine(backend, slots)) as engine:
            assert (engine.vm.index_policy, engine.vm.backend) == (
                policy, "array" if backend == "array" else "tree",
            )  # fmt: skip


# ---- the process --------------------------------------------------------------------------------


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The affinities of a pretended process; the last one is in force."""
    history = [{0, 1, 5}]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(history[-1]), raising=False)
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda pid, cpus: history.append(set(cpus)), raising=False
    )
    return history


def test_affinity_is_restored(affinity: list[set[int]]) -> None:
    with machine.on_one_cpu(True):
        assert affinity == [{0, 1, 5}, {0}]
    assert affinity == [{0, 1, 5}, {0}, {0, 1, 5}]
    with pytest.raises(KeyboardInterrupt), machine.on_one_cpu(True):
        raise KeyboardInterrupt
    assert affinity[-1] == {0, 1, 5}


def test_affinity_stays_where_it_is_not_wanted_or_not_allowed(affinity: list[set[int]]) -> None:
    with machine.on_one_cpu(False):
        assert affinity == [{0, 1, 5}]
    affinity[:] = [{3}]
    with machine.on_one_cpu(True):
        assert affinity[-1] == {3}
    assert affinity[-1] == {3}


def test_backends_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "available", lambda: None)
    names, skipped = machine.available_backends(True)
    assert names[-2:] == [INDEXED, "kvm"]
    assert skipped == []
    assert machine.available_backends(False)[0] == names[:-1]
    monkeypatch.setattr(kvm, "available", lambda: "no device")
    assert machine.available_backends(True) == (names[:-1], ["the real kernel: no device"])


def test_overheads_are_medians(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "time_nothing", lambda n: numbers(1, 20, 21, 900))
    assert machine.clock_ns() == 20.5
    steps = iter([0, 30] + [0, 40] * 1998 + [0, 9000])
    monkeypatch.setattr(machine, "perf_counter_ns", lambda: next(steps))
    assert machine.python_call_ns() == 40
