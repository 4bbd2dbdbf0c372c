# SPDX-License-Identifier: MIT
"""P1: a batch compared with DPDK's rte_fib, in C.  bench/core/fib.c says how the two differ."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from .build import QUICK, with_core
from .scorecard import Scorecard
from .work import Settings, slots_of

WHAT = "DPDK's rte_fib and the step from number to host address / a batch of random gfns"
NUMBERS = "... numbers of slots only, from 32-bit keys / the same"
FASTER = 1
NOT_HERE = 3  # the exit status of fib.c if DPDK does not start
MISSING = "DPDK is not installed (Debian: apt-get install libdpdk-dev)"


def pkg_config(option: str) -> list[str] | None:
    """Return the flags of DPDK, or None if it is not installed."""
    if not shutil.which("pkg-config"):
        return None
    command = ["pkg-config", option, "libdpdk"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return shlex.split(done.stdout) if done.returncode == 0 else None


def against_fib(card: Scorecard, settings: Settings, folder: Path) -> None:
    if os.environ.get("MEMSLOTS_SIMD"):
        card.skip("P1", WHAT, "MEMSLOTS_SIMD forces a level, and the goal is for the best one")
        return
    cflags, libraries = pkg_config("--cflags"), pkg_config("--libs")
    if cflags is None or libraries is None:
        card.skip("P1", WHAT, MISSING)
        return
    quick = QUICK if settings.quick else ()
    program = with_core(folder / "fib", "fib.c", *quick, of_program=cflags, libraries=libraries)
    for n in settings.sizes:
        one_size(card, settings, program, n)


def one_size(card: Scorecard, settings: Settings, program: Path, n: int) -> None:
    command = [program, settings.rounds, settings.queries, n]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode == NOT_HERE:
        card.skip("P1", f"{WHAT}, {slots_of(n)}", done.stderr.strip())
        return
    card.check(done.returncode == 0, f"bench/core/fib.c, {slots_of(n)}: {done.stderr.strip()}")
    if done.returncode == 0:
        report(card, json.loads(done.stdout), slots_of(n))


def report(card: Scorecard, times: dict[str, list[float]], at: str) -> None:
    card.ratio("P1", WHAT, at, times["addresses"], times["batch"], bound=FASTER)
    card.ratio("P1", NUMBERS, at, times["fib"], times["batch"])
