# SPDX-License-Identifier: MIT
"""Real QEMU traces, played from Python.  Every result is compared with the result that Linux gave.

The case `replay/KIND` has one kind of call, from all traces.  The case `scenario/NAME` has all calls of the traces of
that scenario.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..traces import player, vectors
from .case import Case, Run
from .sample import Sample, typical

#: Scenarios, and the words in file names that select them.  The first match counts.
SCENARIOS = (
    ("migration", ("migrate",)),
    ("hot-plug of DIMMs", ("hotplug",)),
    ("BAR moves", ("bars",)),
    ("PAM and SMRAM", ("pam",)),
    ("display refresh", ("refresh", "secondary")),
    ("boot", ("",)),
)

KINDS = (
    "create",
    "delete",
    "move",
    "flags",
    "no-op",
    "refused",
    "get_dirty",
    "clear_dirty",
    "mark",
    "lookup",
)


def scenario(path: str) -> str:
    """Return the scenario of the trace at `path`."""
    stem = vectors.stem(path)
    return next(name for name, words in SCENARIOS if any(word in stem for word in words))


class Replay(Case):
    names = (*(f"replay/{kind}" for kind in KINDS), *(f"scenario/{name}" for name, _ in SCENARIOS))
    with_kvm: ClassVar[bool] = True

    def __init__(self, seed: int) -> None:
        super().__init__(None, seed)

    @cached_property
    def files(self) -> list[vectors.VectorFile]:
        return [vectors.read(path) for path in vectors.packaged_traces()]

    def run(self, run: Run) -> Sequence[Sample]:
        results: list[player.PlayResult] = []
        times: dict[str, player.Timings] = {}
        for file in self.files:
            with closing(player.open_backend(run.backend, file.header)) as vm:
                timings = times.setdefault(scenario(file.path), {})
                results.append(player.play(file, vm, timings=timings))
        return list(_samples(times, _digest(results), _wrong(results)))


def _digest(results: list[player.PlayResult]) -> str:
    outcomes = [(Path(r.path).name, r.ops, [str(m) for m in r.mismatches]) for r in results]
    return hashlib.sha256(repr(outcomes).encode()).hexdigest()[:16]


def _wrong(results: list[player.PlayResult]) -> str | None:
    mismatches = [m for r in results for m in r.mismatches]
    if not mismatches:
        return None
    return f"{len(mismatches)} results are not what Linux answered: {mismatches[0]}"


def _samples(times: dict[str, player.Timings], digest: str, wrong: str | None) -> Iterator[Sample]:
    for kind in KINDS:
        ns = [t for timings in times.values() for t in timings.get(kind, [])]
        if ns:
            singles = np.array(ns, dtype=np.float64)
            value = typical(singles)
            yield Sample(f"replay/{kind}", value, singles, 1, len(ns), digest, wrong)
    for name, timings in times.items():
        singles = np.array([t for ns in timings.values() for t in ns], dtype=np.float64)
        if len(singles):
            total = float(singles.sum())
            n = len(singles)
            value, case = total / n, f"scenario/{name}"
            yield Sample(case, value, singles, 1, n, digest, wrong, iteration_ops=n)
