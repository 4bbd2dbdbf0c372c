# SPDX-License-Identifier: MIT
"""Guests and memory slots of this machine's kernel, through /dev/kvm.  `import memslots` does not load this package.

For people who run guests: `open()` gives a Device, `create_vm()` a Vm, `create_vcpu()` a Vcpu, and `run()` an exit.
`mirror()` gives a Vm the slots of a `memslots.VM`, after every change.
For comparisons with the engine: KvmVM, a VM with slots and dirty logs only.

device     /dev/kvm itself
machine    a VM: regions, dirty logs, capabilities
vcpu       a vCPU: run, kick, registers
exits      the reasons why a guest exits
registers  the registers of a vCPU
mirror     a kernel's VM that follows a `memslots.VM`
probe      the differences between the two, found without a change
vm         KvmVM, with the methods of `memslots.VM` for slots and dirty logs
ioctls     the numbers and the argument layouts of the ioctls
handle     what Device, Vm and Vcpu have in common: the file descriptor
refusals   the exceptions for calls that the kernel refuses
_ioctl     the system calls
"""

from . import exits
from .device import Device, open
from .exits import Exit
from .machine import Region, Vm
from .mirror import Mirror, MirrorError, mirror
from .probe import Difference
from .registers import Regs, Segment, Sregs, Table
from .vcpu import Vcpu, VcpuBusyError
from .vm import MAX_BUILT_PAGES, KvmVM, NotCompared, available

__all__ = [
    "MAX_BUILT_PAGES",
    "Device",
    "Difference",
    "Exit",
    "KvmVM",
    "Mirror",
    "MirrorError",
    "NotCompared",
    "Region",
    "Regs",
    "Segment",
    "Sregs",
    "Table",
    "Vcpu",
    "VcpuBusyError",
    "Vm",
    "available",
    "exits",
    "mirror",
    "open",
]
