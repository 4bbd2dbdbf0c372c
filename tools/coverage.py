# SPDX-License-Identifier: MIT
"""coverage.py FILE - print the coverage of the core from a JSON report of gcovr.

Each file has a row with the lines and branches that ran, and the numbers of the lines that did not run.  The last line
has the total.
"""

import json
import sys
from itertools import pairwise
from typing import Any, NamedTuple


class Count(NamedTuple):
    run: int
    all: int

    def plus(self, other: "Count") -> "Count":
        return Count(self.run + other.run, self.all + other.all)

    def __str__(self) -> str:
        return f"{self.run:5} of {self.all:5} {self.percent():6.1f} %"

    def percent(self) -> float:
        return 100.0 * self.run / self.all if self.all else 100.0


def ranges(numbers: list[int]) -> str:
    """[3, 4, 5, 9] -> "3-5 9"."""
    starts = [b for a, b in pairwise([-1, *numbers]) if b != a + 1]
    lasts = [a for a, b in pairwise([*numbers, sys.maxsize]) if b != a + 1]
    return " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, lasts, strict=True))


def file_counts(lines: list[dict[str, Any]]) -> tuple[Count, Count, list[int]]:
    """Return the counts of lines and branches of one file, and the numbers of the lines that did not run."""
    code = [line for line in lines if not line.get("gcovr/excluded")]
    runs: dict[int, bool] = {}
    for line in code:  # a line of an inline function may occur several times in the report
        runs[line["line_number"]] = runs.get(line["line_number"], False) or line["count"] > 0
    branches = [
        branch["count"] > 0
        for line in code
        for branch in line["branches"]
        if not branch.get("gcovr/excluded")
    ]
    missed = sorted(number for number, run in runs.items() if not run)
    return Count(sum(runs.values()), len(runs)), Count(sum(branches), len(branches)), missed


def main(path: str) -> None:
    with open(path, encoding="utf-8") as f:
        files = json.load(f)["files"]
    width = max(len(entry["file"]) for entry in files)
    print(f"{'':{width}}  {'lines':>23}  {'branches':>23}  lines not run")
    all_lines = all_branches = Count(0, 0)
    for entry in sorted(files, key=lambda entry: entry["file"]):
        lines, branches, missed = file_counts(entry["lines"])
        all_lines = all_lines.plus(lines)
        all_branches = all_branches.plus(branches)
        print(f"{entry['file']:{width}}  {lines}  {branches}  {ranges(missed)}".rstrip())
    totals = f"lines {all_lines}, branches {all_branches}"
    print(f"coverage: {' '.join(totals.split())}")


if __name__ == "__main__":
    main(sys.argv[1])
