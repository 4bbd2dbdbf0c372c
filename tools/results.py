# SPDX-License-Identifier: MIT
"""results.py - run every measurement and record it in docs/results/NAME: tables, raw JSON and pictures.

The measurements run one after the other and write into build/results/NAME.  The folder moves to docs/results only after
all of them have succeeded, so that a record is always complete.  Its README.md names the commit, the machine and the
command of each file.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "results"
RECORDS = ROOT / "docs" / "results"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
CALLGRIND_SITE = "build/callgrind-python"
NOT_MEASURED = "NOT measured"


class Run(NamedTuple):
    """One measurement.  {out} in `words` is replaced by the folder of the record."""

    text: str  # the file for the standard output
    words: tuple[str, ...]  # arguments of Python
    quick: tuple[str, ...]  # further arguments for a trial
    shown: str  # the command that repeats the measurement
    optional: bool = (
        False  # it may end with status 2 and say NOT_MEASURED, where the machine lacks something
    )


RUNS = (
    Run(
        "perf.txt",
        ("-m", "memslots", "perf", "-o", "{out}/perf.json", "--picture", "{out}/perf.png"),
        ("--quick",),
        "make perf",
    ),
    Run(
        "scale.txt",
        ("-m", "memslots", "scale", "-o", "{out}/scale.json", "--picture", "{out}/scale.png"),
        ("--quick",),
        "memslots scale",
    ),
    Run(
        "goals.md",
        ("-m", "goals", "--markdown", "--json", "{out}/goals.json"),
        ("--quick",),
        "make bench-goals",
    ),
    Run(
        "readers.md",
        ("bench/readers.py", "--markdown", "--json", "{out}/readers.json"),
        ("--quick",),
        "make bench-readers",
    ),
    Run(
        "callgrind.md",
        (
            "bench/callgrind.py",
            *("--site", CALLGRIND_SITE, "--markdown", "--json", "{out}/callgrind.json"),
        ),
        ("--slots", "64"),
        "make callgrind",
    ),
    Run(
        "mirrored.txt",
        ("bench/mirrored.py",),
        ("-n", "40"),
        "python -m bench.mirrored",
        optional=True,
    ),
    Run("bursts.txt", ("bench/bursts.py",), (), "python -m bench.bursts"),
    Run(
        "index-costs.txt",
        ("bench/index_costs.py",),
        ("--quick", "--rounds", "1", "--slots", "64"),
        "python bench/index_costs.py",
    ),
    Run(
        "reload.txt",
        ("bench/reload.py",),
        ("--turns", "1", "--slots", "64"),
        "python bench/reload.py",
        optional=True,
    ),
)


class Done(NamedTuple):
    run: Run
    seconds: float | None  # None: not measured
    files: list[str]


# ---- the runs --------------------------------------------------------------------------------------------------


def measure(run: Run, out: Path, quick: bool) -> Done:
    """Run one measurement.  If it fails, end the program, so that wrong answers are never recorded.

    The file of an optional run that the machine cannot make has the reason.
    """
    words = [
        word.replace("{out}", str(out)) for word in (*run.words, *(run.quick if quick else ()))
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "bench")}
    before, began = set(os.listdir(out)), time.monotonic()
    print(f"results: {run.shown}", file=sys.stderr, flush=True)
    with (out / run.text).open("w", encoding="utf-8") as text:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, stdout=text, check=False)
    seconds = time.monotonic() - began
    if (
        run.optional
        and done.returncode == 2
        and NOT_MEASURED in (out / run.text).read_text("utf-8")
    ):
        print(f"results: {run.shown} was not measured, see {run.text}", file=sys.stderr)
        return Done(run, None, [run.text])
    if done.returncode:
        raise SystemExit(
            f"results: {run.shown} failed with status {done.returncode}; nothing was recorded, "
            f"its output is in {out / run.text}"
        )
    files = sorted(set(os.listdir(out)) - before)
    return Done(run, seconds, files)


VERIFIED = {
    "perf.json": "perf",
    "scale.json": "scale",
}  # a file with raw samples, and the command that derives it


def verify(out: Path) -> None:
    """Derive the tables and pictures of the record again from its raw samples.  If one differs, end the program."""
    for name, command in VERIFIED.items():
        if not (out / name).exists():
            continue
        words = [sys.executable, "-m", "memslots", command, "--verify", str(out / name)]
        done = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise SystemExit(
                f"results: {out / name} differs from its raw samples; nothing was recorded"
            )


# ---- the README of a record ------------------------------------------------------------------------------------


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def commit() -> str:
    """Return the commit, and whether files differ from it."""
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"`{git('rev-parse', 'HEAD') or 'unknown'}`" + (
        ", with changed files" if changed else ""
    )


def machine(out: Path) -> dict[str, object]:
    """Return the description of the machine from the first report that has one."""
    for path in sorted(out.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8")).get("machine")
        if found:
            return dict(found)
    return {}


def describe(out: Path, done: list[Done], quick: bool) -> Iterator[str]:
    yield f"# {out.name}\n"
    if quick:
        yield "A trial with little work. No figure counts.\n"
    yield f"- Commit: {commit()}"
    yield f"- Date: {date.today().isoformat()}"
    for key, value in machine(out).items():
        yield f"- {key}: {value if isinstance(value, str) else json.dumps(value)}"
    yield "\n| command | seconds | files |\n|---|---:|---|"
    for run, seconds, files in done:
        links = ", ".join(f"[{name}]({name})" for name in files)
        shown = "not measured" if seconds is None else f"{seconds:.0f}"
        yield f"| `{run.shown}` | {shown} | {links} |"


# ---- the command -----------------------------------------------------------------------------------------------


def name_of(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name of lower-case letters, digits, dots and hyphens"
        )
    if (RECORDS / text).exists():
        raise argparse.ArgumentTypeError(
            f"{RECORDS / text} exists; choose another name or remove it"
        )
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="results", description=__doc__)
    parser.add_argument("name", type=name_of, help="the folder in docs/results, such as epyc-2cpu")
    parser.add_argument("--quick", action="store_true", help="little work, to try the tool")
    args = parser.parse_args(argv)
    out = BUILT / args.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    done = [measure(run, out, args.quick) for run in RUNS]
    verify(out)
    text = "\n".join(describe(out, done, args.quick))
    (out / "README.md").write_text(f"{text}\n", encoding="utf-8")
    RECORDS.mkdir(exist_ok=True)
    shutil.move(out, RECORDS / args.name)
    print(f"results: {RECORDS / args.name}; add its name to docs/results/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
