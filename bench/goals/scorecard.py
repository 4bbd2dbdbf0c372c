# SPDX-License-Identifier: MIT
"""The figures of a run next to their bounds, skipped parts with reasons, and wrong answers; as text, table and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .timing import Times, quartiles, ratios

HOLDS, MISSES, SHOWN = "holds", "misses", "shown"
HEADERS = ("goal", "ratio or figure", "at", "figure", "wanted", "verdict")


@dataclass(frozen=True)
class Figure:
    """One number and its bound.  `low` and `high` are the quartiles of the rounds."""

    goal: str
    what: str
    at: str
    value: float
    low: float
    high: float
    relation: str = ">="
    bound: float | None = None
    unit: str = "x"
    medians: dict[str, float] = field(default_factory=dict)  # of `samples`
    samples: dict[str, list[float]] = field(default_factory=dict)  # raw, one for each round

    @property
    def verdict(self) -> str:
        """HOLDS or MISSES, or SHOWN without a bound."""
        if self.bound is None:
            return SHOWN
        held = self.value >= self.bound if self.relation == ">=" else self.value <= self.bound
        return HOLDS if held else MISSES

    @property
    def sure(self) -> bool:
        """Whether another run would probably give the same verdict: the bound is not between the quartiles."""
        return self.bound is None or not self.low < self.bound < self.high

    @property
    def verdict_text(self) -> str:
        return self.verdict if self.sure else f"{self.verdict}, not sure"

    @property
    def text(self) -> str:
        return f"{number(self.value)}{'' if self.unit == 'x' else ' ' + self.unit}"

    @property
    def spread(self) -> str:
        half = (self.high - self.low) / 2 / self.value if self.value else 0
        return f"±{half:.0%}" if self.high != self.low else ""

    @property
    def wanted(self) -> str:
        return "" if self.bound is None else f"{self.relation} {self.bound:g}"

    def as_dict(self) -> dict[str, Any]:
        names = ("goal", "what", "at", "value", "low", "high", "relation", "bound", "unit")
        fields = {name: getattr(self, name) for name in (*names, "medians", "samples")}
        return {**fields, "verdict": self.verdict, "sure": self.sure}


def number(value: float) -> str:
    """Format a number with three digits, or with all digits before the point from a hundred on."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(digits, 0)}f}"


@dataclass
class Scorecard:
    """The figures and verdicts of one run of the goals.  Each part adds its figures."""

    figures: list[Figure] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def ratio(
        self,
        goal: str,
        what: str,
        at: str,
        over: Times,
        under: Times,
        relation: str = ">=",
        bound: float | None = None,
    ) -> None:
        """Add the median of the ratios over / under of all rounds."""
        low, middle, high = quartiles(ratios(over, under))
        samples = {"over": list(over), "under": list(under)}
        medians = {name: quartiles(times)[1] for name, times in samples.items()}
        self.figures.append(
            Figure(
                goal, what, at, middle, low, high, relation, bound, medians=medians, samples=samples
            )
        )

    def value(
        self,
        goal: str,
        what: str,
        at: str,
        value: float,
        unit: str,
        relation: str = "<=",
        bound: float | None = None,
    ) -> None:
        """Add a number that is not a ratio of times."""
        self.figures.append(Figure(goal, what, at, value, value, value, relation, bound, unit))

    def skip(self, goal: str, what: str, reason: str) -> None:
        self.skipped.append({"goal": goal, "what": what, "reason": reason})

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def check(self, right: object, what: str) -> None:
        """Record a wrong answer.  Every timed answer is checked by a call of this method."""
        if not right:
            self.wrong.append(what)

    # ---- output -----------------------------------------------------------------------------

    def grouped(self) -> Iterator[tuple[str, str, list[Figure]]]:
        """Group figures by goal and comparison, with the goals in order."""
        groups: dict[tuple[str, str], list[Figure]] = {}
        for f in self.figures:
            groups.setdefault((f.goal, f.what), []).append(f)
        for goal, what in sorted(groups, key=lambda key: int(key[0][1:])):
            yield goal, what, groups[goal, what]

    def lines(self) -> Iterator[str]:
        for goal, what, figures in self.grouped():
            yield f"{goal:<4} {what}"
            for f in figures:
                figure = f"{f.text:>12} {f.spread:<6} {f.wanted:>9}"
                yield f"       {f.at:<34} {figure}  {f.verdict_text}"
        yield from (f"{s['goal']:<4} {s['what']}: skipped, {s['reason']}" for s in self.skipped)
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"WRONG: {what}" for what in self.wrong)
        yield f"goals: {self.total(self.figures)}; {len(self.wrong)} wrong answers"

    def markdown(self) -> Iterator[str]:
        """Yield the table of docs/results/NAME/goals.md, with one row for each figure."""
        yield from (row(cells) for cells in (HEADERS, ["---"] * len(HEADERS)))
        for goal, what, figures in self.grouped():
            for f in figures:
                figure = f"{f.text} {f.spread}".strip()
                yield row([goal, what, f.at, figure, f.wanted, f.verdict_text])
        for s in self.skipped:
            yield row([s["goal"], s["what"], "", "", "", f"skipped: {s['reason']}"])
        for note in self.notes:
            yield f"\nNote: {note}."

    @staticmethod
    def total(figures: Iterable[Figure]) -> str:
        verdicts = [f.verdict for f in figures]
        words = {MISSES: "miss", HOLDS: "hold", SHOWN: "shown"}
        counts = [(verdicts.count(verdict), word) for verdict, word in words.items()]
        return ", ".join(f"{n} {word}" for n, word in counts if n)


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
