# SPDX-License-Identifier: MIT
"""The tests behind a verdict.

The input is the logarithm of B / A for each unit and benchmark.  A unit is a group of pairs of processes with the same
link orders, so that units are independent.  runs.py has the figure of a unit.  Both tests are paired t tests of scipy:

- difference: the mean of the logarithms is not 0;
- equivalence (TOST): the mean lies between -log(1 + MARGIN) and log(1 + MARGIN).

Holm's correction keeps the probability of one false alarm in the whole table below ALPHA.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ALPHA = 0.005  # for a whole table; error rates are promised for twice as much
MARGIN = 0.02  # differences below this are of no interest
CONFIDENCE = 0.95  # of the interval of each row, without a correction
LEAST = 4  # units

FASTER, SLOWER, EQUIVALENT, INCONCLUSIVE = "faster", "slower", "equivalent", "inconclusive"
OUTCOMES = (FASTER, SLOWER, EQUIVALENT, INCONCLUSIVE)

Floats = NDArray[np.float64]


class Verdict(NamedTuple):
    """One row of the table: the ratio B / A with its interval, the corrected probabilities, and the outcome."""

    ratio: float
    low: float
    high: float
    p_difference: float
    p_equivalence: float
    spread: float  # standard deviation of the logarithms of the units
    outcome: str


def verdicts(logs: Floats) -> list[Verdict]:
    """Return a verdict for each column.  logs: units x benchmarks."""
    units, names = logs.shape
    if not names:
        return []
    difference, equivalence = corrected(logs)
    outcomes = decide(logs.mean(axis=0), difference, equivalence, units)
    spread = logs.std(axis=0, ddof=1) if units > 1 else np.full(names, np.nan)
    low, high = interval(logs) if units > 1 else (np.full(names, np.nan), np.full(names, np.nan))
    mean = logs.mean(axis=0)
    numbers = np.array([*np.exp([mean, low, high]), difference, equivalence, spread]).T
    rows = zip(numbers.tolist(), outcomes, strict=True)
    return [Verdict._make([*row, str(outcome)]) for row, outcome in rows]


def corrected(logs: Floats) -> tuple[Floats, Floats]:
    """Return the probabilities of both tests after Holm's correction.  logs: ... x units x benchmarks."""
    if logs.shape[-2] < LEAST:
        nothing = np.ones((*logs.shape[:-2], logs.shape[-1]))
        return nothing, nothing
    edge = np.log1p(MARGIN)
    with np.errstate(all="ignore"):  # units without any spread: 0 / 0, or infinite
        different = _p(logs, 0.0, "two-sided")
        above = _p(logs, -edge, "greater")
        below = _p(logs, edge, "less")
    return holm(different), holm(np.maximum(above, below))


def _p(logs: Floats, mean: float, alternative: str) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # precision loss where all units are equal
        tested = stats.ttest_1samp(logs, mean, axis=-2, alternative=alternative)
    p: Floats = np.nan_to_num(np.asarray(tested.pvalue), nan=1.0)
    return p


def holm(p: Floats) -> Floats:
    """Correct the probabilities along the last axis: the i-th smallest of m counts m - i times, and none decreases."""
    order = np.argsort(p, axis=-1)
    m = p.shape[-1]
    steps = np.take_along_axis(p, order, axis=-1) * (m - np.arange(m))
    steps = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    found = np.empty_like(steps)
    np.put_along_axis(found, order, steps, axis=-1)
    return found


def decide(mean: Floats, difference: Floats, equivalence: Floats, units: int) -> NDArray[Any]:
    """Return the outcomes.  A difference that is certain but below MARGIN is "equivalent"."""
    if units < LEAST:
        return np.full(mean.shape, INCONCLUSIVE)
    direction = np.where(mean < 0, FASTER, SLOWER)
    certain = np.where(difference < ALPHA, direction, INCONCLUSIVE)
    return np.where(equivalence < ALPHA, EQUIVALENT, certain)


def interval(logs: Floats) -> tuple[Floats, Floats]:
    """Return the confidence interval of the mean of each column."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.ttest_1samp(logs, 0.0, axis=0).confidence_interval(CONFIDENCE)
    mean = logs.mean(axis=0)  # the interval of equal units is a point
    return np.nan_to_num(found.low, nan=mean), np.nan_to_num(found.high, nan=mean)


def units_needed(spread: float, names: int, effect: float = 0.03, power: float = 0.95) -> int:
    """Return the number of units that finds an effect with this power, in a table of `names` benchmarks."""
    shift = np.log1p(effect) / max(spread, 1e-9)
    for units in range(LEAST, 100_000):
        limit = stats.t.ppf(1 - ALPHA / (2 * max(names, 1)), units - 1)
        if stats.nct.sf(limit, units - 1, shift * np.sqrt(units)) >= power:
            return units
    raise ValueError(f"no number of units finds {effect:.0%} at a spread of {spread:.1%}")
