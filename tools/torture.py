# SPDX-License-Identifier: MIT
"""torture.py - build tests/core/torture plain and with each sanitizer of each compiler, and run the builds in turn.

The builds share the seconds.  Each run appends a line to the record.  The last line of the output is the sum.  The
output names each missing compiler.  The exit status is 1 for a wrong answer, a report of a sanitizer, or a thread that
hangs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from presets import ROOT, sanitizer_options

BUILDS = {  # preset: the compiler
    "dev": "cc",
    "asan": "gcc",
    "tsan": "gcc",
    "clang-asan": "clang",
    "clang-tsan": "clang",
}
CLOSING = re.compile(
    r"^torture: (\d+) lookups, (\d+) copies, (\d+) changes, (\d+) wrong$", re.MULTILINE
)


class Sum(NamedTuple):
    lookups: int = 0
    copies: int = 0
    changes: int = 0
    wrong: int = 0

    def plus(self, other: "Sum") -> "Sum":
        return Sum(*(a + b for a, b in zip(self, other, strict=True)))


def launcher(preset: str) -> list[str]:
    """Return a command that starts a program without address randomization, for ThreadSanitizer.

    ThreadSanitizer of gcc 12 and clang 14 does not start where the kernel randomizes 32 bits of an address.
    """
    setarch = shutil.which("setarch")
    if "tsan" not in preset or not setarch:
        return []
    refused = subprocess.run([setarch, "-R", "true"], check=False, capture_output=True).returncode
    return [] if refused else [setarch, "-R"]


def build(preset: str) -> Path:
    for command in (
        ["cmake", "--preset", preset, "--log-level=NOTICE"],
        ["cmake", "--build", "--preset", preset, "--target", "torture"],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"torture: {' '.join(command)}:\n{done.stdout}{done.stderr}")
    return ROOT / "build" / preset / "torture"


def run(program: Path, preset: str, args: argparse.Namespace, seconds: float) -> Sum:
    """Run one build and return its sum.

    A run that fails without a closing line counts as one wrong answer.  This function then writes the record.
    """
    command = [*launcher(preset), str(program), "-t", f"{seconds:.3f}", "-s", str(args.seed)]
    name = f"{preset}, permutations" if args.permutations else preset
    command += ["-o", str(args.record), "-n", name, *["-p"] * args.permutations]
    print(f"torture: {name}, {seconds:.0f} s, seed {args.seed}", flush=True)
    env = {**os.environ, **sanitizer_options()}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if closing := CLOSING.search(done.stdout):
        total = Sum(*map(int, closing.groups()))
        # A fault after the closing line, such as a leak, counts as one wrong answer too.
        return total if total.wrong or not done.returncode else total.plus(Sum(wrong=1))
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with args.record.open("a", encoding="utf-8") as record:
        record.write(f"{now}\t{preset}\t{args.seed}\t{seconds:.0f}\tended with {done.returncode}\n")
    return Sum(wrong=1)


def available(wanted: list[str]) -> Iterator[str]:
    for preset in wanted:
        if BUILDS[preset] == "clang" and not shutil.which("clang"):
            print(
                f"torture: {preset} is NOT RUN: there is no clang (Debian: apt-get install clang)"
            )
            continue
        yield preset


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-t", "--seconds", type=float, default=60, help="for all builds together")
    parser.add_argument("-s", "--seed", type=int, default=20211206)
    parser.add_argument("-o", "--record", type=Path, default=ROOT / "build" / "torture.record")
    parser.add_argument("--build", action="append", choices=list(BUILDS), help="only these")
    parser.add_argument(
        "--permutations",
        action="store_true",
        help="no changes except transactions that permute four slots",
    )
    args = parser.parse_args()
    args.record = args.record.resolve()
    args.record.parent.mkdir(parents=True, exist_ok=True)

    presets = list(available(args.build or list(BUILDS)))
    programs = {preset: build(preset) for preset in presets}
    total = Sum()
    for preset, program in programs.items():
        total = total.plus(run(program, preset, args, args.seconds / len(programs)))
    print(
        f"torture: {total.lookups} lookups, {total.copies} copies, {total.changes} changes, {total.wrong} wrong "
        f"({len(presets)} of {len(BUILDS)} builds)"
    )
    return 1 if total.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
