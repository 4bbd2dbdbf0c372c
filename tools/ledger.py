# SPDX-License-Identifier: MIT
"""ledger.py - the ledger of instructions: how many each hot path needs, commit by commit, in bench/ledger.csv.

    ledger.py check                 count, and fail if a path differs by more than 0.5 % from its last line
    ledger.py record                count, and append a line for each path that differs
    ledger.py record --reason TEXT  the same; a path that needs more instructions than before needs a reason

valgrind's callgrind counts.  Each path runs twice with different numbers of calls; the difference of the instructions,
divided by the difference of the calls, is the count of one call.  Counts are the same for each run, so that a
difference is a change of the code.  They depend on the compiler, on the C library and on the vector instructions of the
processor.  Where one of these is another than in the ledger, nothing is compared, and the tool says so.

The last line of a path counts.  A line with more instructions than the line before needs a reason: it is an exception.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "bench" / "ledger.csv"
LIMIT = 0.005
COLUMNS = ("path", "slots", "instructions", "tools", "after", "reason")


class HotPath(NamedTuple):
    """A hot path: the program of bench/core that runs it, and two numbers of calls."""

    program: str
    case: str
    slots: int
    calls: tuple[int, int]


LOOKUPS, CHANGES, BATCHES = (8192, 40_960), (256, 1280), (2, 6)
PATHS = (
    *(HotPath("scalar.c", case, n, LOOKUPS) for n in (64, 4096) for case in ("hot", "random")),
    HotPath("scalar.c", "index", 4096, LOOKUPS),
    HotPath("scalar.c", "vcpu", 64, LOOKUPS),
    *(HotPath("paths.c", case, 509, CHANGES) for case in ("replace", "move", "flags")),
    *(HotPath("paths.c", case, 4096, LOOKUPS) for case in ("id", "mark")),
    HotPath("paths.c", "batch", 4096, BATCHES),
)


class Line(NamedTuple):
    """A line of the ledger.  `after`: the commit on top of which it was counted."""

    path: str
    slots: int
    instructions: float
    tools: str
    after: str
    reason: str

    @property
    def key(self) -> tuple[str, int]:
        return self.path, self.slots


class LedgerError(Exception):
    """The ledger is not valid, or cannot be continued."""


# ---- the file -------------------------------------------------------------------------------------


def read(file: Path) -> list[Line]:
    """Read the ledger.  A line with more instructions than the line before needs a reason."""
    with file.open(encoding="utf-8", newline="") as text:
        rows = csv.DictReader(text)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise LedgerError(f"{file}: the first line must be {','.join(COLUMNS)}")
        lines = [
            Line(
                r["path"],
                int(r["slots"]),
                float(r["instructions"]),
                r["tools"],
                r["after"],
                r["reason"],
            )
            for r in rows
        ]
    last: dict[tuple[str, int], Line] = {}
    for number, line in enumerate(lines, 2):
        before = last.get(line.key)
        if (
            before
            and grew(before, line.instructions)
            and before.tools == line.tools
            and not line.reason
        ):
            raise LedgerError(
                f"{file}:{number}: {line.path} at {line.slots} slots grew from {before.instructions:g} to "
                f"{line.instructions:g} instructions, and the line has no reason"
            )
        last[line.key] = line
    return lines


def write(file: Path, lines: list[Line]) -> None:
    with file.open("w", encoding="utf-8", newline="") as text:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows(line._replace(instructions=f"{line.instructions:.2f}") for line in lines)  # type: ignore[arg-type]


def grew(before: Line, now: float) -> bool:
    return now > before.instructions and differs(before, now)


def differs(before: Line, now: float) -> bool:
    return abs(now - before.instructions) > LIMIT * before.instructions


# ---- counting -------------------------------------------------------------------------------------


def tools() -> str:
    """Return the tools that the counts depend on."""
    sys.path.insert(0, str(ROOT / "bench"))
    from goals.build import RELEASED, compiler

    version = subprocess.run(
        [*compiler(), "-dumpfullversion"], capture_output=True, text=True, check=True
    ).stdout.strip()
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    vectors = "avx2" if re.search(r"^flags\b.*\bavx2\b", flags, re.MULTILINE) else "no avx2"
    words = (Path(compiler()[0]).name, version, *RELEASED)
    return f"{' '.join(words)}; {' '.join(platform.libc_ver())}; {platform.machine()}; {vectors}"


def counts() -> dict[tuple[str, int], float]:
    """Count the instructions of one call of each path."""
    from goals.build import with_core

    with tempfile.TemporaryDirectory() as folder:
        programs = {p.program for p in PATHS}
        built = {name: with_core(Path(folder) / Path(name).stem, name) for name in programs}
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            found = threads.map(lambda p: count(built[p.program], p), PATHS)
            return {(p.case, p.slots): n for p, n in zip(PATHS, found, strict=True)}


def count(program: Path, path: HotPath) -> float:
    few, many = (total([str(program), path.case, str(path.slots), str(n)]) for n in path.calls)
    return (many - few) / (path.calls[1] - path.calls[0])


def total(command: list[str]) -> int:
    """Return all instructions of a command.  A wrong answer makes the command fail."""
    with tempfile.NamedTemporaryFile() as out:
        words = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out.name}", *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LedgerError(f"{' '.join(command)}: {done.stderr.strip()}")
        return summary(Path(out.name).read_text(encoding="utf-8", errors="replace"))


def summary(text: str) -> int:
    found = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
    if not found:
        raise LedgerError("callgrind wrote no total")
    return int(found[1])


# ---- the gate -------------------------------------------------------------------------------------


def differences(
    last: dict[tuple[str, int], Line], now: dict[tuple[str, int], float]
) -> Iterator[str]:
    """Yield one line for each path that is not as in the ledger."""
    for (path, slots), n in now.items():
        before = last.get((path, slots))
        if before is None:
            yield f"{path} at {slots} slots: {n:.2f} instructions, and the ledger has no line"
        elif differs(before, n):
            change = n / before.instructions - 1
            yield f"{path} at {slots} slots: {before.instructions:.2f} -> {n:.2f} instructions ({change:+.1%})"
    for path, slots in last.keys() - now.keys():
        yield f"{path} at {slots} slots: is in the ledger and is not counted"


def check(lines: list[Line], now: dict[tuple[str, int], float]) -> int:
    found = list(differences({line.key: line for line in lines}, now))
    for text in found:
        print(f"ledger: {text}")
    if found:
        print(
            f"ledger: {len(found)} of {len(now)} paths differ by more than {LIMIT:.1%}; make ledger records them, "
            'and REASON="..." is the reason for more instructions'
        )
        return 1
    print(f"ledger: {len(now)} paths within {LIMIT:.1%}")
    return 0


def continued(
    lines: list[Line], now: dict[tuple[str, int], float], by: str, after: str, reason: str
) -> list[Line]:
    """Return the ledger with a line for each path that differs.  More instructions need a reason."""
    last = {line.key: line for line in lines}
    new = []
    for (path, slots), n in now.items():
        before = last.get((path, slots))
        if before and before.tools == by and not differs(before, n):
            continue
        grown = before is not None and before.tools == by and grew(before, n)
        if grown and not reason:
            raise LedgerError(
                f"{path} at {slots} slots grew from {before.instructions:.2f} to {n:.2f} instructions: "  # type: ignore[union-attr]
                'give the reason with REASON="..."'
            )
        new.append(Line(path, slots, round(n, 2), by, after, reason if grown else ""))
    return lines + new


def commit() -> str:
    words = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("check", "record"))
    parser.add_argument("--reason", default="")
    args = parser.parse_args(argv)
    if not shutil.which("valgrind"):
        print("ledger: NOT checked, valgrind is not installed")
        return 0
    try:
        lines, by = (read(LEDGER) if LEDGER.exists() else []), tools()
        others = {line.tools for line in {line.key: line for line in lines}.values()} - {by}
        if args.command == "check" and others:
            print(
                f"ledger: NOT compared, it was counted with {'; and '.join(others)}, and this is {by}"
            )
            return 0
        if args.command == "check":
            return check(lines, counts())
        write(LEDGER, continued(lines, counts(), by, commit(), args.reason))
        print(f"ledger: {LEDGER.relative_to(ROOT)}")
    except LedgerError as e:
        print(f"ledger: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
