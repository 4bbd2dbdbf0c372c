# SPDX-License-Identifier: MIT
"""Lookups, 1,000 in a round: by gfn from C, by gfn in a batch and one by one from Python, by id, by host address."""

from typing import Any

import numpy as np
import pytest
from conftest import GFN_BACKENDS, LOOKUPS, layouts
from pytest_benchmark.fixture import BenchmarkFixture

from memslots import VM
from memslots._memslots import time_lookups

by_gfn = pytest.mark.parametrize("backend", GFN_BACKENDS)


def answers(vm: VM, what: str, *numbers: np.ndarray, **how: Any) -> np.ndarray:
    """Make all lookups in one loop in C."""
    return time_lookups(vm, what, *numbers, group=LOOKUPS, **how)[1]


@pytest.mark.benchmark(group="gfn_to_hva from C")
@by_gfn
def test_gfn_to_hva_from_c(
    benchmark: BenchmarkFixture, vm: VM, gfns: np.ndarray, hvas: np.ndarray
) -> None:
    np.testing.assert_array_equal(benchmark(answers, vm, "gfn_to_hva", gfns), hvas)


@pytest.mark.benchmark(group="gfn_to_hva by a vCPU, from C")
@by_gfn
@pytest.mark.parametrize("pattern", ["hot", "random"])
def test_vcpu_gfn_to_hva_from_c(
    benchmark: BenchmarkFixture, vm: VM, gfns: np.ndarray, hvas: np.ndarray
) -> None:
    vcpu = vm.create_vcpu()
    np.testing.assert_array_equal(benchmark(answers, vm, "gfn_to_hva", gfns, vcpu=vcpu), hvas)


@pytest.mark.benchmark(group="gfn_to_hva_many")
@by_gfn
def test_gfn_to_hva_many(
    benchmark: BenchmarkFixture, vm: VM, gfns: np.ndarray, hvas: np.ndarray
) -> None:
    out = np.zeros_like(gfns)
    benchmark(vm.gfn_to_hva_many, gfns, out=out)
    np.testing.assert_array_equal(out, hvas)


@pytest.mark.benchmark(group="gfn_to_hva from Python")
@by_gfn
@pytest.mark.parametrize("pattern", ["hot", "sequential", "random"])  # a miss raises
def test_gfn_to_hva_from_python(
    benchmark: BenchmarkFixture, vm: VM, gfns: np.ndarray, hvas: np.ndarray
) -> None:
    numbers, gfn_to_hva = gfns.tolist(), vm.gfn_to_hva
    assert benchmark(lambda: [gfn_to_hva(gfn) for gfn in numbers]) == hvas.tolist()


@pytest.mark.benchmark(group="id_to_memslot from C")
def test_id_to_memslot_from_c(benchmark: BenchmarkFixture, vm: VM, slots: np.ndarray) -> None:
    ids = layouts.ids(slots, LOOKUPS)
    expected = layouts.expected_addresses(slots, ids)
    np.testing.assert_array_equal(benchmark(answers, vm, "id_to_memslot", ids), expected)


@pytest.mark.benchmark(group="slots in a page of host memory, from C")
def test_hva_range_from_c(benchmark: BenchmarkFixture, vm: VM, slots: np.ndarray) -> None:
    """The lookup of an MMU notifier for each page that the host unmaps."""
    starts = layouts.expected_hvas(slots, layouts.random(slots, LOOKUPS))
    lasts = starts + np.uint64(4095)
    counts = benchmark(answers, vm, "hva_range", starts, lasts)
    np.testing.assert_array_equal(counts, layouts.expected_counts(slots, starts, lasts))
