# SPDX-License-Identifier: MIT
"""Recorder: its files replay without a mismatch and end with the same slots; the files that an error leaves."""

from __future__ import annotations

import io
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scene import PAGE, put

from memslots import MEMSLOT_DTYPE, VM, Change, Listener, MemFlag, MemslotsError, Recorder, kvm
from memslots.traces import player, vectors

LOG, READONLY = MemFlag.LOG_DIRTY_PAGES, MemFlag.READONLY
BACKENDS = [
    "tree",
    "array",
    pytest.param("kvm", marks=pytest.mark.skipif(bool(kvm.available()), reason="no /dev/kvm")),
]


class OneError(Exception):
    """A listener refuses with it."""


class Refuses(Listener):
    def __init__(self, often: random.Random) -> None:
        self.often = often

    def prepare(self, change: Change) -> None:
        if self.often.random() < 0.1:
            raise OneError


# ---- random changes --------------------------------------------------------------------------------

IDS, PLACES, UNIT = 24, 40, 64


class Changer:
    """Makes random changes of a VM: single ones, loads and updates; some are refused."""

    def __init__(self, vm: VM, rng: random.Random) -> None:
        self.vm, self.rng = vm, rng

    def one(self) -> None:
        make = self.rng.choice((self.single, self.single, self.single, self.load, self.update))
        with suppress(OneError, MemslotsError):
            make()

    def place(self) -> tuple[int, int]:
        return self.rng.randrange(PLACES) * UNIT, self.rng.randrange(1, UNIT + UNIT // 2)

    def flags(self) -> int:
        return int(self.rng.choice((0, 0, LOG, READONLY)))

    def single(self) -> None:
        id, (base, npages), rng = self.rng.randrange(IDS), self.place(), self.rng
        old = self.vm.id_to_memslot(id)
        if old is None:
            put(self.vm, id, base, npages, self.flags())
        elif rng.random() < 0.3:
            self.vm.delete(id)
        elif rng.random() < 0.5:
            self.vm.move(id, base * 4096)
        else:
            self.vm.set_flags(id, **{rng.choice(("set", "clear")): int(LOG)})

    def load(self) -> None:
        ids = self.rng.sample(range(IDS), self.rng.randrange(1, 5))
        rows = np.zeros(len(ids), dtype=MEMSLOT_DTYPE)
        for row, id in zip(rows, ids, strict=True):
            row["base_gfn"], row["npages"] = self.place()
            row["id"], row["flags"], row["userspace_addr"] = id, self.flags(), id << 30
        self.vm.load_memslots(rows)

    def update(self) -> None:
        """Trades places, resizes, deletes and creates in one update."""
        with self.vm.begin_update() as update:
            found = list(update.active)
            self.rng.shuffle(found)
            pairs = [self.draft(update, old, found) for old in found[: self.rng.randrange(5)]]
            if self.rng.random() < 0.5:
                pairs.append((None, self.new(update)))
            self.replace(update, pairs)
            update.swap()
            self.replace(update, pairs)

    def draft(self, update: Any, old: Any, found: list[Any]) -> tuple[Any, Any]:
        rng = self.rng
        if rng.random() < 0.2:
            return old, None
        other = rng.choice(found).memslot
        base, npages = rng.choice(((other.base_gfn, other.npages), self.place()))
        fields = {"base_gfn": base}
        if rng.random() < 0.5:
            fields["npages"] = npages
        if rng.random() < 0.3:
            fields["flags"] = self.flags()
        return old, update.copy(old, **fields)

    def new(self, update: Any) -> Any:
        base, npages = self.place()
        id = self.rng.randrange(IDS)
        return update.copy(
            None, id=id, base_gfn=base, npages=npages, userspace_addr=id << 30, flags=0
        )

    def replace(self, update: Any, pairs: list[tuple[Any, Any]]) -> None:
        """All old slots leave before the new ones come, so that slots may trade places."""
        for old, _ in pairs:
            if old is not None:
                update.replace(old, None)
        for _, new in pairs:
            if new is not None:
                update.replace(None, new)


def replayed(path: Path, backend: str) -> tuple[Any, Any]:
    """The result of a replay, and the VM after it."""
    file = vectors.read(path)
    vm = player.open_backend(backend, file.header)
    return player.play(file, vm), vm


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(4))
def test_random_changes_replay(tmp_path: Path, backend: str, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / ("run.jsonl.gz" if seed % 2 else "run.jsonl")
    with VM() as vm:
        put(vm, 100, PLACES * UNIT * 2, 4)  # the file begins with it
        with Recorder(path, vm) as recorder:
            vm.add_listener(Refuses(rng))
            changer = Changer(vm, rng)
            for _ in range(400):
                changer.one()
        slots = list(vm)
        stats = vm.stats()
    assert stats["creates"] > 20
    assert stats["refused"] > 20
    result, played = replayed(path, backend)
    assert (result.mismatches, result.not_compared, result.ops) == ([], 0, recorder.ops)
    assert recorder.ops > 80
    if backend != "kvm":
        assert list(played) == slots
        played.check()
    played.close()


def test_updates_are_recorded_and_trade_places(tmp_path: Path) -> None:
    """A trade in one update: one of the slots is deleted and created."""
    path = tmp_path / "trade.jsonl"
    with VM() as vm:
        put(vm, 1, 0, 4)
        put(vm, 2, 8, 4, LOG)
        put(vm, 3, 16, 4)
        with Recorder(path, vm, name="a trade"), vm.begin_update() as update:
            drafts = [(update.find(1), 8), (update.find(2), 0), (update.find(3), 32)]
            pairs = [(old, update.copy(old, base_gfn=base)) for old, base in drafts]
            for active in (False, True):
                for old, _ in pairs:
                    update.replace(old, None)
                for _, new in pairs:
                    update.replace(None, new)
                if not active:
                    update.swap()
    file = vectors.read(path)
    assert file.header["name"] == "a trade"
    steps = [(op.fields["slot"], op.fields["gpa"], op.fields["size"]) for op in file.ops[3:]]
    assert steps == [
        (1, 0, 0),
        (2, "0x0", "0x4000"),
        (3, "0x20000", "0x4000"),
        (1, "0x8000", "0x4000"),
    ]


def test_other_address_spaces_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "spaces.jsonl"
    with VM(address_spaces=3, user_mem_slots=8, gpa_bits=40) as vm, Recorder(path, vm):
        for as_id in range(3):
            put(vm, 7, 2**28 - 1, 1, as_id=as_id)
    result, played = replayed(path, "tree")
    assert result.mismatches == []
    assert (played.address_spaces, played.user_mem_slots, played.gpa_bits) == (3, 8, 40)
    assert len(played) == 3
    played.close()


# ---- ways to end -----------------------------------------------------------------------------------


def test_file_object() -> None:
    buffer = io.BytesIO()
    with VM() as vm:
        with Recorder(buffer, vm):
            put(vm, 1, 0, 4)
            assert buffer.getvalue() == b""
        put(vm, 2, 8, 4)  # not recorded
    header, *ops = map(json.loads, buffer.getvalue().splitlines())
    assert (header["ops"], [op["slot"] for op in ops]) == (1, [1])


def test_end_of_the_vm_ends_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    vm = VM()
    recorder = Recorder(path, vm).__enter__()
    put(vm, 1, 0, 4)
    vm.close()
    assert len(vectors.read(path).ops) == 1
    recorder.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.jsonl"]


def test_exception_in_the_block_keeps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with VM() as vm, pytest.raises(OneError), Recorder(path, vm):  # noqa: PT012
        put(vm, 1, 0, 4)
        raise OneError
    assert len(vectors.read(path).ops) == 1


def test_once(tmp_path: Path) -> None:
    with VM() as vm:
        recorder = Recorder(tmp_path / "run.jsonl", vm)
        with recorder:
            pass
        with pytest.raises(ValueError, match="once"):
            recorder.__enter__()


def test_while_it_records_the_path_is_as_before(tmp_path: Path) -> None:
    """As after a crash: the partial file has the steps of all complete changes, and no reader takes it for whole."""
    path, partial = tmp_path / "run.jsonl", tmp_path / "run.jsonl.partial"
    path.write_text("the file of an earlier run")
    with VM() as vm, Recorder(path, vm):
        put(vm, 1, 0, 4)
        put(vm, 2, 8, 4)
        assert path.read_text() == "the file of an earlier run"
        header, *ops = map(json.loads, partial.read_bytes().splitlines())
        assert (header["ops"], [op["slot"] for op in ops]) == (0, [1, 2])
        with pytest.raises(vectors.VectorError):
            vectors.read(partial)
    assert len(vectors.read(path).ops) == 2
    assert not partial.exists()


def test_error_stops_the_recording(tmp_path: Path) -> None:
    """The caller of the change gets it, the change is complete, and close() raises it and makes no file."""
    path = tmp_path / "run.jsonl"
    with VM(user_mem_slots=40_000) as vm:
        recorder = Recorder(path, vm).__enter__()
        put(vm, 1, 0, 4)
        with pytest.raises(ValueError, match="ids below 32767") as caught:
            put(vm, 39_999, 8, 4, hva=0)
        assert len(vm) == 2
        put(vm, 2, 16, 4)
        with pytest.raises(ValueError) as again:  # noqa: PT011 (the very same object)
            recorder.close()
        assert again.value is caught.value
    assert list(tmp_path.iterdir()) == []


def test_no_folder(tmp_path: Path) -> None:
    with VM() as vm, pytest.raises(FileNotFoundError):
        Recorder(tmp_path / "none" / "run.jsonl", vm)


def test_refused_changes_are_not_recorded(tmp_path: Path) -> None:
    class Never(Listener):
        def prepare(self, change: Change) -> None:
            raise OneError

    path = tmp_path / "run.jsonl"
    with VM() as vm, Recorder(path, vm):
        never = Never()
        vm.add_listener(never)
        with pytest.raises(OneError):
            put(vm, 1, 0, 4)
        vm.remove_listener(never)
        put(vm, 2, 8, 4)
    assert [op.fields["slot"] for op in vectors.read(path).ops] == [2]


def test_transactions_are_recorded_as_the_steps_of_their_plan(tmp_path: Path) -> None:
    """A circle of four slots takes one delete; the file replays to the same slots."""
    path = tmp_path / "circle.jsonl"
    with VM() as vm:
        for id in range(4):
            put(vm, id, 16 * id, 16, LOG if id == 1 else 0)
        with Recorder(path, vm):
            with vm.transaction() as t:
                for id in range(4):
                    t.move(id, (id + 1) % 4 * 16 * PAGE)
            with vm.transaction() as t:
                t.split(1, 40 * PAGE)
                t.punch(0, 8 * PAGE)
            wanted = vm.memslots()
    ops = vectors.read(path).ops
    assert [op.fields["size"] for op in ops[4:9]].count(0) == 1
    with VM() as played:
        for op in ops:
            f = op.fields
            region = {
                "guest_phys_addr": f["gpa"],
                "memory_size": f["size"],
                "userspace_addr": f["hva"],
            }
            numbers = {name: int(str(value), 0) for name, value in region.items()}
            played.set_user_memory_region(f["slot"], **numbers, flags=f["flags"])
        assert played.memslots() == wanted
