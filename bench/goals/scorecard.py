# SPDX-License-Identifier: MIT
"""The figures of a run next to their bounds, skipped parts with reasons, and wrong answers; as text, table and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .timing import Times, quartiles, ratios

HOLDS, MISSES, SHOWN = "holds", "misses", "shown"


@dataclass(frozen=True)
class Figure:
    """One number beside its bound.  `low` and `high` are the quartiles of the rounds."""

    goal: str
    what: str
    at: str
    value: float
    low: float
    high: float
    relation: str = ">="
    bound: float | None = None
    unit: str = "x"
    medians: dict[str, float] = field(default_factory=dict)  # nanoseconds

    @property
    def verdict(self) -> str:
        """SHOWN where the goal has no bound."""
        if self.bound is None:
            return SHOWN
        held = self.value >= self.bound if self.relation == ">=" else self.value <= self.bound
        return HOLDS if held else MISSES

    @property
    def sure(self) -> bool:
        """The bound does not lie between the quartiles: another run would say the same."""
        return self.bound is None or not self.low < self.bound < self.high

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
        told = {name: getattr(self, name) for name in names}
        return {**told, "verdict": self.verdict, "sure": self.sure, "medians": self.medians}


def number(value: float) -> str:
    """Three digits, or all from a hundred on."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(digits, 0)}f}"


@dataclass
class Scorecard:
    """The figures and verdicts of one run of the goals; each part adds its own."""

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
        """The median of the rounds' ratios over / under."""
        low, middle, high = quartiles(ratios(over, under))
        medians = {"over": quartiles(over)[1], "under": quartiles(under)[1]}
        self.figures.append(
            Figure(goal, what, at, middle, low, high, relation, bound, medians=medians)
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
        """A number that is no ratio of times."""
        self.figures.append(Figure(goal, what, at, value, value, value, relation, bound, unit))

    def skip(self, goal: str, what: str, reason: str) -> None:
        self.skipped.append({"goal": goal, "what": what, "reason": reason})

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def check(self, right: object, what: str) -> None:
        """Whatever is timed goes through here."""
        if not right:
            self.wrong.append(what)

    # ---- what is shown ----------------------------------------------------------------------

    def grouped(self) -> Iterator[tuple[str, str, list[Figure]]]:
        """Figures by goal and what is compared, goals in their order."""
        groups: dict[tuple[str, str], list[Figure]] = {}
        for f in self.figures:
            groups.setdefault((f.goal, f.what), []).append(f)
        for goal, what in sorted(groups, key=lambda key: int(key[0][1:])):
            yield goal, what, groups[goal, what]

    def lines(self) -> Iterator[str]:
        for goal, what, figures in self.grouped():
            yield f"{goal:<4} {what}"
            for f in figures:
                sure = "" if f.sure else ", not sure"
                figure = f"{f.text:>12} {f.spread:<6} {f.wanted:>9}"
                yield f"       {f.at:<34} {figure}  {f.verdict}{sure}"
        yield from (f"{s['goal']:<4} {s['what']}: skipped, {s['reason']}" for s in self.skipped)
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"WRONG: {what}" for what in self.wrong)
        yield f"goals: {self.total(self.figures)}; {len(self.wrong)} wrong answers"

    def markdown(self) -> Iterator[str]:
        """The table of docs/benchmarks.md; a bound that is missed is marked."""
        yield "| # | ratio or figure | at: what came (what is wanted) | verdict |"
        yield "|---|---|---|---|"
        for goal, what, figures in self.grouped():
            cells = ", ".join(map(cell, figures))
            yield f"| {goal} | {what} | {cells} | {self.total(figures)} |"
        for s in self.skipped:
            yield f"| {s['goal']} | {s['what']} | skipped: {s['reason']} | |"
        for note in self.notes:
            yield f"\nNote: {note}."

    @staticmethod
    def total(figures: Iterable[Figure]) -> str:
        verdicts = [f.verdict for f in figures]
        told = {MISSES: "miss", HOLDS: "hold", SHOWN: "shown"}
        counts = [(verdicts.count(verdict), word) for verdict, word in told.items()]
        return ", ".join(f"{n} {word}" for n, word in counts if n)


def cell(f: Figure) -> str:
    wanted = f" ({f.wanted})" if f.wanted else ""
    value = f"**{f.text}**" if f.verdict == MISSES else f.text
    spread = f" {f.spread}" if f.spread else ""
    return f"{f.at}: {value}{spread}{wanted}{'' if f.sure else ' ?'}"
