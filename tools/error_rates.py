# SPDX-License-Identifier: MIT
"""error_rates.py - how often are the verdicts wrong?  See docs/how-we-know.md.

    error_rates.py record FILE [--processes N] [--orders N]    measure a pool: the same version on both sides
    error_rates.py rates FILE [--pairs N ...] [-o RATES]       draw experiments from the pool

A pool is recorded once, on a quiet machine.  The rates follow from the file alone and are the same for each run.
RATES is a JSON file with the rates and the checksum of the pool; docs/how-we-know.md has its figures (make figures).
"""

import argparse
import gzip
import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memslots.commands import against, terminal
from memslots.report import verdicts as report_verdicts
from memslots.verdicts import pool, runs
from memslots.verdicts.builds import HERE, BuildError
from memslots.verdicts.pool import Rates, Spread
from memslots.verdicts.processes import PAIRS, SECONDS, ProcessError
from memslots.verdicts.runs import Comparison, ComparisonError

ROOT = Path(__file__).resolve().parent.parent
PROCESSES, ORDERS = 400, 20
SIZES = (24, 48, 96, 150, 204, 252)  # pairs


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


def rates(
    path: Path, wanted: list[int] | None, experiments: int, as_json: bool, output: Path | None
) -> int:
    found = pool_of(path)
    spreads = pool.spreads(found)
    drawn = [pool.rates(found, pairs, experiments) for pairs in sizes(found, wanted)]
    report = as_report(path, found, spreads, drawn)
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if as_json:
        terminal.print_json(report)
    else:
        terminal.emit(report_verdicts.rates_text(found, spreads, drawn, terminal.width()))
    return 0 if any(map(pool.kept, drawn)) and not list(pool.complaints(found)) else 1


def pool_of(path: Path) -> Comparison:
    """Read a pool.  Units that were recorded with fewer pairs than a comparison has now are joined."""
    return runs.joined(runs.read(path), PAIRS)


def as_report(
    path: Path, found: Comparison, spreads: list[Spread], drawn: list[Rates]
) -> dict[str, Any]:
    """Return the rates with the checksum of the pool, so that rates of another pool are noticed."""
    orders = {side: len({p.order for p in found.processes if p.side == side}) for side in "AB"}
    described = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "processes": len(found.processes),
        "orders": min(orders.values()),
        "seconds": found.seconds,
        "spread": max(spread.spread for spread in spreads),
    }
    rows = [{**asdict(rate), "kept": pool.kept(rate)} for rate in drawn]
    return {"pool": described, "spreads": [asdict(spread) for spread in spreads], "rates": rows}


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
    drawer.add_argument("-o", "--output", type=Path, metavar="RATES")
    args = parser.parse_args(argv)
    try:
        if args.command == "record":
            record(args.file, args.processes, args.orders, args.seconds)
            return 0
        return rates(args.file, args.pairs, args.experiments, args.json, args.output)
    except (BuildError, ProcessError, ComparisonError, OSError) as e:
        raise SystemExit(f"error-rates: {e}") from e


if __name__ == "__main__":
    sys.exit(main())
