# SPDX-License-Identifier: MIT
"""Small guests for the tests of memslots.kvm: real-mode code of a few bytes, without SSE."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

import memslots
from memslots import kvm

PAGE = 4096
CODE = 0x1000  # guest address of the code, in slot 0 with four pages
COUNTER = 0x3000
HLT = b"\xf4"
LOOP = bytes.fromhex("fe060030 ebfa")  # 1: incb COUNTER; jmp 1b
OUT_LOOP = bytes.fromhex("e610 ebfc")  # 1: out %al,$0x10; jmp 1b
OUT_AL = bytes.fromhex("e610")  # out %al,$0x10
IN_AL = bytes.fromhex("e412")  # in $0x12,%al


def needs_kvm() -> None:
    """Skips the test where no guest can run."""
    try:
        with kvm.open() as device, device.create_vm() as vm:
            vm.create_vcpu()
    except OSError as e:
        pytest.skip(f"no guest runs here: {e}")


def load_al(gpa: int) -> bytes:
    return b"\xa0" + gpa.to_bytes(2, "little")  # mov gpa,%al


def store_al(gpa: int) -> bytes:
    return b"\xa2" + gpa.to_bytes(2, "little")  # mov %al,gpa


def real_mode(vcpu: kvm.Vcpu) -> None:
    sregs = vcpu.sregs
    vcpu.sregs = replace(sregs, cs=replace(sregs.cs, base=0, selector=0))


class Guest:
    """A VM with a vCPU in real mode, and four pages of memory at CODE, which are slot 0."""

    def __init__(self, flags: int = 0) -> None:
        with kvm.open() as device:
            self.vm = device.create_vm()
        self.memory = memslots.alloc(4 * PAGE)
        self.vm.set_user_memory_region(0, guest_phys_addr=CODE, memory=self.memory, flags=flags)
        self.vcpu = self.vm.create_vcpu()
        real_mode(self.vcpu)

    def start(self, code: bytes, **regs: int) -> None:
        """Puts the code into the memory, and lets the vCPU begin there."""
        self.memory[: len(code)] = code
        self.memory[COUNTER - CODE] = 0
        self.vcpu.regs = kvm.Regs(rip=CODE, **regs)

    def wait(self) -> None:
        """Returns when another thread is inside KVM_RUN, and the guest has executed LOOP."""
        while not self.memory[COUNTER - CODE]:
            time.sleep(0)  # without the GIL

    def run(self, code: bytes, **regs: int) -> kvm.Exit:
        self.start(code, **regs)
        return self.vcpu.run()


@contextmanager
def guest(flags: int = 0) -> Iterator[Guest]:
    needs_kvm()
    made = Guest(flags)
    try:
        yield made
    finally:
        made.vm.close()
