# SPDX-License-Identifier: MIT
"""The text of verdicts about two versions, and of their error rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..verdicts import outcome, pool
from ..verdicts.pool import Rates, Spread
from ..verdicts.runs import Comparison, VerdictRow
from . import show, tables
from .tables import Table
from .words import plural


def text(comparison: Comparison, rows: Sequence[VerdictRow], width: int | None = None) -> str:
    """Return the table and the sentences for a terminal of `width` columns."""
    parts = [Table([_line(row) for row in rows], HEADERS)] if rows else []
    return tables.page([*parts, tables.paragraphs(_closing(comparison, rows), width)], width)


HEADERS = ("benchmark", "A", "B", "B / A", "95 % interval", "verdict")


def _line(row: VerdictRow) -> list[str]:
    times = (show.time(row.a * 1e9), show.time(row.b * 1e9))
    return [
        row.benchmark,
        *times,
        f"{row.ratio:.3f}",
        f"{row.low:.3f} to {row.high:.3f}",
        row.outcome,
    ]


def _closing(comparison: Comparison, rows: Sequence[VerdictRow]) -> Iterator[str]:
    pairs = len({p.pair for p in comparison.processes})
    units = len({p.unit for p in comparison.processes})
    yield f"A = {comparison.a}, B = {comparison.b}: {plural(pairs, 'pair')} of processes in {plural(units, 'unit')}."
    if rows and units < outcome.LEAST:
        yield f"A verdict needs at least {outcome.LEAST} units."
    yield (
        f"faster, slower: paired t test on the logarithms of B / A, below {outcome.ALPHA:.1%} for the whole table "
        f"after Holm's correction.  equivalent: two one-sided tests (TOST) within {outcome.MARGIN:.0%}.  Otherwise the "
        "measurement is inconclusive.  The interval has no correction."
    )
    yield from (f"left out: {line}" for line in comparison.failed)
    counts = [f"{name} {sum(row.outcome == name for row in rows)}" for name in outcome.OUTCOMES]
    yield f"verdict: {plural(len(rows), 'benchmark')}: {', '.join(counts)}"


# ---- error rates ----------------------------------------------------------------------------------


def rates_text(
    recorded: Comparison,
    spreads: Sequence[Spread],
    rates: Sequence[Rates],
    width: int | None = None,
) -> str:
    """Return the tables of the spreads and of the rates."""
    found = Table(
        [[s.benchmark, f"{s.spread:.2%}", f"{s.pairs}"] for s in spreads],
        ("benchmark", "spread of a unit", f"pairs for {pool.PLANTED:.0%}"),
    )
    body = [
        [
            f"{r.pairs}",
            f"{r.seconds:.0f} s",
            f"{r.false_alarms:.2%}",
            f"{r.upper:.2%}",
            f"{min(r.found):.1%}",
            f"{sum(r.found) / len(r.found):.1%}",
            f"{r.equivalent:.1%}",
        ]
        for r in rates
    ]
    headers = (
        "pairs", "duration", "false alarms", "upper 95 % bound", f"{pool.PLANTED:.0%} found, worst row",
        f"{pool.PLANTED:.0%} found, all rows", "equal rows called equivalent",
    )  # fmt: skip
    closing = tables.paragraphs(_rates_closing(recorded, rates), width)
    return tables.page([found, Table(body, headers), closing], width)


def _rates_closing(recorded: Comparison, rates: Sequence[Rates]) -> Iterator[str]:
    processes = recorded.processes
    orders = [len({p.order for p in processes if p.side == side}) for side in "AB"]
    yield (
        f"{plural(len(processes), 'process')} of {recorded.a} on both sides, {orders[0]} and {orders[1]} link orders, "
        f"recorded in {recorded.seconds:.0f} s.  {rates[0].experiments:,} experiments of each size, in whole units."
    )
    yield from (f"TOO SMALL: {reason}" for reason in pool.complaints(recorded))
    good = [r for r in rates if pool.kept(r)]
    if good:
        least = min(good, key=lambda r: r.pairs)
        yield (
            f"error rates: {least.pairs} pairs ({least.seconds:.0f} s) keep both promises: false alarms in at most "
            f"{pool.FALSE_ALARMS:.0%} of tables, {pool.FOUND:.0%} of slow-downs of {pool.PLANTED:.0%} found in each row"
        )
    else:
        yield "error rates: NO number of pairs in this table keeps both promises"
