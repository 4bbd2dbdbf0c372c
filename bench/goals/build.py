# SPDX-License-Identifier: MIT
"""Compile the yardsticks that are written in C or Cython, together with the core if they measure the core."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "_core"
HERE = ROOT / "bench" / "core"

#: Compiler flags for --quick: they compile fast.
QUICK = ("-O0",)

#: The options of the released package.
RELEASED = ("-O3", "-DNDEBUG")

Flags = Sequence[str]


def compiler() -> list[str]:
    return shlex.split(sysconfig.get_config_var("CC") or "cc")


def compile_c(target: Path, sources: list[Path], *flags: str, libraries: Flags = ()) -> Path:
    command = [
        *compiler(),
        *RELEASED,
        *flags,
        *map(str, sources),
        *libraries,
        "-lpthread",
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True)
    return target


def with_core(
    target: Path,
    source: str,
    *flags: str,
    of_program: Flags = (),
    of_core: Flags = (),
    libraries: Flags = (),
) -> Path:
    """Compile a program of bench/core together with the whole engine.  Some flags are only for one of the two."""
    flags = ("-std=gnu11", f"-I{CORE}", f"-I{CORE / 'include'}", *flags)
    program = target.with_suffix(".o")
    compile_c(program, [HERE / source], "-c", *flags, *of_program)
    objects = core_objects(target.parent, *flags, *of_core)
    return compile_c(target, [program, *objects], *flags, libraries=libraries)


@cache
def core_objects(folder: Path, *flags: str) -> list[Path]:
    """Compile the engine once for all programs that use the same flags."""
    objects = Path(tempfile.mkdtemp(dir=folder))
    command = [*compiler(), *RELEASED, *flags, "-c", *map(str, sorted(CORE.glob("*.c")))]
    subprocess.run(command, cwd=objects, check=True)
    return sorted(objects.glob("*.o"))


def accepts(folder: Path, *flags: str) -> bool:
    """Whether the compiler knows the flags."""
    source = folder / "empty.c"
    source.write_text("int nothing;\n", encoding="utf-8")
    command = [*compiler(), *flags, "-c", str(source), "-o", str(source.with_suffix(".o"))]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def cython_module(folder: Path, name: str, source: str, *flags: str) -> Any:
    """Compile this Cython source and import the module."""
    pyx = folder / f"{name}.pyx"
    pyx.write_text(source, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "cython", "-3", str(pyx)], check=True)
    module = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = f"-I{sysconfig.get_path('include')}"
    compile_c(module, [pyx.with_suffix(".c")], "-shared", "-fPIC", include, *flags)
    spec = importlib.util.spec_from_file_location(name, module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
