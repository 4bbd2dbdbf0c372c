# SPDX-License-Identifier: MIT
"""`memslots map`: the memory map that a vector file builds, over all its operations or after N of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..traces import history, vectors
from .terminal import EXIT_OK, complain, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `memslots map`."""
    parser.add_argument(
        "file", metavar="FILE", help="a vector file, or the name of a packaged QEMU trace"
    )
    parser.add_argument(
        "--at", type=int, metavar="N", help="the map after N operations; 0 is the empty VM"
    )
    parser.add_argument(
        "-o", "--output", metavar="PICTURE", help="draw a .png or .svg: over time, or at --at"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Draws or prints; 0, or 2 with a word about why it could not."""
    try:
        file = vectors.read(find(args.file))
        at = _checked(args.at, len(file.ops))
        picture = _draw(file, args.output, args.at) if args.output else None
    except (OSError, ValueError, ImportError) as e:
        return complain(e)
    if args.json:
        print_json(_summary(file, at))
    else:
        print(_text(file, at, picture))
    return EXIT_OK


def find(name: str) -> str:
    """The path of a file, or of the packaged trace of that name."""
    path = vectors.packaged(name)
    if path is None and not Path(name).exists():
        names = ", ".join(map(vectors.stem, vectors.packaged_traces()))
        raise FileNotFoundError(f"{name}: no file, and none of the packaged {names}")
    return path or name


def _checked(at: int | None, ops: int) -> int:
    if at is not None and not 0 <= at <= ops:
        raise ValueError(f"--at {at}: the file has {ops} operations")
    return ops if at is None else at


def _draw(file: vectors.VectorFile, path: str, at: int | None) -> Path:
    """Returns the path of the picture: matplotlib writes a .png where `path` has no suffix."""
    try:
        from ..plot import check_picture, memory_map_picture
    except ImportError as e:
        raise ImportError(f"{path}: pictures need matplotlib: pip install 'memslots[plot]'") from e
    check_picture(path)
    return memory_map_picture(file, path, at)


# ---- text ---------------------------------------------------------------------------------------


def _text(file: vectors.VectorFile, at: int, picture: Path | None) -> str:
    if picture:
        return f"{history.name_of(file)}: drawn to {picture}"
    slots = history.slots_at(history.lives(file), at)
    total = history.size_text(sum(life.size for life in slots))
    head = f"{history.name_of(file)} after {at} of {len(file.ops)} operations: {len(slots)} slots, {total}"
    return "\n".join([head, *_table(slots)])


def _table(slots: list[history.Life]) -> Iterator[str]:
    """The slots by rising gpa, with the holes between them."""
    width = max((len(f"{life.end_gpa:x}") for life in slots), default=0)
    above: history.Life | None = None
    for life in slots:
        if above and above.as_id == life.as_id and above.end_gpa < life.gpa:
            yield f"  {'':{2 * width + 6}}  {history.size_text(life.gpa - above.end_gpa):>9}  hole"
        elif life.as_id and (not above or above.as_id != life.as_id):
            yield f"address space {life.as_id}"
        yield (
            f"  0x{life.gpa:0{width}x}..0x{life.end_gpa:0{width}x}  {history.size_text(life.size):>9}"
            f"  slot {life.id:<5}  {life.kind:<17} at {life.hva}"
        )
        above = life


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
