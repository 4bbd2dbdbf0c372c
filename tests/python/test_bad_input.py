# SPDX-License-Identifier: MIT
"""Bad input: which error each call raises, and that a refused call changes nothing.

Every test starts from a valid call and replaces one argument.  `digest` collects everything that can be
read from a VM; a refused call does not change it.
"""

from __future__ import annotations

import array
import ctypes
import errno
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memslots
from memslots import (
    HVA_ERR_BAD,
    HVA_ERR_RO_BAD,
    MEMSLOT_DTYPE,
    VM,
    ClosedError,
    GfnNotMappedError,
    GuestMemfdError,
    InvalidRegionError,
    MemorySlot,
    MemslotsError,
    NoSuchSlotError,
    NotSupportedError,
    RegionOverlapError,
    Snapshot,
    Update,
)
from memslots._memslots import REGION_DTYPE, time_changes, time_chase, time_lookups, time_nothing
from memslots.layout import STEP_DTYPE

PAGE = 4096
LOG, READONLY, GUEST_MEMFD = 1, 2, 4
U32, U64 = 2**32 - 1, 2**64 - 1
HVA = 0x7F00_0000_0000
GPA = 2**36  # of guest memory


def make_vm() -> VM:
    """Two address spaces; slot 0 logs and has marks, slot 1 is READONLY, slot 2 is in the other space, slot 3 of each
    has memory."""
    vm = VM(address_spaces=2)
    vm.set_user_memory_region(
        0, guest_phys_addr=0, memory_size=200 * PAGE, userspace_addr=HVA, flags=LOG
    )
    vm.set_user_memory_region(
        1, guest_phys_addr=2**20 * PAGE, memory_size=64 * PAGE, userspace_addr=HVA, flags=READONLY
    )
    vm.set_user_memory_region(2, guest_phys_addr=0, memory_size=PAGE, as_id=1)
    for as_id in range(2):
        vm.map_buffer(GPA, memslots.alloc(2 * PAGE), slot=3, as_id=as_id)
    vm.manual_dirty_log_protect = 1  # a read does not clear the log, so the digest may read it
    vm.mark_page_dirty_many(np.array([0, 5, 199], np.uint64))
    return vm


@pytest.fixture
def vm() -> Iterator[VM]:
    with make_vm() as vm:
        yield vm


def digest(vm: VM) -> tuple[Any, ...]:
    """Everything that can be read from a VM without changing it."""
    return (
        len(vm),
        vm.nr_memslot_pages,
        vm.manual_dirty_log_protect,
        [(vm.generation(n), vm.memslots(n)) for n in range(vm.address_spaces)],
        [
            vm.get_dirty_log(slot.id, n).tobytes()
            for n in range(vm.address_spaces)
            for slot in vm.memslots(n)
            if slot.flags & LOG
        ],
    )


# ---- integers -------------------------------------------------------------------------------------

GFNS = np.array([0, 1, 300], np.uint64)
WORDS = np.array([1], np.uint64)
ROWS = np.array([(500, 1, HVA, 9, 0, 0)], MEMSLOT_DTYPE)

Call = Callable[..., Any]


def in_update(step: str) -> Call:
    """Calls one step inside an update, then leaves the update."""

    def call(vm: VM, **values: Any) -> Any:
        with vm.begin_update() as update:
            if step == "find":
                return bool(update.find(**values))
            update.copy(None if "id" in values else update.find(1), **values)

    return call


def in_transaction(method: str, **more: Any) -> Call:
    """Collects one step, and the end carries it out."""

    def call(vm: VM, **values: Any) -> Any:
        with vm.transaction() as t:
            return repr(getattr(t, method)(**values, **more))

    return call


def of_vcpu(method: str) -> Call:
    return lambda vm, **values: getattr(vm.create_vcpu(), method)(**values)


def set_on_vcpu(vm: VM, as_id: Any) -> None:
    vm.create_vcpu().as_id = as_id


def set_protect(vm: VM, manual_dirty_log_protect: Any) -> None:
    vm.manual_dirty_log_protect = manual_dirty_log_protect


def of_vm(method: str, *args: Any) -> Call:
    return lambda vm, **values: getattr(vm, method)(*args, **values)


def make(cls: type) -> Call:
    return lambda vm, **values: cls(**values)


def split_and_merge(vm: VM, **values: Any) -> None:
    with vm.transaction() as t:
        t.split(0, 64 * PAGE, 9)
        t.merge(**values)


# By name: the call, and a valid value for each integer argument.
CALLS: dict[str, tuple[Call, dict[str, int]]] = {
    "VM": (
        make(VM),
        {"address_spaces": 1, "user_mem_slots": 9, "gpa_bits": 40, "hva_end_max": 2**40},
    ),
    "MemorySlot": (
        make(MemorySlot),
        {"id": 1, "as_id": 0, "base_gfn": 2, "npages": 3, "userspace_addr": HVA, "flags": 1},
    ),
    "set_user_memory_region": (
        of_vm("set_user_memory_region"),
        {
            "slot": 0,
            "guest_phys_addr": 0,
            "memory_size": 200 * PAGE,
            "userspace_addr": HVA,
            "flags": LOG,
            "as_id": 0,
            "guest_memfd": -1,
            "guest_memfd_offset": 0,
        },
    ),
    "load_memslots": (of_vm("load_memslots", ROWS), {"as_id": 0}),
    "delete": (of_vm("delete"), {"slot": 0, "as_id": 0}),
    "move": (of_vm("move"), {"slot": 0, "gpa": 2**30, "as_id": 0}),
    "set_flags": (of_vm("set_flags"), {"slot": 0, "set": 0, "clear": LOG, "as_id": 0}),
    "free_slot_id": (of_vm("free_slot_id"), {"as_id": 0}),
    "map_buffer": (
        lambda vm, **values: bool(vm.map_buffer(buffer=memslots.alloc(PAGE), **values)),
        {"gpa": 2**40, "as_id": 0},
    ),
    "begin_update": (of_vm("begin_update"), {"as_id": 0}),
    "transaction": (of_vm("transaction"), {"as_id": 0}),
    "apply": (of_vm("apply", ROWS), {"as_id": 0}),
    "_change_many": (of_vm("_change_many", np.zeros(0, STEP_DTYPE)), {"as_id": 0}),
    "_compare": (lambda vm, **values: str(vm._compare(ROWS, False, **values)[::2]), {"as_id": 0}),
    "Transaction.create": (
        in_transaction("create", slot=7),
        {"guest_phys_addr": 2**30, "memory_size": PAGE, "userspace_addr": HVA, "flags": LOG},
    ),
    "Transaction.map_buffer": (
        lambda vm, **values: bool(
            in_transaction("map_buffer", buffer=memslots.alloc(PAGE))(vm, **values)
        ),
        {"gpa": 2**40},
    ),
    "Transaction.delete": (in_transaction("delete"), {"slot": 0}),
    "Transaction.move": (in_transaction("move"), {"slot": 0, "gpa": 2**30}),
    "Transaction.set_flags": (in_transaction("set_flags"), {"slot": 0, "set": 0, "clear": LOG}),
    "Transaction.resize": (in_transaction("resize"), {"slot": 0, "npages": 5}),
    "Transaction.split": (in_transaction("split"), {"slot": 0, "gpa": PAGE}),
    "Transaction.merge": (split_and_merge, {"slot": 0, "other": 9}),
    "Transaction.punch": (in_transaction("punch"), {"gpa": 0, "n": PAGE}),
    "Update.find": (in_update("find"), {"id": 1}),
    "Update.copy": (
        in_update("copy"),
        {"base_gfn": 700, "npages": 64, "userspace_addr": HVA, "flags": READONLY},
    ),
    "Update.copy(None)": (in_update("copy"), {"id": 7, "npages": 1}),
    "gfn_to_memslot": (of_vm("gfn_to_memslot"), {"gfn": 0, "as_id": 0}),
    "id_to_memslot": (of_vm("id_to_memslot"), {"id": 0, "as_id": 0}),
    "gfn_to_hva": (of_vm("gfn_to_hva"), {"gfn": 0, "as_id": 0}),
    "gpa_to_hva": (of_vm("gpa_to_hva"), {"gpa": 0, "as_id": 0}),
    "gfn_to_hva_prot": (of_vm("gfn_to_hva_prot"), {"gfn": 0, "as_id": 0}),
    "is_visible_gfn": (of_vm("is_visible_gfn"), {"gfn": 0, "as_id": 0}),
    "gfn_to_hva_many": (of_vm("gfn_to_hva_many", GFNS), {"as_id": 0}),
    "gpa_to_hva_many": (of_vm("gpa_to_hva_many", GFNS), {"as_id": 0}),
    "gfn_to_slot_id_many": (of_vm("gfn_to_slot_id_many", GFNS), {"as_id": 0}),
    "memslots_in_gfn_range": (of_vm("memslots_in_gfn_range"), {"start": 0, "end": 9, "as_id": 0}),
    "memslots_in_hva_range": (of_vm("memslots_in_hva_range"), {"start": 0, "last": 9, "as_id": 0}),
    "memslots": (of_vm("memslots"), {"as_id": 0}),
    "memslots_array": (of_vm("memslots_array"), {"as_id": 0}),
    "hva_to_gfns": (of_vm("hva_to_gfns"), {"hva": HVA}),
    "generation": (of_vm("generation"), {"as_id": 0}),
    "snapshot": (of_vm("snapshot"), {"as_id": 0}),
    "VCPU.as_id": (set_on_vcpu, {"as_id": 1}),
    "VCPU.gfn_to_memslot": (of_vcpu("gfn_to_memslot"), {"gfn": 0}),
    "VCPU.gfn_to_hva": (of_vcpu("gfn_to_hva"), {"gfn": 0}),
    "VCPU.gpa_to_hva": (of_vcpu("gpa_to_hva"), {"gpa": 0}),
    "read_guest": (of_vm("read_guest"), {"gpa": GPA, "n": 8, "as_id": 0}),
    "readinto_guest": (
        lambda vm, **values: vm.readinto_guest(out=bytearray(8), **values),
        {"gpa": GPA, "as_id": 0},
    ),
    "write_guest": (
        lambda vm, **values: vm.write_guest(data=bytes(8), **values),
        {"gpa": GPA, "as_id": 0},
    ),
    "read_u8": (of_vm("read_u8"), {"gpa": GPA, "as_id": 0}),
    "write_u8": (of_vm("write_u8"), {"gpa": GPA, "value": 1, "as_id": 0}),
    "read_u16": (of_vm("read_u16"), {"gpa": GPA, "as_id": 0}),
    "write_u16": (of_vm("write_u16"), {"gpa": GPA, "value": 1, "as_id": 0}),
    "read_u32": (of_vm("read_u32"), {"gpa": GPA, "as_id": 0}),
    "write_u32": (of_vm("write_u32"), {"gpa": GPA, "value": 1, "as_id": 0}),
    "read_u64": (of_vm("read_u64"), {"gpa": GPA, "as_id": 0}),
    "write_u64": (of_vm("write_u64"), {"gpa": GPA, "value": 1, "as_id": 0}),
    "fill_guest": (of_vm("fill_guest"), {"gpa": GPA, "n": 8, "byte": 1, "as_id": 0}),
    "copy_guest": (
        of_vm("copy_guest"),
        {"dst_gpa": GPA, "src_gpa": GPA + PAGE, "n": 8, "as_id": 0},
    ),
    "read_u64_many": (of_vm("read_u64_many", [GPA, GPA + 8]), {"as_id": 0}),
    "write_u64_many": (of_vm("write_u64_many", [GPA, GPA + 8], 1), {"as_id": 0}),
    "host_ranges": (of_vm("host_ranges"), {"gpa": GPA, "n": 8, "as_id": 0}),
    "host_ranges_many": (of_vm("host_ranges_many", [GPA], 8), {"as_id": 0}),
    "memslots_in_gfn_range_many": (of_vm("memslots_in_gfn_range_many", [0], 9), {"as_id": 0}),
    "mark_page_dirty": (of_vm("mark_page_dirty"), {"gfn": 5, "as_id": 0}),
    "mark_page_dirty_many": (of_vm("mark_page_dirty_many", GFNS), {"as_id": 0}),
    "get_dirty_log": (of_vm("get_dirty_log"), {"slot": 0, "as_id": 0}),
    "_get_dirty_log_null": (of_vm("_get_dirty_log_null"), {"slot": 0, "as_id": 0}),
    "clear_dirty_log": (
        lambda vm, **values: vm.clear_dirty_log(bitmap=WORDS, **values),
        {"slot": 0, "first_page": 0, "num_pages": 64, "as_id": 0},
    ),
    "merge_dirty_log": (
        lambda vm, **values: vm.merge_dirty_log(words=vm.get_dirty_log(0), **values),
        {"slot": 0, "as_id": 0},
    ),
    "harvest_dirty": (of_vm("harvest_dirty"), {"as_id": 0, "start_gfn": 0}),
    "manual_dirty_log_protect": (set_protect, {"manual_dirty_log_protect": 0}),
    "Update": (lambda vm, as_id: Update(vm, as_id), {"as_id": 0}),
    "time_lookups": (
        lambda vm, **values: time_lookups(vm, "gfn_to_hva", GFNS, **values),
        {"group": 1, "as_id": 0},
    ),
    "time_changes": (
        lambda vm, **values: time_changes(vm, np.zeros(0, REGION_DTYPE), **values),
        {"group": 1},
    ),
    "time_nothing": (lambda vm, **values: time_nothing(**values), {"n": 2}),
    "time_chase": (
        lambda vm, **values: time_chase(np.zeros(16, np.uint32), **values),
        {"steps": 2, "start": 0},
    ),
}

WIDE = {
    *("dst_gpa", "src_gpa"),
    "base_gfn",
    "npages",
    "userspace_addr",
    "guest_phys_addr",
    "memory_size",
    "guest_memfd_offset",
    "hva_end_max",
    "gfn",
    "gpa",
    "hva",
    "start",
    "end",
    "last",
    "first_page",
    "start_gfn",
    "manual_dirty_log_protect",
}


#: Numbers of operations; a large one would take long, or need 16 GiB for the times.
LONG = ("time_nothing n", "time_chase steps")


def bounds(name: str, argument: str) -> tuple[int, int]:
    """The integers that the argument can hold."""
    if argument == "guest_memfd":
        return -(2**31), 2**31 - 1
    if name in ("host_ranges", "Transaction.punch") and argument == "n":
        return 0, U64
    if argument in ("group", "n", "steps"):
        return 0, 2**63 - 1 if name.endswith("_guest") else 2**31 - 1
    if argument == "value":
        return 0, 2 ** int(name.removeprefix("write_u")) - 1
    if argument == "byte":
        return 0, 255
    return 0, U64 if argument in WIDE else U32


class Index:
    """An object with __index__, as numpy's integers have."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __index__(self) -> Any:
        return self.value


class RaisingIndex:
    def __index__(self) -> int:
        raise ZeroDivisionError("from __index__")


class OwnIndex:
    """__index__ on the instance: Python ignores it, the class must define it."""

    def __init__(self) -> None:
        self.__index__ = lambda: 1


class FloatOnly:
    def __float__(self) -> float:
        return 1.0

    def __int__(self) -> int:
        return 1


NO_INTEGERS: dict[str, Any] = {
    "1.0": 1.0,
    "4096.9": 4096.9,
    "nan": float("nan"),
    "inf": float("inf"),
    "1j": 1j,
    "True": True,
    "False": False,
    "np.bool_": np.bool_(True),
    "np.float64": np.float64(1.0),
    "masked": np.ma.array(5, mask=True),
    "not masked": np.ma.array(5, mask=False),
    "np.ma.masked": np.ma.masked,
    "np.float16": np.float16(1.0),
    "np.datetime64": np.datetime64(1, "s"),
    "None": None,
    "str": "1",
    "bytes": b"1",
    "bytearray": bytearray(b"1"),
    "Decimal": Decimal(1),
    "Fraction": Fraction(1),
    "list": [1],
    "tuple": (1,),
    "dict": {},
    "set": {1},
    "type": int,
    "range": range(1),
    "object": object(),
    "__int__ and __float__": FloatOnly(),
    "__index__ of the instance": OwnIndex(),
    "__index__ -> float": Index(1.0),
    "__index__ -> str": Index("1"),
    "__index__ -> None": Index(None),
    "an array": np.array([1, 2]),
    "a 0-d float array": np.array(1.0),
    "a 0-d bool array": np.array(True),
}
INTEGERS: dict[str, int] = {
    "-1": -1,
    "-2**31 - 1": -(2**31) - 1,
    "-2**63": -(2**63),
    "-2**64": -(2**64),
    "2**31": 2**31,
    "2**32": 2**32,
    "2**63": 2**63,
    "2**64 - 1": 2**64 - 1,
    "2**64": 2**64,
    "10**30": 10**30,
    "10**5000": 10**5000,  # Python prints no more than 4,300 digits
    "-10**5000": -(10**5000),
}
# Values that a binding may return to signal an exception.
SENTINELS = [0xDEAD, 2**32 - 1, 2**64 - 1, 2**31 - 1, 2**63 - 1, 2**63, -1, -7777, -(2**31), 0]
SPOTS = [(name, argument) for name, (_, values) in CALLS.items() for argument in values]


def spoiled(vm: VM, name: str, argument: str, value: Any) -> Any:
    """Makes the call with this one argument replaced."""
    call, values = CALLS[name]
    return call(vm, **values | {argument: value})


@pytest.mark.parametrize(("name", "argument"), SPOTS)
def test_unspoiled_call_succeeds_with_every_integer_type(vm: VM, name: str, argument: str) -> None:
    """Makes sure that the refusals in the tests below come from the replaced argument alone."""
    value = CALLS[name][1][argument]
    kinds = [int, Index, np.int64] + ([np.uint64, np.uint32] if 0 <= value < 2**32 else [])
    for kind in kinds:
        with make_vm() as fresh:
            if name == "_get_dirty_log_null":
                with pytest.raises(MemslotsError, match="no bitmap"):
                    spoiled(fresh, name, argument, kind(value))
            else:
                spoiled(fresh, name, argument, kind(value))
            fresh.check()


def fault_of_refusal(vm: VM, name: str, argument: str, value: Any) -> str:
    """Passes a non-integer; returns "" for a correct TypeError, otherwise a description of the fault."""
    before = digest(vm)
    try:
        spoiled(vm, name, argument, value)
    except TypeError as error:
        wrong = "" if re.search(rf"\b{argument}\b", str(error)) else f"does not name it: {error}"
    except Exception as error:
        wrong = f"raises {error!r}"
    else:
        wrong = "is accepted"
    vm.check()
    return wrong if digest(vm) == before else f"{wrong}, and something has changed"


@pytest.mark.parametrize(("name", "argument"), SPOTS)
def test_non_integer_raises_typeerror_and_changes_nothing(name: str, argument: str) -> None:
    """The TypeError names the argument."""
    wrong = {}
    for kind, value in NO_INTEGERS.items():
        with make_vm() as vm:
            wrong[kind] = fault_of_refusal(vm, name, argument, value)
    assert {kind: words for kind, words in wrong.items() if words} == {}


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize(("name", "argument"), SPOTS)
def test_integer_beyond_its_c_type_raises_overflowerror(
    name: str, argument: str, kind: str
) -> None:
    """The OverflowError names the argument.  An integer that fits never raises it: the engine either accepts the value
    or refuses it by a rule."""
    low, high = bounds(name, argument)
    value = INTEGERS[kind]
    with make_vm() as vm:
        before = digest(vm)
        if low <= value <= high:
            try:
                spoiled(vm, name, argument, value)
            except MemslotsError as error:
                moved = error.rule == "GPA_LIMIT"  # a refused MOVE has swapped twice
                assert moved or digest(vm) == before
        else:
            for same in (value, Index(value)):
                with pytest.raises(OverflowError, match=rf"\b{argument}\b"):
                    spoiled(vm, name, argument, same)
            assert digest(vm) == before
        vm.check()


def outcome(name: str, argument: str, value: Any) -> str:
    """The result or the exception of the call on a fresh VM, as text."""
    with make_vm() as vm:
        try:
            result = spoiled(vm, name, argument, value)
        except Exception as error:
            return repr(error)
        finally:
            vm.check()
        times = name.startswith("time_")
        text = "" if times or "object at 0x" in repr(result) else repr(result)
        # The buffer that the VM maps has another address in each VM; those of the other slots are near HVA.
        return re.sub(r"(userspace_addr=0x7f)(?!00)[0-9a-f]+", r"\1...", text)


@pytest.mark.parametrize(("name", "argument"), SPOTS)
def test_sentinel_value_is_an_ordinary_number(name: str, argument: str) -> None:
    """A sentinel neither ends a call without a result nor hides an exception.  An object with __index__ takes another
    path through the binding: the same number must give the same outcome there."""
    low, high = bounds(name, argument)
    for value in SENTINELS:
        if f"{name} {argument}" in LONG and 2**20 < value <= high:
            continue
        plain = outcome(name, argument, value)
        assert "SystemError" not in plain, value
        assert outcome(name, argument, Index(value)) == plain, value
        assert ("OverflowError" in plain) == (not low <= value <= high), (value, plain)


@pytest.mark.parametrize(("name", "argument"), SPOTS)
def test_exception_of_index_reaches_the_caller(vm: VM, name: str, argument: str) -> None:
    """The call changes nothing."""
    before = digest(vm)
    with pytest.raises(ZeroDivisionError, match="from __index__"):
        spoiled(vm, name, argument, RaisingIndex())
    assert digest(vm) == before
    vm.check()


class CallsBack:
    """An integer whose __index__ calls `action` first."""

    def __init__(self, value: int, action: Callable[[], Any]) -> None:
        self.value, self.action = value, action

    def __index__(self) -> int:
        self.action()
        return self.value


ACTIONS: dict[str, Callable[[VM], Any]] = {
    "looks": lambda vm: vm.gfn_to_memslot(0),
    "marks": lambda vm: vm.mark_page_dirty(7),
    "deletes": lambda vm: (
        vm.id_to_memslot(1) and vm.set_user_memory_region(1, guest_phys_addr=0, memory_size=0)
    ),
    "creates": lambda vm: (
        vm.id_to_memslot(8) or vm.set_user_memory_region(8, guest_phys_addr=2**30, memory_size=PAGE)
    ),
    "closes": lambda vm: vm.close(),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("name", "argument"), SPOTS)
def test_index_may_call_the_vm(name: str, argument: str, action: str) -> None:
    """The call continues with the state that __index__ left."""
    vm = make_vm()
    value = CALLS[name][1][argument]
    value_that_calls_back = CallsBack(value, lambda: ACTIONS[action](vm))
    allowed = (MemslotsError,) if action in ("closes", "deletes", "creates") else ()
    if name == "_get_dirty_log_null":
        allowed = (MemslotsError,)
    with suppress(*allowed):  # EDEADLK within an update, EBADF after a close, ...
        spoiled(vm, name, argument, value_that_calls_back)
    if not vm.closed:
        vm.check()
        vm.close()
    with pytest.raises(ClosedError):
        vm.memslots()


def test_integer_table_keeps_its_size() -> None:
    """Guards against cases that are lost by accident."""
    assert len(NO_INTEGERS) + len(INTEGERS) >= 24
    assert len(SPOTS) * (len(NO_INTEGERS) + len(INTEGERS)) >= 500


def numbers_around(powers: range) -> set[int]:
    return {n for power in powers for n in (2**power - 1, 2**power, 2**power + 1)}


def test_int_of_any_number_of_digits_has_its_value() -> None:
    """An int has digits of 30 bits (of 15 in some builds).  The binding reads those of the shortest ones itself."""
    vm = VM()
    for number in sorted({0, *numbers_around(range(64))}):
        with pytest.raises(GfnNotMappedError, match=rf"\b{number:#x}\b"):
            vm.gfn_to_hva(number)
    for negative in (-n for n in numbers_around(range(65)) if n):
        with pytest.raises(OverflowError, match="gfn must be 0 to"):
            vm.gfn_to_hva(negative)
    for large in numbers_around(range(64, 100)) - {U64}:
        with pytest.raises(OverflowError, match="gfn must be 0 to"):
            vm.gfn_to_hva(large)


@pytest.mark.parametrize("value", [2**64 - 1, Index(2**64 - 1), np.uint64(2**64 - 1)])
def test_limit_out_of_range_raises_invalidregionerror(value: Any) -> None:
    """The type of the integer makes no difference."""
    with pytest.raises(InvalidRegionError, match="hva_end_max"):
        VM(hva_end_max=value)


def test_message_gives_the_size_of_a_number_too_long_to_print() -> None:
    """Python refuses to print more than 4,300 digits; the message gives the number of bits."""
    with VM() as vm:
        with pytest.raises(
            OverflowError, match=r"gfn must be 0 to 0xf+, not a number of 16610 bits"
        ):
            vm.gfn_to_hva(10**5000)
        with pytest.raises(OverflowError, match=r"gfn .* not a negative number of 16610 bits"):
            vm.gfn_to_hva(-(10**5000))
        with pytest.raises(OverflowError, match=rf"gfn .* not {2**255}$"):
            vm.gfn_to_hva(2**255)


LIMITS: dict[str, tuple[int, int, str]] = {
    "address_spaces": (0, 65, "1 to 64"),
    "user_mem_slots": (0, 2**31 - 15, "1 to 2147483632"),
    "gpa_bits": (12, 65, "13 to 64"),
    "hva_end_max": (PAGE - 1, memslots.HVA_ERR_MIN, "4096 to 0x"),
}


@pytest.mark.parametrize("argument", LIMITS)
def test_message_names_the_limit_that_is_out_of_range(argument: str) -> None:
    """The message gives the value and its range, for the wrong limits only.  The ends of each range are valid."""
    low, high, limits = LIMITS[argument]
    for value in (low, high):
        said = hex(value) if value >= 2**32 else str(value)
        with pytest.raises(
            InvalidRegionError, match=f"] {argument} must be {limits}.*, not {said}$"
        ):
            VM(**{argument: value})
    VM(**{argument: low + 1}).close()
    if argument != "user_mem_slots":  # the largest value would allocate arrays of that size
        VM(**{argument: high - 1}).close()
    with pytest.raises(InvalidRegionError, match=r"address_spaces .*, not 0; gpa_bits .*, not 3$"):
        VM(address_spaces=0, gpa_bits=3)


def test_smallest_hva_end_max_holds_one_page() -> None:
    with VM(hva_end_max=PAGE) as vm:
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=PAGE)
        assert len(vm) == 1


def test_wrong_arguments_of_vm_raise_typeerror() -> None:
    """The message starts with VM() and lists the valid arguments."""
    with pytest.raises(
        TypeError, match=r"^VM\(\) got an unexpected keyword argument 'backnd'; .*backend"
    ):
        VM(backnd="tree")
    with pytest.raises(TypeError, match=r"^VM\(\) takes keyword arguments only \(address_spaces, "):
        VM(2)


@pytest.mark.parametrize("backend", [None, 1, b"tree", ["tree"], object()])
def test_backend_that_is_not_a_str_raises_typeerror(backend: Any) -> None:
    with pytest.raises(TypeError, match="backend"):
        VM(backend=backend)


@pytest.mark.parametrize("backend", ["", "Tree", "forest", "tree ", "tree\0", "tree\0x"])
def test_unknown_backend_raises(backend: str) -> None:
    """A NUL does not end the name: "tree" followed by a NUL is unknown, too."""
    with pytest.raises((NotSupportedError, ValueError)):
        VM(backend=backend)


def test_backend_that_cannot_be_encoded_raises_notsupportederror() -> None:
    with pytest.raises(NotSupportedError, match=r"no backend '\\ud800'"):
        VM(backend="\ud800")


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("set_user_memory_region", ()),
        ("set_user_memory_region", (0, 0, 0)),
        ("gfn_to_hva", ()),
        ("gfn_to_hva", (0, 0, 0)),
        ("memslots_in_gfn_range", (0,)),
        ("clear_dirty_log", (0, 0, 64)),
        ("load_memslots", ()),
        ("close", (1,)),
        ("check", (1,)),
    ],
)
def test_wrong_number_of_arguments_raises_typeerror(
    vm: VM, method: str, args: tuple[Any, ...]
) -> None:
    before = digest(vm)
    with pytest.raises(TypeError):
        getattr(vm, method)(*args)
    assert digest(vm) == before


def test_unknown_keyword_raises_typeerror(vm: VM) -> None:
    with pytest.raises(TypeError):
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0, size=1)
    with pytest.raises(TypeError):
        VM(spaces=1)
    with vm.begin_update() as update, pytest.raises(TypeError, match="base"):
        update.copy(update.find(0), base=1)
    with vm.begin_update() as update, pytest.raises(TypeError, match="id"):
        update.copy(update.find(0), id=1)


# ---- flags ----------------------------------------------------------------------------------------

# Each argument that is a bool.  The text "False" and None would have another meaning than the caller's.
FLAGS: dict[str, Call] = {
    "write of gpa_to_hva": lambda vm, flag: vm.gpa_to_hva(0, write=flag),
    "write of gfn_to_hva_many": lambda vm, flag: vm.gfn_to_hva_many(GFNS, write=flag),
    "write of gpa_to_hva_many": lambda vm, flag: vm.gpa_to_hva_many(GFNS, write=flag),
    "write of host_ranges": lambda vm, flag: vm.host_ranges(0, 1, write=flag),
    "write of host_ranges_many": lambda vm, flag: vm.host_ranges_many(GFNS, 1, write=flag),
    "write of Snapshot.gpa_to_hva": lambda vm, flag: vm.snapshot().gpa_to_hva(0, write=flag),
    "clear of harvest_dirty": lambda vm, flag: vm.harvest_dirty(clear=flag),
    "last of add_listener": lambda vm, flag: vm.add_listener(memslots.Listener(), last=flag),
    "readonly of map_buffer": lambda vm, flag: vm.map_buffer(0, GFNS, readonly=flag),
    "log_dirty of map_buffer": lambda vm, flag: vm.map_buffer(0, GFNS, log_dirty=flag),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flag_that_is_no_bool_is_refused(vm: VM, name: str) -> None:
    for value in (0, 1, None, "False", np.array([True])):
        before = digest(vm)
        with pytest.raises(TypeError, match=f"{name.split()[0]} must be a bool, not"):
            FLAGS[name](vm, value)
        assert digest(vm) == before


def test_flag_may_be_a_bool_of_numpy(vm: VM) -> None:
    gfn = 2**20
    assert vm.gpa_to_hva(gfn * PAGE, write=np.False_) == vm.gfn_to_hva_prot(gfn)[0]
    assert vm.gfn_to_hva_many([gfn], write=np.False_) == vm.gfn_to_hva_prot(gfn)[0]
    with pytest.raises(memslots.ReadOnlySlotError):
        vm.gpa_to_hva(gfn * PAGE, write=np.True_)


# ---- arrays ---------------------------------------------------------------------------------------

MANY = ("gfn_to_hva_many", "gpa_to_hva_many", "gfn_to_slot_id_many")
BAD_DTYPES = [
    *("b1", "f2", "f4", "f8", "g", "c16", "S8", "U2", "M8[s]", "m8[s]", "V8", [("a", "u8")]),
]
INTEGER_DTYPES = [
    f"{order}{sign}{size}" for order in "<>" for sign in "iu" for size in (1, 2, 4, 8)
] + ["O"]
SENTINEL = 77


def out_for(method: str, shape: Any) -> np.ndarray:
    """A valid `out`, filled with a value that is never an answer."""
    return np.full(shape, SENTINEL, np.int32 if method == "gfn_to_slot_id_many" else np.uint64)


@pytest.mark.parametrize("dtype", BAD_DTYPES, ids=str)
@pytest.mark.parametrize(
    "method", [*MANY, "mark_page_dirty_many", "clear_dirty_log", "merge_dirty_log"]
)
def test_numbers_of_another_dtype_raise_typeerror(vm: VM, method: str, dtype: Any) -> None:
    """Only integers are valid.  The call fails before it writes; the message contains the expression that converts."""
    before = digest(vm)
    numbers = np.zeros(1, dtype) if dtype == "V8" else np.ones(1, dtype)
    out = out_for(method, 1)
    args = {
        "clear_dirty_log": (0, 0, 64, numbers),
        "merge_dirty_log": (0, numbers),
        "mark_page_dirty_many": (numbers,),
    }
    with pytest.raises(
        TypeError, match=r"(gfns|gpas|bitmap|words) must be an array of integers, not "
    ) as caught:
        getattr(vm, method)(*args.get(method, (numbers, out)))
    assert (out == SENTINEL).all()
    assert digest(vm) == before
    assert conversion(caught.value, numbers).dtype in (np.uint64, np.int64), caught.value


def conversion(error: Exception, values: Any) -> Any:
    """Applies the expression in an error message to the argument."""
    names = {"np": np} | dict.fromkeys(("gfns", "gpas", "bitmap", "words", "out", "array"), values)
    words = re.split(r"; (?:use )?|: use | use ", str(error), maxsplit=1)[1]
    for end in range(len(words), 0, -1):  # the longest prefix that is an expression
        if words[end - 1] in ")]a":
            with suppress(SyntaxError):
                return eval(words[:end], names)
    raise AssertionError(f"no expression in: {error}")


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
@pytest.mark.parametrize("method", [*MANY, "mark_page_dirty_many", "clear_dirty_log"])
def test_integer_array_of_any_width_gives_the_answers_of_uint64(
    vm: VM, method: str, dtype: str
) -> None:
    """Covers every width and byte order, and ints as objects."""
    wide = np.array([0, 5, 100, 127], np.uint64)
    numbers = wide.astype(dtype)
    if method == "clear_dirty_log":
        vm.clear_dirty_log(0, 0, 64, numbers[1:2])
        assert vm.get_dirty_log(0)[0] == 0b100000  # of the bits 0 and 5, 0b101 clears bit 0
    elif method == "mark_page_dirty_many":
        vm.mark_page_dirty_many(numbers)
        assert vm.get_dirty_log(0).tolist()[:2] == [1 | 1 << 5, 1 << 36 | 1 << 63]
    else:
        want = getattr(vm, method)(wide)
        for same in (numbers, numbers.reshape(2, 2), numbers[::-1], np.repeat(numbers, 3)[::3]):
            expected = want.reshape(2, 2) if same.ndim == 2 else want
            out = out_for(method, same.shape)
            assert getattr(vm, method)(same, out) is out
            assert (
                out.tolist()
                == (
                    expected[::-1] if same.base is numbers and same.ndim == 1 else expected
                ).tolist()
            )


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (1, 1), (3, 0, 2)])
@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
def test_integer_array_of_any_width_works_in_small_shapes(vm: VM, dtype: str, shape: Any) -> None:
    """Covers arrays without a dimension and without an element."""
    numbers = np.full(shape, 5).astype(dtype)
    got = vm.gfn_to_hva_many(numbers)
    assert (type(got), got.shape) == (np.ndarray, shape)
    assert (got == HVA + 5 * PAGE).all()
    assert np.array_equal(vm.snapshot().gfn_to_hva_many(numbers), got)
    vm.mark_page_dirty_many(numbers)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", ">i8", "O"])
@pytest.mark.parametrize("method", [*MANY, "mark_page_dirty_many"])
def test_negative_number_of_any_width_raises_valueerror(vm: VM, method: str, dtype: str) -> None:
    """A conversion to uint64 would turn it into a very large frame number."""
    before = digest(vm)
    with pytest.raises((ValueError, OverflowError), match="-7"):
        getattr(vm, method)(np.array([1, -7], dtype))
    assert digest(vm) == before


def test_object_array_with_a_non_integer_names_the_element(vm: VM) -> None:
    for bad in (1.0, None, True, "1", [1]):
        numbers = np.empty(3, object)
        numbers[:] = [1, 2, None]
        numbers[2] = bad
        with pytest.raises(TypeError, match="element 2 of gfns must be an int"):
            vm.gfn_to_hva_many(numbers)


class Array:
    """An array-like as in pandas and Arrow: it has __array__ and no other part of the array interface."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


ARRAY_LIKES: dict[str, Any] = {
    "__array__": Array(np.array([0, 5, 300], np.uint64)),
    "__array__ of int16": Array(np.array([0, 5, 300], np.int16)),
    "__array__ of objects": Array(np.array([0, 5, 300], object)),
    "list": [0, 5, 300],
    "tuple": (0, 5, 300),
    "list of numpy ints": [np.uint8(0), np.int64(5), np.uint64(300)],
    "list of __index__": [Index(0), Index(5), Index(300)],
    "array.array i": array.array("i", [0, 5, 300]),
    "array.array H": array.array("H", [0, 5, 300]),
    "ctypes": (ctypes.c_uint32 * 3)(0, 5, 300),
    "memmap": np.array([0, 5, 300], np.uint64).view(np.memmap),
    "recarray field": np.rec.array([(0,), (5,), (300,)], [("gfn", ">u4")]).gfn,
    "packed field": np.array([(1, 0), (1, 5), (1, 300)], [("x", "u1"), ("gfn", "u8")])["gfn"],
}


@pytest.mark.parametrize("kind", ARRAY_LIKES)
def test_array_like_is_accepted_by_every_batch_call(vm: VM, kind: str) -> None:
    """The conversion loses nothing.  The result is a plain ndarray."""
    numbers = ARRAY_LIKES[kind]
    for method in ("gfn_to_hva_many", "gfn_to_slot_id_many"):
        got = getattr(vm, method)(numbers)
        assert type(got) is np.ndarray
        assert got.tolist() == getattr(vm, method)(np.array([0, 5, 300], np.uint64)).tolist()
    assert vm.snapshot().gfn_to_hva_many(numbers).tolist() == [HVA, HVA + 5 * PAGE, HVA_ERR_BAD]
    vm.clear_dirty_log(0, 0, 192, numbers)
    assert vm.get_dirty_log(0).tolist() == [0b100001, 0, 0, 1 << 7]
    vm.mark_page_dirty_many(numbers)
    assert time_lookups(vm, "gfn_to_hva", numbers)[1][1] == HVA + 5 * PAGE


def test_range_is_accepted_as_numbers(vm: VM) -> None:
    for numbers in (
        range(4),
        range(3, -1, -1),
        range(0, 300, 7),
        range(0),
        range(2**63, 2**63 + 3),
    ):
        wide = np.array(list(numbers), dtype=np.uint64)
        assert vm.gfn_to_hva_many(numbers).tolist() == vm.gfn_to_hva_many(wide).tolist()
    with pytest.raises(ValueError, match="must not be negative, but has -3"):
        vm.mark_page_dirty_many(range(9, -4, -3))
    for numbers in (range(2**64 - 1, 2**64 + 1), range(2**70)):
        with pytest.raises(OverflowError, match=r"gfns must be 0 to 0xf+, not"):
            vm.mark_page_dirty_many(numbers)


def test_list_that_numpy_converts_to_floats_keeps_its_integers(vm: VM) -> None:
    """np.asarray([1, 2**63]) is an array of floats; the engine must get the integers."""
    assert vm.gfn_to_hva_many([5, 2**63]).tolist() == [HVA + 5 * PAGE, HVA_ERR_BAD]
    assert vm.gfn_to_hva_many([[5, 2**63], [0, 2**64 - 1]]).shape == (2, 2)
    assert vm.gfn_to_hva_many([]).shape == (0,)
    for bad in ([2**64], [-1, 2**63]):
        with pytest.raises(OverflowError, match="of gfns must be 0 to"):
            vm.gfn_to_hva_many(bad)
    for bad in ([1.0], [True], [None], ["1"], [1, 2.5], [np.float64(1)]):
        with pytest.raises(TypeError, match=r"element \d of gfns must be an int, not"):
            vm.gfn_to_hva_many(bad)
    endless: list[Any] = []
    endless.append(endless)
    for bad in ([[1], [1, 2]], endless):
        with pytest.raises((TypeError, ValueError)):
            vm.gfn_to_hva_many(bad)


@pytest.mark.parametrize(
    "numbers",
    [
        1,
        None,
        "1",
        b"12345678",
        bytearray(8),
        memoryview(b"12345678"),
        array.array("B", [1]),
        array.array("d", [1]),
        {1: 1},
        {1},
        iter([1]),
        object(),
        Array(None),
        Array(5),
        Array([1]),
        Array(np.zeros(2)),
        Array(np.ma.array([1])),
        Array,
        Index(1),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("method", [*MANY, "mark_page_dirty_many"])
def test_argument_that_is_not_an_array_raises_typeerror(vm: VM, method: str, numbers: Any) -> None:
    before = digest(vm)
    with pytest.raises((TypeError, ValueError), match=r"gfns|gpas|array"):
        getattr(vm, method)(numbers)
    assert digest(vm) == before


@pytest.mark.parametrize("method", [*MANY, "mark_page_dirty_many"])
def test_message_gives_a_conversion_that_works(vm: VM, method: str) -> None:
    """The expression in the message produces a valid argument."""
    name = "gpas" if method == "gpa_to_hva_many" else "gfns"
    many = getattr(vm, method)
    for numbers in (
        {1, 2},
        {1: 2},
        iter([1, 2]),
        5,
        b"12345678",
        bytearray(8),
        memoryview(b"12345678"),
        np.ma.array([1, 2]),
        np.zeros(2),
        np.zeros(2, bool),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", "u8")]),
    ):
        with pytest.raises(TypeError, match=rf"^{name} ") as caught:
            many(numbers)
        many(conversion(caught.value, numbers))
    with pytest.raises(TypeError, match="drops fractions and makes garbage of NaN"):
        many(np.array([0.5]))


def test_exception_of_array_reaches_the_caller(vm: VM) -> None:
    """A note of the exception names the place where it was raised."""
    for error in (ZeroDivisionError("mine"), RuntimeError("on a device")):
        with pytest.raises(type(error), match=str(error)) as caught:
            vm.gfn_to_hva_many(Array(error))
        assert "raised by np.asarray(gfns); the type of gfns is Array" in caught.value.__notes__


def test_array_may_call_the_vm() -> None:
    """__array__ may change or close the VM: the call continues with the state that __array__ left."""

    class CallsBackFromArray:
        def __init__(self, action: Callable[[], Any]) -> None:
            self.action = action

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            self.action()
            return np.array([0, 5], np.uint64)

    for name, action in ACTIONS.items():
        vm = make_vm()
        numbers = CallsBackFromArray(functools.partial(action, vm))
        for call in (
            vm.gfn_to_hva_many,
            vm.gfn_to_slot_id_many,
            vm.mark_page_dirty_many,
            functools.partial(vm.clear_dirty_log, 0, 0, 128),
        ):
            with suppress(*(MemslotsError,) if name == "closes" else ()):
                call(numbers)
        if not vm.closed:
            vm.check()


# ---- masked arrays --------------------------------------------------------------------------------

MASKED: dict[str, Any] = {
    "masked": np.ma.array([1, 2, 3], mask=[0, 1, 0], dtype=np.uint64),
    "nothing masked": np.ma.array([1, 2, 3], mask=[0, 0, 0], dtype=np.uint64),
    "no mask": np.ma.array([1, 2, 3], dtype=np.uint64),
    "narrow": np.ma.array([1, 2, 3], mask=[0, 1, 0], dtype=np.uint8),
    "constant": np.ma.masked,
    "of __array__": Array(np.ma.array([1, 2, 3], mask=[0, 1, 0], dtype=np.uint64)),
    "in a list": [np.ma.array([1, 2, 3], mask=[0, 1, 0], dtype=np.uint64)],
    "in a list of lists": [[np.ma.array([1, 2, 3], mask=[0, 1, 0], dtype=np.uint64)]],
    "constant in a list": [1, np.ma.masked, 3],
}


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize(
    "method",
    [
        *MANY,
        "mark_page_dirty_many",
        "clear_dirty_log",
        "merge_dirty_log",
        "time_lookups",
        "Snapshot.gfn_to_hva_many",
    ],
)
def test_masked_array_raises_typeerror_and_marks_nothing(vm: VM, method: str, kind: str) -> None:
    """Masked elements have no value.  The message says how to convert the array."""
    before = digest(vm)
    call = {
        "clear_dirty_log": lambda words: vm.clear_dirty_log(0, 0, 192, words),
        "merge_dirty_log": lambda words: vm.merge_dirty_log(0, words),
        "time_lookups": lambda gfns: time_lookups(vm, "gfn_to_hva", gfns),
        "Snapshot.gfn_to_hva_many": vm.snapshot().gfn_to_hva_many,
    }.get(method) or getattr(vm, method)
    with pytest.raises(TypeError, match=r"is a masked array; use \w+\.compressed\(\)"):
        call(MASKED[kind])
    assert digest(vm) == before


def test_masked_array_is_refused_in_every_other_place(vm: VM) -> None:
    """Places: `out`, slots to load, regions to time, the array of a Snapshot."""
    before = digest(vm)
    for method in MANY:
        out = np.ma.array(out_for(method, 3), mask=[0, 1, 0])
        with pytest.raises(TypeError, match=r"out is a masked array; use out\.data"):
            getattr(vm, method)(np.arange(3, dtype=np.uint64), out)
        assert out.data.tolist() == [SENTINEL] * 3
    for call in (vm.load_memslots, lambda array: Snapshot(array, 0, 0)):
        for slots in (np.ma.array(rows()), np.ma.array(rows())[0]):
            with pytest.raises(TypeError, match=r"array is a masked array; use array\.compressed"):
                call(slots)
    with pytest.raises(TypeError, match="masked"):
        time_changes(vm, np.ma.array(np.zeros(2, REGION_DTYPE)))
    assert digest(vm) == before


# ---- claims to be large ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i2", ">u4", ">u8", "O"])
def test_repeated_elements_are_converted_once(vm: VM, dtype: str) -> None:
    """A stride of 0 repeats elements without memory of their own; a full copy would need far too much memory."""
    one, three = np.array([3]).astype(dtype), np.array([1, 7, 70]).astype(dtype)
    vm.mark_page_dirty_many(np.broadcast_to(one, 2**50))
    vm.mark_page_dirty_many(np.broadcast_to(three, (2**24, 2**24, 3)))
    assert vm.get_dirty_log(0).tolist()[:2] == [0b10101011, 1 << 6]
    with pytest.raises(InvalidRegionError, match=rf"has {2**45} words, not 1$"):
        vm.clear_dirty_log(0, 0, 64, np.broadcast_to(one, 2**45))
    with pytest.raises((ValueError, OverflowError), match="-1"):
        vm.mark_page_dirty_many(
            np.broadcast_to(np.array([-1]).astype(dtype.replace("u", "i")), 2**50)
        )


def misaligned(count: int, dtype: type) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    return np.zeros(count * size + 1, np.uint8)[1:].view(dtype)


@pytest.mark.parametrize("method", [*MANY, "mark_page_dirty_many"])
def test_misaligned_numbers_are_copied(vm: VM, method: str) -> None:
    """The answers are those of aligned numbers."""
    numbers = misaligned(3, np.uint64)
    numbers[:] = [0, 9, 300]
    got, want = getattr(vm, method)(numbers), getattr(vm, method)(numbers.copy())
    assert got is want is None or got.tolist() == want.tolist()


@pytest.mark.parametrize("shape", [(1,), (2, 3), (), (70,)])
@pytest.mark.parametrize("value", [-1, -(2**63)])
@pytest.mark.parametrize("method", [*MANY, "mark_page_dirty_many"])
def test_negative_int64_raises_valueerror_and_writes_nothing(
    vm: VM, method: str, value: int, shape: Any
) -> None:
    """Read as uint64 it would be a very large frame number."""
    before = digest(vm)
    numbers = np.zeros(shape, np.int64)
    numbers[(-1,) * numbers.ndim] = value
    out = out_for(method, shape)
    args = (numbers,) if method == "mark_page_dirty_many" else (numbers, out)
    with pytest.raises(ValueError, match="negative"):
        getattr(vm, method)(*args)
    assert (out == SENTINEL).all()
    assert digest(vm) == before


def negatives() -> dict[str, np.ndarray]:
    """Large arrays with one negative number, at places that a scan by pieces and axes may miss."""
    line = np.zeros(3 * 4096 + 5, np.int64)
    cases = {}
    for place in (0, 4095, 4096, 2 * 4096, -1):
        one = line.copy()
        one[place] = -7
        cases[f"line {place}"] = one
        cases[f"reversed {place}"] = one[::-1]
        cases[f"step {place}"] = np.repeat(one, 3)[::3]
        cases[f"transposed {place}"] = np.stack([line, one]).T
        cases[f"columns {place}"] = np.broadcast_to(one, (3, one.size)).T[:, ::2]
    cases["small and transposed"] = np.array([[0, 0, 0], [0, -7, 0]]).T
    cases["three axes"] = np.array([0] * 23 + [-7]).reshape(2, 3, 4).transpose(1, 0, 2)
    return cases


NEGATIVES = negatives()


@pytest.mark.parametrize("kind", NEGATIVES)
def test_negative_number_is_found_at_any_place(vm: VM, kind: str) -> None:
    """The message names the number.  Without it the array is valid."""
    numbers, before = NEGATIVES[kind], digest(vm)
    for method in (*MANY, "mark_page_dirty_many"):
        with pytest.raises(ValueError, match=r"must not be negative, but has -7$"):
            getattr(vm, method)(numbers)
    assert digest(vm) == before
    good = np.where(numbers < 0, 5, numbers)
    assert (vm.gfn_to_slot_id_many(good) == 0).all()


@pytest.mark.parametrize("shape", [(0,), (0, 2**40), (2**40, 0), (3, 0, 5), (2**20, 2**20, 0)])
def test_empty_array_over_a_negative_number_is_accepted(vm: VM, shape: tuple[int, ...]) -> None:
    """Some shapes combine a very long axis with an empty one."""
    numbers = np.lib.stride_tricks.as_strided(np.full(1, -1), shape, [8 * (n > 5) for n in shape])
    vm.mark_page_dirty_many(numbers)
    assert vm.gfn_to_hva_many(numbers).shape == shape


def test_broadcast_array_costs_only_its_own_elements(vm: VM) -> None:
    """The scan for negative numbers and the batch itself visit each element in memory once, not each repetition."""
    with pytest.raises(ValueError, match=r"must not be negative, but has -3$"):
        vm.mark_page_dirty_many(np.broadcast_to(np.int64(-3), 2**50))
    with pytest.raises(InvalidRegionError, match=rf"has {2**50} words, not 1$"):
        vm.clear_dirty_log(0, 0, 64, np.broadcast_to(np.int64(-1), 2**50))
    for dtype in (np.uint64, np.int64):
        numbers = np.array([1, 7, 70], dtype)
        vm.mark_page_dirty_many(np.broadcast_to(numbers, (2**24, 2**24, 3)))
        vm.mark_page_dirty_many(np.broadcast_to(numbers[:, None] + 1, (3, 2**40)))
        vm.mark_page_dirty_many(np.broadcast_to(numbers, (0, 3)) + 2)  # empty
        assert vm.get_dirty_log(0).tolist()[:2] == [0b110100111, 0b11000000]


def test_bitmap_of_wrong_size_is_refused_without_a_copy(vm: VM) -> None:
    """KVM's own checks come first."""
    for dtype in (np.uint64, np.int64):
        bitmap = np.broadcast_to(dtype(1), 2**45)
        with pytest.raises(InvalidRegionError, match=rf"has {2**45} words, not 1$"):
            vm.clear_dirty_log(0, 0, 64, bitmap)
        with pytest.raises(InvalidRegionError, match="not a multiple of 64"):
            vm.clear_dirty_log(0, 1, 64, bitmap)
        with pytest.raises(NoSuchSlotError):
            vm.clear_dirty_log(7, 0, 64, bitmap)
    vm.mark_page_dirty(64)
    assert vm.get_dirty_log(0).tolist()[:2] == [0b100001, 1]
    vm.clear_dirty_log(0, 0, 128, np.broadcast_to(np.uint64(1), 2))
    assert vm.get_dirty_log(0).tolist()[:2] == [0b100000, 0]


def bad_outs(method: str) -> dict[str, tuple[Any, type[Exception]]]:
    """Invalid `out` arguments for 6 answers, and the error that each one raises."""
    good = out_for(method, 6)
    other = np.uint32 if good.dtype == np.int32 else np.int64
    read_only = out_for(method, 6)
    read_only.flags.writeable = False
    return {
        "short": (out_for(method, 5), ValueError),
        "long": (out_for(method, 7), ValueError),
        "0-d": (out_for(method, ()), ValueError),
        "empty": (out_for(method, 0), ValueError),
        "2-d": (out_for(method, (6, 1)), ValueError),
        "of one": (out_for(method, 1), ValueError),
        "read-only": (read_only, ValueError),
        "broadcast": (np.broadcast_to(out_for(method, 1), 6), ValueError),
        "misaligned": (misaligned(6, good.dtype), ValueError),
        "swapped": (good.astype(good.dtype.newbyteorder()), TypeError),
        "other sign": (good.astype(other), TypeError),
        "float": (good.astype(np.float64), TypeError),
        "bool": (good.astype(bool), TypeError),
        "object": (good.astype(object), TypeError),
        "other size": (good.astype(np.int64 if good.dtype == np.int32 else np.uint32), TypeError),
        "structured": (good.view([("a", good.dtype)]), TypeError),
        "list": ([0] * 6, TypeError),
        "bytearray": (bytearray(48), TypeError),
        "array.array": (array.array("Q", [0] * 6), TypeError),
        "memoryview": (memoryview(good), TypeError),
        "int": (0, TypeError),
        "str": ("out", TypeError),
        "__array__": (Array(good), TypeError),
    }


@pytest.mark.parametrize("kind", bad_outs("gfn_to_hva_many"))
@pytest.mark.parametrize("method", MANY)
def test_bad_out_is_refused_and_not_written(vm: VM, method: str, kind: str) -> None:
    """The call fails before it writes any element."""
    out, error = bad_outs(method)[kind]
    before = bytes(memoryview(out)) if isinstance(out, bytearray | array.array) else repr(out)
    with pytest.raises(error, match=r"^out ") as caught:
        getattr(vm, method)(np.zeros(6, np.uint64), out)
    after = bytes(memoryview(out)) if isinstance(out, bytearray | array.array) else repr(out)
    assert after == before
    getattr(vm, method)(np.zeros(6, np.uint64), conversion(caught.value, out))


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda a: a,
    "reversed": lambda a: a[::-1],
    "step": lambda a: a[::3],
    "reversed step": lambda a: a[::-2],
    "2-d": lambda a: a.reshape(12, 10),
    "Fortran": lambda a: np.asfortranarray(a.reshape(12, 10)),
    "transposed": lambda a: a.reshape(12, 10).T,
    "3-d": lambda a: a.reshape(3, 4, 10),
    "3-d swapped": lambda a: a.reshape(3, 4, 10).swapaxes(0, 2),
    "column": lambda a: a.reshape(12, 10)[:, 3],
    "block": lambda a: a.reshape(12, 10)[2:7, 1:9:2],
    "0-d": lambda a: a[4:5].reshape(()),
    "empty": lambda a: a[:0],
    "empty 2-d": lambda a: a[:0].reshape(0, 7),
    "one": lambda a: a[3:4],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype),
    "broadcast": lambda a: np.broadcast_to(a[:5], (4, 5)),
    "int64": lambda a: a.astype(np.int64),
    "subclass": lambda a: a.view(np.recarray).view(np.ndarray),
    "ulonglong": lambda a: a.astype(np.ulonglong),
}


def expected(vm: VM, method: str, number: int) -> int:
    """The answer of a batch for one number, computed with the scalar calls."""
    gfn = number // PAGE if method == "gpa_to_hva_many" else number
    slot = vm.gfn_to_memslot(gfn)
    if method == "gfn_to_slot_id_many":
        return -1 if slot is None else slot.id
    if slot is None:
        return HVA_ERR_BAD
    if slot.flags & READONLY:
        return HVA_ERR_RO_BAD
    return vm.gpa_to_hva(number) if method == "gpa_to_hva_many" else vm.gfn_to_hva(number)


def some_numbers(method: str) -> np.ndarray:
    """120 gfns or gpas: inside slots, in holes, at the edges of slots."""
    edges = [0, 1, 199, 200, 2**20 - 1, 2**20, 2**20 + 63, 2**20 + 64, 2**40, 2**50]
    gfns = np.array([edges[i % 10] + i // 40 for i in range(120)], np.uint64)
    return gfns * np.uint64(PAGE) + np.uint64(9) if method == "gpa_to_hva_many" else gfns


@pytest.mark.parametrize(
    "out_layout", [None, *[name for name in LAYOUTS if name not in ("read-only", "broadcast")]]
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", MANY)
def test_any_layout_gives_the_answers_of_scalar_calls(
    vm: VM, method: str, layout: str, out_layout: str | None
) -> None:
    """Covers shapes and strides of the numbers and of `out`."""
    numbers = LAYOUTS[layout](some_numbers(method))
    out = None
    if out_layout is not None:
        out = LAYOUTS[out_layout](out_for(method, 120))
        if out.shape != numbers.shape or out.dtype.itemsize != out_for(method, 1).dtype.itemsize:
            out = (
                np.asfortranarray(out_for(method, numbers.shape))
                if numbers.ndim
                else out_for(method, ())
            )
        elif out.dtype.kind == "i" and method != "gfn_to_slot_id_many":
            out = out_for(method, numbers.shape)
    copy = numbers.copy()
    got = getattr(vm, method)(numbers, out)
    assert out is None or got is out
    assert got.shape == numbers.shape
    assert (numbers == copy).all()
    assert [int(n) for n in got.flat] == [expected(vm, method, int(n)) for n in numbers.flat]


@pytest.mark.parametrize("shift", [-9, -3, -1, 0, 1, 2, 70])
@pytest.mark.parametrize("length", [10, 200])
def test_out_that_overlaps_the_numbers_gives_right_answers(vm: VM, shift: int, length: int) -> None:
    """The answers are those of an `out` in separate memory."""
    memory = np.arange(400, dtype=np.uint64)
    at = 100
    numbers, out = memory[at : at + length], memory[at + shift : at + shift + length]
    want = vm.gfn_to_hva_many(numbers.copy())
    assert vm.gfn_to_hva_many(numbers, out) is out
    assert (out == want).all()


@pytest.mark.parametrize("view", ["reversed", "step", "transposed", "int32"])
def test_out_that_overlaps_with_another_stride_gives_right_answers(vm: VM, view: str) -> None:
    memory = np.arange(100, dtype=np.uint64)
    method = "gfn_to_slot_id_many" if view == "int32" else "gfn_to_hva_many"
    numbers, out = {
        "reversed": (memory, memory[::-1]),
        "step": (memory[:50], memory[::2]),
        "transposed": (memory.reshape(10, 10), memory.reshape(10, 10).T),
        "int32": (memory[:50], memory.view(np.int32)[:50]),
    }[view]
    want = getattr(vm, method)(numbers.copy())
    getattr(vm, method)(numbers, out)
    assert (out == want).all()


@pytest.mark.parametrize(
    "numbers",
    [
        array.array("Q", [0, 5, 300]),
        array.array("q", [0, 5, 300]),
        memoryview(np.array([0, 5, 300], np.uint64)),
        memoryview(array.array("Q", [0, 9, 5, 9, 300]))[::2],
        (ctypes.c_uint64 * 3)(0, 5, 300),
    ],
    ids=lambda value: type(value).__name__,
)
def test_buffer_is_accepted_as_array(vm: VM, numbers: Any) -> None:
    want = [HVA, HVA + 5 * PAGE, HVA_ERR_BAD]
    assert vm.gfn_to_hva_many(numbers).tolist() == want
    vm.manual_dirty_log_protect = 0
    vm.get_dirty_log(0)
    vm.mark_page_dirty_many(numbers)
    assert vm.get_dirty_log(0).tolist() == [1 | 1 << 5, 0, 0, 0]


def test_released_memoryview_raises(vm: VM) -> None:
    view = memoryview(array.array("Q", [1]))
    view.release()
    with pytest.raises((TypeError, ValueError)):
        vm.gfn_to_hva_many(view)


@pytest.mark.parametrize("shape", [(), (2, 1), (1, 1)])
def test_bitmap_that_is_not_one_dimensional_is_refused(vm: VM, shape: Any) -> None:
    """A dirty log has exactly one dimension."""
    before = digest(vm)
    with pytest.raises(ValueError, match="dimension"):
        vm.clear_dirty_log(0, 0, 64, np.ones(shape, np.uint64))
    assert digest(vm) == before


@pytest.mark.parametrize(
    "bitmap", [np.array([-1], np.int32), np.zeros(64, bool), [-1, 2**63], [1.0], b"12345678", 1]
)
def test_invalid_bitmap_is_refused(vm: VM, bitmap: Any) -> None:
    before = digest(vm)
    with pytest.raises((TypeError, ValueError, OverflowError), match="bitmap"):
        vm.clear_dirty_log(0, 0, 64, bitmap)
    assert digest(vm) == before


@pytest.mark.parametrize("bitmap", [np.arange(1, 9, dtype=np.uint64)[::2], np.array([1, 0, 0, 0])])
def test_strided_or_int64_bitmap_is_accepted(vm: VM, bitmap: np.ndarray) -> None:
    vm.clear_dirty_log(0, 0, 200, bitmap)
    assert vm.get_dirty_log(0)[0] == 1 << 5


@pytest.mark.parametrize("dtype", ["i8", ">i8", "u8", ">u8"])
def test_int64_bitmap_with_bit_63_is_accepted(vm: VM, dtype: str) -> None:
    """int64 holds the same 64 bits; a word with bit 63 set reads as a negative number."""
    vm.mark_page_dirty_many([62, 63])
    words = np.array([1 << 63 | 1, 0], np.uint64).astype(dtype)
    vm.clear_dirty_log(0, 0, 128, words)
    assert vm.get_dirty_log(0)[0] == 1 << 62 | 1 << 5


# ---- load_memslots --------------------------------------------------------------------------------


def rows(**fields: Any) -> np.ndarray:
    """Two valid rows for a load, with these fields replaced."""
    good = np.zeros(2, MEMSLOT_DTYPE)
    good["id"], good["base_gfn"], good["npages"] = [8, 9], [1000, 2000], 1
    for name, value in fields.items():
        good[name] = value
    return good


def without(name: str) -> np.ndarray:
    return rows()[[field for field in MEMSLOT_DTYPE.names if field != name]]


def with_format(name: str, format: str, values: Any) -> np.ndarray:
    """Valid rows, but one field has another type."""
    formats = [
        (field, format if field == name else MEMSLOT_DTYPE[field]) for field in MEMSLOT_DTYPE.names
    ]
    changed = rows().astype(formats)
    changed[name] = values
    return changed


BAD_LOADS: dict[str, tuple[Any, type[Exception], str]] = {
    "None": (
        None,
        TypeError,
        "fields base_gfn, npages, userspace_addr, id and optional flags and",
    ),
    "list": ([(8, 1)], TypeError, "structured"),
    "plain array": (np.zeros(3, np.uint64), TypeError, "structured .* not an array of uint64"),
    "__array__": (Array(np.zeros(2, MEMSLOT_DTYPE)), TypeError, "structured"),
    "0-d": (rows()[0:1].reshape(()), ValueError, "dimension"),
    "2-d": (rows().reshape(1, 2), ValueError, "dimension"),
    "a scalar": (rows()[0], TypeError, "structured"),
    "no id": (without("id"), ValueError, "'id': it needs base_gfn, .* id, and has base_gfn"),
    "no base_gfn": (without("base_gfn"), ValueError, "'base_gfn'"),
    "no npages": (without("npages"), ValueError, "'npages'"),
    "no userspace_addr": (without("userspace_addr"), ValueError, "'userspace_addr'"),
    "float": (with_format("npages", "f8", 1.0), TypeError, "'npages'"),
    "bool": (with_format("id", "b1", [0, 1]), TypeError, "'id'"),
    "object": (with_format("base_gfn", "O", [1, 2]), TypeError, "'base_gfn'"),
    "two in one field": (
        with_format("npages", "(2,)u8", 1),
        TypeError,
        "'npages' must be one integer",
    ),
    "negative": (
        with_format("base_gfn", "i8", [1, -1]),
        OverflowError,
        "entry 1: .*'base_gfn'.* not -1",
    ),
    "negative id": (with_format("id", "i4", [-1, 1]), OverflowError, "'id'"),
    "id of 2**32": (with_format("id", "u8", [1, 2**32]), OverflowError, "'id'"),
    "flags of 2**32": (with_format("flags", "i8", [0, 2**32]), OverflowError, "'flags'"),
    "other space": (rows(as_id=[0, 1]), ValueError, "entry 1 has as_id 1"),
}


@pytest.mark.parametrize("kind", BAD_LOADS)
def test_load_of_an_invalid_array_is_refused(vm: VM, kind: str) -> None:
    before = digest(vm)
    values, error, words = BAD_LOADS[kind]
    with pytest.raises(error, match=words):
        vm.load_memslots(values)
    assert digest(vm) == before


BAD_ENTRIES: dict[str, tuple[dict[str, Any], type[Exception], str, str]] = {
    "id": ({"id": [8, 32764]}, InvalidRegionError, "SLOT_ID", "32764"),
    "flags": ({"flags": [0, 8]}, InvalidRegionError, "FLAGS", "0x8"),
    "hva": ({"userspace_addr": [0, 1]}, InvalidRegionError, "HVA_ALIGN", "0x1"),
    "hva range": (
        {"userspace_addr": [0, 2**47]},
        InvalidRegionError,
        "HVA_RANGE",
        "0x800000000000",
    ),
    "no pages": ({"npages": [1, 0]}, InvalidRegionError, "NPAGES", "0 pages"),
    "many pages": ({"npages": [1, 2**31]}, InvalidRegionError, "NPAGES", "2147483648 pages"),
    "wrap": ({"base_gfn": [1000, 2**52]}, InvalidRegionError, "GPA_WRAP", "2\\*\\*64"),
    "gpa limit": ({"base_gfn": [1000, 2**40]}, InvalidRegionError, "GPA_LIMIT", "slot 9"),
    "memfd": ({"flags": [0, 4]}, GuestMemfdError, "GMEM_FD", "slot 9"),
    "overlap": ({"base_gfn": [1000, 5]}, RegionOverlapError, "OVERLAP", r"slot 9 .* slot 0 \["),
    "overlap each other": (
        {"base_gfn": 7000},
        RegionOverlapError,
        "OVERLAP",
        r"slot [89] .* slot [89] \[",
    ),
    "id is there": ({"id": [8, 1]}, RegionOverlapError, "DUPLICATE_ID", "slot 1"),
    "id twice": (
        {"id": 8},
        RegionOverlapError,
        "DUPLICATE_ID",
        "entries 0 and 1 both have id 8",
    ),
}


@pytest.mark.parametrize("kind", BAD_ENTRIES)
def test_refused_load_changes_nothing_and_names_the_entry(vm: VM, kind: str) -> None:
    fields, error, rule, words = BAD_ENTRIES[kind]
    before, values = digest(vm), rows(**fields)
    with pytest.raises(error, match=words) as caught:
        vm.load_memslots(values)
    assert caught.value.rule == rule
    assert "entry 1: " in str(caught.value)
    assert caught.value.slot == int(values["id"][1])
    assert digest(vm) == before
    vm.check()


def test_load_names_the_first_bad_entry(vm: VM) -> None:
    """Later bad entries and the engine's own order of staging make no difference."""
    kinds = [
        ({"flags": 8}, "FLAGS"),
        ({"npages": 0}, "NPAGES"),
        ({"id": 1}, "DUPLICATE_ID"),
        ({"id": 8}, "DUPLICATE_ID"),
        ({"base_gfn": 5}, "OVERLAP"),
        ({"base_gfn": 1000}, "OVERLAP"),
        ({"flags": GUEST_MEMFD}, "GMEM_FD"),
        ({"base_gfn": 2**40}, "GPA_LIMIT"),
        ({"base_gfn": 2**40 - 1, "npages": 2}, "GPA_LIMIT"),
    ]
    before = digest(vm)
    for (first, rule), (second, _) in itertools.product(kinds, repeat=2):
        load = np.zeros(4, MEMSLOT_DTYPE)
        load["id"], load["base_gfn"], load["npages"] = [8, 9, 10, 11], [1000, 2000, 3000, 4000], 1
        for row, values in ((1, first), (3, second)):
            for name, value in values.items():
                load[name][row] = value
        with pytest.raises(MemslotsError, match="entry 1: ") as caught:
            vm.load_memslots(load)
        assert caught.value.rule == rule
    assert digest(vm) == before
    vm.check()


def test_load_names_the_first_entry_beyond_the_limit() -> None:
    rows = np.zeros(3, MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"] = [1, 2, 3], [5, 2**28, 2**29], 1
    with VM(gpa_bits=36) as vm, pytest.raises(InvalidRegionError, match="entry 1: ") as caught:
        vm.load_memslots(rows)
    assert caught.value.rule == "GPA_LIMIT"


# ---- a snapshot's batch takes what the VM's takes ------------------------------------------------


@pytest.mark.parametrize(
    "gfns", [np.array([0.9]), np.array([True]), np.array(["1"]), np.array([-1])], ids=str
)
def test_snapshot_refuses_invalid_gfns(vm: VM, gfns: np.ndarray) -> None:
    """A silent conversion would turn floats into frame numbers, and negative numbers into very large ones."""
    with pytest.raises((TypeError, ValueError, OverflowError)):
        vm.snapshot().gfn_to_hva_many(gfns)


@pytest.mark.parametrize(
    "kind", ["float", "other size", "short", "long", "2-d", "read-only", "other sign"]
)
def test_snapshot_refuses_invalid_out(vm: VM, kind: str) -> None:
    """No answer is truncated or broadcast."""
    out, error = bad_outs("gfn_to_hva_many")[kind]
    before = repr(out)
    with pytest.raises(error):
        vm.snapshot().gfn_to_hva_many(np.zeros(6, np.uint64), out=out)
    assert repr(out) == before


# ---- the rules of KVM_SET_USER_MEMORY_REGION ------------------------------------------------------

SLOT = r"slot {slot}\b"
# By name: (arguments that differ from a valid new slot 5, rule, errno, pattern that the message matches).
REGIONS: dict[str, tuple[dict[str, int], str, int, str]] = {
    "id": ({"slot": 32764}, "SLOT_ID", errno.EINVAL, "32764"),
    "id far up": ({"slot": U32}, "SLOT_ID", errno.EINVAL, "4294967295 is not below 32764"),
    "flag 8": ({"flags": 8}, "FLAGS", errno.EINVAL, "0x8"),
    "INVALID": ({"flags": 1 << 16}, "FLAGS", errno.EINVAL, "0x10000"),
    "memfd that logs": (
        {"flags": GUEST_MEMFD | LOG},
        "FLAGS",
        errno.EINVAL,
        r"0x5 \(LOG_DIRTY_PAGES \| GUEST_MEMFD\) .* 0x1 \(LOG_DIRTY_PAGES\) is not allowed with "
        r"GUEST_MEMFD; allowed is 0x4 \(GUEST_MEMFD\)$",
    ),
    "no flag": (
        {"flags": 0x102},
        "FLAGS",
        errno.EINVAL,
        r"0x102 \(READONLY \| 0x100\) of slot 5: 0x100 is not allowed; allowed is "
        r"0x7 \(LOG_DIRTY_PAGES \| READONLY \| GUEST_MEMFD\)$",
    ),
    "memfd READONLY": ({"flags": GUEST_MEMFD | READONLY}, "FLAGS", errno.EINVAL, "0x6"),
    "size": ({"memory_size": PAGE + 1}, "SIZE_ALIGN", errno.EINVAL, "0x1001"),
    "gpa": ({"guest_phys_addr": 1}, "GPA_ALIGN", errno.EINVAL, "0x1 "),
    "hva": ({"userspace_addr": 8}, "HVA_ALIGN", errno.EINVAL, "0x8 "),
    "hva end": (
        {"userspace_addr": 2**47 - PAGE},
        "HVA_RANGE",
        errno.EINVAL,
        "0x7ffffffff000, 0x800000000000",
    ),
    "hva wraps": (
        {"userspace_addr": 2**64 - PAGE},
        "HVA_RANGE",
        errno.EINVAL,
        "0xfffffffffffff000",
    ),
    "memfd offset": (
        {"flags": GUEST_MEMFD, "guest_memfd_offset": 9},
        "GMEM_OFFSET",
        errno.EINVAL,
        "0x9 ",
    ),
    "memfd wraps": (
        {"flags": GUEST_MEMFD, "guest_memfd_offset": 2**64 - PAGE},
        "GMEM_OFFSET",
        errno.EINVAL,
        "0xfffffffffffff000",
    ),
    "space": ({"as_id": 2}, "AS_ID", errno.EINVAL, "space 2 is not below 2"),
    "gpa wraps": ({"guest_phys_addr": 2**64 - PAGE}, "GPA_WRAP", errno.EINVAL, r"2\*\*64"),
    "pages": ({"memory_size": 2**31 * PAGE}, "NPAGES", errno.EINVAL, "2147483648 pages"),
    "nothing to delete": (
        {"memory_size": 0},
        "NO_SUCH_SLOT",
        errno.EINVAL,
        "no slot 5 in address space 0",
    ),
    "memfd on a slot": (
        {"slot": 0, "flags": GUEST_MEMFD},
        "GMEM_EXISTING",
        errno.EINVAL,
        "GUEST_MEMFD",
    ),
    "other hva": ({"slot": 0, "userspace_addr": 0}, "HVA_CHANGE", errno.EINVAL, f"{HVA:#x} .* 0x0"),
    "grown": (
        {"slot": 0, "userspace_addr": HVA, "memory_size": 201 * PAGE},
        "SIZE_CHANGE",
        errno.EINVAL,
        "200 pages .* 201",
    ),
    "READONLY": (
        {"slot": 0, "userspace_addr": HVA, "memory_size": 200 * PAGE, "flags": READONLY},
        "FLAGS_TOGGLE",
        errno.EINVAL,
        "0x1, the call has 0x2",
    ),
    "overlap": (
        {"guest_phys_addr": 199 * PAGE, "memory_size": 2 * PAGE},
        "OVERLAP",
        errno.EEXIST,
        r"slot 5 \[0xc7000, 0xc9000\) overlaps slot 0 \[0x0, 0xc8000\) in address space 0",
    ),
    "move on another": (
        {
            "slot": 1,
            "guest_phys_addr": 0,
            "memory_size": 64 * PAGE,
            "userspace_addr": HVA,
            "flags": READONLY,
        },
        "OVERLAP",
        errno.EEXIST,
        r"slot 1 \[0x0, 0x40000\) overlaps slot 0 \[0x0, 0xc8000\) in address space 0",
    ),
    "no memfd": (
        {"flags": GUEST_MEMFD, "guest_memfd": 2**31 - 1},
        "GMEM_FD",
        errno.EBADF,
        "guest_memfd 2147483647 of slot 5 is not an open file",
    ),
    "beyond the guest": (
        {"guest_phys_addr": 2**52},
        "GPA_LIMIT",
        errno.EINVAL,
        "beyond 0x10000000000000,",
    ),
    "over the edge": (
        {"guest_phys_addr": 2**52 - PAGE, "memory_size": 2 * PAGE},
        "GPA_LIMIT",
        errno.EINVAL,
        r"\[0xffffffffff000, 0x10000000001000\) ends beyond 0x10000000000000,",
    ),
}
WITH_OTHER = {
    "GMEM_EXISTING": 0,
    "HVA_CHANGE": 0,
    "SIZE_CHANGE": 0,
    "FLAGS_TOGGLE": 0,
    "OVERLAP": 0,
}


def region(**values: int) -> dict[str, int]:
    """Arguments for a new slot 5 at gfn 10,000, with these values replaced."""
    return {"slot": 5, "guest_phys_addr": 10_000 * PAGE, "memory_size": PAGE} | values


@pytest.mark.parametrize("kind", REGIONS)
def test_region_that_breaks_a_rule_raises_with_rule_and_errno(vm: VM, kind: str) -> None:
    """The message gives the numbers, and the other slot where there is one."""
    values, rule, number, words = REGIONS[kind]
    before = digest(vm)
    with pytest.raises(MemslotsError, match=words) as caught:
        vm.set_user_memory_region(**region(**values))
    error = caught.value
    assert (error.errno, error.rule, error.slot) == (number, rule, region(**values)["slot"])
    assert rule == "AS_ID" or re.search(rf"slot {error.slot}\b", str(error))
    if rule in WITH_OTHER:
        assert error.other == vm.id_to_memslot(WITH_OTHER[rule])
    else:
        assert error.other is None
    assert digest(vm) == before
    vm.check()


def test_file_that_is_not_a_guest_memfd_is_refused(vm: VM, tmp_path: Path) -> None:
    """As in the kernel: EINVAL for an open file, EBADF for a closed file or one opened with O_PATH."""
    before = digest(vm)
    file, path = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path, os.O_PATH)
    closed = os.dup(file)
    os.close(closed)
    try:
        for fd, number, words in (
            (file, errno.EINVAL, "is an open file, but no guest_memfd"),
            (path, errno.EBADF, "is not an open file"),
            (closed, errno.EBADF, "is not an open file"),
            (-1, errno.EBADF, "is not an open file"),
            (-(2**31), errno.EBADF, "is not an open file"),
        ):
            with pytest.raises(
                GuestMemfdError, match=f"guest_memfd {fd} of slot 5 {words}"
            ) as caught:
                vm.set_user_memory_region(**region(flags=GUEST_MEMFD, guest_memfd=fd))
            assert (caught.value.errno, caught.value.rule) == (number, "GMEM_FD")
        # Without the flag the engine ignores the file.
        vm.set_user_memory_region(**region(guest_memfd=file))
    finally:
        os.close(file)
        os.close(path)
    vm.set_user_memory_region(5, guest_phys_addr=0, memory_size=0)
    assert digest(vm)[0] == before[0]


def test_null_bitmap_error_warns_about_lost_bits(vm: VM) -> None:
    """Bits are lost only if get_dirty_log() clears them: while manual_dirty_log_protect is off."""
    assert vm.manual_dirty_log_protect == 1
    for call in (
        lambda: vm.clear_dirty_log(0, 0, 64, None),
        lambda: vm._get_dirty_log_null(0),
    ):
        with pytest.raises(memslots.GuestAccessError, match="the log is as it was"):
            call()
    assert vm.get_dirty_log(0)[0] == 0b100001
    vm.manual_dirty_log_protect = 0
    with pytest.raises(memslots.GuestAccessError, match="the log is as it was"):
        vm.clear_dirty_log(0, 0, 64, None)
    with pytest.raises(memslots.GuestAccessError, match="bits are lost"):
        vm._get_dirty_log_null(0)
    assert not vm.get_dirty_log(0).any()


# Each entry also breaks the rules of all later entries; KVM's order decides which rule the error names.
ORDER = [
    ("SLOT_ID", {"slot": 40_000}),
    ("FLAGS", {"flags": 12}),
    ("SIZE_ALIGN", {"memory_size": 2**43 + 1}),
    ("GPA_ALIGN", {"guest_phys_addr": 2**64 - PAGE + 1}),
    ("HVA_ALIGN", {"userspace_addr": 2**64 - PAGE + 1}),
    ("HVA_RANGE", {"userspace_addr": 2**64 - PAGE}),
    ("GMEM_OFFSET", {"flags": GUEST_MEMFD, "guest_memfd_offset": 1}),
    ("AS_ID", {"as_id": 2}),
    ("GPA_WRAP", {"guest_phys_addr": 2**64 - PAGE}),
    ("NPAGES", {"memory_size": 2**43}),
]


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_first_broken_rule_in_kvm_order_names_the_error(vm: VM, first: int) -> None:
    values: dict[str, int] = {}
    for _, bad in reversed(ORDER[first:]):
        values |= bad
    with pytest.raises(InvalidRegionError) as caught:
        vm.set_user_memory_region(**region(**values))
    assert caught.value.rule == ORDER[first][0]


@pytest.mark.parametrize(
    ("args", "error", "rule"),
    [
        ((0, 0, 64, WORDS, 2), InvalidRegionError, "AS_ID"),
        ((32764, 0, 64, WORDS), InvalidRegionError, "SLOT_ID"),
        ((7, 1, 64, WORDS), InvalidRegionError, "FIRST_PAGE"),
        ((7, 0, 64, WORDS), NoSuchSlotError, "NO_SUCH_SLOT"),
        ((1, 0, 64, WORDS), NoSuchSlotError, "NO_DIRTY_LOG"),
        ((0, 256, 0, WORDS), InvalidRegionError, "CLEAR_RANGE"),
        ((0, 0, 72, WORDS), InvalidRegionError, "CLEAR_RANGE"),
        ((0, 192, 9, WORDS), InvalidRegionError, "CLEAR_RANGE"),
        ((0, 0, 64, None), memslots.GuestAccessError, "NULL_BUFFER"),
        ((0, 0, 64, np.zeros(2, np.uint64)), InvalidRegionError, "BITMAP_SIZE"),
        ((0, 0, 128, WORDS), InvalidRegionError, "BITMAP_SIZE"),
        ((0, 0, 0, WORDS), InvalidRegionError, "BITMAP_SIZE"),
    ],
)
def test_clear_dirty_log_that_breaks_a_rule_raises(
    vm: VM, args: tuple, error: type[Exception], rule: str
) -> None:
    before = digest(vm)
    with pytest.raises(error) as caught:
        vm.clear_dirty_log(*args)
    assert caught.value.rule == rule
    assert caught.value.slot == args[0]
    assert digest(vm) == before


@pytest.mark.parametrize(
    ("args", "error", "rule"),
    [
        ((0, 2), InvalidRegionError, "AS_ID"),
        ((32764,), InvalidRegionError, "SLOT_ID"),
        ((7,), NoSuchSlotError, "NO_SUCH_SLOT"),
        ((0, 1), NoSuchSlotError, "NO_SUCH_SLOT"),
        ((1,), NoSuchSlotError, "NO_DIRTY_LOG"),
    ],
)
@pytest.mark.parametrize("method", ["get_dirty_log", "_get_dirty_log_null"])
def test_get_dirty_log_that_breaks_a_rule_raises(
    vm: VM, method: str, args: tuple, error: type[Exception], rule: str
) -> None:
    with pytest.raises(error) as caught:
        getattr(vm, method)(*args)
    assert caught.value.rule == rule
    assert (caught.value.other is not None) == (rule == "NO_DIRTY_LOG")


@pytest.mark.parametrize("value", [2, 4, 5, U64])
def test_invalid_manual_dirty_log_protect_raises(vm: VM, value: int) -> None:
    with pytest.raises(InvalidRegionError, match=str(value)) as caught:
        vm.manual_dirty_log_protect = value
    assert caught.value.rule == "MANUAL_PROTECT"
    assert vm.manual_dirty_log_protect == 1


def test_load_with_a_repeated_id_names_both_entries(vm: VM) -> None:
    """The message mentions a slot of the VM only if the VM has that id."""
    load = np.zeros(6, MEMSLOT_DTYPE)
    load["id"], load["npages"] = [10, 5, 11, 12, 5, 13], 1
    load["base_gfn"] = 2**21 + np.arange(6)
    with pytest.raises(RegionOverlapError, match=r"entries 1 and 4 both have id 5$") as caught:
        vm.load_memslots(load)
    assert caught.value.slot == 5
    load["id"][4] = 1
    with pytest.raises(RegionOverlapError, match=r"entry 4: slot 1 is there already"):
        vm.load_memslots(load)
    load["id"][5] = 1  # two entries with the id of an existing slot: the error names the first one
    with pytest.raises(RegionOverlapError, match=r"entry 4: slot 1 is there already"):
        vm.load_memslots(load)


def test_add_listener_refuses_a_class(vm: VM) -> None:
    """The hooks of a class would get the change as `self`."""
    with pytest.raises(TypeError, match=r"not a class: did you mean Listener\(\)"):
        vm.add_listener(memslots.Listener)
    vm.add_listener(memslots.Listener())
    vm.set_user_memory_region(9, guest_phys_addr=2**40, memory_size=PAGE)
    assert vm.id_to_memslot(9) is not None


# ---- data frames ---------------------------------------------------------------------------------


def test_pandas_objects_are_accepted_as_numbers(vm: VM) -> None:
    """Covers a column, an Index, a nullable column and a whole frame; missing values and floats are refused."""
    pd = pytest.importorskip(
        "pandas", reason="pandas is not installed here: its objects are NOT tested"
    )
    gfns = [0, 5, 300]
    want = [HVA, HVA + 5 * PAGE, HVA_ERR_BAD]
    for values in (
        pd.Series(gfns),
        pd.Series(gfns, dtype="uint64"),
        pd.Series(gfns, dtype="UInt16"),
        pd.Series(gfns, dtype="object"),
        pd.Series([*gfns, 7], index=list("abcd"))[:3],
        pd.Index(gfns),
        pd.array(gfns, dtype="Int64"),
        pd.Series(gfns).array,
    ):
        got = vm.gfn_to_hva_many(values)
        assert type(got) is np.ndarray
        assert got.tolist() == want
        vm.mark_page_dirty_many(values)
    assert vm.gfn_to_hva_many(pd.DataFrame({"a": gfns, "b": gfns})).tolist() == [
        [n, n] for n in want
    ]
    for bad in (
        pd.Series([0, 5, None]),
        pd.Series([0, 5, None], dtype="Int64"),
        pd.Series([0.5]),
        pd.Series(["a"]),
        pd.Series([True]),
        pd.to_datetime(pd.Series(["2020-01-01"])),
    ):
        with pytest.raises(TypeError, match="gfns"):
            vm.gfn_to_hva_many(bad)
    frame = pd.DataFrame(rows())
    with pytest.raises(TypeError, match=r"not DataFrame; use array.to_records") as caught:
        vm.load_memslots(frame)
    vm.load_memslots(conversion(caught.value, frame))
    assert vm.id_to_memslot(9).base_gfn == 2000


def test_pyarrow_arrays_are_accepted_as_numbers(vm: VM) -> None:
    pa = pytest.importorskip(
        "pyarrow", reason="pyarrow is not installed here: its arrays are NOT tested"
    )
    for kind in (pa.uint64(), pa.int64(), pa.uint16(), pa.int8()):
        gfns = pa.array([0, 5, 100], kind)
        for values in (gfns, pa.chunked_array([gfns[:1], gfns[1:]])):
            assert vm.gfn_to_hva_many(values).tolist() == [HVA, HVA + 5 * PAGE, HVA + 100 * PAGE]
    for bad in (pa.array([0, None]), pa.array([0.5]), pa.array(["a"]), pa.array([True])):
        with pytest.raises(TypeError, match="gfns"):
            vm.gfn_to_hva_many(bad)
