# SPDX-License-Identifier: MIT
"""python -m goals: runs the parts, prints what came, and fails for wrong answers alone."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import memslots
from memslots.lab.machine import machine

from . import batches, core, memory, scalar, start, threads
from .book import Book, Figure
from .work import NO_SWITCH, QUICK, SIZES, Effort, has_switch, simd_level

GOALS = tuple(f"P{i}" for i in range(1, 11))
LEVELS = ("portable", "avx2")  # what MEMSLOTS_SIMD is forced to
LEVELS_MOST, LEVELS_ROUNDS = 32_764, 3


def parts(book: Book, effort: Effort, folder: Path) -> list[tuple[str, Callable[[], None]]]:
    """The goals that a part is about, and the part."""
    return [
        ("P1 P2", lambda: batches.steady(book, effort)),
        ("P3", lambda: batches.changing(book, effort)),
        ("P4", lambda: scalar.scalar(book, effort, folder)),
        ("P5 P6 P7", lambda: core.core(book, effort, folder)),
        ("P6", lambda: core.against_array(book, effort)),
        ("P6", lambda: core.against_kernel(book, effort)),
        ("P8", lambda: memory.memory(book, effort)),
        ("P9", lambda: threads.scaling(book, effort, folder)),
        ("P9", lambda: threads.beside(book, effort)),
        ("P10", lambda: start.start(book, effort)),
    ]


def run(book: Book, effort: Effort, wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for goals, part in parts(book, effort, Path(folder)):
            if set(goals.split()) & set(wanted):
                began = time.monotonic()
                part()
                print(f"{goals}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    book.figures[:] = [f for f in book.figures if f.goal in wanted]


# ---- forced levels of SIMD ------------------------------------------------------------------------


def forced(book: Book, effort: Effort) -> None:
    """P1 once more with MEMSLOTS_SIMD, which is read when memslots is imported, in processes of their own."""
    for level in LEVELS:
        what = f"MEMSLOTS_SIMD={level}"
        if simd_level() is None:
            book.skip("P1", what, "this build has no levels of SIMD")
        elif not effort.up_to(LEVELS_MOST):
            book.skip("P1", what, f"it is measured up to {LEVELS_MOST:,} slots")
        elif (report := run_forced(level, effort))["simd"] != level:
            book.skip("P1", what, f"the level in use is {report['simd']}")
        else:
            take_over(book, report, level)


def run_forced(level: str, effort: Effort) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        sizes = [str(n) for n in effort.up_to(LEVELS_MOST)]
        command = [
            sys.executable,
            "-m",
            "goals",
            "--only",
            "P1",
            "--no-levels",
            "--json",
            str(file),
        ]
        command += ["--rounds", str(min(LEVELS_ROUNDS, effort.rounds)), "--sizes", *sizes]
        command += ["--quick"] if effort.quick else []
        paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(filter(None, paths))
        env = {**os.environ, "MEMSLOTS_SIMD": level, "PYTHONPATH": path}
        subprocess.run(command, env=env, check=False, stdout=subprocess.DEVNULL)
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return report


def take_over(book: Book, report: dict[str, Any], level: str) -> None:
    """Without bounds: the goals are about the level that the machine has."""
    for row in report["figures"]:
        fields = {k: v for k, v in row.items() if k not in ("verdict", "sure", "bound")}
        fields["what"] = f"{row['what']}, MEMSLOTS_SIMD={level}"
        book.figures.append(Figure(**fields))
    for wrong in report["wrong"]:
        book.check(False, f"{wrong}, MEMSLOTS_SIMD={level}")


# ---- the command ----------------------------------------------------------------------------------


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="goals", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=GOALS, default=GOALS, metavar="P")
    parser.add_argument(
        "--rounds", type=int, help="turns of each; medians and quartiles are over them"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=int, choices=SIZES, metavar="N", help="numbers of slots"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes every figure")
    parser.add_argument(
        "--markdown", action="store_true", help="prints the table of docs/benchmarks.md"
    )
    parser.add_argument(
        "--no-levels", action="store_true", help="not again with each MEMSLOTS_SIMD"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds: does it run?  No figure counts"
    )
    return parser.parse_args(argv)


def effort_of(args: argparse.Namespace) -> Effort:
    effort = QUICK if args.quick else Effort()
    if args.sizes:
        effort = replace(effort, sizes=tuple(sorted(args.sizes)))
    return replace(effort, rounds=args.rounds) if args.rounds else effort


def as_json(book: Book, effort: Effort, seconds: float) -> dict[str, Any]:
    return {
        "memslots": memslots.__version__,
        "machine": machine(),
        "simd": simd_level(),
        "index_policy": has_switch(),
        "rounds": effort.rounds,
        "queries": effort.queries,
        "seconds": round(seconds, 1),
        "figures": [figure.as_dict() for figure in book.figures],
        "skipped": book.skipped,
        "notes": book.notes,
        "wrong": book.wrong,
    }


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    book, effort, began = Book(), effort_of(args), time.monotonic()
    if not has_switch():
        book.note(NO_SWITCH)
    run(book, effort, list(args.only))
    if "P1" in args.only and not args.no_levels:
        forced(book, effort)
    seconds = time.monotonic() - began
    if args.json:
        args.json.write_text(
            json.dumps(as_json(book, effort, seconds), indent=1) + "\n", encoding="utf-8"
        )
    if not args.markdown:
        level = simd_level() or "no levels"
        print(
            f"memslots {memslots.__version__}, {os.cpu_count()} CPUs, SIMD: {level}; {seconds:.0f} s"
        )
    print("\n".join(book.markdown() if args.markdown else book.lines()))
    if args.markdown and book.wrong:
        print("\n".join(f"WRONG: {what}" for what in book.wrong), file=sys.stderr)
    return 1 if book.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
