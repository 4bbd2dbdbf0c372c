# SPDX-License-Identifier: MIT
"""Untrusted vector files: the commands play a file or raise VectorError, in bounded memory; nothing else happens.

A reader without limits needs gigabytes for the files of tests/hostile, or ends in a traceback.  The fuzz tests
change good files, as JSON and as bytes, under a limit on the memory of this process.
"""

import gc
import gzip
import json
import os
import re
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vector_samples import FULL_HEADER, GOOD, file_with, lines_of

from memslots.commands import cli
from memslots.commands import map as memory_map
from memslots.traces import player, schema, vectors
from memslots.traces.vectors import VectorError, VectorFile

TESTS = Path(__file__).parents[1]
HOSTILE = sorted((TESTS / "hostile").glob("*.jsonl"))
MIB = 1 << 20
ROOM = 512 * MIB

EXPECTED = {
    "both": (3, "observed is 5"),
    "huge": (2, "2147483647 pages under dirty logging"),
    "out5": (2, "out is 5, not allowed here"),
    "runs": (2, "bits reach page 4294967295"),
    "sur": (1, r'name is "\ud800"'),
}


@pytest.fixture(autouse=True)
def no_garbage() -> None:
    """Arrays of earlier tests, up to 32 GiB, must not be unmapped under the limit: the limit would be too high."""
    gc.collect()


@contextmanager
def little_memory() -> Iterator[None]:
    """Limits the mapped memory of this process to ROOM bytes above its present use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_memory_limit_is_effective() -> None:
    """Memory that earlier tests have freed may serve the first blocks."""
    with little_memory(), pytest.raises(MemoryError):
        _ = [bytearray(ROOM) for _ in range(100)]


# ---- files that did harm ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["replay", "map"])
@pytest.mark.parametrize("path", HOSTILE, ids=lambda p: p.stem)
def test_hostile_file_is_refused_in_one_line(path: Path, command: str, capsys: Any) -> None:
    line, reason = EXPECTED[path.stem]
    with little_memory():
        assert cli.main([command, str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"memslots: {path}:{line}: ")
    assert reason in error
    assert error.count("\n") == 1


def test_every_hostile_file_has_an_expected_message() -> None:
    assert {path.stem for path in HOSTILE} == set(EXPECTED)


def test_very_long_line_is_not_unpacked_beyond_the_limit(tmp_path: Path) -> None:
    """One line of 64 MiB needs 64 KiB on disk; the reader stops at its limit of 4 MiB."""
    path = tmp_path / "v.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as f:
        f.write(lines_of(FULL_HEADER) + b'{"op":"create_vcpu","ret":0,"note":"' + bytes(64 * MIB))
    tracemalloc.start()
    with pytest.raises(VectorError, match=r"gz:2: more than 4194304 bytes in one line"):
        vectors.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * MIB


def test_text_beyond_the_limit_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """Each single line is valid."""
    path = tmp_path / "v.jsonl.gz"
    row = lines_of({"op": "create_vcpu", "ret": 0, "x": 1000 * "x"})
    with gzip.open(path, "wb", compresslevel=1) as f:
        f.write(lines_of({**FULL_HEADER, "ops": 1 << 40}))
        for _ in range(100):
            f.write(row * 1000)
    with little_memory(), pytest.raises(VectorError, match="more than 67108864 bytes in one file"):
        vectors.read(path)


def test_pipe_is_refused_immediately(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.jsonl")
    for command in ("replay", "map"):
        argv = [sys.executable, "-m", "memslots", command, str(tmp_path / "v.jsonl")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 2
        assert done.stderr == f"memslots: {tmp_path}/v.jsonl:1: not a regular file\n"


def test_pages_under_logging_are_limited_if_the_vm_accepts_a_refused_change(
    tmp_path: Path, capsys: Any
) -> None:
    """The reader does not count a change that was recorded as refused, but the engine accepts this one."""
    place = {"op": "set", "flags": 1, "size": "0x800000000", "ret": "EEXIST"}
    rows = [
        {**place, "slot": n, "gpa": f"{n << 36:#x}", "hva": f"arena+{n << 36:#x}"} for n in range(9)
    ]
    path = file_with(tmp_path, *rows)
    assert cli.main(["replay", str(path)]) == 2
    captured = capsys.readouterr()
    assert f"{path}:4: set: 25165824 pages under dirty logging" in captured.err
    assert captured.out == "0 files, 0 ops, 0 mismatches, 0 not compared, 0 out of scope\n"


def test_claimed_size_allocates_nothing(tmp_path: Path) -> None:
    """Claims: `num` of 2^32 - 1 pages without bits, and `bytes` of 2^63 for a missing slot."""
    clear = {"op": "clear_dirty", "slot": 0, "first": 0, "num": (1 << 32) - 1, "ret": "ENOENT"}
    log = {"op": "get_dirty", "slot": 0, "ret": 0, "out": {"bytes": 1 << 63, "dirty": [[7, 9]]}}
    file = vectors.read(file_with(tmp_path, clear, log))
    with little_memory(), player.open_backend("tree", file.header) as vm:
        (mismatch,) = player.play(file, vm).mismatches
    assert mismatch.got == {"ret": "ENOENT"}


# ---- good files, changed ------------------------------------------------------------------------


def beginning_of(number: str) -> bytes:
    """An edge file, cut after 60 lines."""
    (path,) = (TESTS / "vectors" / "edge").glob(f"{number}-*.jsonl")
    header, *rows = path.read_bytes().splitlines(keepends=True)[:60]
    return lines_of({**json.loads(header), "ops": len(rows)}) + b"".join(rows)


BASES = [
    lines_of({**FULL_HEADER, "ops": len(GOOD)}, *GOOD),
    *map(beginning_of, ("09", "16", "17", "18", "20")),
]

JUNK = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, -1, 63, 64, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64]
    ),
    st.sampled_from(["", "0x", "0x0", "0x1000", "0x7fffffff000", "0xfffffffffffff000", "arena"]),
    st.sampled_from(["arena-0x1000", "ENOENT", "EINVAL", "fault", "\ud800", "\0", "\x1b[2J", "é"]),
    st.sampled_from([[], {}, [[]], [[0, 1]], [[0, 2**32 - 1]], [[0, 1], [2, 1]], [[5, 1], [1, 1]]]),
    st.sampled_from([[["0x0", 1, "r"]], {"hva": None}, {"bytes": 8, "dirty": [[0, 64]]}, 1.5]),
    st.integers(-(2**65), 2**65),
    st.sampled_from(sorted(schema.OPS)),
    st.sampled_from(schema.SCOPES),
)
NAMES = st.sampled_from(sorted({*schema.NAMES, *FULL_HEADER, "colour", "\ud800", ""}))


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container below `value` with every key or index of it."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from spots(value[key])


@st.composite
def changed_json(draw: Callable[..., Any]) -> bytes:
    rows = [json.loads(line) for line in draw(st.sampled_from(BASES)).splitlines()]
    for _ in range(draw(st.integers(1, 4))):
        places = list(spots(rows))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.sampled_from(["replace", "delete", "add", "repeat", "swap"]))
        if how == "replace":
            holder[key] = deepcopy(draw(JUNK))
        elif how == "delete":
            del holder[key]
        elif how == "add" and isinstance(holder, dict):
            holder[draw(NAMES)] = deepcopy(draw(JUNK))
        elif how == "repeat":
            rows.insert(1, deepcopy(rows[draw(st.integers(0, len(rows) - 1))]) if rows else {})
        elif rows:
            rows.append(rows.pop(draw(st.integers(0, len(rows) - 1))))
        if not rows:
            break
    if draw(st.booleans()) and rows and isinstance(rows[0], dict):
        rows[0]["ops"] = len(rows) - 1
    return lines_of(*rows)


@st.composite
def changed_bytes(draw: Callable[..., Any], bases: list[bytes]) -> bytes:
    text = bytearray(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        piece = draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"[" * 3000, b"9" * 5000])))
        length = draw(st.sampled_from([0, 0, 1, 2, 100, len(text)]))
        text[at : at + length] = piece
    return bytes(text)


def read_and_play(path: Path) -> VectorFile | VectorError:
    """Reads and plays the file, as both commands do."""
    with little_memory():
        try:
            file = vectors.read(path)
            memory_map._text(file, len(file.ops), None).encode()
            json.dumps(memory_map._summary(file, len(file.ops)))
            with player.open_backend("tree", file.header) as vm:
                result = player.play(file, vm)
        except VectorError as e:
            return e
    found = json.dumps([m._asdict() for m in result.mismatches])
    assert not re.search("MemoryError|ENOMEM|TypeError|OverflowError", found)
    return file


def check(path: Path, text: bytes) -> VectorFile | None:
    path.write_bytes(text)
    came = read_and_play(path)
    if isinstance(came, VectorFile):
        return came
    assert str(came).startswith(f"{path}:{came.line}: ")
    assert str(came).isprintable()
    return None


FUZZ = settings(
    max_examples=int(os.environ.get("MEMSLOTS_FUZZ_EXAMPLES", "120")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(text=changed_json())
def test_file_with_changed_values_is_played_or_refused(text: bytes, tmp_path: Path) -> None:
    if file := check(tmp_path / "v.jsonl", text):
        copy = tmp_path / "copy.jsonl"
        vectors.write(copy, file.header, file.ops)
        assert vectors.read(copy).ops == file.ops


@FUZZ
@given(text=changed_bytes(BASES))
def test_file_with_changed_bytes_is_played_or_refused(text: bytes, tmp_path: Path) -> None:
    check(tmp_path / "v.jsonl", text)


@FUZZ
@given(text=changed_bytes([gzip.compress(base, mtime=0) for base in BASES]))
def test_packed_file_with_changed_bytes_is_played_or_refused(text: bytes, tmp_path: Path) -> None:
    check(tmp_path / "v.jsonl.gz", text)


@pytest.mark.parametrize("text", BASES, ids=range(len(BASES)))
def test_unchanged_base_files_are_played(text: bytes, tmp_path: Path) -> None:
    assert check(tmp_path / "v.jsonl", text) is not None
