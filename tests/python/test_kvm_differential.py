# SPDX-License-Identifier: MIT
"""The engine against the running kernel: MEMSLOTS_KVM_CALLS random calls, every answer compared.

Each test stops after MEMSLOTS_KVM_SECONDS, because on a busy machine each change of the kernel waits
milliseconds for a grace period.  The last lines of pytest's output give the number of calls.  `make test-kernel`
makes a million calls without a time limit.

The last tests show that the comparison can fail: they plant one bug in an engine, and the comparison must find it.
"""

import errno
import os
from collections.abc import Callable

import differential
import pytest
from model import ModelVM

import memslots
from memslots import errors, kvm

CALLS = int(os.environ.get("MEMSLOTS_KVM_CALLS", "100000"))
SECONDS = float(os.environ.get("MEMSLOTS_KVM_SECONDS", "25"))
A_SEED = 50_000  # enough for an episode of each profile, and for every kind of call and answer
SHARES = [min(A_SEED, CALLS - done) for done in range(0, CALLS, A_SEED)]

# Other tests compare the model and the other backends with the tree: a tenth of the calls is enough here.
OTHERS_SHARE = max(1, CALLS // 10)

# Upper limit of calls to find a planted bug: a first difference usually comes within 5,000.
CAUGHT_WITHIN = 60_000

LOG, PAGE = 1, 4096


@pytest.fixture(autouse=True)
def needs_kvm():
    reason = kvm.available()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def compared(record_property) -> Callable[..., differential.Report]:
    """Runs a comparison; pytest prints the number of its calls in the last lines of the output."""

    def run(engine_factory, seed, calls):
        report = differential.run(engine_factory, seed, calls, SECONDS)
        print(report)
        record_property("calls compared with the kernel", (report.calls, calls))
        assert report.difference is None, str(report.difference)
        assert report.calls == calls or report.out_of_time
        assert report.calls
        return report

    return run


def test_shares_add_up_to_all_calls():
    assert sum(SHARES) == CALLS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(SHARES)))
def test_engine_gives_the_answers_of_the_kernel(compared, seed):
    report = compared(memslots.VM, seed, SHARES[seed])
    if report.calls == A_SEED:
        assert report.changes >= report.calls / 4
        assert report.not_compared < report.calls / 1000
        assert set(report.by_kind) == {*differential.DIRTY_KINDS, "audit"}
        assert {"0", "EINVAL", "EEXIST", "ENOENT", "EFAULT", "log"} <= set(report.by_errno)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [b for b in memslots.backends() if b != "tree"])
def test_other_backend_gives_the_answers_of_the_kernel(compared, backend):
    compared(lambda **config: memslots.VM(backend=backend, **config), 100, OTHERS_SHARE)


@pytest.mark.slow
def test_model_gives_the_answers_of_the_kernel(compared):
    compared(ModelVM, 101, OTHERS_SHARE)


def test_seed_determines_the_sequence():
    first, second = (differential.run(ModelVM, 7, 3_000) for _ in range(2))
    assert first == second
    assert differential.run(ModelVM, 8, 3_000).tally != first.tally


def test_run_that_is_out_of_time_reports_fewer_calls():
    report = differential.run(ModelVM, 7, 3_000, seconds=0)
    assert report.out_of_time
    assert report.calls < 3_000
    assert report.difference is None


# ---- it can fail ---------------------------------------------------------------------------------


class AdjacentOverlaps(ModelVM):
    """Refuses adjacent slots as overlapping."""

    def _check_overlap(self, space, new):
        super()._check_overlap(space, new)
        neighbours = space.in_gfn_range(max(0, new.base_gfn - 1), new.end_gfn + 1)
        if any(s.id != new.id for s in neighbours):
            raise errors.from_errno(errno.EEXIST, "adjacent")


class EdgePageFree(ModelVM):
    """Allows the last page of a new slot to overlap another slot."""

    def _check_overlap(self, space, new):
        others = [s for s in space.in_gfn_range(new.base_gfn, new.end_gfn - 1) if s.id != new.id]
        if others:
            raise errors.from_errno(errno.EEXIST, "overlap")


class BitmapLostOnMove(ModelVM):
    def _move(self, old, new):
        super()._move(old, new)
        if old.flags & new.flags & LOG:
            self._dirty[new.as_id, new.id] = 0


class DeleteIgnoresAlignment(ModelVM):
    def set_user_memory_region(self, slot, *, guest_phys_addr, memory_size, **more):
        if memory_size == 0:
            guest_phys_addr -= guest_phys_addr % PAGE
        super().set_user_memory_region(
            slot, guest_phys_addr=guest_phys_addr, memory_size=memory_size, **more
        )


class GpaLimitBeforeOverlap(ModelVM):
    def _check_overlap(self, space, new):
        self._check_gpa_limit(new)
        super()._check_overlap(space, new)


class GpaLimitOnlyOnCreate(ModelVM):
    def _move(self, old, new):
        self.gpa_bits, kept = 64, self.gpa_bits
        try:
            super()._move(old, new)
        finally:
            self.gpa_bits = kept


class NullBufferKeepsTheLog(ModelVM):
    def _get_dirty_log_null(self, slot, as_id=0):
        self._check_log_ids(slot, as_id)
        self._logged_slot(slot, as_id)
        raise errors.from_errno(errno.EFAULT, "null buffer")


class ClearIgnoresFirstPage(ModelVM):
    def _clear(self, as_id, id, first_page, bitmap):
        super()._clear(as_id, id, 0, bitmap)


class LogOnTwiceIsFresh(ModelVM):
    """Gives a fresh bitmap if the LOG flag is set again."""

    def set_user_memory_region(self, slot, *, as_id=0, **more):
        super().set_user_memory_region(slot, as_id=as_id, **more)
        if (as_id, slot) in self._dirty:
            self._dirty[as_id, slot] = 0


class Crashes(ModelVM):
    def clear_dirty_log(self, *args, **more):
        raise ZeroDivisionError("planted")


@pytest.mark.parametrize(
    "engine",
    [
        AdjacentOverlaps,
        EdgePageFree,
        BitmapLostOnMove,
        DeleteIgnoresAlignment,
        GpaLimitBeforeOverlap,
        GpaLimitOnlyOnCreate,
        NullBufferKeepsTheLog,
        ClearIgnoresFirstPage,
        LogOnTwiceIsFresh,
        Crashes,
    ],
)
def test_planted_bug_is_found(engine):
    report = differential.run(engine, 1, CAUGHT_WITHIN)
    assert report.difference is not None
    print(report.difference)


def test_difference_can_be_replayed():
    found = differential.run(AdjacentOverlaps, 2, CAUGHT_WITHIN).difference
    with kvm.KvmVM() as kernel:
        config = differential.limits_of(kernel)
        kernel_answer = differential.replay(kernel, found.ops)[-1]
    engine_answer = differential.replay(AdjacentOverlaps(**config), found.ops)[-1]
    assert (engine_answer, kernel_answer) == (found.engine, found.kernel)
    assert engine_answer == errno.EEXIST != kernel_answer
    assert "seed 2, step " in str(found)
    assert "engine: EEXIST" in str(found)
    assert f"vm.set_user_memory_region({found.op.args[0]:#x}, guest_phys_addr=" in str(found)
