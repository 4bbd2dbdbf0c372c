# SPDX-License-Identifier: MIT
"""The file descriptor of a Device, a Vm or a Vcpu.

Invariants
  F1  A descriptor is closed once, by `_release()`, and not while an ioctl uses it: `_using()` excludes close().  A
      closed handle refuses every call with ClosedError.
  F2  A forked child makes no ioctl, but gets ForkedError: the parent's vCPUs share their run pages with it.  It takes
      no lock either, because a thread of the parent may have held it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import index
from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from ..errors import MemslotsError, from_errno
from . import _ioctl, ioctls
from .closing import Closing
from .refusals import errno_of

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Handle(Closing):
    """The base of Device, Vm and Vcpu."""

    _fd: int = -1

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd {self._fd}"
        return f"<memslots.kvm.{type(self).__name__}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied")

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def fileno(self) -> int:
        """The file descriptor, for ioctls that have no method and for other libraries."""
        return self._checked_fd()

    def close(self) -> None:
        """Closes the file descriptor.  A second call does nothing."""
        with self._lock_of_process():
            self._release()

    def ioctl(self, request: SupportsIndex, argument: SupportsIndex | Buffer = 0) -> int:
        """Makes any ioctl and returns its result.  The GIL is released meanwhile.

        argument: an int of up to 64 bits, or a writable buffer, whose address the kernel gets and may write to.
        MemslotsError: the kernel refused it, with the kernel's errno."""
        return self._ioctl(index(request), argument, f"ioctl {index(request):#x}")

    def _ioctl(self, request: int, argument: SupportsIndex | Buffer, what: str) -> int:
        with self._using() as fd:
            try:
                return _ioctl.call(fd, request, argument)
            except OSError as e:
                number = errno_of(e)
                raise MemslotsError(number, f"{what}: {os.strerror(number)}") from None

    @contextmanager
    def _using(self) -> Iterator[int]:
        """Gives the descriptor, and keeps it open meanwhile (F1)."""
        self._checked_fd()
        with self._lock:
            yield self._checked_fd()

    def _lock_of_process(self) -> AbstractContextManager[object]:
        """The lock, or nothing in a forked child, which may close its copy of the descriptor (F2)."""
        return self._lock if os.getpid() == self._pid else nullcontext()

    def _checked_fd(self) -> int:
        name = type(self).__name__
        if self._fd < 0:
            raise from_errno(errno.EBADF, f"the {name} is closed")
        if os.getpid() != self._pid:
            raise from_errno(errno.EIO, f"the {name} belongs to process {self._pid}, a fork ago")
        return self._fd

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def extension_number(extension: str | SupportsIndex) -> int:
    """The number of an extension.  A name is that of KVM_CAP_..., in lower case: a key of `ioctls.EXTENSIONS`."""
    if not isinstance(extension, str):
        return index(extension)
    if extension not in ioctls.EXTENSIONS:
        known = ", ".join(ioctls.EXTENSIONS)
        raise ValueError(f"unknown extension {extension!r}; use its number, or one of {known}")
    return ioctls.EXTENSIONS[extension]
