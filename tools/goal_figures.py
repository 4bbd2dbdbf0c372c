# SPDX-License-Identifier: MIT
"""The column "measured" of a table of goals, from goals.json of a record or from a recorded comparison of two versions.

A row of the table has a list of figures: each `what` at each `at`.  Up to three are listed in this order; more become a
range.  A figure has two digits, or as many as keep its verdict: 2.54 is not shown as 2.5 if at most 2.5 is wanted.
Figures that miss the bound of the row are bold.  If the record lacks one of them, the cell is NOT_RECORDED.

A comparison is the output of `bench_compare.py A B --suite --json`.  The row of test_NAME[FIRST-REST] has the goal
`NAME`, with its backquotes, `what` FIRST and `at` REST.  Its figure is A / B: how many times as fast B is.

one() has a figure of goals.json for a sentence:

    GOAL | WHAT | AT      such as P2 | batch / np.copyto of the gfns | 8 slots
    least GOAL | WHAT     the least figure of all places; `most` is the greatest one
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from memslots.report.words import listed

NOT_RECORDED = "not recorded"
LISTED = 3  # figures, at most; more are a range
FRACTIONS = Fraction(1, 10)  # figures with a bound below this are shown as 1/38
DIGITS, MOST_DIGITS = 2, 6
WANTED = re.compile(r"(>=|<=) ([\d./]+)")
COMPARED = re.compile(r".*::test_(\w+)\[([^-\]]+)-(.+)\]")
ENDS: dict[str, Callable[[Iterable[float]], float]] = {"least": min, "most": max}

Figures = dict[tuple[str, str, str], float]


class Bound(NamedTuple):
    relation: str
    limit: Fraction

    def holds(self, value: float | Fraction) -> bool:
        return value >= self.limit if self.relation == ">=" else value <= self.limit


@cache
def figures_of(file: Path) -> Figures:
    """Return the figures by goal, name and place; none if there is no such file."""
    if not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "figures" in found:
        return {(row["goal"], row["what"], row["at"]): row["value"] for row in found["figures"]}
    if "rows" in found:
        return dict(map(compared, found["rows"]))
    raise ValueError(f"{file} has neither `figures` nor `rows`; write a comparison with --json")


def compared(row: dict[str, Any]) -> tuple[tuple[str, str, str], float]:
    found = COMPARED.fullmatch(row["benchmark"])
    if not found:
        raise ValueError(f"{row['benchmark']} is no test_NAME[FIRST-REST]")
    name, first, rest = found.groups()
    return (f"`{name}`", first, rest), 1 / row["ratio"]


def one(file: Path, name: str) -> str:
    """Return a figure for a sentence."""
    goal, what, *at = name.split(" | ")
    figures = figures_of(file)
    end, _, of = goal.rpartition(" ")
    keys = [(of, what, *at)] if at else [key for key in figures if key[:2] == (of, what)]
    found = [figures[key] for key in keys if key in figures]
    if not found:
        raise ValueError(f"{file} has no figure {name}")
    return shown(ENDS[end](found) if end else found[0], None)


def bound_of(wanted: str) -> Bound | None:
    """Return the bound of a cell such as `<= 1/40`, or None for an empty cell."""
    if not wanted:
        return None
    found = WANTED.fullmatch(wanted)
    if not found:
        raise ValueError(f"{wanted!r} is no bound; one is `>= 1.5` or `<= 1/40`")
    return Bound(found[1], Fraction(found[2]))


def measured(figures: Figures, cells: list[str], what: str | list[str], at: list[int | str]) -> str:
    """Return the text of the cell.  cells: those of the row, from the goal to the bound."""
    goal, bound = cells[0], bound_of(cells[-1])
    names = [what] if isinstance(what, str) else what
    keys = [(goal, name, place(one)) for name in names for one in at]
    if not all(key in figures for key in keys):
        return NOT_RECORDED
    values = [figures[key] for key in keys]
    if len(values) <= LISTED:
        return listed(bold(shown(value, bound), misses(value, bound)) for value in values)
    ends = dict.fromkeys(shown(value, bound) for value in (min(values), max(values)))
    return bold(" to ".join(ends), any(misses(value, bound) for value in values))


def place(at: int | str) -> str:
    """Return a place as goals.json spells it.  A number is that many slots."""
    return at if isinstance(at, str) else f"{at:,} slots"


def misses(value: float, bound: Bound | None) -> bool:
    return bound is not None and not bound.holds(value)


def bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def shown(value: float, bound: Bound | None) -> str:
    """Return the value with two digits, or with the first number of digits that has the same verdict."""
    for digits in range(DIGITS, MOST_DIGITS):
        text = number(value, bound, digits)
        if bound is None or bound.holds(value_of(text)) == bound.holds(value):
            break
    return text


def value_of(text: str) -> Fraction:
    """Return the value of a shown figure."""
    over, slash, under = text.replace(",", "").partition("/")
    return Fraction(over) / Fraction(under) if slash else Fraction(over)


def number(value: float, bound: Bound | None, digits: int) -> str:
    if bound and bound.limit < FRACTIONS and bound.relation == "<=" and 0 < value < 1:
        return f"1/{rounded(1 / value, digits)}"
    return rounded(value, digits)


def rounded(value: float, digits: int) -> str:
    """Format a number with this many digits, but with all that stand before the point."""
    before = math.floor(math.log10(value)) + 1 if value > 0 else 1
    return f"{value:,.{max(digits - before, 0)}f}"
