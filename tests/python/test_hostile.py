# SPDX-License-Identifier: MIT
"""Arguments with wrong attributes, that change during the call, or larger than memory; objects made by force.

test_bad_input.py covers plainly wrong arguments.  Here every call either fails before it changes anything or answers as
for a plain argument, and never reads or writes out of bounds: `make asan` checks that, too.
"""

from __future__ import annotations

import array
import mmap
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
from scene import ATTEMPT, PAGE, SANITIZED, memslot, parameters, put, runs
from test_bad_input import (
    CALLS,
    HVA,
    INTEGERS,
    MANY,
    NO_INTEGERS,
    SPOTS,
    CallsBack,
    digest,
    make_vm,
    vm,
)

from memslots import (
    HVA_ERR_BAD,
    MEMSLOT_DTYPE,
    VCPU,
    VM,
    ClosedError,
    GfnNotMappedError,
    GuestAccessError,
    InvalidRegionError,
    MemorySlot,
    NoSuchSlotError,
    ReadSection,
    ReentrantChangeError,
    SlotHandle,
    Snapshot,
    Update,
    UpdateError,
    alloc,
)
from memslots._memslots import REGION_DTYPE, time_changes, time_lookups

__all__ = ["vm"]  # the fixture


# ---- the table of arguments is complete --------------------------------------------------------------------------

# Parameters that are not integers: arrays, objects, flags, the arguments of __exit__().
OTHERS = {
    *("gfns", "gpas", "out", "write", "array", "bitmap", "numbers", "lasts", "regions", "what"),
    *("listener", "vm", "vcpu", "old", "new", "slot of invalidate", "active", "fields"),
    *("exc_info", "exc_type", "exc", "traceback", "buffer", "readonly", "log_dirty"),
    *("data", "values", "words", "sizes", "starts", "ends"),
    *("layout", "coalesce", "max_slots", "keep_ids", "snapshot", "limits"),
    *("steps", "generation", "backings", "places", "type", "wanted", "with_ids"),
}
# Arguments with tests of their own: one takes a handle, one takes None, one needs a Mapping, two are bools.
APART = {
    ("Update.invalidate", "slot"),
    ("VM.map_buffer", "slot"),
    ("Mapping.move", "gpa"),
    ("VM.harvest_dirty", "clear"),
    ("VM.add_listener", "last"),
    ("Transaction.create", "slot"),
    ("Transaction.map_buffer", "slot"),
    ("Transaction.split", "new_id"),
}


def test_table_has_every_integer_argument() -> None:
    """test_bad_input.py replaces each of them in turn; the table must list a new method or argument."""
    tried = {(name.replace("VM.", ""), argument) for name, argument in SPOTS}
    missing = {
        (call, argument)
        for call, argument in parameters()
        if argument not in OTHERS
        and (call, argument) not in APART
        and (call.replace("VM.", ""), argument) not in tried
    }
    assert missing == set()
    assert len(SPOTS) * (len(INTEGERS) + len(NO_INTEGERS) + 6) >= 3000


def test_table_has_every_call() -> None:
    spoiled = {name for name, _ in SPOTS}
    assert spoiled == set(CALLS)


# ---- integers with a different value each time ---------------------------------------------------------------------


class Changing:
    """__index__ returns another integer each time."""

    def __init__(self, *values: int) -> None:
        self.values = list(values)

    def __index__(self) -> int:
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]


@pytest.mark.parametrize(("name", "argument"), SPOTS)
def test_index_of_an_argument_is_called_once(name: str, argument: str) -> None:
    """The call uses the value that it has checked: a second call of __index__ would return a value out of range."""
    call, values = CALLS[name]
    with make_vm() as fresh:
        changing = Changing(values[argument], -1)
        with suppress(GuestAccessError) if name == "_get_dirty_log_null" else nullcontext():
            call(fresh, **values | {argument: changing})
        assert changing.values == [-1]
        fresh.check()


def test_snapshot_reads_its_as_id_once(vm: VM) -> None:
    snapshot = vm.snapshot(Changing(1, 0))
    assert (snapshot.as_id, [slot.id for slot in snapshot]) == (1, [2, 3])


class Recursive:
    """__index__ passes the object itself to a call of the VM, without end."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self.call = call

    def __index__(self) -> int:
        return self.call(self)


@pytest.mark.parametrize(("name", "argument"), SPOTS)
def test_recursion_through_index_raises_recursionerror(name: str, argument: str) -> None:
    """The call changes nothing."""
    call, values = CALLS[name]
    with make_vm() as fresh:
        before = digest(fresh)
        with pytest.raises(RecursionError):
            call(fresh, **values | {argument: Recursive(fresh.gfn_to_hva)})
        assert digest(fresh) == before
        fresh.check()


# ---- subclasses of ndarray -----------------------------------------------------------------------------------------


def with_wrong(**overrides: Any) -> type[np.ndarray]:
    """A subclass of ndarray with these wrong attributes and methods."""
    return type("Overriding", (np.ndarray,), overrides)


HUGE = 10**7
WRONG_ATTRIBUTES: dict[str, Any] = {
    "shape": property(lambda self: (HUGE,)),
    "size": property(lambda self: HUGE),
    "ndim": property(lambda self: 7),
    "strides": property(lambda self: (1 << 40,)),
    "dtype": property(lambda self: np.dtype(np.uint64)),
    "flags": property(lambda self: np.zeros(1).flags),
    "copy": lambda self, *args: np.zeros(HUGE, np.uint64),
    "min": lambda self, *args, **kwargs: 1,
    "view": lambda self, *args, **kwargs: np.zeros(HUGE, np.uint64),
    "reshape": lambda self, *args, **kwargs: np.zeros(HUGE, np.uint64),
    "__array_finalize__": lambda self, other: None,
    "__array__": lambda self, *args, **kwargs: np.zeros(HUGE, np.uint64),
    "__array_function__": lambda self, *args, **kwargs: False,
    "__array_ufunc__": lambda self, *args, **kwargs: np.zeros(HUGE, np.uint64),
    "__len__": lambda self: HUGE,
    "__getitem__": lambda self, key: 0,
    "__setitem__": lambda self, key, value: None,
}


def numbers_of(kind: str, n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint64).view(with_wrong(**{kind: WRONG_ATTRIBUTES[kind]}))


@pytest.mark.parametrize("kind", WRONG_ATTRIBUTES)
@pytest.mark.parametrize("method", MANY)
def test_numbers_with_wrong_attributes_give_right_answers(vm: VM, method: str, kind: str) -> None:
    """The memory alone counts: the answers are those of the plain array, with and without `out`."""
    plain = np.arange(300, dtype=np.uint64)
    want = getattr(vm, method)(plain).tolist()
    numbers = numbers_of(kind, 300)
    assert np.asarray(getattr(vm, method)(numbers)).tolist() == want
    memory = np.arange(400, dtype=np.uint64)
    if method != "gfn_to_slot_id_many":  # `out` overlaps numbers that are still to be read
        shifted = getattr(vm, method)(memory[1:301].copy()).tolist()
        out = memory[:300]
        assert getattr(vm, method)(memory[1:301].view(type(numbers)), out) is out
        assert out.tolist() == shifted


@pytest.mark.parametrize("kind", WRONG_ATTRIBUTES)
@pytest.mark.parametrize("method", MANY)
def test_out_with_wrong_attributes_is_refused_or_filled(vm: VM, method: str, kind: str) -> None:
    """A short `out` is refused; an `out` of the right size is filled and returned."""
    dtype = np.int32 if method == "gfn_to_slot_id_many" else np.uint64
    numbers = np.arange(300, dtype=np.uint64)
    want = getattr(vm, method)(numbers).tolist()
    short = np.full(4, 77, dtype).view(with_wrong(**{kind: WRONG_ATTRIBUTES[kind]}))
    with pytest.raises(ValueError, match="shape"):
        getattr(vm, method)(numbers, short)
    fits = np.full(300, 77, dtype).view(with_wrong(**{kind: WRONG_ATTRIBUTES[kind]}))
    assert getattr(vm, method)(numbers, fits) is fits
    assert short.view(np.ndarray).tolist() == [77] * 4 if kind != "view" else True
    assert bytes(fits.data) == np.array(want, dtype).tobytes()


@pytest.mark.parametrize("kind", WRONG_ATTRIBUTES)
def test_other_arrays_with_wrong_attributes_work(vm: VM, kind: str) -> None:
    """Marks, bitmaps, lists of slots and timing work as with plain arrays."""
    before = digest(vm)
    vm.mark_page_dirty_many(numbers_of(kind, 6))
    assert vm.get_dirty_log(0)[0] == 0b111111
    vm.clear_dirty_log(0, 0, 64, np.array([0b011110], np.uint64).view(type(numbers_of(kind, 1))))
    assert digest(vm) == before
    rows = np.zeros(2, MEMSLOT_DTYPE)
    rows["id"], rows["base_gfn"], rows["npages"] = [8, 9], [1000, 2000], 1
    vm.load_memslots(rows.view(type(numbers_of(kind, 1))))
    assert [slot.id for slot in vm.memslots_in_gfn_range(1000, 2001)] == [8, 9]
    times, answers = time_lookups(vm, "gfn_to_hva", numbers_of(kind, 6))
    assert (len(times), answers.tolist()) == (6, [HVA + i * PAGE for i in range(6)])
    vm.check()


@pytest.mark.parametrize("method", MANY)
def test_negative_number_is_found_despite_a_wrong_min(vm: VM, method: str) -> None:
    numbers = np.array([-1], np.int64).view(with_wrong(min=WRONG_ATTRIBUTES["min"]))
    with pytest.raises(ValueError, match="negative"):
        getattr(vm, method)(numbers)


# ---- views of all kinds --------------------------------------------------------------------------------------------

STRUCT = np.zeros(5, [("gap", "u4"), ("gfn", "u8"), ("rest", "u1")])
ALIGNED = np.zeros(5, np.dtype([("gap", "u4"), ("gfn", "u8"), ("rest", "u1")], align=True))


@pytest.mark.parametrize("method", [*MANY, "mark_page_dirty_many"])
def test_field_of_a_structured_array_is_accepted(vm: VM, method: str) -> None:
    """A field is a strided array, misaligned in a packed structure.  The structure itself is refused."""
    before = digest(vm)
    want = getattr(vm, method)(np.zeros(5, np.uint64))
    for field in (ALIGNED["gfn"], STRUCT["gfn"]):
        got = getattr(vm, method)(field)
        assert got is want is None or got.tolist() == want.tolist()
    with pytest.raises(TypeError, match=r"gfns|gpas"):
        getattr(vm, method)(ALIGNED)
    assert digest(vm) == before


@pytest.mark.parametrize("method", MANY)
def test_repeated_and_overlapping_elements_give_right_answers(vm: VM, method: str) -> None:
    """Strides of 0 and sliding windows: a large array in little memory."""
    numbers = np.lib.stride_tricks.as_strided(np.array([3], np.uint64), (1000,), (0,))
    got = getattr(vm, method)(numbers)
    assert len(set(got.tolist())) == 1
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(50, dtype=np.uint64), 10)
    got = getattr(vm, method)(windows)
    assert got.shape == (41, 10)
    assert (got[1:, :-1] == got[:-1, 1:]).all()
    out = np.lib.stride_tricks.as_strided(np.zeros(1, got.dtype), (1000,), (0,))
    assert getattr(vm, method)(numbers, out)[0] == getattr(vm, method)(numbers[:1])[0]


def no_reserve(nbytes: int) -> mmap.mmap:
    """Maps zeroes that need no memory until they are written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    return mmap.mmap(-1, nbytes, flags=flags, prot=mmap.PROT_READ)


@pytest.mark.skipif(sys.platform != "linux", reason="MAP_NORESERVE is Linux's")
def test_lengths_beyond_32_bits_do_not_wrap(vm: VM) -> None:
    """2**32 + 1 is not 1, and 2**31 + 1 is not negative: the call refuses such arrays without reading them."""
    memory = no_reserve(8 * (2**32 + 8))
    words = np.frombuffer(memory, np.uint64)
    before = digest(vm)
    for n in (2**31 + 1, 2**32 + 1, 2**32 + 4):
        with pytest.raises(InvalidRegionError, match=str(n)) as caught:
            vm.clear_dirty_log(0, 0, 64, words[:n])
        assert caught.value.rule == "BITMAP_SIZE"
        for method in MANY:
            with pytest.raises(ValueError, match="shape"):
                getattr(vm, method)(
                    words[:n], np.zeros(n % 2**31, np.uint64 if "hva" in method else np.int32)
                )
        with pytest.raises(ValueError, match="lasts"):
            time_lookups(vm, "hva_range", words[:1], words[:n])
        with pytest.raises(ValueError, match=f"32764 entries, not {n}"):
            vm.load_memslots(
                np.lib.stride_tricks.as_strided(np.zeros(1, MEMSLOT_DTYPE), (n,), (0,))
            )
    assert digest(vm) == before
    del words


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="MAP_NORESERVE is Linux's")
def test_batch_longer_than_31_bits_is_looked_up(vm: VM) -> None:
    """The last answer is right; a stride of 0 keeps numbers and answers in one word each."""
    n = 2**31 + 1
    numbers = np.lib.stride_tricks.as_strided(np.array([3], np.uint64), (n,), (0,))
    out = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint64), (n,), (0,))
    hits = vm.stats()
    assert vm.gfn_to_hva_many(numbers, out)[-1] == HVA + 3 * PAGE
    after = vm.stats()
    looked = sum(after[key] - hits[key] for key in ("hits_last_used", "hits_search", "misses"))
    assert looked in (0, n)  # a batch that uses the index counts no lookups


def test_load_of_too_many_rows_is_refused_without_a_copy() -> None:
    """A broadcast array of 2**40 rows is refused without memory for the rows."""
    rows = np.lib.stride_tricks.as_strided(np.zeros(1, MEMSLOT_DTYPE), (2**40,), (0,))
    with VM(user_mem_slots=2**31 - 16) as vm, pytest.raises(ValueError, match="entries"):
        vm.load_memslots(rows)


# ---- arrays that change during a call ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array.array", "bytearray"])
def test_buffer_cannot_be_resized_during_a_call(vm: VM, kind: str) -> None:
    """__index__ of another argument runs before the call takes the buffer."""
    store = array.array("Q", range(300)) if kind == "array.array" else bytearray(8 * 300)
    numbers = store if kind == "array.array" else memoryview(store).cast("Q")

    class Resizes:
        def __index__(self) -> int:
            if kind == "array.array":
                del store[10:]
            return 0

    got = vm.gfn_to_hva_many(numbers, as_id=Resizes())
    assert len(got) == (10 if kind == "array.array" else 300)
    if kind == "bytearray":
        with pytest.raises(BufferError):
            store.clear()
        numbers.release()
        store.clear()


RESIZED = """
sys.setswitchinterval(1e-5)
import array
vm, stop, refusals = VM(), [], [0]
put(vm, 0, 0, 200)
numbers = array.array("Q", range(20000))

def resize():
    while not stop:
        try:
            numbers.append(1)
            numbers.pop()
        except BufferError:
            refusals[0] += 1

threads = [threading.Thread(target=resize) for _ in range(2)]
for thread in threads: thread.start()
end = time.monotonic() + 1
while time.monotonic() < end or not refusals[0]:  # until a thread has tried during a call, or the limit of runs()
    assert len(vm.gfn_to_hva_many(numbers)) >= 20000
    vm.mark_page_dirty_many(numbers)
stop.append(1)
for thread in threads: thread.join()
numbers.append(1)
vm.check()
print("well")
"""


def test_resize_by_another_thread_during_a_call_raises_buffererror() -> None:
    """The other thread gets the error; after the call it can resize the buffer again."""
    runs(RESIZED)


REWRITTEN = """
sys.setswitchinterval(1e-5)
from memslots._memslots import REGION_DTYPE, time_changes
vm, stop = VM(), []
rows = np.zeros(2000, MEMSLOT_DTYPE)
rows["id"], rows["base_gfn"], rows["npages"] = range(2000), np.arange(2000) * 10, 5
regions = np.zeros(200, REGION_DTYPE)
regions["guest_memfd"] = -1
regions["slot"], regions["guest_phys_addr"] = np.arange(200), np.arange(200) << 20

def scribble():
    n = 0
    while not stop:
        n += 1
        rows["npages"], rows["base_gfn"], rows["id"] = n % 30, np.arange(2000) * (n % 20), range(n, n + 2000)
        regions["memory_size"] = n % 3 * 4096
        regions["guest_phys_addr"] += 4096 * (n % 7)
        regions["flags"] = n % 4

thread = threading.Thread(target=scribble)
thread.start()
end, loaded = time.monotonic() + 1, 0
while time.monotonic() < end:
    vm = VM()
    try:
        vm.load_memslots(rows)
    except (MemslotsError, ValueError):
        pass
    vm.check()
    time_changes(vm, regions)
    vm.check()
stop.append(1)
thread.join()
print("well")
"""


def test_rows_rewritten_by_another_thread_are_validated_as_copied() -> None:
    """The call copies slots and regions before it validates them, and applies the copy."""
    runs(REWRITTEN)


# ---- objects made by force -----------------------------------------------------------------------------------------


def test_handle_without_an_update_is_refused(vm: VM) -> None:
    handle = SlotHandle.__new__(SlotHandle)
    for use in (lambda: handle.memslot, lambda: handle._use):
        with pytest.raises((UpdateError, AttributeError)):
            use()
    assert "ended" in repr(handle)
    assert handle == handle
    assert handle.update is None
    with vm.begin_update() as update:
        for use in (
            lambda: update.copy(handle),
            lambda: update.replace(handle, None),
            lambda: update.replace(None, handle),
            lambda: update.activate(handle, None),
            lambda: update.invalidate(handle),
        ):
            with pytest.raises(UpdateError):
                use()
        with pytest.raises(TypeError):
            update.invalidate(None)
    with pytest.raises(TypeError):
        SlotHandle()


def test_init_of_an_existing_slot_raises() -> None:
    """A slot is immutable, because it may be a key of a dict."""
    one = memslot(1, 0, 2, 3, HVA, 0)
    for _ in range(2):
        with pytest.raises(TypeError, match="never changes"):
            one.__init__(id=9, as_id=9, base_gfn=9, npages=9, userspace_addr=9)
    assert one == memslot(1, 0, 2, 3, HVA, 0)
    with make_vm() as vm, pytest.raises(TypeError, match="never changes"):
        vm.id_to_memslot(0).__init__(id=9, as_id=9, base_gfn=9, npages=9, userspace_addr=9)
    blank = MemorySlot.__new__(MemorySlot)
    assert blank.npages == 0


@pytest.mark.parametrize("cls", [VCPU, Update, ReadSection])
@pytest.mark.parametrize("what", [None, 0, object(), "vm", VM])
def test_constructor_of_a_part_without_a_vm_raises(cls: type, what: Any) -> None:
    with pytest.raises(TypeError):
        cls(what)
    with pytest.raises(TypeError):
        cls()


@pytest.mark.parametrize("cls", [VCPU, Update, ReadSection, SlotHandle, MemorySlot, Snapshot])
def test_final_class_cannot_be_subclassed(cls: type) -> None:
    with pytest.raises(TypeError):
        type("Sub", (cls,), {})


HALF_MADE = """
seen = []

class Late(VM):
    def __del__(self):
        seen.append((self.closed, len(self), self.nr_memslot_pages, self.manual_dirty_log_protect, repr(self)))
        for name in ("user_mem_slots", "gpa_bits", "hva_end_max", "backend"):
            refused(ClosedError, getattr, self, name)
        for call in (self.check, self.stats, self.memslots, self.snapshot, self.create_vcpu, self.read, self.__enter__,
                     self.begin_update, lambda: self.gfn_to_hva(0), lambda: put(self, 0, 0, 1),
                     lambda: self.load_memslots(np.zeros(1, MEMSLOT_DTYPE)), lambda: self.add_listener(Listener()),
                     lambda: VCPU(self), lambda: Update(self), lambda: setattr(self, "manual_dirty_log_protect", 1)):
            refused(ClosedError, call)
        self.close()

class Finds:
    def __index__(self):
        half = [o for o in gc.get_objects() if isinstance(o, Late)]
        for vm in half:
            vm.__del__()
        return 0

refused(ValueError, lambda: Late(address_spaces=0))
refused(TypeError, lambda: Late(address_spaces="1"))
refused(TypeError, lambda: Late(backend=1))
refused(NotImplementedError, lambda: Late(backend="none"))
refused(ValueError, lambda: Late(user_mem_slots=Finds()))
assert len(seen) >= 5 and set(seen) == {(True, 0, 0, 0, "<VM not made: __init__() was not called>")}, seen
print("well")
"""


def test_vm_whose_init_failed_raises_closederror() -> None:
    """Such a VM can be reached from __del__ of a subclass, or through the garbage collector."""
    runs(HALF_MADE)


@pytest.mark.parametrize(
    ("name", "argument"), [s for s in SPOTS if s[0] not in ("VM", "MemorySlot", "time_nothing")]
)
def test_vm_closed_by_an_argument_raises_or_is_empty(name: str, argument: str) -> None:
    """The argument closes the VM while the call converts its arguments."""
    call, values = CALLS[name]
    vm = make_vm()
    answer = None
    with suppress(ClosedError, ReentrantChangeError, NoSuchSlotError, GfnNotMappedError):
        answer = call(vm, **values | {argument: CallsBack(values[argument], vm.close)})
    if isinstance(answer, np.ndarray) and answer.dtype == np.uint64:
        assert (answer == HVA_ERR_BAD).all()
    assert not isinstance(answer, MemorySlot)


@pytest.mark.parametrize(
    "bad", [np.zeros(2, np.uint64), [], None, np.zeros((1, 1), REGION_DTYPE), 3]
)
def test_invalid_regions_for_timing_are_refused(vm: VM, bad: Any) -> None:
    before = digest(vm)
    with pytest.raises(TypeError, match="REGION_DTYPE"):
        time_changes(vm, bad)
    assert digest(vm) == before


def test_timing_refuses_a_foreign_vcpu_and_bad_options(vm: VM) -> None:
    with VM() as other, pytest.raises(ValueError, match="another VM"):
        time_lookups(vm, "gfn_to_hva", np.zeros(1, np.uint64), vcpu=other.create_vcpu())
    for what in ("", None, 1, "GFN_TO_HVA"):
        with pytest.raises(ValueError, match="what must be"):
            time_lookups(vm, what, np.zeros(1, np.uint64))
    for group in (0, 2**31):
        with pytest.raises((ValueError, OverflowError), match="group"):
            time_lookups(vm, "gfn_to_hva", np.zeros(1, np.uint64), group=group)


def test_threads_that_share_an_out_write_whole_answers(vm: VM) -> None:
    """Two kinds of batches write to one array: every entry is one of the two answers."""
    numbers = [np.arange(0, 5000, dtype=np.uint64) % np.uint64(200), np.full(5000, 300, np.uint64)]
    out = np.zeros(5000, np.uint64)
    threads = [threading.Thread(target=vm.gfn_to_hva_many, args=(n, out)) for n in numbers * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = vm.gfn_to_hva_many(numbers[0])
    assert ((out == want) | (out == HVA_ERR_BAD)).all()


def test_result_larger_than_memory_raises_and_changes_nothing(vm: VM) -> None:
    """The VM works normally afterwards."""
    numbers = np.lib.stride_tricks.as_strided(np.array([3], np.uint64), (2**58,), (0,))
    windows = np.lib.stride_tricks.as_strided(np.array([3], np.uint64), (2**29, 2**29), (8, 8))
    before = digest(vm)
    for call in (
        lambda: vm.gfn_to_hva_many(numbers),
        lambda: vm.gfn_to_slot_id_many(numbers),
        lambda: vm.mark_page_dirty_many(windows),
        lambda: time_lookups(vm, "gfn_to_hva", numbers),
    ):
        with pytest.raises((MemoryError, ValueError)):
            call()
    assert digest(vm) == before
    put(vm, 9, 10**6, 1)


# ---- no memory for Python -------------------------------------------------------------------------------------------

NO_MEMORY = """
class Refuser(Listener):
    def prepare(self, change): 0 if change.new is None or change.new.id != 66 else 1 / 0
vm = VM()
put(vm, 0, 0, 64, 1)
vm.add_listener(Refuser())
gfns = np.arange(100, dtype=np.uint64)
def failing(n):
    id = 1 + n
    def changed(): return vm.id_to_memslot(id) is not None
    outcomes = []
    for call in (lambda: put(vm, id, 1000 + 10 * id, 1), lambda: put(vm, 66, 900, 1), lambda: put(vm, 0, 64, 64, 1),
                 lambda: put(vm, 0, 0, 64, 1), lambda: vm.memslots(), lambda: vm.gfn_to_hva_many(gfns),
                 lambda: vm.get_dirty_log(0), lambda: vm.snapshot(), lambda: vm.hva_to_gfns(0),
                 lambda: vm.read().__enter__(), lambda: vm.create_vcpu().gfn_to_memslot(0),
                 lambda: vm.begin_update().__enter__().find(0),
                 lambda: put(vm, 5000, 0, 1)):
        outcomes.append(attempt(call, n))
        assert vm.id_to_memslot(66) is None and vm.id_to_memslot(5000) is None, (n, outcomes)
        vm.check()
    return outcomes.count("MemoryError")
sys.unraisablehook = lambda u: None
found = [failing(n) for n in range(60)]
assert sum(found) > 100, found
print("well")
"""


@pytest.mark.skipif(
    SANITIZED, reason="a sanitizer replaces the allocator, so none can be made to fail"
)
def test_failed_allocation_of_python_raises_memoryerror_or_nothing() -> None:
    """Lets the n-th allocation of Python fail, for every n, in every kind of call.  A change that a hook refuses stays
    refused, even without memory for the exception."""
    pytest.importorskip("_testcapi", reason="this Python has no _testcapi to fail allocations with")
    runs(ATTEMPT + NO_MEMORY)


NO_MEMORY_FOR_GUEST_MEMORY = """
memory, other = memslots.alloc(8 * PAGE), np.zeros(3 * PAGE, np.uint8)
other = other[-other.ctypes.data % PAGE:][:2 * PAGE]
vm = VM()
kept = vm.map_buffer(0, memory, slot=0, log_dirty=True)
gpas, counts = np.arange(0, 800, 8, dtype=np.uint64), np.full(4, 2, np.uint64)
objects = np.array([1], object)
words, out = np.zeros(1, np.uint64), bytearray(64)
def switch_log():
    kept.log_dirty = True
CALLS = [
    lambda: memslots.alloc(PAGE).close(), lambda: memslots.alloc(PAGE, shared=True, name="x").close(),
    lambda: vm.map_buffer(0x100000, other).unmap(), lambda: vm.map_buffer(0x200, other),
    lambda: vm.map_buffer(0, other, slot=0), lambda: vm.map_buffer(0x100000, objects), lambda: kept.view().release(),
    lambda: kept.move(64 * PAGE), lambda: kept.move(0), switch_log, lambda: repr(kept),
    lambda: vm.read_guest(0, 64), lambda: vm.readinto_guest(0, out), lambda: vm.write_guest(8, b"abc"),
    lambda: vm.read_u64(0), lambda: vm.write_u8(1, 1), lambda: vm.read_u64_many(gpas),
    lambda: vm.write_u64_many(gpas, gpas), lambda: vm.copy_guest(8, 80, 8), lambda: vm.fill_guest(0, 8, 0),
    lambda: vm.host_ranges(0, 2 * PAGE), lambda: vm.host_ranges_many(gpas[:4], counts),
    lambda: vm.memslots_in_gfn_range_many(counts - counts, counts), lambda: vm.harvest_dirty(),
    lambda: vm.merge_dirty_log(0, words), lambda: vm.pinned_by(memory), lambda: vm.set_flags(0, set=0),
    lambda: vm.free_slot_id(), lambda: vm.read_guest(900 * PAGE, 8), lambda: memory.close(),
]
def descriptors():
    return len(os.listdir("/proc/self/fd"))
before = descriptors()
def failing(n):
    outcomes = []
    for call in CALLS:
        outcomes.append(attempt(call, n))
        assert descriptors() == before, (n, outcomes)
        assert not vm.pinned_by(other), (n, outcomes)
        assert vm.pinned_by(memory) == ([vm.id_to_memslot(0)], 0, 0, 0) and len(vm) == 1, (n, outcomes)
        vm.check()
    return outcomes.count("MemoryError")
gc.disable()
found = [failing(n) for n in range(60)]
assert sum(found) > 200, found
kept.unmap()
memory.close()
print("well")
"""


@pytest.mark.skipif(
    SANITIZED, reason="a sanitizer replaces the allocator, so none can be made to fail"
)
def test_failed_allocation_of_python_leaks_no_buffer_slot_or_file() -> None:
    """Lets the n-th allocation of Python fail, for every n, in every call on guest memory.  A call that fails has made
    no slot, and holds no buffer, view or file.  numpy reports some failures as SystemError."""
    pytest.importorskip("_testcapi", reason="this Python has no _testcapi to fail allocations with")
    runs(ATTEMPT + NO_MEMORY_FOR_GUEST_MEMORY)


def test_as_id_that_resizes_the_numbers_is_detected() -> None:
    """__index__ of as_id runs before the call checks the arrays."""
    gfns, out = np.zeros(4, np.uint64), np.zeros(4, np.uint64)

    class Resizing:
        def __index__(self) -> int:
            gfns.resize(1_000_000, refcheck=False)
            return 0

    with VM() as vm, pytest.raises(ValueError, match="shape"):
        vm.gfn_to_hva_many(gfns, out=out, as_id=Resizing())
    assert not out.any()


class Resizing:
    """An array of ones.  Its conversion resizes another array in place."""

    def __init__(self, other: Any, n: int, size: int) -> None:
        self.other, self.n, self.size = other, n, size

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.other.resize(self.n, refcheck=False)
        return np.ones(self.size, np.uint64)


def write_many(vm: VM, gpas: Any, values: Any) -> int:
    vm.write_u64_many(gpas, values)
    return len(gpas)


SECOND_ARRAYS: dict[str, Callable[[VM, Any, Any], int]] = {
    "sizes": lambda vm, gpas, sizes: len(vm.host_ranges_many(gpas, sizes).holes),
    "ends": lambda vm, starts, ends: len(vm.memslots_in_gfn_range_many(starts, ends).offsets) - 1,
    "values": write_many,
}


@pytest.mark.parametrize("n", [3, 100_000])
@pytest.mark.parametrize("name", SECOND_ARRAYS)
def test_array_that_resizes_the_other_one_is_detected(name: str, n: int) -> None:
    """Its __array__ runs before the call takes a view of the other array."""
    with VM() as vm:
        vm.map_buffer(0, alloc(PAGE))
        first = np.zeros(10, np.uint64)
        assert SECOND_ARRAYS[name](vm, first, Resizing(first, n, 1)) == n
        first = np.zeros(10, np.uint64)
        words = rf"{name} has shape \(10,\), but .* has \({n},\)"
        with pytest.raises(ValueError, match=words):
            SECOND_ARRAYS[name](vm, first, Resizing(first, n, 10))


def test_error_names_the_number_of_the_address_space(vm: VM) -> None:
    class Zero:
        def __index__(self) -> int:
            return 0

    for call in vm.gfn_to_hva, vm.gpa_to_hva, vm.gfn_to_hva_prot:
        with pytest.raises(GfnNotMappedError, match="of address space 0"):
            call(2**40, Zero())


# ---- collectors and threads inside an update ---------------------------------------------------------------------

COLLECTED_INSIDE = """
def old_handle(u, h): return u.active[-1]
def of_the_other_set(u, h): return u.inactive[-1]
def found(u, h): return u.find(299)
def draft(u, h): return u.copy(h, base_gfn=9999)
def invalid(u, h): return u.invalidate(h)

def ends_inside(make, threshold):
    "Making a handle may run the collector: a __del__ then ends the run, frees its slots and begins the next run."
    vm = VM()
    for n in range(300):
        put(vm, n, n, 1)
    u = vm.begin_update()
    ran = []
    class Ends:
        def __del__(self):
            gc.disable()
            u.__exit__(ValueError, None, None)
            for n in range(100, 300):
                put(vm, n, 0, 0)
            u.__enter__()
            ran.append(True)
    u.__enter__()
    handle = u.find(298)
    gc.collect()
    gc.disable()
    ring = [Ends()]
    ring.append(ring)
    del ring
    gc.set_threshold(threshold)
    gc.enable()
    made = None
    try:
        made = make(u, handle)
    except UpdateError:
        pass
    gc.enable()
    gc.collect()
    assert ran == [True]
    if made is not None and make in (old_handle, of_the_other_set):
        try:
            known = made.memslot.id < 100  # such handles belong to the run that the collector began
        except UpdateError:
            known = True
        assert known, (make, threshold)
    elif made is not None:
        assert refused(UpdateError, lambda: made.memslot).rule == "HANDLE", (make, threshold)
    u.__exit__(ValueError, None, None)
    vm.check()

for make in (old_handle, of_the_other_set, found, draft, invalid):
    for threshold in (*range(1, 30), 100, 250):
        ends_inside(make, threshold)
print("well")
"""


def test_handle_made_while_the_collector_ends_the_run_is_safe() -> None:
    """The handle is either invalid or belongs to the current run; it never refers to a freed slot."""
    runs(COLLECTED_INSIDE)


SHARED_UPDATE = """
sys.setswitchinterval(1e-5)
vm = VM()
for n in range(4):
    put(vm, n, n, 1)
u, stop, let_in = vm.begin_update(), threading.Event(), []
def enters_and_swaps():
    while not stop.is_set():
        with u:
            time.sleep(0)
            u.swap()
            u.swap()
            assert len(u.active) == 4
def uses_only():
    while not stop.is_set():
        for use in (lambda: u.active, lambda: u.find(1), lambda: u.copy(None, id=9, npages=1)):
            try:
                let_in.append(use())
            except MemslotsError:
                pass
owners, other = [threading.Thread(target=enters_and_swaps) for _ in range(2)], threading.Thread(target=uses_only)
for t in (*owners, other): t.start()
time.sleep(1)
stop.set()
for t in (*owners, other): t.join()
assert not let_in, len(let_in)
vm.check()
print("well")
"""


def test_only_the_owner_of_a_shared_update_may_use_it() -> None:
    """Two threads enter the update in turn.  Leaving must not clear an owner that has entered meanwhile.  A third
    thread never gets access."""
    runs(SHARED_UPDATE)


DEAD_UPDATER = """
def ends_inside_update():
    u.__enter__()
    kept.append(u.find(0))
    u.replace(kept[0], None)

def suspended():
    with u:
        kept.append(u.find(0))
        u.invalidate(kept[0])
        yield
def ends_in_a_generator():
    generators.append(suspended())
    next(generators[0])

def ends_inside_section():
    ends_inside_update()
    u.swap()
    vm.read().__enter__()

for end_thread in (ends_inside_update, ends_in_a_generator, ends_inside_section):
    vm, kept, generators = VM(), [], []
    for n in range(4):
        put(vm, n, n, 1)
    u = vm.begin_update()
    t = threading.Thread(target=end_thread)
    t.start()
    t.join()
    put(vm, 9, 9, 1)  # must not wait for the ended thread
    assert len(vm) == 5 and vm.id_to_memslot(0).is_invalid is False, end_thread
    own = vm.begin_update().__enter__()
    for use in (lambda: u.active, lambda: u.inactive, lambda: u.find(0), u.swap, lambda: u.copy(None, id=7, npages=1),
                lambda: u.replace(None, own.find(0)), lambda: u.__exit__(None, None, None),
                lambda: u.__exit__(ValueError, None, None), lambda: u.invalidate(kept[0]), lambda: kept[0].memslot):
        assert refused(MemslotsError, use).rule in ("UPDATE_OWNER", "HANDLE")
    own.__exit__(None, None, None)
    def in_another_thread(): refused(MemslotsError, lambda: u.active)
    t = threading.Thread(target=in_another_thread)
    t.start()
    t.join()
    for generator in generators:
        assert refused(MemslotsError, generator.close).rule == "UPDATE_OWNER"
    with u:  # the update can be used again; handles of the lost run cannot
        assert len(u.active) == 5
        refused(UpdateError, lambda: kept[0].memslot)
    vm.check()

vm = VM()
put(vm, 0, 0, 1)
for n in range(200):  # deleting the object frees the rest of the update
    u = vm.begin_update()
    t = threading.Thread(target=u.__enter__)
    t.start()
    if n % 2: t.join()
    else: t.join(); del u
    with vm.begin_update(): pass
    if n == 9: blocks = vm.stats()["blocks"]
assert vm.stats()["blocks"] == blocks, (vm.stats()["blocks"], blocks)
for n in range(200):  # the object is freed while its thread ends
    u = VM().begin_update()
    t = threading.Thread(target=u.__enter__)
    t.start(); t.join()
    del u
print("well")
"""


def test_update_of_an_ended_thread_is_rolled_back() -> None:
    """As with a dropped update.  The object then has no owner, and any thread may enter it again."""
    runs(DEAD_UPDATER)
