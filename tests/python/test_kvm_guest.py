# SPDX-License-Identifier: MIT
"""Guests on /dev/kvm: Device, Vm, Vcpu, the exits, and kicks."""

import errno
import gc
import os
import pickle
import platform
import signal
import sys
import threading
import weakref
from dataclasses import FrozenInstanceError, astuple, replace

import guest as guests
import numpy as np
import pytest
from guest import CODE, HLT, IN_AL, LOOP, OUT_AL, OUT_LOOP, PAGE, Guest, load_al, store_al
from scene import runs

import memslots
from memslots import errors, kvm
from memslots.kvm import exits, ioctls
from memslots.kvm.registers import REGS_SIZE, SREGS_SIZE

LOG, READONLY, GUEST_MEMFD = 1, 2, 4


@pytest.fixture
def guest():
    with guests.guest() as made:
        yield made


@pytest.fixture
def vm():
    guests.needs_kvm()
    with kvm.open() as device:
        vm = device.create_vm()
    with vm:
        yield vm


def refused(number, call, *args, **fields):
    with pytest.raises(errors.MemslotsError) as caught:
        call(*args, **fields)
    assert caught.value.errno == number, caught.value
    return caught.value


# ---- the device ----------------------------------------------------------------------------------


def test_open_without_a_device_is_not_supported(monkeypatch, tmp_path):
    monkeypatch.setattr(ioctls, "DEVICE", str(tmp_path / "kvm"))
    with pytest.raises(errors.NotSupportedError, match="ENOENT") as caught:
        kvm.open()
    assert caught.value.errno == errno.ENOENT


def test_open_another_device_is_not_supported(monkeypatch):
    monkeypatch.setattr(ioctls, "DEVICE", "/dev/null")
    with pytest.raises(errors.NotSupportedError, match="no KVM device"):
        kvm.open()


def test_open_another_version_is_not_supported(monkeypatch):
    guests.needs_kvm()
    monkeypatch.setattr(ioctls, "API_VERSION", 13)
    with pytest.raises(errors.NotSupportedError, match="version 12"):
        kvm.open()


def test_vcpus_need_x86_64(vm, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert refused(errno.ENOSYS, vm.create_vcpu).__class__ is errors.NotSupportedError


def test_capabilities():
    guests.needs_kvm()
    with kvm.open() as device, device.create_vm() as vm:
        assert device.capabilities["nr_memslots"] == device.check_extension(10) > 100
        assert vm.capabilities.keys() == device.capabilities.keys() == ioctls.EXTENSIONS.keys()
        with pytest.raises(ValueError, match="nr_memslots"):
            device.check_extension("nr_memslot")


def test_the_device_may_be_closed_before_its_vm(vm):
    assert vm.check_extension("nr_memslots") > 100


def test_every_call_on_a_closed_object_raises(guest):
    device = kvm.open()
    device.close()
    device.close()
    refused(errno.EBADF, device.create_vm)
    guest.vm.close()
    guest.vm.close()
    vm, vcpu = guest.vm, guest.vcpu
    calls = (
        vm.fileno, vm.create_vcpu, vm.create_irqchip, lambda: vm.get_dirty_log(0), lambda: vm.enable_cap(168, 1),
        lambda: vm.set_user_memory_region(1, guest_phys_addr=0, memory_size=0), vcpu.run, vcpu.kick, vcpu.fileno,
        lambda: vcpu.regs, lambda: vcpu.sregs, lambda: setattr(vcpu, "regs", kvm.Regs()),
    )  # fmt: skip
    for call in calls:
        assert isinstance(refused(errno.EBADF, call), errors.ClosedError)
    assert vm.closed
    assert vcpu.closed
    assert "closed" in repr(vcpu)


def test_objects_cannot_be_pickled(guest):
    for value in (guest.vm, guest.vcpu):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(value)


# ---- regions -------------------------------------------------------------------------------------


def test_errnos_of_regions_are_the_kernel_s(vm):
    put = vm.set_user_memory_region
    put(1, guest_phys_addr=0, memory_size=2 * PAGE, userspace_addr=1 << 30)
    refused(errno.EEXIST, put, 2, guest_phys_addr=PAGE, memory_size=PAGE)
    refused(errno.EINVAL, put, 2, guest_phys_addr=1, memory_size=PAGE)
    refused(errno.EINVAL, put, 1, guest_phys_addr=0, memory_size=PAGE, userspace_addr=1 << 30)
    refused(errno.EINVAL, put, 5, guest_phys_addr=0, memory_size=0)
    refused(errno.EINVAL, put, 1, guest_phys_addr=0, memory_size=0, as_id=9)
    with pytest.raises(OverflowError):
        put(1 << 16, guest_phys_addr=0, memory_size=PAGE)
    with pytest.raises(OverflowError):
        put(1, guest_phys_addr=-1, memory_size=PAGE)
    assert vm.regions == (kvm.Region(1, 0, 0, 2 * PAGE, 1 << 30, 0),)


def test_regions_follow_accepted_changes(vm):
    put = vm.set_user_memory_region
    put(1, guest_phys_addr=8 * PAGE, memory_size=PAGE, userspace_addr=1 << 30)
    put(2, guest_phys_addr=0, memory_size=PAGE, userspace_addr=1 << 30)
    put(1, guest_phys_addr=4 * PAGE, memory_size=PAGE, userspace_addr=1 << 30)
    put(2, guest_phys_addr=0, memory_size=PAGE, userspace_addr=1 << 30, flags=LOG)
    assert [(r.slot, r.guest_phys_addr, r.flags) for r in vm.regions] == [
        (2, 0, LOG),
        (1, 4 * PAGE, 0),
    ]
    put(2, guest_phys_addr=0, memory_size=0)
    assert [r.slot for r in vm.regions] == [1]


def test_arguments_of_memory(vm):
    memory = memslots.alloc(4 * PAGE)
    put = vm.set_user_memory_region
    with pytest.raises(TypeError, match="not both"):
        put(0, guest_phys_addr=0, memory=memory, userspace_addr=0)
    with pytest.raises(TypeError, match="memory_size"):
        put(0, guest_phys_addr=0, userspace_addr=0)
    with pytest.raises(ValueError, match="more than the 0x4000 bytes"):
        put(0, guest_phys_addr=0, memory=memory, memory_size=5 * PAGE)
    put(0, guest_phys_addr=0, memory=memoryview(memory)[PAGE : 3 * PAGE])
    assert vm.regions[0] == (0, 0, 0, 2 * PAGE, memory.address + PAGE, 0)
    refused(
        errno.EINVAL, put, 1, guest_phys_addr=4 * PAGE, memory=memoryview(memory)[16 : PAGE + 16]
    )


def test_a_region_holds_its_memory_until_the_delete(vm):
    memory = memslots.alloc(PAGE)
    vm.set_user_memory_region(0, guest_phys_addr=0, memory=memory)
    address = memory.address
    with pytest.raises(BufferError):
        memory.close()
    vm.set_user_memory_region(
        0, guest_phys_addr=PAGE, memory_size=PAGE, userspace_addr=address
    )  # moves
    with pytest.raises(BufferError):
        memory.close()
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0)
    memory.close()


def test_a_refused_region_does_not_hold_its_memory(vm):
    memory = memslots.alloc(PAGE)
    refused(errno.EINVAL, vm.set_user_memory_region, 0, guest_phys_addr=1, memory=memory)
    gc.collect()  # pytest's record of the exception is in a cycle
    memory.close()


def test_close_releases_the_memory(vm):
    memory = memslots.alloc(PAGE)
    vm.set_user_memory_region(0, guest_phys_addr=0, memory=memory)
    vm.close()
    memory.close()


def test_a_vcpu_keeps_its_vm_and_the_memory(guest):
    """The caller drops everything but the vCPU."""
    vcpu, vm = guest.vcpu, weakref.ref(guest.vm)
    guest.start(HLT)
    guest.vm = guest.memory = None
    gc.collect()
    assert vcpu.run() == exits.Hlt()
    guest.vm = vm()
    del vcpu


def test_a_mapping_of_the_engine_is_memory(vm):
    """The memory stays alive after the engine has unmapped it."""
    memory = memslots.alloc(2 * PAGE)
    with memslots.VM() as engine:
        mapping = engine.map_buffer(0x1000, memory)
        vm.set_user_memory_region(3, guest_phys_addr=mapping.gpa, memory=mapping)
        assert vm.regions[0].userspace_addr == engine.gpa_to_hva(0x1000)
        assert vm.regions[0].memory_size == 2 * PAGE
        mapping.unmap()
    with pytest.raises(BufferError):
        memory.close()
    vm.set_user_memory_region(3, guest_phys_addr=0, memory_size=0)
    memory.close()


def test_setup_with_arguments_above_2_to_the_31(vm):
    vm.set_identity_map_addr(0xFFFB_C000)
    refused(errno.EINVAL, vm.set_tss_addr, 0xFFFF_F000)  # three pages do not fit below 4 GiB
    vm.set_tss_addr(0xFFFB_D000)
    vm.create_irqchip()
    assert refused(errno.EEXIST, vm.create_irqchip).__class__ is errors.MemslotsError
    with pytest.raises(OverflowError):
        vm.set_tss_addr(1 << 64)
    with pytest.raises(OverflowError):
        vm.set_identity_map_addr(-1)


def test_any_ioctl_by_its_number(guest):
    raw = bytearray(REGS_SIZE)
    guest.start(HLT, rax=7)
    assert guest.vcpu.ioctl(ioctls.KVM_GET_REGS, raw) == 0
    assert kvm.Regs.unpack(raw) == kvm.Regs(rip=CODE, rax=7)
    assert guest.vm.ioctl(ioctls.KVM_CHECK_EXTENSION, 10) == guest.vm.check_extension("nr_memslots")
    refused(errno.ENOTTY, guest.vm.ioctl, 0xAE99)
    words = np.zeros(18, np.uint64)
    guest.vcpu.ioctl(np.int64(ioctls.KVM_GET_REGS), words)
    assert words[0] == 7
    assert guest.vm.ioctl(ioctls.KVM_CHECK_EXTENSION, np.uint64(10)) > 100
    for argument, error in (
        (b"abc", BufferError),
        (1.5, TypeError),
        (1 << 64, OverflowError),
        (-1, OverflowError),
    ):
        with pytest.raises(error):
            guest.vm.ioctl(ioctls.KVM_CHECK_EXTENSION, argument)


# ---- running -------------------------------------------------------------------------------------


def test_io_and_mmio_exits(guest):
    code = (
        load_al(0x2000)
        + OUT_AL
        + store_al(0x9000)
        + load_al(0x9001)
        + IN_AL
        + store_al(0x2001)
        + HLT
    )
    guest.memory[PAGE] = 0x42
    exit = guest.run(code)
    assert isinstance(exit, exits.Io)
    assert (exit.is_write, exit.port, exit.size, exit.count, exit.data) == (
        True,
        0x10,
        1,
        1,
        b"\x42",
    )
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Mmio)
    assert (exit.is_write, exit.gpa, exit.size, exit.data) == (True, 0x9000, 1, b"\x42")
    with pytest.raises(ValueError, match="is a write"):
        exit.reply(1)
    exit = guest.vcpu.run()
    assert (exit.is_write, exit.gpa, exit.data) == (False, 0x9001, b"")
    exit.reply(0x99)
    exit = guest.vcpu.run()
    assert guest.vcpu.regs.rax & 0xFF == 0x99
    assert (exit.is_write, exit.port) == (False, 0x12)
    exit.reply(b"\x77")
    assert guest.vcpu.run() == exits.Hlt()
    assert guest.memory[PAGE + 1] == 0x77


def test_a_read_without_a_reply_gives_zero(guest):
    exit = guest.run(store_al(0x9000) + load_al(0x9000) + HLT, rax=0xFF)
    assert exit.data == b"\xff"
    assert not guest.vcpu.run().is_write
    assert guest.vcpu.run() == exits.Hlt()
    assert guest.vcpu.regs.rax & 0xFF == 0


def test_a_reply_must_fit_and_come_in_time(guest):
    exit = guest.run(load_al(0x9000) + HLT)
    with pytest.raises(ValueError, match="reads 1 bytes, but data has 2"):
        exit.reply(b"ab")
    with pytest.raises(OverflowError):
        exit.reply(256)
    exit.reply(1)
    guest.vcpu.run()
    with pytest.raises(ValueError, match="has run on"):
        exit.reply(2)
    guest.vcpu.close()
    refused(errno.EBADF, exit.reply, 3)


def test_a_write_to_readonly_memory_exits(guest):
    rom = memslots.alloc(PAGE)
    rom[0] = 5
    guest.vm.set_user_memory_region(1, guest_phys_addr=0x8000, memory=rom, flags=READONLY)
    exit = guest.run(load_al(0x8000) + store_al(0x8001) + HLT)
    assert (exit.gpa, exit.is_write, exit.data) == (0x8001, True, b"\x05")
    assert rom[1] == 0


def test_shutdown(guest):
    sregs = guest.vcpu.sregs
    guest.vcpu.sregs = replace(
        sregs, idt=kvm.Table(0, 0)
    )  # no handler: the third fault ends the guest
    assert guest.run(b"\x0f\x0b") == exits.Shutdown()


def test_exits_of_all_reasons_from_a_run_page():
    def exit_of(reason, payload=b""):
        page = bytearray(4096)
        page[exits.REASON] = reason
        page[exits.PAYLOAD : exits.PAYLOAD + len(payload)] = payload
        return exits.read_exit(memoryview(page), lambda offset, data: None)

    u32, u64 = (lambda n: n.to_bytes(4, "little")), (lambda n: n.to_bytes(8, "little"))
    assert exit_of(5) == exits.Hlt()
    assert exit_of(8) == exits.Shutdown()
    assert exit_of(9, u64(0x80000021) + u32(3)) == exits.FailEntry(0x80000021, 3)
    assert exit_of(17, u32(1) + u32(2) + u64(7) + u64(8)) == exits.InternalError(1, (7, 8))
    assert len(exit_of(17, u32(1) + u32(99)).data) == 16  # a count beyond the structure
    assert exit_of(24, u32(2) + u32(0)) == exits.SystemEvent(2, ())
    assert exit_of(31) == exits.DirtyRingFull()
    assert exit_of(39, u64(8) + u64(0x1000) + u64(0x2000)) == exits.MemoryFault(8, 0x1000, 0x2000)
    unknown = exit_of(12, b"abc")
    assert (unknown.reason, unknown.payload[:4]) == (12, b"abc\0")


def test_registers_round_trip(guest):
    regs = kvm.Regs(*range(1, 17), rip=CODE, rflags=2)
    guest.vcpu.regs = regs
    assert guest.vcpu.regs == regs
    sregs = replace(guest.vcpu.sregs, cr2=0x1234_5678_9ABC, gdt=kvm.Table(0x5000, 0x27))
    guest.vcpu.sregs = sregs
    assert guest.vcpu.sregs == sregs
    with pytest.raises(FrozenInstanceError):
        guest.vcpu.regs.rip = 0
    with pytest.raises(OverflowError):
        guest.vcpu.regs = replace(regs, rax=1 << 64)


def test_layouts_of_registers():
    assert (REGS_SIZE, SREGS_SIZE) == (0x90, 0x138)  # the sizes in the numbers of the ioctls
    raw = bytes(range(256)) + bytes(SREGS_SIZE - 256)
    unpacked = kvm.Sregs.unpack(raw)
    assert unpacked.ds.base == int.from_bytes(raw[24:32], "little")
    assert unpacked.cr0 == int.from_bytes(raw[224:232], "little")
    assert kvm.Sregs.unpack(unpacked.pack()) == unpacked
    assert len(astuple(kvm.Regs())) == 18


def test_dirty_log_of_a_guest():
    with guests.guest(LOG) as guest:
        guest.vm.get_dirty_log(0)
        assert guest.run(store_al(0x2000) + store_al(0x4FFF) + HLT) == exits.Hlt()
        assert guest.vm.get_dirty_log(0).tolist() == [0b1010]
        assert guest.vm.get_dirty_log(0).tolist() == [0]
        refused(errno.ENOENT, guest.vm.get_dirty_log, 1)


def test_manual_dirty_log():
    with guests.guest() as guest:
        guest.vm.manual_dirty_log_protect = 1
        assert guest.vm.manual_dirty_log_protect == 1
        guest.vm.set_user_memory_region(
            1, guest_phys_addr=0x8000, memory=memslots.alloc(PAGE), flags=LOG
        )
        guest.run(store_al(0x8000) + HLT)
        for _ in range(2):
            assert guest.vm.get_dirty_log(1).tolist() == [1]
        guest.vm.clear_dirty_log(1, 0, 1, np.array([1], np.uint64))
        assert guest.vm.get_dirty_log(1).tolist() == [0]
        refused(errno.EINVAL, guest.vm.clear_dirty_log, 1, 0, 1, np.zeros(2, np.uint64))


def test_run_without_host_memory_raises_the_kernel_s_errno(guest):
    guest.vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0)
    guest.vm.set_user_memory_region(
        0, guest_phys_addr=CODE, memory_size=PAGE, userspace_addr=0x1000
    )
    guest.vcpu.regs = kvm.Regs(rip=CODE)
    found = None
    try:
        exit = guest.vcpu.run()
    except errors.MemslotsError as e:
        found = e
    if found:
        assert found.errno == errno.EFAULT
        assert "KVM_RUN of vCPU 0" in str(found)
    else:  # a hypervisor that emulates the code fails to fetch it
        assert isinstance(exit, exits.InternalError | exits.MemoryFault), exit


# ---- kicks and threads ---------------------------------------------------------------------------


class Runner(threading.Thread):
    """Runs a vCPU until an exit that is not wanted, and counts the exits."""

    def __init__(self, guest: Guest, code: bytes) -> None:
        super().__init__()
        self.guest, self.exits = guest, []
        guest.start(code)

    def run(self) -> None:
        self.exits.append(self.guest.vcpu.run())


def test_kick_ends_a_run(guest):
    runner = Runner(guest, LOOP)
    runner.start()
    guest.wait()
    guest.vcpu.kick()
    runner.join()
    assert runner.exits == [exits.Intr(kicked=True)]


def test_kick_before_the_run_ends_the_next_one(guest):
    guest.start(LOOP)
    guest.vcpu.kick()
    guest.vcpu.kick()
    assert guest.vcpu.run() == exits.Intr(kicked=True)
    guest.start(HLT)
    assert guest.vcpu.run() == exits.Hlt()  # two kicks of one run count as one


def test_kick_works_in_a_thread_that_blocks_all_signals(guest):
    guest.start(LOOP)
    found = []

    def body():
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        found.append(guest.vcpu.run())
        found.append(signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked)

    thread = threading.Thread(target=body)
    thread.start()
    guest.wait()
    guest.vcpu.kick()
    thread.join()
    assert found == [exits.Intr(kicked=True), True]


@pytest.mark.parametrize("code", [LOOP, OUT_LOOP], ids=["loop", "exits"])
def test_no_kick_is_lost(guest, code):
    """Each kick must be answered by an Intr of its own, at whatever moment it comes.

    The kicker waits for the answer before the next kick, so a lost kick hangs (faulthandler ends the run)."""
    rounds = 3_000
    guest.start(code)
    answers = threading.Semaphore(0)
    stop, count = threading.Event(), [0]

    def body():
        while not stop.is_set():
            exit = guest.vcpu.run()
            if isinstance(exit, exits.Intr) and exit.kicked:
                count[0] += 1
                answers.release()

    thread = threading.Thread(target=body)
    thread.start()
    for n in range(rounds):
        for _ in range(n % 7 * 30):  # another moment each time
            pass
        guest.vcpu.kick()
        answers.acquire()
    stop.set()
    guest.vcpu.kick()
    thread.join()
    assert count[0] in (rounds, rounds + 1)


def test_the_gil_is_free_while_the_guest_runs(guest):
    runner = Runner(guest, LOOP)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # a thread that kept the GIL would keep it
    try:
        runner.start()
        guest.wait()
        guest.vcpu.kick()
        runner.join()
    finally:
        sys.setswitchinterval(interval)
    assert runner.exits == [exits.Intr(kicked=True)]


def test_a_second_thread_is_refused(guest):
    runner = Runner(guest, LOOP)
    runner.start()
    guest.wait()
    vcpu, vm = guest.vcpu, guest.vm
    for call in (vcpu.run, lambda: vcpu.regs, lambda: vcpu.sregs, vcpu.close, vm.close):
        assert isinstance(refused(errno.EBUSY, call), kvm.VcpuBusyError)
    assert not vm.closed
    assert not vcpu.closed
    vcpu.kick()
    runner.join()
    assert vcpu.regs.rip in (CODE, CODE + 4)


def test_slots_change_while_the_guest_runs(guest):
    """The guest loads from a page that another thread plugs and unplugs, and sees the byte or an exit."""
    extra = memslots.alloc(PAGE)
    extra[0] = 0x42
    guest.start(load_al(0x8000) + OUT_AL + b"\xeb\xf9")  # jmp to the beginning
    seen, stop = set(), threading.Event()

    def body():
        while not stop.is_set():
            match guest.vcpu.run():
                case exits.Io(data=data):
                    seen.add(data)
                case exits.Mmio() as exit:
                    exit.reply(0x17)

    thread = threading.Thread(target=body)
    thread.start()
    while seen != {b"\x42", b"\x17"} or len(guest.vm.regions) != 1:
        guest.vm.set_user_memory_region(1, guest_phys_addr=0x8000, memory=extra)
        guest.vm.set_user_memory_region(1, guest_phys_addr=0, memory_size=0)
    stop.set()
    guest.vcpu.kick()
    thread.join()
    assert seen == {b"\x42", b"\x17"}


def test_vcpu_ids(guest):
    assert (guest.vcpu.id, guest.vm.create_vcpu().id, guest.vm.create_vcpu(7).id) == (0, 1, 7)
    assert refused(errno.EEXIST, guest.vm.create_vcpu, 7).__class__ is errors.MemslotsError
    assert guest.vm.create_vcpu().id == 8
    assert guest.vcpu.vm is guest.vm


# ---- processes and signals -----------------------------------------------------------------------

GUEST = """
sys.path.insert(0, {folder!r})
from guest import *
from memslots.kvm import exits
made = Guest()
vm, vcpu = made.vm, made.vcpu
"""


def guest_script(body):
    guests.needs_kvm()
    runs(GUEST.format(folder=os.path.dirname(__file__)) + body)


def test_a_forked_child_is_refused():
    guest_script("""
made.start(LOOP)
thread = threading.Thread(target=vcpu.run); thread.start()
made.wait()
pid = os.fork()
if not pid:
    status = 1
    try:
        for call in (vcpu.kick, vcpu.run, lambda: vcpu.regs, lambda: vm.get_dirty_log(0), vm.create_vcpu):
            assert refused(ForkedError, call).errno == errno.EIO
        vm.close()
        assert vm.closed and vcpu.closed
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
assert thread.is_alive()
vcpu.kick(); thread.join()
print("well")
""")


def test_ctrl_c_ends_a_run_in_the_main_thread():
    guest_script("""
made.start(LOOP)
def interrupt():
    made.wait()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    vcpu.run()
except KeyboardInterrupt:
    made.start(HLT)
    assert vcpu.run() == exits.Hlt()
    print("well")
""")


def test_another_signal_ends_a_run_without_a_kick():
    guest_script("""
made.start(LOOP)
calls = []
signal.signal(signal.SIGUSR1, lambda *args: calls.append(1))
def send():
    made.wait()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
threading.Thread(target=send).start()
assert vcpu.run() == exits.Intr(kicked=False)
assert calls == [1]
print("well")
""")


def test_a_handler_of_the_program_is_not_replaced():
    guest_script("""
from memslots.kvm import _ioctl
assert _ioctl.kick_signal() == signal.SIGRTMAX
os.kill(os.getpid(), signal.SIGRTMAX)  # a late signal of a kick does nothing
print("well")
""")
    runs("""
from memslots.kvm import _ioctl
signal.signal(signal.SIGRTMAX, signal.SIG_IGN)
assert _ioctl.kick_signal() == signal.SIGRTMAX - 1
print("well")
""")


def test_the_end_of_the_process_with_a_running_guest():
    guest_script("""
made.start(LOOP)
threading.Thread(target=vcpu.run, daemon=True).start()
made.wait()
print("well")
""")


# ---- a probe that changes nothing ----------------------------------------------------------------


def test_guest_memfd_of_minus_1_probes_slots():
    """KVM_SET_USER_MEMORY_REGION2 with the flag GUEST_MEMFD and the fd -1 always fails.

    Its errno depends on the state: the checks of an existing id and of an overlap come before that of the fd."""
    with guests.guest(LOG) as guest:
        if not guest.vm.check_extension("guest_memfd"):
            pytest.skip("this kernel has no guest_memfd")

        def probe(slot, gpa, npages=1):
            with pytest.raises(errors.MemslotsError) as caught:
                guest.vm.set_user_memory_region(
                    slot, guest_phys_addr=gpa, memory_size=npages * PAGE, userspace_addr=0,
                    flags=GUEST_MEMFD, guest_memfd=-1,
                )  # fmt: skip
            return errno.errorcode[caught.value.errno]

        guest.run(store_al(0x2000) + HLT)
        before = guest.vm.regions
        assert probe(0, CODE, 4) == "EINVAL"  # the id exists
        assert probe(0, 0x80000) == "EINVAL"  # the id exists, wherever the range is
        assert [probe(1, CODE + n * PAGE) for n in range(-1, 5)] == [
            "EBADF",
            *["EEXIST"] * 4,
            "EBADF",
        ]
        assert probe(1, 0, 2) == "EEXIST"
        assert guest.vm.regions == before
        assert guest.vm.get_dirty_log(0).tolist() == [0b10]  # no dirty bit is lost
        guest.vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0)
        assert probe(0, CODE, 4) == "EBADF"
