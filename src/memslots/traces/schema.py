# SPDX-License-Identifier: MIT
"""The schema of a vector file: every field of the header and of each kind of operation, with its type and range.

`OPS` is the only table of operations.  An operation without an entry cannot be read or written.  `_op` adds the checks
that all operations share.  A check returns None for a valid value, otherwise a description of the valid values.
"""

import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from types import MappingProxyType
from typing import Any

from ..constants import HVA_ERR_MIN, PAGE_SIZE

FORMAT = "memslots-vectors/1"
SCOPE = "memslots"  # the scope of files that every engine must reproduce
SCOPES = (SCOPE, "guest-memfd", "dirty-ring", "mmu", "platform")

CHANGES = ("set", "set2")  # operations that change a slot

U64 = 1 << 64
MAX_USER_MEM_SLOTS = 32767  # an id is a short in the kernel

MAX_TEXT = 4096  # characters
MAX_DEPTH = 16  # of lists and objects under a key that the format does not define

_HEX = re.compile(r"0x[0-9a-fA-F]{1,16}")
_ARENA = re.compile(r"arena(?:([+-])(0x[0-9a-fA-F]{1,16}))?")

Check = Callable[[Any], "str | None"]
Rule = Callable[[dict[str, Any]], "str | None"]  # returns None or the error


# ---- numbers and addresses ----------------------------------------------------------------------


def parse_number(value: int | str) -> int:
    """Return the value of a JSON integer or a hex string."""
    return int(value, 16) if isinstance(value, str) else value


def parse_address(text: str, arena_base: int) -> int:
    """Return the address of `arena+0x..`, `arena-0x..` or an absolute `0x..`, modulo 2^64."""
    match = _ARENA.fullmatch(text)
    if not match:
        return int(text, 16)
    sign, offset = match.groups(default="0x0")
    return (arena_base + (-1 if sign == "-" else 1) * int(offset, 16)) % U64


def format_address(hva: int, arena_base: int) -> str:
    """Format an address: relative to the arena from its base on, absolute below it."""
    return f"arena+{hva - arena_base:#x}" if hva >= arena_base else f"{hva:#x}"


def unpack_slot(slot: int) -> tuple[int, int]:
    """Split the ioctl's slot into (id, as_id)."""
    return slot & 0xFFFF, slot >> 16


def errno_of(name: str) -> int | None:
    """Return the number of an errno, or None for any other text.

    Some numbers have two names, such as EDEADLK and EDEADLOCK.
    """
    number = getattr(errno, name, None) if name.startswith("E") else None
    return number if type(number) is int else None


def parts_of_access(gpa: int, length: int) -> list[tuple[int, int]]:
    """Split [gpa, gpa + length) by pages into parts (gpa, bytes).  `length` is at most a page."""
    head = min(length, PAGE_SIZE - gpa % PAGE_SIZE)
    return [(gpa, head), (gpa + head, length - head)] if head < length else [(gpa, head)]


# ---- checks of one value ------------------------------------------------------------------------


def _between(low: int, high: int) -> Check:
    """A JSON integer, but not true or 1.0."""

    def check(value: Any) -> str | None:
        right = type(value) is int and low <= value <= high
        return None if right else f"an integer from {low} to {high}"

    return check


def _number_between(low: int, high: int) -> Check:
    """A JSON integer or its hex string."""

    def check(value: Any) -> str | None:
        if isinstance(value, str) and _HEX.fullmatch(value):
            value = int(value, 16)
        right = type(value) is int and low <= value <= high
        return None if right else f'an integer from {low} to {high:#x}, or its "0x..." string'

    return check


_count = _between(0, U64 - 1)
_u32 = _between(0, (1 << 32) - 1)
_u64 = _number_between(0, U64 - 1)


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and bool(_ARENA.fullmatch(value) or _HEX.fullmatch(value))


def _address(value: Any) -> str | None:
    return None if _is_address(value) else 'an address, "arena+0x..." or "0x..."'


def _address_or_null(value: Any) -> str | None:
    return None if value is None or _is_address(value) else "an address or null"


def _bool(value: Any) -> str | None:
    return None if type(value) is bool else "true or false"


def _text(value: Any) -> str | None:
    """A text that a terminal or a picture can show, without lone surrogates and control characters."""
    right = isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()
    return None if right else f"a printable string of at most {MAX_TEXT} characters"


def _one_of(*values: Any) -> Check:
    def check(value: Any) -> str | None:
        known = any(type(value) is type(v) and value == v for v in values)
        return None if known else " or ".join(json.dumps(v) for v in values)

    return check


def _list_of(check: Check) -> Check:
    def check_all(value: Any) -> str | None:
        if not isinstance(value, list):
            return "a list"
        wrong = next(filter(None, map(check, value)), None)
        return wrong and f"a list, each {wrong}"

    return check_all


def _runs(gap: int, what: str) -> Check:
    """Runs of pages in ascending order, with at least `gap` pages between two runs."""

    def check(value: Any) -> str | None:
        return None if isinstance(value, list) and _are_runs(value, gap) else what

    return check


def _are_runs(runs: list[Any], gap: int) -> bool:
    least = 0
    for run in runs:
        if type(run) is not list or len(run) != 2:
            return False
        first, count = run
        if type(first) is not int or type(count) is not int or first < least or count < 1:
            return False
        least = first + count + gap
    return least <= (1 << 32) + gap


_any_runs = _runs(0, "runs, [[first page, count], ...], ascending")
_maximal_runs = _runs(1, "maximal runs, [[first page, count], ...], ascending")


def _ret(value: Any) -> str | None:
    right = (type(value) is int and value == 0) or _is_errno(value)
    return None if right else "0 or the name of an errno"


def _ret_value(value: Any) -> str | None:
    right = (type(value) is int and 0 <= value < 1 << 31) or _is_errno(value)
    return None if right else "a value of 31 bits or the name of an errno"


def _is_errno(value: Any) -> bool:
    return isinstance(value, str) and errno_of(value) is not None


def _gmem(value: Any) -> str | None:
    right = value == "kvmfd" or (type(value) is int and -1 <= value < 1 << 31)
    return None if right else 'the index of a create_gmem, -1 or "kvmfd"'


def _exits(value: Any) -> str | None:
    right = isinstance(value, list) and all(map(_is_exit, value))
    return None if right else '[[gpa, bytes, "r" or "w"], ...]'


def _is_exit(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    gpa, nbytes, kind = value
    return not _u64(gpa) and type(nbytes) is int and 1 <= nbytes <= 8 and kind in ("r", "w")


def _monitor(value: Any) -> str | None:
    """One command of QEMU's monitor: seconds, the command, answers.  Texts may have several lines."""
    right = isinstance(value, list) and len(value) > 1 and not anything(value)
    right = right and type(value[0]) in (int, float) and all(isinstance(v, str) for v in value[1:])
    return None if right else "[seconds, command, answers ...]"


def anything(value: Any, depth: int = MAX_DEPTH) -> str | None:
    """A value of a key that the format does not define: any JSON that can be written again."""
    if depth < 0:
        return f"JSON of at most {MAX_DEPTH} levels"
    if isinstance(value, str):
        return None if _is_unicode(value) else "a string without lone surrogates"
    if isinstance(value, list):
        return next(filter(None, (anything(v, depth - 1) for v in value)), None)
    if isinstance(value, dict):
        inner = (anything(v, depth - 1) for pair in value.items() for v in pair)
        return next(filter(None, inner), None)
    if value is None or type(value) is bool:
        return None
    right = (type(value) is int and value.bit_length() <= 1024) or (
        type(value) is float and isfinite(value)
    )
    return None if right else "JSON with finite numbers of at most 1024 bits"


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# ---- checks of an object ------------------------------------------------------------------------

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Shape:
    """The fields of an object.  Each has a check, or a shape of its own.

    `foreign` are names that the format uses only in other objects: each is an error here.  Any other unknown name is
    allowed, and `others` checks its value.  `rules` run last, after every field has passed its own check.
    """

    required: "Mapping[str, Check | Shape]" = field(default_factory=dict)
    optional: "Mapping[str, Check | Shape]" = field(default_factory=dict)
    others: Check = anything
    foreign: frozenset[str] = frozenset()
    rules: tuple[Rule, ...] = ()
    fields: "dict[str, Check | Shape]" = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", {**self.required, **self.optional})


def wrong_object(value: Any, shape: Shape, path: str = "") -> str | None:
    """Return the first error in an object, in words, or None.  `path` is the name of the object."""
    if not isinstance(value, dict):
        return f"{path} is {short(value)}, not an object" if path else "not an object"
    prefix = path and path + "."
    for name in shape.required:
        if name not in value:
            return f"no {prefix}{name}"
    for name, held in value.items():
        check = shape.fields.get(name) or _unknown(name, shape)
        if type(check) is Shape:
            if wrong := wrong_object(held, check, prefix + name):
                return wrong
        elif wanted := check(held):  # type: ignore[operator]
            return f"{prefix}{_clipped(name)} is {short(held)}, not {wanted}"
    return next(filter(None, (rule(value) for rule in shape.rules)), None)


def _unknown(name: Any, shape: Shape) -> Check:
    """Return the check for a value whose name is not in the shape."""
    if not isinstance(name, str) or not _is_unicode(name):
        return lambda value: "the value of a name without lone surrogates"
    if name in shape.foreign:
        return lambda value: "allowed here"
    return shape.others


def short(value: Any) -> str:
    """Format a value for a message: one short line for any content of a file."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    if type(value) is int and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    plain = value is None or isinstance(value, (str, int, float))
    return _clipped(json.dumps(value) if plain else repr(value))


def _clipped(text: str) -> str:
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- operations ---------------------------------------------------------------------------------

Fields = Mapping[str, "Check | Shape"]


def _op(
    required: Fields = _NOTHING,
    optional: Fields = _NOTHING,
    *,
    ret: Check = _ret,
    out: Shape | None = None,
    observed: bool = False,
    rules: tuple[Rule, ...] = (),
) -> Shape:
    """Return the shape of one kind of operation, with the common fields.  `observed` may replace `out`."""
    outs = {"out": out, "observed": out} if observed else {"out": out}
    return Shape(
        {"op": _text, **required, "ret": ret},
        {"note": _text, "t_us": _count, **optional, **(outs if out else {})},  # type: ignore[dict-item]
        rules=((_out_of_a_success, *rules) if out else rules),
    )


def _out_of_a_success(op: dict[str, Any]) -> str | None:
    """Require `out` (or `observed`) exactly for an operation that succeeded."""
    given = [name for name in ("out", "observed") if name in op]
    if op["ret"] == 0 and len(given) != 1:
        return "no out" if not given else "out and observed exclude each other"
    return f"{given[0]} of an operation that failed" if op["ret"] != 0 and given else None


def _bits_within_num(op: dict[str, Any]) -> str | None:
    end = sum(op["bits"][-1]) if op.get("bits") else 0
    return f"bits reach page {end}, beyond num {op['num']}" if end > op["num"] else None


def _multiple_of_8(op: dict[str, Any]) -> str | None:
    return f"gpa is {op['gpa']}, not a multiple of 8" if parse_number(op["gpa"]) % 8 else None


def _not_zero(op: dict[str, Any]) -> str | None:
    return None if parse_number(op["gpa"]) else "gpa is 0"


def _within_page(op: dict[str, Any]) -> str | None:
    near = parse_number(op["gpa"]) % PAGE_SIZE > PAGE_SIZE - 12
    return f"gpa is {op['gpa']}, less than 12 bytes before the end of its page" if near else None


def _wrote_somewhere(op: dict[str, Any]) -> str | None:
    out = op.get("out")
    return "out.wrote is true, out.hva null" if out and out["wrote"] and not out["hva"] else None


def _below_2_64(op: dict[str, Any]) -> str | None:
    wraps = parse_number(op["gpa"]) + op["len"] > U64
    return f"gpa is {op['gpa']}: {op['len']} bytes from there pass 2^64" if wraps else None


def _value_of_a_store(op: dict[str, Any]) -> str | None:
    return "value has no meaning for a load" if "value" in op and not op["write"] else None


def _value_of_a_load(op: dict[str, Any]) -> str | None:
    out = op.get("out")
    if out is None or ("value" in out) == op["write"]:
        return out and ("out.value of a store" if op["write"] else "no out.value")
    if not op["write"] and parse_number(out["value"]) >> 8 * op["len"]:
        return f"out.value is {out['value']}, more than {op['len']} bytes"
    return None


def _exits_of_this_access(op: dict[str, Any]) -> str | None:
    """Require exits to be parts of the access, in order, each at most once, all loads or all stores."""
    exits = op.get("out", {}).get("mmio", [])
    kind = "w" if op["write"] else "r"
    parts = iter(parts_of_access(parse_number(op["gpa"]), op["len"]))
    right = all(_next_is(parts, (parse_number(gpa), n)) and k == kind for gpa, n, k in exits)
    return None if right else f'out.mmio holds another exit than "{kind}" of a part of this access'


def _next_is(parts: Iterator[tuple[int, int]], wanted: tuple[int, int]) -> bool:
    return any(part == wanted for part in parts)


_REGION: Fields = {"slot": _u32, "flags": _u32, "gpa": _u64, "size": _u64, "hva": _address}
_FAULT: Fields = {"buf": _one_of("fault")}
_VIA: Fields = {"via": _one_of("native", "emul")}
_GPA: Fields = {"gpa": _u64}


def _strict(*shapes: Shape) -> list[Shape]:
    """Return the shapes so that each refuses the names that only the other shapes have."""
    known = frozenset[str]().union(*(s.fields for s in shapes))
    return [replace(s, foreign=known - frozenset(s.fields)) for s in shapes]


_LOG, _LOADED, _STORED, _ACCESSED = _strict(
    Shape({"bytes": _count, "dirty": _maximal_runs}),
    Shape({"hva": _address_or_null}),
    Shape({"hva": _address_or_null, "wrote": _bool}),
    Shape({"mmio": _exits}, {"value": _u64}),
)

_SHAPES: dict[str, Shape] = {
    "set": _op(_REGION),
    "set2": _op(_REGION, {"gmem": _gmem, "gmem_off": _u64}),
    "set_fault": _op(optional={"v2": _bool}),
    "create_gmem": _op({"size": _u64}, {"flags": _u64}),
    "get_dirty": _op({"slot": _u32}, _FAULT, out=_LOG, observed=True),
    "clear_dirty": _op(
        {"slot": _u32, "first": _u64, "num": _u32},
        {"bits": _any_runs, **_FAULT},
        rules=(_bits_within_num,),
    ),
    "enable_cap": _op({"cap": _text, "arg": _u64}),
    "check_cap": _op({"cap": _text}, ret=_ret_value),
    "read": _op(_GPA, _VIA, out=_LOADED, rules=(_multiple_of_8,)),
    "write": _op(_GPA, _VIA, out=_STORED, rules=(_multiple_of_8, _wrote_somewhere)),
    "host_write": _op(
        _GPA, out=_STORED, rules=(_multiple_of_8, _not_zero, _within_page, _wrote_somewhere)
    ),
    "access": _op(
        {**_GPA, "len": _one_of(1, 2, 4, 8), "write": _bool},
        {"value": _u64, **_VIA, "pte_dirty": _bool},
        out=_ACCESSED,
        rules=(_below_2_64, _value_of_a_store, _value_of_a_load, _exits_of_this_access),
    ),
    "create_vcpu": _op(),
    "create_irqchip": _op(),
    "set_tss_addr": _op(_GPA),
    "set_identity_map_addr": _op(_GPA),
}


OPS: Mapping[str, Shape] = MappingProxyType(
    dict(zip(_SHAPES, _strict(*_SHAPES.values()), strict=True))
)


def wrong_op(op: Any) -> str | None:
    """Return the first error in one operation, in words, or None."""
    if not isinstance(op, dict):
        return "not an object"
    if "op" not in op:
        return "no op"
    kind = op["op"]
    shape = OPS.get(kind) if isinstance(kind, str) else None
    if shape is None:
        return f"unknown op {short(kind)}"
    wrong = wrong_object(op, shape)
    return wrong and f"{kind}: {wrong}"


# ---- the header ---------------------------------------------------------------------------------

_MACHINE = Shape(
    optional={"gpa_bits": _between(13, 64), "hva_end_max": _number_between(4096, HVA_ERR_MIN - 1)}
)
_CAPS = Shape(
    optional={"nr_memslots": _between(1, MAX_USER_MEM_SLOTS)}, others=_between(0, (1 << 31) - 1)
)
_ORACLE = Shape(
    optional={
        **dict.fromkeys(("kernel", "arch", "cpu"), _text),
        "kvm_modules": _list_of(_text),
        "caps": _CAPS,
        "limits": _MACHINE,
    }
)
_STRACE = Shape(optional={"set_calls": _count, "same_calls": _bool, "same_order": _bool})

HEADER = Shape(
    {"format": _one_of(FORMAT), "scope": _one_of(*SCOPES), "ops": _count},
    {
        **dict.fromkeys(("kind", "name", "about", "generator", "profile"), _text),
        **dict.fromkeys(("seed", "ops_asked", "slots"), _count),
        **dict.fromkeys(("qemu", "cmdline", "captured"), _text),
        "monitor": _list_of(_monitor),
        "strace": _STRACE,
        "oracle": _ORACLE,
    },
)

# One shared string for each name.  Otherwise each line of a file would hold its own copies.
NAMES: Mapping[str, str] = MappingProxyType(
    {
        name: name
        for shape in (*_SHAPES.values(), _LOG, _LOADED, _STORED, _ACCESSED)
        for name in shape.fields
    }
)


def wrong_header(header: Any) -> str | None:
    """Return the first error in the header, in words, or None."""
    if not isinstance(header, dict) or "format" not in header:
        return "the first line is not a header: no format"
    if header["format"] != FORMAT:
        return f"the format is {short(header['format'])}, not {FORMAT}"
    return wrong_object(header, HEADER)
