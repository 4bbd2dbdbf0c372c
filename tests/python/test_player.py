# SPDX-License-Identifier: MIT
"""Playing vector files: the model and the engine agree with KVM, and the player finds every disagreement."""

import errno
import gzip
import json
import os
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model import ModelVM, Slot

import memslots
from memslots import build_info, kvm
from memslots._memslots import simd_levels
from memslots.commands import cli, info, replay
from memslots.report.words import plural
from memslots.traces import player, schema, vectors
from memslots.traces.player import play
from memslots.traces.vectors import Op, VectorFile

VECTORS = Path(__file__).parents[1] / "vectors"
EDGE = sorted((VECTORS / "edge").glob("*.jsonl"))
RANDOM = sorted((VECTORS / "random").glob("*.jsonl.gz"))
TRACES = vectors.packaged_traces()
FILES = [*EDGE, *RANDOM, *TRACES]
IN_SCOPE = [p for p in FILES if vectors.read_header(p)["scope"] == "memslots"]
SMALL = [p for p in IN_SCOPE if vectors.read_header(p)["ops"] < 3000]

BACKENDS = ("tree", "array")
GUEST_OPS = ("read", "write", "host_write", "access")
PLATFORM_OPS = ("create_vcpu", "create_irqchip", "set_tss_addr", "set_identity_map_addr")


def named(path: Path) -> str:
    return path.name


def model_for(file: VectorFile, kind: type[ModelVM] = ModelVM) -> ModelVM:
    oracle = file.header.get("oracle", {"caps": {}, "limits": {}})
    limits = oracle.get("limits", {})
    return kind(
        user_mem_slots=oracle["caps"].get("nr_memslots", 32764),
        gpa_bits=limits.get("gpa_bits", 52),
        hva_end_max=int(limits.get("hva_end_max", "0x7ffffffff000"), 16),
    )


def made_of(*ops: dict[str, Any], **header: Any) -> VectorFile:
    header = {"format": schema.FORMAT, "scope": "memslots", "ops": len(ops), **header}
    return VectorFile("made", header, [Op(i, op["op"], op) for i, op in enumerate(ops, 2)])


def set_op(slot: int, gpa: int, npages: int, ret: Any = 0, flags: int = 0, **more: Any) -> dict:
    return {
        "op": "set",
        "slot": slot,
        "flags": flags,
        "gpa": f"{gpa:#x}",
        "size": f"{npages * 4096:#x}",
        "hva": "arena+0x0",
        "ret": ret,
        **more,
    }


def log_op(slot: int, *dirty: list[int], nbytes: int = 8) -> dict:
    out = {"bytes": nbytes, "dirty": list(dirty)}
    return {"op": "get_dirty", "slot": slot, "ret": 0, "out": out}


def write_op(gpa: int, hva: str | None = "arena+0x0", wrote: bool = True) -> dict:
    return {"op": "write", "gpa": f"{gpa:#x}", "ret": 0, "out": {"hva": hva, "wrote": wrote}}


# ---- agreement with KVM -------------------------------------------------------------------------


@pytest.mark.above_binding
@pytest.mark.parametrize("path", IN_SCOPE, ids=named)
def test_model_agrees_with_kvm(path: Path) -> None:
    file = vectors.read(path)
    result = play(file, model_for(file))
    assert result.mismatches == []
    assert (result.ops, result.not_compared, result.out_of_scope) == (len(file.ops), 0, 0)
    assert result.by_size == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", IN_SCOPE, ids=named)
def test_engine_agrees_with_kvm(path: Path, backend: str) -> None:
    file = vectors.read(path)
    vm = player.open_backend(backend, file.header)
    result = play(file, vm)
    vm.close()
    assert result.mismatches == []
    assert (result.ops, result.not_compared, result.out_of_scope) == (len(file.ops), 0, 0)


class ByBatch(memslots.VM):
    """Answers by batches; switches through some index policies, so that the index is built, dropped and rebuilt."""

    policies: tuple[Any, ...] = ()
    asked = 0

    def gfn_to_hva_prot(self, gfn: Any, as_id: Any = 0) -> tuple[int, bool]:
        self.index_policy = self.policies[self.asked % len(self.policies)]
        self.asked += 1
        gfns = np.full(65, gfn, np.uint64)  # shorter batches do not build a large index
        (hva, *_), (for_writing, *_) = (
            self.gfn_to_hva_many(gfns, as_id=as_id, write=write).tolist() for write in (False, True)
        )
        if hva >= memslots.HVA_ERR_MIN:
            return super().gfn_to_hva_prot(gfn, as_id)  # raises
        return hva, for_writing < memslots.HVA_ERR_MIN


@pytest.mark.slow
@pytest.mark.parametrize(
    "policies",
    [
        ("eager",),
        ("off",),
        ("eager", "off", "auto", "eager", "walk"),
        ("eager", *("auto",) * 9),  # the index serves many states, with marks
    ],
    ids="-".join,
)
@pytest.mark.parametrize("path", IN_SCOPE, ids=named)
def test_index_agrees_with_kvm(path: Path, policies: tuple[str, ...], monkeypatch: Any) -> None:
    """Every recorded translation, with the index on, off and switched again and again."""
    monkeypatch.setattr(memslots, "VM", type("ByBatches", (ByBatch,), {"policies": policies}))
    file = vectors.read(path)
    with player.open_backend("tree", file.header) as vm:
        result = play(file, vm)
        assert result.mismatches == []
        vm.check()
        made = vm.stats()["index_builds"] + vm.stats()["index_patches"]
        assert bool(made) == (vm.asked > 0 and "eager" in policies)


def test_simd_level_is_chosen_at_import() -> None:
    """At the first batch, another thread might be changing the environment."""
    code = (
        "import os, memslots; os.environ['MEMSLOTS_SIMD'] = 'portable'; "
        "print(memslots.build_info()['simd'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MEMSLOTS_SIMD"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{simd_levels()[-1]}\n"


@pytest.mark.skipif(kvm.available() is not None, reason=f"no kernel to ask: {kvm.available()}")
@pytest.mark.parametrize("path", [*EDGE, *TRACES], ids=named)
def test_this_kernel_agrees_with_the_recording(path: Path) -> None:
    file = vectors.read(path)
    vm = player.open_backend("kvm", file.header)
    result = play(file, vm)
    vm.close()
    if result.notes:
        pytest.skip("; ".join(result.notes))
    assert result.mismatches == []
    assert result.ops == len(file.ops)


@pytest.mark.parametrize("path", sorted(set(FILES) - set(IN_SCOPE)), ids=named)
def test_other_scopes_are_not_played(path: Path) -> None:
    file = vectors.read(path)
    result = play(file, None)
    assert result.out_of_scope == result.ops == len(file.ops) > 0
    assert result.mismatches == []


# ---- every result counts ------------------------------------------------------------------------


def other_ret(ret: Any) -> Any:
    return "EIO" if ret == 0 else 0 if isinstance(ret, str) else ret + 1


def other_out(out: dict[str, Any]) -> dict[str, Any]:
    """The result with its last non-empty field changed."""
    out = dict(out)
    if "dirty" in out:
        out["dirty"] = out["dirty"][1:] if out["dirty"] else [[0, 1]]
    elif "value" in out:
        out["value"] = f"{int(out['value'], 16) ^ 1:#x}"
    elif "mmio" in out:
        out["mmio"] = out["mmio"][1:] if out["mmio"] else [["0x0", 1, "w"]]
    elif "wrote" in out:
        out["wrote"] = not out["wrote"]
    else:
        out["hva"] = "arena+0x0" if out["hva"] is None else None
    return out


def with_changed(
    file: VectorFile, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> VectorFile:
    return file._replace(ops=[op._replace(fields=change(op.fields)) for op in file.ops])


@pytest.mark.parametrize("path", SMALL, ids=named)
def test_every_ret_is_compared(path: Path) -> None:
    file = vectors.read(path)
    changed = with_changed(file, lambda f: {**f, "ret": other_ret(f["ret"])})
    result = play(changed, model_for(file))
    assert [m.line for m in result.mismatches] == [op.line for op in file.ops]


@pytest.mark.above_binding
@pytest.mark.parametrize("path", SMALL, ids=named)
def test_every_out_is_compared(path: Path) -> None:
    file = vectors.read(path)

    def change(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "out": other_out(fields["out"])} if "out" in fields else fields

    result = play(with_changed(file, change), model_for(file))
    lines = [op.line for op in file.ops if "out" in op.fields]
    assert [m.line for m in result.mismatches] == lines


def rewritten(path: Path, folder: Path, line: int, change: Callable[[dict], object]) -> Path:
    """Copies the file and changes one line."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as f:
        rows = f.read().splitlines()
    row = json.loads(rows[line - 1])
    change(row)
    rows[line - 1] = json.dumps(row)
    copy = folder / path.name
    with opener(copy, "wt") as f:
        f.write("\n".join(rows) + "\n")
    return copy


def first_line(path: Path, kind: str, having: Callable[[dict], object]) -> int:
    return next(op.line for op in vectors.read(path).ops if op.kind == kind and having(op.fields))


def put(**changes: Any) -> Callable[[dict], object]:
    return lambda row: row.update(changes)


def failed(name: str) -> Callable[[dict], object]:
    return lambda row: (row.update(ret=name), row.pop("observed"))


def put_out(**changes: Any) -> Callable[[dict], object]:
    return lambda row: row["out"].update(changes)


def accepted(f: dict) -> bool:
    return f["ret"] == 0


def refused(f: dict) -> bool:
    return isinstance(f["ret"], str)


def with_dirty_pages(f: dict) -> bool:
    return bool(f.get("out", {}).get("dirty"))


def landed(f: dict) -> bool:
    return isinstance(f["out"]["hva"], str)


def edge(number: str) -> Path:
    return next(p for p in EDGE if p.name.startswith(number))


def random(name: str) -> Path:
    return VECTORS / "random" / f"{name}.jsonl.gz"


def trace(name: str) -> Path:
    return next(p for p in TRACES if p.name == f"{name}.jsonl.gz")


HAND_MADE = [
    (edge("06"), "set", refused, put(ret="EINVAL"), "EEXIST"),
    (edge("06"), "set", accepted, put(ret="EEXIST"), '"ret": 0'),
    (edge("03"), "set2", refused, put(ret=0), '"ret": "E'),
    (edge("03"), "set2", accepted, put(ret="EINVAL"), '"ret": 0'),
    (edge("02"), "check_cap", lambda f: f["ret"] == 0, put(ret=2), '"ret": 0'),
    (edge("02"), "check_cap", lambda f: f["ret"] > 9, put(ret=32767), "32764"),
    (edge("16"), "check_cap", bool, put(ret=1), '"ret": 3'),
    (edge("16"), "enable_cap", refused, put(ret=0), "EINVAL"),
    (edge("25"), "read", landed, put_out(hva="arena+0x8"), "arena+0x"),
    (edge("25"), "read", lambda f: not landed(f), put_out(hva="arena+0x0"), "null"),
    (
        edge("15"),
        "write",
        lambda f: landed(f) and not f["out"]["wrote"],
        put_out(wrote=True),
        "false",
    ),
    (edge("15"), "host_write", lambda f: f["out"]["wrote"], put_out(wrote=False), "true"),
    (edge("20"), "access", lambda f: not f["write"], put_out(value="0x1"), "value"),
    (edge("20"), "access", lambda f: f["out"]["mmio"], put_out(mmio=[]), '"r"'),
    (edge("19"), "get_dirty", lambda f: f["ret"] == "EFAULT", put(ret="ENOENT"), "EFAULT"),
    (edge("18"), "clear_dirty", lambda f: f["ret"] == "EFAULT", put(ret="EINVAL"), "EFAULT"),
    (edge("09"), "get_dirty", with_dirty_pages, put_out(dirty=[]), '"dirty": [['),
    (edge("26"), "create_vcpu", accepted, put(ret="EEXIST"), '"ret": 0'),
    (random("moves-1"), "set", accepted, put(ret="EEXIST"), '"ret": 0'),
    (random("dirty-1"), "get_dirty", with_dirty_pages, put_out(dirty=[[0, 1]]), '"dirty": [['),
    (random("manual-1"), "clear_dirty", refused, put(ret=0), "E"),
    (random("alias-1"), "read", landed, put_out(hva=None), "arena+0x"),
    (random("readonly-1"), "host_write", landed, put_out(hva="arena+0x10"), "arena+0x"),
    (trace("pc-dimm-migrate"), "set", accepted, put(ret="EINVAL"), '"ret": 0'),
    (trace("pc-dimm-migrate"), "get_dirty", accepted, failed("ENOENT"), '"ret": 0'),
    (trace("pc-dimm-migrate"), "clear_dirty", accepted, put(ret="EINVAL"), '"ret": 0'),
    (trace("pc-dimm-migrate"), "enable_cap", accepted, put(ret="EINVAL"), '"ret": 0'),
    (trace("pc-pam-smram"), "create_irqchip", accepted, put(ret="EEXIST"), '"ret": 0'),
    (trace("pc-pam-smram"), "set_tss_addr", accepted, put(ret="EINVAL"), '"ret": 0'),
    (trace("pc-pam-smram"), "set_identity_map_addr", accepted, put(ret="EINVAL"), '"ret": 0'),
]


def test_hand_made_changes_cover_every_kind_of_operation() -> None:
    kinds = {kind for _, kind, *_ in HAND_MADE}
    assert kinds == set(schema.OPS) - {"set_fault", "create_gmem"}


@pytest.mark.parametrize(("path", "kind", "having", "change", "got"), HAND_MADE)
def test_hand_made_change_is_named(
    path: Path, kind: str, having: Any, change: Any, got: str, tmp_path: Path, capsys: Any
) -> None:
    line = first_line(path, kind, having)
    copy = rewritten(path, tmp_path, line, change)
    assert cli.main(["replay", str(copy)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{copy}:{line}: {kind}: expected ")
    assert got in lines[0].partition(", got ")[2]
    assert lines[-1] == summary(1, len(vectors.read(path).ops), 1)
    assert len(lines) == 2


def test_set_fault_is_compared() -> None:
    right, wrong = {"op": "set_fault", "ret": "EFAULT"}, {"op": "set_fault", "v2": True, "ret": 0}
    result = play(made_of(right, wrong), ModelVM())
    assert [m.line for m in result.mismatches] == [3]
    assert result.mismatches[0].got == {"ret": "EFAULT"}


def test_other_spelling_of_a_number_is_no_mismatch() -> None:
    ops = (set_op(0, 0, 1), write_op(0, hva="arena+0x0000"), write_op(8, hva="0x100000000008"))
    assert play(made_of(*ops), ModelVM()).mismatches == []


def test_other_features_are_out_of_scope() -> None:
    ops = (
        {"op": "create_gmem", "size": "0x1000", "ret": 0},
        {**set_op(0, 0, 1, flags=4), "op": "set2", "gmem": 0},
        {"op": "enable_cap", "cap": "dirty_log_ring", "arg": 4096, "ret": 0},
    )
    result = play(made_of(*ops), ModelVM())
    assert (result.out_of_scope, result.mismatches) == (3, [])


# ---- faults of an engine ------------------------------------------------------------------------


class KeepsBits(ModelVM):
    def get_dirty_log(self, slot: int, as_id: int = 0) -> Any:
        bits = self._dirty.get((as_id, slot))
        words = super().get_dirty_log(slot, as_id)
        self._dirty[as_id, slot] = bits
        return words


class KeepsBitsOnFault(ModelVM):
    def _get_dirty_log_null(self, slot: int, as_id: int = 0) -> None:
        bits = self._dirty.get((as_id, slot))
        try:
            super()._get_dirty_log_null(slot, as_id)
        finally:
            if bits is not None:
                self._dirty[as_id, slot] = bits


class MoveDropsLog(ModelVM):
    def _move(self, old: Slot, new: Slot) -> None:
        super()._move(old, new)
        if (new.as_id, new.id) in self._dirty:
            self._dirty[new.as_id, new.id] = 0


class IgnoresOverlap(ModelVM):
    def _check_overlap(self, space: Any, new: Slot) -> None:
        pass


class OverlapBeforeRules(ModelVM):
    def _check_against_old(self, old: Slot, new: Slot) -> None:
        self._check_overlap(self._spaces[new.as_id], new)
        super()._check_against_old(old, new)


class MarksReadOnly(ModelVM):
    def gfn_to_hva_prot(self, gfn: int, as_id: int = 0) -> tuple[int, bool]:
        return super().gfn_to_hva_prot(gfn, as_id)[0], True


class OffByOnePage(ModelVM):
    def gfn_to_memslot(self, gfn: int, as_id: int = 0) -> Slot | None:
        return super().gfn_to_memslot(gfn, as_id) or super().gfn_to_memslot(gfn - 1, as_id)


class Raises(ModelVM):
    def gfn_to_hva_prot(self, gfn: int, as_id: int = 0) -> tuple[int, bool]:
        raise RuntimeError("broken")


class WrongErrno(ModelVM):
    def gfn_to_hva_prot(self, gfn: int, as_id: int = 0) -> tuple[int, bool]:
        raise OSError(errno.ENOENT, "broken")


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (KeepsBits, "09"),
        (KeepsBitsOnFault, "19"),
        (MoveDropsLog, "07"),
        (IgnoresOverlap, "06"),
        (OverlapBeforeRules, "08"),
        (MarksReadOnly, "15"),
        (OffByOnePage, "25"),
        (Raises, "25"),
        (WrongErrno, "25"),
    ],
)
def test_player_finds_the_fault_of_an_engine(fault: type[ModelVM], number: str) -> None:
    file = vectors.read(edge(number))
    assert play(file, model_for(file, fault)).mismatches


def test_exception_without_an_errno_is_a_mismatch() -> None:
    file = made_of(set_op(0, 0, 1), write_op(0))
    (mismatch,) = play(file, Raises()).mismatches
    assert mismatch.got == {"ret": "RuntimeError: broken"}
    assert str(mismatch).startswith("made:3: write: expected ")


# ---- an engine whose answers have other types ---------------------------------------------------


class ReturnsStatus(ModelVM):
    """Returns an errno as C does instead of raising."""

    def set_user_memory_region(self, slot: int, **region: Any) -> int:  # type: ignore[override]
        return -errno.EINVAL


class MarkReturnsStatus(ModelVM):
    def mark_page_dirty(self, gfn: int, as_id: int = 0) -> int:  # type: ignore[override]
        return 0


class ClearReturnsStatus(ModelVM):
    def clear_dirty_log(self, *args: Any, **more: Any) -> int:  # type: ignore[override]
        return 0


class LogAsList(ModelVM):
    def get_dirty_log(self, slot: int, as_id: int = 0) -> Any:
        return super().get_dirty_log(slot, as_id).tolist()


class LogAsSigned(ModelVM):
    def get_dirty_log(self, slot: int, as_id: int = 0) -> Any:
        return super().get_dirty_log(slot, as_id).astype(np.int64)


class LogAsBytes(ModelVM):
    def get_dirty_log(self, slot: int, as_id: int = 0) -> Any:
        return super().get_dirty_log(slot, as_id).view(np.uint8)


CLEARED = {"op": "clear_dirty", "slot": 1, "first": 0, "num": 64, "bits": [], "ret": 0}


@pytest.mark.parametrize(
    ("vm", "op"),
    [
        (ReturnsStatus, set_op(2, 0x100000, 1)),
        (MarkReturnsStatus, write_op(0)),
        (ClearReturnsStatus, CLEARED),
        (LogAsList, log_op(1)),
        (LogAsSigned, log_op(1)),
        (LogAsBytes, log_op(1)),
    ],
)
def test_answer_of_another_type_is_a_mismatch(vm: type[ModelVM], op: dict) -> None:
    first = set_op(1, 0, 64, flags=1)
    assert play(made_of(first, op), ModelVM()).mismatches == []
    mismatch = play(made_of(first, op), vm()).mismatches[-1]
    assert mismatch.line == 3
    assert mismatch.got["ret"].startswith("TypeError: ")


def answering(answer: Callable[[], Any]) -> ModelVM:
    class Answers(ModelVM):
        def gfn_to_hva_prot(self, gfn: int, as_id: int = 0) -> Any:
            return answer()

    return Answers()


@pytest.mark.parametrize(
    "answer",
    [
        (player.ARENA_BASE, 1),
        (player.ARENA_BASE, 1.0),
        (player.ARENA_BASE, np.True_),
        (np.uint64(player.ARENA_BASE), True),
        (float(player.ARENA_BASE), True),
        [player.ARENA_BASE],
        None,
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["write", "host_write"])
def test_translation_of_another_type_is_a_mismatch(answer: Any, kind: str) -> None:
    file = made_of(set_op(0, 0, 1), {**write_op(0), "op": kind})
    assert play(file, answering(lambda: (player.ARENA_BASE, True))).mismatches == []
    (mismatch,) = play(file, answering(lambda: answer)).mismatches
    assert mismatch.line == 3


class OwnLookupError(LookupError):
    errno = errno.EFAULT  # but it is not an OSError


@pytest.mark.parametrize(
    "error",
    [
        LookupError("hole"),
        KeyError(0),
        IndexError(0),
        OwnLookupError(),
        memslots.NoSuchSlotError(errno.ENOENT, "no slot"),
        OSError(errno.EFAULT, "no LookupError"),
        OSError("EFAULT"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["read", "write", "host_write", "access"])
def test_only_the_error_of_a_hole_counts_as_a_hole(error: Exception, kind: str) -> None:
    def raises() -> Any:
        raise error

    ops = {
        "read": {"op": "read", "gpa": "0x0", "ret": 0, "out": {"hva": None}},
        "write": write_op(0, None, False),
        "host_write": {**write_op(0, None, False), "op": "host_write"},
        "access": access_op("0x0", 1, [["0x0", 1, "r"]], "0xee"),
    }
    assert play(made_of(ops[kind]), ModelVM()).mismatches == []
    (mismatch,) = play(made_of(ops[kind]), answering(raises)).mismatches
    assert mismatch.got["ret"] != 0


def test_errno_in_the_text_of_an_error_does_not_count() -> None:
    class Texts(ModelVM):
        def set_user_memory_region(self, slot: int, **region: Any) -> None:
            raise OSError("EINVAL")

    (mismatch,) = play(made_of(set_op(0, 0, 1, ret="EINVAL")), Texts()).mismatches
    assert mismatch.got == {"ret": "OSError: EINVAL"}


def test_both_names_of_an_errno_are_accepted() -> None:
    class Deadlock(ModelVM):
        def set_user_memory_region(self, slot: int, **region: Any) -> None:
            raise OSError(errno.EDEADLK, "deadlock")

    for name in ("EDEADLK", "EDEADLOCK"):
        assert play(made_of(set_op(0, 0, 1, ret=name)), Deadlock()).mismatches == []
    assert play(made_of(set_op(0, 0, 1, ret="ENOLCK")), Deadlock()).mismatches


@pytest.mark.parametrize("ret", [False, 0.0, None, "0", "Success"])
def test_only_the_integer_0_means_success(ret: Any) -> None:
    assert len(play(made_of(set_op(0, 0, 1, ret=ret)), ModelVM()).mismatches) == 1


def access_op(gpa: str, length: int, mmio: list, value: str | None = None) -> dict:
    out = {"mmio": mmio} if value is None else {"mmio": mmio, "value": value}
    store = value is None
    return {"op": "access", "gpa": gpa, "len": length, "write": store, "ret": 0, "out": out}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            access_op("0x0", 2, [["0x0", 2, "r"]], "0xeeee"),
            [
                access_op("0x0", 2, [["0x0", 2, "w"]], "0xeeee"),
                access_op("0x0", 2, [["0x0", 1, "r"]], "0xeeee"),
                access_op("0x0", 2, [["0x1", 2, "r"]], "0xeeee"),
                access_op("0x0", 2, [["0x0", 2, "r"], ["0x0", 2, "r"]], "0xeeee"),
                access_op("0x0", 2, [["0x0", 1, "r"], ["0x1", 1, "r"]], "0xeeee"),
                access_op("0x0", 2, [], "0xeeee"),
            ],
        ),
        (
            access_op("0x0", 2, [["0x0", 2, "w"]]),
            [access_op("0x0", 2, [["0x0", 2, "r"]]), access_op("0x0", 2, [])],
        ),
    ],
)
def test_another_mmio_exit_is_a_mismatch(right: dict, wrong: list[dict]) -> None:
    assert play(made_of(right), ModelVM()).mismatches == []
    lines = [m.line for m in play(made_of(*wrong), ModelVM()).mismatches]
    assert lines == list(range(2, len(wrong) + 2))


def test_integer_instead_of_bool_is_a_mismatch() -> None:
    ops = (write_op(0, wrote=1), write_op(0x5000, hva=None, wrote=0))  # type: ignore[arg-type]
    result = play(made_of(set_op(0, 0, 1), *ops), ModelVM())
    assert [m.line for m in result.mismatches] == [3, 4]


def test_unknown_key_is_not_compared() -> None:
    log = log_op(1)
    log["out"]["colour"] = "red"
    assert play(made_of(LOGGED, log), ModelVM()).mismatches == []


def test_access_does_not_wrap_at_2_64() -> None:
    """The reader refuses such an access.  The player does not translate page 0 for it either."""
    asked = []

    class Asked(ModelVM):
        def gfn_to_hva_prot(self, gfn: int, as_id: int = 0) -> tuple[int, bool]:
            asked.append(gfn)
            return super().gfn_to_hva_prot(gfn, as_id)

    play(made_of(set_op(0, 0, 1), access_op("0xffffffffffffffff", 2, [], "0x0")), Asked())
    assert 0 not in asked
    assert (1 << 52) - 1 in asked


def test_mismatch_shows_only_some_runs_of_a_large_log() -> None:
    class AllDirty(ModelVM):
        def get_dirty_log(self, slot: int, as_id: int = 0) -> Any:
            return np.full(1 << 10, 0x5555555555555555, np.uint64)

    (mismatch,) = play(made_of(LOGGED, log_op(1, [3, 1])), AllDirty()).mismatches
    assert mismatch.got["out"]["dirty"] == [[2 * i, 1] for i in range(9)]


def test_large_observed_log_is_marked_in_pieces() -> None:
    most = []

    class Pieces(memslots.VM):
        def mark_page_dirty_many(self, gfns: Any, as_id: int = 0) -> None:
            most.append(len(gfns))
            super().mark_page_dirty_many(gfns, as_id)

    npages = 1 << 20
    seen = {"bytes": npages // 8, "dirty": [[0, npages - 1]]}
    log = {"op": "get_dirty", "slot": 1, "ret": 0, "observed": seen}
    manual = {"op": "enable_cap", "cap": player.MANUAL_PROTECT, "arg": 1, "ret": 0}
    with Pieces() as vm:
        assert play(made_of(manual, set_op(1, 0, npages, flags=1), log), vm).mismatches == []
        words = vm.get_dirty_log(1)
    assert max(most) < npages // 8
    assert np.unpackbits(words.view(np.uint8)).sum() == npages - 1


# ---- a kernel without a guest -------------------------------------------------------------------


class Kernel(ModelVM):
    """Has the calls of KvmVM: no lookups, no marks."""

    translates = False
    gfn_to_hva_prot = mark_page_dirty = mark_page_dirty_many = None  # type: ignore[assignment]

    def set_user_memory_region(
        self, slot: int, *, guest_memfd: int | None = None, flags: int = 0, **region: Any
    ) -> None:
        """Without a guest_memfd, KvmVM uses the first ioctl, which allows two flags."""
        if guest_memfd is None and flags & ~3:
            raise OSError(errno.EINVAL, "flags of the second ioctl")
        super().set_user_memory_region(slot, flags=flags, **region)

    def check_extension(self, name: str) -> int:
        return {"nr_memslots": 32764, "manual_dirty_log_protect2": 3}.get(name, 0)


@pytest.mark.above_binding
@pytest.mark.parametrize("path", SMALL, ids=named)
def test_only_comparable_calls_reach_the_kernel(path: Path) -> None:
    file = vectors.read(path)
    result = play(file, model_for(file, Kernel))
    kinds = Counter(op.kind for op in file.ops)
    assert result.mismatches == []
    assert result.not_compared == sum(kinds[k] for k in (*GUEST_OPS, *PLATFORM_OPS))


def on_kernel(*ops: dict, **header: Any) -> player.PlayResult:
    return play(made_of(*ops, **header), Kernel())


LOGGED = set_op(1, 0, 64, flags=1)


def test_log_that_lacks_a_store_is_compared_by_size() -> None:
    result = on_kernel(LOGGED, write_op(0x2000), log_op(1, [2, 1]))
    assert (result.mismatches, result.by_size, result.not_compared) == ([], 1, 1)
    result = on_kernel(LOGGED, write_op(0x2000), log_op(1, [2, 1], nbytes=16))
    assert [m.line for m in result.mismatches] == [4]


@pytest.mark.parametrize(
    "between",
    [
        (log_op(1, [2, 1]),),
        ({"op": "get_dirty", "slot": 1, "buf": "fault", "ret": "EFAULT"},),
        (set_op(1, 0, 0), LOGGED),
        (set_op(1, 0, 64), LOGGED),
    ],
    ids=["harvest", "lost harvest", "delete", "log off and on"],
)
def test_log_is_complete_again_after(between: tuple[dict, ...]) -> None:
    ops = (LOGGED, write_op(0x2000), *between)
    assert on_kernel(*ops, log_op(1)).mismatches == []
    result = on_kernel(*ops, log_op(1, [3, 1]))
    assert [m.line for m in result.mismatches] == [len(ops) + 2]


def test_log_stays_incomplete_under_manual_protect_and_across_a_move() -> None:
    enable = {"op": "enable_cap", "cap": player.MANUAL_PROTECT, "arg": 1, "ret": 0}
    move = set_op(1, 0x100000, 64, flags=1)
    log = log_op(1, [2, 1])
    result = on_kernel(enable, LOGGED, write_op(0x2000), log, move, log)
    assert (result.mismatches, result.by_size) == ([], 2)


def test_only_the_slot_that_was_written_is_incomplete() -> None:
    other = {**set_op(2, 0x100000, 64, flags=1), "hva": "arena+0x100000"}
    ops = (LOGGED, other, write_op(0x2000), write_op(0x101000, wrote=False))
    result = on_kernel(*ops, log_op(2, [1, 1]))
    assert [m.line for m in result.mismatches] == [6]


def test_store_across_pages_leaves_both_slots_incomplete() -> None:
    out = {"mmio": []}
    store = {"op": "access", "gpa": "0x3ffff", "len": 2, "write": True, "ret": 0, "out": out}
    ops = (LOGGED, set_op(2, 0x40000, 64, flags=1), store, log_op(1, [63, 1]), log_op(2, [0, 1]))
    result = on_kernel(*ops)
    assert (result.mismatches, result.by_size) == ([], 2)


class RefusesSlot1(Kernel):
    def set_user_memory_region(self, slot: int, **region: Any) -> None:
        if slot == 1:
            raise kvm.NotCompared("slot 1 is too large")
        super().set_user_memory_region(slot, **region)


def test_change_that_does_not_reach_the_kernel_is_counted() -> None:
    result = play(made_of(LOGGED, set_op(2, 0, 1), set_op(2, 0, 1)), RefusesSlot1())
    assert (result.mismatches, result.not_compared) == ([], 1)
    (reason,) = result.skipped
    assert "too large" in reason


def test_vectors_with_other_limits_get_a_note() -> None:
    limits = {"gpa_bits": 46, "hva_end_max": "0x7ffffffff000"}
    result = on_kernel(oracle={"caps": {"nr_memslots": 509}, "limits": limits})
    assert [note.split()[0] for note in result.notes] == ["user_mem_slots", "gpa_bits"]
    assert on_kernel().notes == []


# ---- times --------------------------------------------------------------------------------------


def test_times_are_sorted_by_kind() -> None:
    gone, moved = set_op(1, 0, 0), set_op(1, 0x100000, 64, flags=1)
    clear = {"op": "clear_dirty", "slot": 1, "first": 0, "num": 64, "bits": [], "ret": 0}
    ops = (
        *(LOGGED, LOGGED, moved, set_op(1, 0x100000, 64), moved, log_op(1), clear, gone),
        *(set_op(2, 0, 1), set_op(3, 0, 1, ret="EEXIST"), set_op(3, 0, 1, ret="EINVAL", flags=8)),
        *(write_op(0), write_op(0x5000, hva=None, wrote=False)),
        {"op": "read", "gpa": "0x0", "ret": 0, "out": {"hva": "arena+0x0"}},
        {"op": "create_vcpu", "ret": 0},
    )
    timings: player.Timings = {}
    assert play(made_of(*ops), ModelVM(), timings=timings).mismatches == []
    assert {kind: len(times) for kind, times in timings.items()} == {
        "create": 2,
        "no-op": 1,
        "move": 1,
        "flags": 2,
        "get_dirty": 1,
        "clear_dirty": 1,
        "delete": 1,
        "refused": 1,  # the player refuses the other one before it calls the engine
        "lookup": 3,
        "mark": 1,
    }
    assert all(ns > 0 for times in timings.values() for ns in times)


def test_progress_adds_up() -> None:
    done: list[int] = []
    ops = [set_op(1, 0, 1)] * 1000
    play(made_of(*ops), ModelVM(), progress=done.append)
    assert sum(done) == 1000
    assert len(done) > 1


def test_observed_log_is_marked() -> None:
    vm = ModelVM()
    seen = {"bytes": 8, "dirty": [[3, 2]]}
    log = {"op": "get_dirty", "slot": 1, "ret": 0, "observed": seen}
    manual = {"op": "enable_cap", "cap": player.MANUAL_PROTECT, "arg": 1, "ret": 0}
    moved = set_op(1, 0x100000, 64, flags=1)
    assert play(made_of(manual, LOGGED, moved, log), vm).mismatches == []
    assert vm.get_dirty_log(1).tolist() == [0b11000]


# ---- the command --------------------------------------------------------------------------------


def summary(files: int, ops: int, mismatches: int = 0, not_compared: int = 0, out: int = 0) -> str:
    parts = [plural(files, "file"), plural(ops, "op"), plural(mismatches, "mismatch")]
    return f"{', '.join(parts)}, {not_compared:,} not compared, {out:,} out of scope"


def ops_in(*paths: Path) -> int:
    return sum(vectors.read_header(p)["ops"] for p in paths)


def test_replay_of_a_folder(capsys: Any) -> None:
    assert cli.main(["replay", str(VECTORS / "edge")]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    out = ops_in(*set(EDGE) - set(IN_SCOPE))
    assert lines[-1] == summary(len(EDGE), ops_in(*EDGE), out=out)
    assert sum("out of scope: " in line for line in lines[:-1]) == 5
    assert captured.err == ""


def test_replay_of_files_and_folders(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    for path in (EDGE[0], TRACES[0]):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "notes.txt").write_text("no vectors")
    assert cli.main(["replay", str(tmp_path), str(EDGE[1])]) == 0
    expected = summary(3, ops_in(EDGE[0], TRACES[0], EDGE[1]))
    assert capsys.readouterr().out.splitlines() == [expected]


def test_replay_counts_all_mismatches_and_shows_some(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "v.jsonl"
    vectors.write(path, {"scope": "memslots"}, [set_op(1, 0, 1, ret="EIO")] * 30)
    assert cli.main(["replay", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if line.startswith(f"{path}:")]
    assert len(shown) == replay.SHOWN_MISMATCHES + 1
    assert "10 more mismatches" in shown[-1]
    assert lines[-1] == summary(1, 30, 30)


def test_replay_cuts_long_results(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "v.jsonl"
    runs = [[2 * i, 1] for i in range(1000)]
    log = log_op(1, *runs, nbytes=256)
    vectors.write(path, {"scope": "memslots"}, [set_op(1, 0, 2048, flags=1), log])
    assert cli.main(["replay", str(path)]) == 1
    assert max(map(len, capsys.readouterr().out.splitlines())) < 1000


def test_replay_json(tmp_path: Path, capsys: Any) -> None:
    line = first_line(EDGE[0], "set", refused)
    copy = rewritten(EDGE[0], tmp_path, line, put(ret=0))
    other = edge("22")
    assert cli.main(["replay", "--json", str(copy), str(other)]) == 1
    report = json.loads(capsys.readouterr().out)
    totals = {key: report[key] for key in ("files", "ops", "mismatches", "not_compared", "by_size")}
    ops, others = ops_in(copy), ops_in(other)
    assert totals == {
        "files": 2,
        "ops": ops + others,
        "mismatches": 1,
        "not_compared": 0,
        "by_size": 0,
    }
    assert (report["out_of_scope"], report["backend"]) == (others, "tree")
    assert (report["skipped"], report["errors"]) == ({}, [])
    assert [r["scope"] for r in report["results"]] == ["memslots", "dirty-ring"]
    expected, got = {"ret": 0}, {"ret": "EINVAL"}
    found = {"path": str(copy), "line": line, "op": "set", "expected": expected, "got": got}
    assert report["found"] == [found]
    assert isinstance(report["memslots"], str)


MALFORMED = [
    (edge("01"), "set", refused, put(op="sett"), 'unknown op "sett"'),
    (edge("01"), "set", refused, put(slot="1"), "slot is"),
    (edge("01"), "set", refused, lambda row: row.pop("gpa"), "no gpa"),
    (edge("09"), "get_dirty", with_dirty_pages, put_out(bytes=4096), "bytes is 4096, but slot"),
]


@pytest.mark.parametrize(("path", "kind", "having", "change", "reason"), MALFORMED)
def test_malformed_line_is_named(
    path: Path, kind: str, having: Any, change: Any, reason: str, tmp_path: Path, capsys: Any
) -> None:
    line = first_line(path, kind, having)
    copy = rewritten(path, tmp_path, line, change)
    assert cli.main(["replay", str(copy)]) == 2
    captured = capsys.readouterr()
    assert f"{copy}:{line}: " in captured.err
    assert reason in captured.err
    assert captured.out.splitlines() == [summary(0, 0)]


def test_text_that_is_not_json_is_named(tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "v.jsonl"
    rows = EDGE[0].read_text().splitlines()
    copy.write_text("\n".join([*rows[:4], rows[4][:-3], *rows[5:]]))
    assert cli.main(["replay", str(copy)]) == 2
    assert f"{copy}:5: not JSON" in capsys.readouterr().err


def test_truncated_gzip_is_named(tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "v.jsonl.gz"
    copy.write_bytes(RANDOM[0].read_bytes()[:-500])
    assert cli.main(["replay", str(copy)]) == 2
    message = capsys.readouterr().err
    line = int(message.split(f"{copy}:")[1].split(":")[0])
    assert line > 100
    assert "damaged gzip" in message


def test_one_bad_file_does_not_hide_the_others(tmp_path: Path, capsys: Any) -> None:
    line = first_line(EDGE[0], "set", refused)
    rewritten(EDGE[0], tmp_path, line, put(ret=0))
    (tmp_path / "bad.jsonl").write_text("{}\n")
    assert cli.main(["replay", "--json", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["files"], report["mismatches"]) == (1, 1)
    assert report["errors"] == [
        f"{tmp_path}/bad.jsonl:1: the first line is not a header: no format"
    ]
    assert "bad.jsonl:1" in captured.err


@pytest.mark.parametrize(
    "argv",
    [
        ["replay"],
        ["frobnicate"],
        ["replay", "--backend"],
        ["replay", "--nonsense", str(EDGE[0])],
        ["replay", "/nonexistent/v.jsonl"],
        ["replay", "--backend", "btree", str(EDGE[0])],
        ["info", "surplus"],
    ],
)
def test_usage_errors(argv: list[str], capsys: Any) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err
    assert "Traceback" not in captured.err


def test_missing_file_is_named(capsys: Any) -> None:
    assert cli.main(["replay", "/nonexistent/v.jsonl"]) == 2
    assert "/nonexistent/v.jsonl: No such file" in capsys.readouterr().err


def test_empty_folder_is_an_error(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["replay", str(tmp_path)]) == 2
    assert f"{tmp_path}: no .jsonl" in capsys.readouterr().err


def test_unknown_backend_is_named(capsys: Any) -> None:
    assert cli.main(["replay", "--backend", "btree", str(EDGE[0])]) == 2
    assert "btree" in capsys.readouterr().err


def test_missing_kernel_is_explained(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(kvm, "available", lambda: "/dev/kvm is not usable: EACCES")
    assert cli.main(["replay", "--backend", "kvm", str(EDGE[0])]) == 2
    assert "/dev/kvm is not usable: EACCES" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["replay", "info"])
def test_help_has_an_example(command: str, capsys: Any) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"example: memslots {command}" in capsys.readouterr().out


def test_help_lists_the_commands(capsys: Any) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("perf", "replay", "info"))


def test_perf_runs_its_module(monkeypatch: Any) -> None:
    perf = types.ModuleType("memslots.commands.perf")
    perf.add_arguments = lambda parser: parser.add_argument("--seed", type=int)
    perf.run = lambda args: args.seed
    monkeypatch.setitem(sys.modules, "memslots.commands.perf", perf)
    assert cli.main(["perf", "--seed", "7"]) == 7


@pytest.mark.parametrize("command", ["perf", "scale"])
def test_command_without_its_library_names_the_extra(
    command: str, monkeypatch: Any, capsys: Any
) -> None:
    for name in [name for name in sys.modules if name.startswith("memslots.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"memslots.commands.{command}", raising=False)
    monkeypatch.setitem(sys.modules, "tabulate", None)
    assert cli.main([command]) == 2
    assert "pip install 'memslots[perf]'" in capsys.readouterr().err
    assert cli.main(["replay", str(EDGE[0])]) == 0


class Bar:
    """Replaces tqdm's bar."""

    made: "list[Bar]"

    def __init__(self, **settings: Any) -> None:
        self.settings, self.n = settings, 0
        Bar.made.append(self)

    def update(self, n: int) -> None:
        self.n += n

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exc: object) -> None:
        pass


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_bar_only_on_a_terminal(terminal: bool, monkeypatch: Any) -> None:
    Bar.made = []
    tqdm = types.ModuleType("tqdm")
    tqdm.tqdm = Bar
    monkeypatch.setitem(sys.modules, "tqdm", tqdm)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert cli.main(["replay", str(EDGE[0]), str(EDGE[1])]) == 0
    ops = ops_in(EDGE[0], EDGE[1])
    shown = [(bar.n, bar.settings["total"], bar.settings["delay"]) for bar in Bar.made]
    assert shown == ([(ops, ops, 1)] if terminal else [])


def test_no_bar_without_tqdm(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main(["replay", str(EDGE[0])]) == 0
    assert capsys.readouterr().out.splitlines() == [summary(1, ops_in(EDGE[0]))]


def test_module_runs_the_command_line() -> None:
    command = [sys.executable, "-m", "memslots", "replay", str(EDGE[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == summary(1, ops_in(EDGE[0])) + "\n"


def test_info(capsys: Any) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert [line.split(":")[0] for line in text.splitlines()] == list(info._info())


def test_info_json(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(kvm, "available", lambda: "no such device")
    assert cli.main(["info", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown) == {"memslots", "python", "numpy", "platform", "build", "cpu", "simd", "kvm"}
    assert shown["kvm"] == {"usable": False, "reason": "no such device"}
    assert shown["python"] == sys.version.split()[0]
    assert set(shown["cpu"]) >= {
        "vendor",
        "model",
        "family",
        "stepping",
        "features",
        "cores",
        "caches",
    }


def simd_line(wanted: str | None) -> str:
    """The line "simd:" of `memslots info` in a process with this MEMSLOTS_SIMD."""
    environment = {**os.environ, "MEMSLOTS_SIMD": wanted or ""}
    if wanted is None:
        del environment["MEMSLOTS_SIMD"]
    command = [sys.executable, "-m", "memslots", "info"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return next(line for line in done.stdout.splitlines() if line.startswith("simd:"))


def test_info_shows_the_simd_level_of_batches() -> None:
    levels = simd_levels()
    shown = simd_line(None)
    assert f"used {levels[-1]}, levels {' '.join(levels)}, " in shown
    assert "MEMSLOTS_SIMD can choose a lower level" in shown


@pytest.mark.parametrize("level", simd_levels())
def test_info_shows_the_requested_simd_level(level: str) -> None:
    shown = simd_line(level)
    assert f"used {level}, " in shown
    assert shown.endswith(f"MEMSLOTS_SIMD {level}")


@pytest.mark.parametrize("wanted", ["avx9000", "AVX2", ""])
def test_info_reports_an_ignored_simd_level(wanted: str) -> None:
    shown = simd_line(wanted)
    assert f"used {simd_levels()[-1]}, " in shown
    assert f"MEMSLOTS_SIMD {wanted}, " in shown
    assert shown.endswith("MEMSLOTS_SIMD IS IGNORED: this CPU has no such level")


def test_info_reports_a_simd_level_requested_too_late(monkeypatch: Any) -> None:
    other = [name for name in simd_levels() if name != build_info()["simd"]]
    if not other:
        pytest.skip("this CPU has one level only")
    monkeypatch.setenv("MEMSLOTS_SIMD", other[0])
    assert info._info()["simd"]["note"] == "MEMSLOTS_SIMD IS IGNORED: it was set too late"


@pytest.mark.skipif(kvm.available() is not None, reason=f"no kernel to ask: {kvm.available()}")
def test_info_shows_the_kernel() -> None:
    shown = info._info()["kvm"]
    assert (shown["usable"], shown["api_version"]) == (True, 12)
    assert shown["nr_memslots"] > 0
