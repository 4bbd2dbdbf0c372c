# SPDX-License-Identifier: MIT
"""`memslots perf`: its report follows docs/perf-json.md and depends only on the seed; a wrong answer makes it fail."""

import json
import re
import sys
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from typed_json import faults

import memslots
from memslots import kvm
from memslots.commands import cli, perf
from memslots.lab import costs, fingerprint, layouts, peers, sample, schema, subjects
from memslots.lab.case import Budget
from memslots.lab.schema import PerfReport, ScaleReport
from memslots.lab.subjects import INDEXED, Engine
from memslots.measure import crossover, fit, published
from memslots.measure.rounds import Results, measure, plan
from memslots.report import perf as report_perf
from memslots.report import scale as report_scale
from memslots.report import show, tables

DOCS = Path(__file__).parents[2] / "docs" / "perf-json.md"


def assert_row(row: dict[str, Any]) -> None:
    assert row["unit"] == "ns"
    assert row["ops"] >= row["rounds"] >= 1
    assert 0 <= row["low"] <= row["median"] <= row["high"]
    assert 0 <= row["p50"] <= row["p99"] <= row["p999"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch)


def make_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the command measure less."""
    budget = Budget(0.001, 1.0, 1.0, 256, 16, 64)
    monkeypatch.setattr(perf, "QUICK", perf.Mode("quick", (8, 40), 1, budget))
    monkeypatch.setattr(crossover, "SIZES", {509: (2, 8), 32_764: (2, 8)})
    monkeypatch.setattr(crossover, "BUDGET", budget)


def run(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any], str]:
    """Returns the exit code, the report and stderr; stdout must be exactly one JSON object."""
    code = cli.main(["perf", "--quick", "--json", "--no-kvm", *more])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def wrong_cases(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(wrong["case"], wrong["backend"]) for wrong in report["wrong"]}


# ---- the report ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_report_follows_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, report, err = run(capsys)
    assert (code, err) == (0, "")
    assert faults(report, PerfReport) == []
    for row in report["results"]:
        assert_row(row)
        assert row["checked"]
    assert report["wrong"] == []
    assert report["command"] == "perf"
    assert report["seed"] == layouts.SEED
    assert report["slots"] == [8, 40]


@pytest.mark.usefixtures("tiny")
def test_report_has_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(capsys)[1]["results"]
    cells = {(row["case"], row["backend"], row["n_slots"]) for row in rows}
    for backend in memslots.backends():
        for n in (8, 40):
            tests = ("map", "unmap", "unmap chunked", "move active area", "move inactive area")
            for case in (*tests, "RW", "slot setup", "change/create", "change/log off"):
                assert (case, backend, n) in cells
            for pattern in ("hot", "sequential", "random", "misses"):
                for level in ("vm", "vcpu", "batch", "python"):
                    assert (f"lookup/{pattern}/{level}", backend, n) in cells
        assert ("scenario/migration", backend, None) in cells
        assert ("replay/create", backend, None) in cells
    assert ("lookup/misses/batch", "numpy argsort", 40) in cells
    assert ("lookup/misses/python", "bisect", 40) in cells
    by_gfn = {(case, n) for case, backend, n in cells if is_by_gfn(case) and backend == "tree"}
    assert len(by_gfn) == 2 * 18
    assert {(case, n) for case, backend, n in cells if backend == INDEXED} == by_gfn


def is_by_gfn(case: str) -> bool:
    return case.startswith("lookup/") and case != "lookup/id/vm"


def test_document_names_exactly_the_keys_of_the_report() -> None:
    """The first column of each table names keys; the rows of `not_run` and `wrong` name the keys of their objects."""
    lines = [line.split(" | ") for line in DOCS.read_text(encoding="utf-8").splitlines()]
    names = [
        [re.findall(r"`(\w+)`", cell) for cell in line] for line in lines if line[0][:2] == "| "
    ]
    kinds = (schema.Row, schema.CrossoverRow, schema.FitRow, schema.PublishedRow, schema.NoiseRow)
    keys = {key for kind in (PerfReport, ScaleReport, *kinds) for key in get_type_hints(kind)}
    keys |= set(get_type_hints(fingerprint.Machine)) | {"caches"}
    assert {name for first, *_ in names for name in first} == keys
    last = {line[0][0]: set(line[-1]) for line in names if line[0]}
    assert last["not_run"] == set(get_type_hints(schema.NotRun))
    assert last["wrong"] == set(get_type_hints(schema.WrongAnswer))


FAULTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda r: r.pop("seed"), "the object lacks seed"),
    (lambda r: r.update(other=1), "the object has other, which is unknown"),
    (lambda r: r.update(seconds="1"), "the object.seconds is '1', not of <class 'float'>"),
    (lambda r: r.update(seed=True), "the object.seed is True, not of <class 'int'>"),
    (lambda r: r["slots"].append(None), "the object.slots[2] is None, not of <class 'int'>"),
    (lambda r: r["results"][1].pop("p50"), "the object.results[1] lacks p50"),
]


@pytest.mark.usefixtures("tiny")
def test_each_fault_of_the_schema_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    right = run(capsys, "--only", "unmap")[1]
    for change, fault in FAULTS:
        report = deepcopy(right)
        change(report)
        assert faults(report, PerfReport) == [fault]


@pytest.mark.usefixtures("tiny")
def test_seed_determines_lookups_and_answers(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(seed: str) -> dict[tuple[Any, ...], tuple[str, int]]:
        report = run(capsys, "--only", "lookup/", "--seed", seed)[1]
        return {
            (r["case"], r["backend"], r["n_slots"]): (r["digest"], r["ops"])
            for r in report["results"]
        }

    one, same, other = shown("1"), shown("1"), shown("2")
    assert one == same
    assert one.keys() == other.keys()
    assert all(one[key] != other[key] for key in one)


@pytest.mark.usefixtures("tiny")
def test_backends_with_the_same_operations_have_the_same_digest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    digests: dict[tuple[str, int | None, int], set[str]] = {}
    backends: dict[tuple[str, int | None, int], int] = {}
    for row in run(capsys)[1]["results"]:
        key = (row["case"], row["n_slots"], row["ops"])
        digests.setdefault(key, set()).add(row["digest"])
        backends[key] = backends.get(key, 0) + 1
    assert all(len(found) == 1 for found in digests.values())
    assert max(backends.values()) >= len(memslots.backends())


@pytest.mark.usefixtures("tiny")
def test_options_select_cases_sizes_and_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    report = run(capsys, "--only", "unmap", "--slots", "16,9", "--rounds", "2")[1]
    assert {row["case"] for row in report["results"]} == {"unmap", "unmap chunked"}
    assert {row["n_slots"] for row in report["results"]} == {9, 16}
    assert {row["rounds"] for row in report["results"]} == {2}
    assert {row["case"] for row in report["crossover"]} == {"unmap"}


@pytest.mark.usefixtures("tiny")
def test_text_output_has_its_tables_and_writes_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    assert cli.main(["perf", "--quick", "--no-kvm", "-o", str(file)]) == 0
    out = capsys.readouterr().out
    for words in ("40 slots", "array / tree", "move active area", "p99.9", "bisect", "migration"):
        assert words in out
    assert re.search(r"^40 slots +tree +array +list.* +tree\+index +array / tree$", out, re.M)
    assert re.search(r"^tree / tree\+index, by slots +8 +40$", out, re.M)
    assert "tree+index: the tree with an index" in out
    assert "the real kernel: --no-kvm" in out
    assert "0 cells with wrong answers" in out
    assert faults(json.loads(file.read_text()), PerfReport) == []


@pytest.mark.usefixtures("tiny")
def test_output_mentions_the_index_only_if_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["perf", "--quick", "--no-kvm", "--only", "unmap"]) == 0
    assert INDEXED not in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_pictures_are_drawn_next_to_the_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "perf.png"
    code, report, err = run(capsys, "--only", "unmap", "--picture", str(picture))
    assert (code, report["wrong"]) == (0, [])
    latencies = tmp_path / "perf-latency.png"
    assert err.splitlines() == [f"memslots: picture: {path}" for path in (picture, latencies)]
    assert sorted(tmp_path.iterdir()) == [latencies, picture]


@pytest.mark.parametrize(
    "arguments",
    [["--only", "no such case"], ["--slots", "1"], ["--slots", "32765"], ["--rounds", "0"],
     ["--quick", "--full"], ["-o", "no such folder/perf.json"]],
)  # fmt: skip
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["perf", *arguments]) == 2
    assert capsys.readouterr().out == ""


# ---- skipped subjects ---------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_report_names_each_skipped_subject(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sortedcontainers", "intervaltree"):
        monkeypatch.setitem(sys.modules, module, None)
    report = run(capsys, "--only", "lookup/misses/python")[1]
    assert report["skipped"] == [
        "the real kernel: --no-kvm",
        "peer SortedDict: sortedcontainers is not installed",
        "peer intervaltree: intervaltree is not installed",
    ]
    assert {r["backend"] for r in report["results"]} == {*memslots.backends(), INDEXED, "bisect"}


@pytest.mark.usefixtures("tiny")
@pytest.mark.skipif(kvm.available() is not None, reason="needs /dev/kvm")
def test_kernel_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["perf", "--quick", "--json", "--only", "[mc]*move", "--slots", "8"]
    code = cli.main(arguments)
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["kvm_refused_ns"] > 0
    of_kernel = {row["case"] for row in report["results"] if row["backend"] == "kvm"}
    assert "change/move" in of_kernel


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_peers_agree_with_the_engine(name: str) -> None:
    peer = peers.PEERS[name]
    if peer.needs:
        pytest.importorskip(peer.needs)
    slots = layouts.uniform(50)
    slots["base_gfn"] += np.uint64(10)  # make room for gfns below the first slot
    gfns = np.concatenate([np.arange(12, dtype=np.uint64), layouts.misses(slots, 500)])
    expected = layouts.expected_hvas(slots, gfns)
    ask = peer.make(slots)
    if peer.level == "batch":
        out = np.zeros_like(gfns)
        ask(gfns, out)
        assert (out == expected).all()
    else:
        assert [ask(int(gfn)) for gfn in gfns] == expected.tolist()


# ---- wrong answers ------------------------------------------------------------------------------


class OffByOnePage(memslots.VM):
    """Gives wrong answers from one call only."""

    def gfn_to_hva_many(self, *args: Any, **kwargs: Any) -> Any:
        answers = super().gfn_to_hva_many(*args, **kwargs)
        answers += np.uint64(4096)
        return answers


class OffByOneInOne(memslots.VM):
    def gfn_to_hva(self, gfn: Any, as_id: Any = 0) -> int:
        return super().gfn_to_hva(gfn, as_id) + (4096 if gfn % 7 == 3 else 0)


class Raises(memslots.VM):
    def gfn_to_hva_many(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no answer at all")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("kind", "case", "what"),
    [
        (OffByOnePage, "lookup/random/batch", "answers are wrong"),
        (OffByOneInOne, "lookup/sequential/python", "answers are wrong"),
        (Raises, "lookup/random/batch", "no answer at all"),
    ],
)
def test_wrong_answers_of_a_vm_make_the_command_fail(
    kind: type[memslots.VM],
    case: str,
    what: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subjects, "VM", kind)
    code, report, err = run(capsys, "--only", case)
    assert code == 1
    assert wrong_cases(report) == {(case, name) for name in (*memslots.backends(), INDEXED)}
    assert case in err
    assert what in err
    assert not any(row["checked"] for row in report["results"] if row["backend"] == "tree")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("failing", [("array",), ("tree",), memslots.backends()])
def test_design_that_always_raises_makes_the_command_fail(
    failing: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises at every number of slots, so the crossover has nothing to compare."""

    def time_lookups(vm: Any, *args: Any, **kwargs: Any) -> Any:
        if vm.backend in failing:
            raise RuntimeError("no answer at all")
        return right(vm, *args, **kwargs)

    right = subjects.time_lookups
    monkeypatch.setattr(subjects, "time_lookups", time_lookups)
    code, report, err = run(capsys, "--only", "unmap")
    assert code == 1
    assert {("unmap", name) for name in failing} <= wrong_cases(report)
    assert {backend for _, backend in wrong_cases(report)} == set(failing)
    assert {row["backend"] for row in report["results"]} == {*memslots.backends()} - {*failing}
    assert report["crossover"] == []
    assert "no answer at all" in err
    assert cli.main(["perf", "--quick", "--no-kvm", "--only", "unmap"]) == 1
    assert "no answer at all" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_wrong_answers_in_one_case_do_not_stop_the_other_cases(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "VM", OffByOnePage)
    code, report, _ = run(capsys, "--only", "lookup/random")
    assert code == 1
    checked = {row["case"]: row["checked"] for row in report["results"]}
    assert checked == {
        "lookup/random/vm": True,
        "lookup/random/vcpu": True,
        "lookup/random/batch": False,
        "lookup/random/python": True,
    }


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("what", ["hva_range", "id_to_memslot", "gfn_to_hva"])
def test_wrong_answers_from_c_make_the_command_fail(
    what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_lookups(vm: Any, asked: str, *args: Any, **kwargs: Any) -> Any:
        ns, answers = right(vm, asked, *args, **kwargs)
        if asked == what and vm.backend == "array":
            answers[-1] += np.uint64(1)
        return ns, answers

    right = subjects.time_lookups
    monkeypatch.setattr(subjects, "time_lookups", time_lookups)
    code, report, err = run(capsys)
    assert code == 1
    found = {case for case, _ in wrong_cases(report)}
    assert {backend for _, backend in wrong_cases(report)} == {"array"}
    wanted = {
        "hva_range": {"map", "unmap", "unmap chunked"},
        "id_to_memslot": {"lookup/id/vm"},
        "gfn_to_hva": {"map", "RW", "move active area", "lookup/hot/vcpu", "lookup/misses/vm"},
    }[what]
    assert wanted <= found
    assert all(case in err for case in wanted)


@pytest.mark.usefixtures("tiny")
def test_wrong_answers_of_the_index_are_attributed_to_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_lookups(vm: Any, asked: str, *args: Any, **kwargs: Any) -> Any:
        ns, answers = right(vm, asked, *args, **kwargs)
        if vm.index_policy == "eager":
            answers[0] += np.uint64(1)
        return ns, answers

    right = subjects.time_lookups
    monkeypatch.setattr(subjects, "time_lookups", time_lookups)
    code, report, _ = run(capsys, "--only", "lookup/adversarial/vm")
    assert code == 1
    assert wrong_cases(report) == {("lookup/adversarial/vm", INDEXED)}


@pytest.mark.usefixtures("tiny")
def test_missing_change_makes_the_command_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_changes(vm: Any, rows: Any, group: int = 1) -> Any:
        """Omits the last change."""
        ns, results = right(vm, rows[:-1], group=group)
        return np.append(ns, 1), np.append(results, np.int32(0))

    right = subjects.time_changes
    monkeypatch.setattr(subjects, "time_changes", time_changes)
    code, report, _ = run(capsys, "--only", "change/")
    assert code == 1
    assert ("change/create", "tree") in wrong_cases(report)
    assert ("change/move", "array") in wrong_cases(report)
    assert any("were made, not" in wrong["what"] for wrong in report["wrong"])


@pytest.mark.usefixtures("tiny")
def test_trace_with_another_result_makes_the_command_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgets(memslots.VM):
        def get_dirty_log(self, slot: Any, as_id: Any = 0) -> Any:
            raise LookupError("which slot?")

    monkeypatch.setattr(memslots, "VM", Forgets)
    code, report, err = run(capsys, "--only", "replay/create")
    assert code == 1
    assert ("replay/create", "tree") in wrong_cases(report)
    assert "not what Linux answered" in err


def test_text_marks_wrong_cells() -> None:
    times = np.array([1.0])
    right = sample.Sample("unmap", 1.0, times, 1, 1, "0")
    wrong = sample.Sample("unmap", 9.0, times, 1, 1, "0", wrong="off by one")
    assert "WRONG" not in show.cell(sample.row([right], "tree", 8))
    assert "WRONG" in show.cell(sample.row([right, wrong], "tree", 8))


# ---- parts --------------------------------------------------------------------------------------


def test_each_round_has_its_own_vms_unless_slow_to_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = layouts.uniform(8)
    with subjects.Subjects() as made:
        first = made.get("tree", "uniform", lambda: slots)
        assert made.get("tree", "uniform", lambda: slots) is first
        made.renew()
        assert first.vm.closed
        monkeypatch.setattr(subjects, "SLOW_TO_FILL", 0.0)
        slow = made.get("tree", "uniform", lambda: slots)
        made.renew()
        assert made.get("tree", "uniform", lambda: slots) is slow
    assert slow.vm.closed


def test_kept_vm_is_reused_and_a_second_one_closed() -> None:
    with subjects.Subjects() as made:
        first, second = Engine("tree"), Engine("tree")
        made.keep("tree", "uniform", first)
        made.keep("tree", "uniform", second)
        assert second.vm.closed
        assert made.get("tree", "uniform", lambda: layouts.uniform(8)) is first
    assert first.vm.closed


def test_lookups_run_before_changes_in_each_round() -> None:
    """Changes move slots in memory, so they run last in a round; the order of the rows stays."""
    order: list[str] = []

    class Case(perf.Replay):
        def __init__(self, name: str, moves_slots: bool) -> None:
            self.names, self.n_slots = (name,), 8
            self.moves_slots = moves_slots  # type: ignore[misc]

        def refusal(self, backend: str, budget: Budget) -> str | None:
            return None

        def run(self, run: Any) -> list[sample.Sample]:
            order.append(self.names[0])
            return [sample.Sample(self.names[0], 1.0, np.array([1.0]), 1, 1, "0")]

    results, budget = Results(), perf.QUICK.budget
    cells = plan([Case("change", True), Case("lookup", False)], ["tree"], 2, budget, results)
    measure(cells, budget, results, lambda: None)
    assert order == ["lookup", "change"] * 2
    assert [row["case"] for row in results.rows()] == ["change", "lookup"]


def test_summary_names_the_rows_where_the_array_is_faster() -> None:
    def rows(case: str, n: int, tree: float, array: float) -> list[dict[str, Any]]:
        return [
            {"case": case, "n_slots": n, "backend": name, "median": m, "low": m, "high": m}
            for name, m in (("tree", tree), ("array", array))
        ]

    results = [*rows("RW", 8, 1, 1), *rows("RW", 509, 2, 1), *rows("RW", 4096, 2, 1)]
    results += rows("unmap", 4096, 1, 9)
    shown = list(report_perf._array_wins({"results": results, "crossover": []}))
    assert shown == [
        "The array is faster (costs above): RW at 509 and 4,096.  "
        "In all other rows of these tables the tree is faster, or both are even."
    ]
    shown = list(report_perf._array_wins({"results": results[:2], "crossover": []}))
    assert "(costs above): nowhere." in shown[0]


def test_new_design_gets_a_column_a_ratio_and_a_sentence() -> None:
    medians = {"tree": 2.0, "array": 2.0, "list": 2.0, "idea": 1.0, "kvm": 2.0}
    rows: list[Any] = [
        {"case": case, "n_slots": 8, "backend": name, "median": m * f, "low": m, "high": m, "checked": True}
        for case, f in (("RW", 1), ("unmap", 1))
        for name, m in medians.items()
    ]  # fmt: skip
    for row in rows:
        if row["case"] == "unmap" and row["backend"] == "idea":
            row.update(median=4.0, low=4.0, high=4.0)
    assert show.new_designs(rows) == ["idea"]
    table = report_perf._size_table(8, rows)
    names = ("tree", "array", "list", "idea", "kvm", "array / tree", "idea / tree")
    assert table.headers == ["8 slots", *names]
    ratios = {line[0].strip(): line[-1].strip() for line in table.body if len(line) > 1}
    assert ratios == {"RW": "0.50 IDEA", "unmap": "2.00 tree"}
    assert report_scale._ratios(rows[:5], [8, 16]) == [["  idea / tree", "0.50 IDEA", "-", ""]]
    assert list(show.new_design_notes(rows)) == [
        "The design idea is faster than the tree in 1 of 2 rows: RW at 8; slower in 1, even in 0."
    ]
    shipped = [row for row in rows if row["backend"] != "idea"]
    assert list(show.new_design_notes(shipped)) == []


@pytest.mark.parametrize("backend", memslots.backends())
def test_designs_are_measured_without_an_index(backend: str) -> None:
    slots = layouts.uniform(64)
    gfns = layouts.random(slots, 100_000)
    with closing(Engine(backend, slots)) as engine:
        engine.vm.gfn_to_hva_many(gfns)
        engine.gfns(gfns, 64)
        stats = engine.vm.stats()
    assert (stats["index_builds"], stats["indexed"]) == (0, 0)


@pytest.mark.parametrize("n_slots", [50, 20_000])  # single lookups do not build an index of 20,000
def test_index_is_built_before_the_first_lookup(n_slots: int) -> None:
    slots = layouts.uniform(n_slots)
    gfns = layouts.random(slots, 1000)
    with closing(Engine(INDEXED, slots)) as engine:
        before = engine.vm.stats()
        answers = engine.gfns(gfns, 64)[1]
        np.testing.assert_array_equal(answers, layouts.expected_hvas(slots, gfns))
        between = engine.vm.stats()
        answers = engine.vcpu_gfns(gfns, 64)[1]
        np.testing.assert_array_equal(answers, layouts.expected_hvas(slots, gfns))
        after = engine.vm.stats()
    assert before["index_builds"] == after["index_builds"] == 1
    assert between["hits_search"] == before["hits_search"] == 0
    assert after["indexed"] > between["indexed"] > before["indexed"]


@pytest.mark.parametrize("kind", list(costs.COSTS))
def test_index_gets_as_many_operations_as_the_tree(kind: str) -> None:
    assert costs.nominal(kind, INDEXED, 4096) == costs.nominal(kind, "tree", 4096)


def test_verdict_names_the_faster_design_or_even() -> None:
    def verdict(tree: float, array: float, spread: float = 0.0) -> str:
        medians = {"tree": tree, "array": array}
        return show.verdict(
            {
                name: {"median": m, "low": m * (1 - spread), "high": m * (1 + spread)}
                for name, m in medians.items()
            }
        )

    assert verdict(1, 100).endswith("tree ")
    assert "even" in verdict(1, 1.05)
    assert "ARRAY" in verdict(1, 0.5)
    assert "even" in verdict(1, 0.7, spread=0.3)  # the ranges overlap
    assert "even" in verdict(1, 1.5, spread=0.3)
    assert show.verdict({"tree": {"median": 1}}) == ""


def test_table_has_headings_and_aligned_columns() -> None:
    body = [["changes"], ["  move", "1.00 us  ±3%", "-"], ["  a long name", "-", "12"]]
    assert tables.text(
        tables.Table(body, ["8 slots", "tree", "array / tree"]), None
    ).splitlines() == [
        "8 slots                tree  array / tree",
        "-------------  ------------  ------------",
        "changes",
        "  move         1.00 us  ±3%             -",
        "  a long name             -            12",
    ]


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0.5, "0.50 ns"), (12.34, "12.3 ns"), (999, "999 ns"), (1500, "1.50 us"), (2e6, "2.00 ms"),
     (3.21e9, "3.21 s")],
)  # fmt: skip
def test_time_is_printed_with_its_unit(ns: float, text: str) -> None:
    assert show.time(ns) == text


def test_slow_design_gets_fewer_operations() -> None:
    assert costs.affordable("gfn", "list", 32_764, 10_000, 0.01) < 1000
    assert costs.affordable("gfn", "tree", 32_764, 10_000, 0.01) == 10_000
    assert costs.nominal("hva", "a design of tomorrow", 100) == costs.nominal("hva", "list", 100)
    assert costs.nominal("load", "array", 100) == costs.nominal("load", "array", 10_000)
    assert costs.nominal("change", "tree", 100) < costs.nominal("change", "array", 4096)
    assert costs.nominal("change", "kvm", 1) > costs.nominal("change", "list", 1)


def test_slowest_declared_cost_applies_and_operations_spread_evenly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declared = {"idea": {"gfn": "log", "id": "walk", "hva": "scan", "change": "log"}}
    monkeypatch.setattr(costs, "design_costs", lambda: declared)
    assert {kind: costs.declared(kind, "idea") for kind in costs.COSTS} == {
        "gfn": "log",
        "id": "walk",
        "hva": "scan",
        "change": "log",
        "setup": "log",
        "load": "walk",
    }
    chosen = costs.spread(10_000, 640)
    assert len(set(chosen.tolist())) == 640
    assert (chosen[0], chosen[-1]) == (0, 9_999)
    assert (np.diff(chosen.reshape(10, 64)) == 1).all()
    assert costs.spread(100, 640).tolist() == list(range(100))
    assert len(costs.spread(1000, 100)) == 100


def test_case_over_the_budget_is_not_run() -> None:
    budget, results = Budget(0.001, 1.0, 1.0, 64, 4, 4), Results()
    cells = plan(perf.all_tests(32_764, 1), ["tree", "list"], 1, budget, results)
    assert {cell.backend for cell in cells if cell.case.names == ("slot setup",)} == {"tree"}
    shown = {(row["case"], row["backend"]) for row in results.not_run}
    assert ("slot setup", "list") in shown
    assert all("takes about" in row["reason"] for row in results.not_run)


def test_backends_run_in_a_changing_order() -> None:
    order: list[str] = []

    class Case(perf.Replay):
        names = ("turns",)

        def run(self, run: Any) -> list[sample.Sample]:
            order.append(run.backend)
            return []

    budget = perf.QUICK.budget
    cells = plan([Case(1)], ["a", "b", "c"], 20, budget, results := Results())
    measure(cells, budget, results, lambda: None)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 60, 3)]
    assert {"".join(sorted(turns)) for turns in rounds} == {"abc"}
    assert {turns[0] for turns in rounds} == {turns[-1] for turns in rounds} == set("abc")
    assert len(set(rounds)) > 3
    assert results.rows() == []


def test_crossover_is_interpolated_from_factors() -> None:
    assert fit.crossover({2: 0.5, 8: 2.0}) == pytest.approx(4)
    assert fit.crossover({2: 2.0, 8: 3.0}) == 0
    assert fit.crossover({2: 2.0, 8: 0.5}) is None
    assert fit.crossover({2: 0.5, 4: 2.0, 8: 0.5, 32: 2.0}) == pytest.approx(16)


def test_published_table_has_the_known_factors() -> None:
    table = published.TABLE
    assert table["unmap", 32_764].factor == pytest.approx(110.5, abs=0.1)
    assert table["move active area", 32_764].factor == pytest.approx(18.1, abs=0.1)
    assert table["slot setup", 32_764].factor == pytest.approx(27.3, abs=0.1)
    assert ("map", 8194) in table
    assert len(table) == 36
