# SPDX-License-Identifier: MIT
"""The object that `memslots perf --json` and `memslots scale --json` print.

docs/perf-json.md describes each key, and tests compare that text and real reports with these types.  The raw samples,
from which all other keys are derived, are in record.py.
"""

from __future__ import annotations

from typing import Any, TypedDict


class More(TypedDict, total=False):
    """Keys that only some rows have."""

    pattern: str  # of lookups: the stream of gfns, the way to look up (level), the slots (layout)
    level: str
    layout: str
    iteration_ns: float  # of cases that have whole iterations
    iteration_ops: int


class Row(More):
    """One case on one backend at one number of slots."""

    case: str
    backend: str
    n_slots: int | None  # None for traces, which have their own slots
    unit: str
    median: float
    low: float
    high: float
    p50: float
    p99: float
    p999: float
    group: int
    ops: int
    rounds: int
    values: list[float]  # the figure of each round
    disturbed: int  # rounds in which the machine was busy with other work
    checked: bool
    digest: str


class CrossoverRow(TypedDict):
    case: str
    user_mem_slots: int
    tree_from: float | None
    array_wins_at: list[int]
    tree_wins_at: list[int]
    busy_at: list[int]
    factors: dict[str, float]


class FitRow(TypedDict):
    case: str
    backend: str
    exponent: float
    sizes: int


class PublishedRow(TypedDict):
    case: str
    n_slots: int
    before_s: float
    after_s: float
    factor: float


class NotRun(TypedDict):
    case: str
    backend: str
    n_slots: int | None
    reason: str


class WrongAnswer(TypedDict):
    case: str
    backend: str
    n_slots: int | None
    what: str


class NoiseRow(TypedDict):
    """The other work of the machine: the highest readings of all rounds, and the number of busy cells."""

    cells: int
    busy_cells: int
    load: float | None
    others: float | None
    stolen: float | None
    switches: int
    reference_ns: float | None
    slower: float | None


class Report(TypedDict):
    """The keys that both reports share."""

    memslots: str
    command: str
    mode: str
    machine: dict[str, Any]  # fingerprint.Machine
    seed: int
    slots: list[int]
    rounds: int
    seconds: float
    clock_ns: float
    results: list[Row]
    published: list[PublishedRow]
    not_run: list[NotRun]
    skipped: list[str]
    wrong: list[WrongAnswer]
    noise: NoiseRow
    raw: dict[str, Any]  # record.PerfRaw or record.ScaleRaw


class PerfReport(Report):
    floor_ns: float
    kvm_refused_ns: float | None
    crossover: list[CrossoverRow]


class ScaleReport(Report):
    fits: list[FitRow]
    selftest: list[Row]
