# SPDX-License-Identifier: MIT
"""Raw samples: a report is derived from them exactly, and --verify finds each number that was changed."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from checkout import ROOT
from test_perf import make_tiny

from memslots.commands import cli
from memslots.lab import fingerprint, record, sample
from memslots.lab.record import PerfRecord, ScaleRecord
from memslots.measure import derive
from memslots.measure.rounds import Results

DOCS = ROOT / "docs"


def invented(*values: float, case: str = "unmap", backend: str = "tree") -> list[sample.Sample]:
    """The samples of a cell with one round for each value."""
    return [
        sample.Sample(
            *(case, v, np.array([3.0, 1.0, 3.0, v]), 2, 10 + i, f"d{i}", None, {}, 7),
            *(0, 0.5, i, 10.0 + i),
        )
        for i, v in enumerate(values)
    ]


# ---- samples ------------------------------------------------------------------------------------


def test_recorded_samples_give_the_same_row() -> None:
    samples = invented(5.0, 2.0, 100.0)
    cell = record.cell_record(("unmap", "tree", 8), samples)
    again = record.samples_of(cell)
    assert sample.row(again, "tree", 8) == sample.row(samples, "tree", 8)
    assert [r.value for r in cell.rounds] == [5.0, 2.0, 100.0]
    assert cell.rounds[0].times == [(1.0, 1), (3.0, 2), (5.0, 1)]
    assert [(r.ops, r.switches, r.reference_ns) for r in cell.rounds] == [
        (10, 0, 10.0),
        (11, 1, 11.0),
        (12, 2, 12.0),
    ]


def test_results_of_a_part_give_the_same_rows() -> None:
    results = Results()
    results.samples["unmap", "tree", 8] = invented(5.0, 2.0, 100.0)
    results.samples["unmap", "array", 8] = invented(6.0, 6.0, 7.0, backend="array")
    results.windows = [record.Window(8, 0, 1.0, 0.5, 0.9, 0.0, 3)]
    part = results.part()
    rows = Results.of_part(part).rows()
    assert rows == results.rows()
    assert [row["disturbed"] for row in rows] == [3, 3]
    assert Results.of_part(results.part("no such case")).rows() == []


# ---- --verify -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with its text and its pictures, as `make results` records them."""
    file = tmp_path_factory.mktemp("record") / "perf.json"
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        command = ["perf", "--quick", "--no-kvm", "--only", "unmap", "--rounds", "2"]
        with redirect_stdout(StringIO()) as out:
            code = cli.main([*command, "-o", str(file), "--picture", str(file.with_suffix(".png"))])
    assert code == 0
    file.with_suffix(".txt").write_text(out.getvalue())
    return file


@pytest.fixture
def recorded(measured: Path, tmp_path: Path) -> Path:
    """A copy, which the test may change, without the pictures."""
    for suffix in (".json", ".txt"):
        shutil.copy(measured.with_suffix(suffix), tmp_path)
    return tmp_path / measured.name


def verified(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["perf", "--verify", str(file)])
    return code, *capsys.readouterr()


def test_verify_derives_text_and_pictures_again(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = verified(measured, capsys)
    assert (code, out) == (0, measured.with_suffix(".txt").read_text())
    assert err.splitlines()[-1].endswith("cells, 0 differences")
    assert "not compared" not in err


CHANGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda r: r["results"][3].update(median=1.0), r"results\[3\]\.median is 1\.0 in the file"),
    (lambda r: r["results"][0].update(p999=1.0), r"results\[0\]\.p999"),
    (lambda r: r["raw"]["results"]["cells"][1]["rounds"][1].update(value=1e9), r"results\[1\]\."),
    (lambda r: r["raw"]["crossover"][0]["cells"][0]["rounds"][0].update(value=1e9), "crossover"),
    (lambda r: r["raw"]["results"]["cells"].pop(), "results is a list of"),
    (lambda r: r["crossover"][0]["factors"].update({"2": 1e6}), r"crossover\[0\]\.factors\.2"),
    (lambda r: r["published"][0].update(before_s=1.0), r"published\[0\]\.before_s is 1\.0"),
    (lambda r: r["noise"].update(cells=1), r"noise\.cells is 1"),
    (lambda r: r.update(seed=3), r"perf\.txt:\d+ is .*seed"),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_verify_names_each_changed_number(
    number: int, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, named = CHANGES[number]
    report = json.loads(recorded.read_text())
    change(report)
    recorded.write_text(json.dumps(report))
    code, _, err = verified(recorded, capsys)
    assert code == 1
    assert re.search(named, err.replace("\n  ", " ")), err


def test_verify_finds_a_changed_picture(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(measured.read_text())
    for row in report["raw"]["results"]["cells"]:
        if row["backend"] == "array":
            for found in row["rounds"]:
                found["value"] *= 3
    other = tmp_path / "other.json"
    shutil.copy(measured.with_suffix(".png"), other.with_suffix(".png"))
    again = derive.perf_report(record.from_report(report, PerfRecord))
    other.write_text(json.dumps(again))
    code, _, err = verified(other, capsys)
    assert code == 1
    assert "other.png has other pixels" in err.replace("\n  ", " ")
    assert "1 difference" in err


def test_verify_draws_the_picture_elsewhere(
    measured: Path, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again.png"
    assert cli.main(["perf", "--verify", str(recorded), "--picture", str(again)]) == 0
    assert again.read_bytes() == measured.with_suffix(".png").read_bytes()


BAD: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda r: r.pop("raw"), "has no raw samples (key raw)"),
    (lambda r: r.pop("seed"), "missing required field `seed`"),
    (lambda r: r.update(seconds="1"), "Expected `float`, got `str` - at `$.seconds`"),
    (lambda r: r["machine"]["cpu"].pop("model"), "missing required field `model`"),
    (
        lambda r: r["raw"]["results"]["cells"][0]["rounds"][0].update(value=None),
        "Expected `float`, got `null` - at `$.raw.results.cells[0].rounds[0].value`",
    ),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_verify_refuses_a_file_without_the_schema(
    number: int, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = BAD[number]
    report = json.loads(recorded.read_text())
    change(report)
    recorded.write_text(json.dumps(report))
    code, out, err = verified(recorded, capsys)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("text", ["", "no JSON", "[]"])
def test_verify_refuses_other_files(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "perf.json"
    file.write_text(text)
    code, out, err = verified(file, capsys)
    assert (code, out) == (2, "")
    assert str(file) in err.replace("\n  ", "")


def test_scale_report_is_derived_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scale.json"
    command = ["scale", "--quick", "--max-slots", "40", "--only", "change/move", "--rounds", "2"]
    assert cli.main([*command, "--no-kvm", "-o", str(file)]) == 0
    text = capsys.readouterr().out
    assert cli.main(["scale", "--verify", str(file)]) == 0
    assert capsys.readouterr().out == text
    report = json.loads(file.read_text())
    report["fits"][0]["exponent"] += 0.001
    file.write_text(json.dumps(report))
    assert cli.main(["scale", "--verify", str(file)]) == 1
    assert "fits[0].exponent" in capsys.readouterr().err


# ---- the records of docs/results -----------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    sorted([*DOCS.glob("results/*/perf.json"), *DOCS.glob("results/*/scale.json")]),
    ids=lambda path: "/".join(path.parts[-2:]),
)
def test_recorded_report_is_derived_again(file: Path) -> None:
    report = json.loads(file.read_text(encoding="utf-8"))
    kind: Any = PerfRecord if report["command"] == "perf" else ScaleRecord
    derived: Any = derive.perf_report if kind is PerfRecord else derive.scale_report
    again = derived(record.from_report(report, kind))
    assert list(derive.differences(report, again)) == []


# ---- the schema -----------------------------------------------------------------------------------


def dataclasses_below(kind: Any) -> set[Any]:
    """The dataclasses in the annotations of a dataclass, at every depth."""
    found: set[Any] = set()
    for hint in get_type_hints(kind).values():
        for one in (hint, *get_args(hint)):
            if is_dataclass(one):
                found |= {one} | dataclasses_below(one)
    return found


def test_document_describes_each_field_of_the_raw_samples() -> None:
    text = (DOCS / "perf-json.md").read_text(encoding="utf-8").partition("## Raw samples")[2]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    shown = {(row[0][2:], name) for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    kinds = dataclasses_below(record.PerfRaw) | dataclasses_below(record.ScaleRaw)
    assert shown == {(kind.__name__, field.name) for kind in kinds for field in fields(kind)}


def test_document_describes_each_field_of_the_fingerprint() -> None:
    text = (DOCS / "perf-json.md").read_text(encoding="utf-8")
    section = text.partition("## The fingerprint")[2].partition("\n## ")[0]
    kinds = {fingerprint.Machine} | dataclasses_below(fingerprint.Machine)
    names = {field.name for kind in kinds for field in fields(kind)} - {"build"}
    assert {name for name in names if f"`{name}`" not in section} == set()


def test_json_schema_has_every_field() -> None:
    schema = record.json_schema()
    perf = schema["$defs"]["PerfRecord"]
    assert set(perf["required"]) == {field.name for field in fields(PerfRecord)}
    assert set(schema["$defs"]["Round"]["required"]) == {f.name for f in fields(record.Round)}


# ---- the fingerprint ------------------------------------------------------------------------------


def test_caches_are_read_from_sysfs(tmp_path: Path) -> None:
    for i, (level, kind, size) in enumerate(
        [("1", "Data", "32K"), ("1", "Instruction", "48K"), ("2", "Unified", "1024K"), ("3", "Unified", "32M")]
    ):  # fmt: skip
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, text in (
            ("level", level),
            ("type", kind),
            ("size", size),
            ("shared_cpu_list", "0-1"),
        ):
            (folder / name).write_text(f"{text}\n")
    (tmp_path / "index9").mkdir()  # without files
    found = list(fingerprint.caches(tmp_path))
    assert [(c.level, c.size_kib) for c in found] == [(1, 32), (1, 48), (2, 1024), (3, 32768)]
    assert found[2] == fingerprint.CacheLevel(2, "Unified", 1024, "0-1")
    assert fingerprint.second_level(found) == 1 << 20
    assert fingerprint.second_level(found[:2]) is None


def test_processor_is_the_first_one_of_proc_cpuinfo() -> None:
    text = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: X: Y\n\nprocessor\t: 1\nmodel\t\t: 2\n"
    assert fingerprint.cpu_fields(text) == {"processor": "0", "model": "17", "model name": "X: Y"}


def test_chosen_mode_is_the_word_in_brackets() -> None:
    assert fingerprint._chosen("always [madvise] never") == "madvise"
    assert fingerprint._chosen("never") is fingerprint._chosen(None) is None


def test_machines_differ_by_name_of_the_field() -> None:
    from dataclasses import replace

    one = fingerprint.fingerprint()
    other = replace(one, page_size=1 << 16, source=fingerprint.Source("c", True, None))
    assert fingerprint.differences(one, one) == []
    assert fingerprint.differences(one, other) == [f"page_size {one.page_size} and 65536"]


def test_source_is_head_if_its_tree_was_built(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(text: str) -> str:
        (tmp_path / "src" / "a.c").write_text(text)
        git("add", ".")
        git("commit", "-qm", text)
        return git("rev-parse", "HEAD")

    (tmp_path / "src").mkdir()
    git("init", "-q")
    first = commit("1")
    built = {"folder": str(tmp_path), "commit": first, "flags": "-O3"}
    built |= {"tree": git("rev-parse", "HEAD:src"), "committed": git("rev-parse", "HEAD:src")}
    file = tmp_path / "build.json"
    file.write_text(json.dumps(built))
    assert fingerprint.source(file) == fingerprint.Source(first, False, "-O3")
    second = commit("2")
    assert fingerprint.source(file) == fingerprint.Source(first, False, "-O3")
    file.write_text(json.dumps({**built, "tree": git("rev-parse", "HEAD:src")}))
    assert fingerprint.source(file) == fingerprint.Source(second, False, "-O3")
    file.write_text(json.dumps({**built, "tree": "of changed files"}))
    assert fingerprint.source(file) == fingerprint.Source(first, True, "-O3")
    assert fingerprint.source(tmp_path / "none") == fingerprint.Source(None, None, None)
