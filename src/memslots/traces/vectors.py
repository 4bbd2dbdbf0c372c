# SPDX-License-Identifier: MIT
"""Read and write vector files, `memslots-vectors/1`: operations with the results of a real KVM.

A file consists of JSON lines, plain or gzip: a header, then one operation on each line.  A file may come from an
untrusted source, and the player relies on the checks of this module.  So every line must match the schema (schema.py),
and `Limits` bound the memory that a file can use.  Otherwise `VectorError` names the file and the line.
"""

import gzip
import io
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from math import isinf
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from .regions import Regions, machine_of, region_of
from .runs import nr_words
from .schema import CHANGES, FORMAT, NAMES, wrong_header, wrong_op

_Text = IO[bytes] | gzip.GzipFile


class VectorError(ValueError):
    """A file that cannot be played: its path, the line, and the reason."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}")
        self.path, self.line, self.reason = path, line, reason


class Op(NamedTuple):
    """One operation: its line number (the header is line 1), its kind, and all its fields."""

    line: int
    kind: str
    fields: dict[str, Any]


class Limits(NamedTuple):
    """The limits of a file.  Environment variables can raise each limit.

    Python objects need up to 20 times the memory of the text: at most 20 times `file_bytes` for a file, and 20 times
    `line_bytes` for a line.  A page under dirty logging needs two bits in the VM, and time in each operation on the
    log.
    """

    line_bytes: int = 4 << 20  # uncompressed
    file_bytes: int = 64 << 20  # uncompressed
    logged_pages: int = 1 << 24  # of all slots together at one time: 64 GiB

    @classmethod
    def from_environment(cls) -> "Limits":
        """Return the defaults, or the values of MEMSLOTS_MAX_LINE_BYTES and so on where these are set.

        ValueError: a variable is not a number.
        """
        return cls(*(_from_environment(name, value) for name, value in cls._field_defaults.items()))


def _variable(name: str) -> str:
    return f"MEMSLOTS_MAX_{name.upper()}"


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(_variable(name))
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text)):
        raise ValueError(f"the environment variable {_variable(name)} is {text!r}, not a number")
    return int(text)


def _beyond(what: str, name: str) -> str:
    return f"{what}; the environment variable {_variable(name)} raises this limit"


class VectorFile(NamedTuple):
    """A file with every line checked."""

    path: str
    header: dict[str, Any]
    ops: list[Op]
    limits: Limits = Limits()

    @property
    def scope(self) -> str:
        return str(self.header["scope"])


# ---- checking operations in order ---------------------------------------------------------------


class _Checker:
    """Checks operations one after the other, and follows the slots of the recording kernel."""

    def __init__(self, header: Mapping[str, Any], limits: Limits) -> None:
        self._limits = limits
        self._machine = machine_of(header)
        self._recorded = Regions()

    def wrong(self, op: Any) -> str | None:
        """Return the first error in the next operation, in words, or None."""
        if wrong := wrong_op(op):
            return wrong
        wrong = self._wrong_here(op)
        return wrong and f"{op['op']}: {wrong}"

    def _wrong_here(self, op: dict[str, Any]) -> str | None:
        if op["op"] in CHANGES:
            return self._wrong_change(op)
        if op["op"] == "clear_dirty":
            return self._wrong_bits(op)
        log = op.get("out") or op.get("observed")
        return self._wrong_log(op, log) if op["op"] == "get_dirty" and log else None

    def _wrong_change(self, op: dict[str, Any]) -> str | None:
        slot, new = op["slot"], region_of(op)
        wrong = too_many_logged(self._recorded.logged_after(slot, new, self._machine), self._limits)
        if not wrong and op["ret"] == 0:
            self._recorded.change(slot, new)
        return wrong

    def _wrong_bits(self, op: dict[str, Any]) -> str | None:
        """Limit `bits`: the player makes a bitmap of them even if the slot has fewer pages."""
        end, most = sum(op["bits"][-1]) if op.get("bits") else 0, self._limits.logged_pages
        wrong = f"bits reach page {end}, which is more than {most}"
        return _beyond(wrong, "logged_pages") if end > most else None

    def _wrong_log(self, op: dict[str, Any], log: dict[str, Any]) -> str | None:
        """Check the size and the pages of a log against the recorded slot.

        Without such a slot there is nothing to compare with; then the replay finds the mismatch.
        """
        name, slot = "out" if "out" in op else "observed", self._recorded.slots.get(op["slot"])
        pages = slot.pages if slot else min(8 * log["bytes"], self._limits.logged_pages)
        if slot and log["bytes"] != 8 * nr_words(pages):
            have = f"slot {op['slot']} has {pages} pages, {8 * nr_words(pages)} bytes"
            return f"{name}.bytes is {log['bytes']}, but {have}"
        end = sum(log["dirty"][-1]) if log["dirty"] else 0
        return f"{name}.dirty reaches page {end} of {pages}" if end > pages else None


def too_many_logged(pages: int, limits: Limits) -> str | None:
    """Return the error of a change that would put `pages` under dirty logging, or None within the limit."""
    if pages <= limits.logged_pages:
        return None
    wrong = f"{pages} pages under dirty logging, more than {limits.logged_pages}"
    return _beyond(wrong, "logged_pages")


# ---- reading ------------------------------------------------------------------------------------


def read(path: str | Path, limits: Limits | None = None) -> VectorFile:
    """Read and check a whole file.  Raises VectorError, or OSError if the file cannot be opened.

    Without `limits` those of the environment apply.
    """
    path = str(path)
    limits = limits or _limits(path)
    rows = _rows(path, limits)
    header = _checked_header(path, rows)
    return VectorFile(path, header, list(_checked_ops(path, header, rows, limits)), limits)


def read_header(path: str | Path, limits: Limits | None = None) -> dict[str, Any]:
    """Read and check only the header."""
    path = str(path)
    return _checked_header(path, _rows(path, limits or _limits(path)))


def _limits(path: str) -> Limits:
    try:
        return Limits.from_environment()
    except ValueError as e:
        raise VectorError(path, 1, str(e)) from None


def _checked_header(path: str, rows: Iterator[tuple[int, Any]]) -> dict[str, Any]:
    header: Any
    _, header = next(rows, (1, None))
    if wrong := wrong_header(header):
        raise VectorError(path, 1, wrong)
    return dict(header)


def _checked_ops(
    path: str, header: dict[str, Any], rows: Iterator[tuple[int, Any]], limits: Limits
) -> Iterator[Op]:
    """Yield the operations.  Their number must be the one in the header."""
    checker, announced, line = _Checker(header, limits), header["ops"], 1
    for line, op in rows:
        if line > announced + 1:
            raise VectorError(path, line, f"the header announces {announced} ops, here is one more")
        if wrong := checker.wrong(op):
            raise VectorError(path, line, wrong)
        yield Op(line, op["op"], op)
    if line <= announced:
        raise VectorError(path, line, f"the header announces {announced} ops, here are {line - 1}")


def _rows(path: str, limits: Limits) -> Iterator[tuple[int, Any]]:
    """Yield the number and the object of each line."""
    line = 0
    try:
        with open(path, "rb", opener=_open_nonblocking) as raw:
            if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
                raise VectorError(path, 1, "not a regular file")
            for line, text in enumerate(_lines(path, _text_of(path, raw), limits), 1):
                yield line, _parse(path, line, text)
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise VectorError(path, line + 1, f"damaged gzip file: {e}") from None


def _open_nonblocking(path: str, flags: int) -> int:
    """Open without blocking.  A plain open would block on a pipe without a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _text_of(path: str, raw: IO[bytes]) -> _Text:
    """Return a stream of the text, which unpacks gzip in pieces."""
    return gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw


def _lines(path: str, text: _Text, limits: Limits) -> Iterator[bytes]:
    """Yield the lines.  At most one line, within the limits, is in memory at a time."""
    total = 0
    for n, line in enumerate(iter(lambda: text.readline(limits.line_bytes + 1), b""), 1):
        total += len(line)
        if len(line) > limits.line_bytes:
            reason = f"more than {limits.line_bytes} bytes in one line"
            raise VectorError(path, n, _beyond(reason, "line_bytes"))
        if total > limits.file_bytes:
            reason = f"more than {limits.file_bytes} bytes in one file, unpacked"
            raise VectorError(path, n, _beyond(reason, "file_bytes"))
        yield line


def _parse(path: str, line: int, text: bytes) -> Any:
    if not text.isascii():
        mark = text.startswith(b"\xef\xbb\xbf")
        raise VectorError(path, line, "a byte order mark, not ASCII" if mark else "not ASCII")
    if b"\r" in text:
        raise VectorError(path, line, "a carriage return: a line ends with a line feed alone")
    try:
        return _DECODER.decode(text.decode("ascii"))
    except (ValueError, RecursionError) as e:
        raise VectorError(path, line, f"not JSON: {e}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = {NAMES.get(name, name): value for name, value in pairs}
    if len(held) != len(pairs):
        raise ValueError("an object has two values for one name")
    return held


def _float(text: str) -> float:
    if isinf(number := float(text)):
        raise ValueError("a number is too large")
    return number


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_constant=_no_constant
)


# ---- writing ------------------------------------------------------------------------------------


def write(
    path: str | Path,
    header: dict[str, Any],
    ops: Iterable[Op | dict[str, Any]],
    limits: Limits | None = None,
) -> None:
    """Write a file that `read` accepts.  This function sets `format` and `ops` of the header."""
    path = str(path)
    limits = limits or _limits(path)
    rows = [op.fields if isinstance(op, Op) else op for op in ops]
    header = {**header, "format": FORMAT, "ops": len(rows)}
    if wrong := wrong_header(header):
        raise VectorError(path, 1, wrong)
    checker = _Checker(header, limits)
    for line, op in enumerate(rows, 2):
        if wrong := checker.wrong(op):
            raise VectorError(path, line, wrong)
    text = b"".join(map(_line, [header, *rows]))
    for _ in _lines(path, io.BytesIO(text), limits):
        pass
    with open(path, "wb") as f:
        f.write(_gzipped(text) if path.endswith(".gz") else text)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"


def _gzipped(text: bytes) -> bytes:
    """Compress without name and time, so that the same rows always give the same file."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as f:
        f.write(text)
    return buffer.getvalue()


# ---- finding files ------------------------------------------------------------------------------


def is_vector_path(path: Path) -> bool:
    """Whether the path has the name of a vector file."""
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def packaged_traces() -> list[Path]:
    """Return the paths of the QEMU traces that come with the package, sorted."""
    folder = resources.files(__package__).joinpath("data", "qemu")
    return sorted(p for p in (Path(str(f)) for f in folder.iterdir()) if is_vector_path(p))


def stem(path: str | Path) -> str:
    """Return the name of a vector file without its endings."""
    return Path(path).name.removesuffix(".gz").removesuffix(".jsonl")


def packaged(name: str) -> str | None:
    """Return the path of the packaged trace of that name, such as pc-migrate-boot, or None."""
    return {stem(path): str(path) for path in packaged_traces()}.get(name)
