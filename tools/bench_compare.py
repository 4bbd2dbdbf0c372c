# SPDX-License-Identifier: MIT
"""bench_compare.py - measure two versions of memslots in turns on one machine: is B faster than A?

    bench_compare.py A B [--rounds N] [--sort] [-k EXPRESSION] [further arguments of pytest]

A and B are commits in any spelling that git accepts.  `.` stands for the files of the checkout as they are.  The tool
copies each version into build/compare/ and builds and installs it there.  It writes nothing to the repository itself.
Both versions run the benchmarks of *this* checkout's bench/suite in turns: A B, B A, A B, ...  A busy minute of the
machine therefore affects both.  A round gives one ratio B / A of medians for each benchmark.  The table has the median,
the lowest and the highest of these ratios.  If 1 lies between the lowest and the highest, the difference is not clear.
For equal versions all N rounds agree by chance in one of 2^(N-1) benchmarks.  A benchmark with a wrong answer fails.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
HERE = "."  # stands for the files of the checkout as they are
ROUNDS = 5
LEAST = 0.03  # the same code at another address in memory may differ by this much
PARTS = ("src", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")  # the inputs of a build

Medians = dict[str, float]  # benchmark -> seconds


class Version(NamedTuple):
    """A version to compare: its name as given, and the folder where it is installed."""

    name: str
    site: Path


# ---- building -----------------------------------------------------------------------------------


def git(*args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"git {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout.strip()


def version(name: str) -> Version:
    """Copy a version out of git and build it, unless that was done before."""
    commit = "files" if name == HERE else git("rev-parse", "--verify", f"{name}^{{commit}}")[:12]
    folder = ROOT / "build" / "compare" / commit
    site, done = folder / "site", folder / "done"
    if name == HERE or not done.exists():
        shutil.rmtree(site, ignore_errors=True)
        (copy_files if name == HERE else extract)(commit, folder / "source")
        build(folder)
        done.touch()
    shown = "" if name == HERE else f" ({commit[:7]})"
    return Version(name + shown, site)


def copy_files(_: str, source: Path) -> None:
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(
                ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(ROOT / part, source / part)


def extract(commit: str, source: Path) -> None:
    """Copy the files of a commit.  Use git archive, because a worktree would change the repository."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    command = ["git", "-C", str(ROOT), "archive", commit]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x", "-C", str(source)], stdin=archive.stdout, check=True)
    if archive.returncode:
        raise SystemExit(f"git archive {commit} failed")


def build(folder: Path) -> None:
    print(f"building {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "-qq", "install", "--no-build-isolation", "--no-deps"]
    command += ["--target", str(folder / "site"), f"--config-settings=build-dir={folder / 'build'}"]
    if subprocess.run([*command, str(folder / "source")], check=False).returncode:
        raise SystemExit(f"{folder / 'source'} does not build")


# ---- measuring ----------------------------------------------------------------------------------


class Runs:
    """The medians of all rounds of one version, and the benchmarks that failed."""

    def __init__(self) -> None:
        self.rounds: list[Medians] = []
        self.failed: set[str] = set()


def measure(version: Version, runs: Runs, arguments: list[str]) -> None:
    """Run the suite once in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmarks.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-rfE",
            "bench/suite",
        ]
        command += [f"--benchmark-json={path}", "--benchmark-disable-gc", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(version.site)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        lines = done.stdout.splitlines()
        runs.failed |= {line for line in lines if line.startswith(("FAILED", "ERROR"))}
        if done.returncode not in (0, 1) or not path.exists():
            raise SystemExit(f"{version.name}: pytest ended with {done.returncode}\n{done.stdout}")
        runs.rounds.append(medians(path))


def medians(path: Path) -> Medians:
    rows = json.loads(path.read_text(encoding="utf-8"))["benchmarks"] if path.stat().st_size else []
    return {row["name"].removeprefix("test_"): row["stats"]["median"] for row in rows}


def measure_all(pair: tuple[Version, Version], rounds: int, arguments: list[str]) -> list[Runs]:
    """Measure both versions in turns.  The version that begins alternates from round to round."""
    runs = [Runs(), Runs()]
    for i in range(rounds):
        print(f"round {i + 1} of {rounds}", file=sys.stderr, flush=True)
        for side in (0, 1) if i % 2 == 0 else (1, 0):
            measure(pair[side], runs[side], arguments)
    return runs


# ---- the table ----------------------------------------------------------------------------------


class Compared(NamedTuple):
    """One benchmark: both medians in seconds, and the ratio B / A of each round."""

    name: str
    a: float
    b: float
    ratios: list[float]

    @property
    def verdict(self) -> str:
        """Give a verdict only if all rounds agree and the difference is at least LEAST."""
        if abs(median(self.ratios) - 1) < LEAST:
            return ""
        if max(self.ratios) < 1:
            return "faster"
        return "slower" if min(self.ratios) > 1 else ""


def compared(a: Runs, b: Runs) -> list[Compared]:
    names = [name for name in a.rounds[0] if all(name in r for r in (*a.rounds, *b.rounds))]
    return [
        Compared(
            name,
            median(r[name] for r in a.rounds),
            median(r[name] for r in b.rounds),
            [y[name] / x[name] for x, y in zip(a.rounds, b.rounds, strict=True)],
        )
        for name in names
    ]


def table(rows: list[Compared]) -> str:
    headers = ("benchmark", "A", "B", "B / A", "lowest", "highest", "verdict")
    return tabulate(
        map(cells, rows),
        headers,
        tablefmt="plain",
        colalign=("left", *["right"] * 5, "left"),
        disable_numparse=True,
    )


def cells(row: Compared) -> tuple[str, ...]:
    ratios = (median(row.ratios), min(row.ratios), max(row.ratios))
    return row.name, seconds(row.a), seconds(row.b), *map("{:.3f}".format, ratios), row.verdict


def seconds(value: float) -> str:
    for unit, size in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if value < 1000 * size:
            break
    return f"{value / size:.4g} {unit}"


def print_rest(names: tuple[str, str], runs: list[Runs]) -> None:
    """Print the benchmarks that have no row in the table, with the reason."""
    for name, mine, other in zip(names, runs, reversed(runs), strict=True):
        for line in sorted(mine.failed):
            print(f"{name}: {line}")
        only = set().union(*mine.rounds) - set().union(*other.rounds)
        if only:
            print(f"only {name} has: {', '.join(sorted(only))}")


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--sort", action="store_true", help="sort by ratio, not by order of the runs"
    )
    return parser.parse_known_args()


def main() -> int:
    args, further = arguments()
    pair = (version(args.a), version(args.b))
    print(f"A = {pair[0].name}, B = {pair[1].name}, {args.rounds} rounds")
    runs = measure_all(pair, args.rounds, further)
    rows = compared(*runs)
    if args.sort:
        rows.sort(key=lambda row: median(row.ratios))
    if rows:
        print(table(rows))
    print_rest(("A", "B"), runs)
    count = {
        verdict: sum(row.verdict == verdict for row in rows) for verdict in ("faster", "slower")
    }
    failed = any(r.failed for r in runs)
    print(
        f"bench-compare: {len(rows)} benchmarks, B is faster in {count['faster']}, slower in"
        f" {count['slower']}, no clear difference in {len(rows) - sum(count.values())}"
        + (", some FAILED" if failed else "")
    )
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
