# SPDX-License-Identifier: MIT
"""Reading vector files: what is let pass, and where and why the rest is refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from memslots.traces import vectors
from memslots.traces.vectors import VectorError

FILES = sorted((Path(__file__).parents[1] / "vectors").rglob("*.jsonl*"))
ARENA = 1 << 44

HEADER = {"format": vectors.FORMAT, "kind": "edge", "scope": "memslots", "ops": 1}
SET = {
    "op": "set",
    "slot": 1,
    "flags": 0,
    "gpa": "0x0",
    "size": "0x1000",
    "hva": "arena+0x0",
    "ret": 0,
}
SET2 = {**SET, "op": "set2", "gmem": -1, "gmem_off": "0x0"}
LOG = {"op": "get_dirty", "slot": 1, "ret": 0, "out": {"bytes": 8, "dirty": [[0, 2], [5, 1]]}}
SEEN = {"op": "get_dirty", "slot": 1, "ret": 0, "observed": {"bytes": 8, "dirty": []}, "t_us": 7}
CLEAR = {"op": "clear_dirty", "slot": 1, "first": "0x40", "num": 64, "bits": [[0, 64]], "ret": 0}
CAP = {"op": "enable_cap", "cap": "manual_dirty_log_protect2", "arg": 3, "ret": 0}
READ = {"op": "read", "gpa": "0x8", "via": "emul", "ret": 0, "out": {"hva": None}}
WRITE = {"op": "write", "gpa": 8, "ret": 0, "out": {"hva": "arena+0x8", "wrote": True}}
HOST = {"op": "host_write", "gpa": "0xff0", "ret": 0, "out": {"hva": None, "wrote": False}}
ACCESS = {
    "op": "access",
    "gpa": "0xfff",
    "len": 2,
    "write": False,
    "ret": 0,
    "out": {"mmio": [["0x1000", 1, "r"]], "value": "0xeee0"},
}
GMEM = {"op": "create_gmem", "size": "0x1000", "flags": 0, "ret": 0}
TSS = {"op": "set_tss_addr", "gpa": "0xfffbd000", "ret": 0}

OPTIONAL = {
    "set2": {"gmem", "gmem_off"},
    "get_dirty": {"t_us"},
    "clear_dirty": {"bits"},
    "read": {"via"},
    "create_gmem": {"flags"},
}

GOOD = [SET, SET2, LOG, SEEN, CLEAR, CAP, READ, WRITE, HOST, ACCESS, GMEM, TSS]


def lines_of(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def file_with(folder: Path, *ops: object, **header: object) -> Path:
    path = folder / "v.jsonl"
    path.write_bytes(lines_of({**HEADER, "ops": len(ops), **header}, *ops))
    return path


def refusal(path: Path) -> VectorError:
    with pytest.raises(VectorError) as caught:
        vectors.read(path)
    assert str(caught.value).startswith(f"{path}:{caught.value.line}: ")
    return caught.value


# ---- files that are right -----------------------------------------------------------------------


def test_all_recorded_files_are_here() -> None:
    assert len(FILES) == 52
    assert len(vectors.packaged_traces()) == 22


@pytest.mark.parametrize("path", [*FILES, *vectors.packaged_traces()], ids=lambda p: p.name)
def test_recorded_file_is_read_and_written_unchanged(path: Path, tmp_path: Path) -> None:
    file = vectors.read(path)
    assert [op.line for op in file.ops] == list(range(2, file.header["ops"] + 2))
    assert vectors.read_header(path) == file.header
    copy = tmp_path / path.name
    vectors.write(copy, file.header, file.ops)
    unpacked = gzip.decompress if path.suffix == ".gz" else bytes
    assert unpacked(copy.read_bytes()) == unpacked(path.read_bytes())


def test_every_kind_of_good_line_is_read(tmp_path: Path) -> None:
    file = vectors.read(file_with(tmp_path, *GOOD))
    assert [op.fields for op in file.ops] == GOOD
    assert file.scope == "memslots"
    assert {op.kind for op in file.ops} <= set(vectors.OP_KINDS)


def test_unknown_keys_are_left_alone(tmp_path: Path) -> None:
    file = vectors.read(file_with(tmp_path, {**SET, "colour": "red"}, captured="today"))
    assert file.ops[0].fields["colour"] == "red"


def test_write_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        vectors.write(tmp_path / name, {"kind": "edge", "scope": "memslots"}, GOOD)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert vectors.read(tmp_path / "a.jsonl.gz").header["ops"] == len(GOOD)


def test_write_refuses_what_read_would(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match=r"v\.jsonl:3: set: no slot"):
        vectors.write(tmp_path / "v.jsonl", HEADER, [SET, {"op": "set", "ret": 0}])
    assert not (tmp_path / "v.jsonl").exists()


# ---- files that are wrong -----------------------------------------------------------------------


def without(op: dict, field: str) -> dict:
    return {k: v for k, v in op.items() if k != field}


@pytest.mark.parametrize("op", GOOD, ids=lambda op: op["op"])
def test_each_required_field_is_required(op: dict, tmp_path: Path) -> None:
    for field in set(op) - OPTIONAL.get(op["op"], set()):
        e = refusal(file_with(tmp_path, SET, without(op, field)))
        assert e.line == 3
        assert f"no {'out' if field == 'observed' else field}" in e.reason


@pytest.mark.parametrize(
    ("op", "field", "value"),
    [
        (SET, "slot", "1"),
        (SET, "slot", -1),
        (SET, "slot", 1 << 32),
        (SET, "slot", True),
        (SET, "flags", 1.0),
        (SET, "gpa", "16"),
        (SET, "gpa", "0x1" + 16 * "0"),
        (SET, "gpa", -1),
        (SET, "size", None),
        (SET, "size", [1]),
        (SET, "hva", "arena"[:3]),
        (SET, "hva", "arena+16"),
        (SET, "hva", 4096),
        (SET, "hva", "0x1" + 16 * "0"),
        (SET, "ret", None),
        (SET, "ret", ""),
        (SET, "ret", False),
        (SET, "note", 1),
        (SET, "op", "sett"),
        (SET, "op", None),
        (SET, "op", ["set"]),
        (SET2, "gmem", "fd"),
        (SET2, "gmem", -2),
        (SET2, "gmem_off", "x"),
        (LOG, "buf", "null"),
        (LOG, "out", [8]),
        (LOG, "out", {"bytes": 8}),
        (LOG, "out", {"bytes": "8", "dirty": []}),
        (LOG, "out", {"bytes": 8, "dirty": [[0]]}),
        (LOG, "out", {"bytes": 8, "dirty": [[0, 0]]}),
        (LOG, "out", {"bytes": 8, "dirty": [[4, 1], [2, 1]]}),
        (LOG, "out", {"bytes": 8, "dirty": [[0, True]]}),
        (SEEN, "observed", {"bytes": 8, "dirty": [7]}),
        (CLEAR, "num", 1 << 32),
        (CLEAR, "first", "64"),
        (CLEAR, "bits", [[0, 65]]),
        (CLEAR, "bits", "all"),
        (CAP, "cap", 168),
        (CAP, "arg", 1 << 64),
        (READ, "gpa", "0x4"),
        (READ, "via", 0),
        (READ, "out", {"hva": 0}),
        (READ, "out", {}),
        (WRITE, "out", {"hva": None, "wrote": 0}),
        (WRITE, "gpa", 9),
        (HOST, "gpa", "0xff8"),
        (ACCESS, "len", 3),
        (ACCESS, "len", True),
        (ACCESS, "write", 1),
        (ACCESS, "value", "eee0"),
        (ACCESS, "pte_dirty", "no"),
        (ACCESS, "out", {"mmio": [["0x0", 1, "x"]]}),
        (ACCESS, "out", {"mmio": [["0x0", 1]]}),
        (ACCESS, "out", {"mmio": [], "value": []}),
        (GMEM, "flags", "1"),
        (TSS, "gpa", "top"),
    ],
)
def test_ill_typed_field_is_named(op: dict, field: str, value: object, tmp_path: Path) -> None:
    e = refusal(file_with(tmp_path, SET, SET, {**op, field: value}))
    assert e.line == 4
    assert field in e.reason


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({}, "no format"),
        ([], "no format"),
        (SET, "no format"),
        ({**HEADER, "format": "memslots-vectors/2"}, "the format is"),
        (without(HEADER, "scope"), "no scope"),
        (without(HEADER, "ops"), "no ops"),
        ({**HEADER, "ops": "1"}, "ops is"),
        ({**HEADER, "ops": 0}, "0 ops announced, 1 here"),
        ({**HEADER, "ops": 2}, "2 ops announced, 1 here"),
        ({**HEADER, "kind": 1}, "kind is"),
        ({**HEADER, "oracle": []}, "oracle is not an object"),
        ({**HEADER, "oracle": {"caps": 1}}, "caps is not an object"),
        ({**HEADER, "oracle": {"caps": {"nr_memslots": "9"}}}, "caps.nr_memslots is"),
        ({**HEADER, "oracle": {"limits": 1}}, "limits is not an object"),
        ({**HEADER, "oracle": {"limits": {"gpa_bits": 65}}}, "limits.gpa_bits is"),
        ({**HEADER, "oracle": {"limits": {"hva_end_max": "top"}}}, "limits.hva_end_max is"),
    ],
)
def test_wrong_header_is_refused(header: object, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_bytes(lines_of(header, SET))
    assert reason in refusal(path).reason


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (b"", 1, "no format"),
        (b"\n", 1, "not JSON"),
        (lines_of(HEADER) + b'{"op":"set",\n', 2, "not JSON"),
        (lines_of(HEADER) + b"\n" + lines_of(SET), 2, "not JSON"),
        (lines_of(HEADER, SET)[:-20], 2, "not JSON"),
        (lines_of(HEADER) + '{"op":"sét"}\n'.encode(), 2, "not ASCII"),
        (lines_of(HEADER, [SET]), 2, "not an object"),
        (lines_of(HEADER, without(SET, "op")), 2, "no op"),
        (lines_of(HEADER) + b"[" * 100_000, 2, "not JSON"),
    ],
)
def test_broken_text_is_refused(text: bytes, line: int, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_bytes(text)
    e = refusal(path)
    assert e.line == line
    assert reason in e.reason


@pytest.mark.parametrize("cut", [5, 2000, -100, -5])
def test_truncated_gzip_is_refused(cut: int, tmp_path: Path) -> None:
    whole = max((p.read_bytes() for p in FILES if p.suffix == ".gz"), key=len)
    path = tmp_path / "v.jsonl.gz"
    path.write_bytes(whole[:cut])
    assert "damaged gzip" in refusal(path).reason


def test_what_is_no_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl.gz"
    path.write_bytes(lines_of(HEADER, SET))
    e = refusal(path)
    assert e.line == 1
    assert "damaged gzip" in e.reason


def test_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        vectors.read(tmp_path / "none.jsonl")


# ---- numbers, addresses, bitmaps ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hva"),
    [
        ("arena", ARENA),
        ("arena+0x1001", ARENA + 0x1001),
        ("arena-0x1000", ARENA - 0x1000),
        ("arena+0xffffffffffffffff", ARENA - 1),
        ("arena-0xfffffffffffff000", ARENA + 0x1000),
        ("0x0", 0),
        ("0xfffffffffffff000", 2**64 - 4096),
    ],
)
def test_parse_address(text: str, hva: int) -> None:
    assert vectors.parse_address(text, ARENA) == hva


def test_format_address_is_parsed_back() -> None:
    for hva in (0, ARENA - 1, ARENA, ARENA + 5, 2**64 - 1):
        assert vectors.parse_address(vectors.format_address(hva, ARENA), ARENA) == hva
    assert vectors.format_address(ARENA + 0x10, ARENA) == "arena+0x10"


def test_parse_number() -> None:
    assert vectors.parse_number("0x10") == vectors.parse_number(16) == 16


@pytest.mark.parametrize(
    ("runs", "npages", "words"),
    [
        ([], 0, []),
        ([], 65, [0, 0]),
        ([[0, 1]], 1, [1]),
        ([[63, 2]], 128, [1 << 63, 1]),
        ([[0, 64], [66, 1]], 130, [2**64 - 1, 4, 0]),
        ([[5, 3], [70, 2]], 72, [0b11100000, 0b11000000]),
    ],
)
def test_runs_and_words(runs: list, npages: int, words: list) -> None:
    bitmap = vectors.runs_to_words(runs, npages)
    assert bitmap.dtype == np.uint64
    assert bitmap.tolist() == words
    assert vectors.words_to_runs(bitmap) == runs


def test_words_to_runs_joins_neighbours_across_words() -> None:
    words = np.array([1 << 63, 2**64 - 1, 1], np.uint64)
    assert vectors.words_to_runs(words) == [[63, 66]]
    assert vectors.words_to_runs(np.array([0, 9, 6], np.uint64)[::2]) == [[65, 2]]


def test_runs_to_pages() -> None:
    assert vectors.runs_to_pages([[3, 2], [9, 1]]).tolist() == [3, 4, 9]
    assert vectors.runs_to_pages([]).size == 0
