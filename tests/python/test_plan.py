# SPDX-License-Identifier: MIT
"""Plans: every prefix is legal, the result is the wanted layout, and no other plan has fewer deletes or calls."""

from __future__ import annotations

import itertools
import pickle
import random
import struct

import numpy as np
import plan_model
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_model import LOG, READONLY, Row, Slots, rows_of, runs_of, slots_of

from memslots import MEMSLOT_DTYPE, VM, InvalidRegionError, Plan, RegionOverlapError, Snapshot, plan
from memslots.layout import STEP_DTYPE
from memslots.layout.feedback import smallest_cut
from memslots.listener import ChangeKind

PAGE = 4096
A, B, C = 0x10000, 0x20000000, 0x30000000


def play(current: Slots, steps: Plan) -> Slots:
    """The slots after all steps; each is checked with KVM's rules."""
    slots = dict(current)
    for step in steps:
        plan_model.apply(slots, step)
    return slots


def check(current: Slots, wanted: Slots, *, keep_ids: bool = True, runs: bool = True) -> Plan:
    """A plan whose steps are legal and lead to the wanted rows."""
    target = runs_of(wanted) if runs else rows_of(wanted)
    made = plan(rows_of(current), target, coalesce=False, keep_ids=keep_ids)
    after = play(current, made)
    assert sorted(after.values()) == sorted(wanted.values())
    assert after == slots_of(made.final)
    if not keep_ids:
        numbered = dict(enumerate(sorted(wanted.values())))
        assert after == (numbered if runs else wanted)
    assert made.calls == len(made) == len(made.steps)
    return made


def check_optimal(current: Slots, wanted: Slots, **options) -> Plan:
    made = check(current, wanted, **options)
    keep_ids, runs = options.get("keep_ids", True), options.get("runs", True)
    if not keep_ids and runs:
        wanted = dict(enumerate(sorted(wanted.values())))
    best = plan_model.cheapest(current, wanted, ids=not keep_ids)
    assert (made.deletes, made.calls) == best, f"\n{made}\n{current}\n{wanted}"
    assert made.optimal
    return made


# ---- single cases ------------------------------------------------------------------------------------


def test_nothing_to_do() -> None:
    slots = {3: Row(0, 4, A, 0), 5: Row(8, 4, B, LOG)}
    made = check_optimal(slots, slots)
    assert (made.calls, made.deletes, list(made)) == (0, 0, [])
    assert str(made) == "0 deletes, 0 calls"


def test_each_change_has_its_step() -> None:
    current = {0: Row(0, 4, A, 0), 1: Row(8, 4, B, 0), 2: Row(16, 4, C, 0), 3: Row(24, 4, 0, 0)}
    wanted = {0: Row(0, 4, A, LOG), 1: Row(32, 4, B, LOG), 2: Row(16, 5, C, 0), 4: Row(99, 1, 0, 0)}
    made = check_optimal(current, wanted)
    kinds = [(s.op, s.slot) for s in made]
    assert kinds == [
        (ChangeKind.DELETE, 2),
        (ChangeKind.DELETE, 3),
        (ChangeKind.FLAGS_ONLY, 0),
        (ChangeKind.MOVE, 1),
        (ChangeKind.CREATE, 2),
        (ChangeKind.CREATE, 3),  # the same first host address: the id stays
    ]
    assert made[3].flags == LOG  # KVM moves and logs in one call


def test_a_chain_of_moves_needs_no_delete() -> None:
    """Every slot moves to the place of the next one, and the last one to a free place."""
    current = {n: Row(4 * n, 4, A * (n + 1), 0) for n in range(8)}
    wanted = {n: Row(4 * n + 4, 4, A * (n + 1), 0) for n in range(8)}
    made = check_optimal(current, wanted)
    assert (made.deletes, made.calls) == (0, 8)
    assert [s.slot for s in made] == list(range(7, -1, -1))


@pytest.mark.parametrize("n", range(2, 9))
def test_a_ring_of_moves_needs_one_delete(n) -> None:
    current = {k: Row(4 * k, 4, A * (k + 1), 0) for k in range(n)}
    wanted = {k: Row(4 * ((k + 1) % n), 4, A * (k + 1), 0) for k in range(n)}
    made = check_optimal(current, wanted)
    assert (made.deletes, made.calls) == (1, n + 1)


def test_a_slot_may_overlap_its_own_old_place() -> None:
    made = check_optimal({7: Row(0, 8, A, 0)}, {7: Row(3, 8, A, 0)})
    assert [s.op for s in made] == [ChangeKind.MOVE]


def test_slots_of_the_same_memory_trade_by_doing_nothing() -> None:
    current = {1: Row(0, 4, A, 0), 2: Row(8, 4, A, 0)}
    assert not check_optimal(current, {1: Row(8, 4, A, 0), 2: Row(0, 4, A, 0)})
    by_id = check_optimal(
        current, {1: Row(8, 4, A, 0), 2: Row(0, 4, A, 0)}, keep_ids=False, runs=False
    )
    assert by_id.calls == 3


def test_the_choice_between_slots_of_the_same_memory_avoids_a_delete() -> None:
    """By ascending gfn, slot 0 moves to 8 and waits for slot 2, which waits for slot 0's place."""
    current = {0: Row(0, 4, A, 0), 1: Row(20, 4, A, 0), 2: Row(8, 4, B, 0)}
    wanted = {0: Row(9, 4, A, 0), 1: Row(40, 4, A, 0), 2: Row(1, 4, B, 0)}
    made = check_optimal(current, wanted)
    assert made.deletes == 0


def test_keep_ids_of_rows_with_ids() -> None:
    """A slot keeps its id if its memory is wanted, also where the wanted row has another id."""
    current = {1: Row(0, 4, A, 0), 2: Row(8, 4, B, 0)}
    wanted = {2: Row(0, 4, A, 0), 9: Row(20, 4, B, 0), 5: Row(40, 1, C, 0), 1: Row(50, 1, C, 0)}
    made = plan(rows_of(current), rows_of(wanted))
    assert slots_of(made.final) == {
        1: wanted[2],
        2: wanted[9],
        5: wanted[5],  # its own id is free
        0: wanted[1],  # its own id is in use
    }
    exact = plan(rows_of(current), rows_of(wanted), keep_ids=False)
    assert slots_of(exact.final) == wanted
    assert play(current, exact) == wanted


def test_an_id_of_a_row_is_never_given_twice() -> None:
    """Slot 7 stays, so the last row gets the lowest id that neither a slot nor another row has."""
    current = {7: Row(0, 4, A, 0)}
    wanted = {3: Row(0, 4, A, 0), 0: Row(8, 4, B, 0), 7: Row(16, 4, C, 0)}
    made = plan(rows_of(current), rows_of(wanted))
    assert slots_of(made.final) == {7: wanted[3], 0: wanted[0], 1: wanted[7]}
    high = {7: wanted[3], 10**6: wanted[0], 2 * 10**6: wanted[7]}
    assert slots_of(plan(rows_of(current), rows_of(high)).final) == high
    far = {10**6: Row(0, 4, A, 0)}
    taken = {3: far[10**6], 10**6: wanted[0]}
    assert slots_of(plan(rows_of(far), rows_of(taken)).final) == {10**6: far[10**6], 0: wanted[0]}


def test_resized_memory_keeps_its_id() -> None:
    made = check_optimal({6: Row(0, 4, A, 0)}, {0: Row(0, 9, A, 0)})
    assert [(s.op.name, s.slot) for s in made] == [("DELETE", 6), ("CREATE", 6)]
    changes = made.changes
    assert changes["kind"].tolist() == [4]  # MS_STEP_RESIZE
    assert changes["memory_size"].tolist() == [9 * PAGE]


def test_readonly_needs_a_delete() -> None:
    made = check_optimal({6: Row(0, 4, A, 0)}, {0: Row(0, 4, A, READONLY)})
    assert [(s.op.name, s.slot) for s in made] == [("DELETE", 6), ("CREATE", 6)]


def test_a_guest_memfd_slot_can_stay_or_go_but_not_move() -> None:
    memfd = {1: Row(0, 4, A, 4)}
    assert not plan(rows_of(memfd), runs_of(memfd))
    assert plan(rows_of(memfd), []).deletes == 1
    with pytest.raises(InvalidRegionError, match=r"GUEST_MEMFD slot \[0x8000, 0xc000\)") as caught:
        plan(rows_of(memfd), rows_of({1: Row(8, 4, A, 4)}))
    assert caught.value.rule == "GMEM_EXISTING"


# ---- arguments and results ---------------------------------------------------------------------------


def test_all_forms_of_a_layout_give_one_plan() -> None:
    rows = rows_of({0: Row(8, 4, B, 1), 1: Row(20, 4, C, 0)})
    runs = runs_of(slots_of(rows))
    named = np.array(
        [tuple(r) for r in runs.tolist()], [(n, "i8") for n in ("gfn", "npages", "hva", "flags")]
    )
    forms = [rows, Snapshot(rows, 0, 7), runs, runs.astype(np.int64), runs.tolist(), named]
    forms += [[tuple(r) for r in runs.tolist()], rows[::-1]]
    current = rows_of({0: Row(0, 4, A, 0)})
    first, *others = [plan(current, form) for form in forms]
    assert first.calls == 3
    for other in others:
        assert other == first
    assert hash(others[0]) == hash(first)
    assert plan(Snapshot(current, 0, 0), rows) == first
    assert plan([(0, 4, A, 0)], rows) == first
    assert pickle.loads(pickle.dumps(first)) == first


def test_a_step_is_the_argument_of_a_call() -> None:
    made = plan([], [(1, 2, A, 3)])
    assert dict(made[0]) == {
        "slot": 0, "guest_phys_addr": PAGE, "memory_size": 2 * PAGE, "userspace_addr": A, "flags": 3, "as_id": 0,
    }  # fmt: skip
    assert struct.unpack("=IIQQQ", bytes(made[0])) == (0, 3, PAGE, 2 * PAGE, A)
    with VM() as vm:
        for step in made:
            vm.set_user_memory_region(**step)
        np.testing.assert_array_equal(vm.memslots_array(), made.final)
    with pytest.raises(KeyError):
        made[0]["op"]


def test_text_and_arrays() -> None:
    made = plan([(0, 4, A, 0), (8, 4, B, 0)], [(8, 4, A, 1), (16, 1, C, 0)])
    assert str(made).splitlines() == [
        "1 delete, 3 calls",
        "1  delete     slot 1",
        "2  move       slot 0 [0x8000, 0xc000) at host 0x10000, flags 0x1",
        "3  create     slot 1 [0x10000, 0x11000) at host 0x30000000, flags 0x0",
    ]
    assert repr(made) == "<Plan: 1 delete, 3 calls>"
    table = made.as_array()
    assert table.dtype == STEP_DTYPE
    assert table["kind"].tolist() == [ChangeKind.DELETE, ChangeKind.MOVE, ChangeKind.CREATE]
    assert table["memory_size"].tolist() == [0, 4 * PAGE, PAGE]
    assert made.final.dtype == MEMSLOT_DTYPE
    assert not made.final.flags.writeable
    assert made[:2] == made.steps[:2]
    assert len(made.diff.moved) == 1
    assert len(made.diff.replaced) == 1


def test_steps_are_in_the_address_space_of_the_layouts() -> None:
    rows = rows_of({0: Row(0, 4, A, 0)})
    rows["as_id"] = 1
    other = rows.copy()
    other["base_gfn"] = 8
    assert [s.as_id for s in plan(rows, other)] == [1]
    assert [s.as_id for s in plan(rows, [(8, 4, A, 0)])] == [1]
    assert [s.as_id for s in plan([], Snapshot(rows, 1, 0))] == [1]
    with pytest.raises(ValueError, match="entry 0 has as_id 0, not 1"):
        plan(rows, rows_of({0: Row(0, 4, A, 0)}))


def test_max_slots_names_both_numbers_and_the_way_out() -> None:
    touching = [(0, 4, A, 0), (4, 4, A + 4 * PAGE, 0), (20, 4, C, 0)]
    assert plan([], touching, max_slots=2).calls == 2
    with pytest.raises(
        InvalidRegionError, match=r"needs 2 slots, and max_slots is 1.*joined already"
    ):
        plan([], touching, max_slots=1)
    with pytest.raises(
        InvalidRegionError, match="needs 3 slots, and max_slots is 2; with coalesce=True it needs 2"
    ):
        plan([], touching, max_slots=2, coalesce=False)


def test_bad_layouts_raise_as_a_load_does() -> None:
    good = [(0, 4, A, 0)]
    for current, wanted in (
        (good, [(0, 4, A, 0), (3, 1, B, 0)]),
        ([(0, 4, A, 0), (3, 1, B, 0)], good),
    ):
        with pytest.raises(
            RegionOverlapError, match=r"entry 1: slot 1 .* overlaps slot 0 \[0x0, 0x4000\)"
        ):
            plan(current, wanted)
    for row, rule in (
        ((0, 0, A, 0), "NPAGES"),
        ((0, 2**31, A, 0), "NPAGES"),
        ((2**52 - 1, 1, A, 0), "GPA_WRAP"),
        ((0, 1, A + 1, 0), "HVA_ALIGN"),
        ((0, 1, 2**64 - 8192, 0), "HVA_RANGE"),
        ((0, 1, A, 8), "FLAGS"),
        ((0, 1, A, 1 << 16), "FLAGS"),
    ):
        with pytest.raises(InvalidRegionError, match="entry 1") as caught:
            plan([], [(10, 1, A, 0), row] if row[0] == 0 else [(0, 1, A, 0), row])
        assert caught.value.rule == rule, row
    with pytest.raises(RegionOverlapError, match="id 7"):
        plan(np.concatenate((rows_of({7: Row(0, 1, A, 0)}), rows_of({7: Row(1, 1, A, 0)}))), [])


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ("text", TypeError),
        (None, TypeError),
        (5, TypeError),
        (np.zeros((2, 4)), TypeError),
        ([(0.5, 1, 0, 0)], TypeError),
        (np.zeros((2, 3), np.uint64), ValueError),
        ([(1, 2, 3)], ValueError),
        (np.zeros((2, 2), MEMSLOT_DTYPE), ValueError),
        (np.zeros(2, [("gfn", "u8")]), ValueError),
        ([(-1, 1, 0, 0)], OverflowError),
        ([(0, 1, 0, 2**32)], OverflowError),
        ([(2**64, 1, 0, 0)], OverflowError),
    ],
)
def test_wrong_arguments(wanted, error) -> None:
    with pytest.raises(error):
        plan([], wanted)


# ---- against brute force -----------------------------------------------------------------------------


def random_layout(rng: random.Random, n: int, room: int, memories) -> list[Row]:
    """Up to n rows without overlap in a small guest, whose sizes and host addresses come from `memories`."""
    rows: list[Row] = []
    for _ in range(4 * n):
        npages, hva = rng.choice(memories)
        row = Row(rng.randrange(room), npages, hva, rng.choice((0, 0, 0, LOG, READONLY)))
        if len(rows) < n and not any(row.overlaps(other) for other in rows):
            rows.append(row)
    return rows


def random_pair(rng: random.Random, n: int) -> tuple[Slots, Slots]:
    """Two layouts that share much memory, often at other places."""
    kinds = rng.choice((2, 4, 10))
    memories = [(rng.randint(1, 4), A * (k + 1)) for k in range(kinds)]
    room = rng.choice((2, 3)) * n + 4
    sides = []
    for _ in range(2):
        rows = random_layout(rng, n, room, memories)
        sides.append(dict(zip(rng.sample(range(12), len(rows)), rows, strict=True)))
    return sides[0], sides[1]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_plans_are_as_short_as_those_of_brute_force(n) -> None:
    rng = random.Random(n)
    for _ in range({2: 150, 3: 150, 4: 80, 5: 25}[n]):
        current, wanted = random_pair(rng, n)
        check_optimal(current, wanted)
        check_optimal(current, wanted, keep_ids=False, runs=rng.random() < 0.3)


@pytest.mark.parametrize(("n", "times"), [(6, 40), (7, 30), (8, 20)])
def test_plans_of_up_to_eight_slots_are_as_short_as_those_of_brute_force(n, times) -> None:
    """The slots have different memory.  They trade places, and overlap several old places each."""
    rng = random.Random(n)
    for _ in range(times):
        sizes = [rng.randint(1, 4) for _ in range(n)]
        current, wanted = (packed(rng, sizes) for _ in range(2))
        check_optimal(current, wanted)


def packed(rng: random.Random, sizes: list[int]) -> Slots:
    """Slots of these sizes in a random order, with few gaps."""
    at, slots = 0, {}
    for id in rng.sample(range(len(sizes)), len(sizes)):
        at += rng.choice((0, 0, 1))
        slots[id] = Row(at, sizes[id], A * (id + 1), 0)
        at += sizes[id]
    return slots


def test_every_permutation_of_four_slots() -> None:
    current = {k: Row(4 * k, 4, A * (k + 1), 0) for k in range(4)}
    for order in itertools.permutations(range(4)):
        wanted = {k: Row(4 * order[k], 4, A * (k + 1), 0) for k in range(4)}
        made = check_optimal(current, wanted)
        assert made.deletes == rings(order)


def test_all_pairs_of_layouts_in_a_small_guest() -> None:
    """Guests of 3 frames, with two memories in slots of 1 and 2 frames."""
    places = [Row(b, n, hva, 0) for n in (1, 2) for b in range(4 - n) for hva in (A, B)]
    layouts = [
        dict(enumerate(rows))
        for count in range(4)
        for rows in itertools.combinations(places, count)
        if not any(a.overlaps(b) for a, b in itertools.combinations(rows, 2))
    ]
    assert len(layouts) == 39
    for current, wanted in itertools.product(layouts, layouts):
        check_optimal(current, wanted)


def rings(order) -> int:
    """The number of cycles of a permutation, without its fixed points."""
    seen: set[int] = set()
    count = 0
    for first in range(len(order)):
        at, length = first, 0
        while at not in seen:
            seen.add(at)
            at, length = order[at], length + 1
        count += length > 1
    return count


@given(
    st.integers(1, 7).flatmap(
        lambda n: st.lists(st.sets(st.integers(0, n - 1)), min_size=n, max_size=n)
    )
)
@settings(max_examples=100)
def test_smallest_cut_of_any_graph(edges) -> None:
    """Against all subsets of the nodes."""
    graph = {node: others - {node} for node, others in enumerate(edges)}
    cut, proven = smallest_cut(graph)
    assert proven
    assert not has_cycle(graph, cut)
    for smaller in itertools.combinations(graph, max(len(cut) - 1, 0)):
        assert not cut or has_cycle(graph, set(smaller))


def has_cycle(graph, without: set[int]) -> bool:
    left = {node: others - without for node, others in graph.items() if node not in without}
    while left:
        free = [node for node, others in left.items() if not others & left.keys()]
        if not free:
            return True
        for node in free:
            del left[node]
    return False


# ---- large plans -------------------------------------------------------------------------------------


def test_a_large_random_permutation_is_legal_and_optimal() -> None:
    rng = random.Random(5)
    places = list(range(2000))
    rng.shuffle(places)
    current = {k: Row(4 * k, 4, A * (k + 1), 0) for k in range(2000)}
    wanted = {k: Row(4 * places[k], 4, A * (k + 1), 0) for k in range(2000)}
    made = plan(rows_of(current), runs_of(wanted), coalesce=False)
    assert made.optimal
    assert made.deletes == rings(places)
    with VM() as vm:
        vm.load_memslots(rows_of(current))
        for step in made:
            vm.set_user_memory_region(**step)
        np.testing.assert_array_equal(vm.memslots_array(), made.final)


def test_a_large_plan_says_that_it_may_not_be_the_shortest() -> None:
    """Slots of several sizes in two random orders: many circles that share slots."""
    rng = random.Random(3)
    sizes = [rng.choice((1, 2, 5, 9)) for _ in range(1000)]
    current, wanted = rows_of(packed(rng, sizes)), rows_of(packed(rng, sizes))
    made = plan(current, wanted)
    assert not made.optimal
    assert made.deletes < 500
    with VM() as vm:
        vm.load_memslots(current)
        for step in made:
            vm.set_user_memory_region(**step)
        np.testing.assert_array_equal(vm.memslots_array(), made.final)
