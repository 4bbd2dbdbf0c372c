# SPDX-License-Identifier: MIT
"""`memslots info`: versions, the build, the CPU, the vector instructions, and whether /dev/kvm is usable."""

import argparse
import os
import platform
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np

from .. import __version__, build_info, kvm
from .._memslots import simd_levels
from ..kvm import ioctls
from ..lab.machine import cpu
from ..report.words import plural, wrapped
from . import arguments
from .terminal import EXIT_OK, emit, print_json, width

SIMD = "MEMSLOTS_SIMD"  # read by the core, which silently uses the best level if this CPU lacks that one
LABEL = 10  # the width of the column of names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    info = _info()
    if args.json:
        print_json(info)
    else:
        emit("\n".join(_lines(info, width())))
    return EXIT_OK


def _lines(info: dict[str, Any], columns: int | None) -> Iterator[str]:
    for name, value in info.items():
        line = f"{name + ':':<{LABEL}}{_in_words(name, value)}"
        yield wrapped(line, columns, " " * LABEL) if columns else line


def _info() -> dict[str, Any]:
    return {
        "memslots": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "build": {name: value for name, value in build_info().items() if name != "simd"},
        "cpu": cpu(),
        "simd": _simd(),
        "kvm": _kvm(),
    }


def _in_words(name: str, value: Any) -> str:
    if name == "cpu":
        features = ", ".join(value["features"]) or "none"
        cores = plural(value["cores"] or 1, "core")
        return f"{value['model']}, {cores}; vector features used here: {features}"
    if name == "kvm":
        return _kvm_in_words(value)
    if isinstance(value, dict):
        shown = ((k, v) for k, v in value.items() if v is not None)
        return ", ".join(v if k == "note" else f"{k} {_plain(v)}" for k, v in shown)
    return str(value)


def _kvm_in_words(kvm_info: dict[str, Any]) -> str:
    if not kvm_info["usable"]:
        return str(kvm_info["reason"])
    version, slots = kvm_info["api_version"], kvm_info["nr_memslots"]
    return f"{ioctls.DEVICE} is usable: API version {version}, up to {slots:,} slots in a VM"


def _plain(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _simd() -> dict[str, Any]:
    """The level that batches of lookups use, the levels that this CPU has, and the level in the environment."""
    used, levels = str(build_info()["simd"]), list(simd_levels())
    wanted = os.environ.get(SIMD)
    return {"used": used, "levels": levels, SIMD: wanted, "note": _simd_note(wanted, used, levels)}


def _simd_note(wanted: str | None, used: str, levels: list[str]) -> str | None:
    if wanted is None:
        return f"the environment variable {SIMD} can choose a lower level"
    if wanted == used:
        return None
    why = "it was set too late" if wanted in levels else "this CPU has no such level"
    return f"{SIMD} IS IGNORED: {why}"


def _kvm() -> dict[str, Any]:
    if reason := kvm.available():
        return {"usable": False, "reason": reason}
    with closing(kvm.KvmVM()) as vm:
        nr_memslots = vm.check_extension("nr_memslots")
    return {"usable": True, "api_version": ioctls.API_VERSION, "nr_memslots": nr_memslots}
