# SPDX-License-Identifier: MIT
"""The result of reading a log: changes of slots, and an account of every line that is no change.

A reader of a log (strace_log.py, qemu_log.py, mtree_log.py) gets its lines and makes a `Log`.  No line disappears: each
is a change, or counts in `left_out`, or is in `not_understood`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..constants import MemFlag

Lines = Iterator[tuple[int, str]]  # the number and the text of each line

MAX_EXAMPLES = 1000  # lines that are kept of those that were not understood; all are counted
LONGEST_CALL = 4096  # characters of a line that is parsed; a change needs about 200
SHOWN = 200  # characters of such a line

FLAGS = {f"KVM_MEM_{flag.name}": int(flag) for flag in MemFlag if flag.name != "INVALID"}
_COMMENT = re.compile(r"/\*.*?\*/")


class LogError(ValueError):
    """A log that cannot be converted: its path, the line (0 where there is none), and the reason."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}" if line else f"{path}: {reason}")
        self.path, self.line, self.reason = path, line, reason


class NotUnderstood(NamedTuple):
    """A line that the reader does not understand."""

    line: int
    reason: str
    text: str  # its beginning


class Change(NamedTuple):
    """One operation of a vector file, and the VM that it belongs to."""

    line: int
    vm: int | None  # the file descriptor of the VM, or None where the log has none
    op: dict[str, Any]


@dataclass
class Log:
    """A log, or the part of it that one VM made."""

    format: str
    changes: list[Change] = field(default_factory=list)
    left_out: Counter[str] = field(
        default_factory=Counter
    )  # lines that are understood, and are no changes
    not_understood: list[NotUnderstood] = field(default_factory=list)  # at most MAX_EXAMPLES
    nr_not_understood: int = 0
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str) -> None:
        self.left_out[reason] += 1

    def miss(self, line: int, reason: str, text: str) -> None:
        """Count a line that is not understood, and keep its beginning."""
        self.nr_not_understood += 1
        if len(self.not_understood) < MAX_EXAMPLES:
            shown = text if len(text) <= SHOWN else text[:SHOWN] + "..."
            reason, shown = printable(reason), printable(shown)
            self.not_understood.append(NotUnderstood(line, reason, shown))


Reader = Callable[[Lines], Log]


class FieldError(ValueError):
    """A field of a change that is missing or out of its range.  The text is the reason."""


def region_op(
    fields: Mapping[str, str], names: Mapping[str, str], kind: str = "set"
) -> dict[str, Any]:
    """The operation for a change, without its result.  `names` are the names that the log uses.

    FieldError: a field is missing, no number, or too large for the kernel's structure."""
    op: dict[str, Any] = {"op": kind}
    op["slot"] = number_of(fields, names["slot"], 32)
    op["flags"] = flags_of(text_of(fields, names["flags"]))
    for name in ("gpa", "size", "hva"):
        op[name] = f"{number_of(fields, names[name], 64):#x}"
    return op


def text_of(fields: Mapping[str, str], name: str) -> str:
    if name not in fields:
        raise FieldError(f"no {name}")
    return fields[name]


def number_of(fields: Mapping[str, str], name: str, bits: int) -> int:
    return parse(text_of(fields, name), name, bits)


def parse(text: str, name: str, bits: int) -> int:
    """A decimal, octal or hexadecimal number of C, or NULL.  strace -y adds <...> to a descriptor."""
    text = _COMMENT.sub("", text).partition("<")[0].strip()
    if text == "NULL":
        return 0
    if not re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}", text):
        raise FieldError(f"{name} is {text[:40]!r}, not a number")
    octal = re.fullmatch(r"0[0-7]+", text)
    try:
        value = int(text, 8 if octal else 0)
    except ValueError:
        raise FieldError(f"{name} is {text!r}, not a number") from None
    if value >> bits:
        raise FieldError(f"{name} is {value:#x}, more than {bits} bits")
    return value


def flags_of(text: str) -> int:
    """Flags as strace prints them: names and numbers, with | between them."""
    value = 0
    for part in _COMMENT.sub("", text).split("|"):
        part = part.strip()
        value |= FLAGS[part] if part in FLAGS else parse(part, "flags", 32)
    return value


def printable(text: str) -> str:
    """The text, with escapes if a terminal could not show it."""
    return text if text.isprintable() else ascii(text)[1:-1]
