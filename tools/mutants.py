# SPDX-License-Identifier: MIT
"""mutants.py - plants bugs, one at a time, and sees to it that a test catches each.

    mutants.py [-k PATTERN] [--quick] [--shard I/N] [--jobs N] [--every] [--list] [--json FILE] [--markdown FILE]

tests/mutants/*.toml has the bugs: for each a name, the hazard of docs/reliability.md that it lets in, what is wrong in
a sentence, the function and a text in it that occurs once there (anchors.py says how they are compared), the text to
put there, and the tests that are to catch it, the one that is about it first.  A test is the name of a ctest, `asan:`
or `tsan:` before it for a build with sanitizers, or the node id of a pytest; `scale=` and `seed=` behind it are what
test.h reads.  A bug of code that only some CPUs run names
their flags in /proc/cpuinfo (`cpu`); on another CPU it is not planted, and the run says so.

Bugs are put into copies of the sources under build/mutants/, never into the tree, and only what they touch is compiled
again.  First the copies as they are must pass every test that is named: else a failure would prove nothing.  Then each
mutant is built and its tests run until one fails.  What catches it is a check of the test, an assertion of the engine,
a sanitizer, a crash, or the watchdog, which ends what takes five times as long as without the bug; a machine that
stalls may do that to any test, so what the watchdog ended runs again, and the second run is the one that counts.  A
mutant that does not compile, or whose text is not there any more, is not caught.

The last line is `mutants: N planted, N caught`; the exit status is 0 when both numbers are the same.
"""

import argparse
import fcntl
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from anchors import AnchorError, Place, Sources, applied

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "mutants"
WORK = ROOT / "build" / "mutants"
PARTS = (
    "CMakeLists.txt",
    "CMakePresets.json",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "src",
    "tests",
    "tools",
)

HAZARDS = tuple(f"H{i}" for i in range(1, 33))
BAD_INPUT = "input"  # the table "Bad input and lifetimes in Python", whose rows have no numbers
SANITIZERS = {"plain": "", "asan": "address,undefined", "tsan": "thread"}
PYTHON = "python"  # the build of the extension
SCALE = 0.1  # of the random parts of the tests: what finds a bug at all finds it soon
LIMIT_S = 10  # for a test that takes no time; five times its time is added
LIMIT_MAX_S = 120  # for a test of the copy without a bug
WATCHDOG = "watchdog"


class Edit(NamedTuple):
    """`old` becomes `new` in the function `name`, or in the files that `file` matches; see anchors.py."""

    name: str
    old: str
    new: str
    file: str = ""

    def place(self, sources: Sources) -> Place:
        return sources.find(self.name, self.file, self.old, self.new)


class Test(NamedTuple):
    """`name` is a ctest, or the node id of a pytest where build is "python"."""

    build: str
    name: str
    scale: float = SCALE
    seed: str = ""

    def __str__(self) -> str:
        prefix = "" if self.build in ("plain", PYTHON) else f"{self.build}:"
        name = self.name.removeprefix("tests/python/")
        return prefix + name


class Mutant(NamedTuple):
    name: str
    hazards: tuple[str, ...]
    wrong: str
    edits: tuple[Edit, ...]
    tests: tuple[Test, ...]
    quick: bool  # one of those that stand for all others where a minute is all there is
    left_to: str  # why it is not planted, where the text is only kept for another judge
    cpu: frozenset[str]  # flags of a CPU that runs what is wrong


class Catalogue(NamedTuple):
    mutants: list[Mutant]
    left: list[Mutant]
    excused: dict[str, str]  # hazard -> why no mutant


class ListError(Exception):
    """The list of mutants is not what it should be; the text says which entry and why."""


# ---- the list -----------------------------------------------------------------------------------


def parse_test(text: str) -> Test:
    name, *options = text.split()
    values = dict(option.split("=", 1) for option in options)
    if not values.keys() <= {"scale", "seed"}:
        raise ListError(f"test {text!r}: only scale= and seed= may follow")
    build, _, rest = name.partition(":")
    if "/" in name:
        build, rest = PYTHON, name
    elif build not in SANITIZERS or not rest:
        build, rest = "plain", name
    return Test(build, rest, float(values.get("scale", SCALE)), values.get("seed", ""))


def parse_edit(entry: dict[str, Any]) -> Edit:
    """A text ends before the last line's end, so that three quotes may stand on a line of their own."""
    if not entry.get("in") and not entry.get("file"):
        raise KeyError("in")
    old, new = (entry[key].removesuffix("\n") for key in ("old", "new"))
    return Edit(entry.get("in", ""), old, new, entry.get("file", ""))


def parse_mutant(entry: dict[str, Any], left_to: str = "") -> Mutant:
    name = entry.get("name", "?")
    try:
        hazards = entry["hazard"] if isinstance(entry["hazard"], list) else [entry["hazard"]]
        edits = [entry, *entry.get("also", [])]
        mutant = Mutant(
            name,
            tuple(hazards),
            " ".join(entry["wrong"].split()),
            tuple(map(parse_edit, edits)),
            tuple(map(parse_test, entry.get("caught_by", []))),
            entry.get("quick", False),
            left_to,
            frozenset(entry.get("cpu", "").split()),
        )
    except KeyError as error:
        raise ListError(f"mutant {name} has no {error.args[0]!r}") from error
    unknown = set(hazards) - {*HAZARDS, BAD_INPUT}
    if unknown or not mutant.hazards:
        raise ListError(f"mutant {name}: no such hazard: {', '.join(unknown) or 'none is named'}")
    if bool(mutant.tests) == bool(left_to):
        raise ListError(
            f"mutant {name} must name the tests that catch it, or be left to another judge"
        )
    return mutant


def read_catalogue(folder: Path = FOLDER) -> Catalogue:
    catalogue = Catalogue([], [], {})
    for path in sorted(folder.glob("*.toml")):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        if strangers := data.keys() - {"mutant", "left", "excused"}:
            raise ListError(f"{path.name}: what is {', '.join(strangers)}?")
        catalogue.mutants.extend(map(parse_mutant, data.get("mutant", [])))
        catalogue.left.extend(parse_mutant(e, e["left_to"]) for e in data.get("left", []))
        catalogue.excused.update((e["hazard"], e["reason"]) for e in data.get("excused", []))
    names = [m.name for m in (*catalogue.mutants, *catalogue.left)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ListError(f"two mutants have the name {', '.join(sorted(twice))}")
    return catalogue


def stale(mutant: Mutant, sources: Sources) -> str:
    """Why the mutant cannot be planted in these sources; nothing where it can."""
    try:
        planted(mutant.edits, sources)
    except AnchorError as error:
        return f"mutant {mutant.name}: {error}"
    return ""


def planted(edits: Iterable[Edit], sources: Sources) -> dict[str, str]:
    """The files that the edits change, with their new texts."""
    places: dict[str, list[Place]] = {}
    for edit in edits:
        place = edit.place(sources)
        places.setdefault(place.file, []).append(place)
    return {file: applied(sources.source(file).text, list_) for file, list_ in places.items()}


def files_of(mutant: Mutant, sources: Sources) -> list[str]:
    """The files that it changes, without those whose anchors are stale."""
    found: dict[str, None] = {}
    for edit in mutant.edits:
        with suppress(AnchorError):
            found[edit.place(sources).file] = None
    return list(found)


def uncovered(catalogue: Catalogue) -> list[str]:
    """Hazards that have neither a mutant nor an excuse."""
    covered = {hazard for m in catalogue.mutants for hazard in m.hazards}
    return [hazard for hazard in HAZARDS if hazard not in covered | catalogue.excused.keys()]


def select(
    mutants: list[Mutant], pattern: str, quick: bool, shard: tuple[int, int], sources: Sources
) -> list[Mutant]:
    """By a part of name, hazard, function, file or test, or by a pattern with * for all of one of them."""

    def fits(m: Mutant) -> bool:
        words = [
            m.name,
            *m.hazards,
            *(e.name for e in m.edits),
            *files_of(m, sources),
            *map(str, m.tests),
        ]
        if any(c in pattern for c in "*?["):
            return any(fnmatch.fnmatch(word, pattern) for word in words)
        return pattern in m.hazards or any(pattern in word for word in words if word not in HAZARDS)

    chosen = [m for m in mutants if (not quick or m.quick) and (not pattern or fits(m))]
    return chosen[shard[0] - 1 :: shard[1]]


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


# ---- copies and builds --------------------------------------------------------------------------


def files_below(root: Path) -> Iterator[Path]:
    """What a build or a test reads, relative to root."""
    for part in PARTS:
        path = root / part
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if (
                file.is_file()
                and "__pycache__" not in file.parts
                and file.suffix not in (".so", ".pyc")
            ):
                yield file.relative_to(root)


def write_if_new(path: Path, content: bytes) -> bool:
    """Leaves the time of a file that has this content, so that nothing is compiled for it."""
    if path.exists() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return True


def tool(name: str) -> str:
    """cmake and ninja are installed beside the Python that runs this, or on the system."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise SystemExit(f"{name} is not installed: make mutants does that")
    return found


class BuildError(Exception):
    """A build failed; the text is the compiler's."""


def call(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(),
    )
    if done.returncode:
        raise BuildError((done.stdout + done.stderr).strip())
    return done.stdout


def environment(**more: str) -> dict[str, str]:
    """Of builds and tests: the presets' sanitizer options, and the tools beside this Python on PATH."""
    presets = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))["testPresets"]
    options = next(p["environment"] for p in presets if p["name"] == "base")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, **options, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **more}


class Copy:
    """A copy of the sources, its builds, and whatever bug is in it at the moment."""

    def __init__(self, number: int) -> None:
        self.base = WORK / f"copy-{number}"
        self.source = self.base / "source"
        self.configured: dict[str, dict[str, list[str]]] = {}  # build -> ctest -> command
        self.mutated: set[str] = set()
        wanted = set(files_below(ROOT))
        if self.source.exists():
            for file in set(files_below(self.source)) - wanted:
                (self.source / file).unlink()
        for file in wanted:
            write_if_new(self.source / file, (ROOT / file).read_bytes())
        self.sources = Sources(self.source)
        self.sources.read_all()  # before anything is planted there

    def plant(self, edits: Iterable[Edit]) -> None:
        """Takes the former mutant out and puts this one in; a file that both change is written once."""
        texts = planted(edits, self.sources)
        for file in self.mutated - texts.keys():
            write_if_new(self.source / file, self.sources.source(file).text.encode())
        for file, text in texts.items():
            write_if_new(self.source / file, text.encode())
        self.mutated = set(texts)

    def folder(self, build: str) -> Path:
        return self.base / build

    def configure(self, build: str) -> None:
        if build in self.configured:
            return
        folder = self.folder(build)
        if build == PYTHON:
            if not (folder / "build.ninja").exists():
                call(sys.executable, "-m", "pip", "-qq", "install", "--no-build-isolation", "--no-deps", "--upgrade",
                     "--target", self.base / "site", f"--config-settings=build-dir={folder}",
                     "--config-settings=install.strip=false", "--config-settings=cmake.build-type=Debug",
                     "--config-settings=cmake.define.CMAKE_C_FLAGS_DEBUG=-O1", self.source)  # fmt: skip
            self.configured[build] = {}
            return
        flags = "-O1" if build == "plain" else "-O1 -g1"
        call(tool("cmake"), "-S", self.source, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
             "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_C_FLAGS_DEBUG={flags}", "-DMEMSLOTS_TESTS=ON",
             f"-DMEMSLOTS_SANITIZE={SANITIZERS[build]}", "--log-level=ERROR")  # fmt: skip
        self.configured[build] = {}

    def build(self, build: str, targets: Iterable[str]) -> None:
        self.configure(build)
        folder = self.folder(build)
        if build != PYTHON:
            call(tool("ninja"), "-C", folder, *targets)
            return
        call(tool("ninja"), "-C", folder)
        package = self.base / "site" / "memslots"
        for module in folder.glob("_memslots*.so"):
            write_if_new(package / module.name, module.read_bytes())
        for module in (self.source / "src" / "memslots").rglob("*.py"):
            write_if_new(
                package / module.relative_to(self.source / "src" / "memslots"), module.read_bytes()
            )

    def command(self, test: Test) -> list[str]:
        if test.build == PYTHON:
            return [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test.name]
        commands = self.configured[test.build]
        if test.name not in commands:  # ctest tells the commands of what is built already
            shown = json.loads(
                call(tool("ctest"), "--show-only=json-v1", cwd=self.folder(test.build))
            )
            commands.update((t["name"], t["command"]) for t in shown["tests"] if "command" in t)
        return commands[test.name]

    def run(self, test: Test, limit: float) -> "Outcome":
        """Builds what the test needs, and runs it; its own children end with it."""
        self.build(test.build, [test.name])
        more = {"MEMSLOTS_TEST_SCALE": str(test.scale), "MEMSLOTS_SEED": test.seed}
        if test.build == PYTHON:
            more["PYTHONPATH"] = str(self.base / "site")
        start = time.monotonic()
        process = subprocess.Popen(
            self.command(test), cwd=self.source, env=environment(**more), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit)
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            status = None
        return Outcome(status, output, time.monotonic() - start)


# ---- what a run says ----------------------------------------------------------------------------

SANITIZER = re.compile(r"ERROR: (AddressSanitizer|LeakSanitizer): ([\w-]+)|WARNING: (ThreadSanitizer): ([\w ()-]+)|"
                       r"(runtime error): (.+)")  # fmt: skip
CHECK = re.compile(r"^(?:.*/)?(\w+\.[ch]:\d+): (.+)$", re.MULTILINE)
INVARIANT = re.compile(r"^([A-Z]\d+): (.*)$", re.MULTILINE)  # of fixture.h's check_sound()
ASSERTION = re.compile(r"(\w+\.[ch]):\d+: \w+: Assertion [`'](.+)' failed")
PYTEST = re.compile(r"^(?:FAILED|ERROR) \S*?(\w+\.py(?:::.+?)?)(?: - (.*))?$", re.MULTILINE)
OWN_WATCHDOG = re.compile(
    r"watchdog ended (?:a test|the script)|Timeout \(\d+:\d+:\d+\)!|Failed: Timeout|\+{5} Timeout \+{5}"
)


class Outcome(NamedTuple):
    status: int | None  # None: it had to be ended
    output: str
    seconds: float

    @property
    def failed(self) -> bool:
        return self.status != 0

    @property
    def how(self) -> str:
        """What kind of judge it was, and what it says."""
        if self.status is None or OWN_WATCHDOG.search(self.output):
            return WATCHDOG
        if found := SANITIZER.search(self.output):
            return "sanitizer: " + " ".join(filter(None, found.groups()))
        if found := ASSERTION.search(self.output):
            return f"assertion: {found[1]}: {found[2]}"
        if found := INVARIANT.search(self.output):
            return f"check: {found[1]}: {found[2]}"
        if found := CHECK.search(self.output):
            return f"check: {found[1]}: {found[2]}"
        if found := PYTEST.search(self.output):
            return f"check: {found[1].partition('::')[2] or found[1]}: {found[2] or ''}".rstrip(
                ": "
            )
        if self.status < 0:
            return f"crash: {signal.Signals(-self.status).name}"
        said = [line.strip() for line in self.output.splitlines() if line.strip()]
        return f"check: exit {self.status}{': ' if said else ''}{said[-1] if said else ''}"


class Verdict(NamedTuple):
    mutant: Mutant
    caught: list[tuple[Test, str]]
    trouble: str  # why it could not be tried
    seconds: float

    def line(self) -> str:
        head = f"{','.join(self.mutant.hazards):8} {self.mutant.name:36} "
        if self.trouble:
            return f"{head}NOT TRIED: {self.trouble}"
        if not self.caught:
            return f"{head}SURVIVED {', '.join(map(str, self.mutant.tests))}  {self.seconds:.1f} s"
        by = "; ".join(f"{test} ({how})" for test, how in self.caught)
        return f"{head}{by[:150]}  {self.seconds:.1f} s"

    def as_json(self, sources: Sources) -> dict[str, Any]:
        return {
            "name": self.mutant.name,
            "hazards": self.mutant.hazards,
            "wrong": self.mutant.wrong,
            "files": sorted(files_of(self.mutant, sources)),
            "caught": [{"test": str(test), "how": how} for test, how in self.caught],
            "trouble": self.trouble,
            "seconds": round(self.seconds, 2),
        }


# ---- the run ------------------------------------------------------------------------------------


def judge(copy: Copy, test: Test, limit: float) -> Outcome:
    """A hang hangs twice; a machine that stalled does not."""
    outcome = copy.run(test, limit)
    if outcome.failed and outcome.how == WATCHDOG:
        return copy.run(test, limit)
    return outcome


class Run:
    """Workers with a copy each, who take groups of mutants that touch the same file."""

    def __init__(self, mutants: list[Mutant], jobs: int, every: bool, sources: Sources) -> None:
        self.mutants, self.every, self.sources = mutants, every, sources
        self.copies = [Copy(i) for i in range(jobs)]
        self.limits: dict[Test, float] = {}
        self.useless: dict[Test, str] = {}  # what fails without a bug
        self.verdicts: list[Verdict] = []
        self.failures: list[str] = []
        self.lock = threading.Lock()

    def say(self, text: str) -> None:
        with self.lock:
            print(text, flush=True)

    def in_parallel(self, work: deque[Any], do: Any) -> None:
        def worker(copy: Copy) -> None:
            while not self.failures:
                try:
                    item = work.popleft()
                except IndexError:
                    return
                try:
                    do(copy, item)
                except Exception as error:  # of this program or its tools: no verdict
                    self.failures.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=worker, args=(copy,)) for copy in self.copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # Python comes first, and in one copy: its build is the slow one.
    def groups(self) -> deque[list[Mutant]]:
        by_place: dict[tuple[bool, str], list[Mutant]] = {}
        for m in self.mutants:
            python = any(t.build == PYTHON for t in m.tests)
            place = "" if python else files_of(m, self.sources)[0]
            by_place.setdefault((not python, place), []).append(m)
        return deque(
            by_place[place]
            for place in sorted(by_place, key=lambda p: (p[0], -len(by_place[p]), p[1]))
        )

    def prove(self) -> None:
        """The copies without a bug pass every test that is named; how long each takes sets its limit."""
        tests = sorted(
            {t for m in self.mutants for t in m.tests}, key=lambda t: (t.build != PYTHON, t)
        )
        python = [t for t in tests if t.build == PYTHON]
        work = deque([python] if python else [])
        work.extend([t] for t in tests if t.build != PYTHON)

        def prove_group(copy: Copy, group: list[Test]) -> None:
            for test in group:
                outcome = judge(copy, test, LIMIT_MAX_S)
                if outcome.failed:
                    self.useless[test] = f"{outcome.how}\n{outcome.output[-1000:]}"
                    self.say(
                        f"{test} fails without any bug, and proves nothing: {self.useless[test]}"
                    )
                else:
                    self.limits[test] = LIMIT_S + 5 * outcome.seconds

        self.in_parallel(work, prove_group)

    def try_one(self, copy: Copy, mutant: Mutant) -> Verdict:
        start = time.monotonic()
        caught = []
        trouble = ""
        copy.plant(mutant.edits)
        if all(test in self.useless for test in mutant.tests):
            trouble = "its tests fail without it"
        for test in mutant.tests:
            if test in self.useless:
                continue
            try:
                outcome = judge(copy, test, self.limits[test])
            except BuildError as error:
                errors = [line for line in str(error).splitlines() if "error" in line.lower()]
                trouble = f"does not compile: {(errors or str(error).splitlines())[0][:300]}"
                break
            if outcome.failed:
                caught.append((test, outcome.how))
                if not self.every:
                    break
        return Verdict(mutant, caught, trouble, time.monotonic() - start)

    def try_all(self) -> None:
        def try_group(copy: Copy, group: list[Mutant]) -> None:
            for mutant in group:
                verdict = self.try_one(copy, mutant)
                self.verdicts.append(verdict)
                self.say(verdict.line())
            copy.plant([])

        self.in_parallel(self.groups(), try_group)


# ---- the table ----------------------------------------------------------------------------------


def in_order(hazard: str) -> tuple[int, str]:
    return (HAZARDS.index(hazard) if hazard in HAZARDS else len(HAZARDS), hazard)


def markdown(verdicts: list[Verdict], catalogue: Catalogue) -> str:
    """Hazard, mutant, caught by: a row for each hazard of each mutant's, in the hazards' order."""
    lines = ["| hazard | mutant | what is wrong | caught by |", "|---|---|---|---|"]
    rows = [(h, v) for v in verdicts for h in v.mutant.hazards]
    for hazard, v in sorted(rows, key=lambda row: (in_order(row[0]), row[1].mutant.name)):
        by = (
            ", ".join(f"{test} ({how.partition(':')[0]})" for test, how in v.caught)
            or "**nothing**"
        )
        lines.append(f"| {hazard} | {v.mutant.name} | {v.mutant.wrong} | {by} |".replace("\n", " "))
    lines += ["", "| hazard | why nothing is planted |", "|---|---|"]
    for hazard in sorted(catalogue.excused, key=in_order):
        lines.append(f"| {hazard} | {' '.join(catalogue.excused[hazard].split())} |")
    lines += ["", "| hazard | not planted | left to |", "|---|---|---|"]
    for m in sorted(catalogue.left, key=lambda m: (in_order(m.hazards[0]), m.name)):
        lines.append(
            f"| {', '.join(m.hazards)} | {m.name}: {m.wrong} | {' '.join(m.left_to.split())} |"
        )
    return "\n".join(lines) + "\n"


def list_all(mutants: list[Mutant], catalogue: Catalogue, sources: Sources) -> None:
    for m in mutants:
        print(f"{','.join(m.hazards):8} {m.name:36} {m.wrong}")
        print(f"{'':8} {'':36} {', '.join(files_of(m, sources))}: {', '.join(map(str, m.tests))}")
    for m in catalogue.left:
        print(
            f"{','.join(m.hazards):8} {m.name:36} not planted, left to {' '.join(m.left_to.split())}"
        )
    for hazard in sorted(catalogue.excused, key=in_order):
        print(f"{hazard:8} {'':36} no mutant: {' '.join(catalogue.excused[hazard].split())}")
    print(
        f"{len(mutants)} mutants, {len(catalogue.left)} left to others, {len(catalogue.excused)} hazards excused"
    )


def parse_shard(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    shard = int(i), int(n)
    if not 1 <= shard[0] <= shard[1]:
        raise ValueError
    return shard


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "-k",
        metavar="PATTERN",
        default="",
        help="only those whose name, hazard, file or test has it",
    )
    parser.add_argument(
        "--quick", action="store_true", help="about a minute: one mutant for each kind of judge"
    )
    parser.add_argument(
        "--shard", type=parse_shard, default=(1, 1), metavar="I/N", help="every N-th, from the I-th"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="copies of the sources to work in"
    )
    parser.add_argument(
        "--every",
        action="store_true",
        help="run all the tests of a mutant, not just until one fails",
    )
    parser.add_argument("--list", action="store_true", help="list them and plant none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table of docs/reliability.md"
    )
    return parser.parse_args(argv)


def have_it_alone() -> Any:
    """The copies are one run's at a time; the lock goes with the process."""
    WORK.mkdir(parents=True, exist_ok=True)
    lock = (WORK / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another run works in {WORK}") from None
    return lock


def report(
    verdicts: list[Verdict], catalogue: Catalogue, args: argparse.Namespace, sources: Sources
) -> None:
    if args.json:
        found = [v.as_json(sources) for v in sorted(verdicts, key=lambda v: v.mutant.name)]
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(markdown(verdicts, catalogue), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        catalogue = read_catalogue()
    except (ListError, tomllib.TOMLDecodeError) as error:
        raise SystemExit(f"tests/mutants: {error}") from error
    sources = Sources(ROOT)
    chosen = select(catalogue.mutants, args.k, args.quick, args.shard, sources)
    if args.list:
        list_all(chosen, catalogue, sources)
        return 0
    if not chosen:
        raise SystemExit("no mutant fits")
    flags = cpu_flags()
    for m in chosen:
        if absent := sorted(m.cpu - flags):
            print(
                f"{','.join(m.hazards):8} {m.name:36} not planted: this CPU has no {', '.join(absent)}"
            )
    chosen = [m for m in chosen if m.cpu <= flags]
    lock = have_it_alone()  # until the end
    reasons = {m.name: stale(m, sources) for m in chosen}
    verdicts = [Verdict(m, [], reasons[m.name], 0) for m in chosen if reasons[m.name]]
    for v in verdicts:
        print(v.line())

    start = time.monotonic()
    run = Run([m for m in chosen if not reasons[m.name]], max(1, args.jobs), args.every, sources)
    run.prove()
    if not run.failures:
        print(
            f"{len(run.limits)} tests pass without a bug, {time.monotonic() - start:.0f} s",
            flush=True,
        )
        run.try_all()
    for failure in run.failures:
        print(failure)
    verdicts += run.verdicts
    report(verdicts, catalogue, args, sources)
    caught = sum(bool(v.caught) and not v.trouble for v in verdicts)
    missed = sorted(v.mutant.name for v in verdicts if not v.caught or v.trouble)
    if missed:
        print(f"not caught: {', '.join(missed)}")
    print(f"{time.monotonic() - start:.0f} s")
    lock.close()
    print(f"mutants: {len(chosen)} planted, {caught} caught")
    return 0 if caught == len(chosen) and not run.failures and not run.useless else 1


if __name__ == "__main__":
    sys.exit(main())
