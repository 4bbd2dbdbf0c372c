# SPDX-License-Identifier: MIT
"""A guest that runs in its own thread next to the test, and stores bytes where the test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import memslots
from memslots import VM, kvm

PAGE = 4096
HOME = 0x1000  # the guest address of the page with the code; the mailbox is a page further
MAILBOX = HOME + PAGE
HOME_SLOT = 0

# 1: incl MAILBOX+8; movl MAILBOX,%ebx; testl %ebx,%ebx; jz 1b; movb $1,(%ebx); movl $0,MAILBOX; jmp 1b
CODE = bytes.fromhex(
    "66ff060820"  # incl 0x2008
    "668b1e0020"  # movl 0x2000,%ebx
    "6685db"  # testl %ebx,%ebx
    "74f1"  # jz 1b
    "67c60301"  # movb $1,(%ebx)
    "66c706002000000000"  # movl $0,0x2000
    "ebe2"  # jmp 1b
)


class Turnstile:
    """Runs a vCPU, and keeps it outside of KVM_RUN during pause()."""

    def __init__(self, vcpu: kvm.Vcpu) -> None:
        self.vcpu = vcpu
        self.door, self.inside = threading.Lock(), threading.Lock()
        self.is_running = False

    def run(self) -> kvm.Exit:
        with self.door:  # closed during a pause
            pass
        with self.inside:
            self.is_running = True
            try:
                return self.vcpu.run()
            finally:
                self.is_running = False

    @contextmanager
    def pause(self) -> Iterator[None]:
        with self.door:
            self.vcpu.kick()  # ends the run in progress, or the next one if the vCPU has passed the door already
            with self.inside:
                yield


class RunningGuest:
    """An engine's VM, its mirror, and a vCPU that runs all the time.  Slot 0 is its home of two pages."""

    def __init__(self, vm: VM, mmio: Callable[[int, bytes, bool], int | None]) -> None:
        self.vm, self.mmio = vm, mmio
        with kvm.open() as device:
            self.kernel = device.create_vm()
        self.vcpu = self.kernel.create_vcpu()
        self.gate = Turnstile(self.vcpu)
        self.mirror = kvm.mirror(vm, self.kernel, pause=self.gate.pause)
        self.home = memslots.alloc(2 * PAGE)
        self.home[: len(CODE)] = CODE
        vm.map_buffer(HOME, self.home, slot=HOME_SLOT)
        self.box = memoryview(self.home)[PAGE:].cast("I")
        self.wrong: list[BaseException] = []
        self.stop = False
        self._start()

    def _start(self) -> None:
        sregs = self.vcpu.sregs
        self.vcpu.sregs = replace(
            sregs,
            cs=replace(sregs.cs, base=0, selector=0),
            ds=replace(sregs.ds, base=0, limit=0xFFFFFFFF, g=1),
        )
        self.vcpu.regs = kvm.Regs(rip=HOME)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            while not self.stop:
                exit = self.gate.run()
                if not self.mirror.serve(exit, self.mmio) and not isinstance(exit, kvm.exits.Intr):
                    raise AssertionError(exit)
        except BaseException as e:
            self.wrong.append(e)

    def store(self, gpa: int) -> None:
        """The guest stores a byte at gpa; returns when it has done so."""
        self.box[0] = gpa
        self._until(lambda: not self.box[0])

    def progress(self) -> None:
        """Returns when the guest has run on."""
        count = self.box[2]
        self._until(lambda: self.box[2] != count)

    def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.wrong or not self.thread.is_alive():
                raise AssertionError(f"the guest has stopped: {self.wrong}")
            time.sleep(0)  # without the GIL

    def close(self) -> None:
        self.stop = True
        self.vcpu.kick()
        self.thread.join()
        self.box.release()
        self.vm.close()
        self.kernel.close()
        assert not self.wrong, self.wrong


@contextmanager
def running_guest(vm: VM, mmio: Callable[[int, bytes, bool], int | None]) -> Iterator[RunningGuest]:
    made = RunningGuest(vm, mmio)
    try:
        yield made
    finally:
        made.close()
