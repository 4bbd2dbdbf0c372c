# SPDX-License-Identifier: MIT
"""The command line: `memslots COMMAND`, also `python -m memslots COMMAND`.

A command is a module of this folder.  `add_arguments` fills its argparse parser.  `run` returns the exit code: 0;
1 when it found a mismatch or a wrong answer; 2 when it could not run.  Only the command that is called is imported,
since it may need more than the package itself.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from .terminal import EXIT_FOUND, EXIT_USAGE, complain


class _Command(NamedTuple):
    help: str
    example: str
    extra: str | None = None  # of pyproject.toml, with the libraries that it needs


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
        if argv and argv[0] == name:
            module = _module(name, command.extra)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _module(name: str, extra: str | None) -> Any:
    """The module of a command; a library of its extra may be missing."""
    try:
        return importlib.import_module(f"memslots.commands.{name}")
    except ImportError as e:
        if extra is None:
            raise
        complain(f"{name} needs a library that is missing ({e}): pip install 'memslots[{extra}]'")
        raise SystemExit(EXIT_USAGE) from e


_COMMANDS = {
    "perf": _Command(
        "measure lookups and changes against the array and the kernel",
        "memslots perf --quick --only unmap -o perf.json --picture perf.png",
        extra="perf",
    ),
    "scale": _Command(
        "measure cost against the number of slots, 8 to 1,000,000",
        "memslots scale --max-slots 32764 --only change --picture scale.png",
        extra="perf",
    ),
    "replay": _Command(
        "run vector files and compare every result",
        "memslots replay --backend tree tests/vectors/edge",
    ),
    "map": _Command(
        "draw or print the memory map that a vector file builds",
        "memslots map pc-migrate-boot -o map.png",
    ),
    "info": _Command(
        "show versions, build, CPU features, the SIMD level used and whether /dev/kvm is usable",
        "memslots info --json",
    ),
}
