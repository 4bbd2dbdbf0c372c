# SPDX-License-Identifier: MIT
"""Whole QEMU traces as calls of a VM.  Linux accepted every call of these traces, so no call may raise.

The files are those of this checkout, and this file decodes them.  Two versions of memslots therefore get the same
calls.
"""

import gzip
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import CHECKOUT
from pytest_benchmark.fixture import BenchmarkFixture

from memslots import PAGE_SIZE, VM

FOLDER = CHECKOUT / "src" / "memslots" / "traces" / "data" / "qemu"
TRACES = (
    "pc-stdvga-boot",
    "pc-migrate-boot",
    "pc-pam-smram",
    "pc-dimm-migrate",
    "q35-dimm-hotplug-63",
)
ARENA = 1 << 44  # host addresses in a trace are relative to this address
IGNORED = (
    "set_identity_map_addr",
    "set_tss_addr",
    "create_irqchip",
    "create_vcpu",
)  # no slot calls

Op = dict[str, Any]
Call = Callable[[VM], np.ndarray | None]
Row = tuple[int, int, int, int, int]  # id, base_gfn, npages, userspace_addr, flags


class Log(NamedTuple):
    """A dirty log that QEMU got."""

    nbytes: int
    pages: np.ndarray  # the guest wrote to these pages

    def is_in(self, words: np.ndarray) -> bool:
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        return words.nbytes == self.nbytes and bool(bits[self.pages].all())


class Trace(NamedTuple):
    limits: dict[str, int]  # arguments of VM
    calls: list[Call]
    logs: list[Log]  # one for each call that returns a log
    slots: list[Row]  # at the end, by base_gfn


@cache
def trace(name: str) -> Trace:
    header, *ops = map(json.loads, gzip.decompress(path(name).read_bytes()).splitlines())
    assert len(ops) == header["ops"]
    assert all(op["ret"] == 0 for op in ops)
    calls: list[Call] = []
    logs: list[Log] = []
    slots: dict[int, Row] = {}  # after the last decoded call
    for op in ops:
        if op["op"] in IGNORED:
            continue
        if op["op"] == "get_dirty":
            logs.append(log_of(op))
        calls.append(CALLS[op["op"]](op, slots))
    return Trace(limits_of(header), calls, logs, sorted(slots.values(), key=lambda row: row[1]))


def path(name: str) -> Path:
    return FOLDER / f"{name}.jsonl.gz"


def limits_of(header: Op) -> dict[str, int]:
    caps, limits = header["oracle"]["caps"], header["oracle"].get("limits", {})
    found = {name: number(limits[name]) for name in ("gpa_bits", "hva_end_max") if name in limits}
    return {"user_mem_slots": caps["nr_memslots"], **found}


# ---- operations ---------------------------------------------------------------------------------


def set_region(op: Op, slots: dict[int, Row]) -> Call:
    slot, flags = op["slot"], op["flags"]
    assert slot >> 16 == 0, "these traces have one address space"
    gpa, size, hva = number(op["gpa"]), number(op["size"]), address(op["hva"])
    slots.pop(slot, None)
    if size:
        slots[slot] = (slot, gpa // PAGE_SIZE, size // PAGE_SIZE, hva, flags)
    return lambda vm: vm.set_user_memory_region(
        slot, guest_phys_addr=gpa, memory_size=size, userspace_addr=hva, flags=flags
    )


def get_dirty(op: Op, slots: dict[int, Row]) -> Call:
    """Mark the pages of the guest's stores, then get the log."""
    slot, base = op["slot"], slots[op["slot"]][1]
    gfns = log_of(op).pages.astype(np.uint64) + np.uint64(base)

    def call(vm: VM) -> np.ndarray:
        vm.mark_page_dirty_many(gfns)
        return vm.get_dirty_log(slot)

    return call


def clear_dirty(op: Op, slots: dict[int, Row]) -> Call:
    slot, first, num = op["slot"], number(op["first"]), op["num"]
    bits = np.zeros(-(-num // 64) * 64, dtype=np.uint8)
    bits[pages_of(op["bits"])] = 1
    bitmap = np.packbits(bits, bitorder="little").view(np.uint64)
    return lambda vm: vm.clear_dirty_log(slot, first, num, bitmap)


def enable_cap(op: Op, slots: dict[int, Row]) -> Call:
    assert op["cap"] == "manual_dirty_log_protect2"
    return lambda vm: setattr(vm, "manual_dirty_log_protect", number(op["arg"]))


CALLS: dict[str, Callable[[Op, dict[int, Row]], Call]] = {
    "set": set_region,
    "get_dirty": get_dirty,
    "clear_dirty": clear_dirty,
    "enable_cap": enable_cap,
}


def log_of(op: Op) -> Log:
    return Log(op["observed"]["bytes"], pages_of(op["observed"]["dirty"]))


def pages_of(runs: list[list[int]]) -> np.ndarray:
    """Convert `[[first, count], ...]` to all page numbers."""
    pages = [np.arange(first, first + count) for first, count in runs]
    return np.concatenate(pages) if pages else np.empty(0, dtype=np.int64)


def number(value: int | str) -> int:
    return int(value, 16) if isinstance(value, str) else value


def address(text: str) -> int:
    return ARENA + number(text.removeprefix("arena+")) if text.startswith("arena") else number(text)


# ---- the benchmark ------------------------------------------------------------------------------


@pytest.mark.benchmark(group="replay")
@pytest.mark.parametrize("name", TRACES)
def test_replay(benchmark: BenchmarkFixture, name: str, backend: str) -> None:
    wanted = trace(name)

    def play() -> tuple[list[np.ndarray], np.ndarray]:
        with VM(backend=backend, **wanted.limits) as vm:
            results = [call(vm) for call in wanted.calls]
            return [words for words in results if words is not None], vm.memslots_array()

    logs, slots = benchmark(play)
    assert all(log.is_in(words) for log, words in zip(wanted.logs, logs, strict=True))
    columns = ("id", "base_gfn", "npages", "userspace_addr", "flags")
    assert [tuple(int(slot[name]) for name in columns) for slot in slots] == wanted.slots
