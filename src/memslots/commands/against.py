# SPDX-License-Identifier: MIT
"""`memslots perf --against FILE|COMMIT`: are the files of the checkout faster than another version?

Figures from another time compare the machine too.  So a FILE (written by perf -o) names the version only: the commit in
its fingerprint is built and measured again, in turns with the files of the checkout.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from .. import __version__
from ..lab import fingerprint
from ..lab.fingerprint import BUILD, Machine
from ..lab.progress import progress_bar
from ..verdicts import builds, processes
from ..verdicts.builds import HERE, BuildError, Version
from ..verdicts.processes import PAIRS, ProcessError
from ..verdicts.runs import Comparison, ComparisonError
from . import files, terminal, verdict
from .terminal import UsageError

FEW, NORMAL, MANY = 24, 48, 204  # pairs: --quick, neither, --full
ORDERS = 8  # link orders of each side, at most


def run(args: argparse.Namespace) -> int:
    pairs = args.rounds or (FEW if args.quick else MANY if args.full else NORMAL)
    if args.output:
        files.check([args.output])
    try:
        root = builds.checkout(checkout_folder())
        commit = commit_in(Path(args.against)) or args.against
        found = compare(root, (commit, HERE), pairs, args.only)
    except (BuildError, ProcessError, ComparisonError) as e:
        raise UsageError(str(e)) from e
    return deliver(found, args.json, args.output)


def deliver(found: Comparison, as_json: bool, output: Path | None) -> int:
    if output:
        with files.replacing(output) as part:
            part.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    return verdict.show(found, as_json)


def checkout_folder() -> Path:
    """The folder that this package was built from, if it still exists; otherwise the current one."""
    try:
        folder = Path(json.loads(BUILD.read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError):
        return Path()
    return folder if folder.is_dir() else Path()


def commit_in(path: Path) -> str | None:
    """The commit of a report, or None if there is no such file.  A report of changed files names no version."""
    if not path.is_file():
        return None
    try:
        machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
        source = machine["source"]
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{path} names no commit: perf -o of this version writes one") from e
    if not source["commit"]:
        raise UsageError(f"{path} was measured with a build outside of git, so it names no commit")
    if source["dirty"]:
        raise UsageError(
            f"{path} was measured with changed files on top of commit {source['commit'][:12]}, "
            "so that version cannot be built again"
        )
    return str(source["commit"])


def compare(
    root: Path,
    names: tuple[str, str],
    pairs: int,
    only: str | None,
    orders: int = ORDERS,
    seconds: float = processes.SECONDS,
) -> Comparison:
    """Build both versions and measure them in turns.  The number of pairs is rounded up to whole units."""
    units = -(-pairs // PAIRS)
    orders = min(orders, units)
    versions: dict[str, Version] = {
        side: builds.build(root, name, side, orders, terminal.say)
        for side, name in zip("AB", names, strict=True)
    }
    planned = list(processes.plan(units, orders))
    start = perf_counter()
    with progress_bar(lambda: len(planned), "run") as progress:
        measured = processes.measure(
            planned, processes.short_work(versions, seconds, only), progress
        )
    if not measured[0].benchmarks:
        raise UsageError(f"no case has {only!r} in its name")
    machine: Machine = fingerprint.fingerprint()
    a, b = versions["A"].name, versions["B"].name
    return Comparison(
        __version__, "compare", a, b, round(perf_counter() - start, 1), machine, measured, []
    )
