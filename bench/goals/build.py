# SPDX-License-Identifier: MIT
"""Compile the yardsticks that are written in C or Cython, together with the core if they measure the core."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "_core"
HERE = ROOT / "bench" / "core"

#: Compiler flags for --quick: they compile fast.
QUICK = ("-O0",)


def compile_c(target: Path, sources: list[Path], *flags: str) -> Path:
    """Compile with the options of the released package: -O3, assertions off."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    command = [
        *compiler,
        "-O3",
        "-DNDEBUG",
        *flags,
        *map(str, sources),
        "-lpthread",
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True)
    return target


def with_core(target: Path, source: str, *flags: str) -> Path:
    """Compile a program of bench/core together with the whole engine."""
    includes = (f"-I{CORE}", f"-I{CORE / 'include'}")
    sources = [HERE / source, *sorted(CORE.glob("*.c"))]
    return compile_c(target, sources, "-std=gnu11", *includes, *flags)


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
