# SPDX-License-Identifier: MIT
"""A busy machine: which cells it affects, and that such cells decide nothing in tables, sentences and pictures."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memslots.commands import cli
from memslots.lab import watch
from memslots.lab.case import Budget
from memslots.lab.record import CellRecord, Part, Round, Window
from memslots.lab.replays import Replay
from memslots.lab.sample import Sample
from memslots.measure import duel, noise
from memslots.measure.rounds import Results, measure, plan
from memslots.report import perf as report_perf
from memslots.report import scale as report_scale
from memslots.report import show

QUIET = Window(8, 0, 1.0, 0.1, 0.01, 0.0, 1)


def one(
    switches: int = 0,
    reference_ns: float | None = 10.0,
    window: int | None = 0,
    seconds: float = 0.01,
) -> Sample:
    noise = (window, seconds, switches, reference_ns)
    return Sample("RW", 1.0, np.array([1.0]), 1, 1, "", None, {}, None, *noise)


# ---- one round -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "window", "disturbed"),
    [
        (one(), QUIET, False),
        (one(), replace(QUIET, others=0.25, stolen=0.05), False),
        (one(), replace(QUIET, others=0.251), True),
        (one(), replace(QUIET, stolen=0.051), True),
        (one(), replace(QUIET, others=None, stolen=None, load=99.0), False),
        (one(switches=4), QUIET, False),
        (one(switches=5), QUIET, True),
        (one(switches=200, seconds=2.0), QUIET, False),
        (one(switches=201, seconds=2.0), QUIET, True),
        (one(reference_ns=50.0), QUIET, False),
        (one(reference_ns=50.1), QUIET, True),
        (one(reference_ns=None), QUIET, False),
        (one(window=None), replace(QUIET, others=1.0), False),
    ],
)
def test_round_is_disturbed_by_one_reading_above_its_limit(
    sample: Sample, window: Window, disturbed: bool
) -> None:
    assert noise.is_disturbed(sample, [window], 10.0) == disturbed


def test_each_round_has_its_own_window() -> None:
    windows = [QUIET, replace(QUIET, others=0.5)]
    samples = [one(window=0), one(window=1), one(window=0, switches=9)]
    assert [noise.is_disturbed(s, windows, 10.0) for s in samples] == [False, True, True]
    assert noise.disturbed(samples, windows, 10.0) == 2
    assert noise.disturbed(samples, windows, None) == 2


@pytest.mark.parametrize(
    ("disturbed", "rounds", "busy"),
    [(0, 5, False), (1, 5, False), (2, 5, True), (1, 3, True), (1, 4, False), (5, 21, False), (6, 21, True)],
)  # fmt: skip
def test_cell_is_busy_if_a_quarter_of_its_rounds_is_exceeded(
    disturbed: int, rounds: int, busy: bool
) -> None:
    assert noise.is_busy({"disturbed": disturbed, "rounds": rounds}) == busy


def test_row_of_an_old_report_is_not_busy() -> None:
    assert not noise.is_busy({"rounds": 5})


def test_typical_level_is_the_median() -> None:
    assert noise.typical_level([50.0, 10.0, None, 31.0, 20.0, 40.0]) == 31.0
    assert noise.typical_level([None]) is None


def test_summary_has_the_highest_readings_of_all_parts() -> None:
    def part(room: int, *windows: Window, reference: float) -> Part:
        rounds = [Round(1.0, 1, [(1.0, 1)], "", None, 0, 0.1, 0, ns) for ns in (10.0, reference)]
        return Part(room, [CellRecord("RW", "tree", 8, 1, None, {}, rounds)], list(windows))

    parts = [
        part(509, QUIET, replace(QUIET, others=0.3, switches=4), reference=10.0),
        part(32_764, replace(QUIET, load=7.0, stolen=None), reference=45.0),
    ]
    rows: Any = [{"disturbed": 5, "rounds": 5}, {"disturbed": 0, "rounds": 5}]
    assert noise.summary(parts, rows) == {
        "cells": 2, "busy_cells": 1, "load": 7.0, "others": 0.3, "stolen": 0.0, "switches": 6,
        "reference_ns": 10.0, "slower": 4.5,
    }  # fmt: skip


# ---- readings ------------------------------------------------------------------------------------


def test_window_has_the_processors_that_others_used() -> None:
    before = watch.Usage(10.0, 1.0, 100.0, 5.0, 7)
    after = watch.Usage(12.0, 2.5, 104.0, 5.4, 9)
    found = watch.window_between(509, 3, before, after)
    assert (found.n_slots, found.round, found.seconds) == (509, 3, 2.0)
    assert found.others == pytest.approx((4.0 - 1.5) / 2)
    assert found.stolen == pytest.approx(0.4 / 2)
    assert found.switches == 2
    unknown = watch.window_between(8, 0, before._replace(busy=None, stolen=None), after)
    assert (unknown.others, unknown.stolen) == (None, None)


def test_processor_times_are_user_nice_and_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.os, "sysconf", lambda name: 100)
    assert watch.processor_times("cpu  100 20 3 4000 5 6 7 80 0 0") == (1.23, 0.8)
    assert watch.processor_times("") == (None, None)
    assert watch.processor_times("intr 1 2 3 4 5 6 7 8 9") == (None, None)


def test_reference_loop_visits_each_line_once() -> None:
    reference = watch.Reference(64 * 100)
    lines = len(reference.chain) * 4 // 64
    assert lines == 256  # the power of two that holds twice the cache
    seen, at = set(), 0
    for _ in range(lines):
        seen.add(at)
        at = int(reference.chain[at])
    assert at == 0
    assert reference.lines == lines
    assert seen == {16 * i for i in range(lines)}
    assert reference.read() > 0


def test_first_pass_of_the_reference_loop_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads the lines that the cells have displaced."""
    reference = watch.Reference(64 * 100)
    passes = iter([(90 * reference.lines, 0), (10 * reference.lines, 0), (70 * reference.lines, 0)])
    monkeypatch.setattr(watch, "time_chase", lambda chain, steps: next(passes))
    assert reference.read() == 10


def reading(wall: float) -> watch.Usage:
    return watch.Usage(wall, 0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("earlier", "first", "end", "begin"),
    [
        ([97.0, 98.0, 99.0], 99.1, 100.5, 99.1),  # the round itself is long enough
        ([97.0, 98.9, 99.5, 99.9], 100.0, 100.5, 99.5),  # the last reading that gives a second
        ([98.6, 99.6, 99.9], 100.0, 100.5, 98.6),
        ([99.7, 99.9], 100.0, 100.5, 99.7),  # less than a second is known
        ([], 100.0, 100.5, 100.0),
        ([10.0], 100.0, 100.5, 100.0),  # of an earlier measurement
    ],
)
def test_window_of_a_short_round_begins_earlier(
    earlier: list[float], first: float, end: float, begin: float
) -> None:
    found = watch.begin_of([reading(wall) for wall in earlier], reading(first), end)
    assert found.wall == begin


def test_window_without_a_quarter_of_a_second_knows_no_processors() -> None:
    found = watch.window_between(8, 0, reading(1.0), reading(1.2)._replace(busy=5.0))
    assert (found.others, found.stolen) == (None, None)


def test_case_has_the_slower_reading_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases on two backends: the loop runs before, between and after them."""

    class Case(Replay):
        def __init__(self, name: str) -> None:
            self.names, self.n_slots = (name,), 8

        def refusal(self, backend: str, budget: Any) -> str | None:
            return None

        def run(self, run: Any) -> list[Sample]:
            return [Sample(self.names[0], 1.0, np.array([1.0]), 1, 1, "0")]

    class Scripted:
        times = iter([12.0, 30.0, 13.0])

        def read(self) -> float:
            return next(self.times)

    monkeypatch.setattr(watch, "reference", Scripted)
    counts = iter([5, 9, 9, 9, 20, 21, 21, 21])
    monkeypatch.setattr(watch, "switches", lambda: next(counts))
    monkeypatch.setattr(watch, "usage", lambda: reading(1.0))
    budget, results = Budget(0.001, 1.0, 1.0, 64, 4, 4), Results()
    cells = plan([Case("a"), Case("b")], ["tree", "array"], 1, budget, results)
    measure(cells, budget, results, lambda: None)
    found = {key[:2]: s[0] for key, s in results.samples.items()}
    assert {found["a", b].reference_ns for b in ("tree", "array")} == {30.0}
    assert {found["b", b].reference_ns for b in ("tree", "array")} == {30.0}
    assert sorted(s.switches or 0 for s in found.values()) == [0, 0, 1, 4]
    assert {s.window for s in found.values()} == {0}
    assert len(results.windows) == 1


BURN = """
import numpy as np
source = np.ones(8 << 20)
target = np.empty_like(source)
print("burning", flush=True)
while True:
    np.copyto(target, source)
"""


@pytest.mark.slow
@pytest.mark.skipif(not watch.STAT.exists(), reason="no /proc/stat")
def test_program_that_burns_memory_bandwidth_is_noticed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["perf", "--quick", "--no-kvm", "--only", "lookup/random/*", "--slots", "32764"]
    with subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE) as burner:
        try:
            assert burner.stdout is not None
            assert burner.stdout.readline() == b"burning\n"
            assert cli.main(command) == 0
        finally:
            burner.kill()
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("THE MACHINE WAS BUSY")
    assert sum(line.startswith("THE MACHINE WAS BUSY") for line in lines) == 2
    sentences = [p for p in out.replace("\n  ", " ").split("\n") if " faster (" in p]
    assert sentences
    undecided = "No row decides which design is faster ("
    assert all(
        p.startswith(undecided) or (": nowhere." in p and "or the machine was busy" in p)
        for p in sentences
    )


# ---- winners -------------------------------------------------------------------------------------


def rows(tree: list[float], array: list[float], disturbed: int = 0) -> dict[str, dict[str, Any]]:
    def row(values: list[float]) -> dict[str, Any]:
        median = float(np.median(values))
        quartiles = {"low": median, "high": median, "disturbed": disturbed}
        return {"values": values, "median": median, "rounds": len(values), **quartiles}

    return {"tree": row(tree), "array": row(array)}


@pytest.mark.parametrize(
    ("array", "interval", "winner"),
    [
        ([12.0, 13, 14, 15, 16], (1.2, 1.6), "tree"),
        ([11.0, 13, 14, 15, 16], (1.1, 1.6), "even"),  # 1.1 itself is not beyond 10 %
        ([8.9, 5, 6, 7, 8], (0.5, 0.89), "array"),
        ([9.0, 5, 6, 7, 8], (0.5, 0.9), "even"),
        ([30.0, 30, 30, 30, 10], (1.0, 3.0), "even"),
    ],
)
def test_winner_needs_the_whole_interval_beyond_ten_percent(
    array: list[float], interval: tuple[float, float], winner: str
) -> None:
    both = rows([10.0] * 5, array)
    assert duel.interval(both) == pytest.approx(interval)
    assert duel.winner(both) == winner
    assert duel.winner(rows([10.0] * 5, array, disturbed=2)) == "busy"
    assert duel.winner(rows([10.0] * 5, array, disturbed=1)) == winner


def test_interval_pairs_the_figures_of_each_round() -> None:
    """Both are twice as slow in every second round; the factor is the same in each."""
    both = rows([10.0, 20, 10, 20, 10], [15.0, 30, 15, 30, 15])
    assert duel.interval(both) == (1.5, 1.5)
    assert duel.winner(both) == "tree"


def test_interval_of_different_numbers_of_rounds_uses_the_common_ones() -> None:
    assert duel.interval(rows([10.0, 10, 1], [20.0, 30])) == (2.0, 3.0)


def test_interval_without_figures_of_rounds_uses_quartiles() -> None:
    both = {"tree": {"low": 8.0, "high": 10.0}, "array": {"low": 20.0, "high": 24.0}}
    assert duel.interval(both) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("n", "trimmed"), [(1, 0), (3, 0), (5, 0), (8, 0), (9, 1), (11, 2), (15, 3), (21, 5)]
)
def test_interval_leaves_out_extremes_if_there_are_many_rounds(n: int, trimmed: int) -> None:
    """The table of order statistics: with 21 rounds, values 6 to 16 enclose the median with 97.3 %."""
    assert duel.trimmed(n) == trimmed


def test_interval_of_many_rounds_ignores_an_outlier() -> None:
    array = [15.0] * 8 + [1.0]
    assert duel.interval(rows([10.0] * 9, array)) == (1.5, 1.5)


# ---- texts ---------------------------------------------------------------------------------------


def row(case: str, backend: str, n: int, ns: float, disturbed: int = 0, **more: Any) -> Any:
    spread = {"low": ns, "high": ns, "p50": ns, "p99": ns, "p999": ns, "values": [ns] * 5}
    cell = {"case": case, "backend": backend, "n_slots": n, "median": ns, "group": 1, "ops": 5}
    return {**cell, **spread, "rounds": 5, "disturbed": disturbed, "checked": True, **more}


def report(disturbed: int) -> Any:
    """unmap, where the array is slower, and RW, where it is faster; RW is disturbed."""
    results = [
        row("unmap", "tree", 32_764, 100.0),
        row("unmap", "array", 32_764, 5000.0),
        row("slot setup", "tree", 32_764, 100.0, disturbed),
        row("slot setup", "array", 32_764, 3000.0),
        row("RW", "tree", 32_764, 100.0),
        row("RW", "array", 32_764, 24.0, disturbed),
        row("lookup/hot/vm", "tree", 32_764, 60.0, disturbed),
        row("lookup/hot/vm", "tree+index", 32_764, 20.0),
    ]
    noise_row = {
        "cells": 8, "busy_cells": 3 if disturbed > 1 else 0, "load": 2.5, "others": 1.51, "stolen": 0.06,
        "switches": 41, "reference_ns": 14.0, "slower": 4.25,
    }  # fmt: skip
    crossover = {
        "case": "RW", "user_mem_slots": 509, "tree_from": 0.0, "array_wins_at": [2], "tree_wins_at": [],
        "busy_at": [8] if disturbed > 1 else [], "factors": {"2": 0.5, "8": 0.4},
    }  # fmt: skip
    return {
        "results": results, "slots": [32_764], "crossover": [crossover], "published": [], "not_run": [],
        "skipped": [], "wrong": [], "noise": noise_row, "seed": 1, "rounds": 5, "seconds": 9.0,
        "clock_ns": 20.0, "floor_ns": 50.0, "kvm_refused_ns": None,
    }  # fmt: skip


def test_busy_machine_is_named_at_the_top_and_at_the_bottom() -> None:
    lines = report_perf.text(report(disturbed=2)).splitlines()
    assert lines[0].startswith("THE MACHINE WAS BUSY: 3 of 8 cells were disturbed by other work")
    last = [i for i, line in enumerate(lines) if line.startswith("THE MACHINE WAS BUSY")][-1]
    assert last >= len(lines) - 6
    note = " ".join(" ".join(show.busy_note(report(disturbed=2))).split())
    assert (
        "In single rounds other processes used up to 1.5 processors, other machines took up to 0.1, the reference loop "
        "took up to 4.2 times as long as typically and the load was up to 2.5; there were 41 involuntary context "
        "switches."
    ) in note


def test_quiet_machine_is_not_mentioned() -> None:
    text = report_perf.text(report(disturbed=1))
    assert "BUSY" not in text
    assert "!" not in text


def cells_of(text: str, case: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.strip().startswith(case))
    return line.split()


def test_disturbed_cells_are_marked() -> None:
    text = report_perf.text(report(disturbed=2))
    marked = "100 ns ±0% !24.0 ns ±0% - 0.24 busy"
    assert cells_of(text, "RW")[1:] == marked.split()
    plain = "100 ns ±0% 5.00 us ±0% - 50.0 tree"
    assert cells_of(text, "unmap")[1:] == plain.split()
    assert ["RW", "*0.50", "!0.40"] in map(str.split, text.splitlines())
    assert ["lookup/hot/vm", "!3.00"] in map(str.split, text.splitlines())
    assert "!100 ns / 100 ns / 100 ns" in text  # the latencies of slot setup


def test_disturbed_cells_decide_nothing() -> None:
    text = report_perf.text(report(disturbed=2)).replace("\n  ", " ")
    assert "array / tree at 32,764 slots: unmap 50.0x (published 111x)\n" in text
    assert (
        "The array is faster (costs above): nowhere.  In all other rows of these tables the tree is faster, both are "
        "even, or the machine was busy."
    ) in text
    quiet = report_perf.text(report(disturbed=1)).replace("\n  ", " ")
    assert "unmap 50.0x (published 111x), slot setup 30.0x (published 27x)\n" in quiet
    assert (
        "The array is faster (costs above): RW at 32,764.  In all other rows of these tables the tree is faster, or "
        "both are even."
    ) in quiet


def test_nothing_is_said_about_winners_where_every_row_is_disturbed() -> None:
    rows = [
        row("RW", "tree", 8, 10.0, 5),
        row("RW", "array", 8, 1.0, 5),
        row("map", "list", 8, 1.0),
    ]
    crossing = {
        "case": "RW", "user_mem_slots": 509, "array_wins_at": [], "busy_at": [2, 4], "factors": {"2": 1.0, "4": 1.0}
    }  # fmt: skip
    found: Any = {"results": rows, "crossover": [crossing]}
    assert list(report_perf._array_wins(found)) == [
        "No row decides which design is faster (costs above): the machine was busy.",
        "No row decides which design is faster (array / tree, VM of 509 ids): the machine was busy.",
    ]
    found["crossover"][0]["busy_at"] = [2]
    assert ": nowhere." in list(report_perf._array_wins(found))[1]


def test_processors_that_no_other_machine_took_are_not_mentioned() -> None:
    found = report(disturbed=2)
    found["noise"]["stolen"] = 0.04
    assert "other machines" not in report_perf.text(found)


def test_disturbed_rows_of_a_new_design_are_counted_apart() -> None:
    rows = [
        row("RW", "tree", 8, 10.0),
        row("RW", "idea", 8, 1.0, 5),
        row("unmap", "tree", 8, 10.0),
        row("unmap", "idea", 8, 1.0),
    ]
    assert list(show.new_design_notes(rows)) == [
        "The design idea is faster than the tree in 1 of 1 rows: unmap at 8; slower in 0, even in 0.  1 more row: the "
        "machine was busy."
    ]


def test_scale_marks_disturbed_cells_and_names_the_busy_machine() -> None:
    found = report(disturbed=2)
    found.update(
        fits=[], selftest=[row("unmap", "tree", 32_764, 1.0, 5), row("unmap", "array", 32_764, 9.0)]
    )
    lines = report_scale.text(found).splitlines()
    assert lines[0].startswith("THE MACHINE WAS BUSY")
    assert sum(line.startswith("THE MACHINE WAS BUSY") for line in lines) == 2
    assert any("!9.00 (111)" in line for line in lines)
    assert any(line.split() == ["array", "!24.0", "ns"] for line in lines)


# ---- pictures ------------------------------------------------------------------------------------


def titles(results: list[Any]) -> tuple[str, str, str]:
    latency = pytest.importorskip("memslots.plot.latency")
    from memslots.plot import perf, rows, scale

    sizes = rows.by_size(results)
    lines = scale._quiet(scale._lines(results), results)
    return perf._perf_title(sizes), latency._latency_title(sizes), scale._scale_title(lines)


def test_titles_of_pictures_do_not_use_disturbed_cells() -> None:
    def results(disturbed: int) -> list[Any]:
        return [
            row(case, backend, n, ns * n, disturbed if case == "change/delete" else 0)
            for case in ("change/delete", "change/move")
            for n in (8, 64)
            for backend, ns in (("tree", 1.0), ("array", 7.0 if case == "change/delete" else 3.0))
        ]

    costs, latencies, growth = titles(results(disturbed=1))
    assert "takes 7.0" in costs
    assert "a delete" in latencies
    assert "a delete" in growth
    costs, latencies, growth = titles(results(disturbed=2))
    assert "takes 3.0" in costs
    assert "a move" in latencies
    assert "a move" in growth


def test_pictures_mark_disturbed_figures() -> None:
    plot = pytest.importorskip("memslots.plot.rows")
    busy, quiet = row("RW", "tree", 8, 1.0, 5), row("RW", "array", 8, 1.0)
    assert (plot.busy_mark(busy, quiet), plot.busy_mark(quiet)) == ("!", "")
    assert list(plot.busy_notes([quiet])) == []
    (note,) = plot.busy_notes([quiet, busy, quiet])
    assert note.startswith("THE MACHINE WAS BUSY: other work disturbed 1 of these 3 figures.")
