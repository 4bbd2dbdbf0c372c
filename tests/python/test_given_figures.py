# SPDX-License-Identifier: MIT
"""A figure of a page that looks measured is noticed, unless a file derives it or the list says it is given."""

from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, needs_tools, tool

pytest.importorskip("tabulate", reason="no tabulate: the extra perf has it")
pytestmark = needs_tools


def figures(page: str) -> list[str]:
    found = tool("given_figures").looking_measured(page)
    return [" ".join(page[begin:end].split()) for begin, end in found]


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("It takes 30 ns.", "30 ns"),
        ("It takes 1,500\nms each.", "1,500 ms"),
        ("in 0.9 us", "0.9 us"),
        ("about 4 min, at most", "4 min"),
        ("within three seconds", "three seconds"),
        ("from 10 to 18 % of them", "18 %"),
        ("97.5% of them", "97.5%"),
        ("5 per cent", "5 per cent"),
        ("is 64 times as fast", "64 times"),
        ("takes three times as long", "three times"),
        ("gains a factor of 1.33", "factor of 1.33"),
        ("is twice as fast", "twice as"),
        ("half the time of", "half the time"),
        ("takes 1/61 of it", "1/61"),
        ("67 instructions", "67 instructions"),
        ("40 bytes a slot", "40 bytes a slot"),
        ("5 lookups/s", "5 lookups/s"),
        ("835 M/s", "835 M/s"),
        ("12 GB/s", "12 GB/s"),
        ("70 changes per second", "70 changes per second"),
        ("72 million gfns", "72 million"),
        ("a ratio of 0.87", "0.87"),
        ("made 11,429,203 calls", "11,429,203"),
        ("| a | 12 |", "12"),
        ("| a | **1.3** | b |", "**1.3**"),
        ("```\nmake perf     # about 2 minutes\n```", "2 minutes"),
    ],
)
def test_figure_of_this_shape_is_noticed(text: str, figure: str) -> None:
    assert figures(text) == [figure]


def test_each_figure_of_a_row_is_noticed() -> None:
    assert figures("| 8 | 3 | 1.5 (2.5) | 4 us |\n") == ["3", "1.5", "2.5", "4 us"]


@pytest.mark.parametrize(
    "text",
    [
        "Linux 6.18.44 and Linux 5.17, KVM since 5.17, Python 3.11 to 3.14, QEMU 7.2, gcc 12.2.0, version 1.2.3",
        "32,764 slots, 4,096 slots, 10,000 gfns, 1,000,000 slots, 64 KiB, 2^23 gfns, H16, P1",
        "`30 ns` and [a link](a/2.5.md)",
        "```python\nx = 2.5  # 30 ns\n```",
        "```\nprints 30 ns\n```",
        "| 24 | a row that is named by a number |",
        "two instructions, a minute or two, twice in a row",
    ],
)
def test_versions_sizes_and_code_are_no_measured_figures(text: str) -> None:
    assert figures(text) == []


# ---- the list ------------------------------------------------------------------------------------

PAGE = """A walk takes 30 ns, at most 100 times.

| case | limit | measured |
|---|---|---|
| one, `a\\|b` | 15 | 4 |

It is 2.5 in the end.
"""
LISTED = {
    "scan": {"pages": ["*.md"]},
    "given": [
        {"page": "page.md", "text": ["at\nmost 100 times"], "why": "a limit"},
        {"page": "page.md", "column": "limit", "why": "chosen"},
    ],
}
LEFT = [
    "page.md:1: 30 ns has no source",
    "page.md:5: 4 has no source",
    "page.md:7: 2.5 has no source",
]


def faults(root: Path, listed: dict[str, Any], derived: list[str]) -> list[str]:
    """Of a page whose texts `derived` are derived."""
    (root / "page.md").write_text(PAGE)
    spans = [(PAGE.index(text), PAGE.index(text) + len(text)) for text in derived]
    found = tool("given_figures").faults(root, listed, {"page.md": spans})
    return [f"{fault.place}: {fault.text}" for fault in found]


def test_figure_that_is_neither_derived_nor_given_is_named_with_its_line(tmp_path: Path) -> None:
    assert faults(tmp_path, LISTED, []) == LEFT
    assert faults(tmp_path, LISTED, ["30 ns"]) == LEFT[1:]
    assert faults(tmp_path, LISTED, ["30 ns", "| 4 |", "2.5"]) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"text": "at most 90 times"},
            "page.md: 'at most 90 times' is not there; remove the entry",
        ),
        (
            {"text": "It is 2.5 in"},
            "page.md: 'It is 2.5 in' has no figure without a source; remove",
        ),
        (
            {"text": "A walk takes"},
            "page.md: 'A walk takes' has no figure without a source; remove",
        ),
        ({"column": "bound"}, "page.md: 'bound' is not there; remove the entry"),
        ({"column": "case"}, "page.md: 'case' has no figure without a source; remove the entry"),
        (
            {"page": "other.md", "text": "1 ns"},
            "other.md: is no page that is scanned; remove its entry",
        ),
    ],
)
def test_entry_that_no_figure_needs_is_noticed(
    tmp_path: Path, entry: dict[str, str], message: str
) -> None:
    more = {"page": "page.md", "why": "because", **entry}
    listed = {**LISTED, "given": [*LISTED["given"], more]}
    (found,) = faults(tmp_path, listed, ["30 ns", "| 4 |", "2.5"])
    assert found.startswith(message)


@pytest.mark.parametrize("entry", [{"text": "2.5"}, {"why": "a limit"}, {"text": "2.5", "why": ""}])
def test_entry_without_a_reason_or_a_text_is_refused(tmp_path: Path, entry: dict[str, str]) -> None:
    listed = {**LISTED, "given": [{"page": "page.md", **entry}]}
    with pytest.raises(ValueError, match="needs a page, a text or a column, and why"):
        faults(tmp_path, listed, [])


def test_check_fails_for_a_figure_without_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tool("figures")
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "list.toml").write_text('record = "."\ntext = []\n[scan]\npages = ["page.md"]\n')
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "LIST", tmp_path / "list.toml")
    assert module.main(["check"]) == 1
    out = capsys.readouterr().out
    assert "figures: page.md:1: 30 ns has no source\n" in out
    assert "0 derived, 0 different, 5 without a source\n" in out
    assert module.main(["write"]) == 0  # it writes what it can derive


def test_every_page_of_the_documentation_is_scanned() -> None:
    module = tool("figures")
    listed = module.tomllib.loads(module.LIST.read_text(encoding="utf-8"))
    pages = {
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "docs" / "results" / "README.md",
    }
    names = {page.relative_to(ROOT).as_posix() for page in pages}
    assert set(tool("given_figures").pages_of(ROOT, listed["scan"])) == names
