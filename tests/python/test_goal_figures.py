# SPDX-License-Identifier: MIT
"""The column "measured" of the table of goals, and the error rates of verdicts: from invented records, cell by cell."""

import importlib
import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, needs_tools, tool

pytest.importorskip("tabulate", reason="no tabulate: the extra perf has it")
pytestmark = needs_tools

FIGURES = {
    ("P1", "a / b", "8 slots"): 35.75,
    ("P1", "a / b", "4,096 slots"): 143.4,
    ("P1", "a / b", "32,764 slots"): 1.249,
    ("P1", "a / b", "8 slots, sorted"): 0.9512,
    ("P1", "c / b", "8 slots"): 2.54,
    ("P2", "a / b", "8 slots"): 0.0213,
}


def measured(goal: str, wanted: str, what: str | list[str], at: list[int | str]) -> str:
    text: str = tool("goal_figures").measured(FIGURES, [goal, "A / B", "", wanted], what, at)
    return text


@pytest.mark.parametrize(
    ("wanted", "what", "at", "text"),
    [
        (">= 32", "a / b", [8], "36"),
        (">= 36", "a / b", [8], "**35.8**"),  # 36 would hold
        (">= 40", "a / b", [8], "**36**"),
        ("<= 2.5", "c / b", [8], "**2.54**"),
        ("<= 2.55", "c / b", [8], "2.5"),
        ("", "c / b", [8], "2.5"),
        (">= 1", "a / b", [8, "8 slots, sorted"], "36 and **0.95**"),
        (">= 1", "a / b", ["8 slots, sorted", 32_764, 4096], "**0.95**, 1.2 and 143"),
        (">= 0.9", ["a / b", "c / b"], [8], "36 and 2.5"),
        (">= 0.9", "a / b", [8, 4096, 32_764, "8 slots, sorted"], "0.95 to 143"),
        (">= 1", "a / b", [8, 4096, 32_764, "8 slots, sorted"], "**0.95 to 143**"),
        ("<= 3", "c / b", [8, 8, 8, 8], "2.5"),
        (">= 1", "a / b", [64], "not recorded"),
        (">= 1", "a / b", [8, 64], "not recorded"),  # half of the figures is no figure
        (">= 1", "other", [8], "not recorded"),
    ],
)
def test_cell_of_a_row(wanted: str, what: str | list[str], at: list[int | str], text: str) -> None:
    assert measured("P1", wanted, what, at) == text


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("<= 1/40", "1/47"),
        ("<= 1/47", "**1/46.9**"),
        ("<= 1/100", "**1/47**"),
        ("<= 0.1", "0.021"),
        ("", "0.021"),
    ],
)
def test_small_part_is_a_fraction(wanted: str, text: str) -> None:
    assert measured("P2", wanted, "a / b", [8]) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.0"), (0.00123, "0.0012"), (9.96, "10.0"), (209.4, "209"), (8053.2, "8,053")]
)  # fmt: skip
def test_figure_has_two_digits_or_all_before_the_point(value: float, text: str) -> None:
    assert tool("goal_figures").shown(value, None) == text


def test_bound_that_nobody_can_read_is_refused() -> None:
    with pytest.raises(ValueError, match="'about 3' is no bound"):
        measured("P1", "about 3", "a / b", [8])


# ---- two versions ---------------------------------------------------------------------------------

ROWS = [
    ("bench/suite/bench_batches.py::test_batch_of_a_million[avx2-uniform-64-slots]", 0.4),
    ("bench/suite/bench_batches.py::test_batch_of_a_million[portable-uniform-64-slots]", 1.01),
    ("bench/suite/bench_changes.py::test_delete_and_create_from_c[tree-8-slots]", 1.25),
]


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    file = tmp_path / "comparison.json"
    rows = [{"benchmark": name, "ratio": ratio} for name, ratio in ROWS]
    file.write_text(json.dumps({"rows": rows}))
    tool("goal_figures").figures_of.cache_clear()
    return file


@pytest.mark.parametrize(
    ("cells", "what", "at", "text"),
    [
        (["`batch_of_a_million`", ">= 2"], "avx2", ["uniform-64-slots"], "2.5"),
        (["`batch_of_a_million`", ">= 1"], ["avx2", "portable"], ["uniform-64-slots"], "2.5 and **0.99**"),
        (["`delete_and_create_from_c`", ">= 0.95"], "tree", ["8-slots"], "**0.80**"),
        (["`delete_and_create_from_c`", ">= 0.95"], "array", ["8-slots"], "not recorded"),
    ],
)  # fmt: skip
def test_goal_against_another_version_is_a_over_b(
    comparison: Path, cells: list[str], what: str | list[str], at: list[int | str], text: str
) -> None:
    goal_figures = tool("goal_figures")
    assert goal_figures.measured(goal_figures.figures_of(comparison), cells, what, at) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"processes": []}, "neither `figures` nor `rows`; write a comparison with --json"),
        ({"rows": [{"benchmark": "test_load", "ratio": 1.0}]}, r"test_load is no test_NAME\["),
    ],
)
def test_file_without_rows_of_the_suite_is_refused(
    comparison: Path, content: dict[str, Any], message: str
) -> None:
    comparison.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        tool("goal_figures").figures_of(comparison)


def test_recorded_comparisons_follow_from_their_processes() -> None:
    pytest.importorskip("scipy", reason="no scipy: the extra verdict has it")
    runs = importlib.import_module("memslots.verdicts.runs")
    listed = tomllib.loads((ROOT / "docs" / "figures.toml").read_text(encoding="utf-8"))
    file = ROOT / listed["versions"]["file"]
    if not file.exists():
        pytest.skip(f"{listed['versions']['file']} is not recorded")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    again = [asdict(row) for row in runs.table(runs.read(file))]
    assert [row["benchmark"] for row in rows] == [row["benchmark"] for row in again]
    assert [row["ratio"] for row in rows] == pytest.approx([row["ratio"] for row in again])


# ---- in the page ----------------------------------------------------------------------------------


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool with a table of goals, a sentence about error rates, and their records below tmp_path."""
    module = tool("figures")
    keys = ("goal", "what", "at")
    rows = [{**dict(zip(keys, key, strict=True)), "value": value} for key, value in FIGURES.items()]
    (tmp_path / "goals.json").write_text(json.dumps({"figures": rows}))
    (tmp_path / "rates.json").write_text(json.dumps(RATES))
    compared = {"benchmark": "bench_layouts.py::test_load[tree-8-slots]", "ratio": 0.5}
    (tmp_path / "comparison.json").write_text(json.dumps({"rows": [compared]}))
    (tmp_path / "page.md").write_text(
        "| P1 | the same | 8 slots | not recorded | >= 40 |\n| P1 | new | 8 slots | 7 | >= 40 |\n"
        "| `load` | 8 slots | 7 | >= 1 |\n"
        "With 36 pairs (70 s) there is a false\nalarm in 9.99% of tables.\n"
    )
    (tmp_path / "list.toml").write_text("""
record = "."
file = "perf.json"
text = []
[goals]
page = "page.md"
file = "goals.json"
[versions]
page = "page.md"
file = "comparison.json"
[rates]
file = "rates.json"
[[version]]
row = "| `load` | 8 slots | {measured} | >= 1 |"
what = "tree"
at = ["8-slots"]
[[goal]]
row = "| P1 | the same | 8 slots | {measured} | >= 40 |"
what = "a / b"
at = [8]
[[goal]]
row = "| P1 | new | 8 slots | {measured} | >= 40 |"
what = "new"
at = [8]
[[rate]]
page = "page.md"
text = "With {pairs} pairs ({duration}) there is a false alarm in {alarms} of tables."
pairs = "least pairs"
duration = "least duration"
alarms = "least upper bound"
""")
    for name in ("goal_figures", "rate_figures"):
        for cached in ("figures_of", "read"):
            getattr(getattr(tool(name), cached, None), "cache_clear", lambda: None)()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "LIST", tmp_path / "list.toml")
    return module


def rate(pairs: int, upper: float, found: list[float], kept: bool) -> dict[str, Any]:
    return {
        "pairs": pairs, "experiments": 20_000, "false_alarms": upper / 2, "upper": upper, "equivalent": 0.5,
        "found": found, "seconds": 2.0 * pairs, "kept": kept,
    }  # fmt: skip


RATES = {
    "pool": {"sha256": "", "processes": 400, "orders": 10, "seconds": 480.0, "spread": 0.0213},
    "spreads": [{"benchmark": "x", "spread": 0.02, "pairs": 36}, {"benchmark": "y", "spread": 0.03, "pairs": 64}],
    "rates": [
        rate(16, 0.004, [0.5, 0.7], False), rate(36, 0.006, [0.96, 0.98], True), rate(64, 0.005, [0.99, 1.0], True),
    ],
}  # fmt: skip


def test_each_other_cell_is_noticed_and_written(
    figures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures.main(["check"]) == 1
    out = capsys.readouterr().out
    assert "not recorded -> **36** (P1, a / b)" in out
    assert "7 -> not recorded (P1, new)" in out
    assert "7 -> 2.0 (`load`, tree)" in out
    assert "9.99% -> 0.60% (least upper bound)" in out
    assert "70 s -> 72 s" in out
    assert figures.main(["write"]) == 0
    assert figures.main(["check"]) == 0
    page = (figures.ROOT / "page.md").read_text()
    assert page == (
        "| P1 | the same | 8 slots | **36** | >= 40 |\n| P1 | new | 8 slots | not recorded | >= 40 |\n"
        "| `load` | 8 slots | 2.0 | >= 1 |\n"
        "With 36 pairs (72 s) there is a false\nalarm in 0.60% of tables.\n"
    )


def test_missing_record_leaves_no_old_figure(figures: Any) -> None:
    (figures.ROOT / "goals.json").unlink()
    (figures.ROOT / "comparison.json").unlink()
    assert figures.main(["write"]) == 0
    assert (figures.ROOT / "page.md").read_text().count("| not recorded |") == 3


def test_row_is_a_whole_line(figures: Any) -> None:
    """A recorded table of the same page may have the cells of a row, and a verdict."""
    page = figures.ROOT / "page.md"
    recorded = "\n| P1 | the same | 8 slots | 36 | >= 40 | misses |\n"
    page.write_text(page.read_text() + recorded)
    assert figures.main(["write"]) == 0
    assert page.read_text().endswith(recorded)
    assert figures.main(["check"]) == 0


def test_row_with_another_bound_is_noticed(
    figures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    page = figures.ROOT / "page.md"
    page.write_text(page.read_text().replace(">= 40", ">= 39", 1))
    assert figures.main(["check"]) == 1
    assert "0 times, not once" in capsys.readouterr().err


def test_every_row_of_the_table_of_goals_is_derived() -> None:
    listed = tomllib.loads((ROOT / "docs" / "figures.toml").read_text(encoding="utf-8"))
    page = (ROOT / listed["goals"]["page"]).read_text(encoding="utf-8")
    table = page.partition("| measured | wanted |\n|---|---|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines()]
    derived = [entry["row"].split("|") for entry in listed["goal"]]
    assert [row[:4] + row[5:] for row in rows] == [row[:4] + row[5:] for row in derived]


# ---- error rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("pool processes", "400"), ("pool link orders", "10"), ("pool duration", "8.0 min"), ("pool spread", "2.1%"),
        ("16 pairs", "16"), ("16 duration", "32 s"), ("16 false alarms", "0.20%"), ("16 upper bound", "0.40%"),
        ("16 found, worst row", "50.0%"), ("16 found, all rows", "60.0%"), ("16 equivalent", "50.0%"),
        ("needed pairs", "64"), ("needed duration", "2.1 min"), ("least pairs", "36"), ("36 experiments", "20,000"),
    ],
)  # fmt: skip
def test_rate_as_the_page_shows_it(tmp_path: Path, what: str, text: str) -> None:
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(RATES))
    assert tool("rate_figures").derived(file, what) == text


@pytest.mark.parametrize("what", ["needed pairs", "17 pairs"])
def test_rates_of_a_number_of_pairs_that_is_not_there_are_refused(
    tmp_path: Path, what: str
) -> None:
    file = tmp_path / "rates.json"
    rates = [row for row in RATES["rates"] if row["pairs"] != 64]
    file.write_text(json.dumps({**RATES, "rates": rates}))
    with pytest.raises(ValueError, match=r"no rates for (64|17) pairs; write it without --pairs"):
        tool("rate_figures").derived(file, what)


def test_rates_without_any_good_number_of_pairs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    rates = [{**row, "kept": False} for row in RATES["rates"]]
    file.write_text(json.dumps({**RATES, "rates": rates}))
    with pytest.raises(ValueError, match="no number of pairs"):
        tool("rate_figures").derived(file, "least pairs")
