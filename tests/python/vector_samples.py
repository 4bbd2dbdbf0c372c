# SPDX-License-Identifier: MIT
"""Valid lines of vector files: every kind of operation; together they have every field of each kind."""

import json
from pathlib import Path
from typing import Any

from memslots.traces import schema

Row = dict[str, Any]

HEADER: Row = {"format": schema.FORMAT, "kind": "edge", "scope": "memslots", "ops": 1}
FULL_HEADER: Row = {
    **HEADER,
    "name": "n",
    "about": "a",
    "generator": "g",
    "profile": "p",
    "seed": 1,
    "ops_asked": 1,
    "slots": 1,
    "qemu": "QEMU emulator version 7.2",
    "cmdline": "qemu-system-x86_64",
    "captured": "2026-01-01T00:00:00Z",
    "monitor": [[0.5, "info migrate", "Migration status:\r\ncompleted"]],
    "strace": {"set_calls": 1, "same_calls": True, "same_order": True},
    "oracle": {
        "kernel": "6.18",
        "arch": "x86_64",
        "cpu": "c",
        "kvm_modules": ["kvm"],
        "caps": {"nr_memslots": 32764, "multi_address_space": 0},
        "limits": {"gpa_bits": 52, "hva_end_max": "0x7ffffffff000"},
    },
}

SET: Row = {
    "op": "set",
    "slot": 1,
    "flags": 1,
    "gpa": "0x0",
    "size": "0x40000",
    "hva": "arena+0x0",
    "ret": 0,
    "note": "64 pages",
}
SET2: Row = {**SET, "op": "set2", "gmem": -1, "gmem_off": "0x0"}
SET_FAULT: Row = {"op": "set_fault", "v2": True, "ret": "EFAULT"}
LOG: Row = {"op": "get_dirty", "slot": 1, "ret": 0, "out": {"bytes": 8, "dirty": [[0, 2], [5, 1]]}}
SEEN: Row = {
    "op": "get_dirty",
    "slot": 1,
    "ret": 0,
    "observed": {"bytes": 8, "dirty": []},
    "t_us": 7,
}
LOST: Row = {"op": "get_dirty", "slot": 1, "buf": "fault", "ret": "EFAULT"}
CLEAR: Row = {
    "op": "clear_dirty",
    "slot": 1,
    "first": "0x40",
    "num": 64,
    "bits": [[0, 64]],
    "ret": "EINVAL",
}
CLEAR_NULL: Row = {
    "op": "clear_dirty",
    "slot": 1,
    "first": 0,
    "num": 64,
    "buf": "fault",
    "ret": "EFAULT",
}
ENABLE: Row = {"op": "enable_cap", "cap": "manual_dirty_log_protect2", "arg": 3, "ret": 0}
CHECK: Row = {"op": "check_cap", "cap": "nr_memslots", "ret": 32764}
READ: Row = {"op": "read", "gpa": "0x8", "via": "emul", "ret": 0, "out": {"hva": None}}
WRITE: Row = {
    "op": "write",
    "gpa": 8,
    "via": "native",
    "ret": 0,
    "out": {"hva": "arena+0x8", "wrote": True},
}
HOST: Row = {"op": "host_write", "gpa": "0xff0", "ret": 0, "out": {"hva": None, "wrote": False}}
LOAD: Row = {
    "op": "access",
    "gpa": "0xfff",
    "len": 2,
    "write": False,
    "via": "emul",
    "pte_dirty": False,
    "ret": 0,
    "out": {"mmio": [["0x1000", 1, "r"]], "value": "0xeee0"},
}
STORE: Row = {
    "op": "access",
    "gpa": "0xffc",
    "len": 8,
    "write": True,
    "value": "0x1122334455667788",
    "ret": 0,
    "out": {"mmio": [["0xffc", 4, "w"], ["0x1000", 4, "w"]]},
}
GMEM: Row = {"op": "create_gmem", "size": "0x1000", "flags": 0, "ret": 0}
VCPU: Row = {"op": "create_vcpu", "ret": 0}
IRQCHIP: Row = {"op": "create_irqchip", "ret": 0}
TSS: Row = {"op": "set_tss_addr", "gpa": "0xfffbd000", "ret": 0}
IDENTITY: Row = {"op": "set_identity_map_addr", "gpa": "0xfffbc000", "ret": 0}

GOOD = [
    *(SET, SET2, SET_FAULT, LOG, SEEN, LOST, CLEAR, CLEAR_NULL, ENABLE, CHECK),
    *(READ, WRITE, HOST, LOAD, STORE, GMEM, VCPU, IRQCHIP, TSS, IDENTITY),
]


def lines_of(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def file_with(folder: Path, *ops: object, **header: object) -> Path:
    path = folder / "v.jsonl"
    path.write_bytes(lines_of({**HEADER, "ops": len(ops), **header}, *ops))
    return path


def without(row: Row, field: str) -> Row:
    return {k: v for k, v in row.items() if k != field}
