# SPDX-License-Identifier: MIT
"""A rival against the tree, from their rows: the factor, its interval, and the winner if the difference is clear."""

from __future__ import annotations

from collections.abc import Mapping
from math import comb
from typing import Any

from ..lab.schema import Row
from .noise import any_busy

BASE = "tree"  # all others are compared with this backend
RIVAL = "array"  # has the comparison in every table, and bars in pictures
DESIGNS = (BASE, RIVAL, "list")  # of this project, in the order of tables and pictures

EVENLY = "even"
BUSY = "busy"  # the machine was busy with other work: the figures decide nothing
#: Factors in this range count as equal, because other processes disturb the machine.
EVEN = (0.9, 1.1)
CONFIDENCE = 0.93  # of the interval, if there are enough rounds: 5 rounds give 0.9375

Rows = Mapping[str, Row | dict[str, Any]]  # by backend; pictures are drawn from JSON


def has_both(rows: Rows, rival: str = RIVAL) -> bool:
    return BASE in rows and rival in rows


def factor(rows: Rows, rival: str = RIVAL) -> float:
    """Return the rival's cost as a multiple of the tree's."""
    return float(rows[rival]["median"] / rows[BASE]["median"])


def winner(rows: Rows, rival: str = RIVAL) -> str:
    """Return the faster one if the whole interval of the factor is outside EVEN.  Otherwise "even", or "busy"."""
    if any_busy((rows[BASE], rows[rival])):
        return BUSY
    least, most = interval(rows, rival)
    if least > EVEN[1]:
        return BASE
    if most < EVEN[0]:
        return rival
    return EVENLY


def interval(rows: Rows, rival: str = RIVAL) -> tuple[float, float]:
    """Return the interval of the factor.

    Each round measures both, one soon after the other, so that it gives one factor.  Rows of old reports lack the
    figures of the rounds; their quartiles give a wider interval.
    """
    mine, base = rows[rival], rows[BASE]
    pairs = list(zip(mine.get("values", ()), base.get("values", ()), strict=False))
    if not pairs:
        return float(mine["low"] / base["high"]), float(mine["high"] / base["low"])
    factors = sorted(float(a / b) for a, b in pairs)
    cut = trimmed(len(factors))
    return factors[cut], factors[-1 - cut]


def trimmed(n: int) -> int:
    """Return how many of the smallest and of the largest of n values the interval of their median leaves out.

    The median of all values that could be measured lies between the extremes of n values with probability
    1 - 2 / 2^n.  Each further pair of values that is left out lowers it by a term of the binomial distribution.
    """
    cut, outside = 0, 2.0 / 2**n
    while (outside := outside + 2.0 * comb(n, cut + 1) / 2**n) <= 1 - CONFIDENCE:
        cut += 1
    return cut
