# SPDX-License-Identifier: MIT
"""Reads and writes vector files, `memslots-vectors/1`: operations with the results a real KVM gave.

A file is JSON lines, plain or gzip: a header, then one operation a line.  Whoever plays a file
trusts what this module let pass, so reading is strict: whatever is missing, ill-typed or cut off
is a `VectorError` that names file and line.  Keys that the format does not know are left alone.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

FORMAT = "memslots-vectors/1"
SCOPE = "memslots"  # of the files with which every engine must agree; others are optional features

PAGE_SIZE = 4096
BITS_PER_WORD = 64
U64 = 1 << 64

_HEX = re.compile(r"0x[0-9a-fA-F]+")
_ARENA = re.compile(r"arena(?:([+-])(0x[0-9a-fA-F]+))?")


class VectorError(ValueError):
    """A file that cannot be played: where, and what is wrong there."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}")
        self.path, self.line, self.reason = path, line, reason


class Op(NamedTuple):
    """One operation: the line it stands on (the header is line 1), its kind, and all its fields."""

    line: int
    kind: str
    fields: dict[str, Any]


class VectorFile(NamedTuple):
    """A file whose every line has been checked."""

    path: str
    header: dict[str, Any]
    ops: list[Op]

    @property
    def scope(self) -> str:
        return str(self.header["scope"])


# ---- numbers, addresses, bitmaps ----------------------------------------------------------------


def parse_number(value: int | str) -> int:
    """A JSON integer or a hex string."""
    return int(value, 16) if isinstance(value, str) else value


def parse_address(text: str, arena_base: int) -> int:
    """`arena+0x..`, `arena-0x..` or an absolute `0x..`, modulo 2^64."""
    match = _ARENA.fullmatch(text)
    if not match:
        return int(text, 16)
    sign, offset = match.groups(default="0x0")
    return (arena_base + (-1 if sign == "-" else 1) * int(offset, 16)) % U64


def format_address(hva: int, arena_base: int) -> str:
    """The address relative to the arena, from its base on; absolute below."""
    return f"arena+{hva - arena_base:#x}" if hva >= arena_base else f"{hva:#x}"


def nr_words(npages: int) -> int:
    """How many words a bitmap of this many pages has."""
    return (npages + BITS_PER_WORD - 1) // BITS_PER_WORD


def runs_to_words(runs: Iterable[list[int]], npages: int) -> np.ndarray:
    """`[[first, count], ...]` -> the uint64 words of a bitmap of `npages` pages."""
    words = np.zeros(nr_words(npages), np.uint64)
    used = nr_words(max((first + count for first, count in runs), default=0))
    bits = np.zeros(used * BITS_PER_WORD, np.uint8)
    for first, count in runs:
        bits[first : first + count] = 1
    words[:used] = np.packbits(bits, bitorder="little").view("<u8")
    return words


def words_to_runs(words: np.ndarray) -> list[list[int]]:
    """The maximal runs of set bits, ascending."""
    raw = np.ascontiguousarray(words, "<u8").view(np.uint8)
    bits = np.unpackbits(raw, bitorder="little").astype(np.int8)
    edges = np.flatnonzero(np.diff(bits, prepend=0, append=0))
    return [[first, end - first] for first, end in edges.reshape(-1, 2).tolist()]


def runs_to_pages(runs: Iterable[list[int]]) -> np.ndarray:
    """`[[first, count], ...]` -> every page number, uint64."""
    pages = [np.arange(first, first + count, dtype=np.uint64) for first, count in runs]
    return np.concatenate(pages) if pages else np.empty(0, np.uint64)


# ---- what a field may hold ----------------------------------------------------------------------
# Each check answers with what would have been right, or with None if it is.

Check = Callable[[Any], "str | None"]


def _int_below(limit: int, what: str) -> Check:
    def check(value: Any) -> str | None:
        return None if type(value) is int and 0 <= value < limit else what

    return check


def _u64(value: Any) -> str | None:
    if isinstance(value, str):
        value = int(value, 16) if _HEX.fullmatch(value) else -1
    return (
        None if type(value) is int and 0 <= value < U64 else "a number of 64 bits or its 0x string"
    )


def _address(value: Any) -> str | None:
    is_hex = isinstance(value, str) and _HEX.fullmatch(value)
    right = isinstance(value, str) and (_ARENA.fullmatch(value) or (is_hex and not _u64(value)))
    return None if right else 'an address, "arena+0x..." or "0x..."'


def _address_or_null(value: Any) -> str | None:
    return None if value is None or not _address(value) else "an address or null"


def _bool(value: Any) -> str | None:
    return None if type(value) is bool else "true or false"


def _str(value: Any) -> str | None:
    return None if isinstance(value, str) else "a string"


def _ret(value: Any) -> str | None:
    right = type(value) is int or (isinstance(value, str) and value)
    return None if right else "0, a value, or the name of an errno"


def _one_of(*values: Any) -> Check:
    def check(value: Any) -> str | None:
        known = any(type(value) is type(v) and value == v for v in values)
        return None if known else " or ".join(json.dumps(v) for v in values)

    return check


def _runs(value: Any) -> str | None:
    what = "runs, [[first page, count], ...], ascending"
    if not isinstance(value, list):
        return what
    end = 0
    for run in value:
        if not (isinstance(run, list) and len(run) == 2 and all(type(n) is int for n in run)):
            return what
        if run[0] < end or run[1] < 1 or sum(run) > 1 << 32:
            return what
        end = sum(run)
    return None


def _gmem(value: Any) -> str | None:
    right = value == "kvmfd" or (type(value) is int and value >= -1)
    return None if right else 'the index of a create_gmem, -1 or "kvmfd"'


def _is_exit(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    gpa, nbytes, kind = value
    return not _u64(gpa) and type(nbytes) is int and kind in ("r", "w")


def _exits(value: Any) -> str | None:
    right = isinstance(value, list) and all(_is_exit(e) for e in value)
    return None if right else '[[gpa, bytes, "r" or "w"], ...]'


_u32 = _int_below(1 << 32, "a number of 32 bits")
_count = _int_below(U64, "a number")

Fields = Mapping[str, Check]
_NONE: Fields = MappingProxyType({})


class _Shape(NamedTuple):
    """The fields of one kind of operation, and those of its `out`."""

    required: Fields
    optional: Fields = _NONE
    out: Fields = _NONE
    out_optional: Fields = _NONE


_SET: Fields = {"slot": _u32, "flags": _u32, "gpa": _u64, "size": _u64, "hva": _address}
_DIRTY_OUT: Fields = {"bytes": _count, "dirty": _runs}
_FAULT: Fields = {"buf": _one_of("fault")}
_WRITE_OUT: Fields = {"hva": _address_or_null, "wrote": _bool}

_SHAPES: dict[str, _Shape] = {
    "set": _Shape(_SET),
    "set2": _Shape(_SET, {"gmem": _gmem, "gmem_off": _u64}),
    "set_fault": _Shape({}),
    "create_gmem": _Shape({"size": _u64}, {"flags": _u64}),
    "get_dirty": _Shape({"slot": _u32}, _FAULT, _DIRTY_OUT),
    "clear_dirty": _Shape({"slot": _u32, "first": _u64, "num": _u32}, {"bits": _runs, **_FAULT}),
    "enable_cap": _Shape({"cap": _str, "arg": _u64}),
    "check_cap": _Shape({"cap": _str}),
    "read": _Shape({"gpa": _u64}, {"via": _str}, {"hva": _address_or_null}),
    "write": _Shape({"gpa": _u64}, {"via": _str}, _WRITE_OUT),
    "host_write": _Shape({"gpa": _u64}, {}, _WRITE_OUT),
    "access": _Shape(
        {"gpa": _u64, "len": _one_of(1, 2, 4, 8), "write": _bool},
        {"value": _u64, "via": _str, "pte_dirty": _bool},
        {"mmio": _exits},
        {"value": _u64},
    ),
    "create_vcpu": _Shape({}),
    "create_irqchip": _Shape({}),
    "set_tss_addr": _Shape({"gpa": _u64}),
    "set_identity_map_addr": _Shape({"gpa": _u64}),
}

OP_KINDS = tuple(_SHAPES)

_COMMON: Fields = {"ret": _ret}
_COMMON_OPTIONAL: Fields = {"note": _str, "t_us": _count}

_HEADER: Fields = {"scope": _str, "ops": _count}
_HEADER_OPTIONAL: Fields = {"kind": _str, "name": _str, "about": _str}
_LIMITS: Fields = {
    "gpa_bits": _int_below(65, "a number of bits, at most 64"),
    "hva_end_max": _u64,
}


def _wrong_field(
    where: dict[str, Any], required: Fields, optional: Fields, prefix: str = ""
) -> str | None:
    """The first field that is missing or ill-typed, in words."""
    for name, check in required.items():
        if name not in where:
            return f"no {prefix}{name}"
        if wanted := check(where[name]):
            return f"{prefix}{name} is {_short(where[name])}, not {wanted}"
    for name, check in optional.items():
        if name in where and (wanted := check(where[name])):
            return f"{prefix}{name} is {_short(where[name])}, not {wanted}"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong_header(header: Any) -> str | None:
    if not isinstance(header, dict) or "format" not in header:
        return "the first line is not a header: no format"
    if header["format"] != FORMAT:
        return f"the format is {_short(header['format'])}, not {FORMAT}"
    return _wrong_field(header, _HEADER, _HEADER_OPTIONAL) or _wrong_oracle(header)


def _wrong_oracle(header: dict[str, Any]) -> str | None:
    oracle = header.get("oracle", {})
    for name, where in (("oracle", {"oracle": oracle}), ("caps", oracle), ("limits", oracle)):
        if not isinstance(where, dict) or not isinstance(where.get(name, {}), dict):
            return f"{name} is not an object"
    for name, value in oracle.get("caps", {}).items():
        if type(value) is not int:
            return f"caps.{name} is {_short(value)}, not a number"
    return _wrong_field(oracle.get("limits", {}), {}, _LIMITS, "limits.")


def _wrong_op(op: Any) -> str | None:
    """What is wrong with one operation, in words."""
    if not isinstance(op, dict):
        return "not an object"
    if "op" not in op:
        return "no op"
    kind = op["op"]
    shape = _SHAPES.get(kind) if isinstance(kind, str) else None
    if shape is None:
        return f"unknown op {_short(kind)}"
    wrong = (
        _wrong_field(op, shape.required, shape.optional)
        or _wrong_field(op, _COMMON, _COMMON_OPTIONAL)
        or _wrong_out(op, shape)
        or _wrong_values(op)
    )
    return f"{kind}: {wrong}" if wrong else None


def _wrong_out(op: dict[str, Any], shape: _Shape) -> str | None:
    """`out` is there where the operation succeeded and has one; `observed` stands in for it."""
    for name in ("out", "observed"):
        if name in op and shape.out:
            if not isinstance(op[name], dict):
                return f"{name} is not an object"
            return _wrong_field(op[name], shape.out, shape.out_optional, f"{name}.")
    return "no out" if shape.out and op["ret"] == 0 else None


def _wrong_values(op: dict[str, Any]) -> str | None:
    """Rules of the format that concern more than the type of a field."""
    kind = op["op"]
    if kind == "clear_dirty":
        end = max((first + count for first, count in op.get("bits", [])), default=0)
        return "bits reach beyond num" if end > op["num"] else None
    if kind in ("read", "write", "host_write") and parse_number(op["gpa"]) % 8:
        return f"gpa is {_short(op['gpa'])}, not a multiple of 8"
    if kind == "host_write" and parse_number(op["gpa"]) % PAGE_SIZE > PAGE_SIZE - 12:
        return f"gpa is {_short(op['gpa'])}, too near the end of its page"
    return None


# ---- reading ------------------------------------------------------------------------------------


def read(path: str | Path) -> VectorFile:
    """Reads and checks a whole file.  VectorError; OSError where it cannot be opened."""
    path = str(path)
    rows = _rows(path)
    header = _checked_header(path, rows)
    ops = []
    for line, op in rows:
        if wrong := _wrong_op(op):
            raise VectorError(path, line, wrong)
        ops.append(Op(line, op["op"], op))
    if len(ops) != header["ops"]:
        raise VectorError(path, len(ops) + 1, f"{header['ops']} ops announced, {len(ops)} here")
    return VectorFile(path, header, ops)


def read_header(path: str | Path) -> dict[str, Any]:
    """The header alone."""
    return _checked_header(str(path), _rows(str(path)))


def _checked_header(path: str, rows: Iterator[tuple[int, Any]]) -> dict[str, Any]:
    header: Any
    _, header = next(rows, (1, None))
    if wrong := _wrong_header(header):
        raise VectorError(path, 1, wrong)
    return dict(header)


def _rows(path: str) -> Iterator[tuple[int, Any]]:
    """Line number and object of each line."""
    line = 0
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as f:
            for line, text in enumerate(f, 1):
                yield line, _parse(path, line, text)
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise VectorError(path, line + 1, f"damaged gzip file: {e}") from None


def _parse(path: str, line: int, text: bytes) -> Any:
    try:
        return json.loads(text.decode("ascii"))
    except UnicodeDecodeError:
        raise VectorError(path, line, "not ASCII") from None
    except (ValueError, RecursionError) as e:
        raise VectorError(path, line, f"not JSON: {e}") from None


# ---- writing ------------------------------------------------------------------------------------


def write(path: str | Path, header: dict[str, Any], ops: Iterable[Op | dict[str, Any]]) -> None:
    """Writes a file that `read` accepts; `format` and `ops` of the header are filled in here."""
    path = str(path)
    rows = [op.fields if isinstance(op, Op) else op for op in ops]
    header = {**header, "format": FORMAT, "ops": len(rows)}
    if wrong := _wrong_header(header):
        raise VectorError(path, 1, wrong)
    for line, op in enumerate(rows, 2):
        if wrong := _wrong_op(op):
            raise VectorError(path, line, wrong)
    _write_rows(path, [header, *rows])


def _write_rows(path: str, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode("ascii")
    with open(path, "wb") as f:
        f.write(_gzipped(text) if path.endswith(".gz") else text)


def _gzipped(text: bytes) -> bytes:
    """Without name and time, so that the same rows always give the same file."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as f:
        f.write(text)
    return buffer.getvalue()


# ---- finding ------------------------------------------------------------------------------------


def is_vector_path(path: Path) -> bool:
    """Does it have the name of a vector file?"""
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def packaged_traces() -> list[Path]:
    """The recorded QEMU runs that come with the package, sorted."""
    folder = resources.files(__package__).joinpath("data", "qemu")
    return sorted(p for p in (Path(str(f)) for f in folder.iterdir()) if is_vector_path(p))


def stem(path: str | Path) -> str:
    """The name of a vector file without its endings."""
    return Path(path).name.removesuffix(".gz").removesuffix(".jsonl")


def packaged(name: str) -> str | None:
    """The path of the packaged trace of that name (pc-migrate-boot); None: there is none, or a file has that name."""
    if Path(name).exists():
        return None
    return {stem(path): str(path) for path in packaged_traces()}.get(name)
