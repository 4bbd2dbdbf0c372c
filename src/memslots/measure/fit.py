# SPDX-License-Identifier: MIT
"""The growth of a cost with the number of slots, and the number of slots at which two costs cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Return x of cost ~ n^x, by least squares on logarithms over the upper half of the sizes.

    None for fewer than 2 sizes.
    """
    upper = fitted(sorted(zip(sizes, costs, strict=True)))
    if len(upper) < 2:
        return None
    n, cost = np.log(np.array(upper)).T
    return float(np.polyfit(n, cost, 1)[0])


def fitted(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return the points that `exponent` uses: the upper half by size, or all if there are at most three."""
    return points[len(points) // 2 :] if len(points) > 3 else points


def crossover(factors: Mapping[int, float]) -> float | None:
    """Return the n from which factor(n) > 1 holds: the last crossing, interpolated on logarithms between two sizes.

    0 if it holds for all sizes, None if it does not hold for the last one.
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
