# SPDX-License-Identifier: MIT
"""`memslots map`: the memory map that a vector file builds, over all its operations or after N of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..report.words import plural
from ..traces import history, vectors
from . import arguments, files
from .terminal import EXIT_OK, UsageError, emit, print_json, say, width
from .vector_files import find

INDENT = "    "  # of the lines after the first one of a row
KIND = max(map(len, history.KINDS)) + 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `memslots map`."""
    parser.add_argument(
        "file", metavar="FILE", help="a vector file, or the name of a packaged QEMU trace"
    )
    parser.add_argument(
        "--at", type=int, metavar="N", help="the map after N operations; 0 is the empty VM"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PICTURE",
        help="draw a picture, such as a .png or .svg: over time, or at --at",
    )
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Draws or prints.  UsageError or OSError: the file cannot be read, or the picture cannot be written."""
    file = _read(find(args.file))
    at = _checked(args.at, len(file.ops))
    if args.output:
        picture = _drawn(file, args.output, args.at)
        if args.json:
            say(f"picture: {picture}")
        else:
            emit(f"{history.name_of(file)}: drawn to {picture}")
    elif not args.json:
        emit(_text(file, at, width()))
    if args.json:
        print_json(_summary(file, at))
    return EXIT_OK


def _read(path: str) -> vectors.VectorFile:
    try:
        return vectors.read(path)
    except ValueError as e:
        raise UsageError(str(e)) from e


def _checked(at: int | None, ops: int) -> int:
    if at is not None and not 0 <= at <= ops:
        raise UsageError(f"--at {at}: the file has {plural(ops, 'operation')}")
    return ops if at is None else at


def _drawn(file: vectors.VectorFile, output: Path, at: int | None) -> Path:
    """Draws the picture and returns its path."""
    path = files.picture(output)
    files.check([path])
    from ..plot import memory_map_picture

    try:
        with files.replacing(path) as part:
            memory_map_picture(file, part, at)
    except ValueError as e:
        raise UsageError(f"no picture: {path}: {e}") from e
    return path


# ---- text ---------------------------------------------------------------------------------------


def _text(file: vectors.VectorFile, at: int, columns: int | None) -> str:
    slots = history.slots_at(history.lives(file), at)
    total = history.size_text(sum(life.size for life in slots))
    when = f"after {at:,} of {plural(len(file.ops), 'operation')}:"
    head = [history.name_of(file), when, f"{plural(len(slots), 'slot')},", total]
    lines = [*_folded(head, columns, " ")]
    for pieces in _rows(slots):
        lines += _folded(pieces, columns, "  ")
    return "\n".join(lines)


def _rows(slots: list[history.Life]) -> Iterator[list[str]]:
    """The rows for the slots, by ascending gpa, and for the holes between them.  A row is a list of pieces."""
    digits = max((len(f"{life.end_gpa:x}") for life in slots), default=0)
    above: history.Life | None = None
    for life in slots:
        if above and above.as_id == life.as_id and above.end_gpa < life.gpa:
            hole = history.size_text(life.gpa - above.end_gpa)
            yield [f"  {'':{2 * digits + 6}}", f"{hole:>9}  hole"]
        elif life.as_id and (not above or above.as_id != life.as_id):
            yield [f"address space {life.as_id}"]
        yield [
            f"  0x{life.gpa:0{digits}x}..0x{life.end_gpa:0{digits}x}",
            f"{history.size_text(life.size):>9}",
            f"slot {life.id:<5}",
            f"{life.kind:<{KIND}}",
            f"at {life.hva}",
        ]
        above = life


def _folded(pieces: list[str], columns: int | None, gap: str) -> Iterator[str]:
    """The lines of one row: one if it fits, else several.  No piece is broken."""
    line, *others = pieces
    for piece in others:
        if columns is None or len(f"{line}{gap}{piece}".rstrip()) <= columns:
            line += gap + piece
            continue
        if line.strip():
            yield line.rstrip()
        line = INDENT + piece.strip()
    yield line.rstrip()


# ---- JSON ---------------------------------------------------------------------------------------


def _summary(file: vectors.VectorFile, at: int) -> dict[str, Any]:
    all_lives = history.lives(file)
    return {
        "path": file.path,
        "name": history.name_of(file),
        "ops": len(file.ops),
        "changes": sum(1 for _ in history.changes(file)),
        "most_slots": history.most_slots(all_lives),
        "at": at,
        "slots": [_slot(life) for life in history.slots_at(all_lives, at)],
    }


def _slot(life: history.Life) -> dict[str, Any]:
    shown = life._asdict() | {"flags": life.flags, "since": life.begin}
    return {key: value for key, value in shown.items() if key not in ("begin", "end")}
