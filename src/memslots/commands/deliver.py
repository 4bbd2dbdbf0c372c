# SPDX-License-Identifier: MIT
"""Where a report goes: text or JSON on stdout, a file, a picture."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..lab.schema import Report

R = TypeVar("R", bound=Report)
Draw = tuple[Callable[[R, Path], object], Path]  # a function that imports memslots.plot; the file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument(
        "-o", "--output", type=to_be_written, metavar="FILE", help="write it to a file too"
    )
    parser.add_argument(
        "--picture", type=to_be_written, metavar="FILE", help="draw it: .png or .svg"
    )


def to_be_written(text: str) -> Path:
    """Better refused now than after a minute of measuring."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def deliver(
    report: R, args: argparse.Namespace, text: Callable[[R], str], draws: list[Draw[R]]
) -> None:
    """Prints and writes; what cannot be written or drawn raises OSError or is said on stderr."""
    print(json.dumps(report, indent=1) if args.json else text(report))
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for draw, path in draws:
        _draw(draw, report, path)


def _draw(draw: Callable[[R, Path], object], report: R, path: Path) -> None:
    """Says on stderr what came of it, so that stdout stays what was asked for."""
    try:
        draw(report, path)
    except ImportError as e:
        _say(f"no picture: {e}; pip install 'memslots[plot]'")
        return
    except ValueError as e:  # a few cases alone have not always what a picture shows
        _say(f"no picture: {path}: {e}")
        return
    _say(f"picture: {path}")


def _say(message: str) -> None:
    print(f"memslots: {message}", file=sys.stderr)


def exit_code(report: Report) -> int:
    """1 where an answer was wrong; each is named."""
    for wrong in report["wrong"]:
        slots = f" at {wrong['n_slots']:,} slots" if wrong["n_slots"] else ""
        _say(f"WRONG: {wrong['case']}, {wrong['backend']}{slots}: {wrong['what']}")
    return 1 if report["wrong"] else 0
