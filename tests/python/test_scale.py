# SPDX-License-Identifier: MIT
"""`memslots scale`: its report follows docs/perf-json.md and has fitted exponents; a wrong answer makes it fail."""

import json
from typing import Any

import numpy as np
import pytest
from test_perf import assert_row
from typed_json import faults

import memslots
from memslots.commands import cli, scale
from memslots.lab import subjects
from memslots.lab.case import Budget, Run
from memslots.lab.scaling import LoadSlots
from memslots.lab.schema import ScaleReport
from memslots.measure import fit

BUDGET = Budget(0.001, 1.0, 1.0, 256, 16, 64)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "QUICK", scale.Mode("quick", 130, 1, BUDGET))


def run(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any], str]:
    code = cli.main(["scale", "--quick", "--json", "--no-kvm", *more])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_report_follows_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, report, err = run(capsys)
    assert (code, err) == (0, "")
    assert faults(report, ScaleReport) == []
    assert report["command"] == "scale"
    assert report["slots"] == [8, 32, 128, 130]
    for row in report["results"] + report["selftest"]:
        assert_row(row)
        assert row["checked"]
    assert {row["n_slots"] for row in report["selftest"]} == {10, 30, 50, 100}


def test_report_has_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(capsys)[1]["results"]
    cells = {(row["case"], row["backend"], row["n_slots"]) for row in rows}
    lookups = ("lookup/random/vm", "lookup/hot/vm", "lookup/id/vm", "lookup/hva/vm")
    changes = ("change/create", "change/delete", "change/move", "change/log on", "change/log off")
    for case in ("setup/load", "setup/one by one", *lookups, *changes):
        for backend in memslots.backends():
            assert {(case, backend, n) for n in (8, 32, 128, 130)} <= cells
    by_gfn = ("lookup/random/vm", "lookup/hot/vm")
    indexed = {(case, n) for case, backend, n in cells if backend == subjects.INDEXED}
    assert indexed == {(case, n) for case in by_gfn for n in (8, 32, 128, 130)}


def test_runs_are_reproducible(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(seed: str) -> list[tuple[Any, ...]]:
        rows = run(capsys, "--seed", seed, "--only", "lookup")[1]["results"]
        return [(r["case"], r["backend"], r["n_slots"], r["digest"], r["ops"]) for r in rows]

    assert shown("3") == shown("3")
    assert shown("3") != shown("4")


def test_text_output_has_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scale", "--quick", "--no-kvm", "--max-slots", "40"]) == 0
    out = capsys.readouterr().out
    for words in (
        "~ n^x",
        "  tree+index  ",
        "tree+index: the tree with an index",
        "setup/load",
        "change/move",
        "(published)",
        "0 cells with wrong answers",
    ):
        assert words in out


def test_wrong_answer_makes_the_command_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgets(memslots.VM):
        def load_memslots(self, array: Any, as_id: Any = 0) -> None:
            super().load_memslots(array[1:], as_id)

    monkeypatch.setattr(subjects, "VM", Forgets)
    code, report, err = run(capsys, "--only", "setup/load", "--max-slots", "8")
    assert code == 1
    assert {w["case"] for w in report["wrong"]} == {"setup/load"}
    assert "setup/load, tree at 8 slots" in err
    assert not any(row["checked"] for row in report["results"])


def test_second_load_in_one_round_is_checked_before_its_vm_is_closed() -> None:
    case = LoadSlots(8, 1)
    with subjects.Subjects() as made:
        first, second = (case.run(Run("tree", made, BUDGET))[0] for _ in range(2))
    assert first.wrong is second.wrong is None
    assert first.digest == second.digest


def test_operation_over_the_budget_is_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--only", "setup/one by one", "--max-slots", "8"]
    mode = scale.Mode("quick", 1_000_000, 1, Budget(0.001, 1.0, 1.0, 64, 4, 4))
    scaling = scale._Scaling(mode, ["array", "list", "kvm"], 1, "setup/one by one")
    reasons = {(r["backend"], r["n_slots"]): r["reason"] for r in scaling.results.not_run}
    assert "hours" in reasons["array", 1_000_000]
    assert "hours" in reasons["list", 1_000_000]
    assert reasons["kvm", 1_000_000] == "it has room for 32,764"
    assert run(capsys, *arguments)[0] == 0


def test_empty_selection_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scale", "--only", "no such case"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("x", [0.0, 0.5, 1.0, 2.0])
def test_exponent_is_fitted(x: float) -> None:
    sizes = [8, 64, 512, 4096, 32768, 262144]
    noise = np.random.default_rng(1).normal(1, 0.01, len(sizes))
    costs = [7 * n**x * e for n, e in zip(sizes, noise, strict=True)]
    assert fit.exponent(sizes, costs) == pytest.approx(x, abs=0.02)


def test_exponent_is_fitted_to_the_upper_half() -> None:
    sizes = [2, 4, 8, 16, 1000, 2000, 4000, 8000]
    costs = [100.0] * 4 + [float(n) for n in sizes[4:]]
    assert fit.exponent(sizes, costs) == pytest.approx(1)
    assert fit.exponent([8], [1.0]) is None
    assert fit.exponent([8, 16], [1.0, 4.0]) == pytest.approx(2)
