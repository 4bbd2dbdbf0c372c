# SPDX-License-Identifier: MIT
"""Reads the log of QEMU's trace event kvm_set_user_memory.  Its three variants:

    Slot#0 flags=... gpa=... size=... ua=... ret=0                              as_id in bits 16 to 31 of Slot#
    AddrSpace#0 Slot#0 flags=... gpa=... size=... ua=... ret=0                  as_id has a field
    AddrSpace#0 Slot#0 ... ua=... guest_memfd=-1 guest_memfd_offset=0x0 ret=0   since QEMU 9

Before QEMU switches READONLY of a slot, it deletes the slot with an ioctl that has no trace event.  The reader adds
this delete, because KVM refuses the switch without it.
"""

import errno
import re
from typing import Any

from ..constants import MemFlag
from .changes import LONGEST_CALL, Change, FieldError, Lines, Log, number_of, region_op
from .schema import parse_number

NAME = "QEMU trace"
EVENT = "kvm_set_user_memory"
SIGNATURE = re.compile(rf"(?:^|[\s:]){EVENT} (?:AddrSpace#|Slot#)")

_EVENT = re.compile(
    rf"(?:.*[\s:])?{EVENT} (?:AddrSpace#(?P<as_id>\d+) )?Slot#(?P<slot>\d+) flags=(?P<flags>\w+) gpa=(?P<gpa>\w+) "
    r"size=(?P<size>\w+) ua=(?P<ua>\w+) (?:guest_memfd=(?P<gmem>-?\d+)\s+guest_memfd_offset=(?P<gmem_off>\w+) )?"
    r"ret=(?P<ret>-?\d+)\s*"
)
_OTHER_EVENT = re.compile(
    r"(?:\d+@\d+\.\d+:|\d{4}-\d\d-\d\dT[\d:.]+Z? )?[a-z][a-z0-9]*_[a-z0-9_]+ .*"
)
_FIELDS = {"slot": "slot", "flags": "flags", "gpa": "gpa", "size": "size", "hva": "ua"}
_READONLY = int(MemFlag.READONLY)
_GUEST_MEMFD = int(MemFlag.GUEST_MEMFD)


def read(lines: Lines) -> Log:
    log = Log(NAME)
    readonly: dict[int, dict[str, Any]] = {}  # the last accepted change of each slot that exists
    added = 0
    for number, text in lines:
        if not text.strip():
            continue
        found = _EVENT.fullmatch(text) if len(text) <= LONGEST_CALL else None
        if not found:
            _other(log, number, text)
            continue
        try:
            op = _operation(found)
        except FieldError as e:
            log.miss(number, str(e), text)
            continue
        if delete := _hidden_delete(readonly, op):
            log.changes.append(Change(number, None, delete))
            added += 1
        log.changes.append(Change(number, None, op))
        _follow(readonly, op)
    if added:
        log.notes.append(
            f"{added} deletes added: QEMU deletes a slot before it switches READONLY, without a trace event"
        )
    return log


def _other(log: Log, number: int, text: str) -> None:
    if EVENT in text:
        log.miss(number, "the line is cut or damaged", text)
    elif _OTHER_EVENT.fullmatch(text):
        log.leave_out("other trace events")
    else:
        log.miss(number, "no trace event", text)


def _operation(found: re.Match[str]) -> dict[str, Any]:
    fields = {name: value for name, value in found.groupdict().items() if value is not None}
    op = region_op(fields, _FIELDS)
    if "as_id" in fields:
        if op["slot"] >> 16:
            raise FieldError(f"slot is {op['slot']}, more than 16 bits")
        op["slot"] |= number_of(fields, "as_id", 16) << 16
    if op["flags"] & _GUEST_MEMFD:
        raise FieldError(f"guest_memfd {fields.get('gmem')}: the trace does not have its creation")
    return op | {"ret": _result(fields["ret"])}


def _result(text: str) -> str | int:
    """QEMU prints 0 or the negative errno."""
    if len(text) > 8:
        raise FieldError(f"ret is {text[:40]}")
    number = -int(text)
    if number and number not in errno.errorcode:
        raise FieldError(f"ret is {text}")
    return errno.errorcode[number] if number else 0


def _hidden_delete(slots: dict[int, dict[str, Any]], op: dict[str, Any]) -> dict[str, Any] | None:
    old = slots.get(op["slot"])
    if old is None or not parse_number(op["size"]) or not (old["flags"] ^ op["flags"]) & _READONLY:
        return None
    note = "QEMU makes this delete without a trace event"
    return {**op, "size": "0x0", "ret": 0, "note": note}


def _follow(slots: dict[int, dict[str, Any]], op: dict[str, Any]) -> None:
    if op["ret"] != 0:
        return
    if parse_number(op["size"]):
        slots[op["slot"]] = op
    else:
        slots.pop(op["slot"], None)
