# SPDX-License-Identifier: MIT
"""Host memory for slots: page-aligned, with the buffer protocol."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import mmap
import operator
import os
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Self, SupportsIndex

import numpy as np

from .constants import PAGE_SIZE
from .errors import MemslotsError, NotSupportedError, OutOfMemoryError, from_errno

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._memslots import MemorySlot

__all__ = ["HostRanges", "HostRangesMany", "Memory", "PinnedBy", "SlotsOfRanges", "alloc"]

# With it a guest may be larger than the memory that is free at the moment.  mmap has the name from Python 3.13 on; the
# number is that of x86-64 and arm64.
_MAP_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000)

_HUGE_PAGE = 2 << 20

_NAME_BYTES = 249  # the longest name of a memfd


class PinnedBy(NamedTuple):
    """The users of a buffer, from ``VM.pinned_by()``.  False if there are none."""

    slots: list[MemorySlot]
    views: int
    snapshots: int = 0
    others: int = 0

    def __bool__(self) -> bool:
        return bool(self.slots or self.views or self.snapshots or self.others)


class HostRanges(NamedTuple):
    """The answer of ``VM.host_ranges()``."""

    ranges: list[tuple[int, int]]
    hole: int | None


class HostRangesMany(NamedTuple):
    """The answer of ``VM.host_ranges_many()``."""

    ranges: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]
    holes: npt.NDArray[np.uint64]


class SlotsOfRanges(NamedTuple):
    """The answer of ``VM.memslots_in_gfn_range_many()``."""

    slots: npt.NDArray[np.void]
    offsets: npt.NDArray[np.int64]


def alloc(size: SupportsIndex, *, shared: bool = False, name: str = "") -> Memory:
    """New Memory for a slot: ``size`` bytes of zeros, page-aligned.

    size: a multiple of 4096.  The system takes a page when it is first written; from 2 MiB on the memory asks for huge
    pages.
    shared: whether forked processes share the memory.  If not, a child of fork() has a copy: writes of the child do not
    reach the parent, and writes of the parent do not reach the child.  Shared memory is a memfd; ``fileno()`` gives it
    to other processes.  Its size is sealed, so no process can truncate it under a reader.
    name: for the repr, and of a memfd for /proc/self/maps.  At most 249 bytes in UTF-8.

    ValueError: size is 0 or no multiple of 4096; name is too long or has a NUL.  OverflowError: size is negative.
    TypeError: shared is no bool.  OutOfMemoryError (ENOMEM): the system has no such memory.  MemslotsError (EMFILE,
    ENFILE): the memory is shared, and no file descriptor is free.  It needs two.
    """
    return Memory(size, shared=shared, name=name)


class Memory(mmap.mmap):
    """Memory(size, *, shared=False, name="")

    Page-aligned host memory with the buffer protocol.  ``memslots.alloc()`` makes it and explains the arguments.

    A Memory is an ``mmap.mmap`` and has its methods: ``m[0:4]`` is bytes, ``len(m)`` is the size, and so on.
    ``close()`` and the end of ``with`` raise BufferError while a slot, a view or an array uses the memory.
    ``vm.pinned_by(memory)`` names the slots, and counts the other users.  A Memory that was not closed is freed with
    its last reference.
    """

    # The values of an object that its subclass has not made yet.
    _name: str = ""
    _shared: bool = False
    _file: _File | None = None  # of shared memory that is open

    def __new__(cls, size: SupportsIndex, *, shared: bool = False, name: str = "") -> Self:
        length = _checked_size(size)
        _check_name(name)
        _check_shared(shared)
        file = _memfd(length, name) if shared else None
        fd = file.number if file else -1
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            memory = super().__new__(cls, fd, length, flags=flags | _MAP_NORESERVE)
        except (OSError, OverflowError) as error:
            raise _refusal(length, error) from error
        memory._name, memory._shared, memory._file = name, bool(shared), file
        if length >= _HUGE_PAGE:
            memory._use_huge_pages()
        return memory

    def _use_huge_pages(self) -> None:
        """Asks for huge pages, as numpy does for its arrays.  Random accesses of 4 GiB are 2.4 times as fast."""
        with contextlib.suppress(OSError):  # a kernel without them
            self.madvise(mmap.MADV_HUGEPAGE)

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Memory cannot be pickled or copied; bytes(memory) copies its content")

    def __repr__(self) -> str:
        name = f" {self._name!r}" if self._name else ""
        size = "closed" if self.closed else f"{len(self):#x} bytes"
        return f"<Memory{name}: {'shared' if self._shared else 'private'}, {size}>"

    @property
    def name(self) -> str:
        """The name that the memory was made with."""
        return self._name

    @property
    def shared(self) -> bool:
        """Whether forked processes share the memory."""
        return self._shared

    @property
    def address(self) -> int:
        """The host address of the first byte: the userspace_addr of a slot that maps all of the memory."""
        return int(np.frombuffer(self, np.uint8).__array_interface__["data"][0])

    def size(self) -> int:
        """The size in bytes, as len()."""
        return len(self)

    def fileno(self) -> int:
        """The file descriptor of shared memory, for another process that maps it too.

        io.UnsupportedOperation: private memory has no file.  ValueError: the memory is closed."""
        if not self._shared:
            raise io.UnsupportedOperation("private memory has no file; use alloc(..., shared=True)")
        if not self._file:
            raise ValueError("the memory is closed")
        return self._file.number

    def close(self) -> None:
        """Frees the memory.  A second call does nothing.

        BufferError: a slot, a view or an array uses it."""
        try:
            super().close()
        except BufferError as error:
            raise BufferError(
                f"{self!r} is in use: delete the slots and views and close the snapshots that vm.pinned_by(memory) "
                "names, and delete other views and arrays of it"
            ) from error
        self._file = None


class _File:
    """A file descriptor that is closed with the last reference to it.

    So the file of a Memory that a finalizer keeps stays open, unless the garbage collector has found it in a cycle.
    The object exists before the descriptor is opened.  So no failed allocation can lose an open descriptor."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = -1

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _checked_size(size: SupportsIndex) -> int:
    if isinstance(size, bool | np.bool_) or not hasattr(size, "__index__"):
        raise TypeError(f"size must be an int, not {type(size).__name__}")
    length = operator.index(size)
    if length < 0:
        raise OverflowError(f"size must not be negative, but is {_in_words(length)}")
    if not length or length % PAGE_SIZE:
        better = (length // PAGE_SIZE + 1) * PAGE_SIZE
        raise ValueError(
            f"size {length:#x} is not a multiple of {PAGE_SIZE}, or is 0; use {better:#x}"
        )
    return length


def _in_words(number: int) -> str:
    """Python refuses to print an int of more than 4,300 digits."""
    bits = number.bit_length()
    return str(number) if bits <= 256 else f"a number of {bits} bits"


def _check_shared(shared: bool) -> None:
    if not isinstance(shared, bool | np.bool_):
        raise TypeError(f"shared must be a bool, not {type(shared).__name__}")


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    if "\0" in name:
        raise ValueError(f"name {name!r} has a NUL")
    if (n := len(name.encode())) > _NAME_BYTES:
        raise ValueError(f"name has {n} bytes in UTF-8; at most {_NAME_BYTES} are allowed")


def _refusal(length: int, error: Exception) -> MemslotsError:
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE):
        return from_errno(number, f"shared memory needs two file descriptors: {error}")
    return OutOfMemoryError(
        errno.ENOMEM, f"the system gives no {length:#x} bytes: {error}", rule="NO_MEMORY"
    )


def _memfd(length: int, name: str) -> _File:
    """A memory file whose size never changes."""
    if not hasattr(os, "memfd_create"):
        raise NotSupportedError(errno.ENOSYS, "this Python has no os.memfd_create()")
    file = _File()
    try:
        file.number = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file.number, length)
    except (OSError, OverflowError) as error:
        raise _refusal(length, error) from error
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file.number, fcntl.F_ADD_SEALS, seals)
    return file
