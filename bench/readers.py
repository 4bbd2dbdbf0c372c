# SPDX-License-Identifier: MIT
"""Readers next to a writer, and a writer next to readers: `make bench-readers`.

It needs the package with its extra `perf`.  Every answer is checked.  A frame of the slot that the writer deletes and
creates has its address or is a hole.  The answers for all other frames never change.  All answers of a batch come from
one set.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from goals.scorecard import number
from goals.timing import quartiles
from goals.work import AUTO, WALK, Policy, Settings, Stage, simd_level, slots_of, stage
from goals.workers import (
    BATCH,
    SCALAR,
    Background,
    Batches,
    Reader,
    Scalar,
    Sections,
    Writer,
    run_for,
)
from tabulate import tabulate

import memslots
from memslots import VM
from memslots.lab import layouts
from memslots.lab.layouts import Numbers
from memslots.lab.machine import machine

SLOTS = 4096
THREADS = (1, 2, 4, 8)
PAUSE = 0.01  # seconds between two changes of the idle writer
NO_WRITER, IDLE, BUSY = "no writer", "idle writer", "a writer that never stops"
SECTION_GFNS = 100


@dataclass(frozen=True)
class Plan:
    on: Stage
    threads: tuple[int, ...]
    rounds: int
    seconds: float
    batch: int

    @property
    def victim(self) -> np.void:
        """The slot that the writer deletes and creates."""
        row: np.void = self.on.slots[len(self.on.slots) // 2]
        return row

    def vm(self, policy: Policy) -> VM:
        vm = self.on.vm(policy)
        vm.gfn_to_hva_many(self.on.gfns)  # builds the index, if the policy has one
        return vm


# ---- ways to read ---------------------------------------------------------------------------------


def one_by_one(plan: Plan, vm: VM) -> Reader:
    return Scalar(vm, plan.on.slots, plan.on.gfns[:SCALAR], plan.victim)


def in_batches(plan: Plan, vm: VM) -> Reader:
    return Batches(vm, plan.on.slots, plan.on.gfns[: plan.batch], plan.victim)


def by_vcpu(plan: Plan, vm: VM) -> Reader:
    gfns = layouts.hot(plan.on.slots, min(SCALAR, len(plan.on.gfns)))
    return Scalar(vm, plan.on.slots, gfns, plan.victim, vcpu=True)


def in_sections(plan: Plan, vm: VM) -> Reader:
    return Sections(vm, plan.on.slots, plan.on.gfns[:SECTION_GFNS], plan.victim)


class Kind(NamedTuple):
    name: str
    policy: Policy  # the index policy, which selects the path
    make: Callable[[Plan, VM], Reader]


GFN_KINDS = (
    Kind("lookups, tree", WALK, one_by_one),
    Kind("batches, tree", WALK, in_batches),
    Kind("lookups, index", AUTO, one_by_one),
    Kind("batches, index", AUTO, in_batches),
)
VCPU = Kind("vCPU lookups, hot", AUTO, by_vcpu)
SECTIONS = Kind("read sections of 1 ms", WALK, in_sections)


# ---- measurements ---------------------------------------------------------------------------------


@dataclass
class Throughput:
    """Lookups per second of all readers together.  `kept` is the ratio to the rate without a writer."""

    kind: str
    readers: int
    situation: str
    per_second: float
    low: float
    high: float
    kept: float
    rounds: list[float]  # raw


@dataclass
class Latency:
    """Microseconds of one change.  `rounds` has the times of all changes as histograms, in nanoseconds."""

    next_to: str
    readers: int
    changes: int
    p50: float
    p99: float
    max: float
    rounds: list[dict[str, list[int]]]  # raw: "ns", "count"


@dataclass
class Report:
    throughput: list[Throughput] = field(default_factory=list)
    latency: list[Latency] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self, threads: Sequence[Background], what: str) -> None:
        for thread in threads:
            if isinstance(thread, Reader) and thread.wrong:
                self.wrong.append(f"{what}: {thread.wrong} answers")
            if isinstance(thread, Writer) and thread.refused:
                self.wrong.append(f"{what}: {thread.refused} changes refused")


def measure_throughput(plan: Plan, report: Report) -> None:
    """Measure numbers of readers for which each reader and the writer have a CPU of their own, and at least one."""
    cpus = len(os.sched_getaffinity(0))
    fitting = [n for n in plan.threads if n < cpus] or [1]
    for kind in (*GFN_KINDS, VCPU):
        for n in fitting:
            measured: dict[str, list[float]] = {name: [] for name in (NO_WRITER, IDLE, BUSY)}
            for _ in range(plan.rounds):
                for name, rates in measured.items():
                    rates.append(one_rate(plan, report, kind, n, name))
            base = quartiles(measured[NO_WRITER])[1]
            for name, rates in measured.items():
                low, middle, high = quartiles(rates)
                report.throughput.append(
                    Throughput(kind.name, n, name, middle, low, high, middle / base, rates)
                )


def one_rate(plan: Plan, report: Report, kind: Kind, n: int, situation: str) -> float:
    vm = plan.vm(kind.policy)
    readers = [kind.make(plan, vm) for _ in range(n)]
    writers: Sequence[Background] = {
        NO_WRITER: [],
        IDLE: [Writer(vm, plan.victim, PAUSE)],
        BUSY: [Writer(vm, plan.victim)],
    }[situation]
    run_for(plan.seconds, [*writers, *readers])
    report.check([*readers, *writers], f"{n} readers, {kind.name}, {situation}")
    return sum(reader.per_second for reader in readers)


def measure_latency(plan: Plan, report: Report) -> None:
    report.latency.append(one_latency(plan, report, GFN_KINDS[0], 0))
    for kind in (*GFN_KINDS, SECTIONS):
        for n in plan.threads:
            report.latency.append(one_latency(plan, report, kind, n))


def one_latency(plan: Plan, report: Report, kind: Kind, n: int) -> Latency:
    """Percentiles over all changes of all rounds."""
    vm = plan.vm(kind.policy)
    times = []
    for _ in range(plan.rounds):
        readers = [kind.make(plan, vm) for _ in range(n)]
        writer = Writer(vm, plan.victim)
        run_for(plan.seconds, [*readers, writer])
        report.check([*readers, writer], f"a writer next to {n} readers, {kind.name}")
        times.append(writer.latencies)
    ns = np.concatenate(times)
    p50, p99, most = (float(us) for us in np.percentile(ns, [50, 99, 100]) / 1000)
    rounds = [histogram(of_one) for of_one in times]
    return Latency(kind.name if n else "no reader", n, len(ns), p50, p99, most, rounds)


def histogram(ns: Numbers) -> dict[str, list[int]]:
    """Return each time and its count: as exact as the list of times, and much shorter."""
    values, counts = np.unique(ns, return_counts=True)
    return {"ns": values.tolist(), "count": counts.tolist()}


# ---- output ---------------------------------------------------------------------------------------


def throughput_rows(report: Report) -> Iterator[list[str]]:
    yield ["readers", "number", *(f"{name}, M/s" for name in (NO_WRITER, IDLE, BUSY)), "kept"]
    for i in range(0, len(report.throughput), 3):
        of_one = report.throughput[i : i + 3]
        rates = [f"{number(t.per_second / 1e6)} ±{spread(t):.0%}" for t in of_one]
        yield [of_one[0].kind, str(of_one[0].readers), *rates, f"{of_one[2].kept:.2f}"]


def spread(t: Throughput) -> float:
    return (t.high - t.low) / 2 / t.per_second


def latency_rows(report: Report) -> Iterator[list[str]]:
    yield ["a change next to", "number", "changes", "p50, us", "p99, us", "max, us"]
    for row in report.latency:
        times = (number(us) for us in (row.p50, row.p99, row.max))
        yield [row.next_to, str(row.readers), f"{row.changes:,}", *times]


def table(rows: Iterator[list[str]], tablefmt: str) -> str:
    """The first row has the headers.  The first column is aligned to the left, the others to the right."""
    headers, *body = rows
    columns = ("left", *["right"] * (len(headers) - 1))
    return tabulate(body, headers, tablefmt, disable_numparse=True, colalign=columns)


def as_json(plan: Plan, report: Report, seconds: float) -> dict[str, Any]:
    return {
        "memslots": memslots.__version__,
        "machine": machine(),
        "simd": simd_level(),
        "slots": len(plan.on.slots),
        "threads": plan.threads,
        "batch": plan.batch,
        "rounds": plan.rounds,
        "seconds": round(seconds, 1),
        **asdict(report),
    }


# ---- the command ----------------------------------------------------------------------------------


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="readers", description=__doc__)
    parser.add_argument(
        "--threads", nargs="+", type=int, default=THREADS, metavar="N", help="numbers of readers"
    )
    parser.add_argument("--slots", type=int, default=SLOTS, metavar="N")
    parser.add_argument("--batch", type=int, default=BATCH, metavar="N", help="gfns in one batch")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument(
        "--seconds", type=float, default=0.3, metavar="S", help="length of a round of one figure"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="writes every figure and its samples"
    )
    parser.add_argument("--markdown", action="store_true", help="prints tables in Markdown")
    parser.add_argument(
        "--quick", action="store_true", help="test the tool in a few seconds; figures do not count"
    )
    return parser.parse_args(argv)


def plan_of(args: argparse.Namespace) -> Plan:
    if args.quick:
        return Plan(stage(64, Settings(queries=20_000)), (1, 2), 1, 0.02, BATCH)
    return Plan(
        stage(args.slots, Settings(queries=100_000)),
        tuple(args.threads),
        args.rounds,
        args.seconds,
        args.batch,
    )


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    plan, report, began = plan_of(args), Report(), time.monotonic()
    measure_throughput(plan, report)
    measure_latency(plan, report)
    seconds = time.monotonic() - began
    if args.json:
        text = json.dumps(as_json(plan, report, seconds))  # an indent would give each sample a line
        args.json.write_text(f"{text}\n", encoding="utf-8")
    tablefmt = "pipe" if args.markdown else "plain"
    for rows in (throughput_rows(report), latency_rows(report)):
        print(table(rows, tablefmt), end="\n\n")
    print("\n".join(f"WRONG: {wrong}" for wrong in report.wrong))
    cpus = len(os.sched_getaffinity(0))
    print(
        f"readers: {slots_of(len(plan.on.slots))}, {cpus} CPUs, {seconds:.0f} s; {len(report.wrong)} wrong"
    )
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
