# SPDX-License-Identifier: MIT
"""P9: two threads of batches compared with two of a plain loop."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from memslots.lab.layouts import Numbers

from .build import HERE, compile_c
from .scorecard import Scorecard
from .timing import WALL, ratios, turns
from .work import AUTO, WALK, Policy, Settings, Stage, slots_of, stage

SLOTS = 4096
POLICIES = (AUTO, WALK)
SCALING = 0.9
WORK_NS = 60e6  # the work of one thread in a round

CLoop = Callable[[int, int], int]


def path(policy: Policy) -> str:
    return "plain walk" if policy == WALK else "default path"


def scaling(card: Scorecard, settings: Settings, folder: Path) -> None:
    spin = c_loop(folder)
    card.check(spin(2, 10) == 2 * spin(1, 10) != 0, "two C loops compute twice what one does")
    n = min(SLOTS, settings.sizes[-1])
    for policy in POLICIES:
        calls, outs = two_and_one(spin, stage(n, settings), policy, settings)
        got = turns(calls, 2 * settings.rounds - 1, WALL)
        for out in outs:
            right = (out == stage(n, settings).expected).all()
            card.check(right, f"two threads of batches, {policy}")
        report_scaling(card, got, f"{slots_of(n)}, {path(policy)}")


def c_loop(folder: Path) -> CLoop:
    """Return bench_spin(threads, passes).  ctypes calls it without the GIL."""
    library = compile_c(folder / "spin.so", [HERE / "spin.c"], "-shared", "-fPIC")
    spin = ctypes.CDLL(str(library)).bench_spin
    spin.argtypes, spin.restype = (ctypes.c_uint, ctypes.c_uint64), ctypes.c_uint64
    return spin


def two_and_one(
    spin: CLoop, on: Stage, policy: Policy, settings: Settings
) -> tuple[dict[str, Callable[[], object]], list[Numbers]]:
    """Return calls of batches and of the C loop, which take about the same time in one thread."""
    vm, outs = on.vm(policy), [np.zeros_like(on.gfns), np.zeros_like(on.gfns)]

    def batches(out: Numbers, times: int) -> None:
        for _ in range(times):
            vm.gfn_to_hva_many(on.gfns, out=out)

    times = repeats(lambda: batches(outs[0], 1), settings)
    passes = repeats(lambda: spin(1, 10), settings) * 10
    return {
        "one loop": lambda: spin(1, passes),
        "two loops": lambda: spin(2, passes),
        "one": lambda: batches(outs[0], times),
        "two": lambda: together([(batches, out, times) for out in outs]),
    }, outs


def report_scaling(card: Scorecard, got: dict[str, list[float]], at: str) -> None:
    """Report the scaling of batches and of the C loop.  2 is ideal; the C loop shows the limit of the machine."""
    loops = [2 * x for x in ratios(got["one loop"], got["two loops"])]
    ours = [2 * x for x in ratios(got["one"], got["two"])]
    what = "scaling of two threads of batches / of two C loops"
    card.ratio("P9", what, at, ours, loops, bound=SCALING)
    one = [1.0] * len(ours)
    card.ratio("P9", "... two threads of batches against one", at, ours, one)
    card.ratio("P9", "... two C loops against one", at, loops, one)


def repeats(call: Callable[[], object], settings: Settings) -> int:
    """Return how often the call fits into the work of a round."""
    once = min(turns({"it": call}, 3, WALL)["it"])
    return 1 if settings.quick else max(1, round(WORK_NS / once))


def together(calls: list[tuple[Callable[..., None], Numbers, int]]) -> None:
    threads = [threading.Thread(target=call, args=args) for call, *args in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
