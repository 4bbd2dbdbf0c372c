# SPDX-License-Identifier: MIT
"""Calls that take turns: a busy moment of the machine hits all of them.

Where a call neither waits nor has other threads, what counts is the processor time of the thread that makes it: on a
busy machine the time that others run would be most of the spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns, thread_time_ns

Times = Sequence[float]  # nanoseconds, one of each round

WALL, OWN = perf_counter_ns, thread_time_ns


def turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], int] = OWN,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """The nanoseconds of each call, round by round; in each round another one begins.

    before: what each does first, which does not count.
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
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def quartiles(values: Times) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
