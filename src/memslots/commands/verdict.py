# SPDX-License-Identifier: MIT
"""`memslots verdict A*.json -- B*.json`: is B faster than A, from two sets of files of pytest-benchmark?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..report import verdicts as report_verdicts
from ..verdicts import runs, suites
from ..verdicts.outcome import SLOWER
from ..verdicts.runs import Comparison, ComparisonError
from . import arguments, terminal
from .terminal import EXIT_FOUND, EXIT_OK, UsageError

SEPARATOR, OPTION = "--", "--versus"


def prepare(argv: list[str]) -> list[str]:
    """Replace the first "--" by an option, because argparse would drop it."""
    if SEPARATOR not in argv:
        return argv
    at = argv.index(SEPARATOR)
    return [*argv[:at], OPTION, *argv[at + 1 :]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "a", nargs="+", type=Path, metavar="FILE", help="of side A, one for each process"
    )
    parser.add_argument(
        OPTION, nargs="+", type=Path, metavar="FILE", default=[],
        help="of side B; the short form is -- FILE...  Without it: a file that bench-compare or perf --against wrote",
    )  # fmt: skip
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the table.  The exit code is 1 if B is slower in some row."""
    try:
        found = suites.comparison(args.a, args.versus) if args.versus else _recorded(args.a)
        return show(found, args.json)
    except ComparisonError as e:
        raise UsageError(str(e)) from e


def _recorded(paths: list[Path]) -> Comparison:
    if len(paths) > 1:
        raise UsageError(
            "two sets of files are needed: memslots verdict A1.json A2.json -- B1.json B2.json"
        )
    return runs.read(paths[0])


def show(found: Comparison, as_json: bool) -> int:
    rows = runs.table(found)
    if not rows:
        raise ComparisonError("the files have no benchmark in common")
    if as_json:
        terminal.print_json({**asdict(found), "rows": [asdict(row) for row in rows]})
    else:
        terminal.emit(report_verdicts.text(found, rows, terminal.width()))
    return EXIT_FOUND if any(row.outcome == SLOWER for row in rows) else EXIT_OK
