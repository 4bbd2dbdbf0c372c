# SPDX-License-Identifier: MIT
"""`memslots map`: the memory map that a vector file builds, over all its operations or after N of them.

Nothing is played: the map follows from the changes that the recording kernel accepted.  A slot that a change rewrites
ends there and begins anew, so a map over time is a list of lives, each a rectangle of addresses and operations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import vectors
from .constants import MemFlag

EXIT_OK, EXIT_USAGE = 0, 2

KINDS = ("RAM", "RAM, logged", "READONLY", "READONLY, logged")


class Life(NamedTuple):
    """One slot, unchanged while `begin` to `end` - 1 operations of its file are done; [gpa, end_gpa) are bytes."""

    id: int
    as_id: int
    gpa: int
    size: int
    hva: str  # as the file has it
    flags: int
    begin: int
    end: int

    @property
    def end_gpa(self) -> int:
        return self.gpa + self.size

    @property
    def kind(self) -> str:
        logged = bool(self.flags & MemFlag.LOG_DIRTY_PAGES)
        return KINDS[2 * bool(self.flags & MemFlag.READONLY) + logged]


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
        print(f"memslots: {e}", file=sys.stderr)
        return EXIT_USAGE
    print(json.dumps(_summary(file, at), indent=1) if args.json else _text(file, at, picture))
    return EXIT_OK


def find(name: str) -> str:
    """The path of a file, or of the packaged trace of that name."""
    path = vectors.packaged(name)
    if path is None and not Path(name).exists():
        names = ", ".join(map(vectors.stem, vectors.packaged_traces()))
        raise FileNotFoundError(f"{name}: no file, and none of the packaged {names}")
    return path or name


def name_of(file: vectors.VectorFile) -> str:
    """What to call it in a title."""
    return str(file.header.get("name") or vectors.stem(file.path))


def _checked(at: int | None, ops: int) -> int:
    if at is not None and not 0 <= at <= ops:
        raise ValueError(f"--at {at}: the file has {ops} operations")
    return ops if at is None else at


def _draw(file: vectors.VectorFile, path: str, at: int | None) -> Path:
    """Returns the file written: matplotlib's is a .png where `path` has no suffix."""
    try:
        from . import plot
    except ImportError as e:
        raise ImportError(f"{path}: pictures need matplotlib: pip install 'memslots[plot]'") from e
    plot.check_picture(path)
    return plot.memory_map_picture(file, path, at)


# ---- lives --------------------------------------------------------------------------------------


def lives(file: vectors.VectorFile) -> list[Life]:
    """Every slot of the file, as often as it changed, by its beginning."""
    found: list[Life] = []
    alive: dict[int, Life] = {}  # by the ioctl's slot, which includes the address space
    for n, op in changes(file):
        slot, new = op.fields["slot"], _born(op, n, len(file.ops) + 1)
        old = alive.get(slot)
        if old and new._replace(begin=old.begin) == old:
            continue  # KVM found nothing to change
        if old:
            found.append(alive.pop(slot)._replace(end=n))
        if new.size:
            alive[slot] = new
    return sorted(found + list(alive.values()), key=lambda life: (life.begin, life.gpa))


def changes(file: vectors.VectorFile) -> Iterator[tuple[int, vectors.Op]]:
    """Each change that was accepted, with its number among all operations, from 1."""
    for n, op in enumerate(file.ops, 1):
        if op.kind in ("set", "set2") and op.fields["ret"] == 0:
            yield n, op


def _born(op: vectors.Op, begin: int, end: int) -> Life:
    f = op.fields
    gpa, size = vectors.parse_number(f["gpa"]), vectors.parse_number(f["size"])
    return Life(f["slot"] & 0xFFFF, f["slot"] >> 16, gpa, size, f["hva"], f["flags"], begin, end)


def slots_at(all_lives: Iterable[Life], n: int) -> list[Life]:
    """The slots after n operations, by address space and gpa."""
    now = [life for life in all_lives if life.begin <= n < life.end]
    return sorted(now, key=lambda life: (life.as_id, life.gpa))


def most_slots(all_lives: Iterable[Life]) -> int:
    """How many there were at the fullest moment."""
    steps = sorted(
        step for life in all_lives for step in ((life.begin, 1), (life.end, -1))
    )  # at one operation the end (-1) sorts before the beginning
    count = most = 0
    for _, change in steps:
        count += change
        most = max(most, count)
    return most


# ---- text ---------------------------------------------------------------------------------------


def size_text(size: int) -> str:
    """In the largest unit that keeps it at or above 1: 640 KiB, 3.5 GiB."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >> shift:
            return f"{size / (1 << shift):.4g} {unit}"
    return f"{size} B"


def _text(file: vectors.VectorFile, at: int, picture: Path | None) -> str:
    if picture:
        return f"{name_of(file)}: drawn to {picture}"
    slots = slots_at(lives(file), at)
    total = size_text(sum(life.size for life in slots))
    head = f"{name_of(file)} after {at} of {len(file.ops)} operations: {len(slots)} slots, {total}"
    return "\n".join([head, *_table(slots)])


def _table(slots: list[Life]) -> Iterator[str]:
    """The slots by rising gpa, with the holes between them."""
    width = max((len(f"{life.end_gpa:x}") for life in slots), default=0)
    above: Life | None = None
    for life in slots:
        if above and above.as_id == life.as_id and above.end_gpa < life.gpa:
            yield f"  {'':{2 * width + 6}}  {size_text(life.gpa - above.end_gpa):>9}  hole"
        elif life.as_id and (not above or above.as_id != life.as_id):
            yield f"address space {life.as_id}"
        yield (
            f"  0x{life.gpa:0{width}x}..0x{life.end_gpa:0{width}x}  {size_text(life.size):>9}"
            f"  slot {life.id:<5}  {life.kind:<17} at {life.hva}"
        )
        above = life


def _summary(file: vectors.VectorFile, at: int) -> dict[str, Any]:
    all_lives = lives(file)
    return {
        "path": file.path,
        "name": name_of(file),
        "ops": len(file.ops),
        "changes": sum(1 for _ in changes(file)),
        "most_slots": most_slots(all_lives),
        "at": at,
        "slots": [_slot(life) for life in slots_at(all_lives, at)],
    }


def _slot(life: Life) -> dict[str, Any]:
    shown = life._asdict() | {"flags": life.flags, "since": life.begin}
    return {key: value for key, value in shown.items() if key not in ("begin", "end")}
