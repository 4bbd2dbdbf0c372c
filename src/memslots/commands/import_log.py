# SPDX-License-Identifier: MIT
"""`memslots import`: converts the log of a real run to a vector file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..lab.progress import progress_bar
from ..report.words import plural, wrapped
from ..traces import logs, vectors
from ..traces.logs import Log, LogError
from ..traces.regions import Regions, region_of
from ..traces.schema import CHANGES
from . import arguments, files
from .terminal import EXIT_FOUND, EXIT_OK, UsageError, complain, emit, print_json, width

SHOWN_LINES = 20  # of those that were not understood


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="the output of strace -f -e trace=ioctl, of QEMU's -trace kvm_set_user_memory, or of "
        "its monitor's info mtree -f; plain or .gz",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="the vector file, .jsonl or .jsonl.gz; without it the log is only checked",
    )
    parser.add_argument(
        "--vm-fd",
        type=_descriptor,
        metavar="N",
        help="the VM's file descriptor, if the log has several VMs",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1, and write nothing, if a line is not understood",
    )
    arguments.add_json(parser)


def _descriptor(text: str) -> int:
    return arguments.number(text, 0, (1 << 31) - 1)


def run(args: argparse.Namespace) -> int:
    """Converts, prints a summary, and writes.  UsageError or OSError: there is nothing to convert, or no place."""
    if args.output:
        _check_output(args.output)
    try:
        log = _read(args.file, args.vm_fd)
        converted = logs.to_vectors(args.file, log)
        failed = bool(args.strict and log.nr_not_understood)
        written = args.output if args.output and not failed else None
        if written:
            with files.replacing(written) as part:
                _write(part, converted, written)
    except LogError as e:
        raise UsageError(str(e)) from e
    if args.json:
        print_json(_summary(args.file, log, converted, written))
    else:
        columns = width()
        lines = _lines(args.file, log, converted, written)
        emit("\n".join(wrapped(line, columns) if columns else line for line in lines))
    if failed:
        reason = f"{plural(log.nr_not_understood, 'line')} not understood (--strict)"
        return complain(f"{args.file}: {reason}; nothing is written", EXIT_FOUND)
    return EXIT_OK


def _check_output(output: Path) -> None:
    if not vectors.is_vector_path(output):
        raise UsageError(f"{output}: the name of a vector file ends with .jsonl or .jsonl.gz")
    files.check([output])


def _read(path: str, vm_fd: int | None) -> Log:
    with progress_bar(lambda: os.stat(path).st_size, "byte") as progress:
        return logs.read(path, vm_fd=vm_fd, progress=progress)


def _write(part: Path, converted: logs.Vectors, output: Path) -> None:
    try:
        logs.write(part, converted)
    except LogError as e:
        raise LogError(str(output), e.line, e.reason) from None


# ---- the summary --------------------------------------------------------------------------------


def _lines(path: str, log: Log, converted: logs.Vectors, written: Path | None) -> Iterator[str]:
    for line in log.not_understood[:SHOWN_LINES]:
        yield f"{path}:{line.line}: not understood: {line.reason}: {line.text}"
    if (more := log.nr_not_understood - SHOWN_LINES) > 0:
        yield f"{path}: {plural(more, 'more line')} not understood; --json shows up to 1,000"
    for note in log.notes:
        yield f"note: {note}"
    for reason, n in log.left_out.items():
        yield f"{n:,} left out: {reason}"
    if converted.header["scope"] == "guest-memfd":
        yield "note: some slots have a guest_memfd; memslots replay counts such a file as out of scope"
    if written:
        yield f"written to {written}"
    yield _totals(log, converted.ops)


def _totals(log: Log, ops: list[dict[str, Any]]) -> str:
    refused = sum(op["ret"] != 0 for op in ops)
    return (
        f"{log.format}: {plural(len(ops), 'change')}, {refused:,} of them refused by the kernel, "
        f"{plural(_slots_at_end(ops), 'slot')} at the end, {plural(log.nr_not_understood, 'line')} not understood"
    )


def _slots_at_end(ops: list[dict[str, Any]]) -> int:
    regions = Regions()
    for op in ops:
        if op["op"] in CHANGES and op["ret"] == 0:
            regions.change(op["slot"], region_of(op))
    return len(regions.slots)


def _summary(path: str, log: Log, converted: logs.Vectors, written: Path | None) -> dict[str, Any]:
    return {
        "memslots": __version__,
        "path": path,
        "format": log.format,
        "written": None if written is None else str(written),
        "changes": len(converted.ops),
        "refused": sum(op["ret"] != 0 for op in converted.ops),
        "slots": _slots_at_end(converted.ops),
        "left_out": dict(log.left_out),
        "not_understood": log.nr_not_understood,
        "lines": [line._asdict() for line in log.not_understood],
        "notes": log.notes,
    }
