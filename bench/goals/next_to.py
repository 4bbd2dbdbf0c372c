# SPDX-License-Identifier: MIT
"""P9: a reader next to a writer compared with the same reader undisturbed, and the writer's changes next to readers.

bench/core/next_to.c measures both in C, so that neither waits for Python.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from .build import QUICK, with_core
from .scorecard import Scorecard
from .timing import Times, quartiles, ratios
from .work import Settings, slots_of

SLOTS = 4096
MS, QUICK_MS = 200, 10  # milliseconds of one measurement in a round
RATE = 300_000  # changes per second of the paced writer, as in next_to.c
ACHIEVED = 0.95  # with less of the rate, a note says so

WALK, INDEX = "walk", "index"
PATHS = {WALK: "plain walk", INDEX: "by index"}
PACED = {"paced": "one slot", "paced_random": "random slots"}
KINDS = {"lookups": "single lookups", "batches": "batches of 10,000"}

NEVER_STOPS = 0.7  # batches by index, and every reader by plain walk
AT_RANDOM = 0.6  # batches by index
AT_RATE = 0.8  # by index
KEPT = 0.9  # single lookups: the part that the index keeps / the part that the plain walk keeps
SLOWER_CHANGE = 1.1

Measured = dict[str, dict[str, list[float]]]


def next_to(card: Scorecard, settings: Settings, folder: Path) -> None:
    n = min(SLOTS, settings.sizes[-1])
    program = with_core(folder / "next_to", "next_to.c", *(QUICK if settings.quick else ()))
    command = [program, settings.rounds, QUICK_MS if settings.quick else MS, n]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    card.check(done.returncode == 0, f"bench/core/next_to.c: {done.stderr.strip()}")
    if done.returncode == 0:
        report(card, json.loads(done.stdout), n)


def report(card: Scorecard, measured: Measured, n: int) -> None:
    readers_keep(card, measured, n)
    changes_cost(card, measured, n)
    for name, figures in measured.items():
        path, kind, other = name.split()
        rate = quartiles(figures["changes"])[1]
        if other in PACED and rate < ACHIEVED * RATE:
            made = f"a writer of {PACED[other]} made {rate:,.0f} of {RATE:,} changes/s"
            card.note(f"P9: next to {KINDS[kind]}, {PATHS[path]}, {made}")


def readers_keep(card: Scorecard, measured: Measured, n: int) -> None:
    def rates(path: str, kind: str, other: str) -> Times:
        return measured[f"{path} {kind} {other}"]["lookups"]

    def keeps(
        what: str, other: str, path: str, kind: str, bound: float | None, base: str = "alone"
    ) -> None:
        at = f"{KINDS[kind]}, {PATHS[path]}"
        over, under = rates(path, kind, other), rates(path, kind, base)
        card.ratio("P9", what, at, over, under, bound=bound)

    what = f"a reader next to a writer that never stops / undisturbed, {slots_of(n)}"
    for path in PATHS:
        for kind in KINDS:
            single_index = (path, kind) == (INDEX, "lookups")
            keeps(what, "one", path, kind, None if single_index else NEVER_STOPS)
    for path in PATHS:
        for kind in KINDS:
            only = "... / next to a thread that only computes"
            keeps(only, "one", path, kind, None, "spin")
    what = "a reader next to a writer of random slots that never stops / undisturbed"
    for kind, bound in (("lookups", None), ("batches", AT_RANDOM)):
        keeps(what, "random", INDEX, kind, bound)
    for kind in KINDS:
        keeps(f"a reader at {RATE:,} changes/s / undisturbed", "paced", INDEX, kind, AT_RATE)
    for kind in KINDS:
        what = f"a reader at {RATE:,} changes/s of random slots / undisturbed"
        keeps(what, "paced_random", INDEX, kind, None)
    kept = {p: ratios(rates(p, "lookups", "one"), rates(p, "lookups", "alone")) for p in PATHS}
    what = "the part of its rate that a reader keeps next to that writer: by index / by plain walk"
    card.ratio("P9", what, KINDS["lookups"], kept[INDEX], kept[WALK], bound=KEPT)


def changes_cost(card: Scorecard, measured: Measured, n: int) -> None:
    def p50(path: str, kind: str, other: str = "one") -> Times:
        return measured[f"{path} {kind} {other}"]["change_ns"]

    what = "p50 of a change next to a reader by index / next to one by plain walk"
    for kind in KINDS:
        card.ratio("P9", what, KINDS[kind], p50(INDEX, kind), p50(WALK, kind), "<=", SLOWER_CHANGE)
    for path in PATHS:
        for kind in KINDS:
            at = f"{KINDS[kind]}, {PATHS[path]}"
            us = quartiles(p50(path, kind))[1] / 1000
            card.value("P9", f"p50 of a change next to that reader, {slots_of(n)}", at, us, "us")
            made = quartiles(measured[f"{path} {kind} one"]["changes"])[1] / 1000
            card.value("P9", "thousand changes per second next to that reader", at, made, "k/s")
