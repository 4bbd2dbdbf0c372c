# SPDX-License-Identifier: MIT
"""Types: a user's file passes mypy --strict, and the stub matches the module."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import memslots
from memslots import _memslots

PACKAGE = Path(memslots.__file__).parent
STUB = ast.parse((PACKAGE / "_memslots.pyi").read_text(encoding="utf-8"))
needs_mypy = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is not installed (make lint brings it)"
)

GOOD = """
from array import array
import numpy as np
import numpy.typing as npt
from memslots import (
    HVA_ERR_BAD, MEMSLOT_DTYPE, VCPU, VM, Change, ChangeKind, Listener, MemFlag, MemorySlot, MemslotsError,
    RegionOverlapError, Snapshot, backends, build_info, get_include,
)

class Mirror(Listener):
    def prepare(self, change: Change) -> None:
        kind: ChangeKind = change.kind
        if change.new is not None:
            print(kind, change.new.gpa)

    def flush(self, active: MemorySlot, old: MemorySlot) -> None:
        assert active.id == old.id and not old.is_invalid

class Own(VM):
    name = "own"

def use(vm: VM) -> int:
    vm.set_user_memory_region(np.uint32(1), guest_phys_addr=0, memory_size=4096, flags=MemFlag.LOG_DIRTY_PAGES)
    vm.add_listener(Mirror())
    slot = vm.gfn_to_memslot(0)
    if slot is not None:
        flags: MemFlag = slot.flags
        base: int = slot.base_gfn
        print(flags, base)
    hva, writable = vm.gfn_to_hva_prot(0)
    gfns = np.arange(4, dtype=np.uint64)
    hvas: npt.NDArray[np.uint64] = vm.gfn_to_hva_many(gfns, out=gfns, write=False)
    ids: npt.NDArray[np.int32] = vm.gfn_to_slot_id_many(array("Q", [0, 9]))
    vm.mark_page_dirty_many([0, 9])
    vm.mark_page_dirty_many(range(9))
    vm.mark_page_dirty_many(np.arange(9, dtype=np.uint8))
    print(hvas == HVA_ERR_BAD, ids, writable)
    for found, gfn in vm.hva_to_gfns(hva):
        print(found.id + gfn)
    with vm.read() as same:
        assert same.generation() == vm.generation()
    snapshot: Snapshot = vm.snapshot()
    print([s.size for s in snapshot], snapshot.array.dtype == MEMSLOT_DTYPE)
    vcpu: VCPU = vm.create_vcpu()
    vcpu.as_id = 0
    with vm.begin_update() as update:
        old = update.find(1)
        if old is not None:
            new = update.copy(old, base_gfn=9)
            update.replace(old, new)
            update.activate(old, new)
        update.swap()
    log: npt.NDArray[np.uint64] = vm.get_dirty_log(1)
    vm.clear_dirty_log(1, 0, 1, log)
    vm.clear_dirty_log(1, 0, 0, None)
    vm.merge_dirty_log(1, vm.get_dirty_log(1, out=log))
    ranges: npt.NDArray[np.uint64] = vm.harvest_dirty(clear=False, start_gfn=1)
    print(vm.harvest_dirty(out=ranges).tolist())
    with Own() as own:
        more: str = own.name
        print(more)
    print(sorted(vm), [slot.id for slot in vm])
    stats: dict[str, int] = vm.stats()
    return stats["swaps"]

with VM(address_spaces=2, backend=backends()[0]) as machine:
    try:
        use(machine)
    except RegionOverlapError as error:
        print(error.rule, error.slot, error.errno, error.other)
    except MemslotsError:
        raise
print(build_info()["compiler"], get_include())
match MemorySlot(id=0, as_id=0, base_gfn=0, npages=1, userspace_addr=0):
    case MemorySlot(id=number, as_id=space):
        print(number, space)
"""

# Each line alone is an error of the kind that follows it.
BAD = {
    "vm.set_user_memory_region(0, 0, 4096)": "misc|call-arg",  # keywords
    'vm.gfn_to_hva("0")': "arg-type",
    "vm.gfn_to_hva(1.5)": "arg-type",
    "vm.address_spaces = 2": "misc",  # read-only
    "x: int = vm.gfn_to_memslot(0)": "assignment",
    "vm.gfn_to_memslot(0).id": "union-attr",
    "vm.gfn_to_hva_many([1.5, 2])": "arg-type|list-item",
    "vm.gfn_to_hva_many({1, 2})": "arg-type",
    "vm.add_listener(object())": "arg-type",
    "vm.something()": "attr-defined",
    "memslots.MemorySlot(id=0)": "call-arg",
    "memslots.MemorySlot(0, 0, 0, 1, 0)": "misc|call-arg",  # keywords
    "vm.create_vcpu().as_id = None": "assignment",
    "class Sub(memslots.MemorySlot): pass": "misc",  # final
}


def mypy(tmp_path: Path, source: str) -> list[str]:
    """The output of mypy --strict for a user's file: one line for each error."""
    (tmp_path / "user.py").write_text(source, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-error-summary",
            "--cache-dir",
            str(tmp_path / "cache"),
            "user.py",
        ],
        cwd=tmp_path,
        env={"MYPYPATH": str(PACKAGE.parent), "PATH": ""}
        if "site-packages" not in PACKAGE.parts
        else None,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


@needs_mypy
@pytest.mark.slow
@pytest.mark.builds
def test_mypy_accepts_good_code_and_finds_each_misuse(tmp_path: Path) -> None:
    """mypy reports each misuse at its line."""
    bad = ["import memslots", "vm = memslots.VM()", *BAD]
    complaints = mypy(tmp_path, "\n".join(bad))
    for number, (line, code) in enumerate(BAD.items(), start=3):
        found = [text for text in complaints if text.startswith(f"user.py:{number}:")]
        assert any(f"[{one}]" in text for text in found for one in code.split("|")), (
            line,
            complaints,
        )
    assert mypy(tmp_path, GOOD) == []


def test_good_file_runs() -> None:
    """The code that mypy accepts also works."""
    done = subprocess.run(
        [sys.executable, "-c", GOOD], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


# ---- stub and module ------------------------------------------------------------------------------------

NODES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
CLASSES = [
    name
    for name, node in NODES.items()
    if isinstance(node, ast.ClassDef) and not name.startswith("_")
]


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def imported() -> set[str]:
    """Names that the stub imports or that the module took from elsewhere."""
    names: set[str] = set()
    for node in STUB.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return names


def test_stub_has_exactly_the_names_of_the_module() -> None:
    """Compares the public names of the extension with those of the stub."""
    defined = {
        name
        for name, value in vars(_memslots).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == _memslots.__name__
    }
    assert defined == public(NODES)
    annotated = {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign)}
    for name in annotated:
        assert hasattr(_memslots, name)


@pytest.mark.parametrize("name", CLASSES)
def test_stub_has_exactly_the_members_of_each_class(name: str) -> None:
    """Also compares which properties can be set, and which classes are final."""
    node, cls = NODES[name], getattr(_memslots, name)
    members: dict[str, list[str]] = {}
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            members.setdefault(part.name, []).extend(ast.unparse(d) for d in part.decorator_list)
    assert public(members) == public(vars(cls)) - {"match_args"}
    for member, decorators in members.items():
        if "property" in decorators:
            assert not callable(vars(cls)[member])
            settable = f"{member}.setter" in decorators
            assert is_settable(cls, member) == settable, member
    final = any(ast.unparse(d) == "final" for d in node.decorator_list)
    assert final == is_final(cls)


def is_final(cls: type) -> bool:
    try:
        type("Sub", (cls,), {})
    except TypeError:
        return True
    return False


def is_settable(cls: type, member: str) -> bool:
    """Whether the property has a setter; tries to set a value that every setter refuses."""
    vm = memslots.VM()
    objects = {
        "VM": vm,
        "VCPU": vm.create_vcpu(),
        "Mapping": vm.map_buffer(0, memslots.alloc(4096)),
        "MemorySlot": memslots.MemorySlot(id=0, as_id=0, base_gfn=0, npages=1, userspace_addr=0),
    }
    objects |= {"Update": vm.begin_update()}
    target = objects.get(cls.__name__)
    if target is None:
        return False
    try:
        setattr(target, member, "no such word, and no number")
    except AttributeError:
        return False
    except (TypeError, ValueError):
        return True
    pytest.fail(f"{cls.__name__}.{member} takes a str")


def parameters(node: ast.FunctionDef) -> list[tuple[str, str, Any]]:
    """(name, kind, default) of each parameter in the stub, self apart."""
    args = node.args
    plain = args.posonlyargs + args.args
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    found = [(a.arg, "plain", d) for a, d in zip(plain, defaults, strict=True)]
    found += [(a.arg, "keyword", d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        found.append((args.kwarg.arg, "rest", None))
    return [
        (name, kind, inspect.Parameter.empty if default is None else ast.literal_eval(default))
        for name, kind, default in found
        if name != "self"
    ]


KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "plain",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "plain",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_KEYWORD: "rest",
}
FUNCTIONS = [
    (cls, part.name)
    for cls in CLASSES
    for part in NODES[cls].body
    if isinstance(part, ast.FunctionDef)
    and not part.name.startswith("__")
    and not part.decorator_list
] + [(None, name) for name, node in NODES.items() if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize(("cls", "name"), FUNCTIONS)
def test_stub_has_the_signatures_of_the_module(cls: str | None, name: str) -> None:
    """Compares names, kinds and defaults of the parameters."""
    owner = getattr(_memslots, cls) if cls else _memslots
    body = NODES[cls].body if cls else STUB.body
    node = next(part for part in body if isinstance(part, ast.FunctionDef) and part.name == name)
    signature = inspect.signature(getattr(owner, name))
    real = [
        (p.name, KINDS[p.kind], p.default)
        for p in signature.parameters.values()
        if p.name != "self"
    ]
    assert real == parameters(node)


def test_stub_has_the_default_limits_of_vm() -> None:
    """A VM made without arguments has the defaults of the stub."""
    node = next(
        part
        for part in NODES["VM"].body
        if isinstance(part, ast.FunctionDef) and part.name == "__init__"
    )
    limits = {name: default for name, kind, default in parameters(node)}
    vm = memslots.VM()
    assert {name: getattr(vm, name) for name in limits} == limits
    assert memslots.VM(**limits).backend == "tree"


def test_inspect_and_help_show_the_signature_of_vm() -> None:
    """The signature is that of the stub, also for subclasses."""
    node = next(part for part in NODES["VM"].body if isinstance(part, ast.FunctionDef))
    assert node.name == "__init__"

    class Sub(memslots.VM):
        pass

    for cls in (memslots.VM, Sub):
        signature = inspect.signature(cls)
        real = [(p.name, KINDS[p.kind], p.default) for p in signature.parameters.values()]
        assert real == parameters(node)
    shown = pydoc.render_doc(memslots.VM, renderer=pydoc.plaintext)
    # Python 3.13 and later print each parameter of a long signature on its own line after a bar
    assert re.sub(r"[\s|]", "", shown).count("VM(*,address_spaces=1,") == 1
    assert (memslots.VM.__doc__ or "").startswith("A virtual machine's memory slots")


def test_memory_slot_takes_keywords_only() -> None:
    """A class pattern cannot use positions either: there is no __match_args__."""
    assert not hasattr(memslots.MemorySlot, "__match_args__")
    signature = inspect.signature(memslots.MemorySlot)
    assert {p.kind for p in signature.parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}


def test_all_and_dir_list_exactly_the_public_names() -> None:
    """__all__ has no duplicates."""
    assert len(set(memslots.__all__)) == len(memslots.__all__)
    for name in memslots.__all__:
        assert hasattr(memslots, name)
    assert dir(memslots) == sorted(memslots.__all__)
    modules = {name for name, value in vars(memslots).items() if inspect.ismodule(value)}
    here = {name for name in vars(memslots) if not name.startswith("_")} - modules
    assert here | {"__version__"} == set(memslots.__all__)


@pytest.mark.parametrize("name", ["constants", "errors", "listener"])
def test_all_of_a_module_lists_only_its_own_names(name: str) -> None:
    """`from memslots.errors import *` must not bring names that the module has imported."""
    module = importlib.import_module(f"memslots.{name}")
    for public_name in module.__all__:
        value = getattr(module, public_name)
        assert getattr(value, "__module__", module.__name__) == module.__name__
        assert getattr(memslots, public_name) is value
