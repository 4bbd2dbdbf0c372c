# SPDX-License-Identifier: MIT
"""reload.py - apply() and restore() of a few differences, against delete and load of another build: bench/reload.py.

    python bench/reload.py --site FOLDER

FOLDER has the installed package of the other build.  Without --site it is commit 339614a, which had no transactions:
the script builds it in build/compare, unless `make bench-compare A=339614a B=.` has done so before.  The other build
and this one run in turns, each turn in a process of its own.  A process checks the slots after its calls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from goals.scattered import changed, spread
from tabulate import tabulate

import memslots

ROOT = Path(__file__).resolve().parent.parent
OLD = "339614a"
SIZES = (32_764, 100_000)
RELOAD = "delete and load"
HEADS = ["slots", "build", "call", "ms", "fastest turn", "slowest turn", "other's reload / this"]

Call = Callable[[int], object]
Turn = dict[str, float]  # from "SLOTS/CALL" to milliseconds


# ---- one turn, in a process with one of the builds -----------------------------------------------


def reload(vm: Any, rows: Any) -> None:
    """The way without transactions: delete each slot, and load all."""
    put = vm.set_user_memory_region
    for id in range(len(rows)):
        put(id, guest_phys_addr=0, memory_size=0, userspace_addr=0)
    vm.load_memslots(rows)


def median_ms(call: Call, times: int) -> float:
    """The k-th call changes the slots if k is even, and changes them back if k is odd."""
    taken = []
    for k in range(times):
        begin = time.perf_counter_ns()
        call(k)
        taken.append((time.perf_counter_ns() - begin) / 1e6)
    return statistics.median(taken)


def calls(vm: Any, states: list[Any]) -> Iterator[tuple[str, int, Call]]:
    """Yield the name of each call that this build has, how often to make it, and the call."""
    yield RELOAD, 6, lambda k: reload(vm, states[k % 2])
    if not hasattr(vm, "apply"):
        return
    yield "memslots_array", 20, lambda k: vm.memslots_array()
    columns = ["base_gfn", "npages", "userspace_addr", "flags"]
    layouts = [np.ascontiguousarray(state[columns]) for state in states]
    yield "apply", 20, lambda k: vm.apply(layouts[k % 2])
    snapshots = [memslots.Snapshot(state, 0, 0) for state in states]
    vm.restore(snapshots[1])  # apply() may have given the slots other ids
    yield "restore", 20, lambda k: vm.restore(snapshots[k % 2])


def turn(sizes: list[int]) -> Turn:
    found = {}
    for n in sizes:
        rows = spread(n)
        vm = memslots.VM(user_mem_slots=n + 1)
        vm.load_memslots(rows)
        for name, times, call in calls(vm, [changed(rows), rows]):
            found[f"{n}/{name}"] = median_ms(call, times)
        if not (vm.memslots_array() == rows).all():
            raise SystemExit(f"reload: wrong slots after {name} of {n:,} slots")
        vm.close()
    return found


# ---- all turns -----------------------------------------------------------------------------------


def in_process(site: Path, sizes: list[int]) -> Turn:
    words = [sys.executable, __file__, "--one-turn", "--slots", *map(str, sizes)]
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"reload: the turn of {site} failed with status {done.returncode}")
    return dict(json.loads(done.stdout))


def old_site() -> Path:
    from memslots.verdicts import builds  # not in the other build

    try:
        return builds.built(ROOT, OLD, lambda text: print(text, file=sys.stderr)) / "site"
    except builds.BuildError as e:
        print(f"reload: NOT measured: {e}")
        raise SystemExit(2) from e


def table(turns: dict[str, list[Turn]]) -> str:
    """turns: from the name of a build to its turns, first the other build."""
    other = next(iter(turns.values()))
    rows = []
    for build, those in turns.items():
        for key in those[0]:
            n, call = key.split("/")
            taken = [turn[key] for turn in those]
            ms = statistics.median(taken)
            base = statistics.median(turn[f"{n}/{RELOAD}"] for turn in other)
            rows.append([int(n), build, call, ms, min(taken), max(taken), base / ms])
    rows.sort(key=lambda row: row[0])
    return tabulate(
        rows, HEADS, tablefmt="github", intfmt=",", floatfmt=("", "", "", *3 * [".2f"], ".1f")
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--site", type=Path, help=f"(default: commit {OLD}, built if needed)")
    parser.add_argument("--turns", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--slots", type=int, nargs="+", default=SIZES, help="(default: %(default)s)"
    )
    parser.add_argument("--one-turn", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one_turn:
        print(json.dumps(turn(args.slots)))
        return 0
    sites = {
        "other" if args.site else OLD: args.site or old_site(),
        "this": Path(memslots.__file__).resolve().parent.parent,
    }
    turns: dict[str, list[Turn]] = {build: [] for build in sites}
    for _ in range(args.turns):
        for build, site in sites.items():
            turns[build].append(in_process(site, args.slots))
    print(table(turns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
