# SPDX-License-Identifier: MIT
"""`memslots replay`: plays vector files on a backend and compares every result."""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from .. import __version__, backends
from ..lab.progress import progress_bar
from ..traces import player, vectors
from .terminal import EXIT_FOUND, EXIT_OK, EXIT_USAGE, complain, print_json

SHOWN_MISMATCHES = 20  # of one file: once the states differ, so does nearly everything after
SHOWN_LENGTH = 400  # characters of one result: a dirty log may have thousands of runs


class _Replay:
    """What came of all files of one call."""

    def __init__(self) -> None:
        self.results: list[tuple[player.PlayResult, str]] = []  # with the scope of the file
        self.errors: list[str] = []

    @property
    def totals(self) -> dict[str, int]:
        results = [result for result, _ in self.results]
        return {
            "files": len(results),
            "ops": sum(r.ops for r in results),
            "mismatches": sum(len(r.mismatches) for r in results),
            "not_compared": sum(r.not_compared for r in results),
            "out_of_scope": sum(r.out_of_scope for r in results),
        }

    @property
    def skipped(self) -> Counter[str]:
        """How many operations were not compared, by reason."""
        return sum((result.skipped for result, _ in self.results), Counter())

    @property
    def by_size(self) -> int:
        return sum(result.by_size for result, _ in self.results)

    @property
    def exit_code(self) -> int:
        if self.errors:
            return EXIT_USAGE
        return EXIT_FOUND if self.totals["mismatches"] else EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a vector file, .jsonl or .jsonl.gz, a folder, or the name of a packaged QEMU trace",
    )
    parser.add_argument(
        "--backend",
        default="tree",
        metavar="NAME",
        help=f"{', '.join(backends())}, or kvm: this machine's kernel (default: tree)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    replay = _Replay()
    try:
        paths = _vector_paths(args.files)
        with progress_bar(lambda: sum(map(_announced_ops, paths)), "op") as progress:
            for path in paths:
                _replay_file(replay, path, args.backend, progress)
    except (player.BackendError, FileNotFoundError) as e:
        return complain(e)
    _print_json_replay(replay, args.backend) if args.json else _print_replay(replay)
    for error in replay.errors:
        complain(error)
    return replay.exit_code


def _vector_paths(names: Iterable[str]) -> list[str]:
    """The files, with folders replaced by the vector files below them."""
    paths = []
    for name in names:
        below = sorted(p for p in Path(name).rglob("*") if vectors.is_vector_path(p))
        if not below and Path(name).is_dir():
            raise FileNotFoundError(f"{name}: no .jsonl or .jsonl.gz below this folder")
        paths += [str(p) for p in below] or [vectors.packaged(name) or name]
    return paths


def _replay_file(
    replay: _Replay, path: str, backend: str, progress: Callable[[int], object]
) -> None:
    """An error of one file is noted; the others are played all the same."""
    try:
        file = vectors.read(path)
        with closing(player.open_backend(backend, file.header)) as vm:
            result = player.play(file, vm, progress=progress)
    except vectors.VectorError as e:
        replay.errors.append(str(e))
    except OSError as e:
        replay.errors.append(f"{path}: {e.strerror or e}")
    else:
        replay.results.append((result, file.scope))


def _announced_ops(path: str) -> int:
    try:
        return int(vectors.read_header(path)["ops"])
    except (OSError, vectors.VectorError):
        return 0  # it will be reported when its turn comes


def _print_replay(replay: _Replay) -> None:
    for result, _ in replay.results:
        _print_mismatches(result)
    for line in _remarks(replay):
        print(line)
    t = replay.totals
    print(
        f"{t['files']} files, {t['ops']} ops, {t['mismatches']} mismatches, "
        f"{t['not_compared']} not compared, {t['out_of_scope']} out of scope"
    )


def _print_mismatches(result: player.PlayResult) -> None:
    for mismatch in result.mismatches[:SHOWN_MISMATCHES]:
        print(_mismatch_line(mismatch))
    if (more := len(result.mismatches) - SHOWN_MISMATCHES) > 0:
        print(f"{result.path}: and {more} more mismatches, which --json shows")


def _mismatch_line(m: player.Mismatch) -> str:
    expected, got = _clipped(m.expected), _clipped(m.got)
    return f"{m.path}:{m.line}: {m.op}: expected {expected}, got {got}"


def _clipped(result: dict[str, Any]) -> str:
    text = json.dumps(result)
    return text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + "..."


def _remarks(replay: _Replay) -> Iterator[str]:
    """What was skipped, and why."""
    yield from dict.fromkeys(note for result, _ in replay.results for note in result.notes)
    for reason, n in replay.skipped.items():
        yield f"{n} not compared: {reason}"
    if replay.by_size:
        yield (
            f"{replay.by_size} dirty logs compared by result and size only: "
            "stores that were not made are missing from them"
        )
    for result, scope in replay.results:
        if result.out_of_scope:
            what = "guest_memfd and other features" if scope == vectors.SCOPE else scope
            yield f"{result.out_of_scope} out of scope: {what}, in {result.path}"


def _print_json_replay(replay: _Replay, backend: str) -> None:
    mismatches = [m._asdict() for result, _ in replay.results for m in result.mismatches]
    print_json(
        {
            "memslots": __version__,
            "backend": backend,
            **replay.totals,
            "by_size": replay.by_size,
            "skipped": dict(replay.skipped),
            "errors": replay.errors,
            "results": [_file_summary(result, scope) for result, scope in replay.results],
            "found": mismatches,
        }
    )


def _file_summary(result: player.PlayResult, scope: str) -> dict[str, Any]:
    return {
        "path": result.path,
        "scope": scope,
        "ops": result.ops,
        "mismatches": len(result.mismatches),
        "not_compared": result.not_compared,
        "out_of_scope": result.out_of_scope,
        "by_size": result.by_size,
        "notes": result.notes,
    }
