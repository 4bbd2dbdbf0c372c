# SPDX-License-Identifier: MIT
"""docs/locking.md has a row for each atomic of the core, for each row that the core cites, and for each named point."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "_core"
PAGE = ROOT / "docs" / "locking.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="there is no checkout around the tests")

#: An atomic member or variable: its type, then one or more names.
ATOMIC = re.compile(r"\b_Atomic(?: \w+ |\([^)]*\*\) ?)(\w+(?:\[[^\]]*\])?(?:, \w+)*)(?: = [^;]*)?;")


def rows(header: str) -> list[list[str]]:
    table = PAGE.read_text(encoding="utf-8").partition(f"\n| {header} |")[2].partition("\n\n")[0]
    lines = table.splitlines()[2:]
    assert lines, f"no table {header}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def sources() -> list[Path]:
    return sorted(path for path in CORE.rglob("*") if path.suffix in (".c", ".h"))


def atomics(text: str) -> Iterator[tuple[str, str]]:
    """The name of each atomic, and the struct that has it, or ""."""
    struct = ""
    for line in text.splitlines():
        if start := re.match(r"struct (\w+) \{", line):
            struct = start[1]
        elif line.startswith("}"):
            struct = ""
        if found := ATOMIC.search(line):
            yield from ((re.sub(r"\[.*", "", name), struct) for name in found[1].split(", "))


def lacking(text: str, where: str) -> list[str]:
    """The atomics of a source text for which the cells `where` name neither the atomic nor its struct."""
    named = set(re.findall(r"\w+", where))
    return [name for name, struct in atomics(text) if not {name, struct} & named]


def test_every_atomic_has_a_row() -> None:
    where = " ".join(row[1] for row in rows("row"))
    found = {path.name: lacking(path.read_text(encoding="utf-8"), where) for path in sources()}
    assert sum(len(list(atomics(path.read_text(encoding="utf-8")))) for path in sources()) > 40
    assert {name: missing for name, missing in found.items() if missing} == {}


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("struct s {\n\t_Atomic uint64_t a, b; /* row */\n};", ["a", "b"]),
        ("struct s {\n\tcache_aligned _Atomic(struct t *) pointer[N];\n};", ["pointer"]),
        ("static _Atomic uint32_t global = 1;", ["global"]),
        ("struct known {\n\t_Atomic uint64_t a;\n};\n_Atomic uint64_t c;", ["c"]),
        ("static void f(_Atomic uint64_t *count)\n{\n}", []),
    ],
)
def test_atomic_without_a_row_is_found(text: str, missing: list[str]) -> None:
    assert lacking(text, "`known` and `other.x`") == missing


def test_every_row_that_the_core_cites_exists() -> None:
    names = {name for row in rows("row") for name in re.split(r", (?!in$|out$)", row[0])}
    cited = set()
    for path in sources():
        for list_of_rows in re.findall(
            r'\brows? ((?:"[^"\n]+"(?:, | and )?)+)', path.read_text("utf-8")
        ):
            cited |= set(re.findall(r'"([^"]+)"', list_of_rows))
    assert len(cited) > 10
    assert cited <= names


def test_documented_points_are_those_of_the_core() -> None:
    text = (CORE / "points.h").read_text(encoding="utf-8")
    points = set(re.findall(r"^\tPOINT\((\w+)\)", text, re.MULTILINE))
    assert points
    assert {row[0] for row in rows("point")} == points
