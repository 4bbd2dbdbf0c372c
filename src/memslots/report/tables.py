# SPDX-License-Identifier: MIT
"""Tables as text.

A table that is wider than the terminal is split into several tables, one below the other.  A number is never split.
A width of None means that lines may have any length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tabulate import SEPARATING_LINE, DataRow, Line, TableFormat, tabulate

from .words import wrapped

PROSE = 118  # the greatest width of a paragraph
GAP = 2  # spaces between columns

#: A rule below the headers, and columns without padding.
FORMAT = TableFormat(
    lineabove=None,
    linebelowheader=Line("", "-", " " * GAP, ""),
    linebetweenrows=None,
    linebelow=None,
    headerrow=None,
    datarow=DataRow("", " " * GAP, ""),
    padding=0,
    with_header_hide=None,
)


class Table(NamedTuple):
    """The first column has the labels.  A row of one cell is a heading."""

    body: Sequence[Sequence[str]]
    headers: Sequence[str]


Part = Table | str  # a part of a report


def page(parts: Iterable[Part], width: int | None) -> str:
    """Join the parts that are not empty, with a blank line between them."""
    texts = (text(part, width) if isinstance(part, Table) else part for part in parts)
    return "\n\n".join(t for t in texts if t)


def paragraphs(lines: Iterable[str], width: int | None) -> str:
    """Wrap each line."""
    return "\n".join(wrapped(line, min(width or PROSE, PROSE)) for line in lines)


def text(table: Table, width: int | None) -> str:
    """Format a table: as a whole if it fits, otherwise in blocks of columns, otherwise with one cell per line."""
    if width is None or sum(_widths(table)) + GAP * (len(table.headers) - 1) <= width:
        return _whole(table)
    title, *names = table.headers
    if len(title) > max((len(row[0]) for row in table.body), default=0):
        return f"{wrapped(title, width)}\n{text(Table(table.body, ['', *names]), width)}"
    return "\n\n".join(map(_whole, _blocks(table, width))) or "\n".join(_records(table, width))


def _whole(table: Table) -> str:
    """Align labels to the left and all other columns to the right."""
    made: str = tabulate(
        [table.headers, SEPARATING_LINE, *table.body],
        tablefmt=FORMAT,
        colalign=["left"] + ["right"] * (len(table.headers) - 1),
        disable_numparse=True,
        preserve_whitespace=True,
    )
    return made


def _widths(table: Table) -> list[int]:
    rows = [table.headers, *table.body]
    return [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(table.headers))]


def _blocks(table: Table, width: int) -> Iterator[Table]:
    """Yield tables with the labels and as many columns as fit.

    Yield nothing if some column does not fit next to the labels.
    """
    label, *others = _widths(table)
    if any(label + GAP + w > width for w in others):
        return
    begin, used = 1, label
    for i, w in enumerate(others, 1):
        if used + GAP + w > width:
            yield _columns(table, begin, i)
            begin, used = i, label
        used += GAP + w
    yield _columns(table, begin, len(table.headers))


def _columns(table: Table, begin: int, end: int) -> Table:
    body = [[row[0], *row[begin:end]] for row in table.body]
    return Table(body, [table.headers[0], *table.headers[begin:end]])


def _records(table: Table, width: int) -> Iterator[str]:
    """Yield the label of each row on its own line, then a line for each cell with the name of its column."""
    title, *names = table.headers
    if title:
        yield wrapped(title, width)
    yield "-" * width
    longest = max(map(len, names), default=0)
    for label, *cells in table.body:
        yield label
        indent = " " * (len(label) - len(label.lstrip()) + GAP)
        for name, cell in zip(names, cells, strict=False):
            yield _record(f"{indent}{name:<{longest}}{' ' * GAP}{cell}", indent, name, cell, width)


def _record(line: str, indent: str, name: str, cell: str, width: int) -> str:
    if len(line) <= width:
        return line
    return f"{indent}{name}\n" + wrapped(f"{indent}  {cell}", width, indent + "  ")
