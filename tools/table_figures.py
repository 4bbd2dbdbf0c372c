# SPDX-License-Identifier: MIT
"""The rows of a table in a page, from the table of a recorded file.

Both are tables with `|`.  Padding does not count: a row is the list of its cells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

RULE = re.compile(r"\|[-: |]+\|")  # the line below a header

Row = tuple[str, ...]


class Table(NamedTuple):
    header: Row
    rows: list[Row]
    begins: list[int]  # the places of the rows in the text, and the end of the last one


class Pair(NamedTuple):
    """Rows of a page, and those that belong there."""

    begin: int
    end: int
    shown: str
    derived: str


def cells(line: str) -> Row:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def tables(text: str) -> Iterator[Table]:
    lines = text.splitlines(keepends=True)
    places = [0]
    for line in lines:
        places.append(places[-1] + len(line))
    for i, line in enumerate(lines):
        if not RULE.fullmatch(line.rstrip()) or not i or lines[i - 1][:1] != "|":
            continue
        begin = end = i + 1
        while end < len(lines) and lines[end][:1] == "|":
            end += 1
        rows = [cells(row) for row in lines[begin:end]]
        yield Table(cells(lines[i - 1]), rows, places[begin : end + 1])


def recorded(file: Path, names: list[str] | None) -> Table:
    """Return the table of the file; with `names` only the rows with these first cells, in this order."""
    if not file.exists():
        raise ValueError(f"the record {file.parent} lacks {file.name}; `make results` writes it")
    text = file.read_text(encoding="utf-8")
    found = list(tables(text))
    if len(found) != 1:
        raise ValueError(f"{file} has {len(found)} tables, not one; it begins: {text[:100]!r}")
    if names is None:
        return found[0]
    rows = []
    for name in names:
        named = [row for row in found[0].rows if row[0] == name]
        if len(named) != 1:
            raise ValueError(f"{file} has the row {name} {len(named)} times, not once")
        rows += named
    return found[0]._replace(rows=rows)


def in_page(page: Path, header: Row) -> Table:
    found = [t for t in tables(page.read_text(encoding="utf-8")) if t.header == header]
    if len(found) != 1:
        shown = markdown([header]).strip()
        raise ValueError(
            f"{page} has a table with this header {len(found)} times, not once: {shown}"
        )
    return found[0]


def pairs(page: Path, file: Path, names: list[str] | None) -> Iterator[Pair]:
    """Yield each row that page and file share alone, and each series of rows that differ as one pair."""
    wanted = recorded(file, names)
    has = in_page(page, wanted.header)
    matcher = SequenceMatcher(None, has.rows, wanted.rows, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        alone = [(i + n, i + n + 1, k + n, k + n + 1) for n in range(j - i)]
        for a, b, c, d in alone if tag == "equal" else [(i, j, k, m)]:
            shown, derived = markdown(has.rows[a:b]), markdown(wanted.rows[c:d])
            yield Pair(has.begins[a], has.begins[b], shown, derived)


def markdown(rows: list[Row]) -> str:
    return "".join(f"|{''.join(f' {cell} |' if cell else ' |' for cell in row)}\n" for row in rows)
