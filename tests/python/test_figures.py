# SPDX-License-Identifier: MIT
"""The figures of the documentation are derived from a recorded run; another figure, text or record is noticed."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkout import needs_tools, tool

pytest.importorskip("tabulate", reason="no tabulate: the extra perf has it")
pytestmark = needs_tools


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool with a page, a record and a list below tmp_path."""
    module = tool("figures")
    module.medians.cache_clear()
    rows = [
        ("RW", "tree", 8, 1330.0),
        ("RW", "array", 8, 85_000.0),
        ("a b/c", "tree+index", 509, 3.16),
    ]
    results = [{"case": c, "backend": b, "n_slots": n, "median": m} for c, b, n, m in rows]
    (tmp_path / "record.json").write_text(json.dumps({"results": results}))
    (tmp_path / "page.md").write_text("A | 1.33 us | 63.9 |\nwith the\nindex 3.16\nns, 1.33 us.\n")
    (tmp_path / "list.toml").write_text("""
record = "."
file = "record.json"
[[text]]
page = "page.md"
text = "| {time} | {factor} |"
time = "RW tree 8"
factor = "RW array/tree 8"
[[text]]
page = "page.md"
text = "with the index {index}, {time}."
index = "a b/c tree+index 509"
time = "RW tree 8"
""")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "LIST", tmp_path / "list.toml")
    return module


def test_derived_figures_are_those_of_the_page(
    figures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures.main(["check"]) == 0
    assert capsys.readouterr().out == "figures: 4 derived, 0 different\n"


@pytest.mark.parametrize(
    ("old", "new"), [("1.33 us |", "1.34 us |"), ("| 63.9 |", "| 64.0 |"), ("3.16\nns", "3.16\nus")]
)
def test_each_other_figure_is_noticed_and_written(
    figures: Any, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = figures.ROOT / "page.md"
    right = page.read_text()
    page.write_text(right.replace(old, new))
    assert figures.main(["check"]) == 1
    assert "4 derived, 1 different" in capsys.readouterr().out
    assert figures.main(["write"]) == 0
    assert page.read_text().split() == right.split()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("with the", "without an"), "has this text 0 times, not once"),
        (("A | ", "A | 1.33 us | 63.9 | B | "), "has this text 2 times, not once"),
    ],
)
def test_changed_text_is_noticed(
    figures: Any, change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = figures.ROOT / "page.md"
    page.write_text(page.read_text().replace(*change))
    assert figures.main(["check"]) == 1
    assert message in capsys.readouterr().err


def test_missing_row_is_named(figures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    listed = figures.LIST.read_text()
    figures.LIST.write_text(listed.replace("RW tree 8", "RW tree 9", 1))
    assert figures.main(["check"]) == 1
    assert "there is no row RW, tree, 9 slots" in capsys.readouterr().err


def test_figures_of_the_documentation_are_derived_again(capsys: pytest.CaptureFixture[str]) -> None:
    module = tool("figures")
    module.medians.cache_clear()
    assert module.main(["check"]) == 0, capsys.readouterr().out
