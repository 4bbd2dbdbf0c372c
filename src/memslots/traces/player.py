# SPDX-License-Identifier: MIT
"""Plays a vector file on a VM and compares every result with the recorded one.

The VM is anything with the calls of `memslots.VM`.  The kernel behind `memslots.kvm.KvmVM` is one
too, but it translates nothing without a guest (`translates` is False).  That decides what is
compared:

* An engine: everything.  Loads and stores become a translation and a mark_page_dirty; calls that
  change nothing in an engine (vCPU, irqchip, ...) return 0.
* The kernel: loads, stores and the calls that set a guest up are counted as not compared.  A store
  that was recorded to reach a logged slot is thereby missing from the log, so of later dirty logs
  of this slot only result and size are compared (`by_size`), until a harvest, a delete or the end
  of logging makes both alike again.  A change that `KvmVM` will not let the kernel carry out
  raises NotCompared there, and so does whatever depends on it: each is counted as not compared.

What a guest did in a QEMU trace was not recorded; what QEMU got from a dirty log (`observed`) was.
It is marked dirty just before the log is read, and only the result of the call is compared.
"""

import errno
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, NamedTuple

from .vectors import (
    PAGE_SIZE,
    SCOPE,
    U64,
    Op,
    VectorFile,
    format_address,
    parse_address,
    parse_number,
    runs_to_pages,
    runs_to_words,
    words_to_runs,
)

ARENA_BASE = 1 << 44  # where the recording machine had it; 16 TiB from here stay below hva_end_max
LOG_DIRTY_PAGES = 1
READONLY = 2

# Used where a file does not say: x86-64 with shadow paging and 4-level page tables.
DEFAULT_GPA_BITS = 52
DEFAULT_HVA_END_MAX = 0x7FFFFFFFF000
DEFAULT_USER_MEM_SLOTS = 32764

MANUAL_PROTECT = "manual_dirty_log_protect2"
PROGRESS_STEP = 256  # operations between two calls of `progress`

Timings = dict[str, list[int]]
Out = dict[str, Any] | None
Outcome = tuple[Any, Out]  # ret and out, as in the file


class BackendError(Exception):
    """The backend that was asked for cannot be had here; says why."""


class Mismatch(NamedTuple):
    """A result that is not the recorded one; both are {"ret": ..., "out": ...}."""

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
    """What came of one file.  `ops` counts all its operations, compared or not."""

    path: str
    ops: int
    mismatches: list[Mismatch] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> operations not compared
    out_of_scope: int = 0
    by_size: int = 0  # dirty logs of which only result and size were compared
    notes: list[str] = field(default_factory=list)

    @property
    def not_compared(self) -> int:
        return self.skipped.total()


class _NotPlayedError(Exception):
    """The operation has no meaning on this VM; the message is the reason."""


class _OutOfScopeError(Exception):
    """The operation belongs to an optional feature."""


def play(
    file: VectorFile,
    vm: Any,
    *,
    timings: Timings | None = None,
    progress: Callable[[int], object] | None = None,
) -> PlayResult:
    """Plays all operations on `vm`, which has no slots yet.

    `timings` receives nanoseconds of the calls alone, by kind: create, delete, move, flags, no-op,
    refused, get_dirty, clear_dirty, mark, lookup.  `progress` is told now and then how many more
    operations are done.
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


# ---- the slots as recorded ----------------------------------------------------------------------


class _Recorded(NamedTuple):
    gpa: int
    size: int
    flags: int


class _RecordedSlots:
    """The slots that the recording had at this point: what tells the kinds of change apart."""

    def __init__(self) -> None:
        self.slots: dict[int, _Recorded] = {}  # by the ioctl's slot, which includes the as_id

    def kind_of_change(self, op: Op) -> str:
        """What the change is if it is accepted."""
        new, old = _recorded(op), self.slots.get(op.fields["slot"])
        if not new.size:
            return "delete"
        if old is None:
            return "create"
        if new.gpa != old.gpa:
            return "move"
        return "no-op" if new.flags == old.flags else "flags"

    def change(self, op: Op) -> None:
        new = _recorded(op)
        if new.size:
            self.slots[op.fields["slot"]] = new
        else:
            self.slots.pop(op.fields["slot"], None)

    def logged_at(self, gpa: int) -> list[int]:
        """The slot of address space 0 that holds gpa, if it logs."""
        return [
            slot
            for slot, s in self.slots.items()
            if slot >> 16 == 0 and s.flags & LOG_DIRTY_PAGES and s.gpa <= gpa < s.gpa + s.size
        ]


def _recorded(op: Op) -> _Recorded:
    f = op.fields
    return _Recorded(parse_number(f["gpa"]), parse_number(f["size"]), f["flags"])


class _IncompleteLogs:
    """The slots whose log lacks stores that were recorded but could not be made."""

    def __init__(self) -> None:
        self._slots: set[int] = set()
        self._manual = False

    def __contains__(self, slot: int) -> bool:
        return slot in self._slots

    def follow(self, op: Op, recorded: _RecordedSlots) -> None:
        """Call it with each operation, before `recorded` learns of it."""
        kind, f = op.kind, op.fields
        if kind in ("write", "host_write") and f.get("out", {}).get("wrote"):
            self._slots.update(recorded.logged_at(parse_number(f["gpa"])))
        elif kind == "access" and f["write"]:
            for gpa, _ in _split(parse_number(f["gpa"]), f["len"]):
                self._slots.update(recorded.logged_at(gpa))
        elif kind == "enable_cap" and f["ret"] == 0:
            self._manual = bool(parse_number(f["arg"]) & 1)
        elif self._starts_afresh(op):
            self._slots.discard(f["slot"])

    def _starts_afresh(self, op: Op) -> bool:
        """Whatever is missing now is gone from the recorded log as well."""
        if op.kind == "get_dirty":
            return not self._manual and op.fields["ret"] in (0, "EFAULT")
        if op.kind not in ("set", "set2") or op.fields["ret"] != 0:
            return False
        new = _recorded(op)
        return not new.size or not new.flags & LOG_DIRTY_PAGES


# ---- one operation ------------------------------------------------------------------------------


class _Player:
    def __init__(self, file: VectorFile, vm: Any, result: PlayResult, timings: Timings | None):
        self.vm = vm
        self.result = result
        self.timings = timings
        self.caps = _caps(file.header)
        self.is_engine = getattr(vm, "translates", True)
        self.recorded = _RecordedSlots()
        self.incomplete = _IncompleteLogs()
        self.not_played: tuple[type[Exception], ...] = (_NotPlayedError, _OutOfScopeError)
        self.ns = 0  # of the last call
        if not self.is_engine:
            from ..kvm import NotCompared

            self.not_played += (NotCompared,)
            result.notes += _differing_limits(vm, file.header)

    def play(self, op: Op) -> None:
        try:
            got = self._outcome(op)
        except _OutOfScopeError:
            self.result.out_of_scope += 1
        except self.not_played as e:
            self.result.skipped[_reason(e)] += 1
        else:
            self._compare(op, *got)
        self._follow(op)

    def _outcome(self, op: Op) -> Outcome:
        """An error of any call is a result; one that is no OSError never is the recorded one."""
        try:
            ret, out = _HANDLERS[op.kind](self, op)
        except self.not_played:
            raise
        except OSError as e:
            ret, out = errno.errorcode.get(e.errno or 0, str(e)), None
        except Exception as e:  # whatever an engine does wrong is a wrong result
            ret, out = f"{type(e).__name__}: {e}", None
        if self.timings is not None:
            self._note_time(op, ret)
        return ret, out

    def _compare(self, op: Op, ret: Any, out: Out) -> None:
        expected_ret, expected_out = op.fields["ret"], op.fields.get("out")
        if op.kind == "get_dirty":
            expected_out, out = self._comparable_logs(op, expected_out, out)
        same_ret = ret == expected_ret and type(ret) is type(expected_ret)
        if same_ret and (out == expected_out or _canonical(out) == _canonical(expected_out)):
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
        if op.kind in ("set", "set2") and op.fields["ret"] == 0:
            self.recorded.change(op)

    # ---- time ----

    def _call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.ns = 0
        start = perf_counter_ns()
        try:
            return call(*args, **kwargs)
        finally:
            self.ns = perf_counter_ns() - start

    def _note(self, kind: str) -> None:
        """Books the last call; operations that made none of their own book nothing."""
        if self.timings is not None and self.ns:
            self.timings.setdefault(kind, []).append(self.ns)
        self.ns = 0

    def _note_time(self, op: Op, ret: Any) -> None:
        if op.kind in ("set", "set2"):
            self._note("refused" if ret != 0 else self.recorded.kind_of_change(op))
        elif op.kind in ("get_dirty", "clear_dirty"):
            self._note(op.kind)
        self.ns = 0

    # ---- changes ----

    def set(self, op: Op) -> Outcome:
        """KVM_SET_USER_MEMORY_REGION knows two flags; its kernel side may check that itself."""
        if self.is_engine and op.fields["flags"] & ~(LOG_DIRTY_PAGES | READONLY):
            return "EINVAL", None
        return self._set_region(op, {})

    def set2(self, op: Op) -> Outcome:
        if op.fields.get("gmem", -1) != -1:
            raise _OutOfScopeError
        offset = parse_number(op.fields.get("gmem_off", 0))
        return self._set_region(op, {"guest_memfd": -1, "guest_memfd_offset": offset})

    def _set_region(self, op: Op, more: dict[str, int]) -> Outcome:
        f = op.fields
        slot, as_id = _unpack(f["slot"])
        self._call(
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
        slot, as_id = _unpack(op.fields["slot"])
        if op.fields.get("buf") == "fault":
            self._call(self.vm._get_dirty_log_null, slot, as_id=as_id)
            return 0, None
        if self.is_engine and "observed" in op.fields:
            self._mark_observed(op)
        words = self._call(self.vm.get_dirty_log, slot, as_id=as_id)
        return 0, {"bytes": 8 * len(words), "dirty": words_to_runs(words)}

    def _mark_observed(self, op: Op) -> None:
        slot = self.recorded.slots.get(op.fields["slot"])
        if slot is not None:
            gfns = runs_to_pages(op.fields["observed"]["dirty"]) + slot.gpa // PAGE_SIZE
            self.vm.mark_page_dirty_many(gfns, as_id=op.fields["slot"] >> 16)

    def clear_dirty(self, op: Op) -> Outcome:
        f = op.fields
        slot, as_id = _unpack(f["slot"])
        fault = f.get("buf") == "fault"
        bitmap = None if fault else runs_to_words(f.get("bits", []), f["num"])
        first = parse_number(f["first"])
        self._call(self.vm.clear_dirty_log, slot, first, f["num"], bitmap, as_id=as_id)
        return 0, None

    # ---- capabilities, and calls that set a guest up ----

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
            "nr_memslots": getattr(self.vm, "user_mem_slots", _user_mem_slots(self.caps)),
            "multi_address_space": address_spaces if address_spaces > 1 else 0,
            MANUAL_PROTECT: 3,
        }
        return own.get(cap, self.caps.get(cap, 0)), None

    def platform(self, op: Op) -> Outcome:
        self._engine_only("calls that set a guest up")
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
        """Each page's part is RAM or one exit, in ascending order."""
        self._needs_guest()
        exits, data = [], b""
        for gpa, nbytes in _split(parse_number(op.fields["gpa"]), op.fields["len"]):
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
        """Where a load goes, and whether a store goes there too.  A hole is no error here."""
        try:
            hva, writable = self._call(self.vm.gfn_to_hva_prot, gpa // PAGE_SIZE)
        except LookupError as e:
            if getattr(e, "errno", None) != errno.EFAULT:
                raise
            return None, False
        finally:
            self._note("lookup")
        return hva + gpa % PAGE_SIZE, bool(writable)

    def _mark(self, gpa: int) -> None:
        self._call(self.vm.mark_page_dirty, gpa // PAGE_SIZE)
        self._note("mark")

    # ---- what the kernel cannot be asked ----

    def _needs_guest(self) -> None:
        self._engine_only("loads and stores")

    def _engine_only(self, what: str) -> None:
        if not self.is_engine:
            raise _NotPlayedError(f"{what}: not asked of the kernel without a guest")


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


def _size_alone(log: Out) -> Out:
    return log and {"bytes": log["bytes"]}


def _unpack(slot: int) -> tuple[int, int]:
    """The ioctl's slot -> (id, as_id)."""
    return slot & 0xFFFF, slot >> 16


def _split(gpa: int, length: int) -> list[tuple[int, int]]:
    """The parts of [gpa, gpa + length) by page, each (gpa, bytes)."""
    head = min(length, PAGE_SIZE - gpa % PAGE_SIZE)
    tail = ((gpa + head) % U64, length - head)
    return [(gpa, head), tail] if tail[1] else [(gpa, head)]


def _pattern(offset: int, nbytes: int) -> bytes:
    """Memory as a load finds it: at each arena offset o, a multiple of 8, 0xA5E0<<48 | o."""
    start = offset & ~7
    words = range(start, offset + nbytes, 8)
    data = b"".join((0xA5E0 << 48 | o & (1 << 48) - 1).to_bytes(8, "little") for o in words)
    return data[offset - start : offset - start + nbytes]


def _hva_text(hva: int | None) -> str | None:
    return None if hva is None else format_address(hva, ARENA_BASE)


def _canonical(out: Out) -> Out:
    """The same result however its numbers are spelled."""
    if out is None:
        return None
    out = dict(out)
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
    """NotCompared names the slot, which is too much for a summary."""
    own = isinstance(e, _NotPlayedError)
    return str(e) if own else "slots too large to ask the kernel for, and what depends on them"


# ---- backends -----------------------------------------------------------------------------------


def open_backend(name: str, header: dict[str, Any]) -> Any:
    """A fresh VM with the limits of the file: a design of the engine by name, or "kvm"."""
    return _open_kvm() if name == "kvm" else _open_engine(name, header)


def _open_engine(name: str, header: dict[str, Any]) -> Any:
    import memslots

    gpa_bits, hva_end_max = _limits(header)
    slots = _user_mem_slots(_caps(header))
    try:
        return memslots.VM(
            user_mem_slots=slots, gpa_bits=gpa_bits, hva_end_max=hva_end_max, backend=name
        )
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


def _user_mem_slots(caps: dict[str, int]) -> int:
    return caps.get("nr_memslots", DEFAULT_USER_MEM_SLOTS)


def _limits(header: dict[str, Any]) -> tuple[int, int]:
    limits = header.get("oracle", {}).get("limits", {})
    gpa_bits = limits.get("gpa_bits", DEFAULT_GPA_BITS)
    return gpa_bits, parse_number(limits.get("hva_end_max", DEFAULT_HVA_END_MAX))


def _differing_limits(vm: Any, header: dict[str, Any]) -> list[str]:
    """Another machine's limits explain differences that are no faults."""
    recorded = dict(zip(("gpa_bits", "hva_end_max"), _limits(header), strict=True))
    recorded["user_mem_slots"] = _user_mem_slots(_caps(header))
    return [
        f"{name} is {getattr(vm, name):#x} here, {value:#x} where the file was recorded"
        for name, value in recorded.items()
        if getattr(vm, name, value) != value
    ]
