# SPDX-License-Identifier: MIT
"""`--verify FILE`: derives every figure, table and picture of a report again from its raw samples.

The key "raw" of FILE has the samples.  Each other key that is derived must be equal to the same key in FILE.  Next to
FILE the command looks for the text and the pictures that `make results` records with it: perf.txt and perf.png for
perf.json.  The text must be equal, and the pictures must have the same pixels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from ..lab.record import RecordError, from_report
from ..measure.derive import differences
from ..report.words import plural
from . import terminal
from .deliver import Drawing, deliver
from .terminal import EXIT_FOUND, UsageError

SHOWN = 10  # differences


class Recorded(NamedTuple):
    """How a command derives its report and draws it."""

    kind: type[Any]
    derive: Callable[[Any], Any]
    text: Callable[[Any, int | None], str]
    drawings: Callable[[Path | None], list[Drawing[Any]]]


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="FILE",
        help="measure nothing: derive the tables and pictures of FILE (written by -o) again, and compare them",
    )


def run(args: argparse.Namespace, recorded: Recorded, drawings: list[Drawing[Any]]) -> int:
    """Print the derived text.  The exit code is 1 if something differs."""
    path: Path = args.verify
    found = _read(path)
    report = _derived(found, recorded, path)
    code = deliver(report, args, recorded.text, drawings)
    wrong = list(_compared(found, report, recorded, path))
    for line in wrong[:SHOWN]:
        terminal.say(f"DIFFERENT: {line}")
    if len(wrong) > SHOWN:
        terminal.say(f"DIFFERENT: and {plural(len(wrong) - SHOWN, 'more place')}")
    cells = plural(report["noise"]["cells"], "cell")
    terminal.say(f"verified: {path}: {cells}, {plural(len(wrong), 'difference')}")
    return max(code, EXIT_FOUND) if wrong else code


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UsageError(f"{path}: not a JSON file: {e}") from e


def _derived(found: Any, recorded: Recorded, path: Path) -> Any:
    try:
        return recorded.derive(from_report(found, recorded.kind))
    except RecordError as e:
        raise UsageError(f"{path}: {e}") from e


def _compared(found: Any, report: Any, recorded: Recorded, path: Path) -> Iterator[str]:
    yield from differences(found, report)
    text = path.with_suffix(".txt")
    if text.exists():
        yield from _compared_text(text, recorded.text(report, None))
    if path.with_suffix(".png").exists():
        yield from _compared_pictures(report, recorded, path.with_suffix(".png"))


def _compared_text(path: Path, again: str) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for i, (old, new) in enumerate(zip_longest(lines, again.splitlines()), 1):
        if old != new:
            yield f"{path}:{i} is {old!r}, but the raw samples give {new!r}"


def _compared_pictures(report: Any, recorded: Recorded, path: Path) -> Iterator[str]:
    try:
        import matplotlib
    except ImportError:
        terminal.say(f"not compared: {path}: matplotlib is not installed")
        return
    for drawing in recorded.drawings(path):
        if not drawing.path.exists():
            continue
        other = _drawn_by(drawing.path)
        if other != matplotlib.__version__:
            terminal.say(
                f"not compared: {drawing.path}: matplotlib {other} drew it, and this is {matplotlib.__version__}"
            )
        elif not _same_pixels(report, drawing):
            yield f"{drawing.path} has other pixels than the picture that the raw samples give"


def _drawn_by(path: Path) -> str:
    """The version of matplotlib that a PNG file names."""
    from PIL import Image

    with Image.open(path) as image:
        words = str(image.info.get("Software", "")).replace(",", " ").split()
    return next((w.removeprefix("version") for w in words if w.startswith("version")), "unknown")


def _same_pixels(report: Any, drawing: Drawing[Any]) -> bool:
    import numpy as np
    from matplotlib.image import imread

    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / drawing.path.name
        drawing.draw(report, again)
        return bool(np.array_equal(imread(drawing.path), imread(again)))
