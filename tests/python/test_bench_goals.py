# SPDX-License-Identifier: MIT
"""bench/goals and bench/readers.py: they run, their JSON has its keys, verdicts are right, wrong answers are found.

No test checks a time: --quick measures too little for that.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import memslots
from memslots import HVA_ERR_BAD, VM
from memslots.lab import layouts

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"

pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="there is no checkout around the tests")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench("goals.scorecard"): a module of bench/."""
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def report_of(path: Path, *command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *command, "--quick", "--json", str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCH), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert report["memslots"] == memslots.__version__
    assert report["machine"]["cpu"]
    assert report["wrong"] == []
    return report


BENCHMARKS = ROOT / "docs" / "benchmarks.md"
GOALS = "| goal | ratio or figure | sizes | measured | wanted |"
EXPECTED = tuple(f"P{i}" for i in range(1, 14))


def goals_of(page: Path, header: str) -> list[list[str]]:
    """The rows of the page's table with this header."""
    table = page.read_text(encoding="utf-8").partition(header)[2].partition("\n\n")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


# ---- the commands run -----------------------------------------------------------------------------

FIGURE_KEYS = {
    "goal", "what", "at", "value", "low", "high", "relation", "bound", "unit", "verdict", "sure", "medians", "samples",
}  # fmt: skip


@pytest.mark.builds
@pytest.mark.slow
def test_size_beyond_some_goals_still_gives_a_report(tmp_path: Path) -> None:
    """The size is above the limit of some parts, which then measure nothing."""
    pytest.importorskip("Cython", reason="no Cython: make bench-goals installs it")
    report = report_of(
        tmp_path / "goals.json", "-m", "goals", "--sizes", "33000", "--only", "P1", "P5", "P6"
    )
    assert {figure["at"] for figure in report["figures"]} == {"33,000 slots"}


def assert_samples_give(figure: dict[str, Any]) -> None:
    """The raw samples of a ratio give its value; a figure without samples is no ratio."""
    if not figure["samples"]:
        assert figure["unit"] != "x"
        return
    over, under = figure["samples"]["over"], figure["samples"]["under"]
    assert np.median(np.divide(over, under)) == pytest.approx(figure["value"])
    assert figure["medians"]["over"] == pytest.approx(np.median(over))


def derived_from_goals() -> set[tuple[str, str]]:
    """The figures from which docs/figures.toml derives the table of goals.  A quick run has other sizes."""
    rows = tomllib.loads((ROOT / "docs" / "figures.toml").read_text(encoding="utf-8"))["goal"]
    found = set()
    for row in rows:
        goal, names = row["row"].split("|")[1].strip(), row["what"]
        found |= {(goal, name) for name in ([names] if isinstance(names, str) else names)}
    return {(g, n) for g, n in found if not n.startswith("256 ") and "4,096 slots" not in n}


@pytest.mark.builds
@pytest.mark.slow
def test_every_goal_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("Cython", reason="no Cython: make bench-goals installs it")
    report = report_of(tmp_path / "goals.json", "-m", "goals")
    assert all(isinstance(note, str) for note in report["notes"])
    documented = {(row[0], row[-1]) for row in goals_of(BENCHMARKS, GOALS)}
    assert {figure["goal"] for figure in report["figures"]} == {*EXPECTED}
    for figure in report["figures"]:
        assert set(figure) == FIGURE_KEYS
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] < math.inf
        assert figure["relation"] in (">=", "<=")
        assert_samples_give(figure)
        if figure["bound"] is not None:
            assert (figure["goal"], f"{figure['relation']} {figure['bound']:g}") in documented
        assert (figure["bound"] is None) == (figure["verdict"] == "shown")
    assert {"holds", "misses"} >= {f["verdict"] for f in report["figures"] if f["bound"]}
    found = {(f["goal"], f["what"]) for f in (*report["figures"], *report["skipped"])}
    assert derived_from_goals() <= found
    assert all(set(skipped) == {"goal", "what", "reason"} for skipped in report["skipped"])


@pytest.mark.slow
def test_readers_are_measured(tmp_path: Path) -> None:
    report = report_of(tmp_path / "readers.json", str(BENCH / "readers.py"))
    situations = {"no writer", "idle writer", "a writer that never stops"}
    by_kind: dict[str, set[str]] = {}
    for row in report["throughput"]:
        by_kind.setdefault(row["kind"], set()).add(row["situation"])
        assert 0 < row["low"] <= row["per_second"] <= row["high"]
        assert row["kept"] > 0
        assert np.median(row["rounds"]) == pytest.approx(row["per_second"])
    assert all(found == situations for found in by_kind.values())
    assert any("lookups" in kind for kind in by_kind)
    assert any("batches" in kind for kind in by_kind)
    assert "read sections of 1 ms" in {row["next_to"] for row in report["latency"]}
    for row in report["latency"]:
        assert row["changes"] > 0
        assert 0 < row["p50"] <= row["p99"] <= row["max"]
        raw = [np.repeat(of_one["ns"], of_one["count"]) for of_one in row["rounds"]]
        assert len(np.concatenate(raw)) == row["changes"]
        found = np.percentile(np.concatenate(raw), [50, 99, 100]) / 1000
        assert found.tolist() == pytest.approx([row["p50"], row["p99"], row["max"]])


@pytest.mark.builds
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("valgrind"), reason="no valgrind")
def test_instructions_are_counted(tmp_path: Path, bench: Any) -> None:
    path = tmp_path / "callgrind.json"
    args = ["--no-python", "--slots", "64", "--json", str(path)]
    assert bench("callgrind").main(args) == 0
    by_case = {row["case"]: row for row in json.loads(path.read_text())["results"]}
    hot, walk = by_case["ms_gfn_to_hva, hot"], by_case["ms_gfn_to_hva, random, by the tree"]
    assert 10 < hot["instructions"] < walk["instructions"] < 1000
    for row in by_case.values():
        assert sum(n for _, n in row["where"]) == pytest.approx(row["instructions"], abs=1)
    assert any("srcu" in name for name, _ in hot["where"])


# ---- wrong answers --------------------------------------------------------------------------------


class OffByOnePage(VM):
    def gfn_to_hva_many(self, *args: Any, **kwargs: Any) -> Any:
        out = super().gfn_to_hva_many(*args, **kwargs)
        out[-1] += np.uint64(4096)
        return out


def test_wrong_batch_answers_make_the_command_fail(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = bench("goals.work")
    monkeypatch.setattr(work, "VM", OffByOnePage)
    monkeypatch.setattr(bench("goals.fib"), "pkg_config", lambda _: None)  # it has other answers
    monkeypatch.setattr(work, "_stages", {})
    code = bench("goals.__main__").main(["--quick", "--only", "P1", "P3", "--no-levels"])
    out = capsys.readouterr().out
    assert code == 1
    assert "WRONG: batch at 8 slots" in out
    assert "WRONG: auto, batches of 100 at 64 slots" in out


def test_missed_goal_does_not_make_the_command_fail(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = bench("goals.batches")
    bounds_before, bounds.AGAINST_COPY = bounds.AGAINST_COPY, 0
    try:
        code = bench("goals.__main__").main(["--quick", "--only", "P2", "--no-levels"])
    finally:
        bounds.AGAINST_COPY = bounds_before
    assert code == 0
    assert "misses" in capsys.readouterr().out


def test_reader_finds_wrong_and_torn_answers(bench: Any) -> None:
    """A writer deletes and creates one slot: both of its answers are right, but a batch must not mix them."""
    workers = bench("goals.workers")
    slots = layouts.uniform(8)
    victim = slots[3]
    gfns = np.arange(victim["base_gfn"], victim["base_gfn"] + 4, dtype=np.uint64)
    others = layouts.random(slots[4:], 4)
    right = layouts.expected_hvas(slots, np.concatenate([gfns, others]))
    with VM() as vm:
        vm.load_memslots(slots)
        reader = workers.Batches(vm, slots, np.concatenate([gfns, others]), victim)
        for answers, wrong in (
            (right, 0),
            (np.concatenate([np.full(4, HVA_ERR_BAD, np.uint64), right[4:]]), 0),
            (np.concatenate([right[:1], np.full(3, HVA_ERR_BAD, np.uint64), right[4:]]), 1),
            (np.concatenate([right[:4], right[4:7], [np.uint64(HVA_ERR_BAD)]]), 1),
            (right + np.uint64(4096), 8),
        ):
            reader.out = answers
            assert reader.count_wrong() == wrong
        one_by_one = workers.Scalar(vm, slots, np.concatenate([gfns, others]), victim)
        one_by_one.out = np.concatenate([right[:1], np.full(3, HVA_ERR_BAD, np.uint64), right[4:]])
        assert one_by_one.count_wrong() == 0  # each lookup is a section of its own


def test_exception_in_a_background_thread_is_raised(bench: Any) -> None:
    workers = bench("goals.workers")

    class Fails(workers.Background):  # type: ignore[misc]
        def step(self, counting: bool) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        workers.run_for(0, [Fails()])


# ---- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "relation", "bound", "verdict"),
    [(14, ">=", 14, "holds"), (13.9, ">=", 14, "misses"), (2.5, "<=", 2.5, "holds"),
     (2.6, "<=", 2.5, "misses"), (0.1, ">=", None, "shown")],
)  # fmt: skip
def test_verdict_compares_value_and_bound(
    bench: Any, value: float, relation: str, bound: float | None, verdict: str
) -> None:
    figure = bench("goals.scorecard").Figure(
        "P1", "a / b", "8 slots", value, value, value, relation, bound
    )
    assert figure.verdict == verdict
    assert figure.verdict_text == verdict


def test_ratio_is_the_median_of_the_rounds_ratios(bench: Any) -> None:
    """A busy round slows both sides, and counts no more than any other round."""
    card = bench("goals.scorecard").Scorecard()
    card.ratio("P1", "a / b", "8 slots", [2, 400, 2.2, 2.4, 9], [1, 200, 1, 1, 1], bound=3)
    (figure,) = card.figures
    assert (figure.low, figure.value, figure.high) == (2, 2.2, 2.4)
    assert figure.verdict == "misses"
    assert figure.samples == {"over": [2, 400, 2.2, 2.4, 9], "under": [1, 200, 1, 1, 1]}
    assert figure.medians == {"over": 2.4, "under": 1}


def test_bound_between_the_quartiles_is_not_sure(bench: Any) -> None:
    card = bench("goals.scorecard").Scorecard()
    card.ratio("P1", "a / b", "8 slots", [2, 400, 2.2, 2.4, 9], [1, 200, 1, 1, 1], bound=2.1)
    (figure,) = card.figures
    assert figure.verdict_text == "holds, not sure"


def test_table_is_sorted_by_goal(bench: Any) -> None:
    card = bench("goals.scorecard").Scorecard()
    card.value("P10", "z", "a", 1, "us")
    card.value("P2", "x", "8 slots", 1, "bytes", "<=", 2)
    card.value("P9", "y", "a", 1, "us")
    card.value("P2", "x", "64 slots", 3, "bytes", "<=", 2)
    card.skip("P6", "w", "there is none")
    rows = [line.strip("| ").split(" | ") for line in card.markdown()][2:]
    assert [row[0] for row in rows] == ["P2", "P2", "P9", "P10", "P6"]
    assert rows[0] == ["P2", "x", "8 slots", "1.00 bytes", "<= 2", "holds"]
    assert rows[1] == ["P2", "x", "64 slots", "3.00 bytes", "<= 2", "misses"]
    assert rows[4][-1] == "skipped: there is none"


def figures_of(card: Any) -> dict[tuple[str, str], Any]:
    found = {(f.what, f.at): f for f in card.figures}
    assert len(found) == len(card.figures)
    return found


def next_to_writers(changes: float) -> dict[str, dict[str, list[float]]]:
    """Make an output of next_to.c, with rates that differ for each combination."""
    paths, kinds = ("index", "walk"), ("lookups", "batches")
    others = ("alone", "spin", "one", "random", "paced", "paced_random")
    return {
        f"{path} {kind} {other}": {
            "lookups": [100.0 * (p + 1) * (k + 1) / (o + 1)] * 3,
            "changes": [changes] * 3,
            "change_ns": [1000.0 * (p + 1) + 10 * k] * 3,
        }
        for p, path in enumerate(paths)
        for k, kind in enumerate(kinds)
        for o, other in enumerate(others)
        if path == "index" or o <= 2
    }


def test_readers_next_to_writers_are_compared_with_undisturbed_ones(bench: Any) -> None:
    card = bench("goals.scorecard").Scorecard()
    measured = next_to_writers(300_000)
    measured["walk lookups one"]["lookups"] = [50.0, 100.0, 200.0]  # keeps 1/4, 1/2 and 1
    bench("goals.next_to").report(card, measured, 4096)
    found = figures_of(card)
    never = "a reader next to a writer that never stops / undisturbed, 4,096 slots"
    assert found[never, "batches of 10,000, by index"].value == pytest.approx(1 / 3)
    assert found[never, "batches of 10,000, by index"].bound == 0.7
    assert found[never, "single lookups, plain walk"].value == pytest.approx(1 / 2)
    assert found[never, "single lookups, by index"].bound is None
    spinning = "... / next to a thread that only computes"
    assert found[spinning, "single lookups, by index"].value == pytest.approx(2 / 3)
    random = "a reader next to a writer of random slots that never stops / undisturbed"
    assert found[random, "batches of 10,000, by index"].value == pytest.approx(1 / 4)
    assert found[random, "batches of 10,000, by index"].bound == 0.6
    paced = "a reader at 300,000 changes/s / undisturbed"
    assert found[paced, "single lookups, by index"].value == pytest.approx(1 / 5)
    assert {f.bound for (what, _), f in found.items() if what == paced} == {0.8}
    (kept,) = [f for f in card.figures if f.what.startswith("the part of its rate")]
    assert kept.value == pytest.approx((1 / 3) / (1 / 2))  # of each round, then the median
    assert kept.bound == 0.9
    p50 = "p50 of a change next to a reader by index / next to one by plain walk"
    assert found[p50, "batches of 10,000"].value == pytest.approx(1010 / 2010)
    assert (found[p50, "single lookups"].relation, found[p50, "single lookups"].bound) == (
        "<=",
        1.1,
    )
    us = "p50 of a change next to that reader, 4,096 slots"
    assert found[us, "batches of 10,000, plain walk"].text == "2.01 us"
    made = "thousand changes per second next to that reader"
    assert found[made, "single lookups, by index"].text == "300 k/s"
    assert card.notes == []


def test_note_says_when_a_paced_writer_was_too_slow(bench: Any) -> None:
    card = bench("goals.scorecard").Scorecard()
    bench("goals.next_to").report(card, next_to_writers(250_000), 64)
    assert len(card.notes) == 4  # two kinds of readers, one slot or random slots
    made = "a writer of random slots made 250,000 of 300,000 changes/s"
    assert f"P9: next to single lookups, by index, {made}" in card.notes


def test_work_of_a_lookup_is_compared_with_that_of_an_index(bench: Any) -> None:
    card = bench("goals.scorecard").Scorecard()
    blocks = {"dearest": 3000, "median": 60, "unit": 2000}
    bench("goals.scalar").report_work(card, blocks, "dearest / unit", 4096)
    found = figures_of(card)["dearest / unit", "4,096 slots"]
    assert (found.value, found.relation, found.bound, found.verdict) == (1.5, "<=", 1, "misses")
    assert figures_of(card)["... / of the median one", "4,096 slots"].value == 50


def test_fib_is_compared_with_a_batch(bench: Any) -> None:
    card = bench("goals.scorecard").Scorecard()
    fib = bench("goals.fib")
    fib.report(card, {"fib": [3, 4, 5], "addresses": [5, 6, 7], "batch": [2, 2, 2]}, "8 slots")
    found = figures_of(card)
    assert found[fib.WHAT, "8 slots"].value == 3
    assert (found[fib.WHAT, "8 slots"].relation, found[fib.WHAT, "8 slots"].bound) == (">=", 1)
    assert found[fib.NUMBERS, "8 slots"].value == 2
    assert found[fib.NUMBERS, "8 slots"].bound is None


def test_few_slots_have_no_bound_of_bytes(bench: Any) -> None:
    card = bench("goals.scorecard").Scorecard()
    memory = bench("goals.memory")
    settings = replace(bench("goals.work").QUICK, sizes=(8, memory.FROM))
    memory.memory(card, settings)
    bounds = {
        (f.at, f.bound) for f in card.figures if "index" in f.what and "without" not in f.what
    }
    assert ("8 slots", None) in bounds
    assert (f"{memory.FROM} slots", memory.INDEX) in bounds


def test_missing_dpdk_is_a_visible_skip(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card, fib = bench("goals.scorecard").Scorecard(), bench("goals.fib")
    monkeypatch.delenv("MEMSLOTS_SIMD", raising=False)
    monkeypatch.setattr(fib.shutil, "which", lambda _: None)
    fib.against_fib(card, bench("goals.work").QUICK, tmp_path)
    assert card.figures == []
    assert card.skipped == [{"goal": "P1", "what": fib.WHAT, "reason": fib.MISSING}]
    assert "libdpdk-dev" in "\n".join(card.lines())


@pytest.mark.parametrize("n", [1, 8, 509])
def test_layout_with_holes_has_a_hole_after_each_slot(bench: Any, n: int) -> None:
    uniform = layouts.uniform(n)
    slots = np.sort(bench("goals.work").with_holes(uniform), order="base_gfn")
    ends = slots["base_gfn"] + slots["npages"]
    assert (ends[:-1] < slots["base_gfn"][1:]).all()
    assert (np.sort(uniform, order="base_gfn")["id"] == slots["id"]).all()


def test_every_bound_is_documented(bench: Any) -> None:
    """A quick run has bounds for few numbers of slots, so this test reads them from the modules."""
    batches, scalar, next_to = (bench(f"goals.{name}") for name in ("batches", "scalar", "next_to"))
    by_size = [batches.AGAINST_NUMPY, batches.AGAINST_NUMPY_ADVERSARIAL]
    after_changes = [batches.AFTER_CHANGES_WHOLE, batches.SINGLES_AFTER_CHANGES]
    bounds = {("P1", f">= {bound:g}") for table in by_size for bound in table.values()}
    bounds |= {("P3", f">= {bound:g}") for table in after_changes for bound in table.values()}
    bounds |= {("P1", f">= {bench('goals.fib').FASTER:g}"), ("P4", f"<= {scalar.RANDOM_TO_HOT:g}")}
    bounds |= {("P5", f"<= {bench('goals.core').VCPU:g}")}
    kept = (next_to.NEVER_STOPS, next_to.AT_RANDOM, next_to.AT_RATE, next_to.KEPT)
    bounds |= {("P9", f">= {bound:g}") for bound in kept}
    bounds |= {("P9", f"<= {next_to.SLOWER_CHANGE:g}")}
    guest = bench("goals.guest")
    bounds |= {("P11", f"<= {most:g}") for most in (guest.READ, guest.WRITE, guest.AS_MEMMOVE)}
    bounds |= {("P11", f"<= {most:g}") for most in (guest.AS_MEMCPY, guest.MANY)}
    densities = [density.most for density in bench("goals.dirty").DENSITIES]
    bounds |= {("P12", f"<= {most:g}") for most in densities if most is not None}
    assert bounds <= {(row[0], row[-1]) for row in goals_of(BENCHMARKS, GOALS)}


def test_instructions_have_one_row_for_each_function(bench: Any) -> None:
    callgrind = bench("callgrind")
    where = [("f (a.c)", 7.5), ("others", 2.0)]
    rows = callgrind.markdown([callgrind.Result("hot", 4096, 9.5, where)])
    assert rows[2:] == [
        "| hot | 4,096 | **all** | **10** |",
        "| hot | 4,096 | f | 7.5 |",
        "| hot | 4,096 | others | 2 |",
    ]


def test_histogram_keeps_every_time(bench: Any) -> None:
    ns = np.array([30, 20, 30, 4_000_000_000], np.uint64)
    found = bench("readers").histogram(ns)
    assert found == {"ns": [20, 30, 4_000_000_000], "count": [1, 2, 1]}


PROFILE = """version: 1
positions: line
events: Ir
ob=/bin/x
fl=/src/a.c
fn=main
10 5
calls=3 20
11 1000
fi=/src/b.h
40 7
fe=/src/a.c
12 1
fn=callee
20 900
"""


def test_profile_excludes_the_costs_of_called_functions(bench: Any) -> None:
    callgrind = bench("callgrind")
    costs = callgrind.parse(PROFILE)
    by_line = {(at.function, at.file, at.line): n for at, n in costs.items()}
    assert by_line == {
        ("main", "/src/a.c", 10): 5,
        ("main", "/src/b.h", 40): 7,
        ("main", "/src/a.c", 12): 1,
        ("callee", "/src/a.c", 20): 900,
    }
    few = callgrind.parse(PROFILE)
    many = callgrind.parse(PROFILE.replace("20 900", "20 1900"))
    assert list(callgrind.a_call(few, many, (100, 200)).values()) == [10]


def test_source_line_belongs_to_the_function_above_it(bench: Any, tmp_path: Path) -> None:
    source = tmp_path / "some.h"
    source.write_text(
        "#define F(x) x\n\nstatic inline struct look first(int a,\n\t\t int b)\n{\n\treturn f(a);\n}\n\n"
        "uint64_t second(void)\n{\n\treturn 0;\n}\n"
    )
    names = [bench("callgrind").source_function(str(source), line) for line in (1, 6, 11)]
    assert names == ["?", "first", "second"]


def test_documents_list_every_goal(bench: Any) -> None:
    """docs/benchmarks.md lists the goals; a recorded table has the columns that the command prints."""
    expected = {*EXPECTED}
    assert {row[0] for row in goals_of(BENCHMARKS, GOALS)} == expected
    header = next(bench("goals.scorecard").Scorecard().markdown())
    recorded = sorted((ROOT / "docs" / "results").glob("*/goals.md"))
    assert recorded
    for page in recorded:
        assert (
            {f"P{i}" for i in range(1, 11)}
            <= {row[0] for row in goals_of(page, header)}
            <= expected
        )
