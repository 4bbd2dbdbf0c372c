# SPDX-License-Identifier: MIT
"""Restores a guest's memory between runs, as snapshot fuzzers do: only the pages that are dirty are copied back.

The guest loads an address from INPUT, stores a byte there, and halts.  So an input can overwrite anything, also the
guest's code.  The kernel logs the pages that the guest writes; the VM logs those that the VMM writes.
"""

import random
from dataclasses import replace

import numpy as np

import memslots
from memslots import MemFlag, kvm
from memslots.kvm.exits import Hlt

PAGE, PAGES, CODE_AT, INPUT, RUNS = 4096, 16, 0x1000, 0x2000, 1000
CODE = bytes.fromhex("8b1e0020 8807 f4")  # mov INPUT,%bx; mov %al,(%bx); hlt

with kvm.open() as device:
    kernel = device.create_vm()
with kernel, memslots.VM() as vm:
    memory = memslots.alloc(PAGES * PAGE)
    memory[CODE_AT : CODE_AT + len(CODE)] = CODE
    with vm.map_buffer(0, memory, slot=0, log_dirty=True) as mapping:
        kernel.set_user_memory_region(
            0, guest_phys_addr=mapping.gpa, memory=memory, flags=MemFlag.LOG_DIRTY_PAGES
        )
        vcpu = kernel.create_vcpu()
        vcpu.sregs = replace(vcpu.sregs, cs=replace(vcpu.sregs.cs, base=0, selector=0))

        regs = kvm.Regs(rip=CODE_AT, rax=0xA5)  # the snapshot: registers and memory
        now = np.frombuffer(memory, np.uint8).reshape(PAGES, PAGE)
        saved = now.copy()
        inputs, copied = random.Random(1), 0
        for _ in range(RUNS):
            target = inputs.randrange(PAGES * PAGE)
            vm.write_u16(INPUT, target)
            vcpu.regs = regs
            assert vcpu.run() == Hlt()
            assert memory[target] == 0xA5
            vm.merge_dirty_log(0, kernel.get_dirty_log(0))
            words = vm.get_dirty_log(0)  # both logs; the next run begins with empty ones
            dirty = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
            now[dirty] = saved[dirty]
            copied += len(dirty)
            assert np.array_equal(now, saved)
        del now
        kernel.close()
print(
    f"{RUNS:,} runs: {copied:,} pages copied back, not {RUNS * PAGES:,}; memory as in the snapshot"
)
