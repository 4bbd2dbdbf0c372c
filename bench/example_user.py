# SPDX-License-Identifier: MIT
"""An example of your own benchmark: `pytest bench/example_user.py`.  It needs pytest-benchmark and memslots."""

from memslots import VM
from memslots.lab import layouts


def test_my_lookups(benchmark):
    slots = layouts.uniform(509)  # seeded: the same slots on every machine
    gfns = layouts.random(slots, 10_000)
    with VM(backend="tree") as vm:
        vm.load_memslots(slots)
        hvas = benchmark(vm.gfn_to_hva_many, gfns)
    assert (hvas == layouts.expected_hvas(slots, gfns)).all()
