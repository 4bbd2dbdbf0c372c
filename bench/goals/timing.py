# SPDX-License-Identifier: MIT
"""Calls that take turns, so that a busy moment of the machine affects all of them.

A call that neither waits nor starts threads is measured in processor time of its thread.  On a busy machine the time of
other processes would otherwise cause most of the spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns, thread_time_ns

Times = Sequence[float]  # nanoseconds, one value for each round

WALL, OWN = perf_counter_ns, thread_time_ns


def turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], int] = OWN,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Return the nanoseconds of each call, by round.  Each round begins with another call.

    `before` has a function for each call, which runs before it and is not timed.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            if before:
                before[name]()
            start = clock()
            calls[name]()
            times[name].append(float(clock() - start))
    return times


def ratios(over: Times, under: Times) -> list[float]:
    """Return over / under for each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def quartiles(values: Times) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
