# SPDX-License-Identifier: MIT
"""The texts of `memslots perf` and `memslots scale`, from invented figures, cell by cell.

No two figures are equal, so a cell in the wrong place, a swapped column and an inverted ratio all show.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import pytest

from memslots.measure import published
from memslots.measure.derive import fits
from memslots.report import perf, scale, show, tables


def row(
    name: str, backend: str, n: int | None, median: float, half: float = 0.05, **more: Any
) -> dict[str, Any]:
    """A row whose quartiles are `half` below and above the median, as a share of it."""
    tail = {"p50": median + 1, "p99": 10 * median, "p999": 100 * median}
    width = {"low": median * (1 - half), "high": median * (1 + half)}
    rest = {"ops": 6000, "rounds": 3, "checked": True}
    cell = {"case": name, "backend": backend, "n_slots": n, "median": median}
    return cell | width | tail | rest | more


def report(**more: Any) -> Any:
    """A report of perf with one row or more in each table."""
    results = [
        row("map", "tree", 8, 31), row("map", "array", 8, 62),
        row("map", "tree", 8194, 32), row("map", "array", 8194, 96),
        row("unmap", "tree", 8, 40), row("unmap", "array", 8, 20), row("unmap", "list", 8, 44),
        row("unmap", "tree", 32764, 50), row("unmap", "array", 32764, 6000),
        row("slot setup", "tree", 32764, 700), row("slot setup", "array", 32764, 7700),
        row("slot setup", "kvm", 32764, 41_000),
        row("change/delete", "tree", 8, 1100, 0.5), row("change/delete", "array", 8, 1000, 0.5),
        row("change/delete", "kvm", 8, 23_000, checked=False),
        row("lookup/hot/vm", "tree", 8, 6), row("lookup/hot/vm", "array", 8, 3),
        row("lookup/hot/vm", "tree+index", 8, 4),
        row("lookup/hot/vm", "tree", 32764, 9), row("lookup/hot/vm", "tree+index", 32764, 3),
        row("lookup/misses/batch", "tree", 8, 70), row("lookup/misses/batch", "array", 8, 71),
        row("lookup/misses/batch", "numpy", 8, 55), row("lookup/misses/batch", "numpy argsort", 8, 33),
        row("lookup/misses/batch", "numpy", 32764, 210),
        row("replay/move", "tree", None, 1300, ops=90), row("replay/move", "array", None, 5200, ops=60),
        row("scenario/boot", "tree", None, 2100, iteration_ns=210_000, iteration_ops=100),
        row("scenario/boot", "kvm", None, 8400, iteration_ns=840_000, iteration_ops=100),
    ]  # fmt: skip
    crossings = [
        {"case": "unmap", "user_mem_slots": 509, "tree_from": 5.0, "array_wins_at": [2, 4, 509],
         "tree_wins_at": [64], "factors": {"2": 0.5, "4": 0.62, "64": 12.0, "509": 0.25}},
        {"case": "change/move", "user_mem_slots": 509, "tree_from": 0.0, "array_wins_at": [],
         "tree_wins_at": [2], "factors": {"2": 3.0}},
        {"case": "unmap", "user_mem_slots": 32764, "tree_from": 0.0, "array_wins_at": [],
         "tree_wins_at": [2, 8], "factors": {"2": 140.0, "8": 150.0}},
    ]  # fmt: skip
    not_run = [
        {"case": "slot setup", "backend": "list", "n_slots": 32764, "reason": "one run takes about 8 s"},
        {"case": "unmap", "backend": "list", "n_slots": 32764, "reason": "one run takes about 8 s"},
        {"case": "map", "backend": "list", "n_slots": 509, "reason": "filling a VM takes about 2 s"},
    ]  # fmt: skip
    whole = {
        "slots": [8, 32764],
        "rounds": 3,
        "seconds": 12.6,
        "seed": 77,
        "clock_ns": 21.4,
        "floor_ns": 88.6,
        "kvm_refused_ns": 333.0,
        "results": results,
        "crossover": crossings,
        "not_run": not_run,
        "skipped": ["peer SortedDict: not installed"],
        "wrong": [{"case": "change/delete", "backend": "kvm", "n_slots": 8, "what": "x"}],
    }
    return whole | more


def parts_of(text: str) -> list[list[str]]:
    """The parts of a page, each as its lines."""
    return [part.splitlines() for part in text.split("\n\n")]


def cells(table: Any) -> list[list[str]]:
    """Headers and rows, without the blanks around each cell."""
    return [[cell.strip() for cell in line] for line in (table.headers, *table.body)]


# ---- perf ---------------------------------------------------------------------------------------


def test_tables_of_sizes() -> None:
    small, large = perf._size_tables(report())
    names = ["tree", "array", "list"]
    assert cells(small) == [
        ["8 slots", *names, "tree+index", "kvm", "array / tree"],
        ["memslot_perf_test"],
        ["map", "31.0 ns  ±5%", "62.0 ns  ±5%", "-", "-", "-", "2.00 tree"],
        ["unmap", "40.0 ns  ±5%", "20.0 ns  ±5%", "44.0 ns  ±5%", "-", "-", "0.50 ARRAY"],
        ["changes"],
        ["change/delete", "1.10 us ±50%", "1.00 us ±50%", "-", "-", "23.0 us  ±5% WRONG", "0.91 even"],
        ["lookups"],
        ["lookup/hot/vm", "6.00 ns  ±5%", "3.00 ns  ±5%", "-", "4.00 ns  ±5%", "-", "0.50 ARRAY"],
        ["lookup/misses/batch", "70.0 ns  ±5%", "71.0 ns  ±5%", "-", "-", "-", "1.01 even"],
    ]  # fmt: skip
    assert cells(large) == [
        ["32,764 slots", "tree", "array", "tree+index", "kvm", "array / tree"],
        ["memslot_perf_test"],
        ["map (8,194 slots)", "32.0 ns  ±5%", "96.0 ns  ±5%", "-", "-", "3.00 tree"],
        ["unmap", "50.0 ns  ±5%", "6.00 us  ±5%", "-", "-", "120 tree"],
        ["slot setup", "700 ns  ±5%", "7.70 us  ±5%", "-", "41.0 us  ±5%", "11.0 tree"],
        ["lookups"],
        ["lookup/hot/vm", "9.00 ns  ±5%", "-", "3.00 ns  ±5%", "-", ""],
    ]


def test_tables_of_crossings() -> None:
    small, large = perf._crossovers(report())
    assert cells(small) == [
        ["array / tree, VM of 509 ids; * array wins", "2", "4", "64", "509"],
        ["unmap", "*0.50", "*0.62", "12.0", "*0.25"],
        ["change/move", "3.00", "-", "-", "-"],
    ]
    assert cells(large) == [
        ["array / tree, VM of 32,764 ids; * array wins", "2", "8"],
        ["unmap", "140", "150"],
    ]


def test_table_of_the_index() -> None:
    """The gain is the time without the index divided by the time with it."""
    assert cells(perf._index_gains(report())) == [
        ["tree / tree+index, by slots", "8", "32,764"],
        ["lookup/hot/vm", "1.50", "3.00"],
    ]
    assert perf._index_gains(report(results=[row("unmap", "tree+index", 8, 1)])) == ""


def test_table_of_latencies_is_that_of_the_largest_size() -> None:
    assert cells(perf._latencies(report())) == [
        ["p50 / p99 / p99.9 at 32,764 slots", "tree", "array", "tree+index", "kvm"],
        ["unmap", "51.0 ns / 500 ns / 5.00 us", "6.00 us / 60.0 us / 600 us", "-", "-"],
        ["slot setup", "701 ns / 7.00 us / 70.0 us", "7.70 us / 77.0 us / 770 us", "-",
         "41.0 us / 410 us / 4.10 ms"],
        ["lookup/hot/vm", "10.0 ns / 90.0 ns / 900 ns", "-", "4.00 ns / 30.0 ns / 300 ns", "-"],
    ]  # fmt: skip
    assert perf._latencies(report(slots=[])) == ""


def test_tables_of_peers() -> None:
    (table,) = perf._peers(report())
    assert cells(table) == [
        ["many at once, from Python: ns each", "tree", "array", "numpy", "numpy argsort"],
        ["8 slots", "70.0 ns  ±5%", "71.0 ns  ±5%", "55.0 ns  ±5%", "33.0 ns  ±5%"],
        ["32,764 slots", "-", "-", "210 ns  ±5%", "-"],
    ]


def test_tables_of_traces() -> None:
    found = report()
    assert cells(perf._traces(found, "replay/", "one operation")) == [
        ["one operation", "operations", "tree", "array", "array / tree"],
        ["move", "30", "1.30 us  ±5%", "5.20 us  ±5%", "4.00 tree"],
    ]
    assert cells(perf._traces(found, "scenario/", "whole traces")) == [
        ["whole traces", "operations", "tree", "kvm", "array / tree"],
        ["boot", "2,000", "210 us  ±5%", "840 us  ±5%", ""],
    ]
    for changed in found["results"]:
        changed["checked"] = changed["backend"] != "kvm"
    whole = perf._traces(found, "scenario/", "whole traces")
    assert cells(whole)[1][3] == "840 us  ±5% WRONG"


def test_closing_notes() -> None:
    notes = list(perf._closing(report()))
    notes.remove(perf._overheads(report()))
    assert notes == [
        "array / tree at 32,764 slots: unmap 120x (published 111x), slot setup 11.0x (published 27x)",
        "The array is faster (costs above): unmap at 8, lookup/hot/vm at 8.  "
        "In all other rows of these tables the tree is faster, or both are even.",
        "The array is faster (array / tree, VM of 509 ids): unmap at 2 to 4 and 509 slots.  "
        "In all other rows of these tables the tree is faster, or both are even.",
        "The array is faster (array / tree, VM of 32,764 ids): nowhere.  "
        "In all other rows of these tables the tree is faster, or both are even.",
        'tree+index: the tree with an index for lookups by gfn (vm.index_policy "eager").  The index is built before '
        "the first timed lookup.  Single lookups among a few slots walk the tree anyway.  "
        'The designs themselves are measured without an index ("off").',
        "skipped: peer SortedDict: not installed",
        "not run: 2 cases, list, 32,764 slots: one run takes about 8 s",
        "not run: map, list, 509 slots: filling a VM takes about 2 s",
        "--full runs slower cases too.",
        "162,150 operations timed in 29 cells, 13 s, seed 77: 1 cell with wrong answers.",
    ]


def test_page_has_all_parts_in_order() -> None:
    found = parts_of(perf.text(report()))
    heads = [lines[0].split("  ")[0] for lines in found]
    assert heads[:-1] == [
        "8 slots",
        "32,764 slots",
        "array / tree, VM of 509 ids; * array wins",
        "array / tree, VM of 32,764 ids; * array wins",
        "tree / tree+index, by slots",
        "p50 / p99 / p99.9 at 32,764 slots",
        "many at once, from Python: ns each",
        "one operation of the QEMU traces",
        "whole QEMU traces, by what they show",
    ]
    assert found[-1][0].startswith("array / tree at 32,764 slots")
    assert found[0][3].split() == [
        "map", "31.0", "ns", "±5%", "62.0", "ns", "±5%", "-", "-", "-", "2.00", "tree",
    ]  # fmt: skip


def test_overheads_are_those_of_c_python_and_the_kernel() -> None:
    note = perf._overheads(report())
    assert note.startswith(
        "Times are per operation: medians of 3 rounds, ± half the distance between their quartiles.  Percentiles from "
        "C include 21 ns for the clock, those from Python 89 ns for the clock and the call.  "
    )
    assert "A system call that KVM refuses takes 333 ns; each time of kvm includes this." in note
    assert "A system call" not in perf._overheads(report(kvm_refused_ns=None))


def test_sizes_without_a_thousand_slots_have_no_headline() -> None:
    assert list(perf._headlines(report(slots=[8]))) == []
    without = report()
    without["results"] = [r for r in without["results"] if r["backend"] != "array"]
    assert list(perf._headlines(without)) == []
    assert not any("faster (costs" in line for line in perf._array_wins(without))


@pytest.mark.parametrize(
    ("wins", "text"),
    [([2], "2 slots"), ([2, 4], "2 to 4 slots"), ([2, 64], "2 and 64 slots"),
     ([2, 4, 64, 1024], "2 to 64 and 1,024 slots"), ([4, 64, 509, 1024], "4 to 1,024 slots")],
)  # fmt: skip
def test_neighbouring_sizes_are_joined(wins: list[int], text: str) -> None:
    factors = {str(n): 1.0 for n in (2, 4, 64, 509, 1024)}
    entry: Any = {"factors": factors, "array_wins_at": wins}
    assert perf._ranges(entry) == text


def test_cases_of_a_sentence_are_sorted_by_size() -> None:
    found = show.cases_at([("RW", 4096), ("unmap", 8), ("RW", 8), ("RW", 509)])
    assert found == ["unmap at 8", "RW at 8 and 509 and 4,096"]


def test_each_wrong_cell_is_marked_and_counted() -> None:
    """Exactly one wrong row, in each position: one WRONG in the tables, one cell in the last line."""
    right = report(wrong=[])
    for changed in right["results"]:
        changed["checked"] = True
    assert "WRONG" not in perf.text(right)
    assert ": 0 cells with wrong answers." in perf.text(right)
    for i, one in enumerate(right["results"]):
        found = deepcopy(right)
        found["results"][i]["checked"] = False
        found["wrong"] = [
            {"case": one["case"], "backend": one["backend"], "n_slots": 8, "what": ""}
        ]
        text = perf.text(found)
        assert text.count("WRONG") == (
            2 if "batch" in one["case"] and one["backend"] in ("tree", "array") else 1
        )
        assert ": 1 cell with wrong answers." in text


# ---- scale --------------------------------------------------------------------------------------


def scale_report(**more: Any) -> Any:
    medians = {
        ("change/move", "tree"): {8: 1000, 64: 1100, 512: 1200},
        ("change/move", "array"): {8: 2000, 64: 16_000, 512: 128_000},
        ("change/move", "list"): {8: 3000, 64: 3300},
        ("setup/load", "tree"): {8: 500, 64: 400, 512: 300},
    }
    results = [
        row(name, backend, n, ns)
        for (name, backend), by_size in medians.items()
        for n, ns in by_size.items()
    ]
    results[4]["checked"] = False  # the array at 64 slots
    selftest = [
        row("unmap", "tree", 10, 100), row("unmap", "array", 10, 130),
        row("unmap", "tree", 509, 100), row("unmap", "array", 509, 230),
        row("map", "tree", 8194, 50), row("map", "array", 8194, 200),
        row("slot setup", "tree", 509, 7),
    ]  # fmt: skip
    whole = {
        "slots": [8, 64, 512],
        "rounds": 5,
        "seconds": 3.4,
        "seed": 5,
        "results": results,
        "fits": list(fits(results)),
        "selftest": selftest,
        "not_run": [
            {
                "case": "change/move",
                "backend": "list",
                "n_slots": 512,
                "reason": "it takes about 9 s",
            }
        ],
        "skipped": ["the real kernel: --no-kvm"],
        "wrong": [{"case": "change/move", "backend": "array", "n_slots": 64, "what": "x"}],
    }
    return whole | more


def test_fits_are_exponents_by_case_and_backend() -> None:
    assert scale_report()["fits"] == [
        {"case": "change/move", "backend": "tree", "exponent": 0.044, "sizes": 3},
        {"case": "change/move", "backend": "array", "exponent": 1.0, "sizes": 3},
        {"case": "change/move", "backend": "list", "exponent": 0.046, "sizes": 2},
        {"case": "setup/load", "backend": "tree", "exponent": -0.123, "sizes": 3},
    ]
    traces: Any = [row("replay/move", "tree", None, 5), row("a", "tree", 8, 5)]
    assert list(fits(traces)) == []


def test_table_of_growth() -> None:
    assert cells(scale._costs(scale_report())) == [
        ["slots", "8", "64", "512", "~ n^x"],
        ["change/move"],
        ["tree", "1.00 us", "1.10 us", "1.20 us", "0.04"],
        ["array", "2.00 us", "16.0 us WRONG", "128 us", "1.00"],
        ["list", "3.00 us", "3.30 us", "not run", "0.05"],
        ["setup/load"],
        ["tree", "500 ns", "400 ns", "300 ns", "-0.12"],
    ]


def test_table_of_the_published_factors() -> None:
    """The first number is measured here, the number in brackets is published."""
    table = scale._published(scale_report())
    assert cells(table)[0] == ["slots: array / tree (published)", *published.CASES]
    rows = {line[0]: dict(zip(published.CASES, line[1:], strict=True)) for line in cells(table)[1:]}
    assert list(rows) == ["10", "30", "50", "100", "509", "32,764"]
    assert rows["10"]["unmap"] == "1.30 (1.01)"
    assert rows["509"]["unmap"] == "2.30 (2.30)"
    assert rows["32,764"]["map"] == "4.00 (3.70)"
    assert rows["509"]["slot setup"] == "-"
    assert sum(cell != "-" for line in rows.values() for cell in line.values()) == 3
    assert scale._published(scale_report(selftest=[])) == ""


def test_closing_notes_of_scale() -> None:
    notes = list(scale._closing(scale_report()))
    assert notes[0].startswith(
        "Times are per operation (setup: per slot), medians of up to 5 rounds."
    )
    assert notes[1:] == [
        f"Published: {published.SOURCE}; map at 32,764 has 8,194 slots.",
        "not run: change/move, list, 512 slots: it takes about 9 s",
        "skipped: the real kernel: --no-kvm",
        "108,000 operations timed in 18 cells, 3 s, seed 5: 1 cell with wrong answers.",
    ]


def test_page_of_scale_has_all_parts() -> None:
    found = parts_of(scale.text(scale_report()))
    assert [lines[0].split("  ")[0] for lines in found[:2]] == [
        "slots",
        "slots: array / tree (published)",
    ]
    assert len(found) == 3


# ---- tables -------------------------------------------------------------------------------------


def test_columns_have_one_order() -> None:
    names = ["kvm", "numpy", "idea", "list", "array", "tree"]
    rows: Any = [{"backend": name} for name in names]
    assert show.columns(rows) == ["tree", "array", "list", "numpy", "idea", "kvm"]
    assert show.new_designs(rows) == ["idea"]


def test_not_run_cells_are_joined_by_backend_and_reason() -> None:
    entries: Any = [
        {"case": name, "backend": backend, "n_slots": n, "reason": reason}
        for name, backend, n, reason in (
            ("a", "list", 8, "slow"), ("a", "list", 4096, "slow"), ("b", "array", 8, "slow"),
            ("c", "array", 8, "slow"), ("c", "array", 64, "full"),
        )
    ]  # fmt: skip
    assert list(show.not_run(entries)) == [
        "not run: a, list, 8 and 4,096 slots: slow",
        "not run: 2 cases, array, 8 slots: slow",
        "not run: c, array, 64 slots: full",
    ]


def test_narrow_pages_have_the_same_cells() -> None:
    """Every cell of the wide page is in the narrow one, below the name of its column."""
    table = tables.Table([["a", "11", "22"], ["b", "33", "44"]], ["head", "one", "two"])
    narrow = tables.text(table, 10)
    assert [line.split() for line in narrow.split("\n\n")[1].splitlines()[2:]] == [
        ["a", "22"],
        ["b", "44"],
    ]
    records = tables.text(table, 5)
    assert re.sub(r"\s+", " ", records) == "head ----- a one 11 two 22 b one 33 two 44"
