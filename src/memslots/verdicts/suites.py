# SPDX-License-Identifier: MIT
"""Two sets of files of pytest-benchmark (--benchmark-json) as a comparison.  Each file is one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from .runs import Comparison, ComparisonError, Process


def comparison(a: Sequence[Path], b: Sequence[Path]) -> Comparison:
    """Pair the files in order: the first of A with the first of B, and so on.  Each pair is a unit."""
    if len(a) != len(b):
        raise ComparisonError(
            f"{len(a)} files before -- and {len(b)} after it: a pair needs one file of each side"
        )
    processes = [
        Process(side, i, i, i, 0, medians(path))
        for side, paths in (("A", a), ("B", b))
        for i, path in enumerate(paths)
    ]
    names = [f"{paths[0]} and {len(paths) - 1} more" for paths in (a, b)]
    missing = _missing(processes)
    return Comparison(__version__, "verdict", names[0], names[1], 0.0, None, processes, missing)


def medians(path: Path) -> dict[str, float]:
    """Return the median of each benchmark in seconds."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["fullname"]: float(row["stats"]["median"]) for row in found["benchmarks"]}
    except (ValueError, KeyError, TypeError) as e:
        raise ComparisonError(
            f"{path} is no file of pytest-benchmark: {type(e).__name__}: {e}"
        ) from e
    bad = [name for name, seconds in rows.items() if not seconds > 0]
    if bad:
        raise ComparisonError(f"{path}: the median of {bad[0]} is {rows[bad[0]]}, not above 0")
    return rows


def _missing(processes: Sequence[Process]) -> list[str]:
    """One line for each benchmark that some file lacks."""
    names = dict.fromkeys(name for p in processes for name in p.benchmarks)
    lacking = {name: sum(name not in p.benchmarks for p in processes) for name in names}
    return [f"{name}: not in {n} of {len(processes)} files" for name, n in lacking.items() if n]
