# SPDX-License-Identifier: MIT
"""The exceptions: one class for each errno, one message for each rule; messages name both parties."""

from __future__ import annotations

import copy
import errno
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scene import memslot

import memslots
from memslots import MemslotsError, _memslots, errors
from memslots.errors import Request, from_errno, refused
from memslots.layout import STEP_DTYPE

PAGE = 4096

# errno, rule or None -> class and its built-in base class
CLASSES = [
    (errno.EINVAL, None, memslots.InvalidRegionError, ValueError),
    (errno.EEXIST, None, memslots.RegionOverlapError, ValueError),
    (errno.ENOENT, None, memslots.NoSuchSlotError, LookupError),
    (errno.ENOMEM, None, memslots.OutOfMemoryError, MemoryError),
    (errno.EFAULT, None, memslots.GuestAccessError, ValueError),
    (errno.EDEADLK, None, memslots.ReentrantChangeError, RuntimeError),
    (errno.EBUSY, None, memslots.ReentrantChangeError, RuntimeError),
    (errno.EBADF, None, memslots.ClosedError, ValueError),
    (errno.EBADF, "GMEM_FD", memslots.GuestMemfdError, ValueError),
    (errno.ENOSYS, None, memslots.NotSupportedError, NotImplementedError),
    (errno.ENXIO, None, memslots.NotSupportedError, NotImplementedError),
    (errno.EIO, None, memslots.ForkedError, RuntimeError),
    (errno.EUCLEAN, None, memslots.InvariantError, AssertionError),
    (errno.EEXIST, "LISTENER_EXISTS", memslots.ListenerError, ValueError),
    (errno.EEXIST, "LAST_LISTENER", memslots.ListenerError, ValueError),
    (errno.ENOENT, "NO_SUCH_LISTENER", memslots.ListenerError, ValueError),
    (errno.EACCES, "LISTENER_REFUSED", memslots.ListenerError, ValueError),
    (errno.EINVAL, "HANDLE", memslots.UpdateError, RuntimeError),
    (errno.EINVAL, "SETS_DIFFER", memslots.UpdateError, RuntimeError),
]
OTHER = memslot(3, 0, 0x180, 0x100, 0x7000, 1)
ALL_CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, MemslotsError)
]


def header_rules() -> list[str]:
    """The names of the table MS_RULES in memslots.h, in its order."""
    header = Path(memslots.get_include(), "memslots.h")
    if not header.exists():  # the package runs from its sources and has no installed header
        header = Path(__file__).parents[2] / "src/_core/include/memslots.h"
    return re.findall(r"^\tRULE\((\w+),", header.read_text(), re.MULTILINE)


RULES = header_rules()
REQUEST = Request(
    slot=7,
    as_id=1,
    guest_phys_addr=0x100000,
    memory_size=0x100000,
    userspace_addr=0x7F0000000000,
    flags=9,
    guest_memfd=44,
    guest_memfd_offset=0x5001,
    first_page=65,
    num_pages=66,
    value=77,
    gpa=0x123456,
    done=9999,
)
# Words of the message for REQUEST with the limit 4321 and OTHER as the other party.
WORDS = {
    "SLOT_ID": ["slot 7", "4321"],
    "FLAGS": ["0x9", "slot 7", hex(4321)],
    "SIZE_ALIGN": ["memory_size 0x100000", "slot 7", "4096"],
    "GPA_ALIGN": ["guest_phys_addr 0x100000", "slot 7", "4096"],
    "HVA_ALIGN": ["userspace_addr 0x7f0000000000", "slot 7", "4096"],
    "HVA_RANGE": ["[0x7f0000000000, 0x7f0000100000)", "slot 7", hex(4321)],
    "GMEM_OFFSET": ["guest_memfd_offset 0x5001", "slot 7", "0x100000"],
    "AS_ID": ["address space 1", "4321"],
    "GPA_WRAP": ["[0x100000, 0x200000)", "slot 7", "2**64"],
    "NPAGES": ["slot 7", "256 pages", "4321"],
    "NO_SUCH_SLOT": ["slot 7", "address space 1"],
    "TOTAL_PAGES": ["slot 7", "2**64"],
    "GMEM_EXISTING": ["slot 7", "GUEST_MEMFD"],
    "HVA_CHANGE": ["slot 7", "0x7000", "0x7f0000000000"],
    "SIZE_CHANGE": ["slot 7", "256 pages", "resized to 256"],
    "FLAGS_TOGGLE": ["slot 7", "0x1", "0x9"],
    "OVERLAP": [
        "slot 7 [0x100000, 0x200000) overlaps slot 3 [0x180000, 0x280000) in address space 1"
    ],
    "GMEM_FD": ["slot 7", "44"],
    "GPA_LIMIT": ["slot 7 [0x100000, 0x200000)", hex(4321)],
    "NO_MEMORY": ["memory", "nothing was changed"],
    "LISTENER_REFUSED": ["prepare", "nothing was changed"],
    "LISTENER_EXISTS": ["listener", "there already"],
    "LAST_LISTENER": ["another listener", "at most one"],
    "NO_SUCH_LISTENER": ["listener", "not there"],
    "NO_DIRTY_LOG": ["slot 7", "address space 1"],
    "FIRST_PAGE": ["first_page 65", "4321"],
    "CLEAR_RANGE": ["[65, 131)", "slot 7", "4321", "64"],
    "BITMAP_SIZE": ["77", "4321"],
    "NULL_BUFFER": ["bitmap"],
    "DUPLICATE_ID": ["slot 7", "slot 3 [0x180000, 0x280000)"],
    "MANUAL_PROTECT": ["0, 1 or 3", "77"],
    "READ_SECTION": ["read section"],
    "HOOK": ["inside a hook", "same VM"],
    "HOOK_BUSY": ["hook of another VM"],
    "UPDATE": ["this thread", "begin_update"],
    "UPDATE_OWNER": ["another thread", "begin_update"],
    "FORKED": ["parent"],
    "CLOSED": ["closed"],
    "HANDLE": ["set"],
    "SETS_DIFFER": ["rolled back"],
    "BACKEND": ["backend"],
    "INTERRUPTED": ["wait", "nothing was changed"],
    "STRUCT_SIZE": ["4321", "older"],
    "BACKING_RANGE": ["[0x7f0000000000, 0x7f0000100000)", "slot 7", hex(4321)],
    "BACKING_READONLY": ["slot 7", "READONLY"],
    "NO_FREE_SLOT": ["4321", "address space 1", "user_mem_slots"],
    "GUEST_HOLE": ["0x123456", "address space 1", "no slot", "9999"],
    "GUEST_READONLY": ["0x123456", "slot 3", "READONLY", "9999"],
    "GUEST_RAW": ["0x123456", "slot 3", "map_buffer()", "dereference_raw_addresses", "9999"],
    "CACHE_RANGE": ["cache", "4321"],
    "STEP_KIND": ["kind", "4321", "77"],
    "SPLIT": ["0x100000", "slot 3 [0x180000, 0x280000)"],
    "MERGE_PLACE": ["slot 7 [0x100000, 0x200000)", "slot 3 [0x180000, 0x280000)", "guest memory"],
    "MERGE_HVA": ["slot 7 [0x7f0000000000, 0x7f0000100000)", "slot 3 [0x7000, 0x107000)"],
    "MERGE_FLAGS": ["slot 7", "0x9", "slot 3", "0x1"],
    "MERGE_BACKING": ["slot 7", "slot 3", "map_buffer()"],
    "GUEST_FAULT": ["0x123456", "slot 3", "truncated", "9999"],
}


def test_header_has_unique_rules() -> None:
    assert len(RULES) >= 41
    assert len(set(RULES)) == len(RULES)


def test_binding_has_the_rules_of_the_header() -> None:
    """The binding reads the names from the core at import; the number of a rule is its place in the table."""
    assert dict(enumerate(RULES, 1)) == _memslots._RULES


@pytest.mark.parametrize("rule", RULES)
def test_message_of_each_rule_names_numbers_and_parties(rule: str) -> None:
    """The message names the numbers of the request, the limit and the other party, and has no full stop."""
    error = refused(errno.EINVAL, rule, 4321, OTHER, REQUEST)
    message = error.args[1]
    for words in WORDS[rule]:
        assert words in message
    assert error.rule == rule
    assert error.slot == 7
    assert error.other is OTHER
    assert not message.endswith((".", "\n"))
    assert str(error) == f"[Errno {error.errno}] {message}"
    placed = refused(errno.EINVAL, rule, 4321, OTHER, REQUEST, "entry 5: ")
    assert placed.args[1] == f"entry 5: {message}"


def test_each_rule_has_exactly_one_message() -> None:
    """Compares the names in the table of messages with those in the header."""
    assert set(errors._MESSAGES) == set(RULES)
    assert set(WORDS) == set(RULES)


@pytest.mark.parametrize(("number", "rule", "cls", "builtin"), CLASSES)
def test_each_errno_has_its_class_and_built_in_base(
    number: int, rule: str | None, cls: type[MemslotsError], builtin: type[Exception]
) -> None:
    """An error is a MemslotsError, an OSError and an instance of the built-in class."""
    error = from_errno(number, "words", 5, OTHER, rule)
    assert type(error) is cls
    assert isinstance(error, MemslotsError)
    assert isinstance(error, OSError)
    assert isinstance(error, builtin)
    assert (error.errno, error.strerror, error.slot, error.other, error.rule) == (
        number,
        "words",
        5,
        OTHER,
        rule,
    )
    with pytest.raises(builtin, match="words"):
        raise error
    with pytest.raises(OSError, match="words"):
        raise error


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTTY, 0, 12345])
def test_errno_without_a_class_gives_the_base_class(number: int) -> None:
    assert type(from_errno(number, "words")) is MemslotsError
    assert from_errno(number, "words").errno == number


def test_hole_and_read_only_errors_are_guest_access_errors() -> None:
    """KVM reports both a hole and a READONLY slot as EFAULT."""
    for cls, builtin in (
        (memslots.GfnNotMappedError, LookupError),
        (memslots.ReadOnlySlotError, PermissionError),
    ):
        assert issubclass(cls, memslots.GuestAccessError)
        assert issubclass(cls, ValueError)
        assert issubclass(cls, builtin)
    assert not issubclass(memslots.GfnNotMappedError, PermissionError)
    assert not issubclass(memslots.ReadOnlySlotError, LookupError)


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_every_class_is_public_and_documented(cls: type[MemslotsError]) -> None:
    assert getattr(memslots, cls.__name__) is cls
    assert cls.__name__ in memslots.__all__
    assert cls.__doc__
    assert cls.__module__ == "memslots.errors"


def same(a: MemslotsError, b: MemslotsError) -> bool:
    """Whether two errors have the same class and the same attributes."""
    return type(a) is type(b) and [
        (e.args, e.errno, e.strerror, e.slot, e.other, e.rule, str(e), vars(e)) for e in (a,)
    ] == [(e.args, e.errno, e.strerror, e.slot, e.other, e.rule, str(e), vars(e)) for e in (b,)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_pickled_error_is_equal(cls: type[MemslotsError], protocol: int) -> None:
    """An error keeps its class and all attributes in another process."""
    error = cls(errno.EINVAL, "words", 5, OTHER, "OVERLAP")
    if cls is memslots.InvariantError:
        error.invariant = "R2"
    assert same(pickle.loads(pickle.dumps(error, protocol)), error)
    assert same(copy.copy(error), error)


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_error_without_details_has_none_as_attributes(cls: type[MemslotsError]) -> None:
    error = cls(errno.EIO, "words")
    assert (error.slot, error.other, error.rule, error.filename) == (None, None, None, None)
    assert same(pickle.loads(pickle.dumps(error)), error)


def test_invariant_error_has_an_empty_invariant_by_default() -> None:
    assert memslots.InvariantError(errno.EUCLEAN, "words").invariant == ""


def test_raised_errors_can_be_pickled() -> None:
    """Covers an error with another party and an error of a lookup."""
    with memslots.VM() as vm:
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=PAGE)
        with pytest.raises(memslots.RegionOverlapError) as overlap:
            vm.set_user_memory_region(1, guest_phys_addr=0, memory_size=PAGE)
        with pytest.raises(memslots.GfnNotMappedError) as hole:
            vm.gfn_to_hva(9)
    for caught in (overlap, hole):
        assert same(pickle.loads(pickle.dumps(caught.value)), caught.value)
    assert overlap.value.other == memslot(0, 0, 0, 1, 0)


# ---- the words of lookups -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "unit", "name"), [("gfn_to_hva", 1, "gfn"), ("gpa_to_hva", PAGE, "gpa")]
)
def test_lookup_errors_name_number_and_space(method: str, unit: int, name: str) -> None:
    with memslots.VM(address_spaces=2) as vm:
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=PAGE, flags=2, as_id=1)
        with pytest.raises(
            memslots.GfnNotMappedError, match=f"{name} {5 * unit:#x} .*address space 1"
        ) as hole:
            getattr(vm, method)(5 * unit, 1)
        with pytest.raises(
            memslots.ReadOnlySlotError, match=f"{name} 0x0 .*address space 1.*READONLY"
        ) as only:
            getattr(vm, method)(0, as_id=1)
        vcpu = vm.create_vcpu()
        vcpu.as_id = 1
        with pytest.raises(
            memslots.GfnNotMappedError, match=f"{name} {5 * unit:#x} .*address space 1"
        ):
            getattr(vcpu, method)(5 * unit)
        with pytest.raises(memslots.ReadOnlySlotError, match="READONLY"):
            getattr(vcpu, method)(0)
    assert (hole.value.errno, only.value.errno) == (errno.EFAULT, errno.EFAULT)


# ---- every rule can be met ----------------------------------------------------------------------

# Rules that no call from Python can break, and why.
UNREACHABLE = {
    "CACHE_RANGE": "the binding has no gfn_to_hva_cache",
    "STRUCT_SIZE": "the binding is compiled with the header of the library",
    "TOTAL_PAGES": "2**31 slots of 2**31 pages are the most, 2**62 pages of 64 bits",
}
ELSEWHERE = {
    "BACKING_RANGE": "tests/core/test_backing.c",
    "BACKING_READONLY": "tests/core/test_backing.c",
    "NO_FREE_SLOT": "tests/core/test_short_forms.c",
    "GUEST_HOLE": "tests/core/test_guest_memory.c",
    "GUEST_READONLY": "tests/core/test_guest_memory.c",
    "GUEST_RAW": "tests/core/test_guest_memory.c",
    "GUEST_FAULT": "tests/core/test_guest_memory.c",
    "FORKED": "test_threads.py: it takes a fork",
    "INTERRUPTED": "tests/core/test_vm.c: in Python what the signal handler raised comes instead",
    "LISTENER_REFUSED": "tests/core: a listener in Python refuses by its own exception",
    "NO_MEMORY": "test_vm.py: it takes a limit on the address space of the process",
}


def vm_with_slot() -> memslots.VM:
    vm = memslots.VM()
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=100 * PAGE, flags=1)
    return vm


def set_region(**values: int) -> object:
    values = {"slot": 0, "guest_phys_addr": 0, "memory_size": 100 * PAGE, "flags": 1} | values
    return vm_with_slot().set_user_memory_region(**values)


def load(*ids: int) -> object:
    rows = np.zeros(len(ids), memslots.MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"] = ids, [1000 + n for n in range(len(ids))], 1
    return vm_with_slot().load_memslots(rows)


def clear(first: int, num: int, words: int | None) -> object:
    bitmap = None if words is None else np.zeros(words, np.uint64)
    return vm_with_slot().clear_dirty_log(0, first, num, bitmap)


def protect() -> None:
    vm_with_slot().manual_dirty_log_protect = 2


def in_section() -> None:
    vm = vm_with_slot()
    with vm.read():
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0)


def in_hook() -> None:
    vm = vm_with_slot()

    class Changer(memslots.Listener):
        def prepare(self, change: memslots.Change) -> None:
            vm.set_user_memory_region(5, guest_phys_addr=0, memory_size=0)

    vm.add_listener(Changer())
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0)


def in_update() -> None:
    vm = vm_with_slot()
    with vm.begin_update():
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0)


def half_done() -> None:
    with vm_with_slot().begin_update() as update:
        update.replace(update.find(0), None)


def wrong_handle() -> None:
    with vm_with_slot().begin_update() as update:
        update.replace(None, update.find(0))


def after_close() -> None:
    vm = vm_with_slot()
    vm.close()
    vm.check()


def not_a_tree() -> None:
    others = [name for name in memslots.backends() if name != "tree"]
    if not others:
        pytest.skip("this build has no other backend")
    with memslots.VM(backend=others[0]).begin_update():
        pass


def in_hook_of_another() -> None:
    """A begin_update() there would fail at its first step, so it is refused."""
    vm, other = vm_with_slot(), vm_with_slot()

    class Beginner(memslots.Listener):
        def prepare(self, change: memslots.Change) -> None:
            with other.begin_update():
                pass

    vm.add_listener(Beginner())
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0)


def by_another_thread() -> None:
    with vm_with_slot().begin_update() as update, ThreadPoolExecutor(1) as pool:
        pool.submit(update.swap).result()


def same_listener() -> None:
    vm, listener = vm_with_slot(), memslots.Listener()
    vm.add_listener(listener)
    vm.add_listener(listener)


def strange_listener() -> None:
    vm_with_slot().remove_listener(memslots.Listener())


def second_last_listener() -> None:
    vm = vm_with_slot()
    vm.add_listener(memslots.Listener(), last=True)
    vm.add_listener(memslots.Listener(), last=True)


def in_transaction(method: str, *args: int) -> None:
    """Slots 0 to 5 of 16 pages.  Slot k has its neighbour k + 1 in guest memory; 0 and 1 also in host memory."""
    vm = memslots.VM()
    halves = np.frombuffer(memslots.alloc(32 * PAGE), np.uint8).reshape(2, -1)
    for id, hva in enumerate((0x100000, 0x110000, 0x300000)):
        vm.set_user_memory_region(
            id, guest_phys_addr=id * 0x10000, memory_size=0x10000, userspace_addr=hva, flags=int(id == 1)
        )
    for id, half in enumerate(halves, 4):
        vm.map_buffer(id * 0x10000, half, slot=id)
    with vm.transaction() as t:
        getattr(t, method)(*args)


def unknown_kind() -> None:
    step = np.zeros(1, STEP_DTYPE)
    step["kind"] = 99
    memslots.VM()._change_many(step)


REACHED = {
    "STEP_KIND": unknown_kind,
    "SPLIT": lambda: in_transaction("split", 0, 0),
    "MERGE_PLACE": lambda: in_transaction("merge", 0, 2),
    "MERGE_HVA": lambda: in_transaction("merge", 1, 2),
    "MERGE_FLAGS": lambda: in_transaction("merge", 0, 1),
    "MERGE_BACKING": lambda: in_transaction("merge", 4, 5),
    "SLOT_ID": lambda: set_region(slot=32764),
    "FLAGS": lambda: set_region(flags=8),
    "SIZE_ALIGN": lambda: set_region(memory_size=1),
    "GPA_ALIGN": lambda: set_region(guest_phys_addr=1),
    "HVA_ALIGN": lambda: set_region(userspace_addr=1),
    "HVA_RANGE": lambda: set_region(userspace_addr=2**47),
    "GMEM_OFFSET": lambda: set_region(flags=4, guest_memfd_offset=1),
    "AS_ID": lambda: set_region(as_id=1),
    "GPA_WRAP": lambda: set_region(guest_phys_addr=2**64 - PAGE),
    "NPAGES": lambda: set_region(memory_size=2**31 * PAGE),
    "NO_SUCH_SLOT": lambda: set_region(slot=1, memory_size=0),
    "GMEM_EXISTING": lambda: set_region(flags=4),
    "HVA_CHANGE": lambda: set_region(userspace_addr=PAGE),
    "SIZE_CHANGE": lambda: set_region(memory_size=PAGE),
    "FLAGS_TOGGLE": lambda: set_region(flags=3),
    "OVERLAP": lambda: set_region(slot=1),
    "GMEM_FD": lambda: set_region(slot=1, guest_phys_addr=2**40, flags=4),
    "GPA_LIMIT": lambda: set_region(guest_phys_addr=2**52),
    "LISTENER_EXISTS": same_listener,
    "LAST_LISTENER": second_last_listener,
    "NO_SUCH_LISTENER": strange_listener,
    "NO_DIRTY_LOG": lambda: memslots_log_off(),
    "FIRST_PAGE": lambda: clear(1, 64, 1),
    "CLEAR_RANGE": lambda: clear(0, 101, 2),
    "BITMAP_SIZE": lambda: clear(0, 64, 2),
    "NULL_BUFFER": lambda: clear(0, 64, None),
    "DUPLICATE_ID": lambda: load(8, 8),
    "MANUAL_PROTECT": protect,
    "READ_SECTION": in_section,
    "HOOK": in_hook,
    "HOOK_BUSY": in_hook_of_another,
    "UPDATE": in_update,
    "UPDATE_OWNER": by_another_thread,
    "CLOSED": after_close,
    "HANDLE": wrong_handle,
    "SETS_DIFFER": half_done,
    "BACKEND": not_a_tree,
}


def memslots_log_off() -> None:
    vm = memslots.VM()
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=PAGE)
    vm.get_dirty_log(0)


@pytest.mark.parametrize("rule", REACHED)
def test_rule_is_reached(rule: str) -> None:
    with pytest.raises(MemslotsError) as caught:
        REACHED[rule]()
    assert caught.value.rule == rule


def test_no_rule_is_forgotten() -> None:
    assert set(REACHED) | set(UNREACHABLE) | set(ELSEWHERE) == set(RULES)
