# SPDX-License-Identifier: MIT
"""Cython modules of users: cimport VM, compile with get_include(), and link with no library, as README describes."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import memslots
from memslots import ClosedError

pytest.importorskip("Cython", reason="Cython is not installed here")

SITE = Path(memslots.__file__).parents[1]
WALKER = Path(__file__).parents[1] / "consumers" / "walker.pyx"


def build(source: Path, folder: Path) -> ModuleType:
    """Translates and compiles the module into `folder` with the documented commands, and imports it."""
    c_file = folder / f"{source.stem}.c"
    module = folder / f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
    cython = [sys.executable, "-m", "cython", "-3", "-I", str(SITE), str(source), "-o", str(c_file)]
    subprocess.run(cython, check=True)
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{memslots.get_include()}"]
    command = [*compiler, "-O1", "-shared", "-fPIC", *includes, str(c_file), "-o", str(module)]
    subprocess.run(command, check=True)
    return load(source.stem, module)


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_users_cython_module_calls_the_engine(tmp_path: Path) -> None:
    walker = build(WALKER, tmp_path)
    with memslots.VM() as vm:
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0x4000, userspace_addr=0x10000)
        assert walker.walk(vm, 0, 4) == sum(0x10000 + 4096 * i for i in range(4))
        with pytest.raises(TypeError):
            walker.walk(None, 0, 1)


# ---- every public name ---------------------------------------------------------------------------

PXD = (Path(memslots.__file__).parent / "libmemslots.pxd").read_text(encoding="utf-8")
LINES = re.findall(r"^    (\S.*)$", PXD, re.MULTILINE)
STRUCTS = [line.split()[1].rstrip(":") for line in LINES if line.startswith("struct ")]
OPAQUE = re.findall(r"struct (\w+):\n        pass", PXD)
ENUMS = re.findall(r"^        (MS_\w+)$", PXD, re.MULTILINE)
CONSTANTS = re.findall(r"^    [\w *]*\W(MS_\w+)$", PXD, re.MULTILINE)
TYPEDEFS = re.findall(r"^    ctypedef \w+ (\w+)\(", PXD, re.MULTILINE)


def test_cython_header_declares_no_function() -> None:
    """Without a library to link, a call of such a function would be an undefined symbol at import."""
    calls = [line for line in LINES if "(" in line and not line.startswith("ctypedef ")]
    assert calls == []
    assert not list(
        Path(memslots.__file__).parent.glob("_calls.pxd")
    ) or "site-packages" not in str(SITE)
    assert len(STRUCTS) >= 15
    assert len(ENUMS) >= 20
    assert len(CONSTANTS) >= 9


def consumer() -> str:
    """A module that cimports and uses every name that a user can see, and calls every method of the classes."""
    sizes = [f"    total += sizeof({name})" for name in STRUCTS if name not in OPAQUE]
    pointers = [f"    total += sizeof({name} *)" for name in (*OPAQUE, *TYPEDEFS)]
    numbers = [f"    numbers.append({name})" for name in (*ENUMS, *CONSTANTS)]
    return "\n".join(
        [
            "# cython: language_level=3",
            "from memslots cimport VCPU, VM",
            *(
                f"from memslots.libmemslots cimport {name}"
                for name in (*STRUCTS, *ENUMS, *CONSTANTS, *TYPEDEFS)
            ),
            "def names():",
            "    cdef size_t total = 0",
            "    numbers = []",
            *sizes,
            *pointers,
            *numbers,
            "    return total, numbers",
            "def calls(VM vm not None, VCPU vcpu not None, gfn):",
            "    cdef ms_memslot slot",
            "    cdef int r = vm.c_gfn_to_memslot(0, gfn, &slot)",
            "    return vm.c_gfn_to_hva(0, gfn), r, slot.id if r == 0 else None, vcpu.vm is vm",
            "cdef class Sub(VM):",
            "    def base(self, gfn):",
            "        return self.c_gfn_to_hva(0, gfn)",
        ]
    )


@pytest.mark.builds
@pytest.mark.slow
def test_every_public_name_compiles_and_imports(tmp_path: Path) -> None:
    source = tmp_path / "consumer.pyx"
    source.write_text(consumer(), encoding="utf-8")
    module = build(source, tmp_path)
    total, numbers = module.names()
    assert total > 40
    assert memslots.__version__.encode() in numbers
    assert memslots.HVA_ERR_BAD in numbers
    with memslots.VM() as vm:
        vm.set_user_memory_region(3, guest_phys_addr=0, memory_size=4096, userspace_addr=0x10000)
        assert module.calls(vm, vm.create_vcpu(), 0) == (0x10000, 0, 3, True)
        hva, r, slot, same = module.calls(vm, vm.create_vcpu(), 1)
        assert (hva, slot, same) == (memslots.HVA_ERR_BAD, None, True)
        assert r < 0
    assert module.Sub(address_spaces=2).base(5) == memslots.HVA_ERR_BAD


@pytest.mark.builds
@pytest.mark.slow
def test_c_lookup_on_a_vm_before_init_finds_a_hole(tmp_path: Path) -> None:
    """The class has not called super().__init__()."""

    class Forgetful(memslots.VM):
        def __init__(self) -> None: ...

    walker = build(WALKER, tmp_path)
    vm = Forgetful()
    assert walker.walk(vm, 0, 1) == memslots.HVA_ERR_BAD
    with pytest.raises(ClosedError):
        vm.gfn_to_hva(0)
