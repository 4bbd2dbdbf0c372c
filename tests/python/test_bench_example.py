# SPDX-License-Identifier: MIT
"""bench/: the example of a user's benchmark runs alone, and each benchmark of the suite runs once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="no pytest-benchmark: make bench installs it")

ROOT = Path(__file__).resolve().parents[2]


def pytest_in(folder: Path, *args: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *args,
    ]
    # pytest-benchmark measures nothing where it sees that it is in a worker of xdist: this process is not
    outside = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=folder, env=outside, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_example_of_a_users_benchmark_runs_in_ten_lines(tmp_path: Path) -> None:
    source = ROOT / "bench" / "example_user.py"
    code = [line for line in source.read_text().splitlines() if line and line[0] not in '#"']
    assert len(code) <= 10
    shutil.copy(source, tmp_path)
    assert "1 passed" in pytest_in(tmp_path, "example_user.py", "--benchmark-disable")


def test_only_lookups_by_gfn_are_measured_with_the_index() -> None:
    shown = pytest_in(ROOT, "bench/suite", "--collect-only")
    found = {
        line.split("::")[1].partition("[")[0] for line in shown.splitlines() if "tree+index" in line
    }
    by_gfn = (
        "gfn_to_hva_from_c",
        "vcpu_gfn_to_hva_from_c",
        "gfn_to_hva_many",
        "gfn_to_hva_from_python",
    )
    assert found == {f"test_{name}" for name in by_gfn}


@pytest.mark.slow
def test_suite_runs_each_benchmark_once() -> None:
    shown = pytest_in(
        ROOT, "bench/suite", "--benchmark-disable", "-k", "8-slots or replay or dirty_log"
    )
    assert " passed" in shown
    assert " failed" not in shown
