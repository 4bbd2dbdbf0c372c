# SPDX-License-Identifier: MIT
"""examples/dask_translate.py gives the answers of one process."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from memslots import HVA_ERR_BAD

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="there is no checkout around the tests"
)
needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None,
    reason="Dask is not installed (make test-examples brings it)",
)


@pytest.fixture
def example() -> ModuleType:
    """examples/dask_translate.py."""
    pytest.importorskip("tqdm")
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("dask_translate")
    finally:
        sys.path.remove(str(EXAMPLES))


def test_parts_of_a_trace_have_the_sum_of_all_answers(example, tmp_path) -> None:
    """In one process, against the snapshot's own search."""
    snapshot, path = example.make_snapshot(200, seed=3), tmp_path / "trace.u64"
    example.make_trace(path, 10_007, 1000, snapshot, seed=4)
    answer, _ = example.in_one_process(path, 10_007, 999, snapshot)
    hvas = snapshot.gfn_to_hva_many(np.fromfile(path, np.uint64))
    found = hvas != HVA_ERR_BAD
    assert answer == (10_007, np.count_nonzero(~found), int(np.add.reduce(hvas[found])))
    assert 0 < answer.holes < 5000


def test_report_is_honest_about_a_loss(example) -> None:
    assert "2.00 times as fast" in example.report(1000, 2.0, 1.0, 2)
    assert "gains nothing" in example.report(1000, 1.0, 2.0, 2)


@needs_dask
@pytest.mark.slow
def test_workers_give_the_answers_of_one_process(tmp_path) -> None:
    options = ["--gfns=20000", "--slots=100", "--part=3000", "--workers=2", f"--folder={tmp_path}"]
    command = [sys.executable, str(EXAMPLES / "dask_translate.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20,000 gfns in 0 MB, 100 slots" in done.stdout
    assert "2 workers on " in done.stdout
    assert "equal answers" in done.stdout
