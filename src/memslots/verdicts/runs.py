# SPDX-License-Identifier: MIT
"""The measured processes of a comparison, as files keep them, and the logarithms that the tests need."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from ..lab.fingerprint import Machine
from .outcome import Floats, Verdict, verdicts

SIDES = ("A", "B")


@dataclass(frozen=True)
class Process:
    """One process that measured one side."""

    side: str
    pair: int
    unit: int  # pairs of a unit have the same link orders
    order: int  # of the link order of this side
    environment: int  # bytes added to the environment, which moves the stack
    benchmarks: dict[str, float]  # seconds of one operation


@dataclass(frozen=True)
class Comparison:
    """All processes of a comparison."""

    memslots: str
    command: str
    a: str  # the names of the versions
    b: str
    seconds: float
    machine: Machine | None
    processes: list[Process]
    failed: list[str]


@dataclass(frozen=True)
class VerdictRow:
    """One row of the table of verdicts.  Times are seconds."""

    benchmark: str
    a: float
    b: float
    ratio: float
    low: float
    high: float
    p_difference: float
    p_equivalence: float
    spread: float
    outcome: str


class ComparisonError(ValueError):
    """The file is no comparison, or the processes do not form pairs."""


def names_of(processes: Iterable[Process]) -> list[str]:
    """Return the benchmarks that every process has, in the order of the first process."""
    first, *others = processes
    return [name for name in first.benchmarks if all(name in p.benchmarks for p in others)]


def logs_of(processes: Iterable[Process], names: list[str]) -> Floats:
    """Return log(B / A): units x benchmarks.

    A unit has one figure for each side and benchmark: the least of its processes.  Other work of the machine only makes
    times longer, so that the least one is disturbed only if all of them are.
    """
    found: dict[int, list[tuple[Process, Process]]] = {}
    for a, b in pairs_of(processes):
        found.setdefault(a.unit, []).append((a, b))
    rows = [_log_of_unit(pairs, names) for pairs in found.values()]
    return np.array(rows).reshape(len(found), len(names))


def _log_of_unit(pairs: list[tuple[Process, Process]], names: list[str]) -> Floats:
    times = np.array([[[p.benchmarks[name] for name in names] for p in pair] for pair in pairs])
    a, b = times.min(axis=0)
    return np.asarray(np.log(b / a))


def joined(comparison: Comparison, pairs: int) -> Comparison:
    """Return the same processes in units of at least so many pairs: neighbours are joined, a rest with the last."""
    units = len({p.unit for p in comparison.processes})
    if not units:
        raise ComparisonError("there are no processes")
    each = len({p.pair for p in comparison.processes}) // units
    together = -(-pairs // max(each, 1))
    last = max(units // together - 1, 0)
    found = [replace(p, unit=min(p.unit // together, last)) for p in comparison.processes]
    return replace(comparison, processes=found)


def pairs_of(processes: Iterable[Process]) -> list[tuple[Process, Process]]:
    sides: dict[int, dict[str, Process]] = {}
    for process in processes:
        both = sides.setdefault(process.pair, {})
        if process.side in both or process.side not in SIDES:
            raise ComparisonError(f"pair {process.pair} has side {process.side} twice or unknown")
        both[process.side] = process
    for pair, both in sides.items():
        if len(both) < len(SIDES):
            raise ComparisonError(f"pair {pair} has only side {next(iter(both))}")
        if both["A"].unit != both["B"].unit:
            raise ComparisonError(f"pair {pair} belongs to two units")
    return [(both["A"], both["B"]) for both in sides.values()]


def table(comparison: Comparison) -> list[VerdictRow]:
    """Return the verdicts about all benchmarks."""
    processes = comparison.processes
    if not processes:
        return []
    names = names_of(processes)
    found = verdicts(logs_of(processes, names))
    return [_row(processes, name, v) for name, v in zip(names, found, strict=True)]


def _row(processes: list[Process], name: str, verdict: Verdict) -> VerdictRow:
    a, b = (median(p.benchmarks[name] for p in processes if p.side == side) for side in SIDES)
    return VerdictRow(name, a, b, *verdict)


def read(path: Path) -> Comparison:
    """Read a comparison that `write` wrote.  Raises ComparisonError."""
    try:
        values: Any = json.loads(_text(path))
        return msgspec.convert({k: v for k, v in values.items() if k != "rows"}, Comparison)
    except (ValueError, AttributeError) as e:
        raise ComparisonError(f"{path} is no comparison: {e}") from e


def _text(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".gz":
        import gzip

        data = gzip.decompress(data)
    return data.decode("utf-8")
