# SPDX-License-Identifier: MIT
"""mutants.py - plant bugs one at a time, and check that a test catches each.

    mutants.py [-k PATTERN] [--quick] [--shard I/N] [--jobs N] [--every] [--list] [--json FILE] [--markdown]

The bugs are in tests/mutants/*.toml; mutant_list.py describes their format.  Some code runs only on some CPUs.  A bug
there names the necessary flags of /proc/cpuinfo (`cpu`).  On another CPU it is not planted, and the run reports this.

The tool plants bugs into copies of the sources under build/mutants/, never into the tree, and compiles only changed
files.  A mutant of a Python module compiles nothing: its tests use the installed extension.  First every named test
must pass in a copy without a bug, because a test that fails without a bug proves nothing.  Then the tool builds each
mutant and runs its tests until one fails.  A mutant is caught by a check of the test, an assertion of the engine, a
sanitizer, a crash, or the watchdog.  The watchdog ends a test that takes five times as long as without the bug.  A busy
machine can cause this too, so such a test runs again, and the second run counts.
A mutant that does not compile, or whose anchor is not found, is not caught.

The last line is `mutants: N planted, N caught`; the exit status is 0 when both numbers are the same.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import tomllib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from anchors import Sources
from flips import Flip
from mutant_list import (
    PURE,
    PYTHON,
    ROOT,
    SANITIZERS,
    Edit,
    ListError,
    Mutant,
    Test,
    files_of,
    list_all,
    markdown,
    planted,
    read_catalogue,
    select,
    stale,
)
from presets import sanitizer_options

WORK = ROOT / "build" / "mutants"
PARTS = (
    "CMakeLists.txt",
    "CMakePresets.json",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "docs",
    "src",
    "tests",
    "tools",
)

LIMIT_S = 10  # seconds; five times the time of the test is added
LIMIT_MAX_S = 120  # for a test without a bug
WATCHDOG = "watchdog"


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


# ---- copies and builds --------------------------------------------------------------------------


def files_below(root: Path) -> Iterator[Path]:
    """Yield all files that a build or a test reads, relative to root."""
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
    """Write a file only if its content differs.  Otherwise its time stays, and nothing is compiled again."""
    if path.exists() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return True


def tool(name: str) -> str:
    """Find cmake or ninja next to the Python that runs this, or on PATH."""
    neighbour = Path(sys.executable).parent / name
    found = str(neighbour) if neighbour.exists() else shutil.which(name)
    if not found:
        raise SystemExit(f"{name} is not installed; `make mutants` installs it")
    return found


class BuildError(Exception):
    """A build failed; the message is the compiler's."""


def installed() -> Path:
    """Return the folder of the installed package.  Its extension is that of this checkout: make installs it first."""
    folder = Path(sysconfig.get_path("platlib")) / "memslots"
    if not folder.is_dir():
        raise BuildError(f"error: there is no {folder}; `make mutants` installs it")
    return folder


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
    """Return the environment of builds and tests, with the presets' sanitizer options and this Python on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    own = {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **sanitizer_options(), **own, **more}


class Copy:
    """A copy of the sources, its builds, and the planted mutant."""

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
        self.sources.read_all()  # before a mutant is planted

    def plant(self, edits: Iterable[Edit | Flip]) -> None:
        """Replace the planted mutant by this one.  A file that both change is written once."""
        texts = planted(edits, self.sources)
        for file in self.mutated - texts.keys():
            write_if_new(self.source / file, self.sources.source(file).text.encode())
        for file, text in texts.items():
            write_if_new(self.source / file, text.encode())
        self.mutated = set(texts)

    def folder(self, build: str) -> Path:
        return self.base / build

    def site(self, build: str) -> Path:
        """Return the folder that a Python test imports the package from."""
        return self.folder(PURE) if build == PURE else self.base / "site"

    def configure(self, build: str) -> None:
        if build in self.configured:
            return
        folder = self.folder(build)
        if build == PURE:
            shutil.copytree(installed(), folder / "memslots", dirs_exist_ok=True)
            self.configured[build] = {}
            return
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
        if build not in (PYTHON, PURE):
            call(tool("ninja"), "-C", folder, *targets)
            return
        package = self.site(build) / "memslots"
        if build == PYTHON:
            call(tool("ninja"), "-C", folder)
            for pattern, target in (("_memslots*.so", package), ("_ioctl*.so", package / "kvm")):
                for module in folder.glob(pattern):
                    write_if_new(target / module.name, module.read_bytes())
        for module in (self.source / "src" / "memslots").rglob("*.py"):
            write_if_new(
                package / module.relative_to(self.source / "src" / "memslots"), module.read_bytes()
            )

    def command(self, test: Test) -> list[str]:
        if test.build in (PYTHON, PURE):
            return [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test.name]
        commands = self.configured[test.build]
        if test.name not in commands:  # ctest lists only the commands of built tests
            shown = json.loads(
                call(tool("ctest"), "--show-only=json-v1", cwd=self.folder(test.build))
            )
            commands.update((t["name"], t["command"]) for t in shown["tests"] if "command" in t)
        return commands[test.name]

    def run(self, test: Test, limit: float) -> "Outcome":
        """Build the test and run it in a new session, so that its children can be killed with it."""
        self.build(test.build, [test.name])
        more = {"MEMSLOTS_TEST_SCALE": str(test.scale), "MEMSLOTS_SEED": test.seed}
        if test.build in (PYTHON, PURE):
            more["PYTHONPATH"] = str(self.site(test.build))
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


# ---- the outcome of a test ----------------------------------------------------------------------------

SANITIZER = re.compile(r"ERROR: (AddressSanitizer|LeakSanitizer): ([\w-]+)|WARNING: (ThreadSanitizer): ([\w ()-]+)|"
                       r"(runtime error): (.+)")  # fmt: skip
CHECK = re.compile(r"^(?:.*/)?(\w+\.[ch]:\d+): (.+)$", re.MULTILINE)
INVARIANT = re.compile(r"^([A-Z]\d+): (.*)$", re.MULTILINE)  # from check_sound() in fixture.h
ASSERTION = re.compile(r"(\w+\.[ch]):\d+: \w+: Assertion [`'](.+)' failed")
PYTEST = re.compile(r"^(?:FAILED|ERROR) \S*?(\w+\.py(?:::.+?)?)(?: - (.*))?$", re.MULTILINE)
OWN_WATCHDOG = re.compile(
    r"watchdog ended (?:a test|the script)|Timeout \(\d+:\d+:\d+\)!|Failed: Timeout|\+{5} Timeout \+{5}"
)


class Outcome(NamedTuple):
    status: int | None  # None: the watchdog killed it
    output: str
    seconds: float

    @property
    def failed(self) -> bool:
        return self.status != 0

    @property
    def how(self) -> str:
        """Return the kind of failure and its message."""
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
    trouble: str  # the reason why the mutant could not be tested, or empty
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


def outcome_of(copy: Copy, test: Test, limit: float) -> Outcome:
    """Run the test, and again if the watchdog ended it.  A real hang hangs twice, unlike a stall of the machine."""
    outcome = copy.run(test, limit)
    if outcome.failed and outcome.how == WATCHDOG:
        return copy.run(test, limit)
    return outcome


class Run:
    """Workers that each have a copy.  A worker takes one group of mutants at a time: all mutants of one file."""

    def __init__(self, mutants: list[Mutant], jobs: int, every: bool, sources: Sources) -> None:
        self.mutants, self.every, self.sources = mutants, every, sources
        self.copies = [Copy(i) for i in range(jobs)]
        self.limits: dict[Test, float] = {}
        self.useless: dict[Test, str] = {}  # tests that fail without a bug
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
                except Exception as error:  # an error of this program or its tools is not a verdict
                    self.failures.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=worker, args=(copy,)) for copy in self.copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # The Python mutants come first and stay in one copy, because their build is slow.
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
        """Run every named test without a bug, and derive its time limit."""
        tests = sorted(
            {t for m in self.mutants for t in m.tests}, key=lambda t: (t.build != PYTHON, t)
        )
        python = [t for t in tests if t.build == PYTHON]
        work = deque([python] if python else [])
        work.extend([t] for t in tests if t.build != PYTHON)

        def prove_group(copy: Copy, group: list[Test]) -> None:
            for test in group:
                outcome = outcome_of(copy, test, LIMIT_MAX_S)
                if outcome.failed:
                    self.useless[test] = f"{outcome.how}\n{outcome.output[-1000:]}"
                    self.say(
                        f"{test} fails without a bug, and so proves nothing: {self.useless[test]}"
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
                outcome = outcome_of(copy, test, self.limits[test])
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
        help="only mutants whose name, hazard, function, file or test contains the pattern",
    )
    parser.add_argument(
        "--quick", action="store_true", help="plant a few of each kind: about a minute"
    )
    parser.add_argument(
        "--shard",
        type=parse_shard,
        default=(1, 1),
        metavar="I/N",
        help="every N-th mutant, from the I-th",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="copies of the sources to work in"
    )
    parser.add_argument(
        "--every",
        action="store_true",
        help="run all tests of a mutant, not only until one fails",
    )
    parser.add_argument("--list", action="store_true", help="list them as text, and plant none")
    parser.add_argument(
        "--markdown", action="store_true", help="list them as tables of Markdown, and plant none"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts to a file")
    return parser.parse_args(argv)


def lock_copies() -> Any:
    """Let only one run at a time use the copies.  The end of the process releases the lock."""
    WORK.mkdir(parents=True, exist_ok=True)
    lock = (WORK / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another run works in {WORK}") from None
    return lock


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    sources = Sources(ROOT)
    try:
        catalogue = read_catalogue(sources=sources)
    except (ListError, tomllib.TOMLDecodeError) as error:
        raise SystemExit(f"tests/mutants: {error}") from error
    chosen = select(catalogue.mutants, args.k, args.quick, args.shard, sources)
    if args.list or args.markdown:
        print(
            markdown(chosen, catalogue)
            if args.markdown
            else "\n".join(list_all(chosen, catalogue, sources))
        )
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
    lock = lock_copies()  # until the end
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
    if args.json:
        found = [v.as_json(sources) for v in sorted(verdicts, key=lambda v: v.mutant.name)]
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
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
