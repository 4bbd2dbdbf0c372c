# SPDX-License-Identifier: MIT
"""The ledger of instructions: a difference of more than 0.5 % fails, and more instructions need a reason."""

from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, needs_tools, tool

pytestmark = needs_tools


@pytest.fixture
def ledger() -> Any:
    return tool("ledger")


def line(ledger: Any, n: float, path: str = "hot", reason: str = "", tools: str = "gcc 1") -> Any:
    return ledger.Line(path, 64, n, tools, "c0ffee", reason)


@pytest.mark.parametrize(
    ("now", "differs", "grew"),
    [(200.0, False, False), (201.0, False, False), (201.1, True, True), (199.0, False, False), (198.9, True, False)],
)  # fmt: skip
def test_limit_is_half_a_percent_of_the_ledger(
    ledger: Any, now: float, differs: bool, grew: bool
) -> None:
    before = line(ledger, 200.0)
    assert (ledger.differs(before, now), ledger.grew(before, now)) == (differs, grew)


def test_check_names_each_path_that_differs(
    ledger: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line(ledger, 100.0), line(ledger, 50.0, "index"), line(ledger, 9.0, "gone")]
    now = {("hot", 64): 101.0, ("index", 64): 50.2, ("new", 64): 7.0}
    assert ledger.check(lines, now) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == [
        "ledger: hot at 64 slots: 100.00 -> 101.00 instructions (+1.0%)",
        "ledger: new at 64 slots: 7.00 instructions, and the ledger has no line",
        "ledger: gone at 64 slots: is in the ledger and is not counted",
    ]
    assert out[3].startswith("ledger: 3 of 3 paths differ by more than 0.5%")
    assert ledger.check(lines[:2], {("hot", 64): 100.4, ("index", 64): 50.0}) == 0
    assert ledger.check(lines[:1], {("hot", 64): 99.0}) == 1  # fewer instructions are recorded too


def test_only_the_last_line_of_a_path_counts(ledger: Any) -> None:
    lines = [line(ledger, 100.0), line(ledger, 90.0)]
    assert ledger.check(lines, {("hot", 64): 90.0}) == 0
    assert ledger.check(lines, {("hot", 64): 100.0}) == 1


def test_more_instructions_need_a_reason(ledger: Any) -> None:
    lines = [line(ledger, 100.0)]
    with pytest.raises(ledger.LedgerError, match=r"hot at 64 slots grew from 100\.00 to 120\.00"):
        ledger.continued(lines, {("hot", 64): 120.0}, "gcc 1", "abc", "")
    found = ledger.continued(lines, {("hot", 64): 120.0}, "gcc 1", "abc", "a new check")
    assert found == [*lines, ledger.Line("hot", 64, 120.0, "gcc 1", "abc", "a new check")]
    fewer = ledger.continued(lines, {("hot", 64): 80.0}, "gcc 1", "abc", "not needed")
    assert fewer[1].reason == ""
    assert ledger.continued(lines, {("hot", 64): 100.3}, "gcc 1", "abc", "") == lines
    other = ledger.continued(lines, {("hot", 64): 120.0}, "gcc 2", "abc", "")
    assert other[1].tools == "gcc 2"


def test_file_with_growth_and_without_a_reason_is_refused(ledger: Any, tmp_path: Path) -> None:
    file = tmp_path / "ledger.csv"
    good = [line(ledger, 100.0), line(ledger, 120.0, reason="a, b"), line(ledger, 119.0)]
    ledger.write(file, good)
    assert ledger.read(file) == good
    ledger.write(file, [good[0], good[1]._replace(reason="")])
    with pytest.raises(
        ledger.LedgerError, match=r"ledger\.csv:3: hot at 64 slots grew from 100 to 120"
    ):
        ledger.read(file)
    ledger.write(file, [good[0], line(ledger, 120.0, tools="gcc 2")])
    assert len(ledger.read(file)) == 2
    file.write_text("a,b\n")
    with pytest.raises(ledger.LedgerError, match="the first line must be"):
        ledger.read(file)


def test_total_is_read_from_the_profile(ledger: Any) -> None:
    assert ledger.summary("events: Ir\nfn=a\n1 2\nsummary: 123456\n") == 123456
    with pytest.raises(ledger.LedgerError, match="wrote no total"):
        ledger.summary("events: Ir\n")


def test_count_is_the_difference_of_two_runs(ledger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def total(command: list[str]) -> int:
        seen.append(command)
        return 1_000_000 + 37 * int(command[-1])

    monkeypatch.setattr(ledger, "total", total)
    path = ledger.HotPath("scalar.c", "hot", 64, (100, 300))
    assert ledger.count(Path("scalar"), path) == 37
    assert seen == [["scalar", "hot", "64", "100"], ["scalar", "hot", "64", "300"]]


def test_other_tools_are_not_compared(
    ledger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ledger.csv"
    ledger.write(file, [line(ledger, 100.0, tools="gcc 99")])
    monkeypatch.setattr(ledger, "LEDGER", file)
    monkeypatch.setattr(ledger.shutil, "which", lambda name: "/usr/bin/valgrind")
    monkeypatch.setattr(ledger, "tools", lambda: "gcc 1")
    assert ledger.main(["check"]) == 0
    assert "NOT compared, it was counted with gcc 99, and this is gcc 1" in capsys.readouterr().out
    monkeypatch.setattr(ledger.shutil, "which", lambda name: None)
    assert ledger.main(["check"]) == 0
    assert "NOT checked, valgrind is not installed" in capsys.readouterr().out


def test_ledger_of_the_repository_is_valid_and_complete(ledger: Any) -> None:
    lines = ledger.read(ROOT / "bench" / "ledger.csv")
    assert {entry.key for entry in lines} == {(path.case, path.slots) for path in ledger.PATHS}
    assert all(entry.instructions > 0 for entry in lines)
