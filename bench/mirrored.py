# SPDX-License-Identifier: MIT
"""mirrored.py - what a change costs that a mirror makes in the kernel too: python -m bench.mirrored.

Each change is timed on an engine alone, on a kernel's VM alone, and through the mirror: without a vCPU in KVM_RUN, next
to a vCPU that runs, and next to a Python thread that spins and so holds the GIL most of the time.  The pause stops the
vCPU where the mirror needs one: a slot with a log, and two slots that trade places.
"""

import argparse
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from tabulate import tabulate

import memslots
from memslots import VM, kvm

PAGE, LOG = 4096, 1
SIZE = 16 * PAGE
LOOP = bytes.fromhex("fe060030 ebfa")  # 1: incb 0x3000; jmp 1b
COUNTER = 0x2000  # its place in the guest's memory
Change = Callable[[int], None]
Side = VM | kvm.Vm


class Guest:
    """A vCPU whose guest counts in a loop, and never exits by itself."""

    def __init__(self, kernel: kvm.Vm) -> None:
        self.vcpu = kernel.create_vcpu()
        self.memory = memslots.alloc(4 * PAGE)
        self.memory[: len(LOOP)] = LOOP
        self.door, self.inside = threading.Lock(), threading.Lock()
        sregs = self.vcpu.sregs
        self.vcpu.sregs = replace(sregs, cs=replace(sregs.cs, base=0, selector=0))
        self.vcpu.regs = kvm.Regs(rip=0x1000)

    @contextmanager
    def pause(self) -> Iterator[None]:
        with self.door:
            self.vcpu.kick()
            with self.inside:
                yield

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            with self.door:
                pass
            with self.inside:
                self.vcpu.run()

    @contextmanager
    def running(self) -> Iterator[None]:
        with thread(self.run, self.vcpu.kick):
            count = self.memory[COUNTER]
            while self.memory[COUNTER] == count:
                time.sleep(0.001)
            yield


@contextmanager
def thread(body: Callable[[threading.Event], None], wake: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()
    worker = threading.Thread(target=body, args=(stop,))
    worker.start()
    try:
        yield
    finally:
        stop.set()
        wake()
        worker.join()


def spin(stop: threading.Event) -> None:
    while not stop.is_set():
        pass


# ---- the changes ---------------------------------------------------------------------------------


def put(side: Side, slot: int, place: int, size: int = SIZE, flags: int = 0) -> None:
    """Each slot has host addresses of its own; the guest does not use them."""
    side.set_user_memory_region(
        slot,
        guest_phys_addr=0x10_0000 + place * SIZE,
        memory_size=size,
        userspace_addr=slot << 30,
        flags=flags,
    )


def prepare(side: Side) -> None:
    put(side, 6, 3)
    put(side, 7, 5, flags=LOG)
    put(side, 8, 6)
    put(side, 9, 7)


def trade(vm: VM, n: int) -> None:
    with vm.transaction() as t:
        t.move(8 + n % 2, 0x10_0000 + 7 * SIZE)
        t.move(9 - n % 2, 0x10_0000 + 6 * SIZE)


def changes(side: Side) -> dict[str, Change]:
    """An even number of calls, with 0, 1, 2, ..., leaves the slots as prepare() has made them."""
    found: dict[str, Change] = {
        "create or delete": lambda n: put(side, 5, 0, 0 if n % 2 else SIZE),
        "move": lambda n: put(side, 6, 2 + n % 2),
        "move, with a dirty log": lambda n: put(side, 7, 4 + n % 2, flags=LOG),
    }
    if isinstance(side, VM):
        found["two slots trade places"] = lambda n: trade(side, n)
    return found


# ---- measurement ---------------------------------------------------------------------------------


def timed(change: Change, n: int) -> str:
    times = []
    for i in range(n):
        begin = time.perf_counter_ns()
        change(i)
        times.append((time.perf_counter_ns() - begin) / 1000)
    return f"{statistics.median(times):,.0f} ({statistics.quantiles(times, n=100)[98]:,.0f})"


def measure(side: Side, n: int) -> dict[str, str]:
    return {name: timed(change, n) for name, change in changes(side).items()}


def columns(n: int) -> Iterator[tuple[str, dict[str, str]]]:
    with ExitStack() as stack:
        device = stack.enter_context(kvm.open())
        alone = stack.enter_context(device.create_vm())
        engine, vm = stack.enter_context(VM()), stack.enter_context(VM())
        sides: tuple[Side, ...] = (alone, engine)
        for side in sides:
            prepare(side)
        yield "engine", measure(engine, n)
        yield "kernel", measure(alone, n)
        kernel = stack.enter_context(device.create_vm())
        guest = Guest(kernel)
        stack.callback(kernel.close)
        mirror = stack.enter_context(kvm.mirror(vm, kernel, pause=guest.pause))
        vm.map_buffer(0x1000, guest.memory, slot=0)
        prepare(vm)
        yield "mirror, no vCPU runs", measure(vm, n)
        with guest.running():
            yield "next to a vCPU", measure(vm, n)
        with thread(spin, lambda: None):
            yield "next to a spinning thread", measure(vm, n // 10)
        with guest.running(), thread(spin, lambda: None):
            yield "next to both", measure(vm, n // 10)
        assert mirror.verify() == []


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "-n", type=int, default=2000, help="changes of a kind (default: %(default)s)"
    )
    n = parser.parse_args(argv).n // 20 * 20
    try:
        found = dict(columns(n))
    except memslots.NotSupportedError as e:
        print(f"mirrored: NOT measured: {e}")
        return 2
    names = changes(VM())
    rows = [[name, *(column.get(name, "") for column in found.values())] for name in names]
    print(f"kernel {platform.release()}, switch interval {sys.getswitchinterval() * 1000:g} ms; "
          "microseconds of one change: median (99th percentile)")  # fmt: skip
    print(tabulate(rows, ["change", *found], tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
