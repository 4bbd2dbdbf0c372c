# SPDX-License-Identifier: MIT
"""index_costs.py - the cost of an index and the time that it saves: the figures behind the rules of vm_index.c.

    python bench/index_costs.py

An index pays if the lookups that follow save more time than its making takes.  The program bench/core/index_costs.c
makes indexes by a walk of the tree and by a copy of the former index, and times batches with and without an index.
Times are nanoseconds, medians of the rounds.  "Lookups that pay" for a slot: the time of the slot, divided by the time
that one lookup by the index saves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from goals.build import QUICK, with_core
from tabulate import tabulate

SIZES = (64, 509, 4096, 32_764, 1_000_000)
HEADS = [
    "slots",
    "a walked slot, ns",
    "created at random, ns",
    "a copied slot, ns",
    "a lookup by walk, ns",
    "by index, ns",
    "lookups that pay for a walked slot",
    "for a copied slot",
]

Rounds = dict[str, list[float]]


def measure(rounds: int, sizes: list[int], *flags: str) -> dict[str, Rounds]:
    with tempfile.TemporaryDirectory() as folder:
        program = with_core(Path(folder) / "index_costs", "index_costs.c", *flags)
        words = [str(program), str(rounds), *map(str, sizes)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"index_costs: bench/core/index_costs.c ended with {done.returncode}")
    found: dict[str, Rounds] = json.loads(done.stdout)
    return found


def row(n: str, rounds: Rounds) -> list[float]:
    walked, scattered, copied, by_walk, by_index = (
        median(rounds[name]) for name in ("walked", "scattered", "copied", "by_walk", "by_index")
    )
    saved = by_walk - by_index
    return [int(n), walked, scattered, copied, by_walk, by_index, walked / saved, copied / saved]


def table(found: dict[str, Rounds]) -> str:
    rows = [row(n, rounds) for n, rounds in found.items()]
    return tabulate(rows, HEADS, tablefmt="github", intfmt=",", floatfmt=("", *7 * [".1f"]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--slots", type=int, nargs="+", default=SIZES, help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="test the tool; figures do not count")
    args = parser.parse_args(argv)
    print(table(measure(args.rounds, args.slots, *(QUICK if args.quick else ()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
