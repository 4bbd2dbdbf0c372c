# SPDX-License-Identifier: MIT
"""The ioctls of /dev/kvm: their numbers and the layouts of their arguments.

The layouts are for little-endian machines with 4 KiB pages.  The numbers are for most architectures, but not for ppc,
mips and sparc.
"""

import fcntl
import os
import struct

DEVICE = "/dev/kvm"
API_VERSION = 12  # of every kernel since 2.6.22; KVM's documentation says to refuse other versions

KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_CHECK_EXTENSION = 0xAE03
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_GET_DIRTY_LOG = 0x4010AE42
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_SET_IDENTITY_MAP_ADDR = 0x4008AE48
KVM_SET_USER_MEMORY_REGION2 = 0x40A0AE49
KVM_CREATE_IRQCHIP = 0xAE60
KVM_RUN = 0xAE80
KVM_GET_REGS = 0x8090AE81
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_ENABLE_CAP = 0x4068AEA3
KVM_CLEAR_DIRTY_LOG = 0xC018AEC0

# The extension numbers of <linux/kvm.h>.  The names are in lower case and without KVM_CAP_.
EXTENSIONS = {
    "irqchip": 0,
    "user_memory": 3,
    "set_tss_addr": 4,
    "nr_vcpus": 9,
    "nr_memslots": 10,
    "sync_mmu": 16,
    "set_identity_map_addr": 37,
    "max_vcpus": 66,
    "readonly_mem": 81,
    "x86_smm": 117,
    "multi_address_space": 118,
    "immediate_exit": 136,
    "manual_dirty_log_protect2": 168,
    "dirty_log_ring": 192,
    "disable_quirks2": 213,
    "dirty_log_ring_acq_rel": 223,
    "dirty_log_ring_with_bitmap": 225,
    "user_memory2": 231,
    "memory_attributes": 233,
    "guest_memfd": 234,
    "vm_types": 235,
    "guest_memfd_flags": 244,
}

# The 32-bit `slot` of every structure holds the id (low half) and the address space (high half).
REGION = struct.Struct("<HHIQQQ")  # kvm_userspace_memory_region
# kvm_userspace_memory_region2; guest_memfd is signed so that -1 fits
REGION2 = struct.Struct("<HHIQQQQi116x")
DIRTY_LOG = struct.Struct("<HHIQ")  # kvm_dirty_log
CLEAR_LOG = struct.Struct("<HHIQQ")  # kvm_clear_dirty_log
ENABLE_CAP = struct.Struct("<IIQ88x")  # kvm_enable_cap, with the first of its arguments
ENABLE_CAP_ARGS = struct.Struct("<IIQQQQ64x")  # the same with all four


def open_device() -> int:
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)


def api_version() -> int:
    device = open_device()
    try:
        return fcntl.ioctl(device, KVM_GET_API_VERSION, 0)
    finally:
        os.close(device)


def create_vm() -> int:
    device = open_device()
    try:
        return fcntl.ioctl(device, KVM_CREATE_VM, 0)
    finally:
        os.close(device)
