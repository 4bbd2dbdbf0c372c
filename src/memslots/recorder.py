# SPDX-License-Identifier: MIT
"""Recorder: a listener that writes the changes of a VM to a vector file, which ``memslots replay`` plays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .constants import MEMSLOT_DTYPE, PAGE_SIZE
from .layout import plan
from .listener import Change, ChangeKind, Listener
from .whole_file import replacing

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt

    from ._memslots import VM, MemorySlot

__all__ = ["Recorder"]

#: A vector file has ids below this, as the kernel has.
IDS = 32767


class Recorder(Listener):
    """Writes the successful changes of a VM to a vector file: ``with Recorder("run.jsonl.gz", vm): ...``

    The file begins with the slots that the VM has at ``__enter__``, and has every change until ``__exit__``,
    ``close()`` or the end of the VM.  A load, an update and a transaction are written as the steps of their plan: see
    ``memslots.plan()``.  A resized slot is deleted and created, and so is one of two slots that trade places.  Dirty
    logs are not recorded.

    file: a path, or a binary file that is open for writing.  A path that ends in ``.gz`` gets a gzip file.
    vm: the VM, which has no other thread that changes it during ``__enter__``.  A Recorder serves one VM, once.

    The file is complete or it is not there.  The steps go to ``PATH.partial``, and the end of the recording makes
    PATH of it.  After a crash PATH is as before, and PATH.partial has a header that announces 0 operations and all
    steps of the changes that were complete; the last line may be cut.  If a change cannot be written, for instance to
    a full disk, the caller of that change gets the exception, the recording stops, and ``close()`` raises it again.
    """

    def __init__(self, file: str | os.PathLike[str] | IO[bytes], vm: VM, *, name: str = "") -> None:
        self._vm = vm
        self._header = _header(vm, name)
        self._changes: list[Change] = []  # that are prepared and not complete
        self._left = 0  # commits of these changes that have not come yet
        self._error: BaseException | None = None
        self._added = False
        self.ops = 0  # the number of steps so far
        self._output = _output(file)

    def __enter__(self) -> Self:
        if self._added or self._output.is_finished:
            raise ValueError("a Recorder records once")
        self._output.write(_line({**self._header, "ops": 0}))
        try:
            self._begin()
        except BaseException:
            self._output.discard()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the recording and makes the file.  A second call does nothing.

        Raises the exception that has stopped the recording."""
        if self._added and not self._vm.closed:
            self._vm.remove_listener(self)
        self._added = False
        self._finish()

    # ---- the hooks ----

    def prepare_many(self, changes: list[Change]) -> None:
        self._changes, self._left = changes, len(changes)

    def abort(self, change: Change) -> None:
        self._changes, self._left = [], 0

    def commit(self, change: Change) -> None:
        self._left -= 1
        if not self._left and not self._error:
            self._record(steps_of(self._changes))

    def closed(self) -> None:
        self._added = False
        self._finish()

    # ---- the file ----

    def _begin(self) -> None:
        """Records the present slots.  A change of another thread next to add_listener() is an error."""
        before = self._generations()
        self._vm.add_listener(self)
        self._added = True
        slots = list(self._vm)
        if self._generations() != before:
            self._vm.remove_listener(self)
            self._added = False
            raise RuntimeError("another thread changed the VM while the recording began")
        self._record(_set(slot) for slot in slots)

    def _generations(self) -> list[int]:
        return [self._vm.generation(as_id) for as_id in range(self._vm.address_spaces)]

    def _record(self, steps: Iterable[dict[str, Any]]) -> None:
        try:
            lines = [_line(step) for step in steps]
            self._output.write(b"".join(lines))
        except BaseException as error:
            self._error = error
            raise
        self.ops += len(lines)

    def _finish(self) -> None:
        if self._output.is_finished:
            return
        if self._error:
            self._output.discard()
            raise self._error
        self._output.finish(_line({**self._header, "ops": self.ops}))


# ---- steps -------------------------------------------------------------------------------------------------------


def steps_of(changes: list[Change]) -> Iterable[dict[str, Any]]:
    """The changes that one call made at once, as operations of a vector file: the steps of a plan, which KVM accepts in
    their order."""
    olds = [change.old for change in changes if change.old is not None]
    news = [change.new for change in changes if change.new is not None]
    if len(changes) == 1 and changes[0].kind is not ChangeKind.RESIZE:
        return map(_set, news) if news else map(_delete, olds)
    steps = plan(_rows(olds), _rows(news), coalesce=False, keep_ids=False)
    after = {slot.id: slot for slot in news}
    before = {slot.id: slot for slot in olds}
    return [
        _delete(before[step.slot]) if step.op is ChangeKind.DELETE else _set(after[step.slot])
        for step in steps
    ]


def _rows(slots: list[MemorySlot]) -> npt.NDArray[np.void]:
    rows = np.zeros(len(slots), MEMSLOT_DTYPE)
    for name in ("id", "as_id", "base_gfn", "npages", "userspace_addr", "flags"):
        rows[name] = [getattr(slot, name) for slot in slots]
    return rows


def _delete(slot: MemorySlot) -> dict[str, Any]:
    return {
        "op": "set",
        "slot": _number(slot),
        "flags": 0,
        "gpa": 0,
        "size": 0,
        "hva": "0x0",
        "ret": 0,
    }


def _set(slot: MemorySlot) -> dict[str, Any]:
    return {
        "op": "set",
        "slot": _number(slot),
        "flags": int(slot.flags),
        "gpa": hex(slot.base_gfn * PAGE_SIZE),
        "size": hex(slot.npages * PAGE_SIZE),
        "hva": hex(slot.userspace_addr),
        "ret": 0,
    }


def _number(slot: MemorySlot) -> int:
    """The slot of the ioctl: the address space in the upper half."""
    if slot.id >= IDS:
        raise ValueError(f"a vector file has ids below {IDS}; the change is of slot {slot.id}")
    return int(slot.as_id << 16 | slot.id)


# ---- the file ----------------------------------------------------------------------------------------------------


def _header(vm: VM, name: str) -> dict[str, Any]:
    spaces = vm.address_spaces
    return {
        "format": "memslots-vectors/1",
        "kind": "recording",
        "scope": "memslots",
        **({"name": name} if name else {}),
        "oracle": {
            "caps": {
                "nr_memslots": min(vm.user_mem_slots, IDS),
                "multi_address_space": spaces if spaces > 1 else 0,
            },
            "limits": {"gpa_bits": vm.gpa_bits, "hva_end_max": hex(vm.hva_end_max)},
        },
    }


def _line(row: dict[str, Any]) -> bytes:
    import json  # not at `import memslots`

    return json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"


def _output(file: str | os.PathLike[str] | IO[bytes]) -> _ToPath | _ToFile:
    if isinstance(file, str | os.PathLike):
        return _ToPath(os.fspath(file))
    return _ToFile(file)


def _copy_rest(source: IO[bytes], target: Any, header: bytes) -> None:
    """Copies everything behind the first line."""
    import shutil

    source.flush()
    source.seek(0)
    source.readline()
    target.write(header)
    shutil.copyfileobj(source, target, 1 << 20)


class _ToPath:
    """A partial file next to the path, which takes its place at the end."""

    def __init__(self, path: str) -> None:
        self._path, self._partial = path, f"{path}.partial"
        self._file = open(self._partial, "w+b", buffering=0)  # noqa: SIM115 (finish() or discard() closes it)
        self.is_finished = False

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def finish(self, header: bytes) -> None:
        import gzip

        self.is_finished = True
        try:
            with replacing(self._path) as raw:
                if self._path.endswith(".gz"):
                    with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                        _copy_rest(self._file, packed, header)
                else:
                    _copy_rest(self._file, raw, header)
        except BaseException:
            self._file.close()  # the partial file stays
            raise
        self.discard()

    def discard(self) -> None:
        self.is_finished = True
        self._file.close()
        os.unlink(self._partial)


class _ToFile:
    """A temporary file, which is copied to the caller's file at the end."""

    def __init__(self, file: IO[bytes]) -> None:
        import tempfile

        self._target = file
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self.is_finished = False

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self, header: bytes) -> None:
        self.is_finished = True
        with self._file:
            _copy_rest(self._file, self._target, header)

    def discard(self) -> None:
        self.is_finished = True
        self._file.close()
