# SPDX-License-Identifier: MIT
"""error_rates.py - how often are the verdicts wrong?  See docs/how-we-know.md.

    error_rates.py record FILE [--processes N] [--orders N]    measure a pool: the same version on both sides
    error_rates.py rates FILE [--pairs N ...]                  draw experiments from the pool

A pool is recorded once, on a quiet machine.  The rates follow from the file alone and are the same for each run.
"""

import argparse
import gzip
import json
import sys
from dataclasses import asdict
from pathlib import Path

from memslots.commands import against, terminal
from memslots.report import verdicts as report_verdicts
from memslots.verdicts import pool, runs
from memslots.verdicts.builds import HERE, BuildError
from memslots.verdicts.processes import SECONDS, ProcessError
from memslots.verdicts.runs import Comparison, ComparisonError

ROOT = Path(__file__).resolve().parent.parent
PROCESSES, ORDERS = 400, 20
SIZES = (16, 36, 64, 100)  # pairs


def record(path: Path, processes: int, orders: int, seconds: float) -> None:
    """Measure a pool and write it.  A name that ends in .gz is compressed."""
    found = against.compare(ROOT, (HERE, HERE), processes // 2, None, orders, seconds)
    text = json.dumps(asdict(found)) + "\n"
    data = text.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    print(f"error-rates: {len(found.processes)} processes in {found.seconds:.0f} s: {path}")


def sizes(found: Comparison, wanted: list[int] | None) -> list[int]:
    """Return the numbers of pairs: those that were asked for, or SIZES and the number that the spread requires."""
    if wanted:
        return wanted
    needed = max(spread.pairs for spread in pool.spreads(found))
    return sorted({*SIZES, needed})


def rates(path: Path, wanted: list[int] | None, experiments: int, as_json: bool) -> int:
    found = runs.read(path)
    spreads = pool.spreads(found)
    drawn = [pool.rates(found, pairs, experiments) for pairs in sizes(found, wanted)]
    if as_json:
        rows = {"spreads": list(map(asdict, spreads)), "rates": list(map(asdict, drawn))}
        terminal.print_json(rows)
    else:
        terminal.emit(report_verdicts.rates_text(found, spreads, drawn, terminal.width()))
    good = any(r.upper <= pool.FALSE_ALARMS and min(r.found) >= pool.FOUND for r in drawn)
    return 0 if good and not list(pool.complaints(found)) else 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record")
    recorder.add_argument("file", type=Path)
    recorder.add_argument("--processes", type=int, default=PROCESSES)
    recorder.add_argument("--orders", type=int, default=ORDERS, help="link orders of each side")
    recorder.add_argument("--seconds", type=float, default=SECONDS, help="in each process")
    drawer = commands.add_parser("rates")
    drawer.add_argument("file", type=Path)
    drawer.add_argument("--pairs", type=int, nargs="+")
    drawer.add_argument("--experiments", type=int, default=pool.EXPERIMENTS)
    drawer.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        if args.command == "record":
            record(args.file, args.processes, args.orders, args.seconds)
            return 0
        return rates(args.file, args.pairs, args.experiments, args.json)
    except (BuildError, ProcessError, ComparisonError, OSError) as e:
        raise SystemExit(f"error-rates: {e}") from e


if __name__ == "__main__":
    sys.exit(main())
