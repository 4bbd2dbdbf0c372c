# SPDX-License-Identifier: MIT
"""bursts.py - the swaps that the packaged QEMU traces need: each change alone, and each burst as one transaction.

A machine changes its memory map in bursts: a BAR that moves, a reset, a mode of the PAM registers.  A burst is a series
of accepted changes with less than --gap microseconds between two of them and no other call in between.  One by one each
change costs one or two swaps, and readers see every state in between.  `VM.apply` of the state at the end of the burst
costs one swap, or none where the burst changes nothing in the end.

    python -m bench.bursts

A trace with two address spaces is played in address space 0 only.  Swaps are counted by VM.stats().
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from memslots import MEMSLOT_DTYPE, VM
from memslots.layout import apply_layout
from memslots.traces import vectors
from memslots.traces.regions import Region, Regions, machine_of, region_of
from memslots.traces.schema import CHANGES, unpack_slot

Change = tuple[int, Region]


class Counts(NamedTuple):
    trace: str
    changes: int
    bursts: int
    swaps_one_by_one: int
    swaps_as_bursts: int

    @property
    def ratio(self) -> float:
        return self.swaps_one_by_one / self.swaps_as_bursts


def bursts(file: vectors.VectorFile, gap: int) -> Iterator[list[Change]]:
    """Yield the bursts of a trace.  A call that reads a dirty log or touches a vCPU ends a burst."""
    burst: list[Change] = []
    last = 0
    for op in file.ops:
        accepted = op.kind in CHANGES and op.fields["ret"] == 0
        time = op.fields.get("t_us", last)
        if burst and (not accepted or time - last >= gap):
            yield burst
            burst = []
        last = time
        if accepted and unpack_slot(op.fields["slot"])[1] == 0:
            burst.append((op.fields["slot"], region_of(op.fields)))
    if burst:
        yield burst


def one_by_one(vm: VM, series: list[list[Change]]) -> int:
    for slot, region in (change for burst in series for change in burst):
        vm.set_user_memory_region(
            slot,
            guest_phys_addr=region.gpa,
            memory_size=region.size,
            userspace_addr=region.hva,
            flags=region.flags,
        )
    return vm.stats()["swaps"]


def as_bursts(vm: Any, series: list[list[Change]]) -> int:
    """Apply the state after each burst; at the end the VM has the slots of the trace, with their ids."""
    regions = Regions()
    for burst in series:
        for slot, region in burst:
            regions.change(slot, region)
        apply_layout(vm, rows_of(regions), coalesce=False, keep_ids=False)
    np.testing.assert_array_equal(np.sort(vm.memslots_array(), order="base_gfn"), rows_of(regions))
    return int(vm.stats()["swaps"])


def rows_of(regions: Regions) -> np.ndarray:
    rows = [
        (r.gpa >> 12, r.size >> 12, r.hva, slot, 0, r.flags) for slot, r in regions.slots.items()
    ]
    return np.sort(np.array(rows, MEMSLOT_DTYPE), order="base_gfn")


def count(file: vectors.VectorFile, gap: int) -> Counts:
    series = list(bursts(file, gap))
    machine = machine_of(file.header)._asdict()
    with VM(**machine) as vm:
        alone = one_by_one(vm, series)
    with VM(**machine) as vm:
        together = as_bursts(vm, series)
    return Counts(vectors.stem(file.path), sum(map(len, series)), len(series), alone, together)


def table(counts: list[Counts]) -> str:
    total = Counts(
        f"all {len(counts)} traces",
        *(sum(column) for column in list(zip(*counts, strict=True))[1:]),
    )
    rows = [(*c, c.ratio) for c in [*counts, total]]
    heads = ["trace", "changes", "bursts", "swaps one by one", "swaps as bursts", "ratio"]
    return tabulate(rows, heads, tablefmt="github", intfmt=",", floatfmt=".1f")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gap", type=int, default=1000, help="microseconds (default: %(default)s)")
    args = parser.parse_args(argv)
    if not hasattr(VM, "_change_many"):
        print("bursts: NOT run: this build has no transactions")
        return 2
    print(table([count(vectors.read(path), args.gap) for path in vectors.packaged_traces()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
