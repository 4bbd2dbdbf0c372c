# SPDX-License-Identifier: MIT
"""Verdicts about two versions: the tests, their correction, pairs and units, error rates, and the commands."""

import ast
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import ROOT, needs_tools, tool

from memslots import commands
from memslots.commands import cli

pytest.importorskip("scipy", reason="no scipy: make .venv/.with-verdict installs it")
pytest.importorskip("tabulate")

from memslots.commands import against
from memslots.report import verdicts as report_verdicts
from memslots.verdicts import builds, outcome, pool, processes, runs, suites
from memslots.verdicts.runs import Comparison, ComparisonError, Process


def logs(mean: float, spread: float, units: int = 40, names: int = 1, seed: int = 3) -> Any:
    """Logarithms with exactly this mean and this spread in each column."""
    drawn = np.random.default_rng(seed).normal(size=(units, names))
    drawn = (drawn - drawn.mean(axis=0)) / drawn.std(axis=0, ddof=1)
    return mean + spread * drawn


# ---- outcomes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "spread", "named"),
    [
        (0.0, 0.02, "equivalent"),
        (0.03, 0.02, "slower"),
        (-0.03, 0.02, "faster"),
        (0.01, 0.001, "equivalent"),  # certain, but too small to matter
        (0.03, 0.2, "inconclusive"),
        (0.0, 0.2, "inconclusive"),
        (0.5, 0.2, "slower"),
        (np.log(0.5), 0.2, "faster"),
    ],
)
def test_each_outcome(mean: float, spread: float, named: str) -> None:
    (found,) = outcome.verdicts(logs(mean, spread))
    assert found.outcome == named
    assert found.ratio == pytest.approx(np.exp(mean))
    assert found.low < found.ratio < found.high
    assert found.spread == pytest.approx(spread)


def test_probabilities_and_interval_are_those_of_the_t_test() -> None:
    """t = mean / (spread / sqrt(n)) = 2.5 with 24 degrees of freedom; the quantile 0.975 is 2.0639."""
    (found,) = outcome.verdicts(logs(0.05, 0.1, units=25))
    assert found.p_difference == pytest.approx(0.0197, abs=1e-4)
    edge = 2.0639 * 0.1 / 5
    assert (np.log(found.low), np.log(found.high)) == pytest.approx(
        (0.05 - edge, 0.05 + edge), abs=1e-5
    )


def test_equivalence_takes_the_worse_of_two_one_sided_tests() -> None:
    """The mean lies at 0.01: the upper edge log(1.02) is 0.0098 away, the lower edge 0.0298."""
    (found,) = outcome.verdicts(logs(0.01, 0.01, units=25))
    t = (np.log(1.02) - 0.01) / (0.01 / 5)
    from scipy import stats

    assert found.p_equivalence == pytest.approx(stats.t.sf(t, 24))
    assert outcome.verdicts(-logs(0.01, 0.01, units=25))[0].p_equivalence == pytest.approx(
        found.p_equivalence
    )


def test_holm_corrects_as_in_the_textbook() -> None:
    """4 tests: 0.005 x 4, 0.01 x 3, then 0.03 x 2, and 0.04 x 1 is raised to the value before."""
    found = outcome.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert found.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert outcome.holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0]
    both = outcome.holm(np.array([[0.01, 0.5], [0.5, 0.01]]))
    assert both.tolist() == [[0.02, 0.5], [0.5, 0.02]]


def test_correction_depends_on_the_number_of_rows() -> None:
    """p is 0.001 to 0.004: below ALPHA alone, above it as one of 40."""
    one = logs(0.03, 0.05, units=30)
    assert outcome.verdicts(one)[0].outcome == "slower"
    many = np.hstack([one, logs(0.0, 0.05, units=30, names=39)])
    assert outcome.verdicts(many)[0].outcome == "inconclusive"


def test_few_units_are_inconclusive_and_equal_figures_equivalent() -> None:
    assert outcome.verdicts(np.full((3, 1), 0.5))[0].outcome == "inconclusive"
    assert outcome.verdicts(np.full((1, 1), 0.5))[0].outcome == "inconclusive"
    (same,) = outcome.verdicts(np.zeros((4, 1)))
    assert (same.outcome, same.ratio, same.low, same.high) == ("equivalent", 1, 1, 1)
    (twice,) = outcome.verdicts(np.full((4, 1), np.log(2)))
    assert twice.outcome == "slower"
    assert outcome.verdicts(np.zeros((5, 0))) == []


def test_number_of_units_finds_the_effect() -> None:
    """One row at 5 %: a table of power gives 13 units for an effect of 1.1 spreads... and more for more rows."""
    assert outcome.units_needed(0.001, 1) == outcome.LEAST
    needed = [outcome.units_needed(spread, 10) for spread in (0.01, 0.02, 0.03, 0.05)]
    assert all(a < b for a, b in pairwise(needed))
    assert outcome.units_needed(0.03, 10) < outcome.units_needed(0.03, 100)
    rng = np.random.default_rng(5)
    n = outcome.units_needed(0.03, 1)
    drawn = rng.normal(np.log(1.03), 0.03, (4000, n, 1))
    found = np.mean(pool.outcomes_of(drawn) == "slower")
    assert 0.94 < found < 0.97
    drawn = rng.normal(np.log(1.03), 0.03, (4000, n - 2, 1))
    assert np.mean(pool.outcomes_of(drawn) == "slower") < found


# ---- pairs and units ------------------------------------------------------------------------------


def process(side: str, pair: int, unit: int, **benchmarks: float) -> Process:
    return Process(side, pair, unit, unit, 0, benchmarks)


def test_unit_has_the_least_time_of_each_side() -> None:
    """A disturbed process of either side does not count."""
    found = [
        process("A", 0, 0, x=1.0),
        process("B", 0, 0, x=2.0),
        process("B", 1, 0, x=8.0),
        process("A", 1, 0, x=1.0),
        process("A", 2, 1, x=9.0),
        process("B", 2, 1, x=1.5),
        process("A", 3, 1, x=3.0),
        process("B", 3, 1, x=7.0),
    ]
    assert runs.logs_of(found, ["x"]).tolist() == [
        [pytest.approx(np.log(2))],
        [pytest.approx(-np.log(2))],
    ]


def test_small_units_are_joined() -> None:
    found = [process(side, pair, pair // 2, x=1.0) for pair in range(10) for side in "AB"]
    comparison = Comparison("1", "compare", ".", ".", 1.0, None, found, [])
    assert runs.joined(comparison, 2) == comparison
    joined = runs.joined(comparison, 3).processes  # the fifth unit joins the last two
    assert [p.unit for p in joined] == [0] * 8 + [1] * 12
    assert [p.pair for p in joined] == [p.pair for p in found]
    with pytest.raises(ComparisonError, match="there are no processes"):
        runs.joined(Comparison("1", "compare", ".", ".", 1.0, None, [], []), 3)


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ([process("A", 0, 0)], "pair 0 has only side A"),
        ([process("A", 0, 0), process("A", 0, 0)], "pair 0 has side A twice"),
        ([process("A", 3, 0), process("C", 3, 0)], "pair 3 has side C twice or unknown"),
        ([process("A", 0, 0), process("B", 0, 1)], "pair 0 belongs to two units"),
    ],
)
def test_processes_without_pairs_are_refused(processes: list[Process], message: str) -> None:
    with pytest.raises(ComparisonError, match=message):
        runs.pairs_of(processes)


def test_table_has_the_benchmarks_of_all_processes() -> None:
    found = [
        p
        for i in range(6)
        for p in (process("A", i, i, x=2.0, only_a=1.0), process("B", i, i, x=4.0 + 1e-4 * i))
    ]
    comparison = Comparison("1", "compare", "a", "b", 1.0, None, found, [])
    (row,) = runs.table(comparison)
    assert (row.benchmark, row.a, row.b, row.outcome) == ("x", 2.0, 4.00025, "slower")
    assert row.ratio == pytest.approx(2.000125, abs=1e-6)


def test_comparison_is_read_again(tmp_path: Path) -> None:
    found = Comparison(
        "1", "compare", "a", "b", 1.0, None, [process("A", 0, 0, x=1.0)], ["y: failed"]
    )
    file = tmp_path / "c.json"
    with pytest.MonkeyPatch.context():
        from dataclasses import asdict

        file.write_text(json.dumps({**asdict(found), "rows": []}))
        assert runs.read(file) == found
        import gzip

        packed = tmp_path / "c.json.gz"
        packed.write_bytes(gzip.compress(file.read_bytes()))
        assert runs.read(packed) == found
    for bad in ("[]", "{}", "no"):
        file.write_text(bad)
        with pytest.raises(ComparisonError, match="is no comparison"):
            runs.read(file)


# ---- the order of processes -----------------------------------------------------------------------


def test_sides_alternate_and_units_share_their_link_orders() -> None:
    planned = list(processes.plan(units=3, orders=2, pairs=2))
    assert "".join(p.side for p in planned) == "ABBAABBAABBA"
    assert [p.pair for p in planned] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [p.unit for p in planned] == [0] * 4 + [1] * 4 + [2] * 4
    assert [p.order for p in planned] == [0] * 4 + [1] * 4 + [0] * 4
    assert len({p.environment for p in planned}) > 6
    assert list(processes.plan(3, 2, 2)) == planned


def test_process_sees_its_version_and_its_environment(tmp_path: Path) -> None:
    sites = [tmp_path / "a", tmp_path / "b"]
    version = builds.Version("x", sites)
    found = processes.environment(processes.Planned("B", 7, 3, 1, 48), {"B": version})
    assert (found["PYTHONPATH"], found["PYTHONHASHSEED"]) == (str(sites[1]), "8")
    assert found["MEMSLOTS_PADDING"] == "x" * 48


def test_relinked_command_has_the_objects_in_their_order(tmp_path: Path) -> None:
    command = ["cc", "-shared", "-o", "_m.so", "m.o", "libmemslots.a", "-lpthread"]
    output = tmp_path / "out.so"
    assert builds.relinked(command, ["b.o", "a.o"], output) == [
        *("cc", "-shared", "-o", str(output), "m.o", "b.o", "a.o", "-lpthread", "-s")
    ]


def test_unknown_commit_is_refused() -> None:
    with pytest.raises(builds.BuildError, match="git knows no commit 'no-such'"):
        builds.commit_of(ROOT, "no-such")


def test_folder_outside_of_a_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(builds.BuildError, match="is not in a git checkout"):
        builds.checkout(tmp_path)


def test_work_measures_the_installed_package() -> None:
    import memslots

    site = Path(memslots.__file__).parents[1]
    version = builds.Version("here", [site])
    work = processes.short_work({"A": version}, 0.02, "id/vm")
    found = work(processes.Planned("A", 0, 0, 0, 16))
    assert list(found) == ["lookup/id/vm at 4,096"]
    assert 0 < found["lookup/id/vm at 4,096"] < 1


def test_failed_process_is_named(tmp_path: Path) -> None:
    (tmp_path / "memslots.py").write_text("raise ImportError('no engine')")
    work = processes.short_work({"A": builds.Version("old", [tmp_path])}, 0.02, None)
    with pytest.raises(
        processes.ProcessError, match=r"old: a measured process failed with 1: .*no engine"
    ):
        work(processes.Planned("A", 0, 0, 0, 0))


def test_work_checks_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from memslots.verdicts import work

    def time_lookups(*args: Any, **kwargs: Any) -> Any:
        ns, answers = right(*args, **kwargs)
        answers[5] += np.uint64(1)
        return ns, answers

    right = work.time_lookups
    monkeypatch.setattr(work, "time_lookups", time_lookups)
    for name in ("lookup/hot/vm at 509", "lookup/id/vm at 4,096", "lookup/hva/vm at 4,096"):
        with pytest.raises(work.WrongAnswerError, match="1 of 8192 answers are wrong"):
            list(work.measure([name], 0.001))


def test_figure_is_the_time_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock may have steps of 10 ns.  A step of a group of 64 hot lookups was 3 % of its time."""
    from memslots.verdicts import work

    def lookups(*args: Any, group: int) -> Any:
        _, answers = right_lookups(*args, group=group)
        return [5000 * group] * 3, answers

    def changes(*args: Any, group: int) -> Any:
        _, results = right_changes(*args, group=group)
        return [7000 * group] * 3, results

    right_lookups, right_changes = work.time_lookups, work.time_changes
    monkeypatch.setattr(work, "time_lookups", lookups)
    monkeypatch.setattr(work, "time_changes", changes)
    names = [n for n in work.CASES if "batch" not in n and "python" not in n]
    for name, seconds in work.measure(names, 0.0):
        assert seconds == pytest.approx(7e-6 if name.startswith("change") else 5e-6), name
    assert work.LOOKUPS % work.GROUP == work.CHANGES % work.CHANGE_GROUP == 0
    assert work.GROUP * 4e-9 > 500 * 10e-9  # no lookup takes less than 4 ns
    assert work.CHANGE_GROUP * 100e-9 > 500 * 10e-9


def test_first_pass_of_a_turn_is_not_timed() -> None:
    from memslots.verdicts import work

    passes = iter([[1000.0], [5.0, 7.0, 90.0]])
    assert work.turn(lambda: next(passes), 0) == 7.0
    assert next(passes, None) is None


def test_figure_of_a_case_is_the_lower_tenth_of_its_turns() -> None:
    from memslots.verdicts import work

    assert work.low([float(t) for t in range(30, 0, -1)]) == 4.0
    assert work.low([2.0, 9.0] + [5.0] * 14) == 5.0
    assert work.low([3.0]) == 3.0


def test_cases_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """All turns of one case in a row would share a disturbance."""
    from memslots.verdicts import work

    calls: list[str] = []

    def case(name: str, ns: float) -> Any:
        def once() -> list[float]:
            calls.append(name)
            return [ns + calls.count(name)]

        return lambda vm: once

    cases = {name: (8, "off", case(name, ns)) for name, ns in (("a", 0.0), ("b", 100.0))}
    monkeypatch.setattr(work, "CASES", cases)
    found = dict(work.measure(["a", "b"], 0.0))
    assert "".join(calls) == "aabb" * work.TURNS
    timed = [2.0 * (i + 1) for i in range(work.TURNS)]
    assert found == {"a": timed[1] / 1e9, "b": (100 + timed[1]) / 1e9}


def test_work_imports_only_names_of_the_old_package() -> None:
    """The same list as for bench/suite: work.py also runs on commit 339614a."""
    source = (ROOT / "src" / "memslots" / "verdicts" / "work.py").read_text(encoding="utf-8")
    known = json.loads((ROOT / "bench" / "suite" / "names.json").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    of_package = {
        node.module: node for node in imports if (node.module or "").startswith("memslots")
    }
    assert set(of_package) == {"memslots", "memslots._memslots"}
    for module, node in of_package.items():
        assert {alias.name for alias in node.names} <= set(known[module])
    used = set(re.findall(r"\bvm\.(\w+)", source))
    assert used <= set(known["memslots.VM"])
    assert "load_memslots" in used


# ---- error rates ----------------------------------------------------------------------------------


def invented_pool(spread: float, units: int = 100, names: int = 3) -> Comparison:
    """A pool with normal noise of this spread in each unit; two pairs with the same noise make a unit."""
    rng = np.random.default_rng(11)
    found = []
    for unit in range(units):
        noise = {side: np.exp(rng.normal(0, spread / np.sqrt(2), names)) for side in "AB"}
        for pair in (2 * unit, 2 * unit + 1):
            for side, times in noise.items():
                benchmarks = {f"b{i}": float(t) for i, t in enumerate(times)}
                found.append(Process(side, pair, unit, unit % 5, 0, benchmarks))
    return Comparison("1", "compare", ".", ".", 400.0, None, found, [])


def test_rates_of_a_pool_with_known_noise() -> None:
    """Normal noise: a whole table has a false alarm with about ALPHA, and the computed number of pairs finds 3 %."""
    made = invented_pool(0.03)
    spreads = pool.spreads(made)
    assert [s.benchmark for s in spreads] == ["b0", "b1", "b2"]
    assert all(s.spread == pytest.approx(0.03, rel=0.2) for s in spreads)
    pairs = max(s.pairs for s in spreads)
    found = pool.rates(made, pairs, 3000)
    assert found.pairs == pairs
    assert found.false_alarms < 0.01
    assert found.false_alarms < found.upper < 0.012
    assert min(found.found) > 0.93
    assert found.seconds == pytest.approx(pairs * 2 * 1.0)
    fewer = pool.rates(made, pairs // 2, 3000)
    assert max(fewer.found) < min(found.found)


def test_rates_of_a_pool_without_noise() -> None:
    found = pool.rates(invented_pool(0.0), 16, 200)
    assert (found.false_alarms, found.equivalent, found.found) == (0, 1, [1, 1, 1])


def test_table_with_one_false_alarm_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three rows one is "slower" in every experiment: each table has a false alarm."""

    def outcomes_of(drawn: Any) -> Any:
        return np.tile(np.array(["equivalent", "slower", "inconclusive"]), (len(drawn), 1))

    monkeypatch.setattr(pool, "outcomes_of", outcomes_of)
    found = pool.rates(invented_pool(0.01), 16, 100)
    assert (found.false_alarms, found.upper) == (1, 1)
    assert found.equivalent == pytest.approx(1 / 3)


def test_sides_of_whole_units_change_places() -> None:
    rows = np.array([[1.0, 10.0], [2.0, 20.0]])
    drawn = pool.draw(rows, 500, 4, np.random.default_rng(1))
    assert drawn.shape == (500, 4, 2)
    assert (drawn[..., 1] == 10 * drawn[..., 0]).all()
    assert set(np.unique(drawn[..., 0])) == {-2.0, -1.0, 1.0, 2.0}
    assert abs(drawn[..., 0].mean()) < 0.2


def test_bound_of_no_false_alarm_is_not_zero() -> None:
    """0 of 1,000: the upper 95 % bound is 1 - 0.05 ** (1 / 1,000), about 3 in 1,000."""
    found = pool.rates(invented_pool(0.0), 16, 1000)
    assert found.upper == pytest.approx(0.00299, abs=1e-5)


def test_small_pool_is_named() -> None:
    made = invented_pool(0.01, units=20)
    assert list(pool.complaints(made)) == ["80 processes, 400 are needed"]
    few = [p for p in made.processes if p.order < 3]
    reasons = list(pool.complaints(Comparison("1", "c", ".", ".", 1.0, None, few, [])))
    assert reasons[1:] == [f"3 link orders of side {side}, 4 are needed" for side in "AB"]
    assert list(pool.complaints(invented_pool(0.01))) == []


def test_text_of_rates_names_the_pairs_that_keep_the_promises() -> None:
    made = invented_pool(0.03)
    rates = [
        pool.Rates(16, 1000, 0.002, 0.006, 0.1, [0.5, 0.7], 30.0),
        pool.Rates(36, 1000, 0.001, 0.004, 0.9, [0.96, 0.99], 70.0),
        pool.Rates(100, 1000, 0.02, 0.03, 1.0, [1.0, 1.0], 200.0),
    ]
    text = report_verdicts.rates_text(made, [pool.Spread("b0", 0.0213, 36)], rates)
    lines = [line.split() for line in text.splitlines()]
    assert ["b0", "2.13%", "36"] in lines
    assert ["16", "30", "s", "0.20%", "0.60%", "50.0%", "60.0%", "10.0%"] in lines
    assert "36 pairs (70 s) keep both promises" in text.replace("\n  ", " ")
    none = report_verdicts.rates_text(made, [], rates[::2])
    assert "NO number of pairs in this table keeps both promises" in none.replace("\n  ", " ")


@needs_tools
def test_tool_computes_rates_from_a_recorded_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import asdict

    module = tool("error_rates")
    made = invented_pool(0.01)
    monkeypatch.setattr(module.against, "compare", lambda *args: made)
    file = tmp_path / "pool.json.gz"
    assert module.main(["record", str(file)]) == 0
    assert runs.read(file) == made
    assert module.main(["rates", str(file), "--experiments", "2000", "--json"]) == 0
    capsys.readouterr()
    assert module.main(["rates", str(file), "--experiments", "300", "--pairs", "8"]) == 1
    assert "error rates: NO number" in capsys.readouterr().out
    small = tmp_path / "small.json"
    small.write_text(json.dumps(asdict(invented_pool(0.0, units=20))))
    assert module.main(["rates", str(small), "--experiments", "100"]) == 1
    assert "TOO SMALL: 80 processes" in capsys.readouterr().out
    small.write_text(json.dumps(asdict(invented_pool(0.0, units=5))))
    with pytest.raises(SystemExit, match="the pool has 1 units, 4 are needed"):
        module.main(["rates", str(small)])


@needs_tools
def test_recorded_rates_follow_from_the_recorded_pool() -> None:
    """A part of the experiments is drawn again; its shares are those of the record, within their own uncertainty."""
    folder = ROOT / "docs" / "results" / "error-pool"
    recorded = json.loads((folder / "rates.json").read_text(encoding="utf-8"))
    made = tool("error_rates").pool_of(folder / "pool.json.gz")
    assert recorded == {
        **tool("error_rates").as_report(folder / "pool.json.gz", made, pool.spreads(made), []),
        "rates": recorded["rates"],
    }
    assert list(pool.complaints(made)) == []
    rates = next(row for row in recorded["rates"] if row["kept"])
    drawn = pool.rates(made, rates["pairs"], count := 500)
    assert drawn.seconds == rates["seconds"]
    assert drawn.false_alarms <= rates["upper"] + 5 * np.sqrt(rates["upper"] / count)
    uncertainty = 5 * np.sqrt(0.25 / count)
    assert drawn.found == pytest.approx(rates["found"], abs=uncertainty)
    assert drawn.equivalent == pytest.approx(rates["equivalent"], abs=uncertainty)


# ---- memslots verdict -----------------------------------------------------------------------------


def suite_file(path: Path, **medians: float) -> str:
    rows = [
        {"name": n, "fullname": f"bench.py::{n}", "stats": {"median": m}}
        for n, m in medians.items()
    ]
    path.write_text(json.dumps({"benchmarks": rows}))
    return str(path)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[list[str], list[str]]:
    a = [suite_file(tmp_path / f"a{i}.json", up=1e-6 + i * 1e-9, same=1e-3) for i in range(5)]
    b = [
        suite_file(tmp_path / f"b{i}.json", up=2e-6 - i * 1e-9, same=1e-3, new=1.0)
        for i in range(5)
    ]
    return a, b


def test_two_sets_of_files_give_a_table(
    sets: tuple[list[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets
    assert cli.main(["verdict", *a, "--", *b]) == 1
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "bench.py::up 1.00 us 2.00 us 1.994 1.988 to 2.000 slower" in lines
    assert "bench.py::same 1.00 ms 1.00 ms 1.000 1.000 to 1.000 equivalent" in lines
    assert "left out: bench.py::new: not in 5 of 10 files" in out
    last = "verdict: 2 benchmarks: faster 0, slower 1, equivalent 1, inconclusive 0"
    assert out.splitlines()[-1] == last
    assert cli.main(["verdict", *b, "--", *a]) == 0
    assert "faster 1, slower 0" in capsys.readouterr().out


def test_json_of_a_verdict_can_be_read_again(
    sets: tuple[list[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets
    assert cli.main(["verdict", *a, "--versus", *b, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [row["outcome"] for row in printed["rows"]] == ["slower", "equivalent"]
    file = tmp_path / "verdict.json"
    file.write_text(json.dumps(printed))
    assert cli.main(["verdict", str(file), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rows"] == printed["rows"]


def test_sets_of_different_size_are_refused(
    sets: tuple[list[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets
    for words, message in (
        ([*a, "--", *b[:3]], "5 files before -- and 3 after it"),
        ([*a], "two sets of files are needed"),
        ([a[0]], "is no comparison"),
        ([a[0], "--", str(ROOT / "README.md")], "is no file of pytest-benchmark"),
        ([a[0], "--", "no such file"], "no such file"),
    ):
        assert cli.main(["verdict", *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err.replace("\n  ", " ")


def test_sets_without_a_common_benchmark_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = suite_file(tmp_path / "a", x=1.0), suite_file(tmp_path / "b", y=1.0)
    assert cli.main(["verdict", a, "--", b]) == 2
    assert "no benchmark in common" in capsys.readouterr().err
    zero = suite_file(tmp_path / "c", x=0.0)
    assert cli.main(["verdict", a, "--", zero]) == 2
    assert "the median of bench.py::x is 0.0" in capsys.readouterr().err


def test_file_pairs_keep_their_order(tmp_path: Path) -> None:
    a = [Path(suite_file(tmp_path / f"a{i}", x=10.0**i)) for i in range(3)]
    b = [Path(suite_file(tmp_path / f"b{i}", x=2 * 10.0**i)) for i in range(3)]
    found = suites.comparison(a, b)
    assert runs.logs_of(found.processes, ["bench.py::x"]) == pytest.approx(np.log(2))


# ---- perf --against -------------------------------------------------------------------------------


def test_report_names_the_commit_to_compare_with(tmp_path: Path) -> None:
    file = tmp_path / "perf.json"

    def report(**source: Any) -> None:
        file.write_text(json.dumps({"machine": {"source": source}}))

    assert against.commit_in(tmp_path / "HEAD") is None
    report(commit="abc", dirty=False)
    assert against.commit_in(file) == "abc"
    for source, message in (
        ({"commit": "abc", "dirty": True}, "changed files on top of commit abc"),
        ({"commit": None, "dirty": None}, "outside of git"),
    ):
        report(**source)
        with pytest.raises(against.UsageError, match=message):
            against.commit_in(file)
    file.write_text("{}")
    with pytest.raises(against.UsageError, match="names no commit"):
        against.commit_in(file)


def test_against_measures_pairs_and_writes_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(root: Path, name: str, side: str, orders: int, say: Any) -> builds.Version:
        built.append((name, side, orders))
        return builds.Version(name, [Path(f"{side}{i}") for i in range(orders)])

    def short_work(versions: Any, seconds: float, only: str | None) -> processes.Work:
        return lambda planned: {"x": 1.0 if planned.side == "A" else 1.05 + planned.pair * 1e-5}

    monkeypatch.setattr(builds, "build", build)
    monkeypatch.setattr(builds, "checkout", lambda start: ROOT)
    monkeypatch.setattr(processes, "short_work", short_work)
    file = tmp_path / "out.json"
    assert cli.main(["perf", "--against", "abc", "--rounds", "25", "-o", str(file)]) == 1
    assert built == [("abc", "A", 5), (".", "B", 5)]  # 25 pairs, in units of 6
    out = capsys.readouterr().out
    assert "A = abc, B = .: 30 pairs of processes in 5 units." in out
    assert ["x", "1.00", "s", "1.05", "s", "1.050", "1.050", "to", "1.050", "slower"] in [
        line.split() for line in out.splitlines()
    ]
    assert len(runs.read(file).processes) == 60


def test_against_an_unknown_commit_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["perf", "--against", "no-such-commit"]) == 2
    assert "git knows no commit" in capsys.readouterr().err


def test_missing_library_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("scipy", "memslots.verdicts", "memslots.report.verdicts", "memslots.commands.verdict")
    for name in [n for n in sys.modules if n.startswith((*parts, "memslots.commands.against"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.delattr(commands, "against", raising=False)
    assert cli.main(["perf", "--against", "HEAD"]) == 2
    assert "pip install 'memslots[verdict]'" in capsys.readouterr().err.replace("\n  ", " ")
