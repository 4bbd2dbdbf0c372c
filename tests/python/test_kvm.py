# SPDX-License-Identifier: MIT
"""The binding of /dev/kvm: arguments, errors, sizes, and calls that must not reach the kernel."""

import errno
import fcntl
import os
import re

import numpy as np
import pytest
from scene import PAGE, put

from memslots import MEM_MAX_NR_PAGES, errors, kvm
from memslots.kvm import KvmVM, NotCompared, ioctls
from memslots.kvm.vm import _Range

LOG, READONLY, GUEST_MEMFD = 1, 2, 4
TOO_LARGE = (kvm.MAX_BUILT_PAGES + 1) * PAGE


@pytest.fixture
def vm():
    reason = kvm.available()
    if reason:
        pytest.skip(reason)
    with KvmVM() as vm:
        yield vm


@pytest.fixture
def no_ioctl(monkeypatch):
    """Returns a function; after its call, any ioctl fails the test."""

    def forbidden(*args):
        raise AssertionError(f"unexpected ioctl: {args}")

    return lambda: monkeypatch.setattr(fcntl, "ioctl", forbidden)


def refused(number, call, *args, **fields):
    with pytest.raises(errors.MemslotsError) as caught:
        call(*args, **fields)
    assert caught.value.errno == number, caught.value
    return caught.value


# ---- is it there? --------------------------------------------------------------------------------


def test_available_names_path_and_errno(monkeypatch, tmp_path):
    missing = str(tmp_path / "kvm")
    monkeypatch.setattr(ioctls, "DEVICE", missing)
    assert missing in kvm.available()
    assert "ENOENT" in kvm.available()


def test_available_without_permission(monkeypatch):
    def denied(*args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    assert "EACCES" in kvm.available()


def test_available_with_another_device(monkeypatch):
    monkeypatch.setattr(ioctls, "DEVICE", "/dev/null")
    assert "ENOTTY" in kvm.available()


def test_available_with_another_version(monkeypatch):
    monkeypatch.setattr(ioctls, "api_version", lambda: 11)
    assert "version 11" in kvm.available()


def test_limits(vm):
    assert vm.user_mem_slots == vm.check_extension("nr_memslots") == vm.check_extension(10)
    assert vm.address_spaces >= 1
    assert not vm.translates
    put(vm, 0, (1 << vm.gpa_bits) // PAGE - 1, 1, hva=vm.hva_end_max - PAGE)
    refused(errno.EINVAL, put, vm, 1, (1 << vm.gpa_bits) // PAGE, 1)
    refused(errno.EINVAL, put, vm, 1, 0, 1, hva=vm.hva_end_max)


def test_check_extension_arguments(vm):
    with pytest.raises(ValueError, match="nr_memslots"):
        vm.check_extension("nr_memslot")
    for number in (-1, 1 << 31, 1 << 70):
        with pytest.raises(OverflowError):
            vm.check_extension(number)


# ---- slots ---------------------------------------------------------------------------------------


def test_every_kind_of_change_succeeds(vm):
    put(vm, 3, 0x10, 4, hva=0x7000)
    put(vm, 3, 0x10, 4, hva=0x7000)
    put(vm, 3, 0x11, 4, hva=0x7000)
    put(vm, 3, 0x11, 4, LOG, hva=0x7000)
    put(vm, 3, 0x20, 4, hva=0x7000)
    put(vm, 4, 0x11, 4)
    put(vm, 3, 0, 0)
    refused(errno.EINVAL, put, vm, 3, 0, 0)


def test_errors_are_those_of_the_engine(vm):
    put(vm, 1, 1, 2)
    overlap = refused(errno.EEXIST, put, vm, 2, 2, 1)
    assert isinstance(overlap, errors.RegionOverlapError)
    assert overlap.slot == 2
    assert "slot 2 [0x2000, 0x3000)" in str(overlap)
    invalid = refused(errno.EINVAL, put, vm, 1, 1, 3)
    assert isinstance(invalid, errors.InvalidRegionError)
    missing = refused(errno.ENOENT, vm.get_dirty_log, 1)
    assert isinstance(missing, errors.NoSuchSlotError)
    put(vm, 1, 1, 2, LOG)
    fault = refused(errno.EFAULT, vm._get_dirty_log_null, 1)
    assert isinstance(fault, errors.GuestAccessError)


def test_guest_memfd_goes_through_the_second_call(vm):
    if not vm.check_extension("guest_memfd"):
        pytest.skip("this kernel has no guest_memfd")
    refused(errno.EINVAL, put, vm, 1, 0, 1, flags=GUEST_MEMFD)
    none = refused(errno.EBADF, put, vm, 1, 0, 1, flags=GUEST_MEMFD, guest_memfd=-1)
    # The answers of memslots.VM: see test_file_that_is_not_a_guest_memfd_is_refused.
    with open("/dev/null", "rb") as file:
        refused(errno.EINVAL, put, vm, 1, 0, 1, flags=GUEST_MEMFD, guest_memfd=file.fileno())
        path = os.open("/dev/null", os.O_PATH)
        refused(errno.EBADF, put, vm, 1, 0, 1, flags=GUEST_MEMFD, guest_memfd=path)
        os.close(path)
    assert not isinstance(none, errors.ClosedError)
    unaligned = {"guest_memfd": -1, "guest_memfd_offset": 1}
    refused(errno.EINVAL, put, vm, 1, 0, 1, flags=GUEST_MEMFD, **unaligned)
    put(vm, 1, 0, 1, guest_memfd=-1)


def test_unknown_address_space_is_refused(vm):
    refused(errno.EINVAL, put, vm, 0, 0, 1, as_id=vm.address_spaces)
    refused(errno.EINVAL, vm.get_dirty_log, 0, as_id=vm.address_spaces)


@pytest.mark.parametrize(
    ("field", "bits"),
    [
        ("slot", 16),
        ("as_id", 16),
        ("flags", 32),
        ("guest_phys_addr", 64),
        ("memory_size", 64),
        ("userspace_addr", 64),
    ],
)
@pytest.mark.parametrize("second_call", [False, True])
def test_numbers_never_wrap(vm, no_ioctl, field, bits, second_call):
    no_ioctl()
    for number in (-1, 1 << bits, 1 << 200):
        fields = {"slot": 0, "guest_phys_addr": 0, "memory_size": PAGE, field: number}
        if second_call:
            fields["guest_memfd"] = -1
        with pytest.raises(OverflowError):
            vm.set_user_memory_region(fields.pop("slot"), **fields)


def test_other_numbers_never_wrap(vm, no_ioctl):
    no_ioctl()
    words = np.zeros(1, np.uint64)
    calls = (
        lambda n: put(vm, 0, 0, 1, guest_memfd=-1, guest_memfd_offset=n),
        lambda n: put(vm, 0, 0, 1, guest_memfd=n * 2),
        lambda n: vm.get_dirty_log(n),
        lambda n: vm.get_dirty_log(0, n),
        lambda n: vm._get_dirty_log_null(n),
        lambda n: vm.clear_dirty_log(n, 0, 64, words),
        lambda n: vm.clear_dirty_log(0, n, 64, words),
        lambda n: vm.clear_dirty_log(0, 0, n, words),
        lambda n: vm.clear_dirty_log(0, 0, 64, words, n),
        lambda n: setattr(vm, "manual_dirty_log_protect", n),
    )
    for call in calls:
        for number in (-(1 << 40), 1 << 64):
            with pytest.raises(OverflowError):
                call(number)


def test_wrong_types_raise_typeerror(vm, no_ioctl):
    no_ioctl()
    for wrong in ("1", 1.0, None, [1]):
        with pytest.raises(TypeError):
            put(vm, wrong, 0, 1, hva=0)
        with pytest.raises(TypeError):
            vm.get_dirty_log(wrong)
        with pytest.raises(TypeError):
            vm.clear_dirty_log(0, wrong, 64, None)
        with pytest.raises(TypeError):
            vm.manual_dirty_log_protect = wrong


def test_numpy_integers_are_accepted(vm):
    put(vm, np.int64(7), 0, 1, hva=0, guest_phys_addr=np.uint64(0x1000))
    refused(errno.EINVAL, put, vm, 8, 0, 1, guest_phys_addr=np.uint64(2**64 - PAGE))
    put(vm, np.uint16(7), 0, 0, hva=0)


# ---- dirty logs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("npages", [1, 63, 64, 65, 128, 4097, 1 << 18])
def test_size_of_a_dirty_log(vm, npages):
    vm.manual_dirty_log_protect = 3
    put(vm, 5, 0x100, npages, flags=LOG)
    words = vm.get_dirty_log(5)
    assert words.dtype == np.uint64
    assert words.size == -(-npages // 64)
    assert words.flags.owndata
    assert int(np.bitwise_count(words).sum()) == npages


def test_dirty_log_follows_the_size_of_the_slot(vm):
    vm.manual_dirty_log_protect = 3
    for npages in (1000, 10, 700):
        put(vm, 5, 0, npages, flags=LOG)
        assert vm.get_dirty_log(5).size == -(-npages // 64)
        put(vm, 5, 0, 0)
        refused(errno.ENOENT, vm.get_dirty_log, 5)


def test_refused_changes_leave_the_size_alone(vm):
    vm.manual_dirty_log_protect = 3
    put(vm, 5, 0, 1000, flags=LOG)
    refused(errno.EINVAL, put, vm, 5, 0, 10, flags=LOG)
    refused(errno.EINVAL, put, vm, 5, 0, 0, guest_phys_addr=1)
    assert vm.get_dirty_log(5).size == 16


def test_clear(vm):
    vm.manual_dirty_log_protect = 3
    put(vm, 1, 0, 200, flags=LOG)
    vm.clear_dirty_log(1, 64, 64, np.array([0xFF], np.uint64))
    vm.clear_dirty_log(1, 128, 72, np.full(2, 2**64 - 1, np.uint64)[::1])
    assert vm.get_dirty_log(1).tolist() == [2**64 - 1, 2**64 - 1 - 0xFF, 0, 0]
    strided = np.array([1, 0, 2, 0], np.uint64)[::2]
    vm.clear_dirty_log(1, 0, 128, strided)
    assert vm.get_dirty_log(1).tolist() == [2**64 - 2, 2**64 - 1 - 0xFF, 0, 0]


def test_clear_refuses(vm):
    word = np.zeros(1, np.uint64)
    put(vm, 1, 0, 200, flags=LOG)
    refused(errno.EINVAL, vm.clear_dirty_log, 9, 1, 64, word)
    refused(errno.ENOENT, vm.clear_dirty_log, 9, 0, 64, word)
    refused(errno.EINVAL, vm.clear_dirty_log, 1, 192, 64, word)
    refused(errno.EINVAL, vm.clear_dirty_log, 1, 0, 2**32 - 1, word)
    refused(errno.EFAULT, vm.clear_dirty_log, 1, 0, 64, None)
    vm.clear_dirty_log(1, 0, 0, None)


def test_bitmap_of_another_size_comes_after_the_kernels_checks(vm):
    vm.manual_dirty_log_protect = 3
    put(vm, 1, 0, 200, flags=LOG)
    for nr_words in (0, 1, 3):
        words = np.full(nr_words, 2**64 - 1, np.uint64)
        error = refused(errno.EINVAL, vm.clear_dirty_log, 1, 0, 128, words)
        assert f"{nr_words} words" in str(error)
        refused(errno.ENOENT, vm.clear_dirty_log, 2, 0, 128, words)
    refused(errno.EINVAL, vm.clear_dirty_log, 1, 0, 0, np.zeros(1, np.uint64))
    assert int(np.bitwise_count(vm.get_dirty_log(1)).sum()) == 200


@pytest.mark.parametrize(
    "bitmap",
    [
        [5],
        np.array([5], np.int64),
        np.array([5], np.uint8),
        np.array([5], ">u8"),
        np.arange(5, 11)[::6],
    ],
    ids=["list", "signed", "narrow", "byte order", "stride"],
)
def test_bitmap_of_another_type(vm, bitmap):
    """KvmVM accepts the same arrays as VM."""
    vm.manual_dirty_log_protect = 3
    put(vm, 1, 0, 64, flags=LOG)
    vm.clear_dirty_log(1, 0, 64, bitmap)
    assert vm.get_dirty_log(1).tolist() == [2**64 - 1 - 5]


def test_bitmap_that_is_none_of_integers(vm):
    vm.manual_dirty_log_protect = 3
    put(vm, 1, 0, 64, flags=LOG)
    for bitmap, way in (
        (np.ma.array([5], mask=[True]), "bitmap is a masked array; use bitmap.compressed()"),
        (b"12345678", "use np.frombuffer(bitmap, dtype=np.uint64)"),
        ([1.0], "element 0 of bitmap must be an int, not float"),
    ):
        with pytest.raises(TypeError, match=re.escape(way)):
            vm.clear_dirty_log(1, 0, 64, bitmap)
    assert vm.get_dirty_log(1).tolist() == [2**64 - 1]


def test_null_buffer_loses_the_log_only_without_manual_protection(vm):
    vm.manual_dirty_log_protect = 3
    put(vm, 1, 0, 64, flags=LOG)
    refused(errno.EFAULT, vm._get_dirty_log_null, 1)
    assert vm.get_dirty_log(1).tolist() == [2**64 - 1]
    vm.manual_dirty_log_protect = 0
    refused(errno.EFAULT, vm._get_dirty_log_null, 1)
    assert vm.get_dirty_log(1).tolist() == [0]
    refused(errno.ENOENT, vm._get_dirty_log_null, 2)


def test_manual_protect(vm):
    assert vm.manual_dirty_log_protect == 0
    vm.manual_dirty_log_protect = 3
    for value in (2, 4, 5, 1 << 63):
        with pytest.raises(errors.InvalidRegionError):
            vm.manual_dirty_log_protect = value
        assert vm.manual_dirty_log_protect == 3


# ---- slots that are too large to ask for ---------------------------------------------------------


@pytest.mark.parametrize("npages", [kvm.MAX_BUILT_PAGES + 1, MEM_MAX_NR_PAGES])
@pytest.mark.parametrize("flags", [0, LOG, READONLY])
def test_huge_slot_does_not_reach_the_kernel(vm, no_ioctl, npages, flags):
    assert vm.hva_end_max  # read it now: the next line forbids ioctls
    no_ioctl()
    with pytest.raises(NotCompared, match="slot 1 "):
        put(vm, 1, 0, npages, flags=flags)


def test_largest_allowed_slot_is_created(vm):
    assert not vm._would_be_built((0, 1), _Range(0, kvm.MAX_BUILT_PAGES * PAGE))
    assert vm._would_be_built((0, 1), _Range(0, TOO_LARGE))


def test_huge_slot_that_the_kernel_refuses_reaches_it(vm):
    huge = MEM_MAX_NR_PAGES
    put(vm, 1, 1, 1)
    refused(errno.EEXIST, put, vm, 2, 0, huge)
    refused(errno.EINVAL, put, vm, 1, 1, huge)
    refused(errno.EINVAL, put, vm, 2, 0x100, huge + 1)
    refused(errno.EINVAL, put, vm, 2, 0x100, huge, guest_phys_addr=0x100001)
    refused(errno.EINVAL, put, vm, vm.user_mem_slots, 0x100, huge)
    refused(errno.EINVAL, put, vm, 2, 0x100, huge, hva=vm.hva_end_max)
    refused(errno.EINVAL, put, vm, 2, 0x100, huge, flags=8)
    refused(errno.EINVAL, put, vm, 2, 2**52 - 1, huge)
    assert not vm._shadows


def test_call_that_depends_on_a_skipped_huge_slot_is_not_made(vm):
    put(vm, 7, 1 << 38, 1)
    with pytest.raises(NotCompared):
        put(vm, 1, 0, MEM_MAX_NR_PAGES, flags=LOG)
    for call in (vm.get_dirty_log, vm._get_dirty_log_null):
        with pytest.raises(NotCompared):
            call(1)
    with pytest.raises(NotCompared):
        vm.clear_dirty_log(1, 0, 64, None)
    with pytest.raises(NotCompared):
        put(vm, 2, 5, 1)  # would overlap the huge slot
    with pytest.raises(NotCompared):
        vm.get_dirty_log(2)
    put(vm, 3, 1 << 37, 1)  # beyond the huge slot
    refused(errno.EINVAL, put, vm, 1, 0, 0, flags=8)  # refused in any state of slot 1
    refused(errno.EEXIST, put, vm, 4, 1 << 37, 1)


def test_deleted_huge_slot_no_longer_blocks_calls(vm):
    for slot, base, npages in ((1, 0, MEM_MAX_NR_PAGES), (2, 5, 1), (1, 0, 0), (2, 0, 0)):
        with pytest.raises(NotCompared):
            put(vm, slot, base, npages)
    put(vm, 1, 5, 1)
    put(vm, 2, 6, 1)


def test_delete_clears_a_slot_in_unknown_state(vm):
    put(vm, 2, 1 << 38, 1)
    for slot, base, npages in ((1, 0, MEM_MAX_NR_PAGES), (2, 5, 1), (2, 0, 0)):
        with pytest.raises(NotCompared):
            put(vm, slot, base, npages)
    refused(errno.EINVAL, put, vm, 2, 0, 0)
    put(vm, 3, 1 << 38, 1)


def test_failed_delete_keeps_the_slot_in_unknown_state(vm, monkeypatch):
    put(vm, 2, 1 << 38, 1)
    for slot, base, npages in ((1, 0, MEM_MAX_NR_PAGES), (2, 5, 1)):
        with pytest.raises(NotCompared):
            put(vm, slot, base, npages)
    before = (dict(vm._regions), dict(vm._shadows))

    def no_memory(*args):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", no_memory)
        assert refused(errno.ENOMEM, put, vm, 2, 0, 0).slot == 2
    assert (vm._regions, vm._shadows) == before
    with pytest.raises(NotCompared):
        put(vm, 2, 0, 0)
    refused(errno.EINVAL, put, vm, 2, 0, 0)


def test_delete_that_may_fail_keeps_the_unknown_state(vm):
    with pytest.raises(NotCompared):
        put(vm, 1, 0, MEM_MAX_NR_PAGES)
    for flags in (GUEST_MEMFD, GUEST_MEMFD | LOG):
        with pytest.raises(NotCompared):
            put(vm, 1, 0, 0, flags=flags, guest_memfd=-1)
    with pytest.raises(NotCompared):
        put(vm, 2, 0, 1)


# ---- closed --------------------------------------------------------------------------------------


def test_closed_vm_refuses_every_call(vm):
    put(vm, 1, 0, 1, flags=LOG)
    vm.close()
    vm.close()
    calls = (
        lambda: put(vm, 1, 0, 1),
        lambda: vm.get_dirty_log(1),
        lambda: vm._get_dirty_log_null(1),
        lambda: vm.clear_dirty_log(1, 0, 0, None),
        lambda: setattr(vm, "manual_dirty_log_protect", 1),
        lambda: vm.check_extension("nr_memslots"),
    )
    for call in calls:
        assert isinstance(refused(errno.EBADF, call), errors.ClosedError)


def test_close_releases_all_descriptors(vm):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        KvmVM().close()
    assert len(os.listdir("/proc/self/fd")) == before
