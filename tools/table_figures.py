# SPDX-License-Identifier: MIT
"""The rows of a table in a page, from the table of a recorded file.

Both are tables with `|`.  Padding does not count: a row is the list of its cells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
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


def recorded(file: Path, header: str | None, names: list[str] | None) -> Table:
    """Return the table of the file, or the one with this header; with `names` only these rows, in this order."""
    if not file.exists():
        raise ValueError(f"the record {file.parent} lacks {file.name}; `make results` writes it")
    text = file.read_text(encoding="utf-8")
    found = list(tables(text)) if header is None else with_header(tables(text), cells(header))
    if len(found) != 1:
        which = "tables" if header is None else f"tables with the header {header}"
        raise ValueError(f"{file} has {len(found)} {which}, not one; it begins: {text[:100]!r}")
    if names is None:
        return found[0]
    return found[0]._replace(rows=[row_of(file, found[0], name) for name in names])


def row_of(file: Path, table: Table, name: str) -> Row:
    """Return the row that begins with these cells."""
    begin = cells(name)
    found = [row for row in table.rows if row[: len(begin)] == begin]
    if len(found) != 1:
        raise ValueError(f"{file} has the row {name} {len(found)} times, not once")
    return found[0]


def with_header(found: Iterable[Table], header: Row) -> list[Table]:
    return [table for table in found if table.header == header]


def in_page(page: Path, header: Row) -> Table:
    found = with_header(tables(page.read_text(encoding="utf-8")), header)
    if len(found) != 1:
        shown = markdown([header]).strip()
        raise ValueError(
            f"{page} has a table with this header {len(found)} times, not once: {shown}"
        )
    return found[0]


def pairs(
    page: Path, file: Path, header: str | None = None, names: list[str] | None = None
) -> Iterator[Pair]:
    """Yield each row that page and file share alone, and each series of rows that differ as one pair."""
    wanted = recorded(file, header, names)
    has = in_page(page, wanted.header)
    matcher = SequenceMatcher(None, has.rows, wanted.rows, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        alone = [(i + n, i + n + 1, k + n, k + n + 1) for n in range(j - i)]
        for a, b, c, d in alone if tag == "equal" else [(i, j, k, m)]:
            shown, derived = markdown(has.rows[a:b]), markdown(wanted.rows[c:d])
            yield Pair(has.begins[a], has.begins[b], shown, derived)


def markdown(rows: list[Row]) -> str:
    return "".join(f"|{''.join(f' {cell} |' if cell else ' |' for cell in row)}\n" for row in rows)
