# SPDX-License-Identifier: MIT
"""Reading vector files: which lines are accepted, and at which line and for which reason others are refused."""

import errno
import gzip
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vector_samples import (
    CHECK,
    CLEAR,
    ENABLE,
    FULL_HEADER,
    GMEM,
    GOOD,
    HEADER,
    HOST,
    LOAD,
    LOG,
    READ,
    SEEN,
    SET,
    SET2,
    SET_FAULT,
    STORE,
    TSS,
    WRITE,
    file_with,
    lines_of,
    without,
)

from memslots.traces import player, schema, vectors
from memslots.traces.vectors import Limits, VectorError

FILES = sorted((Path(__file__).parents[1] / "vectors").rglob("*.jsonl*"))
DOCUMENT = Path(__file__).parents[2] / "docs" / "vectors.md"
ARENA = 1 << 44
NESTED = b'{"op":"create_vcpu","ret":0,"x":%b1%b}' % (b"[" * 20, b"]" * 20)


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
    assert {op.kind for op in file.ops} <= set(schema.OPS)


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


OPTIONAL = {"note", "t_us", "gmem", "gmem_off", "flags of create_gmem", "v2", "buf", "bits", "via"}
OPTIONAL |= {"pte_dirty", "value of access"}


@pytest.mark.parametrize("op", GOOD, ids=lambda op: op["op"])
def test_line_without_a_required_field_is_refused(op: dict, tmp_path: Path) -> None:
    for field in [f for f in op if not OPTIONAL & {f, f"{f} of {op['op']}"}]:
        e = refusal(file_with(tmp_path, SET, without(op, field)))
        assert e.line == 3
        assert f"no {'out' if field == 'observed' else field}" in e.reason


@pytest.mark.parametrize("op", GOOD, ids=lambda op: op["op"])
def test_line_without_an_optional_field_is_accepted(op: dict, tmp_path: Path) -> None:
    for field in [f for f in op if OPTIONAL & {f, f"{f} of {op['op']}"}]:
        assert vectors.read(file_with(tmp_path, SET, without(op, field))).ops[1].kind == op["op"]


def test_samples_have_every_field_of_the_schema() -> None:
    """Makes sure that the other tests of this file cover new operations and fields."""
    fields: dict[str, set[str]] = {}
    for op in GOOD:
        fields.setdefault(op["op"], set()).update(op)
    common = {"note", "t_us"}
    assert {kind: set(shape.fields) - common for kind, shape in schema.OPS.items()} == {
        kind: names - common for kind, names in fields.items()
    }
    assert set(schema.HEADER.fields) == set(FULL_HEADER)


def test_the_player_knows_every_operation() -> None:
    assert set(player._HANDLERS) == set(schema.OPS)


def test_the_document_names_every_operation_and_field() -> None:
    text = DOCUMENT.read_text()
    names = set(schema.OPS) | set(schema.NAMES) | set(schema.HEADER.fields) | {"gpa_bits"}
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", text)] == []


JUNK = (None, True, 1.5, -1, "junk", "0x", "\ud800", [1], [[]], {"a": 1})
TEXTS = ("note", "cap", "kind", "name", "about", "generator", "profile", "qemu", "cmdline")
TEXTS += ("captured", "kernel", "arch", "cpu")
ALLOWED = {
    **dict.fromkeys(TEXTS, ("junk", "0x")),
    **dict.fromkeys(("write", "wrote", "pte_dirty", "v2", "same_calls", "same_order"), (True,)),
    **dict.fromkeys(("oracle", "caps", "limits", "strace"), ({"a": 1},)),
    "gmem": (-1,),
    "out.hva": (None,),
}


def junk_for(path: tuple[str, ...]) -> list[object]:
    """All junk values except those that the field allows."""
    allowed = ALLOWED.get(".".join(path), ALLOWED.get(path[-1], ()))
    return [v for v in JUNK if not any(type(v) is type(a) and v == a for a in allowed)]


def fields_below(row: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in row.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from fields_below(value, (*path, name))


def replaced(row: dict, path: tuple[str, ...], value: object) -> dict:
    name, *rest = path
    return {**row, name: replaced(row[name], tuple(rest), value) if rest else value}


@pytest.mark.parametrize("op", GOOD, ids=lambda op: op["op"])
def test_junk_in_any_field_is_named(op: dict, tmp_path: Path) -> None:
    for path in fields_below(op):
        for value in junk_for(path):
            e = refusal(file_with(tmp_path, SET, replaced(op, path, value)))
            assert e.line == 3
            assert path[-1] in e.reason


def test_junk_in_any_field_of_the_header_is_named(tmp_path: Path) -> None:
    for path in fields_below(FULL_HEADER):
        for value in junk_for(path):
            changed = replaced(FULL_HEADER, path, value)
            e = refusal(file_with(tmp_path, SET, **{"ops": 1, **changed}))
            assert e.line == 1
            assert path[-1] in e.reason


def test_the_full_header_is_read(tmp_path: Path) -> None:
    assert vectors.read(file_with(tmp_path, SET, **FULL_HEADER)).header == FULL_HEADER


@pytest.mark.parametrize("op", GOOD, ids=lambda op: op["op"])
def test_a_field_of_another_operation_is_refused(op: dict, tmp_path: Path) -> None:
    known = set(schema.NAMES) - set(op) - {"hva", "bytes", "dirty", "wrote", "mmio"}
    for name in sorted(known - set(schema.OPS[op["op"]].fields)):
        e = refusal(file_with(tmp_path, SET, {**op, name: 5}))
        assert e.reason == f"{op['op']}: {name} is 5, not allowed here"
    if isinstance(op.get("out"), dict):
        for name in sorted({"hva", "wrote", "bytes", "dirty", "mmio", "value"} - set(op["out"])):
            e = refusal(file_with(tmp_path, SET, replaced(op, ("out", name), 5)))
            assert f"out.{name} is 5" in e.reason or f"out.{name} of a store" in e.reason


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
        (SET, "ret", 1),
        (SET, "ret", -22),
        (SET, "ret", "EWHAT"),
        (SET, "ret", "errorcode"),
        (SET, "gpa", "0x" + 17 * "0"),
        (SET, "hva", "arena+0x" + 17 * "0"),
        (SET, "note", "a\x1b[2J"),
        (SET, "note", 4097 * "a"),
        (SET, "t_us", -1),
        (SET_FAULT, "v2", 1),
        (CHECK, "ret", 1 << 31),
        (CHECK, "ret", -1),
        (CHECK, "out", 5),
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
        (LOG, "out", {"bytes": 8, "dirty": [[0, 1], [1, 1]]}),
        (LOG, "out", {"bytes": 8, "dirty": [[0, 65]]}),
        (LOG, "out", {"bytes": 16, "dirty": []}),
        (LOG, "out", {"bytes": 0, "dirty": []}),
        (LOG, "observed", {"bytes": 8, "dirty": []}),
        (LOG, "observed", 5),
        (LOG, "ret", "ENOENT"),
        (SEEN, "observed", {"bytes": 8, "dirty": [7]}),
        (SEEN, "observed", {"bytes": 16, "dirty": []}),
        (SEEN, "observed", {"bytes": 8, "dirty": [[64, 1]]}),
        (CLEAR, "num", 1 << 32),
        (CLEAR, "first", "64"),
        (CLEAR, "bits", [[0, 65]]),
        (CLEAR, "bits", "all"),
        (CLEAR, "bits", [[0, 1], [0, 1]]),
        (CLEAR, "bits", [[1 << 32, 1]]),
        (ENABLE, "cap", 168),
        (ENABLE, "arg", 1 << 64),
        (READ, "gpa", "0x4"),
        (READ, "via", 0),
        (READ, "out", {"hva": 0}),
        (READ, "via", "guess"),
        (READ, "out", {}),
        (WRITE, "out", {"hva": None, "wrote": 0}),
        (WRITE, "out", {"hva": None, "wrote": True}),
        (WRITE, "gpa", 9),
        (HOST, "gpa", "0xff8"),
        (LOAD, "len", 3),
        (LOAD, "len", True),
        (LOAD, "write", 1),
        (LOAD, "value", "0xeee0"),
        (LOAD, "pte_dirty", "no"),
        (LOAD, "gpa", "0xffffffffffffffff"),
        (LOAD, "out", {"mmio": [["0x0", 1, "x"]], "value": "0x0"}),
        (LOAD, "out", {"mmio": [["0x0", 1]], "value": "0x0"}),
        (LOAD, "out", {"mmio": [["0x1000", 1, "w"]], "value": "0xeee0"}),
        (LOAD, "out", {"mmio": [["0x1000", 2, "r"]], "value": "0xeee0"}),
        (LOAD, "out", {"mmio": [["0x1001", 1, "r"]], "value": "0xeee0"}),
        (LOAD, "out", {"mmio": [["0x1000", 1, "r"], ["0xfff", 1, "r"]], "value": "0x0"}),
        (LOAD, "out", {"mmio": [["0x1000", 1, "r"], ["0x1000", 1, "r"]], "value": "0x0"}),
        (LOAD, "out", {"mmio": [["0x1000", True, "r"]], "value": "0xeee0"}),
        (LOAD, "out", {"mmio": [], "value": []}),
        (LOAD, "out", {"mmio": [], "value": "0x10000"}),
        (LOAD, "out", {"mmio": []}),
        (STORE, "value", "eee0"),
        (STORE, "out", {"mmio": [], "value": "0x0"}),
        (GMEM, "flags", "1"),
        (TSS, "gpa", "top"),
    ],
)
def test_ill_typed_field_is_named(op: dict, field: str, value: object, tmp_path: Path) -> None:
    e = refusal(file_with(tmp_path, SET, SET, {**op, field: value}))
    assert e.line == 4
    assert field in e.reason or (field == "ret" and "out" in e.reason)


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
        ({**HEADER, "ops": 0}, "announces 0 ops, here is one more"),
        ({**HEADER, "ops": 2}, "announces 2 ops, here are 1"),
        ({**HEADER, "kind": 1}, "kind is"),
        ({**HEADER, "scope": "memslot"}, "scope is"),
        ({**HEADER, "name": "\ud800"}, "name is"),
        ({**HEADER, "name": "\x1b[2J"}, "name is"),
        ({**HEADER, "scope": "\ud800"}, "scope is"),
        ({**HEADER, "\ud800": 1}, "is 1, not"),
        ({**HEADER, "colour": ["\ud800"]}, "colour is"),
        ({**HEADER, "colour": {"\ud800": 1}}, "colour is"),
        ({**HEADER, "monitor": [["now", "stop"]]}, "monitor is"),
        ({**HEADER, "oracle": {"caps": {"nr_memslots": 32768}}}, "caps.nr_memslots is"),
        ({**HEADER, "oracle": {"caps": {"nr_memslots": 0}}}, "caps.nr_memslots is"),
        ({**HEADER, "oracle": {"caps": {"x86_smm": 1 << 31}}}, "caps.x86_smm is"),
        ({**HEADER, "oracle": {"limits": {"gpa_bits": 12}}}, "limits.gpa_bits is"),
        ({**HEADER, "oracle": {"limits": {"hva_end_max": 4095}}}, "limits.hva_end_max is"),
        ({**HEADER, "oracle": {"limits": {"hva_end_max": "0xffffffffffffe000"}}}, "hva_end_max is"),
        ({**HEADER, "oracle": []}, "oracle is a list, not an object"),
        ({**HEADER, "oracle": {"caps": 1}}, "caps is 1, not an object"),
        ({**HEADER, "oracle": {"caps": {"nr_memslots": "9"}}}, "caps.nr_memslots is"),
        ({**HEADER, "oracle": {"limits": 1}}, "limits is 1, not an object"),
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
        (b"\xef\xbb\xbf" + lines_of(HEADER, SET), 1, "a byte order mark"),
        (lines_of(HEADER).replace(b"\n", b"\r\n"), 1, "a carriage return"),
        (lines_of(HEADER) + b"\0" + lines_of(SET), 2, "not JSON"),
        (lines_of(HEADER, SET) + b"\0", 3, "not JSON"),
        (lines_of(HEADER, SET, SET), 3, "announces 1 ops, here is one more"),
        (lines_of(HEADER, SET)[:-2] + b"} {}", 2, "not JSON"),
        (lines_of(HEADER) + b'{"op":"\xff"}', 2, "not ASCII"),
        (lines_of(HEADER) + b'{"op":"create_vcpu","ret":0,"ret":0}', 2, "two values"),
        (lines_of(HEADER) + b'{"op":"create_vcpu","ret":0,"x":NaN}', 2, "NaN"),
        (lines_of(HEADER) + b'{"op":"create_vcpu","ret":0,"x":-Infinity}', 2, "-Infinity"),
        (lines_of(HEADER) + b'{"op":"create_vcpu","ret":0,"x":1e999}', 2, "too large"),
        (lines_of(HEADER) + b'{"op":"create_vcpu","ret":0,"x":%b}' % (b"9" * 5000), 2, "digits"),
        (lines_of(HEADER) + b'{"op":"create_vcpu","ret":0,"x":%b}' % (b"9" * 4000), 2, "x is"),
        (lines_of(HEADER) + NESTED, 2, "x is a list, not JSON of at most 16 levels"),
        (lines_of(HEADER) + b'{"op":"set_tss_addr","gpa":%b}' % (b"9" * 4000), 2, "no ret"),
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


def test_file_that_is_not_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl.gz"
    path.write_bytes(lines_of(HEADER, SET))
    e = refusal(path)
    assert e.line == 1
    assert "damaged gzip" in e.reason


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda packed: packed + b"garbage", "damaged gzip"),
        (lambda packed: packed[:-8] + b"\0\0\0\0" + packed[-4:], "damaged gzip"),
        (lambda packed: packed + gzip.compress(b"x"), "not JSON"),
        (lambda packed: gzip.compress(packed), "not ASCII"),
        (lambda packed: b"", "no format"),
    ],
    ids=["trailing garbage", "checksum", "second member", "packed twice", "empty"],
)
def test_damaged_gzip_is_refused(damage: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl.gz"
    path.write_bytes(damage(gzip.compress(lines_of(HEADER, SET))))
    assert reason in refusal(path).reason


def test_a_folder_and_a_loop_are_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(IsADirectoryError):
        vectors.read(tmp_path)
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ELOOP))):
        vectors.read(tmp_path / "loop.jsonl")


@contextmanager
def without_root() -> Iterator[None]:
    """Drops root's rights, because root may read every file."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_an_unreadable_file_is_an_oserror(tmp_path: Path) -> None:
    path = file_with(tmp_path, SET)
    path.chmod(0)
    with without_root(), pytest.raises(PermissionError):
        vectors.read(path)


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.jsonl")
    for path in (tmp_path / "v.jsonl", Path("/dev/zero")):
        assert refusal(path).reason == "not a regular file"


def test_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        vectors.read(tmp_path / "none.jsonl")


# ---- the document -------------------------------------------------------------------------------


def test_the_document_names_the_limits() -> None:
    text = DOCUMENT.read_text()
    assert Limits() == (4 << 20, 64 << 20, 1 << 24)
    for name in Limits._fields:
        assert f"`MEMSLOTS_MAX_{name.upper()}`" in text


# ---- limits -------------------------------------------------------------------------------------


def refused_by(limits: Limits, path: Path) -> VectorError:
    with pytest.raises(VectorError) as caught:
        vectors.read(path, limits)
    return caught.value


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_and_a_file_are_limited(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("v.jsonl.gz" if packed else "v.jsonl")
    for n, limits, line, name in (
        (1000, Limits(line_bytes=1000, file_bytes=3100), 0, ""),
        (1001, Limits(line_bytes=1000, file_bytes=3100), 2, "LINE"),
        (1040, Limits(line_bytes=2000, file_bytes=3100), 4, "FILE"),
    ):
        row = {"op": "create_vcpu", "ret": 0, "x": (n - 41) * "x"}
        text = lines_of({**HEADER, "ops": 3}, row, row, row)
        assert len(text.splitlines()[1]) + 1 == n
        path.write_bytes(gzip.compress(text) if packed else text)
        if line:
            e = refused_by(limits, path)
            assert e.line == line
            assert f"MEMSLOTS_MAX_{name}_BYTES" in e.reason
        else:
            assert len(vectors.read(path, limits).ops) == 3


def logged(slot: int, npages: int, **more: object) -> dict:
    place = {"gpa": f"{slot << 32:#x}", "hva": f"arena+{slot << 32:#x}"}
    return {**SET, "slot": slot, "size": f"{npages << 12:#x}", **place, **more}


@pytest.mark.parametrize(
    ("ops", "line"),
    [
        ((logged(1, 100),), 0),
        ((logged(1, 101),), 2),
        ((logged(1, 101, flags=2),), 0),
        ((logged(1, 101, ret="EEXIST"),), 2),
        ((logged(1, (1 << 31) - 1, gpa="0xffffffffff000", ret="EINVAL"),), 0),
        ((logged(1, 1 << 31, ret="EINVAL"),), 0),
        ((logged(1, 101, hva="0x7fffffffe000", ret="EINVAL"),), 0),
        ((logged(1, 60), logged(2, 40)), 0),
        ((logged(1, 60), logged(2, 41)), 3),
        ((logged(1, 60), logged(1, 60, gpa="0x0"), logged(2, 40)), 0),
        ((logged(1, 60), logged(1, 0), logged(2, 100)), 0),
        ((logged(1, 60), logged(1, 0, ret="EINVAL"), logged(2, 100)), 4),
        ((logged(1, 60), logged(1, 60, flags=0), logged(2, 100)), 0),
        (({**CLEAR, "num": 1 << 31, "bits": [[0, 100]]},), 0),
        (({**CLEAR, "num": 1 << 31, "bits": [[0, 50], [99, 2]]},), 2),
        (({**LOG, "slot": 9, "out": {"bytes": 1 << 40, "dirty": [[0, 100]]}},), 0),
        (({**LOG, "slot": 9, "out": {"bytes": 1 << 40, "dirty": [[0, 101]]}},), 2),
    ],
)
def test_pages_under_logging_are_limited(ops: tuple[dict, ...], line: int, tmp_path: Path) -> None:
    path = file_with(tmp_path, *ops)
    limits = Limits(logged_pages=100)
    if not line:
        assert len(vectors.read(path, limits).ops) == len(ops)
        return
    e = refused_by(limits, path)
    assert e.line == line
    assert "100" in e.reason
    assert "MEMSLOTS_MAX_LOGGED_PAGES" in e.reason or "dirty reaches page" in e.reason


def test_the_environment_sets_limits(tmp_path: Path, monkeypatch: Any) -> None:
    path = file_with(tmp_path, logged(1, 1000))
    assert vectors.read(path).limits == Limits()
    for name, value in (("LINE_BYTES", 50), ("FILE_BYTES", 50), ("LOGGED_PAGES", 999)):
        with monkeypatch.context() as patch:
            patch.setenv(f"MEMSLOTS_MAX_{name}", str(value))
            assert f"MEMSLOTS_MAX_{name}" in refusal(path).reason
            patch.setenv(f"MEMSLOTS_MAX_{name}", "1000")
            assert len(vectors.read(path).ops) == 1


@pytest.mark.parametrize("value", ["", "0", "-1", "1e9", "many", "9" * 30])
def test_a_limit_that_is_no_number_is_named(value: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MEMSLOTS_MAX_LINE_BYTES", value)
    assert "MEMSLOTS_MAX_LINE_BYTES" in refusal(file_with(tmp_path, SET)).reason


def test_write_keeps_the_limits(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    for limits, line in ((Limits(line_bytes=50), 1), (Limits(logged_pages=63), 2)):
        with pytest.raises(VectorError) as caught:
            vectors.write(path, HEADER, [SET], limits)
        assert caught.value.line == line
        assert not path.exists()


# ---- numbers and addresses ----------------------------------------------------------------------


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
    assert schema.parse_address(text, ARENA) == hva


def test_format_address_is_parsed_back() -> None:
    for hva in (0, ARENA - 1, ARENA, ARENA + 5, 2**64 - 1):
        assert schema.parse_address(schema.format_address(hva, ARENA), ARENA) == hva
    assert schema.format_address(ARENA + 0x10, ARENA) == "arena+0x10"


def test_parse_number() -> None:
    assert schema.parse_number("0x10") == schema.parse_number(16) == 16
