# SPDX-License-Identifier: MIT
"""Plays a vector file on a VM and compares every result with the recorded one.

The VM is any object with the methods of `memslots.VM`: an engine, or the kernel through `memslots.kvm.KvmVM`.  The
kernel translates nothing without a guest (`translates` is False), so it is compared less:

* An engine: every result is compared.  A load becomes a translation, a store a translation and a mark_page_dirty.
  Calls that have no effect on an engine (vCPU, irqchip, ...) return 0.
* The kernel: loads, stores and the calls that set up a guest are counted as not compared.  The dirty log of a slot then
  lacks the recorded stores.  Of later dirty logs of this slot only result and size are compared (`by_size`), until a
  harvest, a delete or the end of logging makes the logs equal again.  `KvmVM` raises NotCompared for a change that it
  does not pass to the kernel, and for each call that depends on it.  These are counted as not compared too.

A QEMU trace does not contain the guest's stores.  It contains the dirty pages that QEMU got from a dirty log
(`observed`).  The player marks them dirty just before it reads the log, and compares only the result of the call.
"""

import errno
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np

from ..constants import PAGE_SIZE, MemFlag
from .regions import ARENA_BASE, Regions, machine_of, region_of
from .runs import pages_of, runs_to_words, words_to_runs
from .schema import (
    CHANGES,
    NAMES,
    SCOPE,
    errno_of,
    format_address,
    parse_address,
    parse_number,
    parts_of_access,
    unpack_slot,
)
from .vectors import Op, VectorError, VectorFile, too_many_logged

MANUAL_PROTECT = "manual_dirty_log_protect2"
PROGRESS_STEP = 256  # operations between two calls of `progress`
SET_FLAGS = int(MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY)  # of KVM_SET_USER_MEMORY_REGION
SURPLUS_RUNS = 8  # a mismatch shows at most this many runs more than were recorded

Timings = dict[str, list[int]]
Out = dict[str, Any] | None
Outcome = tuple[Any, Out]  # `ret` and `out`, as in the file


class BackendError(Exception):
    """The requested backend is not available here; the message gives the reason."""


class Mismatch(NamedTuple):
    """A result that differs from the recorded one; both have the form {"ret": ..., "out": ...}."""

    path: str
    line: int
    op: str
    expected: dict[str, Any]
    got: dict[str, Any]

    def __str__(self) -> str:
        expected, got = json.dumps(self.expected), json.dumps(self.got)
        return f"{self.path}:{self.line}: {self.op}: expected {expected}, got {got}"


@dataclass
class PlayResult:
    """The result of one file.  `ops` counts all its operations, compared or not."""

    path: str
    ops: int
    mismatches: list[Mismatch] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> operations not compared
    out_of_scope: int = 0
    by_size: int = 0  # dirty logs with only result and size compared
    notes: list[str] = field(default_factory=list)

    @property
    def not_compared(self) -> int:
        return self.skipped.total()


class _NotPlayedError(Exception):
    """This VM cannot perform the operation; the message is the reason."""


class _OutOfScopeError(Exception):
    """The operation belongs to an optional feature."""


def play(
    file: VectorFile,
    vm: Any,
    *,
    timings: Timings | None = None,
    progress: Callable[[int], object] | None = None,
) -> PlayResult:
    """Play all operations on `vm`, which has no slots yet.

    `timings` receives the nanoseconds of each call of the VM, by kind: create, delete, move, flags, no-op, refused,
    get_dirty, clear_dirty, mark, lookup.  `progress` is called from time to time with the number of further operations
    that are done.
    """
    result = PlayResult(file.path, len(file.ops))
    if file.scope != SCOPE:
        result.out_of_scope = len(file.ops)
        return result
    player = _Player(file, vm, result, timings)
    for n, op in enumerate(file.ops, 1):
        player.play(op)
        if progress and n % PROGRESS_STEP == 0:
            progress(PROGRESS_STEP)
    if progress:
        progress(len(file.ops) % PROGRESS_STEP)
    return result


# ---- logs that are incomplete on the kernel -----------------------------------------------------


class _IncompleteLogs:
    """The slots whose log lacks recorded stores, which the kernel cannot make without a guest."""

    def __init__(self) -> None:
        self._slots: set[int] = set()
        self._manual = False

    def __contains__(self, slot: int) -> bool:
        return slot in self._slots

    def follow(self, op: Op, recorded: Regions) -> None:
        """Follow one operation.  Call this for each operation, before `recorded` changes."""
        kind, f = op.kind, op.fields
        if kind in ("write", "host_write") and f.get("out", {}).get("wrote"):
            self._slots.update(recorded.logged_at(parse_number(f["gpa"])))
        elif kind == "access" and f["write"]:
            for gpa, _ in parts_of_access(parse_number(f["gpa"]), f["len"]):
                self._slots.update(recorded.logged_at(gpa))
        elif kind == "enable_cap" and f["ret"] == 0:
            self._manual = bool(parse_number(f["arg"]) & 1)
        elif self._clears_log(op):
            self._slots.discard(f["slot"])

    def _clears_log(self, op: Op) -> bool:
        """Whether this operation clears or removes the recorded log, so that both logs are equal again."""
        if op.kind == "get_dirty":
            return not self._manual and op.fields["ret"] in (0, "EFAULT")
        if op.kind not in CHANGES or op.fields["ret"] != 0:
            return False
        return not region_of(op.fields).is_logged


# ---- one operation ------------------------------------------------------------------------------


class _Player:
    def __init__(self, file: VectorFile, vm: Any, result: PlayResult, timings: Timings | None):
        self.vm = vm
        self.file = file
        self.result = result
        self.timings = timings
        self.caps = _caps(file.header)
        self.is_engine = getattr(vm, "translates", True)
        self.machine = machine_of(file.header)
        self.recorded = Regions()
        self.accepted = Regions()  # the changes that this VM accepted
        self.incomplete = _IncompleteLogs()
        self.not_played: tuple[type[Exception], ...] = (_NotPlayedError, _OutOfScopeError)
        self.ns = 0  # the time of the last call
        if not self.is_engine:
            from ..kvm import NotCompared

            self.not_played += (NotCompared,)
            result.notes += _differing_limits(vm, file.header)

    def play(self, op: Op) -> None:
        if op.kind in CHANGES:
            self._bound_logs(op)
        try:
            got = self._outcome(op)
        except _OutOfScopeError:
            self.result.out_of_scope += 1
        except self.not_played as e:
            self.result.skipped[_reason(e)] += 1
        else:
            self._compare(op, *got)
            self._follow_vm(op, got[0])
        self._follow(op)

    def _bound_logs(self, op: Op) -> None:
        """Limit the pages under dirty logging.

        The reader checks recorded changes.  This VM may also accept a change that was recorded as refused.
        """
        slot, new = op.fields["slot"], region_of(op.fields)
        pages = self.accepted.logged_after(slot, new, self.machine)
        if wrong := too_many_logged(pages, self.file.limits):
            raise VectorError(self.file.path, op.line, f"{op.kind}: {wrong}")

    def _outcome(self, op: Op) -> Outcome:
        """Perform the operation.  An exception is a result too; only an OSError can equal a recorded result."""
        try:
            ret, out = _HANDLERS[op.kind](self, op)
        except self.not_played:
            raise
        except OSError as e:
            ret, out = errno.errorcode.get(e.errno or 0, f"{type(e).__name__}: {e}"), None
        except Exception as e:  # any other error of an engine is a wrong result
            ret, out = f"{type(e).__name__}: {e}", None
        if self.timings is not None:
            self._note_time(op, ret)
        return ret, out

    def _compare(self, op: Op, ret: Any, out: Out) -> None:
        expected_ret, expected_out = op.fields["ret"], op.fields.get("out")
        if op.kind == "get_dirty":
            expected_out, out = self._comparable_logs(op, expected_out, out)
        if _same_ret(ret, expected_ret) and _same_out(out, expected_out):
            return
        expected, got = _result(expected_ret, expected_out), _result(ret, out)
        self.result.mismatches.append(Mismatch(self.result.path, op.line, op.kind, expected, got))

    def _comparable_logs(self, op: Op, expected: Out, got: Out) -> tuple[Out, Out]:
        if "observed" in op.fields:
            return None, None
        if op.fields["slot"] in self.incomplete and op.fields["ret"] == 0:
            self.result.by_size += 1
            return _size_alone(expected), _size_alone(got)
        return expected, got

    def _follow(self, op: Op) -> None:
        if not self.is_engine:
            self.incomplete.follow(op, self.recorded)
        if op.kind in CHANGES and op.fields["ret"] == 0:
            self.recorded.change(op.fields["slot"], region_of(op.fields))

    def _follow_vm(self, op: Op, ret: Any) -> None:
        if op.kind in CHANGES and ret == 0:
            self.accepted.change(op.fields["slot"], region_of(op.fields))

    # ---- calls and their time ----

    def _do(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Make a call that must return None.  Any other result, such as a status, is an error."""
        if (returned := self._call(call, *args, **kwargs)) is not None:
            raise TypeError(f"{call.__name__} returned {returned!r}, not None")

    def _call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.ns = 0
        start = perf_counter_ns()
        try:
            return call(*args, **kwargs)
        finally:
            self.ns = perf_counter_ns() - start

    def _note(self, kind: str) -> None:
        """Add the time of the last call to the timings.  If the operation made no call, add nothing."""
        if self.timings is not None and self.ns:
            self.timings.setdefault(kind, []).append(self.ns)
        self.ns = 0

    def _note_time(self, op: Op, ret: Any) -> None:
        if op.kind in CHANGES:
            slot, new = op.fields["slot"], region_of(op.fields)
            self._note("refused" if ret != 0 else self.recorded.kind_of_change(slot, new))
        elif op.kind in ("get_dirty", "clear_dirty"):
            self._note(op.kind)
        self.ns = 0

    # ---- changes ----

    def set(self, op: Op) -> Outcome:
        """Perform KVM_SET_USER_MEMORY_REGION, which has two flags.

        The kernel checks the flags itself; for an engine this method does.
        """
        if self.is_engine and op.fields["flags"] & ~SET_FLAGS:
            return "EINVAL", None
        return self._set_region(op, {})

    def set2(self, op: Op) -> Outcome:
        if op.fields.get("gmem", -1) != -1:
            raise _OutOfScopeError
        offset = parse_number(op.fields.get("gmem_off", 0))
        return self._set_region(op, {"guest_memfd": -1, "guest_memfd_offset": offset})

    def _set_region(self, op: Op, more: dict[str, int]) -> Outcome:
        f = op.fields
        slot, as_id = unpack_slot(f["slot"])
        self._do(
            self.vm.set_user_memory_region,
            slot,
            guest_phys_addr=parse_number(f["gpa"]),
            memory_size=parse_number(f["size"]),
            userspace_addr=parse_address(f["hva"], ARENA_BASE),
            flags=f["flags"],
            as_id=as_id,
            **more,
        )
        return 0, None

    def set_fault(self, op: Op) -> Outcome:
        self._engine_only("a NULL argument")
        return "EFAULT", None

    def create_gmem(self, op: Op) -> Outcome:
        raise _OutOfScopeError

    # ---- dirty logs ----

    def get_dirty(self, op: Op) -> Outcome:
        slot, as_id = unpack_slot(op.fields["slot"])
        if op.fields.get("buf") == "fault":
            self._do(self.vm._get_dirty_log_null, slot, as_id=as_id)
            return 0, None
        if self.is_engine and "observed" in op.fields:
            self._mark_observed(op)
        words = self._call(self.vm.get_dirty_log, slot, as_id=as_id)
        if not isinstance(words, np.ndarray) or words.dtype != np.uint64 or words.ndim != 1:
            raise TypeError(f"get_dirty_log returned {type(words).__name__}, not uint64 words")
        recorded = op.fields.get("out", {}).get("dirty", [])
        dirty = words_to_runs(words, len(recorded) + SURPLUS_RUNS)
        return 0, {"bytes": 8 * len(words), "dirty": dirty}

    def _mark_observed(self, op: Op) -> None:
        slot = self.recorded.slots.get(op.fields["slot"])
        if slot is not None:
            base, (_, as_id) = slot.gpa // PAGE_SIZE, unpack_slot(op.fields["slot"])
            for pages in pages_of(op.fields["observed"]["dirty"]):
                self._do(self.vm.mark_page_dirty_many, pages + np.uint64(base), as_id=as_id)

    def clear_dirty(self, op: Op) -> Outcome:
        f = op.fields
        slot, as_id = unpack_slot(f["slot"])
        first = parse_number(f["first"])
        self._do(self.vm.clear_dirty_log, slot, first, f["num"], self._bits(f), as_id=as_id)
        return 0, None

    def _bits(self, f: dict[str, Any]) -> np.ndarray | None:
        """Return the bitmap, or None for a bad pointer.

        No slot has more pages than the limit, so a larger `num` is refused before the bitmap is read.
        """
        unread = f.get("buf") == "fault" or f["num"] > self.file.limits.logged_pages
        return None if unread else runs_to_words(f.get("bits", []), f["num"])

    # ---- capabilities, and calls that set up a guest ----

    def enable_cap(self, op: Op) -> Outcome:
        if op.fields["cap"] != MANUAL_PROTECT:
            raise _OutOfScopeError
        self.vm.manual_dirty_log_protect = parse_number(op.fields["arg"])
        return 0, None

    def check_cap(self, op: Op) -> Outcome:
        cap = op.fields["cap"]
        if not self.is_engine:
            return self.vm.check_extension(cap), None
        address_spaces = getattr(self.vm, "address_spaces", 1)
        own = {
            "nr_memslots": getattr(self.vm, "user_mem_slots", self.machine.user_mem_slots),
            "multi_address_space": address_spaces if address_spaces > 1 else 0,
            MANUAL_PROTECT: 3,
        }
        return own.get(cap, self.caps.get(cap, 0)), None

    def platform(self, op: Op) -> Outcome:
        self._engine_only("calls that set up a guest")
        return 0, None

    # ---- loads and stores ----

    def read(self, op: Op) -> Outcome:
        self._needs_guest()
        hva, _ = self._translate(parse_number(op.fields["gpa"]))
        return 0, {"hva": _hva_text(hva)}

    def write(self, op: Op) -> Outcome:
        self._needs_guest()
        gpa = parse_number(op.fields["gpa"])
        hva, wrote = self._translate(gpa)
        if wrote:
            self._mark(gpa)
        return 0, {"hva": _hva_text(hva), "wrote": wrote}

    def access(self, op: Op) -> Outcome:
        """Perform a load or store by parts, one for each page in ascending order.  A part is in RAM or is one exit."""
        self._needs_guest()
        exits, data = [], b""
        for gpa, nbytes in parts_of_access(parse_number(op.fields["gpa"]), op.fields["len"]):
            hva, writable = self._translate(gpa)
            store = op.fields["write"]
            if hva is None or (store and not writable):
                exits.append([f"{gpa:#x}", nbytes, "w" if store else "r"])
                data += b"\xee" * nbytes
            elif store:
                self._mark(gpa)
            else:
                data += _pattern(hva - ARENA_BASE, nbytes)
        out: dict[str, Any] = {"mmio": exits}
        if not op.fields["write"]:
            out["value"] = f"{int.from_bytes(data, 'little'):#x}"
        return 0, out

    def _translate(self, gpa: int) -> tuple[int | None, bool]:
        """Return the address of a load, or None in a hole, and whether it is writable."""
        try:
            hva, writable = self._call(self.vm.gfn_to_hva_prot, gpa // PAGE_SIZE)
        except LookupError as e:
            if not isinstance(e, OSError) or e.errno != errno.EFAULT:
                raise
            return None, False
        finally:
            self._note("lookup")
        if type(hva) is not int or type(writable) is not bool:
            raise TypeError(f"gfn_to_hva_prot returned ({hva!r}, {writable!r}), not (int, bool)")
        return hva + gpa % PAGE_SIZE, writable

    def _mark(self, gpa: int) -> None:
        self._do(self.vm.mark_page_dirty, gpa // PAGE_SIZE)
        self._note("mark")

    # ---- operations that the kernel cannot perform ----

    def _needs_guest(self) -> None:
        self._engine_only("loads and stores")

    def _engine_only(self, what: str) -> None:
        if not self.is_engine:
            raise _NotPlayedError(f"{what}: not possible on the kernel without a guest")


_HANDLERS: dict[str, Callable[[_Player, Op], Outcome]] = {
    "set": _Player.set,
    "set2": _Player.set2,
    "set_fault": _Player.set_fault,
    "create_gmem": _Player.create_gmem,
    "get_dirty": _Player.get_dirty,
    "clear_dirty": _Player.clear_dirty,
    "enable_cap": _Player.enable_cap,
    "check_cap": _Player.check_cap,
    "read": _Player.read,
    "write": _Player.write,
    "host_write": _Player.write,
    "access": _Player.access,
    "create_vcpu": _Player.platform,
    "create_irqchip": _Player.platform,
    "set_tss_addr": _Player.platform,
    "set_identity_map_addr": _Player.platform,
}


def _same_ret(got: Any, expected: Any) -> bool:
    """Compare results.  EDEADLK and EDEADLOCK are the same errno.  0, False and 0.0 are different."""
    if isinstance(got, str) and isinstance(expected, str):
        return got == expected or (errno_of(got) or 0) == errno_of(expected)
    return type(got) is type(expected) and bool(got == expected)


def _same_out(got: Out, expected: Out) -> bool:
    """Compare as JSON: 1 and true are different."""
    texts = (json.dumps(_canonical(out), sort_keys=True) for out in (got, expected))
    return next(texts) == next(texts)


def _size_alone(log: Out) -> Out:
    return log and {"bytes": log["bytes"]}


def _pattern(offset: int, nbytes: int) -> bytes:
    """Return the content of the arena: the word at each offset o, a multiple of 8, is 0xA5E0<<48 | o."""
    start = offset & ~7
    words = range(start, offset + nbytes, 8)
    data = b"".join((0xA5E0 << 48 | o & (1 << 48) - 1).to_bytes(8, "little") for o in words)
    return data[offset - start : offset - start + nbytes]


def _hva_text(hva: int | None) -> str | None:
    return None if hva is None else format_address(hva, ARENA_BASE)


def _canonical(out: Out) -> Out:
    """Return `out` with its numbers in one spelling, and without keys that the format does not define."""
    if out is None:
        return None
    out = {name: value for name, value in out.items() if name in NAMES}
    if isinstance(out.get("hva"), str):
        out["hva"] = parse_address(out["hva"], ARENA_BASE)
    if "value" in out:
        out["value"] = parse_number(out["value"])
    if "mmio" in out:
        out["mmio"] = [[parse_number(gpa), *rest] for gpa, *rest in out["mmio"]]
    return out


def _result(ret: Any, out: Out) -> dict[str, Any]:
    return {"ret": ret} if out is None else {"ret": ret, "out": out}


def _reason(e: Exception) -> str:
    """Return the reason for a summary.  The message of NotCompared names the slot, so it is replaced."""
    own = isinstance(e, _NotPlayedError)
    return str(e) if own else "slots too large for the kernel, and calls that depend on them"


# ---- backends -----------------------------------------------------------------------------------


def open_backend(name: str, header: dict[str, Any]) -> Any:
    """Return a new VM with the limits of the file.  `name` is a design of the engine, or "kvm"."""
    return _open_kvm() if name == "kvm" else _open_engine(name, header)


def _open_engine(name: str, header: dict[str, Any]) -> Any:
    import memslots

    try:
        return memslots.VM(**machine_of(header)._asdict(), backend=name)
    except (NotImplementedError, ValueError, OverflowError) as e:
        raise BackendError(f"backend {name}: {e}") from e


def _open_kvm() -> Any:
    try:
        from .. import kvm
    except ImportError as e:
        raise BackendError(f"backend kvm: {e}") from e
    if reason := kvm.available():
        raise BackendError(f"backend kvm: {reason}")
    return kvm.KvmVM()


def _caps(header: dict[str, Any]) -> dict[str, int]:
    caps: dict[str, int] = header.get("oracle", {}).get("caps", {})
    return caps


def _differing_limits(vm: Any, header: dict[str, Any]) -> list[str]:
    """Return notes about limits that differ from the recording machine.  They can explain mismatches."""
    recorded = machine_of(header)._asdict()
    return [
        f"{name} is {getattr(vm, name):#x} here, {value:#x} where the file was recorded"
        for name, value in recorded.items()
        if getattr(vm, name, value) != value
    ]
