# SPDX-License-Identifier: MIT
"""Batches of a million random gfns, a fifth of them in holes, by an index, with each level of SIMD that the CPU has."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOM, layouts
from pytest_benchmark.fixture import BenchmarkFixture

from memslots import VM, _memslots, build_info

QUERIES = 1_000_000
CASES = [
    *(("uniform", n) for n in (64, 509, 4096, 32_764, 1_000_000)),
    ("adversarial", 32_764),
]


class Batch(NamedTuple):
    vm: VM
    gfns: np.ndarray
    hvas: np.ndarray


def gfns_of(layout: str, slots: np.ndarray) -> np.ndarray:
    """Return frames of the whole span.  In "adversarial" a fifth of them, because nearly all of the span is holes."""
    anywhere = layouts.misses(slots, QUERIES)
    if layout != "adversarial":
        return anywhere
    gfns = layouts.random(slots, QUERIES)
    gfns[::5] = anywhere[::5]
    return gfns


@pytest.fixture(scope="module")
def make_batch() -> Iterator[Callable[[str, int], Batch]]:
    made: dict[tuple[str, int], Batch] = {}
    with ExitStack() as stack:

        def make(layout: str, n: int) -> Batch:
            if (layout, n) not in made:
                slots = layouts.layout(layout, n)
                vm = stack.enter_context(VM(user_mem_slots=max(ROOM, n)))
                vm.index_policy = "eager"
                vm.load_memslots(slots)
                gfns = gfns_of(layout, slots)
                made[layout, n] = Batch(vm, gfns, layouts.expected_hvas(slots, gfns))
            return made[layout, n]

        yield make


@pytest.fixture(params=_memslots.simd_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = build_info()["simd"]
    _memslots.set_simd(request.param)
    yield request.param
    _memslots.set_simd(before)


@pytest.mark.benchmark(group="a batch of a million random gfns")
@pytest.mark.parametrize(("layout", "n"), CASES, ids=[f"{layout}-{n}-slots" for layout, n in CASES])
def test_batch_of_a_million(
    benchmark: BenchmarkFixture,
    make_batch: Callable[[str, int], Batch],
    level: str,
    layout: str,
    n: int,
) -> None:
    vm, gfns, hvas = make_batch(layout, n)
    out = np.zeros_like(gfns)
    vm.gfn_to_hva_many(gfns, out=out)  # makes the index
    assert vm.stats()["index_builds"] == 1
    out[:] = 0
    benchmark(vm.gfn_to_hva_many, gfns, out=out)
    np.testing.assert_array_equal(out, hvas)
