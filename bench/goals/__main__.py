# SPDX-License-Identifier: MIT
"""python -m goals: run the parts and print the figures.  Only wrong answers make it fail."""

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

from . import batches, core, dirty, fib, guest, layouts, memory, next_to, scalar, start, threads
from .scorecard import Figure, Scorecard
from .work import QUICK, Settings, simd_level

GOALS = tuple(f"P{i}" for i in range(1, 14))
LEVELS = ("portable", "avx2")  # the forced values of MEMSLOTS_SIMD
LEVELS_MOST, LEVELS_ROUNDS = 32_764, 3


def parts(
    card: Scorecard, settings: Settings, folder: Path
) -> list[tuple[str, Callable[[], None]]]:
    """Return pairs: the goals that a part measures, and the part."""
    return [
        ("P1 P2", lambda: batches.steady(card, settings)),
        ("P1", lambda: fib.against_fib(card, settings, folder)),
        ("P3", lambda: batches.changing(card, settings)),
        ("P4", lambda: scalar.scalar(card, settings, folder)),
        ("P4", lambda: scalar.without_batches(card, settings)),
        ("P4", lambda: scalar.dearest(card, settings, folder)),
        ("P5 P6 P7", lambda: core.core(card, settings, folder)),
        ("P6", lambda: core.against_array(card, settings)),
        ("P6", lambda: core.against_kernel(card, settings)),
        ("P8", lambda: memory.memory(card, settings)),
        ("P9", lambda: threads.scaling(card, settings, folder)),
        ("P9", lambda: next_to.next_to(card, settings, folder)),
        ("P10", lambda: start.start(card, settings)),
        ("P11", lambda: guest.guest(card, settings, folder)),
        ("P12", lambda: dirty.dirty(card, settings)),
        ("P13", lambda: layouts.whole_layouts(card, settings)),
    ]


def run(card: Scorecard, settings: Settings, wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for goals, part in parts(card, settings, Path(folder)):
            if set(goals.split()) & set(wanted):
                began = time.monotonic()
                part()
                print(f"{goals}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    card.figures[:] = [f for f in card.figures if f.goal in wanted]


# ---- forced levels of SIMD ------------------------------------------------------------------------


def forced(card: Scorecard, settings: Settings) -> None:
    """Measure P1 again with each MEMSLOTS_SIMD, in new processes, because memslots reads it at import."""
    for level in LEVELS:
        what = f"MEMSLOTS_SIMD={level}"
        if not settings.up_to(LEVELS_MOST):
            card.skip("P1", what, f"it is measured up to {LEVELS_MOST:,} slots")
        elif (report := run_forced(level, settings))["simd"] != level:
            card.skip("P1", what, f"the level in use is {report['simd']}")
        else:
            take_over(card, report, level)


def run_forced(level: str, settings: Settings) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        sizes = [str(n) for n in settings.up_to(LEVELS_MOST)]
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
        command += ["--rounds", str(min(LEVELS_ROUNDS, settings.rounds)), "--sizes", *sizes]
        command += ["--quick"] if settings.quick else []
        paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(filter(None, paths))
        env = {**os.environ, "MEMSLOTS_SIMD": level, "PYTHONPATH": path}
        subprocess.run(command, env=env, check=False, stdout=subprocess.DEVNULL)
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return report


def take_over(card: Scorecard, report: dict[str, Any], level: str) -> None:
    """Add the figures without bounds, because the goals apply to the best level of the machine."""
    for row in report["figures"]:
        fields = {k: v for k, v in row.items() if k not in ("verdict", "sure", "bound")}
        fields["what"] = f"{row['what']}, MEMSLOTS_SIMD={level}"
        card.figures.append(Figure(**fields))
    for wrong in report["wrong"]:
        card.check(False, f"{wrong}, MEMSLOTS_SIMD={level}")


# ---- the command ----------------------------------------------------------------------------------


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="goals", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=GOALS, default=GOALS, metavar="P")
    parser.add_argument(
        "--rounds", type=int, help="turns of each call; medians and quartiles are over the rounds"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=positive,
        metavar="N",
        help="numbers of slots; only the default numbers have bounds",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="writes every figure and its samples"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="prints a table with one row for each figure"
    )
    parser.add_argument(
        "--no-levels", action="store_true", help="do not repeat P1 with each MEMSLOTS_SIMD"
    )
    parser.add_argument(
        "--quick", action="store_true", help="test the tool in a few seconds; figures do not count"
    )
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace) -> Settings:
    settings = QUICK if args.quick else Settings()
    if args.sizes:
        settings = replace(settings, sizes=tuple(sorted(args.sizes)))
    return replace(settings, rounds=args.rounds) if args.rounds else settings


def as_json(card: Scorecard, settings: Settings, seconds: float) -> dict[str, Any]:
    return {
        "memslots": memslots.__version__,
        "machine": machine(),
        "simd": simd_level(),
        "rounds": settings.rounds,
        "queries": settings.queries,
        "seconds": round(seconds, 1),
        "figures": [figure.as_dict() for figure in card.figures],
        "skipped": card.skipped,
        "notes": card.notes,
        "wrong": card.wrong,
    }


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    card, settings, began = Scorecard(), settings_of(args), time.monotonic()
    run(card, settings, list(args.only))
    if "P1" in args.only and not args.no_levels:
        forced(card, settings)
    seconds = time.monotonic() - began
    if args.json:
        args.json.write_text(
            json.dumps(as_json(card, settings, seconds), indent=1) + "\n", encoding="utf-8"
        )
    if not args.markdown:
        cpus = f"{os.cpu_count()} CPUs"
        print(f"memslots {memslots.__version__}, {cpus}, SIMD: {simd_level()}; {seconds:.0f} s")
    print("\n".join(card.markdown() if args.markdown else card.lines()))
    if args.markdown and card.wrong:
        print("\n".join(f"WRONG: {what}" for what in card.wrong), file=sys.stderr)
    return 1 if card.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
