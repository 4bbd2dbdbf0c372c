# SPDX-License-Identifier: MIT
"""`memslots perf`: plays real QEMU traces through the engine and shows what each kind of operation costs.

Every result is compared with the one that a real Linux recorded while it is timed; a mismatch makes the command
fail.  Where /dev/kvm opens, this machine's kernel plays the same changes.  Backends take turns, trace by trace and
round by round, so that a busy moment of the machine hits them alike; medians are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from . import __version__, kvm, player, vectors
from ._memslots import backends

#: What a trace shows, by words of its file name, first match first.
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

ROUNDS = 25
QUICK_ROUNDS = 5

#: Kernel changes wait for a grace period, which costs several times more away from the CPU that runs its work.
KVM_CPU = 0

Times = dict[str, list[int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `memslots perf`."""
    parser.add_argument("--rounds", type=_positive, default=ROUNDS, help=f"repetitions ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--no-kvm", action="store_true", help="leave this machine's kernel out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def run(args: argparse.Namespace) -> int:
    """Measures, prints; 0, or 1 when a result was not the recorded one."""
    rounds = QUICK_ROUNDS if args.quick else args.rounds
    names, skipped = _backends(not args.no_kvm)
    start = perf_counter()
    with _on_one_cpu("kvm" in names):
        measured = _Measured(names)
        measured.play_all(rounds)
        floor = _floor()
    report = _report(measured, rounds, floor, skipped, perf_counter() - start)
    print(json.dumps(report, indent=1)) if args.json else _print(report)
    return 1 if report["mismatches"] else 0


def _backends(with_kvm: bool) -> tuple[list[str], list[str]]:
    """Who plays, and who does not and why."""
    names = list(backends())
    reason = kvm.available() if with_kvm else "--no-kvm"
    if reason is None:
        return [*names, "kvm"], []
    return names, [f"the real kernel: {reason}"]


@contextmanager
def _on_one_cpu(wanted: bool) -> Iterator[None]:
    if not wanted or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        if KVM_CPU in before:
            os.sched_setaffinity(0, {KVM_CPU})
        yield
    finally:
        os.sched_setaffinity(0, before)


# ---- measuring ----------------------------------------------------------------------------------


class _Measured:
    """The times of all rounds, by backend, scenario and kind."""

    def __init__(self, names: list[str]) -> None:
        self.times: dict[str, dict[str, Times]] = {name: {} for name in names}
        self.results: dict[str, list[player.PlayResult]] = {name: [] for name in names}
        self.files = [vectors.read(path) for path in vectors.packaged_traces()]

    def play_all(self, rounds: int) -> None:
        terminal = sys.stderr.isatty()
        with tqdm(total=rounds, unit="round", delay=1, disable=not terminal, leave=False) as bar:
            for _ in range(rounds):
                for file in self.files:
                    for name in self.times:
                        self._play(name, file)
                bar.update()

    def _play(self, name: str, file: vectors.VectorFile) -> None:
        times = self.times[name].setdefault(scenario(file.path), {})
        with closing(player.open_backend(name, file.header)) as vm:
            self.results[name].append(player.play(file, vm, timings=times))

    def all_times(self, name: str, kind: str) -> list[int]:
        return [ns for times in self.times[name].values() for ns in times.get(kind, [])]


def scenario(path: str) -> str:
    """What the trace at `path` shows."""
    stem = Path(path).name.removesuffix(".gz").removesuffix(".jsonl")
    return next(name for name, words in SCENARIOS if any(word in stem for word in words))


def _floor() -> float:
    """What the clock and an empty method call cost, in ns: part of every time below."""
    call: Callable[[], object] = object().__hash__
    ns = []
    for _ in range(2000):
        start = perf_counter_ns()
        call()
        ns.append(perf_counter_ns() - start)
    return float(np.median(ns))


# ---- reporting ----------------------------------------------------------------------------------


def _report(
    measured: _Measured, rounds: int, floor: float, skipped: list[str], seconds: float
) -> dict[str, Any]:
    results = [r for results in measured.results.values() for r in results]
    return {
        "memslots": __version__,
        "machine": machine(),
        "seed": None,  # nothing here is random
        "rounds": rounds,
        "seconds": round(seconds, 2),
        "floor_ns": floor,
        "files": len(measured.files),
        "played": sum(r.ops for r in results),
        "not_compared": sum(r.not_compared for r in results),
        "mismatches": [str(m) for r in results for m in r.mismatches],
        "skipped": skipped,
        "results": list(_by_kind(measured)) + list(_by_scenario(measured, rounds)),
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from .cli import machine_info

    return {"platform": platform.platform(), "python": platform.python_version(), **machine_info()}


def _by_kind(measured: _Measured) -> Iterator[dict[str, Any]]:
    for kind in KINDS:
        for name in measured.times:
            if ns := measured.all_times(name, kind):
                yield _row(f"replay/{kind}", name, ns, _clean(measured, name))


def _row(case: str, backend: str, ns: list[int], checked: bool) -> dict[str, Any]:
    p50, p99, p999 = (float(p) for p in np.percentile(ns, [50, 99, 99.9]))
    return {
        "case": case,
        "backend": backend,
        "n_slots": None,  # as many as the trace has at that moment
        "unit": "ns",
        "median": p50,
        "p50": p50,
        "p99": p99,
        "p999": p999,
        "ops": len(ns),
        "checked": checked,
    }


def _clean(measured: _Measured, name: str) -> bool:
    return not any(result.mismatches for result in measured.results[name])


def _by_scenario(measured: _Measured, rounds: int) -> Iterator[dict[str, Any]]:
    """All operations of a scenario, mean per operation: what a whole boot or migration asks of the engine."""
    for name, _ in SCENARIOS:
        for backend, scenarios in measured.times.items():
            ns = [t for times in scenarios.get(name, {}).values() for t in times]
            if ns:
                row = _row(f"scenario/{name}", backend, ns, _clean(measured, backend))
                yield row | {"total_per_round": sum(ns) / rounds}


def _print(report: dict[str, Any]) -> None:
    _print_checked(report)
    print(_kinds_table(report))
    print()
    print(_scenarios_table(report))
    for reason in report["skipped"]:
        print(f"skipped: {reason}")
    print(
        f"Times are of calls from Python; an empty one measures {report['floor_ns']:.0f} ns."
        " Medians; p99 in brackets."
    )


def _print_checked(report: dict[str, Any]) -> None:
    for mismatch in report["mismatches"][:20]:
        print(mismatch)
    print(
        f"{report['files']} real QEMU traces, {report['rounds']} rounds, "
        f"{report['played']:,} operations played in {report['seconds']} s: "
        f"{len(report['mismatches'])} results differ from what Linux answered.\n"
    )


def _rows_of(report: dict[str, Any], prefix: str) -> dict[str, dict[str, dict[str, Any]]]:
    """case -> backend -> row."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in report["results"]:
        if row["case"].startswith(prefix):
            found.setdefault(row["case"].removeprefix(prefix), {})[row["backend"]] = row
    return found


def _kinds_table(report: dict[str, Any]) -> str:
    rows = _rows_of(report, "replay/")
    names = list(dict.fromkeys(name for by_backend in rows.values() for name in by_backend))
    table = [
        [kind, max(r["ops"] for r in by_backend.values()) // report["rounds"]]
        + [_cell(by_backend.get(name)) for name in names]
        for kind, by_backend in rows.items()
    ]
    return tabulate(
        table, ["operation", "a round", *names], colalign=("left", *["right"] * (len(names) + 1))
    )


def _cell(row: dict[str, Any] | None) -> str:
    return f"{_time(row['median'])} ({_time(row['p99'])})" if row else "-"


def _time(ns: float) -> str:
    for unit, size in (("ns", 1), ("us", 1e3), ("ms", 1e6)):
        if ns < 1000 * size:
            break
    digits = 0 if unit == "ns" else 1
    return f"{ns / size:.{digits}f} {unit}"


def _scenarios_table(report: dict[str, Any]) -> str:
    rows = _rows_of(report, "scenario/")
    names = list(dict.fromkeys(name for by_backend in rows.values() for name in by_backend))
    table = [
        [name, max(r["ops"] for r in by_backend.values()) // report["rounds"]]
        + [_total(by_backend.get(backend)) for backend in names]
        for name, by_backend in rows.items()
    ]
    return tabulate(
        table,
        ["whole traces", "operations", *names],
        colalign=("left", *["right"] * (len(names) + 1)),
    )


def _total(row: dict[str, Any] | None) -> str:
    return _time(row["total_per_round"]) if row else "-"
