# SPDX-License-Identifier: MIT
"""The command line: `memslots COMMAND`, also `python -m memslots COMMAND`.

A command is a module of this folder.  `add_arguments` fills its argparse parser.  `run` returns the exit code, or
raises UsageError, OSError or KeyboardInterrupt, which `main` turns into a message and an exit code.  Only the command
that is called is imported, since a command may need libraries that the package does not.
"""

import argparse
import importlib
import shutil
import sys
from collections.abc import Sequence
from textwrap import fill
from typing import Any, NamedTuple

from .. import __version__
from . import terminal
from .terminal import EXIT_INTERRUPTED, EXIT_OK, EXIT_PIPE, EXIT_USAGE, complain


class _Command(NamedTuple):
    help: str
    example: str
    extra: str | None = None  # the extra in pyproject.toml that has its libraries
    module: str | None = None  # if its name is not the name of the command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    terminal.print_any_text()
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        return complain("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError as e:
        return complain(e) if e.filename else EXIT_PIPE
    except (OSError, terminal.UsageError) as e:
        return complain(e)
    except MemoryError:
        return complain("out of memory")


def _run(argv: Sequence[str]) -> int:
    parser = _parser(argv)
    if not argv:
        parser.print_help()
        return EXIT_OK
    try:
        args = parser.parse_args(_prepared(argv))
    except SystemExit as e:  # argparse: --help, --version, or a usage error that it has printed
        return e.code if isinstance(e.code, int) else EXIT_USAGE
    return int(args.run(args))


def _prepared(argv: Sequence[str]) -> list[str]:
    """The arguments, after the command has changed them, if it has a function for that."""
    module = sys.modules.get(f"memslots.commands.{argv[0]}")
    prepare = getattr(module, "prepare", list)
    return list(prepare(list(argv)))


class _Parser(argparse.ArgumentParser):
    """Reports an error of stdout.  argparse itself ignores it."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is not None and file is sys.stdout:
            terminal.emit(message.removesuffix("\n"))
        else:
            super()._print_message(message, file)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="memslots",
        description="KVM's memory slots in user space: measure, replay, draw.",
        epilog="memslots COMMAND --help describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"memslots {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.help,
            description=_wrapped(command.help[0].upper() + command.help[1:] + "."),
            epilog=f"example: {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # keeps the example on one line
        )
        if argv and argv[0] == name:
            module = _module(name, command)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _wrapped(text: str) -> str:
    return fill(text, max(shutil.get_terminal_size().columns - 2, terminal.NARROWEST))


def _module(name: str, command: _Command) -> Any:
    """The module of a command.  UsageError if a library of its extra is missing; another ImportError is a defect."""
    try:
        return importlib.import_module(f"memslots.commands.{command.module or name}")
    except ImportError as e:
        if command.extra is None or (e.name or "").startswith("memslots"):
            raise
        reason = (
            f"{name} needs a library that is missing ({e}): pip install 'memslots[{command.extra}]'"
        )
        raise terminal.UsageError(reason) from e


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
    "verdict": _Command(
        "compare two sets of files of pytest-benchmark: faster, slower, equivalent or inconclusive",
        "memslots verdict before*.json -- after*.json",
        extra="verdict",
    ),
    "replay": _Command(
        "run vector files and compare every result",
        "memslots replay --backend tree pc-migrate-boot",
    ),
    "import": _Command(
        "convert a log of strace or QEMU to a vector file",
        "memslots import run.strace -o run.jsonl.gz",
        module="import_log",
    ),
    "map": _Command(
        "draw or print the memory map that a vector file builds",
        "memslots map pc-migrate-boot -o map.png",
    ),
    "info": _Command(
        "show versions, build, CPU, vector instructions and whether /dev/kvm is usable",
        "memslots info --json",
    ),
}
