# SPDX-License-Identifier: MIT
"""`memslots info`: versions, the build, the CPU, the SIMD level, and whether /dev/kvm is usable."""

import argparse
import os
import platform
from contextlib import closing
from typing import Any

import numpy as np

from .. import __version__, build_info, kvm
from .._memslots import simd_levels
from ..kvm import ioctls
from ..lab.machine import cpu
from .terminal import EXIT_OK, print_json

SIMD = "MEMSLOTS_SIMD"  # the core reads it; what it cannot have is silently the best there is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    info = _info()
    if args.json:
        print_json(info)
        return EXIT_OK
    for name, value in info.items():
        print(f"{name + ':':<10}{_in_words(value)}")
    return EXIT_OK


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


def _in_words(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v is not None)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _simd() -> dict[str, Any]:
    """What batches of lookups use, of what this CPU has, and whether that is what the environment asks for."""
    used, levels = str(build_info()["simd"]), list(simd_levels())
    wanted = os.environ.get(SIMD)
    return {"used": used, "levels": levels, SIMD: wanted, "note": _simd_note(wanted, used, levels)}


def _simd_note(wanted: str | None, used: str, levels: list[str]) -> str | None:
    if wanted is None:
        return f"the environment variable {SIMD} names another level"
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
