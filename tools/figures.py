# SPDX-License-Identifier: MIT
"""figures.py - derive the figures of the documentation from a recorded run again.

    figures.py check     fail if a figure of a page is not what its file gives
    figures.py write     write the derived figures into the pages

docs/figures.toml names the record, its command, and for each sentence or row of a page the figures in it.  In `text`
each {name} stands for a figure; the rest must be in the page as it is, with any line breaks.  A figure is

    CASE BACKEND SLOTS         the median time of one operation, such as 1.33 us
    CASE BACKEND/OTHER SLOTS   the quotient of two medians, such as 64
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from memslots.report import show

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "docs" / "figures.toml"
FIGURE = r"([0-9][0-9.,]*(?:\s+(?:ns|us|ms|s)\b)?)"
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


def pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of the text with a group for each figure."""
    parts = HOLE.split(text)
    literal = [
        r"\s+".join(re.escape(word) for word in re.split(r"\s+", part)) for part in parts[::2]
    ]
    return re.compile(FIGURE.join(literal))


def places(listed: dict[str, Any]) -> Iterator[Place]:
    file = ROOT / listed["record"] / listed["file"]
    for entry in listed["text"]:
        page = (ROOT / entry["page"]).read_text(encoding="utf-8")
        found = list(pattern(entry["text"]).finditer(page))
        if len(found) != 1:
            raise FigureError(
                f"{entry['page']} has this text {len(found)} times, not once: {entry['text']}"
            )
        for i, name in enumerate(HOLE.findall(entry["text"]), 1):
            begin, end = found[0].span(i)
            shown = " ".join(page[begin:end].split())
            yield Place(entry["page"], begin, end, shown, derived(file, entry[name]), entry[name])


def write(found: list[Place]) -> None:
    for name in dict.fromkeys(place.page for place in found):
        page = (ROOT / name).read_text(encoding="utf-8")
        for place in sorted((p for p in found if p.page == name), key=lambda p: -p.begin):
            page = page[: place.begin] + place.derived + page[place.end :]
        (ROOT / name).write_text(page, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("check", "write"))
    args = parser.parse_args(argv)
    try:
        found = list(places(tomllib.loads(LIST.read_text(encoding="utf-8"))))
    except FigureError as e:
        print(f"figures: {e}", file=sys.stderr)
        return 1
    wrong = [place for place in found if place.shown != place.derived]
    for place in wrong:
        print(f"figures: {place.page}: {place.shown} -> {place.derived} ({place.source})")
    if args.command == "write":
        write(found)
        print(f"figures: {len(wrong)} of {len(found)} written")
        return 0
    print(f"figures: {len(found)} derived, {len(wrong)} different")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
