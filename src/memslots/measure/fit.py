# SPDX-License-Identifier: MIT
"""How a cost grows with the number of slots, and where two costs cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """x of cost ~ n^x: least squares on logarithms, over the upper half of the sizes; None for fewer than 2."""
    upper = fitted(sorted(zip(sizes, costs, strict=True)))
    if len(upper) < 2:
        return None
    n, cost = np.log(np.array(upper)).T
    return float(np.polyfit(n, cost, 1)[0])


def fitted(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Of points by rising size, those that `exponent` uses: the upper half, or all where there are three or fewer."""
    return points[len(points) // 2 :] if len(points) > 3 else points


def crossover(factors: Mapping[int, float]) -> float | None:
    """From which n on factor(n) > 1 stays true: the last crossing, between two sizes on a line of logarithms.

    0 where it is true of all sizes, None where it is not of the last.
    """
    sizes = sorted(factors)
    below = [n for n in sizes if factors[n] <= 1]
    if not below:
        return 0.0
    if below[-1] == sizes[-1]:
        return None
    low, high = below[-1], next(n for n in sizes if n > below[-1])
    a, b = np.log(factors[low]), np.log(factors[high])
    return float(low * (high / low) ** (-a / (b - a)))
