# SPDX-License-Identifier: MIT
"""A tiny VMM: a guest runs on /dev/kvm in its own thread, while memory is plugged, moved and unplugged.

The guest reads the byte at PLUGGED in a loop.  When it changes, the guest writes it to its RAM, to its ROM and to port
0x10.  The VMM changes the slots of a memslots.VM only; the mirror makes every change in the kernel too.
"""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import memslots
from memslots import kvm
from memslots.kvm.exits import Intr, Io

RAM, ROM, PLUGGED, ELSEWHERE, PAGE = 0x1000, 0x7000, 0x8000, 0xA000, 4096
# 1: mov 0x8000,%al; cmp %al,%bl; je 1b; mov %al,%bl; mov %al,0x3000; mov %al,0x7000; out %al,$0x10; jmp 1b
CODE = bytes.fromhex("a00080 38c3 74f9 88c3 a20030 a20070 e610 ebed")

seen: queue.Queue[str] = queue.Queue()
door, inside = threading.Lock(), threading.Lock()


def run_guest() -> None:
    while not stop.is_set():
        with door:  # closed in a pause
            pass
        with inside:
            exit = vcpu.run()
        if isinstance(exit, Io):
            seen.put(exit.data.hex())
        elif not mirror.serve(exit, mmio):
            assert isinstance(exit, Intr), exit


@contextmanager
def pause() -> Iterator[None]:
    """Keeps the vCPU outside of KVM_RUN: ends its run, and lets it begin no other one."""
    with door:
        vcpu.kick()
        with inside:
            yield


def mmio(gpa: int, data: bytes, is_write: bool) -> int | None:
    """The device behind all addresses without memory, and behind the ROM for writes."""
    return None if is_write else 0xFF


def report(what: str) -> None:
    """The guest's write is in the kernel's log.  The VMM's write to the same page is in the engine's log."""
    got = seen.get()
    vm.write_u8(RAM + 0x2000, vm.read_u8(RAM + 0x2000))
    logs = f"{kernel.get_dirty_log(0)[0]:#b} and {vm.get_dirty_log(0)[0]:#b}"
    print(f"{what}: the guest got {got}; dirty pages of slot 0: {logs}")


with kvm.open() as device:
    kernel = device.create_vm()
with kernel, memslots.VM() as vm:
    vcpu, stop = kernel.create_vcpu(), threading.Event()
    mirror = kvm.mirror(vm, kernel, pause=pause)
    ram, rom, one, two = (memslots.alloc(n * PAGE) for n in (4, 1, 1, 1))
    ram[: len(CODE)], one[0], two[0] = CODE, 0x42, 0x43
    vm.map_buffer(RAM, ram, slot=0, log_dirty=True)
    vm.map_buffer(ROM, rom, readonly=True)
    vcpu.sregs = replace(vcpu.sregs, cs=replace(vcpu.sregs.cs, base=0, selector=0))
    vcpu.regs = kvm.Regs(rip=RAM)
    guest = threading.Thread(target=run_guest)
    guest.start()
    report("at first")
    plugged = vm.map_buffer(PLUGGED, one)
    report("plugged")
    plugged.move(ELSEWHERE)
    report("moved")
    plugged.move(PLUGGED)
    report("moved back")
    with vm.transaction() as t:  # two ioctls or more, but the guest sees no hole
        t.move(plugged.slot, ELSEWHERE)
        t.map_buffer(PLUGGED, two, slot=9)
    report("exchanged")
    vm.delete(9)
    report("unplugged")
    assert (rom[0], ram[0x2000]) == (0, 0xFF)
    assert mirror.verify() == []
    stop.set()
    vcpu.kick()
    guest.join()
