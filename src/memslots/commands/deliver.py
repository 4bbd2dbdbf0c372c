# SPDX-License-Identifier: MIT
"""Delivers the report of a measurement: text or JSON on stdout, a file, and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from ..lab.schema import Report
from . import arguments, files, terminal
from .terminal import EXIT_FOUND, EXIT_OK, EXIT_USAGE

R = TypeVar("R", bound=Report)
Text = Callable[[R, int | None], str]  # report, columns of the terminal -> text


class Drawing(NamedTuple, Generic[R]):
    draw: Callable[[R, Path], object]
    path: Path
    wanted: bool = True  # False for a picture that the user did not name: it may fail


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_json(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="also write the JSON object to FILE"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="also draw a picture; the suffix chooses the format, such as .png or .svg",
    )


def check(args: argparse.Namespace, drawings: list[Drawing[R]]) -> None:
    """Checks, before anything is measured, that all outputs can be written."""
    outputs = [args.output] if args.output else []
    files.check([*outputs, *(drawing.path for drawing in drawings)])


def deliver(report: R, args: argparse.Namespace, text: Text[R], drawings: list[Drawing[R]]) -> int:
    """Prints, writes and draws.  Returns the exit code.  If one output fails, the others are still made."""
    failures = [e for step in _steps(report, args, text, drawings) if (e := _failure(step))]
    broken = [e for e in failures if isinstance(e, BrokenPipeError) and e.filename is None]
    others = [e for e in failures if e not in broken]
    for error in others:
        terminal.complain(error)
    _name_wrong_answers(report)
    code = EXIT_USAGE if others else EXIT_FOUND if report["wrong"] else EXIT_OK
    if broken and code == EXIT_OK:
        raise broken[0]
    return code


def _steps(
    report: R, args: argparse.Namespace, text: Text[R], drawings: list[Drawing[R]]
) -> Iterator[Callable[[], object]]:
    """One function for each output.  The text comes first, because it needs no disk."""
    if args.json:
        yield partial(terminal.print_json, report)
    else:
        yield lambda: terminal.emit(text(report, terminal.width()))
    if args.output:
        yield partial(_write, report, args.output)
    for drawing in drawings:
        yield partial(_draw, drawing, report)


def _failure(step: Callable[[], object]) -> OSError | terminal.UsageError | None:
    try:
        step()
    except (OSError, terminal.UsageError) as e:
        return e
    return None


def _write(report: R, path: Path) -> None:
    with files.replacing(path) as part:
        part.write_text(terminal.json_text(report) + "\n", encoding="utf-8")


def _draw(drawing: Drawing[R], report: R) -> None:
    """Draws a picture and reports it on stderr, because stdout may be JSON."""
    try:
        with files.replacing(drawing.path) as part:
            drawing.draw(report, part)
    except ValueError as e:  # the report has no case that this picture shows
        reason = f"no picture: {drawing.path}: {e}"
        if drawing.wanted:
            raise terminal.UsageError(reason) from e
        terminal.say(reason)
        return
    terminal.say(f"picture: {drawing.path}")


def _name_wrong_answers(report: Report) -> None:
    for wrong in report["wrong"]:
        slots = f" at {wrong['n_slots']:,} slots" if wrong["n_slots"] else ""
        terminal.say(f"WRONG: {wrong['case']}, {wrong['backend']}{slots}: {wrong['what']}")
