# SPDX-License-Identifier: MIT
"""plans_on_kvm.py - run random plans on /dev/kvm, ioctl by ioctl, in one VM, and count the refusals.

Each plan leads from the layout that the plan before it has left to a new random layout.  After each plan, the tool
compares the slots that the kernel accepted with the final layout of the plan.  The same steps also run on an engine of
this package, whose slots must be the final layout too.

It prints one line for each 50,000 plans and one at the end.  With -o it also writes a table of the counts into a file,
each time anew.  It ends at the first refusal or difference with exit status 1, and removes the file: so each counted
ioctl was accepted, and each counted plan left the layout that it promised.
"""

import argparse
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
from table_figures import markdown

from memslots import VM, MemslotsError, kvm, plan
from memslots.listener import ChangeKind

PAGE = 4096
LOG, READONLY = 1, 2
MOST_SLOTS = 12
HEADER = ("random plans on /dev/kvm", "")
ROOM = 64  # guest frames; a small guest makes moves wait for each other


class Layouts:
    """Random layouts that share memory with the layout before, mostly at other places."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.memories = [(1 + k % 5, (k + 1) << 24) for k in range(16)]

    def next(self, rows: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Return runs without overlap: the memory of the rows, less some, more some, often in a new order."""
        r = self.random
        if r.random() < 0.2:  # everything stays in its place
            return [(b, n, h, f ^ LOG * (r.random() < 0.3)) for b, n, h, f in fields_of(rows)]
        runs = [(n, h, f) for _, n, h, f in fields_of(rows) if r.random() < 0.9]
        while len(runs) < MOST_SLOTS and r.random() < 0.6:
            runs.append((*r.choice(self.memories), r.choice((0, 0, 0, LOG, READONLY))))
        if r.random() < 0.8:
            r.shuffle(runs)
        return self._placed([self._changed(run) for run in runs])

    def _changed(self, run: tuple[int, int, int]) -> tuple[int, int, int]:
        npages, hva, flags = run
        if self.random.random() < 0.1:
            return npages, hva, flags ^ LOG
        return (npages + 1, hva, flags) if self.random.random() < 0.05 else run

    def _placed(self, runs: list[tuple[int, int, int]]) -> list[tuple[int, int, int, int]]:
        """Put the runs one after the other, with the free frames spread between them."""
        free = max(0, ROOM - sum(npages for npages, _, _ in runs))
        base, placed = 0, []
        for npages, hva, flags in runs:
            gap = self.random.randint(0, min(free, 3))
            free -= gap
            placed.append((base + gap, npages, hva, flags))
            base += gap + npages
        return placed


def fields_of(rows: np.ndarray) -> list[tuple[int, int, int, int]]:
    return rows[["base_gfn", "npages", "userspace_addr", "flags"]].tolist()


class Run:
    def __init__(self, seed: int) -> None:
        self.layouts = Layouts(seed)
        self.kernel, self.engine = kvm.KvmVM(), VM()
        self.rows = self.engine.memslots_array()
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.kernel.close()
        self.engine.close()

    def one(self) -> None:
        """Make one plan and carry it out on both.  AssertionError or MemslotsError: the plan is wrong."""
        keep_ids = self.layouts.random.random() < 0.8
        made = plan(self.rows, self.layouts.next(self.rows), keep_ids=keep_ids, coalesce=False)
        for step in made:
            self.kernel.set_user_memory_region(**step)
            self.engine.set_user_memory_region(**step)
            self.counts[step.op.name] += 1
        self.rows = made.final
        self.counts["plans"] += 1
        self.counts["not proven"] += not made.optimal
        self._compare()

    def _compare(self) -> None:
        np.testing.assert_array_equal(self.engine.memslots_array(), self.rows)
        names = ("id", "base_gfn", "npages")
        there = sorted(self.rows[list(names)].tolist())
        kept = sorted(
            (slot, r.gpa // PAGE, r.size // PAGE) for (_, slot), r in self.kernel._regions.items()
        )
        assert kept == there, f"the kernel has {kept}, the plan {there}"

    def calls(self) -> int:
        return sum(self.counts[kind.name] for kind in ChangeKind)

    def report(self, seconds: float) -> str:
        kinds = ", ".join(f"{count:,} {kind.name}" for kind, count in self.kinds())
        return (
            f"{self.counts['plans']:,} plans, {self.calls():,} calls ({kinds}), 0 refused, "
            f"{self.counts['not proven']:,} not proven to be the shortest, {seconds:.0f} s"
        )

    def kinds(self) -> list[tuple[ChangeKind, int]]:
        return [(kind, self.counts[kind.name]) for kind in ChangeKind if self.counts[kind.name]]

    def table(self, seed: int) -> Iterator[tuple[str, str]]:
        """Yield the rows of the file."""
        plans = self.counts["plans"]
        yield "command", f"`python tools/plans_on_kvm.py --plans {plans} --seed {seed}`"
        yield "date, kernel", f"{date.today()}, {platform.system()} {platform.release()}"
        yield "plans carried out in one VM", f"{plans:,}"
        yield "ioctls, all accepted", f"{self.calls():,}"
        for kind, count in self.kinds():
            yield f"... {kind.name}", f"{count:,}"
        yield "plans not proven to be the shortest", f"{self.counts['not proven']:,}"


def written(rows: Iterator[tuple[str, str]]) -> str:
    return markdown([HEADER, ("---", "---"), *rows])


def run(plans: int, seed: int, every: int = 50_000, file: Path | None = None) -> str:
    """Run the plans in one VM of the kernel; return the closing line.  Raises at the first refusal or difference."""
    begin = time.monotonic()
    with Run(seed) as r:
        for number in range(1, plans + 1):
            try:
                r.one()
            except (MemslotsError, AssertionError) as e:
                if file:
                    file.unlink(missing_ok=True)
                raise RuntimeError(f"plan {number} of seed {seed}: {e}") from e
            if number % every and number < plans:
                continue
            if file:
                file.write_text(written(r.table(seed)), encoding="utf-8")
            if number < plans:
                print(r.report(time.monotonic() - begin), flush=True)
        return r.report(time.monotonic() - begin)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--plans", type=int, default=10_000, help="the number of plans (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="the file for the table of counts")
    args = parser.parse_args(argv)
    if reason := kvm.available():
        print(f"plans_on_kvm: NOT run: {reason}")
        return 2
    print(f"kernel {platform.release()}, seed {args.seed}", flush=True)
    try:
        print("plans on /dev/kvm:", run(args.plans, args.seed, file=args.output))
    except RuntimeError as e:
        print(f"plans on /dev/kvm: FAILED: {e}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
