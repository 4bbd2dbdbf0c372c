# SPDX-License-Identifier: MIT
"""A vCPU: it runs the guest in the thread that calls `run()`, and other threads can end the run with `kick()`.

Invariants
  C1  `_lock` protects `_user`, the thread that uses the vCPU, and the byte immediate_exit of the run page.  `_user` is
      None while no thread is inside of a call.  A call of a second thread fails.
  C2  kick() sets immediate_exit first, and then sends the signal, both under `_lock`.  If the thread is on its way into
      KVM_RUN, the kernel reads immediate_exit and returns EINTR.  If it is inside, the signal ends KVM_RUN.
  C3  Only a run() that returns Intr clears immediate_exit, under `_lock`.  So a kick makes the run() in progress return
      Intr, or the next one if the run() in progress had another exit at the same time.  Kicks of the same run() count
      as one.
"""

import errno
import mmap
import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ..errors import MemslotsError, NotSupportedError, from_errno
from . import _ioctl, ioctls
from .exits import IMMEDIATE_EXIT, REASON, Exit, Intr, MemoryFault, read_exit
from .handle import Handle
from .registers import REGS_SIZE, SREGS_SIZE, Regs, Sregs

if TYPE_CHECKING:
    from .machine import Vm

MACHINES = ("x86_64", "AMD64")


class VcpuBusyError(MemslotsError, RuntimeError):
    """EBUSY: another thread is inside a call of the vCPU, such as `run()`.  `kick()` ends a run."""


class Vcpu(Handle):
    """A vCPU of a Vm.  `Vm.create_vcpu()` makes it.

    One thread at a time uses a vCPU; it need not be the same thread every time.  Only `kick()` may be called while
    another thread is in `run()`."""

    def __init__(self, vm: "Vm", id: int, run_size: int) -> None:
        _check_machine(vm)
        self._signal = _kick_signal()
        fd = vm._call("KVM_CREATE_VCPU", id)
        super().__init__(fd)
        self._vm, self._id, self._runs = vm, id, 0
        self._user: int | None = None
        try:
            self._memory = mmap.mmap(fd, run_size)
        except BaseException:
            self._release()
            raise
        self._page = memoryview(self._memory)

    def __del__(self) -> None:
        self._release()

    @property
    def vm(self) -> "Vm":
        return self._vm

    @property
    def id(self) -> int:
        return self._id

    # ---- running ---------------------------------------------------------------------------------

    def run(self) -> Exit:
        """KVM_RUN: runs the guest until it exits, and returns the reason.  The GIL is released meanwhile.

        VcpuBusyError: another thread is in a call of this vCPU.  MemslotsError: the kernel refused, such as with
        EAGAIN for a vCPU that waits for a startup interrupt, or EFAULT for a region without memory behind it."""
        with self._claimed() as fd:
            self._runs += 1
            # After an error, an old kernel would leave the reason of the run before.
            self._memory[REASON : REASON + 4] = bytes(4)
            number = _ioctl.run(fd)
            if number == errno.EINTR:
                return self._interrupted()
            exit = read_exit(self._page, partial(self._write_answer, self._runs))
            if number and not isinstance(exit, MemoryFault):
                raise MemslotsError(number, f"KVM_RUN of vCPU {self._id}: {os.strerror(number)}")
            return exit

    def _interrupted(self) -> Intr:
        with self._lock:
            kicked = bool(self._memory[IMMEDIATE_EXIT])
            self._memory[IMMEDIATE_EXIT] = 0  # C3
        return Intr(kicked)

    def _write_answer(self, run: int, offset: int, data: bytes) -> None:
        """Writes the reply to an exit of that run."""
        with self._claimed():
            if run != self._runs:
                raise ValueError(f"vCPU {self._id} has run on: this exit takes no reply any more")
            self._memory[offset : offset + len(data)] = data

    def kick(self) -> None:
        """Makes `run()` return Intr soon: the one in progress, or else the next one.  No kick is lost.

        Any thread may call it.  It does not wait for the end of the run."""
        self._checked_fd()
        with self._lock:
            self._checked_fd()
            self._memory[IMMEDIATE_EXIT] = 1  # C2
            if self._user is not None:
                signal.pthread_kill(self._user, self._signal)

    # ---- registers -------------------------------------------------------------------------------

    @property
    def regs(self) -> Regs:
        """The general registers: KVM_GET_REGS.  Assign a changed copy to set them: KVM_SET_REGS."""
        raw = bytearray(REGS_SIZE)
        self._ioctl(ioctls.KVM_GET_REGS, raw, "KVM_GET_REGS")
        return Regs.unpack(raw)

    @regs.setter
    def regs(self, value: Regs) -> None:
        self._ioctl(ioctls.KVM_SET_REGS, bytearray(value.pack()), "KVM_SET_REGS")

    @property
    def sregs(self) -> Sregs:
        """The segment and control registers: KVM_GET_SREGS.  Assign a changed copy to set them: KVM_SET_SREGS."""
        raw = bytearray(SREGS_SIZE)
        self._ioctl(ioctls.KVM_GET_SREGS, raw, "KVM_GET_SREGS")
        return Sregs.unpack(raw)

    @sregs.setter
    def sregs(self, value: Sregs) -> None:
        self._ioctl(ioctls.KVM_SET_SREGS, bytearray(value.pack()), "KVM_SET_SREGS")

    # ---- one user at a time ----------------------------------------------------------------------

    def close(self) -> None:
        """Closes the vCPU.  A second call does nothing.  VcpuBusyError: another thread is in `run()`."""
        self._claim_for_close()
        self._release()

    @contextmanager
    def _using(self) -> Iterator[int]:
        with self._claimed() as fd:
            yield fd

    @contextmanager
    def _claimed(self) -> Iterator[int]:
        """Makes this thread the user of the vCPU (C1) and gives the descriptor.

        KeyboardInterrupt may come between any two steps."""
        me = threading.get_ident()
        is_nested = self._user == me  # a signal handler inside of a call: the claim below fails
        self._checked_fd()
        try:
            with self._lock:
                fd = self._checked_fd()
                self._claim()
            yield fd
        finally:
            if not is_nested and self._user == me:
                self._unclaim()

    def _claim(self) -> None:
        if self._user is not None:
            raise VcpuBusyError(
                errno.EBUSY,
                f"vCPU {self._id} is in use by thread {self._user}; kick() ends its run()",
            )
        self._user = threading.get_ident()

    def _unclaim(self) -> None:
        with self._lock_of_process():
            self._user = None

    def _claim_for_close(self) -> None:
        if os.getpid() != self._pid:
            self._user = None  # the thread that used the vCPU is in the parent
        with self._lock_of_process():
            self._claim()

    def _release(self) -> None:
        """Closes the descriptor and the run page.  No thread uses the vCPU."""
        super()._release()
        if hasattr(self, "_page"):
            self._page.release()
            self._memory.close()
        self._user = None


def _check_machine(vm: "Vm") -> None:
    if platform.machine() not in MACHINES:
        raise NotSupportedError(
            errno.ENOSYS, f"vCPUs are supported on x86-64 only, not on {platform.machine()}"
        )
    if not vm.check_extension("immediate_exit"):
        raise NotSupportedError(
            errno.ENOSYS,
            "this kernel lacks KVM_CAP_IMMEDIATE_EXIT (Linux 4.11), which kick() needs",
        )


_signal_lock = threading.Lock()


def _kick_signal() -> int:
    with _signal_lock:
        try:
            return _ioctl.kick_signal()
        except OSError as e:
            raise from_errno(errno.ENOSYS, f"no signal is left for kick(): {e}") from None
