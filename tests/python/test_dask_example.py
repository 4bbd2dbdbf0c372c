# SPDX-License-Identifier: MIT
"""examples/dask_translate.py gives the answers of one process."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from memslots import HVA_ERR_BAD

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

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


# ---- bench/workers.py ----------------------------------------------------------------------------


@needs_dask
@pytest.mark.slow
def test_bench_compares_the_workers_with_one_process(tmp_path: Path) -> None:
    file = tmp_path / "dask" / "workers.txt"
    options = ["--gfns=3000000", "--slots=100", "--turns=2", "--workers=2", f"--output={file}"]
    command = [sys.executable, str(ROOT / "bench" / "workers.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:3] for line in file.read_text().splitlines()[2:6]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        [size, where]
        for size in ("2,097,152", "8,388,608")
        for where in ("one process", "2 workers")
    ]
    assert "3,000,000 gfns, 100 slots, 2 turns" in file.read_text()


@pytest.fixture
def bench(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench/workers.py without Dask: the workers run in this process."""
    pytest.importorskip("tabulate")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    module = importlib.import_module("workers")
    monkeypatch.setattr(example, "cluster_of", lambda *_: nullcontext((None, None)))
    monkeypatch.setattr(module, "PARTS", (1000, 4000))
    return module


def test_bench_gives_medians_of_turns(bench, example, tmp_path, monkeypatch) -> None:
    snapshot, path = example.make_snapshot(50, seed=1), tmp_path / "trace.u64"
    example.make_trace(path, 9000, 1000, snapshot, seed=2)
    answer, _ = example.in_one_process(path, 9000, 1000, snapshot)
    alone, together = iter([2.0, 2.0, 9.0, 4.0, 3.0, 3.0]), iter([1.0, 4.0, 1.0, 4.0, 1.0, 5.0])
    monkeypatch.setattr(example, "in_one_process", lambda *_: (answer, next(alone)))
    monkeypatch.setattr(example, "on_workers", lambda *_: (answer, next(together)))
    times, _ = bench.measure(path, 9000, snapshot, 2, turns=3)
    assert times[1000, "one process"] == [2, 9, 3]
    assert times[4000, "2 workers"] == [4, 4, 5]
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in bench.table(times).splitlines()
    ]
    assert rows[2] == ["1,000", "one process", "3.00", "2.00", "9.00", "1.00"]
    assert rows[5] == ["4,000", "2 workers", "4.00", "4.00", "5.00", "0.75"]


def test_bench_records_no_wrong_answer(bench, example, tmp_path, monkeypatch, capsys) -> None:
    wrong = example.Answer(1, 2, 3)
    monkeypatch.setattr(example, "on_workers", lambda *_: (wrong, 1.0))
    file = tmp_path / "workers.txt"
    assert bench.main(["--gfns=9000", "--slots=50", "--turns=1", "--workers=2", f"-o{file}"]) == 1
    assert "workers: different answers: " in capsys.readouterr().err
    assert not file.exists()
