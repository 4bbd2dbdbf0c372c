# SPDX-License-Identifier: MIT
"""Converts the logs of other programs: `memslots import` and `memslots.load()`.

`read` finds the format of a log and reads it.  `to_vectors` makes a vector file of it.  `load` makes a VM of a log or
of a vector file.  A log may come from an untrusted source: every error of its content is a LogError.
"""

import gzip
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from .._memslots import VM
from ..constants import MemFlag
from ..errors import MemslotsError
from . import mtree_log, qemu_log, strace_log, vectors
from .changes import Change, FieldError, Lines, Log, LogError, Reader, printable
from .regions import (
    ARENA_BASE,
    DEFAULT_GPA_BITS,
    DEFAULT_HVA_END_MAX,
    DEFAULT_USER_MEM_SLOTS,
    Machine,
    machine_of,
    region_of,
)
from .schema import CHANGES, SCOPE, parse_address, parse_number, unpack_slot

__all__ = ["Log", "LogError", "LogWarning", "Vectors", "load", "read", "to_vectors", "write"]


class Format(NamedTuple):
    name: str
    signature: re.Pattern[str]  # found in some line of every log of this format
    read: Reader


FORMATS = tuple(Format(m.NAME, m.SIGNATURE, m.read) for m in (strace_log, qemu_log, mtree_log))
MAX_LINE = 1 << 16  # bytes; the rest of a longer line is dropped.  No change needs so many.
PROGRESS_STEP = 1024  # lines between two calls of `progress`
MAX_CHANGES = 1_000_000  # a Python object of a change takes about a kilobyte
MAX_ADDRESS_SPACES = 64  # of the engine
HVA_END_MAX_5_LEVEL = (1 << 56) - 4096  # TASK_SIZE_MAX with page tables of 5 levels
MANUAL_PROTECT = "manual_dirty_log_protect2"

_Text = IO[bytes] | gzip.GzipFile
Progress = Callable[[int], object]  # its argument is a number of further bytes of the file


class LogWarning(UserWarning):
    """`load` did not understand some lines of a log, so the VM may lack changes."""


class Vectors(NamedTuple):
    """The header and the operations of a vector file."""

    header: dict[str, Any]
    ops: list[dict[str, Any]]


# ---- reading a log ------------------------------------------------------------------------------


def read(path: str | Path, *, vm_fd: int | None = None, progress: Progress | None = None) -> Log:
    """Read a log, and keep the changes of one VM.

    vm_fd: the file descriptor of the VM, which is needed if an strace log has the changes of several VMs.
    LogError: the format is unknown, there is no change, or several VMs have changes.  OSError: the file does not open.
    """
    path = str(path)
    reader = _reader_of(path)
    with _opened(path) as (raw, text):
        try:
            log = reader(_reported(_numbered(path, text), raw, progress))
        except FieldError as e:
            raise LogError(path, 0, str(e)) from None
    if len(log.changes) > MAX_CHANGES:
        raise LogError(path, 0, f"{len(log.changes):,} changes, more than {MAX_CHANGES:,}")
    _keep_one_vm(path, log, vm_fd)
    return log


def _reader_of(path: str) -> Reader:
    with _opened(path) as (_, text):
        for _, line in _numbered(path, text):
            for known in FORMATS:
                if known.signature.search(line):
                    return known.read
    names = ", ".join(known.name for known in FORMATS)
    raise LogError(path, 0, f"no log of a known format; known are {names}")


def _keep_one_vm(path: str, log: Log, vm_fd: int | None) -> None:
    count: dict[int | None, int] = {}
    for change in log.changes:
        count[change.vm] = count.get(change.vm, 0) + 1
    if vm_fd is not None and None in count:
        raise LogError(
            path, 0, f"a log of {log.format} names no file descriptors: leave --vm-fd out"
        )
    if not count or (vm_fd is not None and vm_fd not in count):
        of = "" if vm_fd is None else f" by the file descriptor {vm_fd}"
        lost = (
            f"; {log.nr_not_understood} lines were not understood" if log.nr_not_understood else ""
        )
        raise LogError(
            path, 0, f"no change of a slot{of} in this log of {log.format}{lost}{_listed(count)}"
        )
    if vm_fd is None and len(count) > 1:
        raise LogError(path, 0, f"several VMs: choose one with --vm-fd{_listed(count)}")
    if vm_fd is not None and len(count) > 1:
        log.left_out["changes of other VMs"] += len(log.changes) - count[vm_fd]
        log.changes = [change for change in log.changes if change.vm == vm_fd]


def _listed(count: dict[int | None, int]) -> str:
    found = [f"{fd} with {n:,} changes" for fd, n in list(count.items())[:20] if fd is not None]
    return f"; file descriptors of VMs: {', '.join(found)}" if found else ""


@contextmanager
def _opened(path: str) -> Iterator[tuple[IO[bytes], _Text]]:
    """Open a log, and give the file and its text, which may be packed.  A pipe is refused: a log is read twice."""
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as raw:
        if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            raise LogError(path, 0, "not a regular file")
        yield raw, gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw


def _reported(lines: Lines, raw: IO[bytes], progress: Progress | None) -> Lines:
    """The lines, with calls of `progress` from time to time."""
    done = 0
    for number, text in lines:
        yield number, text
        if progress and number % PROGRESS_STEP == 0:
            progress(raw.tell() - done)
            done = raw.tell()


def _numbered(path: str, text: _Text) -> Lines:
    number = 0
    try:
        for line in _bounded_lines(text):
            number += 1
            yield number, line.decode("utf-8", "replace").rstrip("\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise LogError(path, number + 1, f"damaged gzip file: {e}") from None


def _bounded_lines(text: _Text) -> Iterator[bytes]:
    while line := text.readline(MAX_LINE):
        rest = line
        while not rest.endswith(b"\n") and (rest := text.readline(MAX_LINE)):
            pass
        yield line


# ---- to a vector file ---------------------------------------------------------------------------


def to_vectors(path: str | Path, log: Log) -> Vectors:
    """The vector file of a log.  LogError: the changes exceed the limits of the engine."""
    path = str(path)
    ops = [change.op for change in log.changes]
    name = printable(Path(path.removesuffix(".gz")).stem)[:1000]
    header: dict[str, Any] = {
        "scope": "guest-memfd" if any("gmem" in op for op in ops) else SCOPE,
        "kind": "import",
        "name": name,
        "about": f"changes from a log of {log.format}",
    }
    if oracle := _oracle(path, log.changes):
        header["oracle"] = oracle
    return Vectors(header, ops)


def _oracle(path: str, changes: list[Change]) -> dict[str, Any]:
    """The limits of the recording machine that differ from the defaults, as far as its accepted changes show them."""
    needed = Machine(DEFAULT_USER_MEM_SLOTS, DEFAULT_GPA_BITS, DEFAULT_HVA_END_MAX)
    for change in changes:
        if change.op["op"] in CHANGES and change.op["ret"] == 0:
            needed = _enlarged(needed, change.op)
            if needed.address_spaces > MAX_ADDRESS_SPACES:
                number = needed.address_spaces - 1
                wrong = f"address space {number}; the engine has at most {MAX_ADDRESS_SPACES}"
                raise LogError(path, change.line, wrong)
    caps: dict[str, int] = {}
    if needed.user_mem_slots > DEFAULT_USER_MEM_SLOTS:
        caps["nr_memslots"] = needed.user_mem_slots
    if needed.address_spaces > 1:
        caps["multi_address_space"] = needed.address_spaces
    limits: dict[str, Any] = {}
    if needed.gpa_bits > DEFAULT_GPA_BITS:
        limits["gpa_bits"] = needed.gpa_bits
    if needed.hva_end_max > DEFAULT_HVA_END_MAX:
        limits["hva_end_max"] = f"{needed.hva_end_max:#x}"
    return {name: value for name, value in (("caps", caps), ("limits", limits)) if value}


def _enlarged(needed: Machine, op: dict[str, Any]) -> Machine:
    region, (id, as_id) = region_of(op), unpack_slot(op["slot"])
    bits = (region.gpa + region.size - 1).bit_length() if region.size else 0
    beyond = region.hva + region.size > needed.hva_end_max
    return Machine(
        max(needed.user_mem_slots, id + 1),
        max(needed.gpa_bits, min(bits, 64)),
        HVA_END_MAX_5_LEVEL if beyond else needed.hva_end_max,
        max(needed.address_spaces, as_id + 1),
    )


def write(path: str | Path, converted: Vectors) -> None:
    """Write the vector file.  LogError: it would not be a valid one."""
    try:
        vectors.write(path, converted.header, converted.ops)
    except vectors.VectorError as e:
        raise LogError(str(path), e.line, e.reason) from None


# ---- to a VM ------------------------------------------------------------------------------------


def load(
    path: str | Path, *, vm_fd: int | None = None, strict: bool = False, backend: str = "tree"
) -> VM:
    """A VM with the slots at the end of a log or a vector file; see `memslots.load`."""
    path = str(path)
    if vectors.is_vector_path(Path(path)):
        header, ops = _read_vectors(path)
    else:
        log = read(path, vm_fd=vm_fd)
        _report_losses(path, log, strict)
        header = to_vectors(path, log).header
        ops = [(change.line, change.op) for change in log.changes]
    vm = _new_vm(path, header, backend)
    try:
        for line, op in ops:
            if op["ret"] == 0:
                _apply(path, vm, line, op)
    except BaseException:
        vm.close()
        raise
    return vm


def _read_vectors(path: str) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
    try:
        file = vectors.read(path)
    except vectors.VectorError as e:
        raise LogError(e.path, e.line, e.reason) from None
    return file.header, [(op.line, op.fields) for op in file.ops]


def _report_losses(path: str, log: Log, strict: bool) -> None:
    if not log.nr_not_understood:
        return
    first = log.not_understood[0]
    lost = f"{log.nr_not_understood} lines were not understood; the first one: {first.reason}: {first.text}"
    if strict:
        raise LogError(path, first.line, lost)
    warnings.warn(LogWarning(f"{path}:{first.line}: {lost}"), stacklevel=4)


def _new_vm(path: str, header: dict[str, Any], backend: str) -> VM:
    machine = machine_of(header)
    if machine.address_spaces > MAX_ADDRESS_SPACES:
        wrong = (
            f"{machine.address_spaces} address spaces; the engine has at most {MAX_ADDRESS_SPACES}"
        )
        raise LogError(path, 1, wrong)
    return VM(**machine._asdict(), backend=backend)


def _apply(path: str, vm: VM, line: int, op: dict[str, Any]) -> None:
    if op["op"] == "enable_cap" and op["cap"] == MANUAL_PROTECT:
        with suppress(MemslotsError):
            vm.manual_dirty_log_protect = parse_number(op["arg"])
        return
    if op["op"] not in CHANGES:
        return
    slot, as_id = unpack_slot(op["slot"])
    if op["flags"] & MemFlag.GUEST_MEMFD and parse_number(op["size"]):
        raise LogError(path, line, f"slot {slot} has a guest_memfd, which no file can contain")
    try:
        vm.set_user_memory_region(
            slot,
            guest_phys_addr=parse_number(op["gpa"]),
            memory_size=parse_number(op["size"]),
            userspace_addr=parse_address(op["hva"], ARENA_BASE),
            flags=op["flags"],
            as_id=as_id,
        )
    except (MemslotsError, OverflowError, ValueError) as e:
        raise LogError(path, line, f"the engine refuses this change: {e}") from None
