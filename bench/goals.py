# SPDX-License-Identifier: MIT
"""Where the goals P1 to P10 stand: each yardstick and this engine in turns, in one run; prints a table of ratios.

P3 asks what a derived index costs where it does not pay: there is none yet.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import memslots
from memslots import HVA_ERR_BAD, MEMSLOT_DTYPE, VM
from memslots._memslots import REGION_DTYPE, time_changes, time_lookups

ROOT = Path(__file__).parents[1]
SIZES = (8, 64, 509, 4096, 32764, 1_000_000)
QUERIES = 1_000_000
ROUNDS = 5
FLOOR = """
cdef class Floor:
    def call(self, unsigned long long number):
        return number
"""


def turns(*calls: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Median seconds of each, taken in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            start = perf_counter()
            call()
            own.append(perf_counter() - start)
    return [statistics.median(own) for own in times]


def filled(n: int) -> tuple[VM, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A VM of slots of 1 to 512 pages with holes, the slots by gfn, and random gfns."""
    rng = np.random.default_rng(n)
    rows = np.zeros(n, MEMSLOT_DTYPE)
    rows["npages"] = rng.integers(1, 513, n)
    spans = rows["npages"] + rng.integers(0, 129, n).astype("u8")
    rows["base_gfn"] = np.cumsum(spans) - spans
    rows["id"] = rng.permutation(n)
    rows["userspace_addr"] = (1 << 44) + rows["base_gfn"] * 4096
    vm = VM(user_mem_slots=max(n, 32764))
    vm.load_memslots(rows[rng.permutation(n)])
    return vm, rows, rng.integers(0, int(rows["base_gfn"][-1]) + 600, QUERIES).astype("u8")


def with_numpy(rows: np.ndarray[Any, Any], gfns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    at = np.maximum(np.searchsorted(rows["base_gfn"].copy(), gfns, side="right"), 1) - 1
    page = gfns - rows["base_gfn"][at]
    hva = rows["userspace_addr"][at] + (page << np.uint64(12))
    return np.where(page < rows["npages"][at], hva, np.uint64(HVA_ERR_BAD))


def batches(n: int) -> tuple[str, str, str]:
    vm, rows, gfns = filled(n)
    out, copy = np.empty_like(gfns), np.empty_like(gfns)
    numpy, ours, copied = turns(
        lambda: with_numpy(rows, gfns),
        lambda: vm.gfn_to_hva_many(gfns, out=out),
        lambda: np.copyto(copy, gfns),
    )
    assert (out == with_numpy(rows, gfns)).all()
    return f"{numpy / ours:.1f}", f"{ours / copied:.0f}", f"{vm.stats()['bytes'] / n:.0f}"


def floor_class(folder: Path) -> Any:
    """The Cython method that P4 names, built here."""
    source, c_file = folder / "floor_.pyx", folder / "floor_.c"
    module = folder / f"floor_{sysconfig.get_config_var('EXT_SUFFIX')}"
    source.write_text(FLOOR, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "cython", "-3", str(source)], check=True)
    compile_c(module, [str(c_file)], ["-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"])
    spec = importlib.util.spec_from_file_location("floor_", module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded.Floor()


def compile_c(target: Path, sources: list[str], flags: list[str]) -> None:
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    command = [*compiler, "-O3", "-DNDEBUG", *flags, *sources, "-lpthread", "-o", str(target)]
    subprocess.run(command, check=True)


def scalar(floor: Any, n: int, hot: bool) -> str:
    vm, rows, gfns = filled(n)
    inside = gfns[vm.gfn_to_hva_many(gfns) < HVA_ERR_BAD][:100_000].tolist()
    numbers = [int(rows["base_gfn"][0])] * len(inside) if hot else inside
    answers = [0x7F0000000000 + number for number in numbers]  # as large as host addresses are

    def yardstick(call: Callable[[int], int] = floor.call) -> None:
        for number in answers:
            call(number)

    def ours(call: Callable[[int], int] = vm.gfn_to_hva) -> None:
        for number in numbers:
            call(number)

    base, own = turns(yardstick, ours, rounds=3 * ROUNDS)
    return f"{own / base:.1f}"


def two_threads() -> str:
    """How much more two threads of batches do than one."""
    vm, _, gfns = filled(4096)
    outs = [np.empty_like(gfns), np.empty_like(gfns)]

    def both() -> None:
        threads = [
            threading.Thread(target=vm.gfn_to_hva_many, args=(gfns,), kwargs={"out": out})
            for out in outs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    one, two = turns(lambda: vm.gfn_to_hva_many(gfns, out=outs[0]), both)
    return f"{2 * one / two:.2f} of 2"


def beside_a_writer() -> tuple[str, str]:
    """A reader's throughput beside a writer that never stops, and the writer's times beside it."""
    vm, rows, gfns = filled(4096)
    changes = np.zeros(20_000, REGION_DTYPE)
    changes["slot"], changes["guest_memfd"] = rows["id"][7], -1
    for field, scale in (("guest_phys_addr", "base_gfn"), ("memory_size", "npages")):
        changes[field] = rows[scale][7] * 4096
    changes["userspace_addr"] = rows["userspace_addr"][7]
    changes["memory_size"][::2] = 0  # delete, create, delete, ...
    stop, times = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            ns, results = time_changes(vm, changes)
            assert not results.any()
            times.append(ns)

    def read() -> float:
        ns, _ = time_lookups(vm, "gfn_to_hva", gfns, group=1000)
        return float(ns.sum())

    alone = statistics.median(read() for _ in range(ROUNDS))
    writer = threading.Thread(target=write)
    writer.start()
    beside = statistics.median(read() for _ in range(ROUNDS))
    stop.set()
    writer.join()
    p50, p99, most = np.percentile(np.concatenate(times), [50, 99, 100]) / 1000
    return f"{alone / beside:.2f}", f"p50 {p50:.1f}, p99 {p99:.1f}, max {most:.0f} us"


def imports() -> str:
    def start(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    numpy, ours = turns(start("import numpy"), start("import memslots"), rounds=9)
    return f"{ours / numpy:.2f}"


def core(folder: Path) -> dict[str, dict[str, float]]:
    program, source = folder / "goals", ROOT / "src" / "_core"
    files = [str(ROOT / "bench" / "core" / "goals.c"), *map(str, sorted(source.glob("*.c")))]
    compile_c(program, files, ["-std=gnu11", f"-I{source}", f"-I{source / 'include'}"])
    out = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    by_size: dict[str, dict[str, float]] = json.loads(out)
    return by_size


def table(folder: Path) -> list[tuple[str, str, str]]:
    many = [batches(n) for n in SIZES]
    c, floor = core(folder), floor_class(folder)
    disturbed, writer = beside_a_writer()
    sizes = [n for n in c if n in ("64", "509", "4096", "32764")]
    return [
        ("P1", "numpy searchsorted / batch", ", ".join(m[0] for m in many)),
        ("P2", "batch / np.copyto", ", ".join(m[1] for m in many)),
        ("P4", "scalar / Cython method, hot at 64", scalar(floor, 64, True)),
        ("P4", "... random at 64, 4,096", ", ".join(scalar(floor, n, False) for n in (64, 4096))),
        ("P5", f"KVM's layout / tree search at {', '.join(sizes)}",
         ", ".join(f"{c[n]['kvm_search'] / c[n]['search']:.2f}" for n in sizes)),
        ("P6", f"delete + create / bare edits at {', '.join(sizes)}",
         ", ".join(f"{c[n]['changes'] / c[n]['bare_edits']:.1f}" for n in sizes)),
        ("P6", "delete + create, 32,764 / 64 slots",
         f"{c['32764']['changes'] / c['64']['changes']:.1f}"),
        ("P7", "id lookup, 32,764 / 64 slots", f"{c['32764']['id'] / c['64']['id']:.1f}"),
        ("P8", "bytes a slot", ", ".join(m[2] for m in many)),
        ("P9", "two threads of batches", two_threads()),
        ("P9", "a reader beside a writer that never stops, of its own", disturbed),
        ("P9", "... the writer's changes meanwhile", writer),
        ("P10", "import memslots / import numpy", imports()),
    ]  # fmt: skip


def main() -> None:
    print(f"memslots {memslots.__version__}, {os.cpu_count()} CPUs; sizes {SIZES}")
    with tempfile.TemporaryDirectory() as folder:
        for goal, what, ratio in table(Path(folder)):
            print(f"{goal:<4} {what:<55} {ratio}")


if __name__ == "__main__":
    main()
