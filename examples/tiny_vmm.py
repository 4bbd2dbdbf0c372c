# SPDX-License-Identifier: MIT
"""A tiny VMM: a guest on /dev/kvm, and a memslots.VM with the same slots next to it.

The guest reads the byte at PLUGGED, writes it to port 0x10, to its RAM and to its ROM, and halts.  Between its runs the
VMM plugs a page at PLUGGED, moves it away, and unplugs it.  Every exit is checked against the slots of the VM.
"""

from dataclasses import replace

import memslots
from memslots import MemFlag, kvm
from memslots.kvm.exits import Hlt, Io, Mmio

RAM, ROM, PLUGGED, ELSEWHERE, PAGE = 0x1000, 0x7000, 0x8000, 0xA000, 4096
# mov 0x8000,%al; out %al,$0x10; mov %al,0x3000; mov %al,0x7000; hlt; jmp to the beginning
CODE = bytes.fromhex("a00080 e610 a20030 a20070 f4 ebf2")


def put(slot: int, gpa: int, size: int, memory: memslots.Memory, flags: int = 0) -> None:
    """Changes the same slot in both VMs.  The kernel comes last: its refusal must leave both as they were."""
    fields = {"guest_phys_addr": gpa, "memory_size": size, "flags": flags}
    vm.set_user_memory_region(slot, userspace_addr=memory.address, **fields)
    kernel.set_user_memory_region(slot, memory=memory, **fields)


def has_memory(gpa: int, is_write: bool) -> bool:
    slot = vm.gfn_to_memslot(gpa // PAGE)
    return slot is not None and not (is_write and slot.flags & MemFlag.READONLY)


def run(when: str) -> None:
    """Runs the guest until it halts, and serves its exits."""
    seen = []
    while not isinstance(exit := vcpu.run(), Hlt):
        match exit:
            case Io(data=data):
                seen.append(f"the guest got {data.hex()}")
            case Mmio(gpa=gpa, is_write=is_write):
                assert not has_memory(gpa, is_write), f"{exit}, but the VM has memory there"
                seen.append(f"{'write to' if is_write else 'read of'} {gpa:#x} exits")
                if not is_write:
                    exit.reply(0xFF)
    vm.mark_page_dirty(0x3000 // PAGE)  # as the guest's store did in the kernel
    logs = [int(log.get_dirty_log(0)[0]) for log in (vm, kernel)]
    print(f"{when}: {', '.join(seen)}; dirty pages of slot 0: {logs[0]:#b} and {logs[1]:#b}")


with kvm.open() as device:
    kernel = device.create_vm()
with kernel, memslots.VM() as vm:
    ram, rom, extra = (memslots.alloc(n * PAGE) for n in (4, 1, 1))
    ram[: len(CODE)], extra[0] = CODE, 0x42
    put(0, RAM, 4 * PAGE, ram, MemFlag.LOG_DIRTY_PAGES)
    put(1, ROM, PAGE, rom, MemFlag.READONLY)
    vcpu = kernel.create_vcpu()
    vcpu.sregs = replace(vcpu.sregs, cs=replace(vcpu.sregs.cs, base=0, selector=0))
    vcpu.regs = kvm.Regs(rip=RAM)
    run("at first")
    put(2, PLUGGED, PAGE, extra)
    run("plugged")
    put(2, ELSEWHERE, PAGE, extra)
    run("moved")
    put(2, PLUGGED, PAGE, extra)
    run("moved back")
    put(2, PLUGGED, 0, extra)
    run("unplugged")
    assert [s.gpa for s in vm] == [r.guest_phys_addr for r in kernel.regions] == [RAM, ROM]
