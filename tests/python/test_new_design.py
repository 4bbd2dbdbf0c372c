# SPDX-License-Identifier: MIT
"""A new design of slot sets is one file: the command in CONTRIBUTING makes it, and no other file changes.

The test builds a copy of the sources with the file.  Then it plays vectors on the design, measures it, and compares it
with the tree.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memslots._memslots import design_costs

ROOT = Path(__file__).parents[2]
VECTORS = ("06-overlap", "07-move", "09-dirty-toggle", "24-internal-slots", "25-lookup")
MAX_LINES = 150

SOURCES = ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "src")


def documented_command() -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found: list[str] = re.findall(r"^ *(sed .* > src/_core/idea_set\.c)$", text, re.MULTILINE)
    assert len(found) == 1
    return found[0]


def copy_sources(to: Path) -> None:
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, to / name)


def install(sources: Path, site: Path) -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    settings = [
        "--config-settings",
        "cmake.build-type=Debug",
        "--config-settings",
        f"build-dir={sources / 'build'}",
    ]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *options,
        *settings,
        "--target",
        site,
        sources,
    ]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the package with the design "idea" is installed."""
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed here")
    sources, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("site")
    copy_sources(sources)
    subprocess.run(["sh", "-ec", documented_command()], cwd=sources, check=True)
    idea = (sources / "src/_core/idea_set.c").read_text(encoding="utf-8")
    assert idea.count("\n") <= MAX_LINES
    assert "list" not in idea
    install(sources, target)
    return target


def run(site: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.builds
@pytest.mark.slow
def test_build_finds_the_new_file(site: Path) -> None:
    code = "import json; from memslots._memslots import design_costs as c; print(json.dumps(c()))"
    costs = json.loads(run(site, "-c", code))
    assert list(costs) == ["tree", "array", "idea", "list"]
    assert costs["idea"] == costs["list"] == design_costs()["list"]


@pytest.mark.builds
@pytest.mark.slow
def test_new_design_gives_the_recorded_answers(site: Path) -> None:
    files = [str(ROOT / f"tests/vectors/edge/{name}.jsonl") for name in VECTORS]
    out = run(site, "-m", "memslots", "replay", "--backend", "idea", *files)
    assert f"{len(VECTORS)} files" in out
    assert " 0 mismatches" in out


@pytest.mark.builds
@pytest.mark.slow
def test_refused_change_leaks_no_memory(site: Path) -> None:
    code = """
import memslots
from memslots.listener import Listener

class Refuses(Listener):
    def prepare(self, change):
        raise OSError(1, "no")

def refused(change, *arguments, **fields):
    try:
        change(*arguments, **fields)
    except OSError:
        return
    raise AssertionError("not refused")

for name in memslots.backends():
    vm = memslots.VM(backend=name)
    for n in range(70):
        vm.set_user_memory_region(n, guest_phys_addr=n << 20, memory_size=4096, userspace_addr=1 << 30)
        before = vm.stats()["bytes"]
        listener = Refuses()
        vm.add_listener(listener)
        now = vm.stats()["bytes"]
        for slot, size, at in ((n + 1, 4096, n + 1), (n, 0, n), (n, 4096, n + 100)):
            refused(vm.set_user_memory_region, slot, guest_phys_addr=at << 20, memory_size=size,
                    userspace_addr=1 << 30)
            assert vm.stats()["bytes"] <= now, (name, n, slot, size, vm.stats()["bytes"] - now)
        vm.remove_listener(listener)
    vm.check()
"""
    run(site, "-c", code)


@pytest.mark.builds
@pytest.mark.slow
def test_report_has_a_column_a_ratio_and_a_sentence_for_the_design(site: Path) -> None:
    options = ("--quick", "--no-kvm", "--only", "change/create", "--rounds", "1")
    perf = run(site, "-m", "memslots", "perf", "--slots", "8", *options)
    header = next(
        " ".join(line.split()) for line in perf.splitlines() if line.startswith("8 slots")
    )
    assert header == "8 slots tree array list idea array / tree idea / tree"
    scale = run(site, "-m", "memslots", "scale", "--max-slots", "8", *options)
    assert "  idea / tree  " in scale
    for out in (perf, scale):
        assert "The design idea is faster than the tree in " in out
