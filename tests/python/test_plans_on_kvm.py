# SPDX-License-Identifier: MIT
"""Random plans on the machine's kernel, ioctl by ioctl in one VM: KVM refuses no step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from checkout import needs_tools, tool

from memslots import kvm

#: `tools/plans_on_kvm.py --plans 1000000` makes more; docs/layouts.md has the result.
PLANS = 10_000


@needs_tools
@pytest.mark.slow
def test_kvm_accepts_every_step_of_random_plans(tmp_path: Path) -> None:
    reason = kvm.available()
    if reason:
        pytest.skip(reason)
    line = tool("plans_on_kvm").run(PLANS, seed=7, file=tmp_path / "plans.txt")
    assert re.match(r"10,000 plans, [\d,]+ calls \(.*\), 0 refused", line), line
    assert all(kind in line for kind in ("CREATE", "DELETE", "MOVE", "FLAGS_ONLY"))
    table = (tmp_path / "plans.txt").read_text()
    assert "`python tools/plans_on_kvm.py --plans 10000 --seed 7`" in table
    assert "| plans carried out in one VM | 10,000 |" in table
    calls = re.search(r", ([\d,]+) calls", line)
    assert calls
    assert f"| ioctls, all accepted | {calls[1]} |" in table


@needs_tools
def test_file_has_no_counts_of_a_run_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth plan is refused.  The counts of four plans were there."""
    module, file = tool("plans_on_kvm"), tmp_path / "plans.txt"
    seen: list[str] = []

    def one(self: Any) -> None:
        if self.counts["plans"] == 4:
            seen.append(file.read_text())
            raise AssertionError("planted")
        self.counts["plans"] += 1

    monkeypatch.setattr(
        module.Run, "__init__", lambda self, _: setattr(self, "counts", module.Counter())
    )
    monkeypatch.setattr(module.Run, "__exit__", lambda *_: None)
    monkeypatch.setattr(module.Run, "one", one)
    with pytest.raises(RuntimeError, match="plan 5 of seed 1: planted"):
        module.run(10, seed=1, every=2, file=file)
    assert "| plans carried out in one VM | 4 |" in seen[0]
    assert not file.exists()
