# SPDX-License-Identifier: MIT
"""Random plans on the machine's kernel, ioctl by ioctl in one VM: KVM refuses no step."""

from __future__ import annotations

import re

import pytest
from checkout import needs_tools, tool

from memslots import kvm

#: `tools/plans_on_kvm.py --plans 1000000` makes more; docs/layouts.md has the result.
PLANS = 10_000


@needs_tools
@pytest.mark.slow
def test_kvm_accepts_every_step_of_random_plans() -> None:
    reason = kvm.available()
    if reason:
        pytest.skip(reason)
    line = tool("plans_on_kvm").run(PLANS, seed=7)
    assert re.match(r"10,000 plans, [\d,]+ calls \(.*\), 0 refused", line), line
    assert all(kind in line for kind in ("CREATE", "DELETE", "MOVE", "FLAGS_ONLY"))
