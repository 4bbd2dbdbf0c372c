# SPDX-License-Identifier: MIT
"""Runs the measured processes of two versions in turns: A B, B A, A B, ...

Some neighbouring pairs (A B B A A B ...) are a unit.  Its figure for a side is the least of its processes, because
other work of the machine only makes times longer.  Each unit has its own link order on each side.  Each process has its
own size of environment, and its own seed of hashes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from .builds import Version
from .runs import Process

PAIRS = 6  # in a unit
MOST_PADDING = 4096  # bytes
SECONDS = 0.6  # of measurement in a process


class ProcessError(Exception):
    """A measured process failed."""


class Planned(NamedTuple):
    side: str
    pair: int
    unit: int
    order: int
    environment: int


def plan(units: int, orders: int, pairs: int = PAIRS, seed: int = 0) -> Iterator[Planned]:
    """Yield the processes in the order in which they run.  Units beyond `orders` use the link orders again."""
    rng = Random(seed)
    for pair in range(units * pairs):
        unit = pair // pairs
        for side in "AB" if pair % 2 == 0 else "BA":
            yield Planned(side, pair, unit, unit % orders, 16 * rng.randrange(MOST_PADDING // 16))


Benchmarks = dict[str, float]  # seconds of one operation
Work = Callable[[Planned], Benchmarks]  # runs one process


def measure(
    planned: Iterable[Planned], work: Work, progress: Callable[..., object]
) -> list[Process]:
    processes = []
    for one in planned:
        processes.append(Process(*one, work(one)))
        progress()
    return processes


def short_work(versions: dict[str, Version], seconds: float, only: str | None) -> Work:
    """Return a function that runs a process of work.py."""
    script = Path(__file__).with_name("work.py")
    words = [sys.executable, "-P", str(script), "--seconds", str(seconds)]
    words += ["--only", only] if only else []

    def work(planned: Planned) -> Benchmarks:
        env = environment(planned, versions)
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            name = versions[planned.side].name
            raise ProcessError(
                f"{name}: a measured process failed with {done.returncode}: {lines[-1]}"
            )
        found: Benchmarks = json.loads(done.stdout)
        return found

    return work


def environment(planned: Planned, versions: dict[str, Version]) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(versions[planned.side].sites[planned.order]),
        "PYTHONHASHSEED": str(planned.pair + 1),
        "MEMSLOTS_PADDING": "x" * planned.environment,
    }
