# SPDX-License-Identifier: MIT
"""dask_translate.py - translate a trace of guest frames with a snapshot, on the workers of a Dask cluster.

    pip install memslots "dask[distributed]" tqdm
    python examples/dask_translate.py --gfns 100000000

The trace is a file of uint64 gfns.  A worker gets (path, lo, hi) and reads its part of the file itself.  Never pass the
array: Dask would pickle it, send it through the scheduler, and kill workers whose memory it fills.  The snapshot is
small (40 bytes for each slot); `scatter` sends it once to each worker.  A worker returns three numbers, not addresses.

The program translates the trace in one process first, then on the workers, and compares the sums of all addresses.  On
a cluster of many machines, replace LocalCluster by the address of the scheduler; the path must exist on each machine.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from memslots import HVA_ERR_MIN, MEMSLOT_DTYPE, VM, Snapshot

GFN_BYTES = 8


class Answer(NamedTuple):
    """The result for a part of the trace.  Sums of uint64 wrap, so the order of the parts does not matter."""

    gfns: int
    holes: int
    checksum: int

    def plus(self, other: "Answer") -> "Answer":
        total = (self.checksum + other.checksum) % 2**64
        return Answer(self.gfns + other.gfns, self.holes + other.holes, total)


@lru_cache(maxsize=1)
def machine(snapshot: Snapshot) -> VM:
    """Return a VM with the slots of the snapshot, made once in each process: its index answers in nanoseconds."""
    vm = VM(user_mem_slots=max(len(snapshot), 1))
    vm.load_memslots(snapshot.array)
    return vm


def translate(path: str, lo: int, hi: int, snapshot: Snapshot) -> Answer:
    """Translate gfns lo to hi - 1 of the file.  This is all that a worker runs."""
    gfns = np.fromfile(path, np.uint64, count=hi - lo, offset=lo * GFN_BYTES)
    hvas = machine(snapshot).gfn_to_hva_many(gfns)
    holes = hvas >= np.uint64(HVA_ERR_MIN)
    return Answer(len(gfns), int(np.count_nonzero(holes)), int(np.add.reduce(hvas[~holes])))


# ---- the trace and the snapshot ------------------------------------------------------------------


def make_snapshot(slots: int, seed: int) -> Snapshot:
    """Slots of 1 to 64 pages with a hole of up to 15 pages after each, and host addresses in random order."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(slots, MEMSLOT_DTYPE)
    rows["npages"] = rng.integers(1, 65, slots)
    size = rows["npages"] + rng.integers(0, 16, slots).astype(np.uint64)
    rows["base_gfn"] = np.cumsum(size) - size
    rows["userspace_addr"] = (rng.permutation(slots).astype(np.uint64) + np.uint64(1)) << np.uint64(
        20
    )
    rows["id"] = np.arange(slots)
    return Snapshot(rows, 0, 0)


def parts(total: int, size: int) -> Iterator[tuple[int, int]]:
    return ((lo, min(lo + size, total)) for lo in range(0, total, size))


def make_trace(path: Path, gfns: int, size: int, snapshot: Snapshot, seed: int) -> None:
    """Write random gfns; the file is mapped and filled part by part, so its size does not matter for memory."""
    last = snapshot.array[-1]
    end = int(last["base_gfn"] + last["npages"])
    trace = np.memmap(path, np.uint64, "w+", shape=(gfns,))
    rng = np.random.default_rng(seed)
    for lo, hi in parts(gfns, size):
        trace[lo:hi] = rng.integers(0, end, hi - lo, dtype=np.uint64)
    trace.flush()


# ---- the two ways ----------------------------------------------------------------------------------


def bar(gfns: int, title: str) -> "tqdm[None]":
    return tqdm(total=gfns, unit="gfn", unit_scale=True, desc=title, disable=None)


def in_one_process(path: Path, gfns: int, size: int, snapshot: Snapshot) -> tuple[Answer, float]:
    machine(snapshot)
    begin, answer = time.perf_counter(), Answer(0, 0, 0)
    with bar(gfns, "one process") as progress:
        for lo, hi in parts(gfns, size):
            answer = answer.plus(translate(str(path), lo, hi, snapshot))
            progress.update(hi - lo)
    return answer, time.perf_counter() - begin


@contextmanager
def cluster_of(workers: int, path: Path, snapshot: Snapshot) -> Iterator[tuple[Any, Any]]:
    """Yield the client of a cluster, and the snapshot there.  Each worker has its imports and its VM."""
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers)
        sent = client.scatter(snapshot, broadcast=True)
        for worker in client.scheduler_info()["workers"]:
            client.submit(translate, str(path), 0, 0, sent, pure=False, workers=[worker]).result()
        yield client, sent


def on_workers(path: Path, gfns: int, size: int, client: Any, sent: Any) -> tuple[Answer, float]:
    """The time is that of the translation.  The start of the cluster, its imports and the VM are not part of it."""
    from dask.distributed import as_completed

    begin, answer = time.perf_counter(), Answer(0, 0, 0)
    with bar(gfns, "on the workers") as progress:
        jobs = [
            client.submit(translate, str(path), lo, hi, sent, pure=False)
            for lo, hi in parts(gfns, size)
        ]
        for job in as_completed(jobs):
            part = Answer(*job.result())  # raises the exception of a worker
            answer = answer.plus(part)
            progress.update(part.gfns)
    return answer, time.perf_counter() - begin


def report(gfns: int, alone: float, together: float, workers: int) -> str:
    cpus = len(os.sched_getaffinity(0))
    lines = [
        f"one process: {alone:8.2f} s, {gfns / alone / 1e6:8.1f} million gfns/s",
        f"{workers} workers:   {together:8.2f} s, {gfns / together / 1e6:8.1f} million gfns/s",
        f"{workers} workers on {cpus} CPUs are {alone / together:.2f} times as fast as one process.",
    ]
    if alone <= together:
        lines.append("Here the cluster gains nothing: its own work costs more than more CPUs save.")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--gfns", type=int, default=100_000_000, help="length of the trace (default: %(default)s)"
    )
    parser.add_argument(
        "--slots", type=int, default=32_764, help="slots of the snapshot (default: %(default)s)"
    )
    parser.add_argument(
        "--part", type=int, default=1 << 23, help="gfns of one job (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--folder", type=Path, help="where the trace is written (default: a temporary folder)"
    )
    args = parser.parse_args(argv)

    snapshot = make_snapshot(args.slots, args.seed)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "trace.u64"
        make_trace(path, args.gfns, args.part, snapshot, args.seed)
        print(f"{args.gfns:,} gfns in {path.stat().st_size / 1e6:,.0f} MB, {len(snapshot):,} slots")
        alone, alone_s = in_one_process(path, args.gfns, args.part, snapshot)
        with cluster_of(args.workers, path, snapshot) as (client, sent):
            together, together_s = on_workers(path, args.gfns, args.part, client, sent)
    print(report(args.gfns, alone_s, together_s, args.workers))
    if alone != together:
        print(f"the answers differ: {alone} in one process, {together} on the workers")
        return 1
    print(f"equal answers: {alone.holes:,} gfns in holes, checksum {alone.checksum:#018x}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
