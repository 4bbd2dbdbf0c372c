# SPDX-License-Identifier: MIT
"""The arithmetic of the laboratory, on samples whose statistics are known by hand.

Each sample gives every statistic another value: it has several rounds, uneven groups, ties, and one outlier.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from memslots.constants import MEMSLOT_DTYPE
from memslots.lab import case, changes, costs, filling, lookups, replays, sample
from memslots.lab.case import Budget
from memslots.lab.sample import Sample
from memslots.lab.subjects import INDEXED, ROOM, alternating
from memslots.measure import crossover, duel, fit, published
from memslots.measure.rounds import Cell, Results
from memslots.report import show, words
from memslots.traces import vectors

BUDGET = Budget(0.01, 1.0, 4.0, 100, 10, 20)


def made(value: float, singles: Any = (1.0,), **more: Any) -> Sample:
    return Sample("unmap", value, np.array(singles, dtype=float), 1, len(singles), "d", **more)


# ---- one run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ns", "ops", "group", "each"),
    [
        ([640, 1280, 40], 133, 64, [10, 20, 8]),  # the last group has 5 operations
        ([640, 1280], 128, 64, [10, 20]),
        ([640, 7], 65, 64, [10, 7]),
        ([7, 9, 11], 3, 1, [7, 9, 11]),
        ([50], 5, 64, [10]),
    ],
)
def test_time_of_a_group_is_divided_by_its_own_size(
    ns: list[int], ops: int, group: int, each: list[float]
) -> None:
    found = sample.per_operation(np.array(ns, dtype=np.uint64), ops, group)
    assert found.tolist() == each
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    ("times", "value"),
    [([5.0], 5), ([1, 2, 3, 1000], 2.5), ([9, 1, 2], 2), ([4, 4, 4, 1], 4), ([3, 3, 1, 1], 2)],
)
def test_typical_time_is_the_median(times: list[float], value: float) -> None:
    assert sample.typical(np.array(times, dtype=float)) == value


def test_digest_depends_on_values_types_and_order() -> None:
    one = np.arange(4, dtype=np.uint64)
    wanted = hashlib.sha256(b"uint64" + one.tobytes()).hexdigest()[:16]
    assert sample.digest(one) == wanted == "7505f14b5ea23657"
    assert sample.digest(np.arange(8, dtype=np.uint64)[::2] // np.uint64(2)) == wanted
    others = [one[::-1], one[:3], one.astype(np.int64), one + np.uint64(1)]
    digests = [sample.digest(other) for other in others]
    digests += [sample.digest(one, one[:2]), sample.digest(one[:2], one)]
    assert len({wanted, *digests}) == 7


def test_digest_of_slots_depends_on_their_fields_only() -> None:
    """4 bytes at the end of each row belong to no field."""
    slots = np.zeros(2, dtype=MEMSLOT_DTYPE)
    memory = bytearray(b"\xff" * 80)
    other = np.frombuffer(memory, dtype=MEMSLOT_DTYPE)
    for name in MEMSLOT_DTYPE.names:
        other[name] = slots[name]
    assert memory == bytes(36) + b"\xff" * 4 + bytes(36) + b"\xff" * 4
    assert sample.digest(slots) == sample.digest(other)
    for name in MEMSLOT_DTYPE.names:
        changed = slots.copy()
        changed[name][1] = 1
        assert sample.digest(changed) != sample.digest(slots)


@pytest.mark.parametrize("i", range(5))
def test_one_difference_is_found_in_each_position(i: int) -> None:
    right = np.arange(10, 15, dtype=np.uint64)
    wrong = right.copy()
    wrong[i] += np.uint64(1)
    text = f"1 of 5 answers are wrong: number {i} is {11 + i:#x}, not {10 + i:#x}"
    assert sample.difference(wrong, right, "answers") == text
    assert sample.difference(right, right.copy(), "answers") is None


def test_differences_are_counted_and_the_first_is_shown() -> None:
    got, right = np.array([0, -22, 0, -17]), np.zeros(4, dtype=int)
    assert sample.difference(got, right, "results") == (
        "2 of 4 results are wrong: number 1 is -22, not 0"
    )
    for other in (right[:3], np.zeros(5, dtype=int)):
        assert sample.difference(other, right, "results") == (
            f"results: ({len(other)},) answers, (4,) expected"
        )


def test_first_error_counts() -> None:
    assert sample.first([None, "", "b", "c"]) == "b"
    assert sample.first([None, None]) is None


# ---- all runs of a cell -------------------------------------------------------------------------


def test_row_has_median_and_quartiles_of_the_rounds() -> None:
    """Mean 220, extremes 10 and 1000; the order of the rounds is not that of the values."""
    row = sample.row([made(v) for v in (30, 1000, 10, 40, 20)], "tree", 8)
    assert (row["median"], row["low"], row["high"]) == (30, 20, 40)
    row = sample.row([made(v) for v in (40, 10, 30, 20)], "tree", 8)
    assert (row["median"], row["low"], row["high"]) == (25, 17.5, 32.5)
    row = sample.row([made(v) for v in (5, 5, 5, 99)], "tree", 8)
    assert (row["median"], row["low"], row["high"]) == (5, 5, 28.5)


def test_row_has_percentiles_of_all_operations_of_all_rounds() -> None:
    """The rounds have different numbers of operations; together they have the times 0 to 1000."""
    times = np.random.default_rng(1).permutation(1001).astype(float)
    rounds = [made(7, part) for part in np.split(times, [3, 500, 990])]
    row = sample.row(rounds, "tree", 8)
    assert (row["p50"], row["p99"], row["p999"]) == pytest.approx((500, 990, 999))
    assert row["median"] == 7
    outlier = sample.row([made(7, [1.0] * 999), made(7, [5000.0])], "tree", 8)
    assert (outlier["p50"], outlier["p99"]) == (1, 1)
    assert outlier["p999"] == pytest.approx(1 + 4999 * 0.001)


def test_row_sums_operations_and_counts_rounds() -> None:
    row = sample.row([made(1, [1.0] * n) for n in (3, 4, 9)], "array", 64)
    assert (row["ops"], row["rounds"], row["unit"]) == (16, 3, "ns")
    assert (row["case"], row["backend"], row["n_slots"]) == ("unmap", "array", 64)
    assert (row["checked"], row["digest"], row["group"]) == (True, "d", 1)


@pytest.mark.parametrize("i", range(4))
def test_one_wrong_round_in_each_position_unchecks_the_row(i: int) -> None:
    rounds = [made(1, wrong="off by one" if k == i else None) for k in range(4)]
    assert sample.row(rounds, "tree", 8)["checked"] is False


def test_iteration_is_the_median_times_its_operations() -> None:
    row = sample.row([made(v, iteration_ops=12) for v in (3, 10, 4)], "tree", 8)
    assert (row["iteration_ns"], row["iteration_ops"]) == (48, 12)
    assert "iteration_ns" not in sample.row([made(3)], "tree", 8)


def test_further_keys_come_from_the_sample() -> None:
    row = sample.row(
        [made(1, extra={"pattern": "hot", "level": "vm", "layout": "uniform"})], "x", 8
    )
    assert (row["pattern"], row["level"], row["layout"]) == ("hot", "vm", "uniform")


# ---- all rows of a run --------------------------------------------------------------------------


class Named(case.Case):
    """A case without a measurement."""

    def __init__(self, *names: str, n_slots: int | None = 8) -> None:
        super().__init__(n_slots, 1)
        self.names = names

    def run(self, run: Any) -> list[Sample]:
        raise NotImplementedError


def noted(name: str, value: float, wrong: str | None = None) -> Sample:
    return Sample(name, value, np.array([value]), 1, 1, "d", wrong)


def test_results_keep_the_planned_order_and_all_rounds() -> None:
    results, cells = Results(), [Cell(Named("b", "a"), "tree", 2), Cell(Named("c"), "array", 2)]
    for cell in cells:
        results.expect(cell)
    results.note(cells[1], [noted("c", 5)])
    results.note(cells[0], [noted("a", 1), noted("b", 3)])
    results.note(cells[0], [noted("a", 3), noted("b", 5)])
    rows = [(row["case"], row["backend"], row["median"], row["rounds"]) for row in results.rows()]
    assert rows == [("b", "tree", 4, 2), ("a", "tree", 2, 2), ("c", "array", 5, 1)]
    assert [row["case"] for row in results.rows("[ac]")] == ["a", "c"]


@pytest.mark.parametrize("i", range(3))
def test_one_wrong_round_in_each_position_is_noted(i: int) -> None:
    results, cell = Results(), Cell(Named("a", "b"), "list", 3)
    for k in range(3):
        results.note(cell, [noted("a", 1), noted("b", 1, "off by one" if k == i else None)])
    assert results.wrong == [{"case": "b", "backend": "list", "n_slots": 8, "what": "off by one"}]
    assert {row["case"]: row["checked"] for row in results.rows()} == {"a": True, "b": False}


def test_same_wrong_answer_is_noted_once_and_others_are_kept() -> None:
    results, cell = Results(), Cell(Named("a"), "list", 3)
    for wrong in ("x", "x", "y"):
        results.note(cell, [noted("a", 1, wrong)])
    results.note(cell._replace(backend="tree"), [noted("a", 1, "x")])
    assert [(w["backend"], w["what"]) for w in results.wrong] == [
        ("list", "x"), ("list", "y"), ("tree", "x"),
    ]  # fmt: skip


# ---- the array against the tree -----------------------------------------------------------------


def pair(tree: tuple[float, ...], array: tuple[float, ...]) -> dict[str, Any]:
    """Rows with (low, median, high)."""
    rows = {"tree": tree, "array": array}
    return {name: dict(zip(("low", "median", "high"), r, strict=True)) for name, r in rows.items()}


@pytest.mark.parametrize(
    ("tree", "array", "factor", "winner"),
    [
        ((1, 2, 3), (7, 8, 9), 4, "tree"),
        ((7, 8, 9), (1, 2, 3), 0.25, "array"),
        ((10, 10, 10), (11, 11, 11), 1.1, "even"),  # not more than 1.1
        ((10, 10, 10), (9, 9, 9), 0.9, "even"),
        ((100, 100, 100), (111, 111, 111), 1.11, "tree"),
        ((100, 100, 100), (89, 89, 89), 0.89, "array"),
        ((9, 10, 18), (18, 20, 22), 2, "even"),  # the quartiles touch
        ((9, 10, 11), (18, 20, 22), 2, "tree"),
        ((18, 20, 22), (9, 10, 18), 0.5, "even"),
        ((18, 20, 22), (9, 10, 11), 0.5, "array"),
    ],
)
def test_factor_and_winner(
    tree: tuple[float, ...], array: tuple[float, ...], factor: float, winner: str
) -> None:
    rows = pair(tree, array)
    assert duel.factor(rows) == pytest.approx(factor)
    assert duel.winner(rows) == winner
    assert duel.has_both(rows)
    assert not duel.has_both({"tree": {}})
    assert not duel.has_both({"array": {}})
    rows["idea"] = rows.pop("array")
    assert duel.factor(rows, "idea") == pytest.approx(factor)
    assert duel.winner(rows, "idea") == winner.replace("array", "idea")


def row(name: str, n: int | None, backend: str, median: float) -> Any:
    value = {"median": median, "low": median, "high": median}
    return {"case": name, "n_slots": n, "backend": backend, **value}


def test_crossover_row_has_the_factors_and_the_winners() -> None:
    costs_of = {2: (4, 1), 8: (2, 2), 32: (1, 4), 128: (1, 1.02), 509: (1, 8)}
    by_size = {
        n: {"tree": row("unmap", n, "tree", t), "array": row("unmap", n, "array", a)}
        for n, (t, a) in costs_of.items()
    }
    wanted = {
        "case": "unmap",
        "user_mem_slots": 509,
        "tree_from": 8,  # the last size that is not above 1
        "array_wins_at": [2],
        "tree_wins_at": [32, 509],
        "busy_at": [],
        "factors": {"2": 0.25, "8": 1.0, "32": 4.0, "128": 1.02, "509": 8.0},
    }
    found: Any = crossover._row("unmap", 509, by_size)
    assert {key: found[key] for key in wanted} == wanted


def test_duels_pair_the_rows_of_one_case_and_size() -> None:
    rows = [
        row("a", 64, "array", 5), row("a", 8, "tree", 1), row("a", 8, "array", 2),
        row("a", 64, "tree", 3), row("a", 8, "list", 9), row("a", 509, "tree", 9),
        row("b", 8, "array", 4), row("c", None, "tree", 1), row("c", None, "array", 1),
    ]  # fmt: skip
    found = crossover.duels(rows)
    assert list(found) == ["a"]
    assert list(found["a"]) == [8, 64]
    assert {n: duel.factor(both) for n, both in found["a"].items()} == {8: 2, 64: 5 / 3}


def test_larger_sizes_of_the_main_table_join_only_large_vms() -> None:
    of_main = {n: {"tree": row("a", n, "tree", 1)} for n in (8, 509, 4096)}
    assert list(crossover._larger(of_main, 509, ROOM)) == [4096]
    assert list(crossover._larger(of_main, 7, ROOM)) == [8, 509, 4096]
    assert crossover._larger(of_main, 7, crossover.OLD_ROOM) == {}


# ---- growth -------------------------------------------------------------------------------------


def test_exponent_is_exact_for_powers() -> None:
    sizes = [8, 64, 512, 4096]
    for x in (-1, 0, 0.5, 1, 2):
        assert fit.exponent(sizes, [3.0 * n**x for n in sizes]) == pytest.approx(x)


def test_fit_uses_the_upper_half() -> None:
    points = [(n, float(n)) for n in (1, 2, 3, 4, 5, 6, 7)]
    assert list(fit.fitted(points)) == points[3:]
    assert list(fit.fitted(points[:6])) == points[3:6]
    assert list(fit.fitted(points[:4])) == points[2:4]
    for few in (1, 2, 3):
        assert list(fit.fitted(points[:few])) == points[:few]


def test_fit_does_not_depend_on_the_order_of_the_sizes() -> None:
    sizes, times = (
        [4096, 8, 512, 64],
        [4096.0, 1.0, 64.0, 8.0],
    )  # from 512 to 4096, 64 times as long
    assert fit.exponent(sizes, times) == pytest.approx(2)


def test_crossing_is_interpolated_on_logarithms() -> None:
    assert fit.crossover({8: 0.25, 512: 4.0}) == pytest.approx(64)
    assert fit.crossover({512: 4.0, 8: 0.25}) == pytest.approx(64)
    assert fit.crossover({8: 0.5, 512: 4.0}) == pytest.approx(8 * 64 ** (1 / 3))
    assert fit.crossover({2: 1.0, 8: 3.0}) == 2  # 1 is not above 1
    assert fit.crossover({2: 0.5, 8: 1.0}) is None
    assert fit.crossover({2: 3.0}) == 0


# ---- the published figures ----------------------------------------------------------------------


def test_published_figures_have_their_checksum() -> None:
    """The figures of the cover letter, in seconds; a changed or swapped one changes the sum."""
    text = "".join(
        f"{name} {n} {p.before!r} {p.after!r}\n" for (name, n), p in sorted(published.TABLE.items())
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7e90cacb8ca61f23"
    assert published.TABLE["unmap", 509] == (0.0724, 0.0315)
    assert published.TABLE["slot setup", 10] == (0.000342, 0.000283)


def test_published_factor_is_before_by_after() -> None:
    assert published.Published(6.0, 2.0).factor == 3
    rows = {(r["case"], r["n_slots"]): r for r in published.rows()}
    assert rows["map", 8194] == {
        "case": "map", "n_slots": 8194, "before_s": 0.2, "after_s": 0.0541, "factor": 3.7,
    }  # fmt: skip
    assert len(rows) == 36


def test_key_of_map_is_its_largest_size() -> None:
    assert published.key("map", 32_764) == ("map", 8194)
    assert published.key("map", 8194) == ("map", 8194)
    assert published.key("map", 509) == ("map", 509)
    assert published.key("unmap", 32_764) == ("unmap", 32_764)


# ---- the amount of work -------------------------------------------------------------------------


def test_cost_has_a_fixed_part_and_a_part_for_each_slot() -> None:
    cost = costs.Cost(100, 2)
    assert (cost.at(0), cost.at(10)) == (100, 120)
    assert cost.at(costs.CACHED) == 100 + 2 * costs.CACHED
    assert cost.at(costs.CACHED + 1) == 100 + 2 * (costs.CACHED + 1) * costs.UNCACHED


def test_operations_fit_into_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "nominal", lambda *_: 1000.0)
    assert costs.affordable("gfn", "tree", 8, 10_000, 0.002) == 2000
    assert costs.affordable("gfn", "tree", 8, 500, 0.002) == 500
    assert costs.affordable("gfn", "tree", 8, 10_000, 0.0) == costs.FEWEST
    assert costs.affordable("gfn", "tree", 8, 3, 0.0) == 3


def test_few_operations_are_spread_over_the_whole_stream() -> None:
    assert costs.spread(1000, 128).tolist() == [*range(64), *range(936, 1000)]
    assert costs.spread(1000, 130).tolist() == [*range(64), *range(468, 532), 936, 937]
    assert costs.spread(50, 10).tolist() == list(range(10))
    assert costs.spread(10, 10).tolist() == list(range(10))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (3.4, "3 s"), (119, "119 s"), (120, "2 minutes"), (7199, "120 minutes"),
     (7200, "2 hours"), (36_000, "10 hours")],
)  # fmt: skip
def test_duration_in_words(seconds: float, text: str) -> None:
    assert case.duration(seconds) == f"about {text}"


def test_pattern_is_a_part_of_the_name() -> None:
    assert case.matches("lookup/hot/vm", None)
    assert case.matches("lookup/hot/vm", "hot")
    assert case.matches("lookup/hot/vm", "l*vm")
    assert not case.matches("lookup/hot/vm", "hit")


def test_kernel_and_index_take_part_only_where_they_can() -> None:
    names = ["tree", "array", INDEXED, "kvm"]
    assert changes.Move(8, 1).backends(names) == ["tree", "array", "kvm"]
    assert lookups.GfnLookup("hot", "vm", 8, 1).backends(names) == ["tree", "array", INDEXED]
    assert lookups.IdLookup(8, 1).backends(names) == ["tree", "array"]


def test_kernel_is_refused_beyond_its_room() -> None:
    assert changes.Move(ROOM, 1).refusal("kvm", BUDGET._replace(filling=1e9)) is None
    assert changes.Move(ROOM + 1, 1).refusal("kvm", BUDGET) == "it has room for 32,764"


def test_slow_fill_is_refused_and_limits_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "nominal", lambda *_: 3e7)
    monkeypatch.setattr(filling, "nominal", lambda *_: 3e7)  # 100 slots take 3 s
    assert changes.Move(100, 1).too_slow("tree", BUDGET._replace(filling=3.0)) is None
    reason = changes.Move(100, 1).too_slow("tree", BUDGET._replace(filling=2.9))
    assert reason == "filling a VM takes about 3 s"
    fill = filling.Filling.__new__(type("Fill", (filling.Filling,), {"run": None}))
    fill.n_slots = 100
    assert fill.too_slow("tree", BUDGET._replace(at_most=3.0)) is None
    assert fill.too_slow("tree", BUDGET._replace(at_most=2.9)) == "one run takes about 3 s"
    for at_most, rounds in ((3.0, 1), (8.9, 2), (9.1, 3), (300.0, 7), (0.1, 1)):
        assert fill.rounds("tree", 7, BUDGET._replace(at_most=at_most)) == rounds


# ---- changes and traces -------------------------------------------------------------------------


def test_pairs_alternate() -> None:
    found = alternating(np.array([1, 3, 5]), np.array([2, 4, 6]))
    assert found.tolist() == [1, 2, 3, 4, 5, 6]


def test_two_kinds_of_changes_get_every_other_time() -> None:
    ns = np.array([1, 10, 2, 20, 3, 30, 900, 40], dtype=np.uint64)
    results = np.zeros(8, dtype=np.int32)
    delete, create = changes.DeleteCreate(8, 1).samples((ns, results), None)
    assert (delete.case, delete.value, delete.ops) == ("change/delete", 2.5, 4)
    assert delete.singles.tolist() == [1, 2, 3, 900]
    assert (create.case, create.value, create.ops) == ("change/create", 25, 4)
    assert create.singles.tolist() == [10, 20, 30, 40]
    (move,) = changes.Move(8, 1).samples((ns, results), "x")
    assert (move.case, move.value, move.ops, move.wrong) == ("change/move", 15, 8, "x")


def test_times_of_traces_are_sorted_by_kind_and_by_scenario() -> None:
    times = {"boot": {"create": [1, 3], "move": [7]}, "migration": {"create": [100], "lookup": []}}
    found = {s.case: s for s in replays._samples(times, "d", None)}
    assert {name: (s.value, s.ops, s.iteration_ops) for name, s in found.items()} == {
        "replay/create": (3, 3, None),
        "replay/move": (7, 1, None),
        "scenario/boot": (11 / 3, 3, 3),
        "scenario/migration": (100, 1, 1),
    }
    assert found["replay/create"].singles.tolist() == [1, 3, 100]
    row_of_boot = sample.row([found["scenario/boot"]], "tree", None)
    assert row_of_boot["iteration_ns"] == pytest.approx(11)


def test_each_packaged_trace_has_its_scenario() -> None:
    found: dict[str, list[str]] = {}
    for path in vectors.packaged_traces():
        found.setdefault(replays.scenario(str(path)), []).append(vectors.stem(path))
    assert len(found.pop("boot")) == 14
    assert found == {
        "hot-plug of DIMMs": ["pc-dimm-hotplug-63", "q35-dimm-hotplug-63"],
        "migration": ["pc-dimm-migrate", "pc-migrate-boot"],
        "PAM and SMRAM": ["pc-pam-smram"],
        "display refresh": ["pc-virtio-gpu-secondary", "q35-vbe-vnc-refresh"],
        "BAR moves": ["q35-ivshmem-bars"],
    }
    assert replays.scenario("x/pc-migrate-hotplug.jsonl.gz") == "migration"
    assert replays.scenario("x/new-kind.jsonl") == "boot"


# ---- figures as text ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "median", "high", "text"),
    [(90, 100, 110, "±10%"), (100, 100, 100, "±0%"), (100, 200, 500, "±100%"), (9, 10, 14, "±25%")],
)
def test_spread_is_half_the_distance_of_the_quartiles(
    low: float, median: float, high: float, text: str
) -> None:
    made_row: Any = {"low": low, "median": median, "high": high}
    assert show.spread(made_row) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123, "0.12"), (9.99, "9.99"), (10.04, "10.0"), (99.9, "99.9"), (100, "100"), (1234.5, "1234")],
)  # fmt: skip
def test_factor_has_three_digits(value: float, text: str) -> None:
    assert show.factor(value) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0.04, "0.04 ns"), (9.996, "10.00 ns"), (99.94, "99.9 ns"), (999.4, "999 ns"), (1000, "1.00 us"),
     (1e6, "1.00 ms"), (123_456_789, "123 ms"), (1e9, "1.00 s"), (7e12, "7000 s")],
)  # fmt: skip
def test_time_has_three_digits_and_a_unit(ns: float, text: str) -> None:
    assert show.time(ns) == text


@pytest.mark.parametrize(
    ("names", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_names_are_listed(names: list[str], text: str) -> None:
    assert words.listed(names) == text
    assert words.listed(names, "or") == text.replace(" and ", " or ")
