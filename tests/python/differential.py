# SPDX-License-Identifier: MIT
"""Plays one seeded random sequence of calls to an engine and to the running kernel.

Each call is answered by 0, by an errno or by the words of a dirty log, and both sides must answer
alike.  A sequence is cut into episodes, each on a fresh pair of VMs and with a profile of its own.
The generator steers by a table of live slots that is kept from the answers on which both sides
agreed; it never reads the state of either side, so the seed alone determines the sequence up to the first
difference.  An episode ends with an audit of the live slots: both sides must hold every slot
at its place, with its size, its host address, its flags and its dirty log.

A call that must not reach the kernel (kvm.NotCompared) runs on neither side and is not counted.  It
ends its episode, because `KvmVM` no longer knows the state of the slot.
"""

import errno
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

import numpy as np

from memslots.kvm import KvmVM, NotCompared

PAGE = 4096
LOG, READONLY, GUEST_MEMFD = 1, 2, 4
MAX_NR_PAGES = (1 << 31) - 1
U32, U64 = 1 << 32, 1 << 64

SET, GET, CLEAR = "set_user_memory_region", "get_dirty_log", "clear_dirty_log"
GET_NULL, PROTECT = "_get_dirty_log_null", "manual_dirty_log_protect"

HISTORY = (
    12  # calls shown with a difference: more than it takes to see how the slot concerned came to be
)
AUDITED = (
    200  # slots looked at when an episode ends: bounds what an episode of thousands of slots costs
)


class Profile(NamedTuple):
    """Parameters of the slots of an episode."""

    name: str
    ids: int  # slot ids in use
    span: int  # guest pages in which they are placed
    max_pages: int  # of a slot, log-uniform from 1
    hvas: int  # distinct host addresses: few make many slots share memory
    calls: int  # length of the episode
    scattered: bool = False  # addresses of every magnitude up to the limits, instead of `span`
    logged: float = 0.3  # share of slots created with LOG_DIRTY_PAGES
    manual: bool = (
        False  # manual protection with INITIALLY_SET: the only bits a VM without a guest can have
    )


PROFILES = (
    Profile("few", ids=6, span=600, max_pages=200, hvas=4, calls=3_000),
    Profile("hundreds", ids=400, span=40_000, max_pages=300, hvas=1 << 20, calls=12_000),
    Profile("tiling", ids=120, span=700, max_pages=12, hvas=30, calls=8_000),
    Profile(
        "scattered", ids=60, span=0, max_pages=1 << 12, hvas=1 << 30, calls=5_000, scattered=True
    ),
    Profile("large", ids=12, span=1 << 22, max_pages=1 << 17, hvas=1 << 20, calls=800),
    Profile("limits", ids=20, span=0, max_pages=64, hvas=8, calls=5_000, scattered=True),
    Profile(
        "dirty", ids=30, span=8_000, max_pages=520, hvas=64, calls=8_000, logged=0.9, manual=True
    ),
    Profile(
        "dirty-few", ids=4, span=1_500, max_pages=260, hvas=4, calls=3_000, logged=0.9, manual=True
    ),
)

# Relative frequency of each kind of call.  Three calls in ten change something; these changes cost
# nearly all of the kernel's time.
KINDS = {
    "create": 18,
    "delete": 8,
    "move": 5,
    "flags": 5,
    "move_flags": 3,
    "noop": 9,
    "overlap": 12,
    "boundary": 20,
    "delete_missing": 4,
    "get_log": 8,
    "get_log_null": 2,
    "clear_log": 8,
}
LIMIT_KINDS = {**KINDS, "boundary": 60}
DIRTY_KINDS = {
    **KINDS,
    "move": 8,
    "flags": 8,
    "boundary": 10,
    "get_log": 18,
    "clear_log": 20,
    "protect": 1,
}


class Op(NamedTuple):
    kind: str
    method: str
    args: tuple
    fields: dict[str, Any]

    def __str__(self) -> str:
        if self.method == PROTECT:
            return f"vm.{PROTECT} = {self.args[0]:#x}"
        words = [_shown(a) for a in self.args] + [
            f"{k}={_shown(v)}" for k, v in self.fields.items()
        ]
        return f"vm.{self.method}({', '.join(words)})"


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"np.array([{', '.join(hex(w) for w in value.tolist())}], np.uint64)"
    return hex(value) if isinstance(value, int) and value > 9 else repr(value)


@dataclass
class Difference:
    """The first call that was answered differently; `ops` replays its episode."""

    seed: int
    profile: str
    step: int
    op: Op
    engine: object
    kernel: object
    config: dict[str, int]
    ops: list[Op] = field(repr=False)

    def __str__(self) -> str:
        last = "\n".join(f"    {op}  # {op.kind}" for op in self.ops[-HISTORY:])
        return (
            f"seed {self.seed}, step {self.step}, which is call {len(self.ops)} of an episode "
            f"'{self.profile}': {self.op}\n"
            f"  engine: {describe(self.engine)}\n  kernel: {describe(self.kernel)}\n"
            f"  engine made with {self.config}; the last calls, this one included:\n{last}"
        )


@dataclass
class Report:
    seed: int
    calls: int = 0  # set and dirty-log calls that both sides answered alike
    changes: int = 0  # those of them that changed a slot
    not_compared: int = 0
    tally: Counter[tuple[str, int]] = field(
        default_factory=Counter
    )  # (kind, errno); -1 is a dirty log
    difference: Difference | None = None
    out_of_time: bool = False

    @property
    def by_kind(self) -> Counter[str]:
        return self._summed(lambda kind, number: kind)

    @property
    def by_errno(self) -> Counter[str]:
        return self._summed(lambda kind, number: "log" if number < 0 else describe(number))

    def _summed(self, name: Callable[[str, int], str]) -> Counter[str]:
        total: Counter[str] = Counter()
        for key, n in self.tally.items():
            total[name(*key)] += n
        return total

    def __str__(self) -> str:
        answers = ", ".join(f"{n} {name}" for name, n in self.by_errno.most_common())
        return (
            f"seed {self.seed}: {self.calls} calls, {self.changes} changes, "
            f"{self.not_compared} not compared; {answers}"
        )


def run(
    engine_factory: Callable[..., Any], seed: int, calls: int, seconds: float = math.inf
) -> Report:
    """Makes `calls` calls; stops early at the first difference or when the time is over.

    `engine_factory` takes the keywords of `VM` that `limits_of` gives.  The seed alone determines the
    sequence: the time only decides where it ends.
    """
    report, rng = Report(seed), Random(seed)
    profiles, end = _profiles(rng), time.monotonic() + seconds
    with on_boot_cpu():
        while report.calls < calls and not report.difference and not report.out_of_time:
            with KvmVM() as kernel:
                config = limits_of(kernel)
                engine = engine_factory(**config)
                _Episode(engine, kernel, config, next(profiles), rng, report, calls, end).play()
                if hasattr(engine, "close"):  # a naive model has nothing to close
                    engine.close()
    return report


def _profiles(rng: Random) -> Iterator[Profile]:
    while True:
        yield from rng.sample(PROFILES, len(PROFILES))


@contextmanager
def on_boot_cpu() -> Iterator[None]:
    """Pins the thread to CPU 0, where the kernel ends the grace periods of a VM that few CPUs use.

     A grace period of a change takes about 10 us there, and up to 80 us on another CPU, which must
    wake CPU 0.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before & {0} or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def limits_of(kernel: KvmVM) -> dict[str, int]:
    """The keywords that give an engine the limits of this kernel."""
    names = ("address_spaces", "user_mem_slots", "gpa_bits", "hva_end_max")
    return {name: getattr(kernel, name) for name in names}


def answer(vm: Any, op: Op) -> object:
    """Makes the call and gives 0, the errno or the returned value; any other exception counts as a difference."""
    try:
        if op.method == PROTECT:
            vm.manual_dirty_log_protect = op.args[0]
            return 0
        result = getattr(vm, op.method)(*op.args, **op.fields)
        return 0 if result is None else result
    except OSError as e:
        return e.errno
    except NotCompared:
        raise
    except Exception as e:
        return e


def same(a: object, b: object) -> bool:
    if type(a) is int:
        return type(b) is int and a == b
    both_logs = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return both_logs and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def describe(value: object) -> str:
    if isinstance(value, int):
        return errno.errorcode.get(value, f"errno {value}") if value else "0"
    return _shown(value)


def replay(vm: Any, ops: list[Op]) -> list[object]:
    """The answers of one VM to the calls of a `Difference`."""
    return [answer(vm, op) for op in ops]


class _Episode:
    """A fresh pair of VMs, the calls made on it, and the comparison."""

    def __init__(
        self,
        engine: Any,
        kernel: KvmVM,
        config: dict[str, int],
        profile: Profile,
        rng: Random,
        report: Report,
        calls: int,
        end: float,
    ) -> None:
        self.engine, self.kernel, self.config = engine, kernel, config
        self.profile, self.report, self.calls, self.end = profile, report, calls, end
        self.ops: list[Op] = []
        self.generator = Generator(
            profile, rng, config, memfd=kernel.check_extension("guest_memfd") > 0
        )

    def play(self) -> None:
        for op in self.generator.sequence():
            if self.report.calls >= self.calls:
                return
            if time.monotonic() > self.end:
                self.report.out_of_time = True
                return
            if not self.compare(op):
                return

    def compare(self, op: Op) -> bool:
        """Makes a call on both sides, the kernel first (it may decline); False ends the episode."""
        report = self.report
        try:
            kernel = answer(self.kernel, op)
        except NotCompared:
            report.not_compared += 1
            return False
        self.ops.append(op)
        engine = answer(self.engine, op)
        if not same(engine, kernel):
            report.difference = Difference(
                report.seed,
                self.profile.name,
                report.calls,
                op,
                engine,
                kernel,
                self.config,
                self.ops,
            )
            return False
        self.count(op, kernel)
        return True

    def count(self, op: Op, agreed: object) -> None:
        report = self.report
        report.tally[op.kind, agreed if isinstance(agreed, int) else -1] += 1
        if op.method != PROTECT:
            report.calls += 1
        if op.method == SET and agreed == 0:
            report.changes += self.generator.note(op)


class Live:
    """The slots that both sides have, key -> (gpa, size, hva, flags), with an O(1) random choice."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        self.keys: list[tuple[int, int]] = []
        self.places: dict[tuple[int, int], int] = {}

    def put(self, key: tuple[int, int], slot: tuple[int, int, int, int]) -> None:
        if key not in self.slots:
            self.places[key] = len(self.keys)
            self.keys.append(key)
        self.slots[key] = slot

    def drop(self, key: tuple[int, int]) -> None:
        del self.slots[key]
        place, last = self.places.pop(key), self.keys.pop()
        if last != key:
            self.keys[place] = last
            self.places[last] = place


class Generator:
    """Draws calls; most of them are valid for the current slots."""

    def __init__(self, profile: Profile, rng: Random, config: dict[str, int], memfd: bool) -> None:
        self.profile, self.rng, self.random = profile, rng, rng.random
        self.address_spaces, self.user_mem_slots = (
            config["address_spaces"],
            config["user_mem_slots"],
        )
        self.gpa_end, self.hva_end = 1 << config["gpa_bits"], config["hva_end_max"]
        self.memfd = memfd
        self.live = Live()
        self.page_bits = profile.max_pages.bit_length()
        # ids from all over the range, its last one always among them
        last = self.user_mem_slots - 1
        self.ids = [*rng.sample(range(last), profile.ids - 1), last]
        self.hvas = [self.any_hva() for _ in range(min(profile.hvas, 64))]
        self.draws = self.kinds()

    def kinds(self) -> list[Callable[[], Op]]:
        """One entry per unit of weight, so that drawing a kind is one multiplication."""
        weights = LIMIT_KINDS if self.profile.name == "limits" else KINDS
        weights = DIRTY_KINDS if self.profile.manual else weights
        return [getattr(self, kind) for kind, weight in weights.items() for _ in range(weight)]

    def sequence(self) -> Iterator[Op]:
        """The calls of an episode; the caller must pass a success to `note` before it draws the next call."""
        if self.profile.manual:
            yield Op("protect", PROTECT, (3,), {})
        draws, random, n = self.draws, self.random, len(self.draws)
        for _ in range(self.profile.calls):
            yield draws[int(random() * n)]()
        yield from self.audit()

    def note(self, op: Op) -> bool:
        """Records a set call that returned 0; False if it changed nothing."""
        f = op.fields
        key = (f["as_id"], op.args[0])
        slot = (f["guest_phys_addr"], f["memory_size"], f["userspace_addr"], f["flags"])
        if not slot[1]:
            self.live.drop(key)
        elif self.live.slots.get(key) == slot:
            return False
        else:
            self.live.put(key, slot)
        return True

    # ---- draws -----------------------------------------------------------------------------------

    def below(self, n: int) -> int:
        return int(self.random() * n)

    def pick(self, options: tuple | list) -> Any:
        return options[int(self.random() * len(options))]

    def any_key(self) -> tuple[int, int]:
        return self.below(self.address_spaces), self.pick(self.ids)

    def free_key(self) -> tuple[int, int]:
        """An id that is not live, if two tries find one."""
        key = self.any_key()
        return self.any_key() if key in self.live.slots else key

    def live_key(self) -> tuple[int, int] | None:
        return self.pick(self.live.keys) if self.live.keys else None

    def pages(self) -> int:
        bits = self.below(self.page_bits + 1)
        return min(self.profile.max_pages, (1 << bits) + self.below(1 << bits))

    def any_gpa(self, size: int) -> int:
        if self.profile.scattered:
            top = 1 << (12 + self.below(self.gpa_end.bit_length() - 12))
            return min(self.below(top // PAGE) * PAGE, self.gpa_end - size)
        return self.below(max(1, self.profile.span - size // PAGE)) * PAGE

    def any_hva(self) -> int:
        return self.below(min(self.profile.hvas, self.hva_end // PAGE // 2)) * PAGE

    def hva(self) -> int:
        return self.pick(self.hvas) if self.random() < 0.5 else self.any_hva()

    def new_flags(self) -> int:
        return (self.random() < self.profile.logged) | (self.random() < 0.12) << 1

    # ---- calls that are mostly legal -------------------------------------------------------------

    def set(self, kind: str, key: tuple[int, int], gpa: int, size: int, hva: int, flags: int) -> Op:
        fields = {
            "guest_phys_addr": gpa,
            "memory_size": size,
            "userspace_addr": hva,
            "flags": flags,
            "as_id": key[0],
        }
        return Op(kind, SET, (key[1],), fields)

    def create(self) -> Op:
        size = self.pages() * PAGE
        return self.set(
            "create", self.free_key(), self.any_gpa(size), size, self.hva(), self.new_flags()
        )

    def delete(self) -> Op:
        """KVM checks the other arguments of a delete, and ignores them."""
        key = self.live_key() or self.any_key()
        if self.random() < 0.5:
            return self.set("delete", key, 0, 0, 0, 0)
        return self.set("delete", key, self.any_gpa(0), 0, self.hva(), self.below(4))

    def delete_missing(self) -> Op:
        return self.set("delete_missing", self.free_key(), 0, 0, 0, 0)

    def move(self) -> Op:
        return self.moved("move", 0)

    def move_flags(self) -> Op:
        return self.moved("move_flags", LOG if self.random() < 0.9 else READONLY)

    def moved(self, kind: str, toggled: int) -> Op:
        key = self.live_key()
        if key is None:
            return self.create()
        gpa, size, hva, flags = self.live.slots[key]
        if self.random() < 0.3:
            there = gpa + self.pick(
                (-size - PAGE, -size, PAGE - size, -PAGE, PAGE, size - PAGE, size, size + PAGE)
            )
            there = max(0, there)
        else:
            there = self.any_gpa(size)
        return self.set(kind, key, there, size, hva, flags ^ toggled)

    def flags(self) -> Op:
        key = self.live_key()
        if key is None:
            return self.create()
        gpa, size, hva, flags = self.live.slots[key]
        return self.set(
            "flags", key, gpa, size, hva, flags ^ (LOG if self.random() < 0.9 else READONLY)
        )

    def noop(self) -> Op:
        key = self.live_key()
        return self.create() if key is None else self.set("noop", key, *self.live.slots[key])

    # ---- calls that are mostly refused -----------------------------------------------------------

    def overlap(self) -> Op:
        """A create or move to the edges of another slot: one page inside, or adjacent to it."""
        victim = self.live_key()
        if victim is None:
            return self.create()
        gpa, size, _, _ = self.live.slots[victim]
        key = self.free_key() if self.random() < 0.7 else self.live_key()
        mine = self.live.slots.get(key) or (0, self.pages() * PAGE, self.hva(), self.new_flags())
        end, length = gpa + size, mine[1]
        there = self.pick(
            (gpa, gpa + PAGE - length, gpa - length, end - PAGE, end, gpa + (size - length) // 2)
        )
        there = max(0, there // PAGE * PAGE)
        if key not in self.live.slots and self.random() < 0.15:
            there, length = max(0, gpa - PAGE), size + 2 * PAGE  # encloses it
        return self.set("overlap", (victim[0], key[1]), there, length, *mine[2:])

    def boundary(self) -> Op:
        """A valid call with one or two of its arguments replaced by values at or beyond a limit."""
        op = self.pick((self.create, self.create, self.noop, self.flags, self.move, self.delete))()
        slot, f = op.args[0], dict(op.fields)
        for _ in range(1 if self.random() < 0.8 else 2):
            slot = self.pick(_BOUNDARIES)(self, slot, f)
        for name in ("guest_phys_addr", "memory_size", "userspace_addr"):
            f[name] %= U64
        if f["flags"] & GUEST_MEMFD or self.random() < 0.1:
            self.through_second_call(f)
        return Op("boundary", SET, (slot,), f)

    def through_second_call(self, f: dict[str, Any]) -> None:
        """Uses KVM_SET_USER_MEMORY_REGION2 without a descriptor: GUEST_MEMFD needs this call."""
        if not self.memfd:
            f["flags"] &= ~GUEST_MEMFD
            return
        f["guest_memfd"] = -1
        f["guest_memfd_offset"] = self.pick(
            (0, 0, 0, PAGE, 1, PAGE - 1, U64 - PAGE, U64 - 1, 1 << 63)
        )

    def unaligned(self, slot: int, f: dict[str, Any]) -> int:
        f[self.pick(("memory_size", "guest_phys_addr", "userspace_addr"))] += 1 + self.below(
            PAGE - 1
        )
        return slot

    def at_flags(self, slot: int, f: dict[str, Any]) -> int:
        bit = 1 << self.pick((1, 2, 2, 3, 4, 15, 16, 17, 31))
        f["flags"] = self.pick((f["flags"] ^ bit, GUEST_MEMFD, self.below(8), U32 - 1))
        return slot

    def at_slot(self, slot: int, f: dict[str, Any]) -> int:
        n = self.user_mem_slots
        return self.pick((0, n - 1, n, n + 1, n + 2, n + 3, n + 4, 32768, 65535))

    def at_as_id(self, slot: int, f: dict[str, Any]) -> int:
        f["as_id"] = self.pick(
            (self.address_spaces - 1, self.address_spaces, self.address_spaces + 1, 65535)
        )
        return slot

    def at_gpa_limit(self, slot: int, f: dict[str, Any]) -> int:
        f["guest_phys_addr"] = (
            self.gpa_end - f["memory_size"] + self.pick((-PAGE, 0, 0, PAGE, f["memory_size"]))
        )
        return slot

    def at_gpa_wrap(self, slot: int, f: dict[str, Any]) -> int:
        f["guest_phys_addr"] = U64 - f["memory_size"] + self.pick((-PAGE, 0, PAGE, -1))
        return slot

    def at_hva_limit(self, slot: int, f: dict[str, Any]) -> int:
        f["userspace_addr"] = (
            self.hva_end - f["memory_size"] + self.pick((-PAGE, 0, 0, PAGE, f["memory_size"]))
        )
        return slot

    def at_other_hva(self, slot: int, f: dict[str, Any]) -> int:
        special = (
            0,
            PAGE,
            1 << 47,
            1 << 56,
            1 << 63,
            U64 - PAGE,
            U64 - f["memory_size"] - PAGE,
            U64 - (1 << 47),
        )
        f["userspace_addr"] = self.pick(
            (*special, f["userspace_addr"] + PAGE, f["userspace_addr"] + PAGE)
        )
        return slot

    def at_size(self, slot: int, f: dict[str, Any]) -> int:
        size = f["memory_size"]
        beyond = (MAX_NR_PAGES + 1) * PAGE
        f["memory_size"] = self.pick(
            (0, max(0, size - PAGE), size + PAGE, 2 * size, beyond, U64 - PAGE, 1 << 62)
        )
        return slot

    def at_most_pages(self, slot: int, f: dict[str, Any]) -> int:
        """The largest legal size, over an existing slot: EEXIST shows that the size check passed."""
        victim = self.live_key()
        if victim is not None:
            f["as_id"], f["guest_phys_addr"] = victim[0], self.live.slots[victim][0]
            f["memory_size"] = (MAX_NR_PAGES + self.below(2)) * PAGE
        return slot

    # ---- dirty logs ------------------------------------------------------------------------------

    def log_key(self) -> tuple[int, int]:
        """Mostly a live slot, sometimes a missing one or an invalid id."""
        draw = self.random()
        if draw < 0.9 and self.live.keys:
            return self.pick(self.live.keys)
        if draw < 0.96:
            return self.any_key()
        bad = (
            (0, self.user_mem_slots),
            (0, 65535),
            (self.address_spaces, 0),
            (65535, self.pick(self.ids)),
        )
        return self.pick(bad)

    def get_log(self) -> Op:
        as_id, slot = self.log_key()
        return Op("get_log", GET, (slot, as_id), {})

    def get_log_null(self) -> Op:
        as_id, slot = self.log_key()
        return Op("get_log_null", GET_NULL, (slot, as_id), {})

    def clear_log(self) -> Op:
        key = self.log_key()
        npages = self.live.slots[key][1] // PAGE if key in self.live.slots else 100
        first, num = self.clear_range(npages)
        return Op("clear_log", CLEAR, (key[1], first, num, self.bitmap(num)), {"as_id": key[0]})

    def clear_range(self, n: int) -> tuple[int, int]:
        draw = self.random()
        if draw < 0.2:
            return 0, n
        first = 64 * self.below((n + 63) // 64)
        if draw < 0.7:
            return first, min(n - first, 64 * (1 + self.below(3)))
        starts = (
            0,
            0,
            1,
            63,
            64,
            first,
            first,
            first + 1,
            n,
            n & ~63,
            (n + 63) & ~63,
            n + 64,
            1 << 63,
            U64 - 64,
        )
        counts = (
            0,
            0,
            1,
            63,
            64,
            65,
            n,
            n + 1,
            n - first,
            n - first + 1,
            max(0, n - first - 1),
            n & ~63,
            U32 - 1,
        )
        return self.pick(starts), self.pick(counts)

    def bitmap(self, num_pages: int) -> np.ndarray | None:
        """Random words, with garbage beyond num_pages; at times a bad pointer or size."""
        draw = self.random()
        if draw < 0.05:
            return None
        nr_words = min(
            (num_pages + 63) // 64, 1 << 14
        )  # enough for the largest slot; more pages are refused
        if draw < 0.08:
            nr_words = max(0, nr_words + self.pick((-1, 1)))
        if draw < 0.3:
            return np.full(nr_words, U64 - 1, np.uint64)
        return np.frombuffer(self.rng.randbytes(8 * nr_words), np.uint64)

    def protect(self) -> Op:
        value = self.pick((0, 1, 3, 3, 3, 3, 2, 4, 5, 7, 1 << 32, U64 - 1))
        return Op("protect", PROTECT, (value,), {})

    # ---- the end of an episode -------------------------------------------------------------------

    def audit(self) -> Iterator[Op]:
        """Calls that compare the place and the fields of every slot."""
        keys = self.live.keys[:AUDITED]
        for key in keys:
            slot = self.live.slots[key]
            yield self.set("audit", key, *slot)
            yield from self.audit_fields(key, *slot)
            yield Op("audit", GET, (key[1], key[0]), {})
        for as_id in range(self.address_spaces):
            spare = next((i for i in self.ids if (as_id, i) not in self.live.slots), None)
            if spare is not None:
                yield self.set("audit", (as_id, spare), 0, 0, 0, 0)
                yield from self.audit_extents((as_id, spare), keys)

    def audit_fields(
        self, key: tuple[int, int], gpa: int, size: int, hva: int, flags: int
    ) -> Iterator[Op]:
        yield self.set("audit", key, gpa, size, hva ^ PAGE, flags)
        yield self.set("audit", key, gpa, size + PAGE, hva, flags)
        yield self.set("audit", key, gpa, size, hva, flags ^ READONLY)

    def audit_extents(self, spare: tuple[int, int], keys: list[tuple[int, int]]) -> Iterator[Op]:
        for key in keys:
            gpa, size, hva, _ = self.live.slots[key]
            if key[0] == spare[0]:
                yield self.set("audit", spare, gpa, PAGE, hva, 0)
                yield self.set("audit", spare, gpa + size - PAGE, PAGE, hva, 0)


_BOUNDARIES = (
    Generator.unaligned,
    Generator.unaligned,
    Generator.at_flags,
    Generator.at_flags,
    Generator.at_slot,
    Generator.at_as_id,
    Generator.at_gpa_limit,
    Generator.at_gpa_limit,
    Generator.at_gpa_wrap,
    Generator.at_hva_limit,
    Generator.at_hva_limit,
    Generator.at_other_hva,
    Generator.at_size,
    Generator.at_most_pages,
)
