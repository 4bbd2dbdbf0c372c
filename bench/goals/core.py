# SPDX-License-Identifier: MIT
"""P5 to P7: the tree, changes and lookups by id in C; changes compared with the array and with the kernel."""

from __future__ import annotations

import json
import subprocess
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from memslots import VM, kvm
from memslots._memslots import time_changes
from memslots.lab import layouts
from memslots.lab.machine import on_one_cpu
from memslots.lab.subjects import ROOM, Kernel, alternating, regions

from .build import QUICK, with_core
from .scorecard import Scorecard
from .timing import turns
from .work import Settings, as_fields, slots_of, stage

SIZES = (8, 64, 509, 4096, 32_764)
RANDOM, RANDOM_FROM = 1.3, 509
HOT = 0.97  # means "not slower": the same code at another address may differ by 3 %
VCPU = 1.05
BARE = {64: 2.5, 32_764: 1.8}
FEW, MANY = 64, 32_764
GROWTH, ARRAY, KERNEL, IDS = 8, 60, {64: 20, 32_764: 7}, 4
PAIRS = 200  # of delete + create, in a round

By = dict[int, dict[str, list[float]]]


def core(card: Scorecard, settings: Settings, folder: Path) -> None:
    if not (sizes := [n for n in SIZES if n in settings.sizes]):
        return
    program = with_core(folder / "goals", "goals.c", *(QUICK if settings.quick else ()))
    rounds = settings.rounds if settings.quick else 3 * settings.rounds
    command = [str(program), str(rounds), *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    card.check(done.returncode == 0, f"bench/core/goals.c: {done.stderr.strip()}")
    if done.returncode == 0:
        by = {int(n): times for n, times in json.loads(done.stdout).items()}
        searches(card, by)
        edits(card, by)


def searches(card: Scorecard, by: By) -> None:
    for n, times in by.items():
        for stream, bound in (
            ("random", RANDOM if n >= RANDOM_FROM else None),
            ("hinted", HOT),
            ("hot", None),
        ):
            what = {
                "random": "KVM's slot layout / this tree: random searches",
                "hinted": "... hot lookups, each behind its last_used_slot",
                "hot": "... hot searches without a last_used_slot",
            }[stream]
            card.ratio(
                "P5", what, slots_of(n), times[f"kvm_{stream}"], times[f"our_{stream}"], bound=bound
            )
        what = "a hot lookup by a vCPU / by ms_gfn_to_hva()"
        card.ratio("P5", what, slots_of(n), times["vcpu_calls"], times["vm_calls"], "<=", VCPU)


def edits(card: Scorecard, by: By) -> None:
    for n, times in by.items():
        what = "delete + create / the bare edits of both sets"
        card.ratio(
            "P6", what, slots_of(n), times["changes"], times["bare_edits"], "<=", BARE.get(n)
        )
    many = max(by)
    few = FEW if many > FEW else min(by)
    growth, ids = (GROWTH, IDS) if many == MANY else (None, None)
    at = f"{many:,} / {few} slots"
    a, b = by[many], by[few]
    card.ratio(
        "P6", "delete + create, many / few slots", at, a["changes"], b["changes"], "<=", growth
    )
    card.ratio("P7", "a lookup by id, many / few slots", at, a["ids"], b["ids"], "<=", ids)


# ---- comparisons from Python --------------------------------------------------------------------


def against_array(card: Scorecard, settings: Settings) -> None:
    """Compare changes of both designs from Python, one call at a time.

    Measure a design twice: after its own changes, and directly after changes of the other design.
    """
    if not (sizes := settings.up_to(MANY)):
        return
    n = sizes[-1]
    slots = stage(n, settings).slots
    vms = {backend: VM(backend=backend, user_mem_slots=ROOM) for backend in ("tree", "array")}
    victims = np.random.default_rng(layouts.SEED).choice(slots, 20 if settings.quick else 2 * PAIRS)
    some, others = ([as_fields(slot) for slot in half] for half in np.split(victims, 2))
    for vm in vms.values():
        vm.load_memslots(slots)
    first = {backend: partial(replug_all, vm, others) for backend, vm in vms.items()}
    then = {backend: partial(replug_all, vm, some) for backend, vm in vms.items()}
    running = turns(then, settings.rounds, before=first)
    starting = turns(then, settings.rounds)
    right = layouts.sorted_by(slots, "base_gfn")
    for backend, vm in vms.items():
        card.check(
            (vm.memslots_array() == right).all(), f"slots after changes, {backend}, {n} slots"
        )
        vm.close()
    what = "the array before Linux 5.17 / delete + create, from Python"
    bound = ARRAY if n == MANY else None
    card.ratio("P6", what, slots_of(n), running["array"], running["tree"], bound=bound)
    what = "... when the array's copies have just filled the caches"
    card.ratio("P6", what, slots_of(n), starting["array"], starting["tree"])


def replug_all(vm: VM, slots: list[tuple[int, dict[str, int]]]) -> None:
    for slot, fields in slots:
        vm.set_user_memory_region(slot, guest_phys_addr=0, memory_size=0)
        vm.set_user_memory_region(slot, **fields)


def against_kernel(card: Scorecard, settings: Settings) -> None:
    """Compare with two ioctls of the kernel.  These include system calls and grace periods, which the engine avoids."""
    what = "this machine's kernel, two ioctls / delete + create in C"
    if reason := kvm.available():
        card.skip("P6", what, reason)
        return
    for n in sorted(KERNEL):
        if n in settings.sizes:
            with on_one_cpu(True):
                compare_with_kernel(card, settings, n, what)


def compare_with_kernel(card: Scorecard, settings: Settings, n: int, what: str) -> None:
    slots = stage(n, settings).slots
    victims = np.random.default_rng(layouts.SEED).choice(slots, 20 if settings.quick else PAIRS)
    rows = alternating(regions(victims, memory_size=0), regions(victims))
    with closing(Kernel(slots)) as kernel, stage(n, settings).new_vm() as vm:
        times: dict[str, list[float]] = {"kernel": [], "engine": []}
        for _ in range(settings.rounds):
            keep(card, times["kernel"], *kernel.changes(rows, group=len(rows)))
            keep(card, times["engine"], *time_changes(vm, rows, group=len(rows)))
    card.ratio("P6", what, slots_of(n), times["kernel"], times["engine"], bound=KERNEL[n])


def keep(
    card: Scorecard, times: list[float], ns: np.ndarray[Any, Any], results: np.ndarray[Any, Any]
) -> None:
    card.check(not results.any(), "every change is made")
    times.append(float(ns.sum()))
