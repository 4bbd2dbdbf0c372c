# SPDX-License-Identifier: MIT
"""tools/results.py records all runs or none, and docs/results describes each of its files."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, needs_tools, tool

import memslots

RECORDS = ROOT / "docs" / "results"

pytestmark = needs_tools

WRITES = "import json, sys; print('a table'); json.dump({'machine': {'cpu': 'some'}}, open(sys.argv[1], 'w'))"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool with two short commands; it writes below tmp_path."""
    module = tool("results")
    monkeypatch.setattr(module, "BUILT", tmp_path / "built")
    monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    run = module.Run
    runs = [
        run(f"{name}.txt", ("-c", WRITES, f"{{out}}/{name}.json"), (), f"make {name}")
        for name in ("first", "second")
    ]
    monkeypatch.setattr(module, "RUNS", runs)
    return module


def test_record_has_every_file_and_describes_it(results: Any) -> None:
    assert results.main(["some-machine"]) == 0
    record = results.RECORDS / "some-machine"
    files = {path.name for path in record.iterdir()}
    assert files == {"README.md", "first.txt", "first.json", "second.txt", "second.json"}
    assert (record / "first.txt").read_text() == "a table\n"
    assert json.loads((record / "second.json").read_text())["machine"]
    readme = (record / "README.md").read_text()
    assert set(re.findall(r"\]\(([\w.]+)\)", readme)) == files - {"README.md"}
    assert "- cpu: some" in readme
    assert "| `make second` |" in readme
    assert "trial" not in readme


def test_trial_record_is_marked(results: Any) -> None:
    assert results.main(["some-machine", "--quick"]) == 0
    assert "No figure counts" in (results.RECORDS / "some-machine" / "README.md").read_text()


def test_failed_command_records_nothing(results: Any) -> None:
    results.RUNS[1] = results.RUNS[1]._replace(words=("-c", "raise SystemExit(1)"))
    with pytest.raises(SystemExit, match="make second failed with status 1"):
        results.main(["some-machine"])
    assert not results.RECORDS.exists()


NO_KVM = "print('mirrored: NOT measured: /dev/kvm is absent'); raise SystemExit(2)"


def test_optional_run_that_the_machine_cannot_make_is_recorded_with_its_reason(
    results: Any,
) -> None:
    results.RUNS[1] = results.RUNS[1]._replace(words=("-c", NO_KVM), optional=True)
    assert results.main(["some-machine"]) == 0
    record = results.RECORDS / "some-machine"
    assert "/dev/kvm is absent" in (record / "second.txt").read_text()
    row = "| `make second` | not measured | [second.txt](second.txt) |"
    assert row in (record / "README.md").read_text().splitlines()


@pytest.mark.parametrize(
    ("words", "optional"),
    [
        (NO_KVM, False),
        (NO_KVM.replace("2", "1"), True),
        ("raise SystemExit(2)", True),  # as for wrong arguments
    ],
)
def test_other_status_or_message_is_a_failure(results: Any, words: str, optional: bool) -> None:
    results.RUNS[1] = results.RUNS[1]._replace(words=("-c", words), optional=optional)
    with pytest.raises(SystemExit, match="make second failed with status"):
        results.main(["some-machine"])
    assert not results.RECORDS.exists()


def script(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """A module of bench/."""
    pytest.importorskip("tabulate", reason="no tabulate: the extra perf has it")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module(name)


def test_mirrored_says_that_it_is_not_measured_without_kvm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = script(monkeypatch, "mirrored")

    def no_kvm() -> None:
        raise memslots.NotSupportedError(None, "/dev/kvm is absent")

    monkeypatch.setattr(bench.kvm, "open", no_kvm)
    assert bench.main(["-n", "40"]) == 2
    assert tool("results").NOT_MEASURED in capsys.readouterr().out


def test_reload_says_that_it_is_not_measured_without_the_old_commit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = script(monkeypatch, "reload")
    monkeypatch.setattr(bench, "OLD", "no-commit")
    with pytest.raises(SystemExit) as ended:
        bench.main([])
    assert ended.value.code == 2
    assert tool("results").NOT_MEASURED in capsys.readouterr().out


def test_optional_runs_are_those_above() -> None:
    optional = [run.text for run in tool("results").RUNS if run.optional]
    assert optional == ["mirrored.txt", "reload.txt"]


def test_reload_measures_two_builds_in_turns() -> None:
    """Here the other build is this one."""
    pytest.importorskip("tabulate", reason="no tabulate: the extra perf has it")
    site = Path(memslots.__file__).resolve().parent.parent
    words = [sys.executable, str(ROOT / "bench" / "reload.py"), "--site", str(site)]
    done = subprocess.run(
        [*words, "--turns", "1", "--slots", "64"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()]
    calls = ["delete and load", "memslots_array", "apply", "restore"]
    assert [row[2:4] for row in rows[2:]] == [
        [b, call] for b in ("other", "this") for call in calls
    ]


def test_index_costs_are_medians_and_quotients(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {
        "walked": [60.0, 40.0, 900.0],
        "scattered": [90.0, 80.0, 100.0],
        "copied": [15.0, 31.0, 30.0],
        "by_walk": [21.0, 20.0, 25.0],
        "by_index": [1.0, 5.0, 0.0],
    }
    table = script(monkeypatch, "index_costs").table({"4096": rounds}).splitlines()
    cells = [cell.strip() for cell in table[2].split("|")[1:-1]]
    assert cells == ["4,096", "60.0", "90.0", "30.0", "21.0", "1.0", "3.0", "1.5"]


@pytest.mark.slow
def test_index_costs_are_those_of_this_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program ends with an error if an index is missing or an answer is wrong."""
    found = script(monkeypatch, "index_costs").measure(2, [3, 64], "-O0")
    assert list(found) == ["3", "64"]
    for rounds in found.values():
        assert list(rounds) == ["walked", "scattered", "copied", "by_walk", "by_index"]
        assert all(len(ns) == 2 and min(ns) > 0 for ns in rounds.values())


def test_record_that_differs_from_its_raw_samples_is_not_kept(
    results: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("msgspec")
    run = results.RUNS[0]
    results.RUNS[0] = run._replace(words=("-c", WRITES, "{out}/perf.json"))
    with pytest.raises(SystemExit, match=r"perf\.json differs from its raw samples"):
        results.main(["some-machine"])
    assert "has no raw samples" in capfd.readouterr().err
    assert not results.RECORDS.exists()


@pytest.mark.parametrize("name", ["", "../up", "A", ".hidden", "a/b"])
def test_bad_name_is_refused_before_the_measurement(
    results: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        results.main([name])
    assert "not a name" in capsys.readouterr().err
    assert not results.BUILT.exists()


def test_existing_record_is_not_replaced(results: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (results.RECORDS / "some-machine").mkdir(parents=True)
    with pytest.raises(SystemExit):
        results.main(["some-machine"])
    assert "exists" in capsys.readouterr().err


# ---- docs/results ----------------------------------------------------------------------------------------------


def records() -> list[Path]:
    return sorted(path for path in RECORDS.iterdir() if path.is_dir())


def test_list_of_records_is_complete() -> None:
    text = (RECORDS / "README.md").read_text(encoding="utf-8")
    assert records()
    for record in records():
        assert f"({record.name}/" in text, record


@pytest.mark.parametrize(
    "record", records() if RECORDS.exists() else [], ids=lambda path: path.name
)
def test_each_recorded_file_is_described(record: Path) -> None:
    """The README of its folder or of docs/results describes it; the latter names the folder, too."""
    own = record / "README.md"
    links = re.findall(r"\]\(([^)]+)\)", own.read_text(encoding="utf-8")) if own.exists() else []
    text = (RECORDS / "README.md").read_text(encoding="utf-8")
    links += re.findall(rf"\]\({re.escape(record.name)}/([^)]+)\)", text)
    assert {path.name for path in record.iterdir()} - {"README.md"} <= set(links)


@pytest.mark.parametrize(
    "path", sorted(RECORDS.glob("*/*.md")), ids=lambda p: "/".join(p.parts[-2:])
)
def test_cells_of_tables_are_short(path: Path) -> None:
    """Each row shows one figure."""
    rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    if path.name != "README.md":
        assert rows
        assert max(len(cell) for line in rows for cell in line.split("|")) < 100
