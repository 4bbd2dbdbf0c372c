# SPDX-License-Identifier: MIT
"""The command line: `memslots COMMAND`, also `python -m memslots COMMAND`.

Each command is a function that fills its argparse parser and one that runs and returns the exit
code: 0, 1 where it found what it was asked to look for, 2 where it could not do what was asked.
Commands that need more than the package itself live in modules of their own, imported when called.
"""

import argparse
import importlib
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import backends, player, vectors

EXIT_OK, EXIT_FOUND, EXIT_USAGE = 0, 1, 2

SHOWN_MISMATCHES = 20  # of one file: once the states differ, so does nearly everything after
SHOWN_LENGTH = 400  # characters of one result: a dirty log may have thousands of runs

SIMD = "MEMSLOTS_SIMD"  # the core reads it; what it cannot have is silently the best there is

CPU_FEATURES = ("avx2", "bmi2", "avx512f")


class _Command(NamedTuple):
    help: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parser(argv).parse_args(argv)
        return int(args.run(args))
    except SystemExit as e:  # argparse: --help, or a usage error it has explained
        return e.code if isinstance(e.code, int) else EXIT_USAGE
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FOUND


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memslots", description="KVM's memory slots in user space."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog=f"example: {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=command.run)
        if argv and argv[0] == name:  # only this one may have to be imported
            command.add_arguments(sub)
    return parser


def _complain(message: object) -> int:
    print(f"memslots: {message}", file=sys.stderr)
    return EXIT_USAGE


# ---- replay -------------------------------------------------------------------------------------


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


def _add_replay_arguments(parser: argparse.ArgumentParser) -> None:
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


def _run_replay(args: argparse.Namespace) -> int:
    replay = _Replay()
    try:
        paths = _vector_paths(args.files)
        with _progress_bar(paths) as progress:
            for path in paths:
                _replay_file(replay, path, args.backend, progress)
    except (player.BackendError, FileNotFoundError) as e:
        return _complain(e)
    _print_json_replay(replay, args.backend) if args.json else _print_replay(replay)
    for error in replay.errors:
        _complain(error)
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
    """A file that cannot be read is noted and the others are played all the same."""
    try:
        file = vectors.read(path)
    except vectors.VectorError as e:
        replay.errors.append(str(e))
    except OSError as e:
        replay.errors.append(f"{path}: {e.strerror or e}")
    else:
        with closing(player.open_backend(backend, file.header)) as vm:
            result = player.play(file, vm, progress=progress)
        replay.results.append((result, file.scope))


@contextmanager
def _progress_bar(paths: Iterable[str]) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, once a second has passed; nothing where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda n: None
        return
    terminal = sys.stderr.isatty()
    total = sum(map(_announced_ops, paths)) if terminal else None
    with tqdm(total=total, unit="op", delay=1, disable=not terminal, leave=False) as bar:
        yield bar.update


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
    _print_json(
        {
            "memslots": _version(),
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


# ---- info ---------------------------------------------------------------------------------------


def _add_info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run_info(args: argparse.Namespace) -> int:
    info = _info()
    if args.json:
        _print_json(info)
        return EXIT_OK
    for name, value in info.items():
        print(f"{name + ':':<10}{_in_words(value)}")
    return EXIT_OK


def _info() -> dict[str, Any]:
    return {
        "memslots": _version(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "build": {name: value for name, value in _build().items() if name != "simd"},
        "cpu": _cpu(),
        "simd": _simd(),
        "kvm": _kvm(),
    }


def _in_words(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v is not None)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _version() -> str:
    import memslots

    return str(getattr(memslots, "__version__", "unknown"))


def _build() -> dict[str, Any]:
    """How the compiled core was built."""
    try:
        core = importlib.import_module("memslots._memslots")
    except ImportError as e:
        return {"error": str(e)}
    return dict(core.build_info()) if hasattr(core, "build_info") else {}


def _simd() -> dict[str, Any]:
    """What batches of lookups use, of what this CPU has, and whether that is what the environment asks for."""
    try:
        core = importlib.import_module("memslots._memslots")
    except ImportError as e:
        return {"error": str(e)}
    used, levels = core.build_info()["simd"], list(core.simd_levels())
    wanted = os.environ.get(SIMD)
    return {"used": used, "levels": levels, SIMD: wanted, "note": _simd_note(wanted, used, levels)}


def _simd_note(wanted: str | None, used: str, levels: list[str]) -> str | None:
    if wanted is None:
        return f"the environment variable {SIMD} names another level"
    if wanted == used:
        return None
    why = "it was set too late" if wanted in levels else "this CPU has no such level"
    return f"{SIMD} IS IGNORED: {why}"


def machine_info() -> dict[str, Any]:
    """What a measurement should say of its machine: build and CPU."""
    return {"numpy": np.__version__, "build": _build(), "cpu": _cpu()}


def _cpu() -> dict[str, Any]:
    """The model, and which of the features that matter here it has, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "model": fields.get("model name") or platform.machine(),
        "features": [f for f in CPU_FEATURES if f in flags],
        "cores": os.cpu_count(),
    }


def _kvm() -> dict[str, Any]:
    try:
        from . import kvm
    except ImportError as e:
        return {"usable": False, "reason": str(e)}
    if reason := kvm.available():
        return {"usable": False, "reason": reason}
    with closing(kvm.KvmVM()) as vm:
        nr_memslots = vm.check_extension("nr_memslots")
    return {"usable": True, "api_version": kvm.API_VERSION, "nr_memslots": nr_memslots}


# ---- commands -----------------------------------------------------------------------------------


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))


def _module(name: str) -> Any:
    """A command's module; what it needs beyond the package may not be installed."""
    try:
        return importlib.import_module(f"memslots.{name}")
    except ImportError as e:
        _complain(f"{name} needs what is not installed here ({e}): pip install 'memslots[{name}]'")
        raise SystemExit(EXIT_USAGE) from e


def _in_module(name: str, help: str, example: str) -> _Command:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        _module(name).add_arguments(parser)

    def run(args: argparse.Namespace) -> int:
        return int(_module(name).run(args))

    return _Command(help, example, add_arguments, run)


_COMMANDS = {
    "perf": _in_module(
        "perf",
        "measure lookups and changes against the array and the kernel",
        "memslots perf --quick --only unmap -o perf.json --picture perf.png",
    ),
    "scale": _in_module(
        "scale",
        "measure cost against the number of slots, 8 to 1,000,000",
        "memslots scale --max-slots 32764 --only change --picture scale.png",
    ),
    "replay": _Command(
        "run vector files and compare every result",
        "memslots replay --backend tree tests/vectors/edge",
        _add_replay_arguments,
        _run_replay,
    ),
    "map": _in_module(
        "map",
        "draw or print the memory map that a vector file builds",
        "memslots map pc-migrate-boot -o map.png",
    ),
    "info": _Command(
        "show versions, build, CPU features, the SIMD level used and whether /dev/kvm is usable",
        "memslots info --json",
        _add_info_arguments,
        _run_info,
    ),
}
