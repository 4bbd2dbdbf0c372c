# SPDX-License-Identifier: MIT
"""Every measurement checks every answer that it times: exactly one wrong answer, in each call and at each position."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from memslots import HVA_ERR_BAD
from memslots.commands import cli, perf, scale
from memslots.lab import (
    changes,
    filling,
    layouts,
    lookups,
    peers,
    replays,
    scaling,
    selftest,
    subjects,
)
from memslots.lab.case import Budget, Case, Run
from memslots.lab.sample import Sample
from memslots.lab.subjects import CHANGES, Engine, Subjects
from memslots.measure import crossover
from memslots.traces import player

BUDGET = Budget(0.0005, 1.0, 1.0, 90, 8, 5)
N = 10


class Lie(NamedTuple):
    """The answer that is changed: of the call with this number, at this position."""

    call: int
    at: int


class Liar(Engine):
    """An engine with one wrong answer."""

    made_calls: ClassVar[list[tuple[str, int]]] = []  # method, number of answers
    lie: ClassVar[Lie | None] = None

    def told(self, method: str, found: Any) -> Any:
        ns, answers = found
        if self.lie and self.lie.call == len(self.made_calls):
            answers[self.lie.at] += answers.dtype.type(1)
        self.made_calls.append((method, len(answers)))
        return ns, answers

    def gfns(self, *args: Any) -> Any:
        return self.told("gfns", super().gfns(*args))

    def vcpu_gfns(self, *args: Any) -> Any:
        return self.told("gfns", super().vcpu_gfns(*args))

    def ids(self, *args: Any) -> Any:
        return self.told("ids", super().ids(*args))

    def hvas(self, *args: Any) -> Any:
        return self.told("hvas", super().hvas(*args))

    def changes(self, *args: Any) -> Any:
        return self.told("changes", super().changes(*args))


@pytest.fixture(autouse=True)
def liars(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (subjects, scaling):
        monkeypatch.setattr(module, "Engine", Liar)
    yield
    Liar.lie = None


def run(case: Case, lie: Lie | None = None, kind: type[Engine] = Liar) -> list[Sample]:
    """Runs the case once on a tree."""
    Liar.made_calls.clear()
    Liar.lie = lie
    with Subjects() as made:
        for key, slots in (("uniform", layouts.uniform), ("adversarial", layouts.adversarial)):
            made.keep("tree", key, kind("tree", slots(N, 1)))
        return list(case.run(Run("tree", made, BUDGET)))


def wrongs(samples: list[Sample]) -> list[str]:
    return [sample.wrong for sample in samples if sample.wrong]


def named(case: Case) -> str:
    return case.names[0]


def positions(n: int) -> list[int]:
    return sorted({0, n // 2, n - 1})


def is_cold(number: int, method: str, calls: list[tuple[str, int]]) -> bool:
    """Whether this call only fills the caches: the first of three calls of a loop, unless the loop stands in a move."""
    if method == "changes" or any(name == "changes" for name, _ in calls):
        return False
    return number % 3 == 0


LOOPS: list[Case] = [
    *selftest.all_tests(N, 1),
    *changes.all_changes(N, 1),
    *[case for case in lookups.all_lookups(N, 1) if getattr(case, "level", "vm") in ("vm", "vcpu")],
    scaling.HvaLookup(N, 1),
    scaling.SetupSlots(N, 1),
]


@pytest.mark.parametrize("case", LOOPS, ids=named)
def test_each_call_of_a_loop_is_checked_at_each_position(case: Case) -> None:
    assert wrongs(run(case)) == []
    calls = list(Liar.made_calls)
    assert calls
    if len(calls) > 12:  # a move case makes a call for each move
        calls = calls[:4] + calls[-4:]
    first = len(Liar.made_calls) - len(calls)
    for i, (method, n) in enumerate(calls):
        number = i if i < len(calls) // 2 else first + i
        for at in positions(n):
            found = wrongs(run(case, Lie(number, at)))
            if is_cold(number, method, calls):
                assert found == [], (number, at)
            else:
                assert len(found) == len(case.names), (number, method, at)
                assert re.match(r"1 of \d+ [\w' ]+ are wrong: number \d+ is", found[0])


@pytest.mark.parametrize("backend", ["array", subjects.INDEXED])
def test_lies_are_found_on_every_backend(backend: str) -> None:
    case = lookups.GfnLookup("random", "vm", N, 1)
    for call, found in ((0, 0), (1, 1), (2, 1)):
        Liar.made_calls.clear()
        Liar.lie = Lie(call, 3)
        with Subjects() as made:
            assert len(wrongs(list(case.run(Run(backend, made, BUDGET))))) == found


# ---- batches and calls from Python --------------------------------------------------------------


class Answers:
    """Right answers for a layout, but one is wrong: that at position `at` of call `call`."""

    def __init__(self, case: lookups.GfnLookup, lie: Lie | None) -> None:
        self.case, self.lie, self.calls = case, lie, 0

    def many(self, gfns: Any, out: Any) -> None:
        out[:] = layouts.expected_hvas(self.case.slots, gfns)
        if self.lie and self.lie.call == self.calls:
            out[self.lie.at] += np.uint64(4096)
        self.calls += 1

    def one(self, gfn: int) -> int:
        (hva,) = layouts.expected_hvas(self.case.slots, np.array([gfn], dtype=np.uint64)).tolist()
        self.calls += 1
        if self.lie and self.lie.call == self.calls - 1:
            return int(hva) + 4096
        if hva == HVA_ERR_BAD:
            raise LookupError
        return int(hva)


class FakeEngine(Engine):
    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    @property
    def vm(self) -> Any:  # type: ignore[override]
        return self

    def gfn_to_hva(self, gfn: int) -> int:
        return self.answers.one(gfn)

    def gfn_to_hva_many(self, gfns: Any, out: Any) -> None:
        self.answers.many(gfns, out)


def by_engine(case: lookups.GfnLookup, lie: Lie | None) -> Sample:
    engine = FakeEngine(Answers(case, lie))
    return case.timed(engine, *case.stream(90, 90), BUDGET.latencies)


def by_peer(case: lookups.GfnLookup, lie: Lie | None) -> Sample:
    assert isinstance(case, peers.PeerLookup)
    answers = Answers(case, lie)
    case.made = {"idea": answers.many if case.level == "batch" else answers.one}
    with Subjects() as made:
        (sample,) = case.run(Run("idea", made, BUDGET))
    return sample


WAYS: list[tuple[Callable[..., Sample], type[lookups.GfnLookup]]] = [
    (by_engine, lookups.GfnLookup),
    (by_peer, peers.PeerLookup),
]


@pytest.mark.parametrize(("way", "kind"), WAYS)
def test_each_pass_of_a_batch_is_checked_at_each_position(
    way: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """90 numbers in batches of 40, 40 and 10; one untimed call, then three passes."""
    monkeypatch.setattr(lookups, "BATCH", 40)
    case = kind("misses", "batch", N, 1)
    right = way(case, None)
    assert (right.wrong, right.group, right.ops) == (None, 40, 3 * 90)
    assert way(case, Lie(0, 7)).wrong is None
    for call in range(1, 10):
        size = (40, 40, 10)[(call - 1) % 3]
        for at in positions(size):
            number = 90 * ((call - 1) // 3) + 40 * ((call - 1) % 3) + at
            wrong = way(case, Lie(call, at)).wrong
            assert wrong is not None
            assert wrong.startswith(f"1 of 270 answers are wrong: number {number} is")


@pytest.mark.parametrize(("way", "kind"), WAYS)
def test_each_call_from_python_is_checked(way: Any, kind: Any) -> None:
    """90 untimed calls, then 90 calls in groups, then 5 calls that are timed alone."""
    case = kind("misses", "python", N, 1)
    right = way(case, None)
    assert (right.wrong, right.group, right.ops, len(right.singles)) == (None, 1, 95, 5)
    for call in (0, 50, 89):
        assert way(case, Lie(call, 0)).wrong is None
    for call in (90, 91, 153, 154, 179, 180, 182, 184):
        wrong = way(case, Lie(call, 0)).wrong
        assert wrong is not None
        assert wrong.startswith(f"1 of 95 answers are wrong: number {call - 90} is")


# ---- slots and counts after changes -------------------------------------------------------------


class Misplaces(Liar):
    """Lists one slot with one wrong field."""

    fault: ClassVar[tuple[str, int]] = ("base_gfn", 0)

    def contents(self) -> Any:
        slots = super().contents()
        name, at = self.fault
        slots[name][at] += slots[name].dtype.type(1)
        return slots


@pytest.mark.parametrize("name", changes.FIELDS)
def test_one_wrong_field_of_one_slot_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in (0, N // 2, N - 1):
        monkeypatch.setattr(Misplaces, "fault", (name, at))
        monkeypatch.setattr(subjects, "Engine", Misplaces)
        monkeypatch.setattr(scaling, "Engine", Misplaces)
        for case in (
            *changes.all_changes(N, 1), selftest.MoveInactive(N, 1), selftest.SlotSetup(N, 1),
            scaling.LoadSlots(N, 1), scaling.SetupSlots(N, 1),
        ):  # fmt: skip
            found = wrongs(run(case, kind=Misplaces))
            assert len(found) == len(case.names)
            assert f"slots' {name} are wrong: number {at} is" in found[0]


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("more", [-1, 1])
def test_one_change_too_few_or_too_many_is_found(kind: str, more: int) -> None:
    class Miscounts(Liar):
        asked = 0

        def made(self) -> dict[str, int]:
            self.asked += 1
            counts = super().made()
            return counts | {kind: counts[kind] + more * (self.asked == 2)}

    for case in changes.all_changes(N, 1):
        assert isinstance(case, changes.PairCase)
        (found, *_) = wrongs(run(case, kind=Miscounts))
        wanted = 4 * case.kinds.count(kind)
        assert found == f"{wanted + more} {kind} were made, not {wanted}"


def test_missing_slot_is_found() -> None:
    slots = layouts.sorted_by(layouts.uniform(N, 1), "base_gfn")
    with closing(Engine("tree", slots[:-1])) as engine:
        assert changes.misplaced(engine, slots) == "slots' base_gfn: (9,) answers, (10,) expected"


# ---- the kernel ---------------------------------------------------------------------------------


class FakeKernel:
    """A subject that shows only the results of its changes, like the kernel."""

    backend = "kvm"

    def __init__(self, refuses: int = -1) -> None:
        self.refuses = refuses

    def changes(self, rows: Any, group: int = 1) -> Any:
        results = np.zeros(len(rows), dtype=np.int32)
        if self.refuses >= 0:
            results[self.refuses] = -22
        return np.ones(len(rows), dtype=np.uint64), results

    def contents(self) -> None:
        return None

    def made(self) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "kind",
    [changes.DeleteCreate, changes.Move, changes.Flags, selftest.MoveActive, selftest.MoveInactive,
     selftest.SlotSetup, scaling.SetupSlots],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def test_one_refused_ioctl_is_found(
    kind: type[selftest.KernelTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(refuses: int) -> list[str]:
        kernel = FakeKernel(refuses)
        monkeypatch.setattr(subjects, "Kernel", lambda *_: kernel)
        with Subjects() as made:
            return wrongs(list(kind(N, 1).run(Run("kvm", made, BUDGET))))

    assert runs(-1) == []
    for at in (0, 3, 7):
        found = runs(at)
        assert len(found) == len(kind.names)
        assert f"results are wrong: number {at} is -22, not 0" in found[0]


# ---- traces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", range(3))
def test_one_mismatch_in_one_trace_is_found(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [f"{name}.jsonl" for name in ("pc-migrate", "q35-boot", "q35-bars")]
    played: list[str] = []

    class File(NamedTuple):
        path: str
        header: Any = None

    def play(trace: File, vm: Any, *, timings: Any) -> player.PlayResult:
        timings.setdefault("move", []).append(5)
        found = player.PlayResult(trace.path, 4)
        if len(played) == file:
            found.mismatches.append(player.Mismatch(trace.path, 3, "set", {"ret": 0}, {"ret": -1}))
        played.append(trace.path)
        return found

    monkeypatch.setattr(replays.vectors, "packaged_traces", lambda: paths)
    monkeypatch.setattr(replays.vectors, "read", File)
    monkeypatch.setattr(replays.player, "open_backend", lambda *_: FakeKernel())
    monkeypatch.setattr(replays.player, "play", play)
    with Subjects() as made:
        samples = list(replays.Replay(1).run(Run("tree", made, BUDGET)))
    assert played == paths
    assert {s.case for s in samples} == {
        "replay/move", "scenario/migration", "scenario/boot", "scenario/BAR moves",
    }  # fmt: skip
    text = f"1 results are not what Linux answered: {paths[file]}:3: set: "
    assert all((s.wrong or "").startswith(text) for s in samples)


# ---- whole commands -----------------------------------------------------------------------------


class LiesOnce(Liar):
    """One wrong count, in a VM of this room with this number of slots, on one backend."""

    where: ClassVar[tuple[str, int, int]]

    def hvas(self, *args: Any) -> Any:
        ns, answers = Engine.hvas(self, *args)
        if (self.backend, self.vm.user_mem_slots, len(self.vm)) == self.where:
            answers[0] += np.uint64(1)
        return ns, answers


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = cli.main(
        [*arguments, "--quick", "--json", "--no-kvm", "--rounds", "1", "--only", "unmap"]
    )
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("where", [("tree", 509, 2), ("array", subjects.ROOM, 8)])
def test_one_wrong_answer_of_the_crossover_fails_perf(
    where: tuple[str, int, int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crossover, "SIZES", {509: (2, 8), subjects.ROOM: (2, 8)})
    monkeypatch.setattr(crossover, "BUDGET", BUDGET)
    monkeypatch.setattr(perf, "QUICK", perf.Mode("quick", (16,), 1, BUDGET))
    monkeypatch.setattr(LiesOnce, "where", where, raising=False)
    monkeypatch.setattr(subjects, "Engine", LiesOnce)
    code, report = report_of(capsys, "perf")
    found = [(w["case"], w["backend"], w["n_slots"]) for w in report["wrong"]]
    assert (code, found) == (1, [("unmap", where[0], where[2])])


@pytest.mark.parametrize("where", [("tree", subjects.ROOM, 10), ("array", subjects.ROOM, 30)])
def test_one_wrong_answer_of_the_published_cases_fails_scale(
    where: tuple[str, int, int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scale, "QUICK", scale.Mode("quick", 30, 1, BUDGET))
    monkeypatch.setattr(LiesOnce, "where", where, raising=False)
    monkeypatch.setattr(subjects, "Engine", LiesOnce)
    code, report = report_of(capsys, "scale")
    found = {(w["case"], w["backend"], w["n_slots"]) for w in report["wrong"]}
    wanted = {(name, where[0], where[2]) for name in ("unmap", "unmap chunked")}
    assert (code, found) == (1, wanted)
    unchecked = {
        (r["case"], r["backend"], r["n_slots"]) for r in report["selftest"] if not r["checked"]
    }
    assert unchecked == wanted
    assert report["results"] == []


def test_created_slots_are_checked_in_a_vm_that_is_closed_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Closes(Liar):
        closed: ClassVar[list[str]] = []

        def contents(self) -> Any:
            assert not self.vm.closed
            self.closed.append("listed")
            return super().contents()

        def close(self) -> None:
            self.closed.append("closed")
            super().close()

    monkeypatch.setattr(subjects, "Engine", Closes)
    with Subjects() as made:
        ns, results, wrong = filling.created(Run("tree", made, BUDGET), layouts.uniform(N, 1), 4)
    assert (len(ns), len(results), wrong) == (3, N, None)
    assert Closes.closed == ["listed", "closed"]
