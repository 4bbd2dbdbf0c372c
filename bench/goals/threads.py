# SPDX-License-Identifier: MIT
"""P9: two threads of batches against two of a plain loop; a reader beside a writer, a writer beside a reader."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .beside import BATCH, SCALAR, Background, Batches, Reader, Scalar, Spinner, Writer, run_for
from .book import Book
from .build import HERE, compile_c
from .timing import WALL, turns
from .work import AUTO, WALK, Effort, has_switch, slots_of, stage

SLOTS = 4096
SCALING, BESIDE = 0.9, 0.7
WORK_NS = 60e6  # of one thread, in a round
SECONDS = 0.3  # of a reader, in a round


def policies() -> tuple[str, ...]:
    return (AUTO, WALK) if has_switch() else (WALK,)


def path(policy: str) -> str:
    return "plain walk" if policy == WALK else "default path"


# ---- two threads --------------------------------------------------------------------------------


def scaling(book: Book, effort: Effort, folder: Path) -> None:
    n = min(SLOTS, effort.sizes[-1])
    on = stage(n, effort)
    spin = ctypes.CDLL(
        str(compile_c(folder / "spin.so", [HERE / "spin.c"], "-shared", "-fPIC"))
    ).bench_spin
    spin.argtypes, spin.restype = (ctypes.c_uint, ctypes.c_uint64), ctypes.c_uint64
    passes = repeats(lambda: spin(1, 10), effort) * 10
    outs = [np.empty_like(on.gfns), np.empty_like(on.gfns)]
    for policy in policies():
        vm = on.vm(policy)

        def batches(out: np.ndarray, times: int) -> None:
            for _ in range(times):
                vm.gfn_to_hva_many(on.gfns, out=out)  # noqa: B023

        times = repeats(lambda: batches(outs[0], 1), effort)
        calls: dict[str, Callable[[], object]] = {
            "one loop": lambda: spin(1, passes),
            "two loops": lambda: spin(2, passes),
            "one": lambda: batches(outs[0], times),  # noqa: B023
            "two": lambda: together([(batches, out, times) for out in outs]),  # noqa: B023
        }
        got = turns(calls, 2 * effort.rounds - 1, WALL)
        for out in outs:
            book.check((out == on.expected).all(), f"two threads of batches, {policy}")
        loops = [2 * a / b for a, b in zip(got["one loop"], got["two loops"], strict=True)]
        ours = [2 * a / b for a, b in zip(got["one"], got["two"], strict=True)]
        at = f"{slots_of(n)}, {path(policy)}"
        book.ratio(
            "P9",
            "scaling of two threads of batches / of two C loops",
            at,
            ours,
            loops,
            bound=SCALING,
        )
        book.ratio("P9", "... two threads of batches against one", at, ours, [1.0] * len(ours))
        book.ratio("P9", "... two C loops against one", at, loops, [1.0] * len(loops))


def repeats(call: Callable[[], object], effort: Effort) -> int:
    """How often it fits into a round's work."""
    once = min(turns({"it": call}, 3, WALL)["it"])
    return 1 if effort.quick else max(1, round(WORK_NS / once))


def together(calls: list[tuple[Callable[..., None], np.ndarray, int]]) -> None:
    threads = [threading.Thread(target=call, args=args) for call, *args in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- beside each other --------------------------------------------------------------------------


def beside(book: Book, effort: Effort) -> None:
    n = min(SLOTS, effort.sizes[-1])
    for policy in policies():
        for kind, make in (("lookups", Scalar), ("batches", Batches)):
            one_path(book, effort, n, policy, kind, make)


def one_path(
    book: Book, effort: Effort, n: int, policy: str, kind: str, make: type[Reader]
) -> None:
    """A reader alone, beside a thread that only keeps a CPU busy, and beside a writer: in turns."""
    on = stage(n, effort)
    vm = on.vm(policy)
    victim = on.slots[n // 2]
    gfns = on.gfns[: SCALAR if make is Scalar else BATCH]
    reached: dict[str, list[float]] = {"alone": [], "spinner": [], "writer": []}
    latencies = []
    for _ in range(effort.rounds):
        for name in reached:
            reader = make(vm, on.slots, gfns, victim)
            others: dict[str, list[Background]] = {
                "alone": [], "spinner": [Spinner()], "writer": [Writer(vm, victim)],
            }  # fmt: skip
            run_for(0.05 if effort.quick else SECONDS, [*others[name], reader])
            reached[name].append(reader.per_second)
            book.check(not reader.wrong, f"{kind} {name}, {policy}: {reader.wrong} answers")
            for writer in others[name]:
                if isinstance(writer, Writer):
                    book.check(not writer.refused, "every change beside a reader is made")
                    latencies.append(writer.latencies)
    at = f"{kind}, {path(policy)}"
    what = f"a reader beside a writer that never stops / undisturbed, {slots_of(n)}"
    bound = BESIDE if policy == WALK else None
    book.ratio("P9", what, at, reached["writer"], reached["alone"], bound=bound)
    book.ratio(
        "P9", "... / beside a thread that only spins", at, reached["writer"], reached["spinner"]
    )
    for name, q in (("p50", 50), ("p99", 99), ("max", 100)):
        us = float(np.percentile(np.concatenate(latencies), q)) / 1000
        book.value("P9", "a change beside that reader", f"{at}, {name}", us, "us")
