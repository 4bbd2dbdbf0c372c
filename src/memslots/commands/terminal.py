# SPDX-License-Identifier: MIT
"""Exit codes, and how every command prints its result and its messages.

Results go to stdout through `emit`, which also reports a full disk and a closed pipe.  Messages go to stderr through
`say` and `complain`.  An error while a message is printed is ignored.
"""

import codecs
import io
import json
import os
import shutil
import sys
from contextlib import suppress
from typing import TextIO

from ..report.words import wrapped

EXIT_OK = 0
EXIT_FOUND = 1  # a mismatch or a wrong answer
EXIT_USAGE = 2  # bad arguments, or a file that cannot be read or written
EXIT_INTERRUPTED = 130  # the shell's code for SIGINT
EXIT_PIPE = 141  # the shell's code for SIGPIPE: the reader of stdout has closed the pipe

NARROWEST = 20  # columns; used for a terminal that reports fewer


class UsageError(Exception):
    """The command cannot run with these arguments.  The text is the message for the user."""


def say(message: object) -> None:
    """Prints one message to stderr.  If the process has none, sys.stderr is None, and print() would use stdout."""
    if sys.stderr is not None:
        line = f"memslots: {message}"
        with suppress(OSError):
            columns = _columns(sys.stderr)
            print(wrapped(line, columns) if columns else line, file=sys.stderr, flush=True)


def complain(message: object, code: int = EXIT_USAGE) -> int:
    say(in_words(message) if isinstance(message, OSError) else message)
    return code


def in_words(error: OSError) -> str:
    """The text of the error without "[Errno 28]"."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def emit(text: str) -> None:
    """Prints text to stdout and flushes it.

    An OSError names stdout.  A closed pipe is a BrokenPipeError without a file name.
    """
    try:
        print(text, flush=True)
    except OSError as e:
        discard_stdout()
        if not isinstance(e, BrokenPipeError):
            e.filename = "standard output"
        raise


def print_json(value: object) -> None:
    emit(json_text(value))


def json_text(value: object) -> str:
    """One key or item in each line.  The raw samples have many numbers; each of their cells has one line."""
    if not isinstance(value, dict) or "raw" not in value:
        return json.dumps(value, indent=1)
    others = {key: item for key, item in value.items() if key != "raw"}
    raw = json.dumps(value["raw"], separators=(",", ":")).replace('{"case":', '\n{"case":')
    return f'{json.dumps(others, indent=1)[:-2]},\n "raw": {raw}\n}}'


def discard_stdout() -> None:
    """Redirects the rest of stdout to /dev/null.  Otherwise Python writes it again at exit, and exits with 120."""
    with suppress(OSError, ValueError):  # the stdout of a test has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def width() -> int | None:
    """The columns of the terminal at stdout.  None for a file or a pipe, where lines may have any length."""
    return _columns(sys.stdout) if sys.stdout is not None else None


def _columns(stream: TextIO) -> int | None:
    return max(shutil.get_terminal_size().columns, NARROWEST) if stream.isatty() else None


def print_any_text() -> None:
    """Lets stdout print every text, even if its encoding lacks a character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("memslots", _replaced)
        sys.stdout.reconfigure(errors="memslots")


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replaces ± by ~.  Bytes of a file name that are not valid text stay unchanged, as with surrogateescape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start]
    if 0xDC80 <= ord(found) <= 0xDCFF:
        return bytes([ord(found) - 0xDC00]), error.start + 1
    return "~" if found == "±" else "?", error.start + 1
