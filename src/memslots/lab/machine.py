# SPDX-License-Identifier: MIT
"""A description of the machine, its available backends, and the overhead of its clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter_ns
from typing import Any

import numpy as np

from .. import kvm
from .._memslots import backends, time_nothing
from . import fingerprint as fingerprints
from .fingerprint import fingerprint
from .subjects import INDEXED, design_of

#: A change in the kernel waits for a grace period.  On this CPU the wait is several times shorter than on others,
#: because the kernel's deferred work runs here.
KVM_CPU = 0


def machine() -> dict[str, Any]:
    """Return the fingerprint as a JSON object."""
    return asdict(fingerprint())


def cpu() -> dict[str, Any]:
    """Return the processor as a JSON object."""
    return asdict(fingerprints.cpu())


def available_backends(with_kvm: bool) -> tuple[list[str], list[str]]:
    """Return the names of all backends, and a reason for each one that is skipped.

    Backends are the designs of the engine, the tree with an index, and the kernel.
    """
    names = list(backends())
    names += [INDEXED] if design_of(INDEXED) in names else []
    reason = kvm.available() if with_kvm else "--no-kvm"
    if reason is None:
        return [*names, "kvm"], []
    return names, [f"the real kernel: {reason}"]


@contextmanager
def on_one_cpu(wanted: bool) -> Iterator[None]:
    """Run the block on KVM_CPU, if `wanted` and allowed by the affinity of the process."""
    if not wanted or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        if KVM_CPU in before:
            os.sched_setaffinity(0, {KVM_CPU})
        yield
    finally:
        os.sched_setaffinity(0, before)


def clock_ns() -> float:
    """Return the nanoseconds that reading the clock adds to each single measurement in C."""
    return float(np.median(time_nothing(10_000)))


def python_call_ns() -> float:
    """Return the nanoseconds that an empty method call takes from Python, with the clock."""
    call: Callable[[], object] = object().__hash__
    ns = []
    for _ in range(2000):
        start = perf_counter_ns()
        call()
        ns.append(perf_counter_ns() - start)
    return float(np.median(ns))
