# SPDX-License-Identifier: MIT
"""The arguments of KVM's ioctls, byte by byte; a fake ioctl takes the kernel's place, so no /dev/kvm is needed."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memslots import errors, kvm
from memslots.constants import PAGE_SIZE
from memslots.kvm import KvmVM, ioctls
from memslots.kvm import vm as kvm_vm
from memslots.lab import layouts, subjects

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the layouts are those of little-endian machines"
)


class FakeIoctl:
    """Notes each call.  Returns `value`, or raises the next errno of `refusals`."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Any]] = []
        self.value = 32764
        self.refusals: list[int] = []
        self.log = b""  # written to the bitmap of KVM_GET_DIRTY_LOG

    def __call__(self, fd: int, request: int, argument: Any = 0, mutate: bool = True) -> int:
        if isinstance(argument, bytearray):
            assert mutate, "the kernel gets the buffer itself"
            argument = bytes(argument)
        self.calls.append((request, argument))
        if self.refusals and (number := self.refusals.pop(0)):
            raise OSError(number, os.strerror(number))
        if request == ioctls.KVM_GET_DIRTY_LOG and self.log:
            ctypes.memmove(pointer_of(argument, 8), self.log, len(self.log))
        return self.value

    def last(self) -> tuple[int, Any]:
        return self.calls[-1]


def pointer_of(argument: bytes, at: int) -> int:
    return int.from_bytes(argument[at : at + 8], "little")


@pytest.fixture
def ioctl(monkeypatch: pytest.MonkeyPatch) -> FakeIoctl:
    fake = FakeIoctl()
    monkeypatch.setattr(kvm_vm, "fcntl", SimpleNamespace(ioctl=fake))
    monkeypatch.setattr(ioctls, "create_vm", lambda: os.open(os.devnull, os.O_RDWR))
    return fake


@pytest.fixture
def vm(ioctl: FakeIoctl) -> Iterator[KvmVM]:
    with KvmVM() as vm:
        ioctl.calls.clear()
        ioctl.value = 0
        yield vm


# ---- numbers and sizes --------------------------------------------------------------------------


def number_of(direction: int, size: int, nr: int) -> int:
    """_IOC(direction, 0xAE, nr, size) of asm-generic/ioctl.h; the direction is 1 to the kernel, 2 from it."""
    return direction << 30 | size << 16 | 0xAE << 8 | nr


@pytest.mark.parametrize(
    ("name", "layout", "direction", "size", "nr"),
    [
        ("KVM_SET_USER_MEMORY_REGION", "REGION", 1, 32, 0x46),
        ("KVM_SET_USER_MEMORY_REGION2", "REGION2", 1, 160, 0x49),
        ("KVM_GET_DIRTY_LOG", "DIRTY_LOG", 1, 16, 0x42),
        ("KVM_CLEAR_DIRTY_LOG", "CLEAR_LOG", 3, 24, 0xC0),
        ("KVM_ENABLE_CAP", "ENABLE_CAP", 1, 104, 0xA3),
        ("KVM_GET_API_VERSION", None, 0, 0, 0x00),
        ("KVM_CREATE_VM", None, 0, 0, 0x01),
        ("KVM_CHECK_EXTENSION", None, 0, 0, 0x03),
        ("KVM_GET_VCPU_MMAP_SIZE", None, 0, 0, 0x04),
        ("KVM_CREATE_VCPU", None, 0, 0, 0x41),
        ("KVM_SET_TSS_ADDR", None, 0, 0, 0x47),
        ("KVM_SET_IDENTITY_MAP_ADDR", None, 1, 8, 0x48),
        ("KVM_CREATE_IRQCHIP", None, 0, 0, 0x60),
        ("KVM_RUN", None, 0, 0, 0x80),
        ("KVM_GET_REGS", None, 2, 144, 0x81),
        ("KVM_SET_REGS", None, 1, 144, 0x82),
        ("KVM_GET_SREGS", None, 2, 312, 0x83),
        ("KVM_SET_SREGS", None, 1, 312, 0x84),
        ("KVM_ENABLE_CAP", "ENABLE_CAP_ARGS", 1, 104, 0xA3),
    ],
)
def test_number_of_an_ioctl_has_the_size_of_its_argument(
    name: str, layout: str | None, direction: int, size: int, nr: int
) -> None:
    assert getattr(ioctls, name) == number_of(direction, size, nr)
    assert layout is None or getattr(ioctls, layout).size == size


def test_extensions_have_the_numbers_of_linux() -> None:
    assert ioctls.EXTENSIONS == {
        "irqchip": 0, "user_memory": 3, "set_tss_addr": 4, "nr_vcpus": 9, "nr_memslots": 10,
        "sync_mmu": 16, "set_identity_map_addr": 37, "max_vcpus": 66, "readonly_mem": 81,
        "x86_smm": 117, "multi_address_space": 118, "immediate_exit": 136,
        "manual_dirty_log_protect2": 168, "dirty_log_ring": 192, "disable_quirks2": 213,
        "dirty_log_ring_acq_rel": 223, "dirty_log_ring_with_bitmap": 225, "user_memory2": 231,
        "memory_attributes": 233, "guest_memfd": 234, "vm_types": 235, "guest_memfd_flags": 244,
    }  # fmt: skip


# ---- slots --------------------------------------------------------------------------------------

REGION = bytes.fromhex(
    "3412"  # slot 0x1234
    "0100"  # address space 1
    "03000000"  # flags
    "0060554433221100"  # guest_phys_addr 0x11223344556000
    "0050000000000000"  # memory_size 0x5000
    "003022110000 7f00"  # userspace_addr 0x7f000011223000
)
FIELDS = {
    "guest_phys_addr": 0x11223344556000,
    "memory_size": 0x5000,
    "userspace_addr": 0x7F000011223000,
    "flags": 3,
    "as_id": 1,
}


def test_region_is_packed(vm: KvmVM, ioctl: FakeIoctl) -> None:
    vm.set_user_memory_region(0x1234, **FIELDS)
    assert ioctl.calls == [(0x4020AE46, REGION)]
    assert len(REGION) == 32


def test_region_with_a_guest_memfd_is_packed(vm: KvmVM, ioctl: FakeIoctl) -> None:
    offset = 0x0102030405060000
    vm.set_user_memory_region(0x1234, **FIELDS, guest_memfd=7, guest_memfd_offset=offset)
    more = bytes.fromhex("0000060504030201 07000000") + bytes(4 + 8 * 14)
    assert ioctl.calls == [(0x40A0AE49, REGION + more)]
    assert len(REGION + more) == 160
    vm.set_user_memory_region(0x1234, **FIELDS, guest_memfd=-1)
    assert ioctl.last()[1][32:48] == bytes(8) + b"\xff" * 4 + bytes(4)


def test_fields_at_their_limits_are_packed(vm: KvmVM, ioctl: FakeIoctl) -> None:
    vm.set_user_memory_region(
        0xFFFF, guest_phys_addr=2**64 - 1, memory_size=PAGE_SIZE, userspace_addr=2**64 - 2,
        flags=2**32 - 1, as_id=0xFFFE,
    )  # fmt: skip
    assert ioctl.last()[1] == bytes.fromhex(
        "ffff feff ffffffff ffffffffffffffff 0010000000000000 feffffffffffffff"
    )


def test_slot_is_known_only_after_the_kernel_accepts_it(vm: KvmVM, ioctl: FakeIoctl) -> None:
    ioctl.refusals = [errno.EEXIST]
    with pytest.raises(errors.RegionOverlapError) as caught:
        vm.set_user_memory_region(0x1234, **FIELDS)
    assert caught.value.slot == 0x1234
    assert vm._regions == {}
    vm.set_user_memory_region(0x1234, **FIELDS)
    assert vm._regions == {(1, 0x1234): (0x11223344556000, 0x5000)}
    ioctl.refusals = [errno.EINVAL]
    with pytest.raises(errors.InvalidRegionError):
        vm.set_user_memory_region(0x1234, as_id=1, guest_phys_addr=0, memory_size=0)
    assert len(vm._regions) == 1
    vm.set_user_memory_region(0x1234, as_id=1, guest_phys_addr=0, memory_size=0)
    assert ioctl.last()[1] == bytes.fromhex("34120100") + bytes(28)
    assert vm._regions == {}


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EINVAL, errors.InvalidRegionError), (errno.EEXIST, errors.RegionOverlapError),
     (errno.ENOMEM, errors.OutOfMemoryError), (errno.EFAULT, errors.GuestAccessError)],
)  # fmt: skip
def test_errno_of_the_kernel_is_that_of_the_exception(
    vm: KvmVM, ioctl: FakeIoctl, number: int, kind: type[errors.MemslotsError]
) -> None:
    ioctl.refusals = [number]
    with pytest.raises(kind) as caught:
        vm.set_user_memory_region(
            3, guest_phys_addr=0x7000, memory_size=0x2000, userspace_addr=0x9000
        )
    assert caught.value.errno == number
    assert "slot 3 [0x7000, 0x9000) at 0x9000, flags 0x0, in address space 0" in str(caught.value)


# ---- dirty logs ---------------------------------------------------------------------------------


def put(vm: KvmVM, slot: int, npages: int, as_id: int = 0) -> None:
    size = npages * PAGE_SIZE
    vm.set_user_memory_region(slot, guest_phys_addr=0, memory_size=size, flags=1, as_id=as_id)


def test_dirty_log_is_packed_and_read(vm: KvmVM, ioctl: FakeIoctl) -> None:
    put(vm, 0x0203, 65, 1)
    ioctl.log = bytes(range(1, 17))
    words = vm.get_dirty_log(0x0203, as_id=1)
    request, argument = ioctl.last()
    assert request == 0x4010AE42
    assert argument[:8] == bytes.fromhex("03020100 00000000")
    assert pointer_of(argument, 8) == words.ctypes.data
    assert words.tobytes() == bytes(range(1, 17))
    assert words.dtype == np.uint64


@pytest.mark.parametrize(("npages", "words"), [(1, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_dirty_log_has_a_word_for_each_64_pages(
    vm: KvmVM, ioctl: FakeIoctl, npages: int, words: int
) -> None:
    put(vm, 4, npages)
    assert len(vm.get_dirty_log(4)) == words


def test_kernel_gets_no_bitmap_for_a_slot_that_is_not_known(vm: KvmVM, ioctl: FakeIoctl) -> None:
    put(vm, 4, 64)
    for slot, as_id in ((5, 0), (4, 1)):
        ioctl.refusals = [errno.ENOENT]
        with pytest.raises(errors.NoSuchSlotError):
            vm.get_dirty_log(slot, as_id=as_id)
        assert pointer_of(ioctl.last()[1], 8) == 0
    vm._get_dirty_log_null(4)
    assert ioctl.last() == (0x4010AE42, bytes.fromhex("04000000 00000000") + bytes(8))


def test_clear_is_packed(vm: KvmVM, ioctl: FakeIoctl) -> None:
    bits = np.arange(3, dtype=np.uint64)
    vm.clear_dirty_log(0x0506, 0x0708090A0B0C0D0E, 130, bits, as_id=2)
    request, argument = ioctl.last()
    assert request == 0xC018AEC0
    assert argument[:16] == bytes.fromhex("06050200 82000000 0e0d0c0b0a090807")
    assert pointer_of(argument, 16) == bits.ctypes.data


def test_kernel_gets_no_bitmap_of_another_size(vm: KvmVM, ioctl: FakeIoctl) -> None:
    for words, answer, raised in (
        (2, 0, errno.EINVAL),
        (4, errno.EFAULT, errno.EINVAL),
        (2, errno.ENOENT, errno.ENOENT),
    ):
        ioctl.refusals = [answer]
        with pytest.raises(errors.MemslotsError) as caught:
            vm.clear_dirty_log(6, 0, 130, np.zeros(words, np.uint64))
        assert caught.value.errno == raised
        assert pointer_of(ioctl.last()[1], 16) == 0
    vm.clear_dirty_log(6, 0, 130, None)
    assert pointer_of(ioctl.last()[1], 16) == 0


# ---- capabilities -------------------------------------------------------------------------------


def test_extension_is_checked_by_its_number(vm: KvmVM, ioctl: FakeIoctl) -> None:
    ioctl.value = 17
    assert vm.check_extension("guest_memfd") == 17
    assert vm.check_extension(99) == 17
    assert ioctl.calls == [(0xAE03, 234), (0xAE03, 99)]


def test_capability_is_packed(vm: KvmVM, ioctl: FakeIoctl) -> None:
    vm.manual_dirty_log_protect = 3
    wanted = bytes.fromhex("a8000000 00000000 0300000000000000") + bytes(3 * 8 + 64)
    assert ioctl.calls == [(0x4068AEA3, wanted)]
    ioctl.refusals = [errno.EINVAL]
    with pytest.raises(errors.MemslotsError):
        vm.manual_dirty_log_protect = 1
    assert vm.manual_dirty_log_protect == 3


def test_limits_come_from_the_extensions(ioctl: FakeIoctl) -> None:
    ioctl.value = 509
    with KvmVM() as vm:
        assert (vm.user_mem_slots, vm.address_spaces) == (509, 509)
        assert ioctl.calls == [(0xAE03, 10), (0xAE03, 118)]
    ioctl.value = 0
    with KvmVM() as vm:
        assert vm.address_spaces == 1


def test_width_of_addresses_is_that_of_the_last_accepted_page(
    ioctl: FakeIoctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accepts(vm: Any, gpa: int, hva: int) -> bool:
        return gpa < 1 << 46 and hva + PAGE_SIZE <= 0x7FFF_FFFF_F000

    monkeypatch.setattr(kvm_vm, "_accepts", accepts)
    assert kvm_vm._gpa_bits.__wrapped__() == 46
    assert kvm_vm._hva_end_max.__wrapped__() == 0x7FFF_FFFF_F000


def test_device_is_closed_after_each_use(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def ioctl(fd: int, request: int, argument: int) -> int:
        calls.append((fd, request, argument))
        return 12

    monkeypatch.setattr(ioctls, "open_device", lambda: 77)
    monkeypatch.setattr(ioctls, "fcntl", SimpleNamespace(ioctl=ioctl))
    monkeypatch.setattr(ioctls, "os", SimpleNamespace(close=lambda fd: calls.append(fd)))
    assert (ioctls.api_version(), ioctls.create_vm()) == (12, 12)
    assert calls == [(77, 0xAE00, 0), 77, (77, 0xAE01, 0), 77]


# ---- slots that do not reach the kernel ---------------------------------------------------------


def test_only_a_slot_that_is_too_large_is_kept_from_the_kernel(
    vm: KvmVM, ioctl: FakeIoctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KvmVM, "hva_end_max", property(lambda self: 1 << 62))
    largest = kvm.MAX_BUILT_PAGES * PAGE_SIZE
    vm.set_user_memory_region(1, guest_phys_addr=0, memory_size=largest)
    assert len(ioctl.calls) == 1
    with pytest.raises(kvm.NotCompared, match="slot 2 "):
        vm.set_user_memory_region(2, guest_phys_addr=largest, memory_size=largest + PAGE_SIZE)
    assert len(ioctl.calls) == 1
    with pytest.raises(kvm.NotCompared):
        vm.get_dirty_log(2)
    for slot, npages in ((3, 1), (4, kvm.MAX_BUILT_PAGES)):
        gpa = 3 * slot * largest
        vm.set_user_memory_region(slot, guest_phys_addr=gpa, memory_size=npages * PAGE_SIZE)
    assert len(ioctl.calls) == 3


# ---- the kernel in the laboratory ---------------------------------------------------------------


def test_laboratory_packs_the_same_bytes() -> None:
    slots = layouts.uniform(4, 3)
    rows = subjects.regions(slots, flags=2, as_id=1)
    assert subjects._packed(rows) == [
        ioctls.REGION.pack(
            int(s["id"]), 1, 2, int(s["base_gfn"]) << 12, int(s["npages"]) << 12, int(s["userspace_addr"])
        )
        for s in slots
    ]  # fmt: skip
    assert (rows["guest_memfd"] == -1).all()
