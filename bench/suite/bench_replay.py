# SPDX-License-Identifier: MIT
"""Whole QEMU traces, played from Python; every result is the one that a real Linux recorded."""

from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from memslots.traces import player, vectors

TRACES = (
    "pc-stdvga-boot",
    "pc-migrate-boot",
    "pc-pam-smram",
    "pc-dimm-migrate",
    "q35-dimm-hotplug-63",
)


@cache
def trace(name: str) -> vectors.VectorFile:
    """A packaged file."""
    paths = {Path(path).name: path for path in vectors.packaged_traces()}
    return vectors.read(paths[f"{name}.jsonl.gz"])


@pytest.mark.benchmark(group="replay")
@pytest.mark.parametrize("name", TRACES)
def test_replay(benchmark: BenchmarkFixture, name: str, backend: str) -> None:
    file = trace(name)

    def play() -> player.PlayResult:
        with closing(player.open_backend(backend, file.header)) as vm:
            return player.play(file, vm)

    result = benchmark(play)
    assert result.ops == len(file.ops)
    assert not result.mismatches
