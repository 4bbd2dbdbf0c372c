# SPDX-License-Identifier: MIT
"""The VM against a naive model: hypothesis searches for a sequence of calls that they answer differently.

Hypothesis draws single calls and shrinks them.  A rule of hypothesis costs fifty times as much as a
call, so one of the rules plays a burst of seeded random calls.  The test checks each of these like a single
call, but hypothesis can shrink only the seed and the length of the burst.
"""

from random import Random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pair import LOG, PAGE, READONLY, SET, Burst, Pair

from memslots import backends

OPERATIONS = 100_000  # lower limit for the operations of one run, of all kinds together
EXAMPLES = 360  # enough sequences for OPERATIONS

played: list[int] = []  # operations of each finished example

ids = st.sampled_from([0, 1, 2, 3, 7, 50])
bases = st.integers(0, 300)
sizes = st.sampled_from([1, 2, 63, 64, 65, 130])
hvas = st.integers(0, 30).map(lambda n: n * 16 * PAGE)
flag_sets = st.sampled_from([0, LOG, READONLY, LOG | READONLY])
gfns = bases | st.sampled_from([2**52 - 1, 2**52, 2**63, 2**64 - 1])
spaces = st.integers(0, 2)


class Machine(RuleBasedStateMachine):
    """A Pair that hypothesis calls."""

    @initialize(address_spaces=st.integers(1, 3), bits=st.sampled_from([20, 24, 52, 64]))
    def start(self, address_spaces: int, bits: int) -> None:
        self.pair = Pair(address_spaces=address_spaces, user_mem_slots=51, gpa_bits=bits)

    def space(self, as_id: int) -> int:
        return as_id % self.pair.model.address_spaces

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            played.append(self.pair.tally.total())
            self.pair.logs_agree()
            self.pair.vm.close()
            assert len(self.pair.vm) == 0

    @invariant()
    def both_are_alike(self) -> None:
        if hasattr(self, "pair"):
            self.pair.agree()

    # ---- changes ----

    def live(self, draw: int, as_id: int) -> tuple[int, dict[str, int]]:
        slots = self.pair.model.memslots(self.space(as_id))
        return Burst.region_of(slots[draw % len(slots)])

    def any_slot(self) -> bool:
        return bool(self.pair.model.memslots(0))

    @rule(id=ids, base=bases, npages=sizes, hva=hvas, flags=flag_sets, as_id=spaces)
    def set_region(self, id: int, base: int, npages: int, hva: int, flags: int, as_id: int) -> None:
        self.pair.call(
            SET,
            id,
            guest_phys_addr=base * PAGE,
            memory_size=npages * PAGE,
            userspace_addr=hva,
            flags=flags,
            as_id=self.space(as_id),
        )

    @precondition(any_slot)
    @rule(draw=st.integers(0, 50), base=bases, flags=flag_sets)
    def move_or_flags(self, draw: int, base: int, flags: int) -> None:
        id, region = self.live(draw, 0)
        self.pair.call(SET, id, **region | {"guest_phys_addr": base * PAGE, "flags": flags})

    @precondition(any_slot)
    @rule(draw=st.integers(0, 50))
    def delete(self, draw: int) -> None:
        id, region = self.live(draw, 0)
        self.pair.call(SET, id, **region | {"memory_size": 0})

    @rule(
        id=ids | st.sampled_from([51, 54, 2**16, 2**32 - 1, 2**32, -1]),
        gpa=st.integers(-1, 2**64) | bases.map(lambda n: n * PAGE),
        size=st.integers(-1, 2**64) | sizes.map(lambda n: n * PAGE) | st.just(0),
        hva=st.integers(-1, 2**64) | hvas,
        flags=st.integers(0, 2**32) | flag_sets | st.just(4),
        as_id=st.integers(0, 4),
        offset=st.sampled_from([0, 1, PAGE, 2**64 - PAGE]),
    )
    def anything(
        self, id: int, gpa: int, size: int, hva: int, flags: int, as_id: int, offset: int
    ) -> None:
        self.pair.call(
            SET,
            id,
            guest_phys_addr=gpa,
            memory_size=size,
            userspace_addr=hva,
            flags=flags,
            as_id=as_id,
            guest_memfd_offset=offset,
        )

    @rule(
        slots=st.lists(
            st.tuples(ids, bases, st.sampled_from([0, 1, 40]), hvas, flag_sets), max_size=5
        ),
        as_id=spaces,
    )
    def load(self, slots: list[tuple[int, int, int, int, int]], as_id: int) -> None:
        self.pair.load(slots, self.space(as_id))

    @precondition(any_slot)
    @rule(draw=st.integers(0, 50), base=bases, kind=st.sampled_from(["delete", "move", "flags"]))
    def refused_by_listener(self, draw: int, base: int, kind: str) -> None:
        id, region = self.live(draw, 0)
        changes = {
            "delete": {"memory_size": 0},
            "move": {"guest_phys_addr": base * PAGE},
            "flags": {"flags": region["flags"] ^ LOG},
        }
        self.pair.refused_by_listener(SET, id, **region | changes[kind])

    @rule(
        id=ids,
        base=bases,
        npages=st.sampled_from([0, 1, 64]),
        flags=flag_sets,
        as_id=spaces,
        stop=st.none() | st.integers(0, 4),
    )
    def steps(
        self, id: int, base: int, npages: int, flags: int, as_id: int, stop: int | None
    ) -> None:
        region = {"guest_phys_addr": base * PAGE, "memory_size": npages * PAGE, "userspace_addr": 0}
        self.pair.by_steps(id, self.space(as_id), stop, **region, flags=flags)

    # ---- dirty log ----

    @rule(value=st.sampled_from([0, 1, 2, 3, 4, 2**64 - 1]))
    def protect(self, value: int) -> None:
        self.pair.protect(value)

    @rule(numbers=st.lists(gfns, max_size=6), as_id=spaces)
    def mark(self, numbers: list[int], as_id: int) -> None:
        as_id = self.space(as_id)
        self.pair.call("mark_page_dirty_many", np.array(numbers, np.uint64), as_id)
        for gfn in numbers[:1]:
            self.pair.call("mark_page_dirty", gfn, as_id)

    @rule(id=ids | st.just(51), as_id=st.integers(0, 3), null=st.booleans())
    def get_log(self, id: int, as_id: int, null: bool) -> None:
        self.pair.call("_get_dirty_log_null" if null else "get_dirty_log", id, as_id=as_id)

    @rule(
        id=ids | st.just(51),
        first=st.sampled_from([0, 0, 1, 64, 128, 2**63]),
        num=st.sampled_from([0, 1, 2, 63, 64, 65, 66, 130, 2**32 - 1]),
        words=st.none() | st.lists(st.integers(0, 2**64 - 1), max_size=3),
        as_id=st.integers(0, 3),
    )
    def clear_log(self, id: int, first: int, num: int, words: list[int] | None, as_id: int) -> None:
        bitmap = None if words is None else np.array(words, np.uint64)
        self.pair.call("clear_dirty_log", id, first, num, bitmap, as_id=as_id)

    @rule(
        as_id=st.integers(0, 3),
        clear=st.booleans(),
        start=st.just(0) | gfns,
        room=st.none() | st.integers(0, 4),
    )
    def harvest(self, as_id: int, clear: bool, start: int, room: int | None) -> None:
        self.pair.harvest(as_id, clear, start, room)

    @rule(
        id=ids | st.just(51),
        words=st.lists(st.integers(0, 2**64 - 1), max_size=3),
        as_id=st.integers(0, 3),
    )
    def merge_log(self, id: int, words: list[int], as_id: int) -> None:
        self.pair.call("merge_dirty_log", id, np.array(words, np.uint64), as_id=as_id)

    # ---- lookups ----

    @rule(gfn=gfns, offset=st.integers(0, PAGE - 1), as_id=spaces, which=st.integers(0, 1))
    def look(self, gfn: int, offset: int, as_id: int, which: int) -> None:
        as_id = self.space(as_id)
        for method in ("gfn_to_memslot", "gfn_to_hva", "gfn_to_hva_prot", "is_visible_gfn"):
            self.pair.call(method, gfn, as_id)
        self.pair.call("gpa_to_hva", gfn % 2**52 * PAGE + offset, as_id)
        self.pair.vcpu_looks(which, as_id, gfn)

    @rule(start=gfns, end=gfns, hva=hvas, length=st.integers(-1, 2**20), as_id=spaces)
    def ranges(self, start: int, end: int, hva: int, length: int, as_id: int) -> None:
        as_id = self.space(as_id)
        self.pair.call("memslots_in_gfn_range", start, end, as_id)
        self.pair.call("memslots_in_hva_range", hva, max(0, hva + length), as_id)
        self.pair.call("hva_to_gfns", hva + max(0, length))

    @rule(id=ids, as_id=spaces)
    def by_id(self, id: int, as_id: int) -> None:
        self.pair.call("id_to_memslot", id, self.space(as_id))
        self.pair.array(self.space(as_id))

    # ---- many at once ----

    @rule(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 160))
    def burst(self, seed: int, count: int) -> None:
        Burst(self.pair, Random(seed)).play(count)


@pytest.mark.slow
def test_state_machine_finds_no_difference_to_the_model() -> None:
    """Makes at least OPERATIONS operations; compares and checks everything after each."""
    played.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=EXAMPLES, stateful_step_count=60),
    )
    assert sum(played) >= OPERATIONS, f"only {sum(played)} operations in {len(played)} examples"


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_short_burst_agrees_with_the_model(seed: int, backend: str) -> None:
    """A few hundred calls of every kind, each fully checked: short enough for a sanitizer."""
    pair = Pair(backend, address_spaces=seed, user_mem_slots=51)
    burst = Burst(pair, Random(seed))
    burst.play(400)
    pair.logs_agree()
    missing = {
        SET,
        "load_memslots",
        "get_dirty_log",
        "clear_dirty_log",
        "harvest_dirty",
        "merge_dirty_log",
        "mark_page_dirty",
        "gfn_to_hva_many",
        "refused_by_listener",
        "vcpu",
        "snapshot",
    } - set(pair.tally)
    assert not missing
    assert bool(pair.tally["begin_update"]) == (backend == "tree")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "seed", "address_spaces", "ids", "span", "pages", "count"),
    [
        ("tree", 11, 1, 40, 4000, 150, 72_000),
        ("tree", 12, 2, 12, 500, 150, 72_000),
        ("tree", 13, 3, 200, 6000, 20, 20_000),
        ("array", 14, 2, 12, 500, 150, 20_000),
        ("list", 15, 2, 12, 500, 150, 20_000),
    ],
)
def test_random_calls_agree_with_the_model(
    backend: str, seed: int, address_spaces: int, ids: int, span: int, pages: int, count: int
) -> None:
    """Makes more calls than hypothesis can in the same time; compares everything after every hundredth."""
    pair = Pair(backend, address_spaces=address_spaces, gpa_bits=52)
    burst = Burst(pair, Random(seed), ids, span, pages)
    burst.play(count, check_every=100)
    pair.logs_agree()
    assert pair.tally.total() >= count * 0.9  # some draws find nothing to do
