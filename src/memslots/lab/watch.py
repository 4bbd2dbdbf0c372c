# SPDX-License-Identifier: MIT
"""The other work of the machine during a measurement: other processes, other machines, and the caches.

The kernel's counters are read once in each round of many cells.  They count ticks of 10 ms, so a window of the
counters has at least SPAN seconds: it begins before its round if the round is shorter.  The reference loop takes a
millisecond or two and runs between the cases.  The count of context switches surrounds each cell.
"""

from __future__ import annotations

import os
import resource
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np

from .._memslots import time_chase
from . import fingerprint
from .record import Window

SPAN = 1.0  # seconds
SHORTEST = 0.25  # seconds: the counters of a shorter window say nothing
LINE = 64  # bytes of a cache line
ENTRY = 4  # bytes
UNKNOWN = 1 << 20  # bytes of the second-level cache, where the system does not tell
STAT = Path("/proc/stat")


class Reference:
    """A pointer chase of fixed length through twice the second-level cache.

    Its time depends on the machine only.  It becomes longer when other programs use the shared caches or the memory.
    The first of two passes is not timed: it loads the lines that the cells have displaced.
    """

    def __init__(self, cache_size: int) -> None:
        self.lines = 1 << (2 * cache_size // LINE - 1).bit_length()
        step = LINE // ENTRY
        order = np.random.default_rng(0).permutation(self.lines).astype(np.uint32) * np.uint32(step)
        self.chain = np.zeros(self.lines * step, dtype=np.uint32)
        self.chain[order] = np.roll(order, -1)

    def read(self) -> float:
        """Return the nanoseconds of a step."""
        time_chase(self.chain, self.lines)
        ns, _ = time_chase(self.chain, self.lines)
        return round(ns / self.lines, 3)


@cache
def reference() -> Reference:
    return Reference(fingerprint.second_level(fingerprint.cpu().caches) or UNKNOWN)


def switches() -> int:
    """Return the involuntary context switches of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Usage(NamedTuple):
    """Counters of the system, in seconds since its start; None where the system does not tell."""

    wall: float
    own: float  # processor time of this process
    busy: float | None  # processor time of all processes
    stolen: float | None  # processor time that the hypervisor gave to other machines
    switches: int


def usage() -> Usage:
    busy, stolen = processor_times(_stat())
    return Usage(perf_counter(), process_time(), busy, stolen, switches())


def _stat() -> str:
    try:
        with STAT.open(encoding="ascii") as file:
            return file.readline()
    except OSError:
        return ""


def processor_times(line: str) -> tuple[float | None, float | None]:
    """Return user + nice + system, and steal, from the first line of /proc/stat."""
    words = line.split()
    if len(words) < 9 or words[0] != "cpu":
        return None, None
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system = map(int, words[1:4])
    return (user + nice + system) / ticks, int(words[8]) / ticks


def window_between(n_slots: int | None, round_: int, before: Usage, after: Usage) -> Window:
    """Return what happened between two readings."""
    seconds = after.wall - before.wall

    def processors(of: float | None, since: float | None, own: float = 0.0) -> float | None:
        if of is None or since is None or seconds < SHORTEST:
            return None
        return round(max(0.0, of - since - own) / seconds, 4)

    return Window(
        n_slots,
        round_,
        round(seconds, 4),
        _load(),
        processors(after.busy, before.busy, after.own - before.own),
        processors(after.stolen, before.stolen),
        after.switches - before.switches,
    )


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def begin_of(readings: Sequence[Usage], first: Usage, end: float) -> Usage:
    """Return the reading at which the window of a round begins: `first`, or an earlier one if the round was short."""
    if end - first.wall >= SPAN:
        return first
    recent = [r for r in readings if end - 2 * SPAN <= r.wall <= first.wall]
    return max((r for r in recent if end - r.wall >= SPAN), key=_wall, default=None) or min(
        [*recent, first], key=_wall
    )


def _wall(usage: Usage) -> float:
    return usage.wall


_RECENT: deque[Usage] = deque(maxlen=256)  # readings at the ends of the last rounds


@contextmanager
def window(found: list[Window], n_slots: int | None, round_: int) -> Iterator[None]:
    """Append the window of this block to `found`."""
    first = usage()
    try:
        yield
    finally:
        last = usage()
        found.append(window_between(n_slots, round_, begin_of(_RECENT, first, last.wall), last))
        _RECENT.append(last)


class Turn(NamedTuple):
    """A run of one cell: its duration, and the involuntary context switches during it."""

    seconds: float
    switches: int


@contextmanager
def turn() -> Iterator[list[Turn]]:
    """Yield a list that has the readings of the block at its end."""
    found: list[Turn] = []
    count, start = switches(), perf_counter()
    yield found
    found.append(Turn(round(perf_counter() - start, 6), switches() - count))
