# SPDX-License-Identifier: MIT
"""Snapshot files: load() reads back the files of save(), and refuses all others."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from memslots import MEMSLOT_DTYPE, MemslotsError, RegionOverlapError, Snapshot
from memslots.snapshot_file import encode

ROWS = np.array(
    [
        (0x10, 4, 0x7F0000200000, 0, 2, 1),
        (0x100, 16, 0x7F0000000000, 1, 2, 0),
        (0x110, 1, 0, 7, 2, 1 << 16),
    ],
    dtype=MEMSLOT_DTYPE,
)
SNAPSHOT = Snapshot(ROWS, 2, 2**63 + 5)


def saved(snapshot: Snapshot) -> bytes:
    file = io.BytesIO()
    snapshot.save(file)
    return file.getvalue()


def load(data: bytes) -> Snapshot:
    return Snapshot.load(io.BytesIO(data))


def test_format_is_that_of_the_documentation() -> None:
    """Reads the fields one by one, without the code of the package."""
    data = saved(SNAPSHOT)
    assert data[:8] == b"\x89MSNAP\r\n"
    assert struct.unpack_from("<IIQI", data, 8) == (1, 2, 2**63 + 5, 3)
    assert struct.unpack_from("<I", data, 28)[0] == zlib.crc32(data[:28])
    for i, row in enumerate(ROWS):
        base, npages, hva, id, flags = struct.unpack_from("<QQQII", data, 32 + 32 * i)
        assert (base, npages, hva, id, 2, flags) == row.item()
    assert struct.unpack_from("<I", data, 128)[0] == zlib.crc32(data[32:128])
    assert len(data) == 132


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_saved_snapshots_are_loaded(tmp_path: Path, n: int) -> None:
    rows = np.zeros(n, MEMSLOT_DTYPE)
    rows["id"], rows["npages"] = np.arange(n), 1
    rows["base_gfn"] = np.random.default_rng(n).permutation(n)
    snapshot = Snapshot(rows, 0, n)
    path = tmp_path / "one.snapshot"
    for where in (path, str(path), os.fsencode(path)):
        snapshot.save(where)
        other = Snapshot.load(where)
        assert other == snapshot
        assert (other.generation, other.as_id) == (n, 0)
        assert not other.pinned
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == saved(snapshot)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_several_snapshots_follow_each_other_in_one_file_object() -> None:
    class Slow(io.RawIOBase):
        """Reads and writes a few bytes at a time, as a socket may."""

        def __init__(self) -> None:
            self.data, self.at = b"", 0

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data[:5])
            return min(len(data), 5)

        def read(self, n: int = -1) -> bytes:
            self.at += min(n, 7)
            return self.data[self.at - min(n, 7) : self.at]

    file = Slow()
    other = Snapshot(ROWS[:1], 2, 1)
    SNAPSHOT.save(file)  # type: ignore[arg-type]
    other.save(file)  # type: ignore[arg-type]
    assert Snapshot.load(file) == SNAPSHOT  # type: ignore[arg-type]
    assert Snapshot.load(file) == other  # type: ignore[arg-type]


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one"
    SNAPSHOT.save(path)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        Snapshot(ROWS[:1], 2, 0).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    link = tmp_path / "link"
    link.symlink_to(path)
    monkeypatch.undo()
    Snapshot(ROWS[:1], 2, 0).save(link)
    assert link.is_symlink()
    assert len(Snapshot.load(path)) == 1


def with_sums(data: bytes) -> bytes:
    """The same content with right checksums."""
    head, body = data[:28], data[32:-4]
    return b"".join(
        (head, struct.pack("<I", zlib.crc32(head)), body, struct.pack("<I", zlib.crc32(body)))
    )


def test_each_truncated_file_is_refused() -> None:
    data = saved(SNAPSHOT)
    for n in range(len(data)):
        with pytest.raises(ValueError, match="not a snapshot" if n == 0 else "truncated"):
            load(data[:n])


def test_other_files_are_refused(tmp_path: Path) -> None:
    data = saved(SNAPSHOT)
    for other in (b"", b"x", b"\x00" * 200, data[1:], data.replace(b"\r\n", b"\n")):
        with pytest.raises(ValueError, match="not a snapshot of memslots"):
            load(other)
    path = tmp_path / "one"
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match="one has more bytes after the snapshot"):
        Snapshot.load(path)
    with pytest.raises(FileNotFoundError):
        Snapshot.load(tmp_path / "none")
    with pytest.raises(TypeError, match="binary mode"):
        Snapshot.load(io.StringIO(data.decode("latin-1")))  # type: ignore[arg-type]
    for bad in (None, 1.5, []):
        with pytest.raises(TypeError):
            Snapshot.load(bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            SNAPSHOT.save(bad)  # type: ignore[arg-type]


def test_newer_version_is_named() -> None:
    data = bytearray(saved(SNAPSHOT))
    data[8] = 2
    for other in (bytes(data), with_sums(bytes(data))):
        with pytest.raises(
            ValueError, match=r"has version 2 .* but this memslots reads version 1$"
        ):
            load(other)


def test_count_that_is_too_large_takes_no_memory() -> None:
    data = bytearray(saved(SNAPSHOT))
    data[24:28] = b"\xff\xff\xff\xff"
    with pytest.raises(ValueError, match=r"truncated: .* of 137438953440 bytes are missing"):
        load(with_sums(bytes(data)))


def test_slots_are_checked_although_the_sums_are_right() -> None:
    rows = ROWS.copy()
    rows["base_gfn"][2] = 0x101
    with pytest.raises(RegionOverlapError, match=r"slot 7 .* overlaps slot 1"):
        load(encode(rows, 2, 0))
    for field, value in (("npages", 0), ("id", 2**31), ("flags", 1 << 20), ("userspace_addr", 1)):
        rows = ROWS.copy()
        rows[field][0] = value
        with pytest.raises(MemslotsError):
            load(encode(rows, 2, 0))
    with pytest.raises(MemslotsError, match="address space 64"):
        load(encode(ROWS, 64, 0))


def test_random_damage_is_refused() -> None:
    """Each changed byte is found by a checksum.  With right checksums the rows are good, or are refused by a rule."""
    rng = Random(13)
    data = saved(SNAPSHOT)
    good = 0
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if bytes(damaged) == data:
            continue
        with pytest.raises(ValueError, match=r"corrupt|truncated|not a snapshot|has version"):
            load(bytes(damaged))
        try:
            loaded = load(with_sums(bytes(damaged)))
        except ValueError:
            continue
        good += 1
        assert Snapshot(loaded.array, loaded.as_id, loaded.generation) == loaded
    assert good > 100
