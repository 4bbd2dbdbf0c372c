# SPDX-License-Identifier: MIT
"""figures.py - derive the figures of the documentation from a recorded run again.

    figures.py check     fail if a figure of a page is not what its file gives
    figures.py write     write the derived figures into the pages

docs/figures.toml names the record and, for each sentence or row of a page, the figures in it.  In `text` and `row` each
{name} stands for a figure; the rest must be in the page as it is, with any line breaks.

A figure of [[text]] comes from the tables of `memslots perf` or `memslots scale`, or from another `file` of the record:

    CASE BACKEND SLOTS         the median time of one operation, such as 1.33 us
    CASE BACKEND/OTHER SLOTS   the quotient of two medians, such as 64
    GOAL | WHAT | AT           in goals.json; goal_figures.py has more names
    LOOKUP | SLOTS             in callgrind.json: instructions

[[table]] is a table of a page whose rows are those of a file of the record.  It is the table with the header of the
file's table.  A file with more than one table needs `header`, such as "| readers | number |".  With `columns` and
`rows` the page shows only these, in this order.  A row is named by its first cell, or its first cells: "hot | 64".
With `last` it shows only the rows whose last cell begins so.  A `file` with a folder, such as "kernel/plans.txt", is
one of docs/results.

[[link]] is a text with a link to a file of the record; its {record} is the folder.
[[goal]] is a row of the table of goals; goal_figures.py fills its {measured}.
[[version]] is the same of the table of goals against an earlier version.
[[rate]] has the error rates of verdicts; rate_figures.py has their names.

`check` also fails for a figure that looks measured and has no source: it is not derived, and not in [[given]]
(given_figures.py).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import given_figures
import goal_figures
import rate_figures
import table_figures

from memslots.report import show

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "docs" / "figures.toml"
RESULTS = ROOT / "docs" / "results"
FOLDER = r"([a-z0-9.-]+)"
FIGURE = r"([0-9][0-9.,]*(?:\s+(?:ns|us|ms|s)\b)?)"
CELL = r"([^|]*?)"
RATE = r"([0-9][0-9.,]*(?:%|\s+(?:s|min)\b)?)"
HOLE = re.compile(r"\{(\w+)\}")


class FigureError(Exception):
    """The list does not fit the page or the file."""


class Place(NamedTuple):
    """One figure in a page: where it is, as it stands there, and as it is derived."""

    page: str
    begin: int
    end: int
    shown: str
    derived: str
    source: str


@cache
def medians(file: Path) -> dict[tuple[str, str, int], float]:
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["results"]
    return {(r["case"], r["backend"], r["n_slots"]): r["median"] for r in rows}


def derived(file: Path, what: str) -> str:
    """Return a figure as the page shows it."""
    case, backends, slots = what.rsplit(" ", 2)
    values = []
    for backend in backends.split("/"):
        key = (case, backend, int(slots))
        if key not in medians(file):
            raise FigureError(f"{file}: there is no row {case}, {backend}, {slots} slots")
        values.append(medians(file)[key])
    return show.time(values[0]) if len(values) == 1 else show.factor(values[0] / values[1])


def instructions(file: Path, what: str) -> str:
    """Return the number of instructions that callgrind counted."""
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["results"]
    found = {f"{row['case']} | {row['slots']}": row["instructions"] for row in rows}
    if what not in found:
        raise FigureError(f"{file}: there is no lookup {what}")
    return f"{found[what]:,.0f}"


SOURCES: dict[str, Callable[[Path, str], str]] = {
    "goals.json": goal_figures.one,
    "callgrind.json": instructions,
}


def pattern(text: str, figure: str, line: bool = False) -> re.Pattern[str]:
    """Return a pattern of the text, or of a whole line, with a group for each figure."""
    parts = HOLE.split(text)
    literal = [
        r"\s+".join(re.escape(word) for word in re.split(r"\s+", part)) for part in parts[::2]
    ]
    found = figure.join(literal)
    return re.compile(f"^{found}$" if line else found, re.MULTILINE)


def places(listed: dict[str, Any]) -> Iterator[Place]:
    record = ROOT / listed["record"]
    for entry in listed["text"]:
        yield from of_text(entry, record / entry.get("file", listed["file"]))
    for entry in listed.get("table", []):
        yield from of_table(entry, file_of(record, entry["file"]))
    for entry in listed.get("link", []):
        yield from of_link(entry, record.name)
    for entry in listed.get("goal", []):
        yield of_goal(entry, listed["goals"]["page"], record / listed["goals"]["file"])
    for entry in listed.get("version", []):
        yield of_goal(entry, listed["versions"]["page"], ROOT / listed["versions"]["file"])
    for entry in listed.get("rate", []):
        yield from of_rate(entry, ROOT / listed["rates"]["file"])


def file_of(record: Path, name: str) -> Path:
    return (RESULTS if "/" in name else record) / name


def of_text(entry: dict[str, str], file: Path) -> Iterator[Place]:
    source = SOURCES.get(file.name, derived)

    def figure(name: str) -> tuple[str, str]:
        return source(file, entry[name]), entry[name]

    yield from found_in(entry["page"], entry["text"], FIGURE, figure)


def of_goal(entry: dict[str, Any], page: str, file: Path) -> Place:
    cells = [cell.strip() for cell in entry["row"].strip().strip("|").split("|")]
    figures = goal_figures.figures_of(file)
    text = goal_figures.measured(figures, cells, entry["what"], entry["at"])
    source = f"{cells[0]}, {entry['what']}"
    (place,) = found_in(page, entry["row"], CELL, lambda _: (text, source), line=True)
    return place


def of_table(entry: dict[str, Any], file: Path) -> Iterator[Place]:
    page = entry["page"]
    choice = table_figures.Choice(*map(entry.get, table_figures.Choice._fields))
    for pair in table_figures.pairs(ROOT / page, file, choice):
        yield Place(page, *pair, file.name)


def of_link(entry: dict[str, str], record: str) -> Iterator[Place]:
    yield from found_in(entry["page"], entry["text"], FOLDER, lambda _: (record, "record"))


def of_rate(entry: dict[str, str], file: Path) -> Iterator[Place]:
    def figure(name: str) -> tuple[str, str]:
        return rate_figures.derived(file, entry[name]), entry[name]

    yield from found_in(entry["page"], entry["text"], RATE, figure)


def found_in(
    page: str, text: str, figure: str, derive: Callable[[str], tuple[str, str]], line: bool = False
) -> Iterator[Place]:
    """Yield the figures of a text that is once in the page.  derive: name -> figure and its source."""
    found = list(pattern(text, figure, line).finditer((ROOT / page).read_text(encoding="utf-8")))
    if len(found) != 1:
        raise FigureError(f"{page} has this text {len(found)} times, not once: {text}")
    for i, name in enumerate(HOLE.findall(text), 1):
        begin, end = found[0].span(i)
        yield Place(page, begin, end, " ".join(found[0][i].split()), *derive(name))


def write(found: list[Place]) -> None:
    for name in dict.fromkeys(place.page for place in found):
        page = (ROOT / name).read_text(encoding="utf-8")
        for place in sorted((p for p in found if p.page == name), key=lambda p: -p.begin):
            page = page[: place.begin] + place.derived + page[place.end :]
        (ROOT / name).write_text(page, encoding="utf-8")


def spans_of(found: list[Place]) -> dict[str, list[tuple[int, int]]]:
    spans: dict[str, list[tuple[int, int]]] = {}
    for place in found:
        spans.setdefault(place.page, []).append((place.begin, place.end))
    return spans


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("check", "write"))
    args = parser.parse_args(argv)
    try:
        listed = tomllib.loads(LIST.read_text(encoding="utf-8"))
        found = list(places(listed))
        faults = list(given_figures.faults(ROOT, listed, spans_of(found)))
    except (FigureError, ValueError, OSError) as e:
        print(f"figures: {e}", file=sys.stderr)
        return 1
    wrong = [place for place in found if place.shown != place.derived]
    for place in wrong:
        shown, derived = (text.strip() or "nothing" for text in (place.shown, place.derived))
        print(f"figures: {place.page}: {shown} -> {derived} ({place.source})")
    if args.command == "write":
        write(wrong)
        print(f"figures: {len(wrong)} of {len(found)} written")
        return 0
    for fault in faults:
        print(f"figures: {fault.place}: {fault.text}")
    print(f"figures: {len(found)} derived, {len(wrong)} different, {len(faults)} without a source")
    return 1 if wrong or faults else 0


if __name__ == "__main__":
    sys.exit(main())
