# SPDX-License-Identifier: MIT
"""The error rates of verdicts, from one recorded pool of measured processes of the same version on both sides.

Many experiments are drawn from the pool.  An experiment takes whole units at random, with replacement: a unit has its
own link orders and lies together in time, so that both kinds of dependence stay inside it.  In each unit the two sides
change places at random; both have the same code, so any "faster" or "slower" in the table is a false alarm.

For the power, one benchmark at a time is made slower by a known factor: its logarithms grow by the factor's logarithm.
Nothing is simulated: all noise is that of measured processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .outcome import EQUIVALENT, FASTER, LEAST, SLOWER, Floats, corrected, decide, units_needed
from .runs import Comparison, ComparisonError, logs_of, names_of

EXPERIMENTS = 20_000
AT_ONCE = 500  # experiments in one array
PLANTED = 0.03
FALSE_ALARMS = 0.01  # at most, as the upper bound
FOUND = 0.95  # at least
LEAST_PROCESSES = 400
LEAST_ORDERS = 4  # on each side


@dataclass(frozen=True)
class Rates:
    """The rates of experiments with `pairs` pairs of processes."""

    pairs: int
    experiments: int
    false_alarms: float  # share of tables with at least one
    upper: float  # its upper 95 % bound
    equivalent: float  # share of rows
    found: list[float]  # by benchmark: share of planted slow-downs that are "slower"
    seconds: float  # duration of such an experiment, by the duration of the pool


@dataclass(frozen=True)
class Spread:
    """A benchmark of the pool: the spread of its units, and the pairs that find PLANTED."""

    benchmark: str
    spread: float
    pairs: int


def complaints(pool: Comparison) -> Iterator[str]:
    """Yield the reasons why a pool is too small for rates."""
    if len(pool.processes) < LEAST_PROCESSES:
        yield f"{len(pool.processes)} processes, {LEAST_PROCESSES} are needed"
    for side in "AB":
        orders = {p.order for p in pool.processes if p.side == side}
        if len(orders) < LEAST_ORDERS:
            yield f"{len(orders)} link orders of side {side}, {LEAST_ORDERS} are needed"


def kept(rates: Rates) -> bool:
    """Whether experiments of this size keep both promises."""
    return rates.upper <= FALSE_ALARMS and min(rates.found) >= FOUND


def pairs_in_unit(pool: Comparison) -> int:
    return len({p.pair for p in pool.processes}) // len({p.unit for p in pool.processes})


def spreads(pool: Comparison) -> list[Spread]:
    names = names_of(pool.processes)
    logs = logs_of(pool.processes, names)
    if len(logs) < LEAST:
        raise ComparisonError(f"the pool has {len(logs)} units, {LEAST} are needed for a rate")
    found = logs.std(axis=0, ddof=1).tolist()
    return [
        Spread(n, s, pairs_in_unit(pool) * units_needed(s, len(names), PLANTED, FOUND))
        for n, s in zip(names, found, strict=True)
    ]


def rates(pool: Comparison, pairs: int, experiments: int = EXPERIMENTS, seed: int = 1) -> Rates:
    """Draw experiments of this size and count false alarms and found slow-downs."""
    logs = logs_of(pool.processes, names_of(pool.processes))
    each = pairs_in_unit(pool)
    units = max(-(-pairs // each), LEAST)
    rng = np.random.default_rng(seed)
    alarms, equivalent = 0, 0
    found = np.zeros(logs.shape[1])
    for count in _parts(experiments):
        drawn = draw(logs, count, units, rng)
        outcomes = outcomes_of(drawn)
        alarms += int(np.isin(outcomes, (FASTER, SLOWER)).any(axis=-1).sum())
        equivalent += int(np.sum(outcomes == EQUIVALENT))
        found += planted(drawn)
    bound = stats.binomtest(alarms, experiments).proportion_ci(
        0.9, method="exact"
    )  # 5 % on each side
    return Rates(
        units * each,
        experiments,
        alarms / experiments,
        float(bound.high),
        equivalent / experiments / logs.shape[1],
        (found / experiments).tolist(),
        pool.seconds / len(pool.processes) * units * each * 2,
    )


def _parts(total: int) -> Iterator[int]:
    for begin in range(0, total, AT_ONCE):
        yield min(AT_ONCE, total - begin)


def draw(logs: Floats, experiments: int, units: int, rng: np.random.Generator) -> Floats:
    """Return experiments x units x benchmarks: whole units of the pool, whose sides change places at random."""
    chosen = rng.integers(0, len(logs), (experiments, units))
    signs = rng.choice((-1.0, 1.0), (experiments, units, 1))
    return np.asarray(logs[chosen] * signs)


def outcomes_of(drawn: Floats) -> NDArray[Any]:
    """Return the outcomes: experiments x benchmarks."""
    return decide(drawn.mean(axis=-2), *corrected(drawn), drawn.shape[-2])


def planted(drawn: Floats, factor: float = 1 + PLANTED) -> Floats:
    """Count, for each benchmark, in how many experiments its planted slow-down is found."""
    found = np.zeros(drawn.shape[-1])
    for i in range(drawn.shape[-1]):
        changed = drawn.copy()
        changed[..., i] += np.log(factor)
        found[i] = np.sum(outcomes_of(changed)[..., i] == SLOWER)
    return found
