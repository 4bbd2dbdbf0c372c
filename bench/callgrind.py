# SPDX-License-Identifier: MIT
"""Count the instructions of a scalar lookup, by function: `make callgrind`.

Each case runs twice under valgrind's callgrind, with different numbers of lookups.  The difference is the cost of the
lookups.  In C the instructions of the loop are subtracted, in Python those of an empty loop.  In C an instruction
counts for the source function that contains its line, even if that function is inlined.  In Python it counts for the
function of the object file.

Instructions are not times.  They show the effect of a change of the code, and are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from goals.build import with_core

import memslots
from memslots.lab.machine import machine

CASES = {
    "hot": "ms_gfn_to_hva, hot",
    "random": "ms_gfn_to_hva, random, by the tree",
    "index": "ms_gfn_to_hva, random, by the index",
    "vcpu": "ms_vcpu_gfn_to_hva, hot",
}
PYTHON = "vm.gfn_to_hva from Python, hot"
SLOTS = (64, 4096)
C_CALLS = (10_000, 110_000)
PYTHON_CALLS = (2_000, 12_000)
TOP = 10
LEAST = 0.5  # instructions for each lookup; less than this is noise of the start-up

PYTHON_LOOP = """
import sys
from memslots import VM
from memslots.lab import layouts
lookups, empty, slots = map(int, sys.argv[1:])
rows = layouts.uniform(slots)
vm = VM()
vm.load_memslots(rows)
gfns = layouts.hot(rows, 2000)
right = layouts.expected_hvas(rows, gfns).tolist()
numbers = gfns.tolist()
def look_up(rounds, call):
    for _ in range(rounds):
        for number in numbers:
            call(number)
def do_nothing(rounds):
    for _ in range(rounds):
        for number in numbers:
            pass
look_up(lookups // 2000, vm.gfn_to_hva)
do_nothing(empty // 2000)
assert list(map(vm.gfn_to_hva, numbers)) == right
"""


class Where(NamedTuple):
    """One line of a profile."""

    object: str
    function: str
    file: str
    line: int


#: Instructions, or, for the difference of two profiles, instructions for each call.
Profile = Counter[Where]
Table = list[tuple[str, float]]


class Result(NamedTuple):
    case: str
    slots: int
    instructions: float
    where: Table


# ---- callgrind ------------------------------------------------------------------------------------


def profile(command: list[str], **env: str) -> Profile:
    """Run the command under callgrind.  A wrong answer makes the command fail."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        options = [f"--callgrind-out-file={out}", "--compress-strings=no", "--compress-pos=no"]
        valgrind = ["valgrind", "-q", "--tool=callgrind", *options, *command]
        done = subprocess.run(
            valgrind, env={**os.environ, **env}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
        return parse(out.read_text(encoding="utf-8", errors="replace"))


def parse(text: str) -> Profile:
    """Return the self costs by line.  A line after calls= has the cost of the callee, so it does not count."""
    costs: Profile = Counter()
    object_, function, file = "", "", ""
    of_callee = False
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "ob":
            object_ = value
        elif key == "fn":
            function = value
        elif key in ("fl", "fi", "fe"):
            file = value
        elif key == "calls":
            of_callee = True
        elif match := re.fullmatch(r"(\d+) (\d+)", line):
            if not of_callee:
                costs[Where(object_, function, file, int(match[1]))] += int(match[2])
            of_callee = False
    return costs


def a_call(few: Profile, many: Profile, calls: tuple[int, int]) -> Profile:
    """Return the cost of one call: the difference of the profiles, divided by the difference of the calls."""
    n = calls[1] - calls[0]
    return Counter({at: (many[at] - few[at]) / n for at in many | few if many[at] != few[at]})


# ---- from C ---------------------------------------------------------------------------------------


def from_c(program: Path, case: str, slots: int) -> Profile:
    few, many = (profile([str(program), case, str(slots), str(n)]) for n in C_CALLS)
    return a_call(few, many, C_CALLS)


def count_c(program: Path, case: str, slots: int) -> Result:
    """Count without the loop.  All instructions of the loop are in scalar.c."""
    cost = from_c(program, case, slots)
    inside = Counter({at: n for at, n in cost.items() if Path(at.file).name != "scalar.c"})
    where: Counter[str] = Counter()
    for at, n in inside.items():
        where[f"{source_function(at.file, at.line)} ({Path(at.file).name})"] += n
    return Result(CASES[case], slots, sum(inside.values()), table(where))


def table(where: Counter[str]) -> Table:
    """Return the functions with the most instructions, and the sum of the others."""
    top = [(name, round(n, 1)) for name, n in where.most_common(TOP) if n >= LEAST]
    return [*top, ("others", round(sum(where.values()) - sum(n for _, n in top), 1))]


@cache
def definitions(file: str) -> list[tuple[int, str]]:
    """Find the first line of each function of a C file: not indented, with a name and a parenthesis."""
    if not Path(file).is_file():
        return []
    lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    found = ((i, re.match(r"[a-z][\w\s*]*?\b(\w+)\(", line)) for i, line in enumerate(lines, 1))
    return [(i, match[1]) for i, match in found if match]


def source_function(file: str, line: int) -> str:
    before = [name for start, name in definitions(file) if start <= line]
    return before[-1] if before else "?"


# ---- from Python ----------------------------------------------------------------------------------


def count_python(site: Path | None, slots: int) -> Result:
    path = {"PYTHONPATH": str(site)} if site else {}

    def run(lookups: int, empty: int) -> Profile:
        command = [sys.executable, "-c", PYTHON_LOOP, str(lookups), str(empty), str(slots)]
        return profile(command, PYTHONHASHSEED="0", OPENBLAS_NUM_THREADS="1", **path)

    few, many = PYTHON_CALLS
    base = run(few, few)
    cost = a_call(base, run(many, few), PYTHON_CALLS)
    cost.subtract(a_call(base, run(few, many), PYTHON_CALLS))
    where: Counter[str] = Counter()
    for at, n in cost.items():
        where[f"{at.function.split(chr(39))[0]} ({Path(at.object).name})"] += n
    return Result(PYTHON, slots, sum(cost.values()), table(where))


# ---- the command ----------------------------------------------------------------------------------


def lines(results: list[Result]) -> list[str]:
    text = []
    for r in results:
        text.append(f"{r.case}, {r.slots:,} slots: {r.instructions:.1f} instructions")
        text += [f"    {n:>7.1f}  {name}" for name, n in r.where]
    return text


def markdown(results: list[Result]) -> list[str]:
    """Return the table of docs/results/NAME/callgrind.md: a row with the sum of each lookup, and one per function."""
    rows = ["| lookup | slots | function | instructions |", "|---|---:|---|---:|"]
    for r in results:
        at = f"| {r.case} | {r.slots:,}"
        rows.append(f"{at} | **all** | **{r.instructions:.0f}** |")
        rows += [f"{at} | {name.split(' ')[0]} | {n:g} |" for name, n in r.where]
    return rows


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="callgrind", description=__doc__)
    parser.add_argument("--slots", nargs="+", type=int, default=SLOTS, metavar="N")
    parser.add_argument("--site", type=Path, help="the folder of an installed package with symbols")
    parser.add_argument("--no-python", action="store_true", help="only the calls from C")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--markdown", action="store_true", help="prints a table with one row for each function"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if not shutil.which("valgrind"):
        print("callgrind: skipped, valgrind is not installed (Debian: apt-get install valgrind)")
        return 0
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        program = with_core(Path(folder) / "scalar", "scalar.c", "-g")
        for slots in args.slots:
            results += [count_c(program, case, slots) for case in CASES]
    if not args.no_python:
        results.append(count_python(args.site, args.slots[0]))
    if args.json:
        report: dict[str, Any] = {
            "memslots": memslots.__version__,
            "machine": machine(),
            "results": [r._asdict() for r in results],
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\n".join((markdown if args.markdown else lines)(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
