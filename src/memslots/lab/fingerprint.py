# SPDX-License-Identifier: MIT
"""The fingerprint of a measurement: processor, system, compiler and source.  Figures compare only where it is equal."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .._memslots import build_info

CPU_FEATURES = ("avx2", "bmi2", "avx512f")
SYSTEM = Path("/sys/devices/system/cpu")
BUILD = Path(__file__).parents[1] / "build.json"  # CMake writes it: src/provenance.cmake


@dataclass(frozen=True)
class CacheLevel:
    """A cache of the first processor."""

    level: int
    kind: str  # Data, Instruction or Unified
    size_kib: int
    shared_by: str  # processors, such as "0-1"


@dataclass(frozen=True)
class Cpu:
    """The processor.  Only family, number and stepping tell processors with the same name apart."""

    model: str  # the name
    vendor: str | None
    family: int | None
    number: int | None  # "model" in /proc/cpuinfo
    stepping: int | None
    microcode: str | None
    features: list[str]
    cores: int | None
    smt: bool | None  # two threads share a core
    caches: list[CacheLevel]


@dataclass(frozen=True)
class Source:
    """The source of the package: the git commit, and whether files differed from it."""

    commit: str | None
    dirty: bool | None
    flags: str | None  # of the compiler


@dataclass(frozen=True)
class Machine:
    platform: str
    kernel: str
    hypervisor: str | None
    huge_pages: str | None  # the mode of transparent huge pages
    page_size: int
    python: str
    numpy: str
    build: dict[str, Any]
    cpu: Cpu
    source: Source


def fingerprint() -> Machine:
    return Machine(
        platform=platform.platform(),
        kernel=f"{platform.system()} {platform.release()} {platform.version()}",
        hypervisor=hypervisor(),
        huge_pages=_chosen(_read(Path("/sys/kernel/mm/transparent_hugepage/enabled"))),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        python=platform.python_version(),
        numpy=np.__version__,
        build=dict(build_info()),
        cpu=cpu(),
        source=source(),
    )


def differences(a: Machine, b: Machine) -> list[str]:
    """Name the fields in which two machines differ.  The source is not among them."""
    return [
        f"{field.name} {getattr(a, field.name)!r} and {getattr(b, field.name)!r}"
        for field in fields(Machine)
        if field.name != "source" and getattr(a, field.name) != getattr(b, field.name)
    ]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _chosen(text: str | None) -> str | None:
    """Return the word in brackets: "always [madvise] never" gives "madvise"."""
    return next((w.strip("[]") for w in (text or "").split() if w.startswith("[")), None)


# ---- the processor --------------------------------------------------------------------------------


def cpu() -> Cpu:
    known = cpu_fields(_read(Path("/proc/cpuinfo")) or "")
    flags = known.get("flags", "").split()
    smt = _read(SYSTEM / "smt" / "active")
    return Cpu(
        model=known.get("model name") or platform.machine(),
        vendor=known.get("vendor_id"),
        family=_number(known.get("cpu family")),
        number=_number(known.get("model")),
        stepping=_number(known.get("stepping")),
        microcode=known.get("microcode"),
        features=[f for f in CPU_FEATURES if f in flags],
        cores=os.cpu_count(),
        smt=None if smt is None else smt == "1",
        caches=list(caches(SYSTEM / "cpu0" / "cache")),
    )


def cpu_fields(text: str) -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo."""
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def caches(folder: Path) -> Iterator[CacheLevel]:
    for index in sorted(folder.glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if level and kind and size:
            shared = _read(index / "shared_cpu_list") or ""
            yield CacheLevel(int(level), kind, kibibytes(size), shared)


def kibibytes(text: str) -> int:
    """Convert the size of a cache in sysfs, such as 1024K or 32M."""
    units = {"K": 1, "M": 1024, "G": 1024 * 1024}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text) // 1024


def second_level(levels: list[CacheLevel]) -> int | None:
    """Return the bytes of the second-level cache."""
    return next(
        (c.size_kib << 10 for c in levels if c.level == 2 and c.kind != "Instruction"), None
    )


def hypervisor() -> str | None:
    """Return the vendor of the hypervisor, "unknown" for one that has no name here, or None on a bare machine."""
    if "hypervisor" not in cpu_fields(_read(Path("/proc/cpuinfo")) or "").get("flags", "").split():
        return None
    product = _read(Path("/sys/class/dmi/id/product_name"))
    return product or _read(Path("/sys/hypervisor/type")) or _detected() or "unknown"


@cache
def _detected() -> str | None:
    try:
        done = subprocess.run(
            ["systemd-detect-virt", "--vm"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


# ---- the source -----------------------------------------------------------------------------------


def source(build: Path = BUILD) -> Source:
    """Return the commit whose src/ was built.

    The build records the tree of git that src/ had.  If HEAD of the checkout has the same tree, the source is HEAD
    without changes.  Otherwise it is the commit of the build, with changes if there were some.
    """
    text = _read(build)
    known = json.loads(text) if text else {}
    flags = known.get("flags")
    head = _git(known.get("folder"), "rev-parse", "HEAD")
    if (
        head
        and known.get("tree")
        and _git(known["folder"], "rev-parse", "HEAD:src") == known["tree"]
    ):
        return Source(head, False, flags)
    commit = known.get("commit") or None
    return Source(
        commit, None if commit is None else known.get("tree") != known.get("committed"), flags
    )


def _git(folder: str | None, *words: str) -> str | None:
    if not folder or not Path(folder).is_dir():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", folder, *words], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
