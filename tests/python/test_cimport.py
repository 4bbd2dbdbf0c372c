# SPDX-License-Identifier: MIT
"""What README promises to authors of Cython modules: cimport VM, compile with get_include(), link with nothing."""

import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import memslots

pytest.importorskip("Cython", reason="Cython is not installed here")

SOURCE = Path(__file__).parents[1] / "consumers" / "walker.pyx"


def build(folder: Path) -> Path:
    """Translates and compiles the module as its author would, into `folder`."""
    site = Path(memslots.__file__).parents[1]
    c_file = folder / "walker.c"
    module = folder / f"walker{sysconfig.get_config_var('EXT_SUFFIX')}"
    cython = [sys.executable, "-m", "cython", "-3", "-I", str(site), str(SOURCE), "-o", str(c_file)]
    subprocess.run(cython, check=True)
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{memslots.get_include()}"]
    command = [*compiler, "-O1", "-shared", "-fPIC", *includes, str(c_file), "-o", str(module)]
    subprocess.run(command, check=True)
    return module


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("walker", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_foreign_module_calls_the_engine(tmp_path: Path) -> None:
    if not os.path.exists(os.path.join(memslots.get_include(), "memslots.h")):
        pytest.skip("this build of the package lies without its header")
    walker = load(build(tmp_path))
    with memslots.VM() as vm:
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0x4000, userspace_addr=0x10000)
        assert walker.walk(vm, 0, 4) == sum(0x10000 + 4096 * i for i in range(4))
        with pytest.raises(TypeError):
            walker.walk(None, 0, 1)
