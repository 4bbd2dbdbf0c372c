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
from ..report.words import plural, wrapped
from ..traces import player, schema, vectors
from . import arguments
from .terminal import (
    EXIT_FOUND,
    EXIT_OK,
    EXIT_USAGE,
    UsageError,
    complain,
    emit,
    in_words,
    print_json,
    width,
)
from .vector_files import find

# Per file.  After one difference of state, nearly every later result differs too.
SHOWN_MISMATCHES = 20
SHOWN_LENGTH = 400  # characters per result: a dirty log may have thousands of runs


class _Replay:
    """The results of all files of one call."""

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
        """The number of operations that were not compared, by reason."""
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
        type=arguments.backend,
        default="tree",
        metavar="NAME",
        help=f"{', '.join(backends())}, or kvm: this machine's kernel (default: tree)",
    )
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Plays every file.  If a file cannot be found or read, its error is recorded, and the others are still played."""
    replay = _Replay()
    paths = _vector_paths(args.files, replay.errors)
    with progress_bar(lambda: sum(map(_announced_ops, paths)), "op") as progress:
        for path in paths:
            _replay_file(replay, path, args.backend, progress)
    if args.json:
        _print_json_replay(replay, args.backend)
    else:
        emit("\n".join(_lines(replay, width())))
    for error in replay.errors:
        complain(error)
    return replay.exit_code


def _vector_paths(names: Iterable[str], errors: list[str]) -> list[str]:
    """The paths of the files.  A folder stands for all vector files below it."""
    paths = []
    for name in names:
        try:
            paths += _below(name) if Path(name).is_dir() else [find(name)]
        except UsageError as e:
            errors.append(str(e))
        except OSError as e:
            errors.append(in_words(e))
    return paths


def _below(folder: str) -> list[str]:
    found = sorted(str(p) for p in Path(folder).rglob("*") if vectors.is_vector_path(p))
    if not found:
        raise UsageError(f"{folder}: no .jsonl or .jsonl.gz below this folder")
    return found


def _replay_file(
    replay: _Replay, path: str, backend: str, progress: Callable[[int], object]
) -> None:
    """Plays one file.  Its error is recorded, so that the others are still played."""
    try:
        file = vectors.read(path)
        with closing(player.open_backend(backend, file.header)) as vm:
            result = player.play(file, vm, progress=progress)
    except player.BackendError as e:  # no file can be played on this backend
        raise UsageError(str(e)) from e
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
        return 0  # _replay_file reports the error


def _lines(replay: _Replay, columns: int | None) -> Iterator[str]:
    """The lines of the result.  Those of mismatches are never wrapped: they begin with a path and a line number."""
    for result, _ in replay.results:
        yield from _mismatches(result)
    for line in (*_remarks(replay), _summary(replay.totals)):
        yield wrapped(line, columns) if columns else line


def _summary(t: dict[str, int]) -> str:
    return (
        f"{plural(t['files'], 'file')}, {plural(t['ops'], 'op')}, {plural(t['mismatches'], 'mismatch')}, "
        f"{t['not_compared']:,} not compared, {t['out_of_scope']:,} out of scope"
    )


def _mismatches(result: player.PlayResult) -> Iterator[str]:
    for mismatch in result.mismatches[:SHOWN_MISMATCHES]:
        yield _mismatch_line(mismatch)
    if (more := len(result.mismatches) - SHOWN_MISMATCHES) > 0:
        yield f"{result.path}: {plural(more, 'more mismatch')}; --json shows all"


def _mismatch_line(m: player.Mismatch) -> str:
    expected, got = _clipped(m.expected), _clipped(m.got)
    return f"{m.path}:{m.line}: {m.op}: expected {expected}, got {got}"


def _clipped(result: dict[str, Any]) -> str:
    text = json.dumps(result)
    return text if len(text) <= SHOWN_LENGTH else text[:SHOWN_LENGTH] + "..."


def _remarks(replay: _Replay) -> Iterator[str]:
    """Lines about the operations that were not compared, with the reasons."""
    yield from dict.fromkeys(note for result, _ in replay.results for note in result.notes)
    for reason, n in replay.skipped.items():
        yield f"{n:,} not compared: {reason}"
    if replay.by_size:
        yield (
            f"{plural(replay.by_size, 'dirty log')} compared by result and size only: "
            "the recorded guest made stores that a replay does not make"
        )
    for result, scope in replay.results:
        if result.out_of_scope:
            features = "guest_memfd and other features" if scope == schema.SCOPE else scope
            yield f"{result.out_of_scope:,} out of scope: {features}, in {result.path}"


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
