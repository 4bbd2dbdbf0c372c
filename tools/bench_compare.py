# SPDX-License-Identifier: MIT
"""bench_compare.py - measure two versions of memslots in turns on one machine: is B faster than A?

    bench_compare.py A B [--pairs N] [--orders N] [--only PATTERN] [-o FILE]
    bench_compare.py A B --suite [--pairs N] [-o FILE] [arguments of pytest, such as -k change]

A and B are commits in any spelling that git accepts.  `.` stands for the files of the checkout as they are.  The tool
copies each version into build/compare/, builds it there and links it several times with its objects in other orders.
It writes nothing to the repository itself.

Each measured process takes about a second and runs src/memslots/verdicts/work.py.  With --suite it is one run of this
checkout's bench/suite, which takes minutes.  docs/how-we-know.md explains the verdicts and their error rates.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from memslots import __version__
from memslots.commands import against, terminal
from memslots.lab.fingerprint import fingerprint
from memslots.lab.progress import progress_bar
from memslots.verdicts import builds, processes, suites
from memslots.verdicts.builds import BuildError, Version
from memslots.verdicts.processes import PAIRS, Benchmarks, Planned, ProcessError, Work
from memslots.verdicts.runs import Comparison, ComparisonError

ROOT = Path(__file__).resolve().parent.parent
SUITE_PAIRS, SUITE_UNIT = 8, 2  # pairs; a process takes minutes, and has many rounds of its own


def suite_work(versions: dict[str, Version], words: list[str], failed: set[str]) -> Work:
    """Return a function that runs bench/suite once in a new process."""

    def work(planned: Planned) -> Benchmarks:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "benchmarks.json"
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE"]
            command += ["bench/suite", f"--benchmark-json={path}", "--benchmark-disable-gc", *words]
            env = {**os.environ, **processes.environment(planned, versions)}
            done = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
            )
            lines = done.stdout.splitlines()
            failed.update(line for line in lines if line.startswith(("FAILED", "ERROR")))
            if done.returncode not in (0, 1) or not path.exists() or not path.stat().st_size:
                raise ProcessError(
                    f"{versions[planned.side].name}: pytest ended with {done.returncode}\n{done.stdout}"
                )
            return suites.medians(path)

    return work


def compare(args: argparse.Namespace, further: list[str]) -> Comparison:
    each = SUITE_UNIT if args.suite else PAIRS
    units = -(-args.pairs // each)
    orders = min(args.orders, units)
    versions = {
        side: builds.build(ROOT, name, side, orders, terminal.say)
        for side, name in (("A", args.a), ("B", args.b))
    }
    failed: set[str] = set()
    work = processes.short_work(versions, args.seconds, args.only)
    if args.suite:
        work = suite_work(versions, further, failed)
    planned = list(processes.plan(units, orders, each))
    start = perf_counter()
    with progress_bar(lambda: len(planned), "run") as progress:
        measured = processes.measure(planned, work, progress)
    seconds = round(perf_counter() - start, 1)
    names = versions["A"].name, versions["B"].name
    return Comparison(
        __version__, "compare", *names, seconds, fingerprint(), measured, sorted(failed)
    )


def arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--suite", action="store_true", help="run bench/suite in each process")
    parser.add_argument("--pairs", type=int, help=f"default: {against.NORMAL}, or {SUITE_PAIRS}")
    parser.add_argument("--orders", type=int, default=against.ORDERS, help="link orders of a side")
    parser.add_argument("--seconds", type=float, default=processes.SECONDS)
    parser.add_argument("--only", metavar="PATTERN")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE")
    args, further = parser.parse_known_args(argv)
    args.pairs = args.pairs or (SUITE_PAIRS if args.suite else against.NORMAL)
    if further and not args.suite:
        parser.error(f"unknown arguments: {' '.join(further)}; arguments of pytest need --suite")
    return args, further


def main(argv: list[str] | None = None) -> int:
    args, further = arguments(argv)
    try:
        found = compare(args, further)
        code = against.deliver(found, args.json, args.output)
    except (BuildError, ProcessError, ComparisonError) as e:
        raise SystemExit(f"bench-compare: {e}") from e
    return 1 if found.failed else code


if __name__ == "__main__":
    sys.exit(main())
