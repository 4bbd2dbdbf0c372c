# SPDX-License-Identifier: MIT
"""The file format of a Snapshot.  docs/snapshots.md describes it; all numbers are little-endian.

 offset  size
      0     8  the magic bytes
      8     4  the version of the format
     12     4  as_id
     16     8  generation
     24     4  n, the number of slots
     28     4  CRC-32 of the 28 bytes before it
     32  32 n  the slots, by ascending base_gfn: base_gfn, npages, userspace_addr (8 bytes each), id, flags (4 each)
32+32 n     4  CRC-32 of the slots
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from .constants import MEMSLOT_DTYPE
from .whole_file import replacing

if TYPE_CHECKING:
    import numpy.typing as npt

    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

MAGIC = b"\x89MSNAP\r\n"  # a transfer as text damages it
VERSION = 1

_HEAD = struct.Struct("<8sIIQI")
_CRC = struct.Struct("<I")
_SLOT = np.dtype(
    [
        ("base_gfn", "<u8"),
        ("npages", "<u8"),
        ("userspace_addr", "<u8"),
        ("id", "<u4"),
        ("flags", "<u4"),
    ]
)
_PIECE = 1 << 24  # a count that is wrong allocates no more than this beyond the end of the file


def encode(rows: npt.NDArray[np.void], as_id: int, generation: int) -> bytes:
    slots = np.empty(len(rows), dtype=_SLOT)
    for name in _SLOT.names or ():
        slots[name] = rows[name]
    head, body = _HEAD.pack(MAGIC, VERSION, as_id, generation, len(rows)), slots.tobytes()
    return b"".join((head, _CRC.pack(zlib.crc32(head)), body, _CRC.pack(zlib.crc32(body))))


def save(file: Path | IO[bytes], data: bytes) -> None:
    """Writes to a binary file object, or replaces the file at a path in one step."""
    if hasattr(file, "write"):
        _write_all(cast("IO[bytes]", file), data)
    else:
        with replacing(os.path.realpath(os.fsdecode(file))) as new:
            _write_all(new, data)


def _write_all(file: IO[bytes], data: bytes) -> None:
    """A raw file may write a part of the data."""
    view = memoryview(data)
    while view:
        written = file.write(view)
        if not written:
            raise BlockingIOError(
                f"the file took only {len(data) - len(view)} of {len(data)} bytes"
            )
        view = view[written:]


def load(file: Path | IO[bytes]) -> tuple[npt.NDArray[np.void], int, int]:
    """The rows, the address space and the generation.

    From a file object it reads up to the end of the snapshot.  ValueError: the file is no whole snapshot."""
    if hasattr(file, "read"):
        return _decode(cast("IO[bytes]", file), str(getattr(file, "name", "the file")))
    with open(file, "rb") as opened:
        result = _decode(opened, os.fsdecode(file))
        if opened.read(1):
            raise ValueError(f"{os.fsdecode(file)} has more bytes after the snapshot")
    return result


def _decode(file: IO[bytes], name: str) -> tuple[npt.NDArray[np.void], int, int]:
    head = _read(file, _HEAD.size, name, MAGIC)
    _, version, as_id, generation, n = _HEAD.unpack(head)
    if version != VERSION:
        raise ValueError(
            f"{name} has version {version} of the snapshot format, but this memslots reads version {VERSION}"
        )
    _check_sum(file, head, name, "head")
    body = _read(file, n * _SLOT.itemsize, name)
    _check_sum(file, body, name, f"{n} slots")
    slots = np.frombuffer(body, dtype=_SLOT)
    rows = np.zeros(n, dtype=MEMSLOT_DTYPE)
    for field in _SLOT.names or ():
        rows[field] = slots[field]
    rows["as_id"] = as_id
    return rows, as_id, generation


def _check_sum(file: IO[bytes], data: bytes, name: str, what: str) -> None:
    (wanted,) = _CRC.unpack(_read(file, _CRC.size, name))
    found = zlib.crc32(data)
    if found != wanted:
        raise ValueError(
            f"{name} is corrupt: the checksum of its {what} is {found:#010x}, not {wanted:#010x}"
        )


def _read(file: IO[bytes], n: int, name: str, begin: bytes = b"") -> bytes:
    parts, left = [], n
    while left:
        part: Any = file.read(min(left, _PIECE))
        if isinstance(part, str):
            raise TypeError("the file must be open in binary mode")
        if not part:
            break
        parts.append(part)
        left -= len(part)
    data = b"".join(parts)
    if not data.startswith(begin[: len(data)]) or (begin and not data):
        raise ValueError(f"{name} is not a snapshot of memslots")
    if left:
        raise ValueError(f"{name} is truncated: {left} of {n} bytes are missing")
    return data
