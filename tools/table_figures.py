# SPDX-License-Identifier: MIT
"""The rows of a table in a page, from the table of a recorded file.

Both are tables with `|`; the file may have tabs instead.  Padding does not count: a row is the list of its cells.
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


def tabbed(text: str) -> Table:
    """Return the table of a file with tabs, with numbers as a page shows them."""
    header, *rows = [tuple(line.split("\t")) for line in text.splitlines()]
    return Table(header, [tuple(map(number, row)) for row in rows], [])


def number(cell: str) -> str:
    return f"{int(cell):,}" if cell.isdecimal() else cell


class Choice(NamedTuple):
    """The part of a recorded file that a page shows; None: all."""

    header: str | None = None  # the table with this header, such as "| a | b |"
    columns: list[str] | None = None
    rows: list[str] | None = None  # by their first cells, in this order
    last: str | None = None  # the rows whose last cell begins so


def recorded(file: Path, choice: Choice) -> Table:
    if not file.exists():
        raise ValueError(
            f"there is no {file}; docs/results/README.md has the command that writes it"
        )
    text = file.read_text(encoding="utf-8")
    found = [tabbed(text)] if file.suffix == ".tsv" else list(tables(text))
    if choice.header is not None:
        found = with_header(found, cells(choice.header))
    if len(found) != 1:
        which = "" if choice.header is None else f" with the header {choice.header}"
        raise ValueError(
            f"{file} has {len(found)} tables{which}, not one; it begins: {text[:100]!r}"
        )
    table = found[0] if choice.columns is None else columns_of(file, found[0], choice.columns)
    rows = table.rows
    if choice.rows is not None:
        rows = [row_of(file, table, name) for name in choice.rows]
    if choice.last is not None:
        rows = [row for row in rows if row[-1].startswith(choice.last)]
    return table._replace(rows=rows)


def columns_of(file: Path, table: Table, names: list[str]) -> Table:
    missing = [name for name in names if name not in table.header]
    if missing:
        raise ValueError(f"{file} has no column {missing[0]}; it has {', '.join(table.header)}")
    places = [table.header.index(name) for name in names]
    rows = [tuple(row[i] for i in places) for row in table.rows]
    return table._replace(header=tuple(names), rows=rows)


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


def pairs(page: Path, file: Path, choice: Choice) -> Iterator[Pair]:
    """Yield each row that page and file share alone, and each series of rows that differ as one pair."""
    wanted = recorded(file, choice)
    has = in_page(page, wanted.header)
    matcher = SequenceMatcher(None, has.rows, wanted.rows, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        alone = [(i + n, i + n + 1, k + n, k + n + 1) for n in range(j - i)]
        for a, b, c, d in alone if tag == "equal" else [(i, j, k, m)]:
            shown, derived = markdown(has.rows[a:b]), markdown(wanted.rows[c:d])
            yield Pair(has.begins[a], has.begins[b], shown, derived)


def markdown(rows: list[Row]) -> str:
    return "".join(f"|{''.join(f' {cell} |' if cell else ' |' for cell in row)}\n" for row in rows)
