# SPDX-License-Identifier: MIT
"""workers.py - translate a trace with examples/dask_translate.py in one process and on Dask workers, in turns.

    make bench-workers ARGS="-o docs/results/dask/workers.txt"

The trace lies in the page cache.  Each turn translates all of it once in each way and with each size of a part.  Every
answer must have the same counts and the same checksum; otherwise nothing is written, and the exit status is 1.
"""

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from tabulate import tabulate

from memslots import Snapshot

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
import dask_translate as example

PARTS = (1 << 21, 1 << 23)  # gfns of a part: its arrays fit into the caches, and they do not
HEADS = ["gfns of a part", "where", "seconds", "fastest", "slowest", "one process / this"]
ALONE = "one process"

Times = dict[
    tuple[int, str], list[float]
]  # seconds of each turn, by the size of a part and the place


class DifferentAnswersError(Exception):
    """Two ways to translate the trace do not have the same answer."""


def measure(
    path: Path, gfns: int, snapshot: Snapshot, workers: int, turns: int
) -> tuple[Times, example.Answer]:
    times: Times = {}
    answers: dict[example.Answer, tuple[int, str]] = {}
    with example.cluster_of(workers, path, snapshot) as (client, sent):
        ways = {
            ALONE: lambda size: example.in_one_process(path, gfns, size, snapshot),
            f"{workers} workers": lambda size: example.on_workers(path, gfns, size, client, sent),
        }
        for key in turns * [(size, where) for size in PARTS for where in ways]:
            answer, seconds = ways[key[1]](key[0])
            times.setdefault(key, []).append(seconds)
            answers.setdefault(answer, key)
    if len(answers) != 1:
        raise DifferentAnswersError(f"different answers: {answers}")
    return times, next(iter(answers))


def table(times: Times) -> str:
    rows = []
    for (size, where), seconds in times.items():
        factor = median(times[size, ALONE]) / median(seconds)
        rows.append((size, where, median(seconds), min(seconds), max(seconds), factor))
    return tabulate(rows, HEADS, tablefmt="github", intfmt=",", floatfmt=".2f")


def described(args: argparse.Namespace, answer: example.Answer) -> str:
    cpus = len(os.sched_getaffinity(0))
    return (
        f"{args.gfns:,} gfns, {args.slots:,} slots, {args.turns} turns; {platform.system()} {platform.release()}, "
        f"{cpus} CPUs, numpy {np.__version__}; {answer.holes:,} gfns in holes, checksum {answer.checksum:#018x}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in (("gfns", 100_000_000), ("slots", 32_764), ("turns", 5), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s"
    )
    parser.add_argument("-o", "--output", type=Path, help="a file for the table")
    args = parser.parse_args(argv)
    snapshot = example.make_snapshot(args.slots, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.u64"
        example.make_trace(path, args.gfns, max(PARTS), snapshot, args.seed)
        try:
            times, answer = measure(path, args.gfns, snapshot, args.workers, args.turns)
        except DifferentAnswersError as e:
            print(f"workers: {e}", file=sys.stderr)
            return 1
    text = f"{table(times)}\n\n{described(args, answer)}\n"
    print(text, end="")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
