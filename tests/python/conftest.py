# SPDX-License-Identifier: MIT
"""Set hypothesis up for the whole suite, report how many calls were compared with the kernel, and give an empty VM."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from memslots import VM
from memslots.lab import progress

# The same examples in every run, and no limit that a busy machine could exceed.  The phase "explain" may take longer
# than faulthandler_timeout, which would end the process before the report.
settings.register_profile(
    "memslots",
    derandomize=True,  # also: no database of earlier failures
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
settings.load_profile("memslots")

# On a busy machine a command of a test takes long enough for a progress line, which the test does not expect.
progress.LINE_EVERY = float("inf")

# A shell without job control starts a background job with SIGINT ignored, and Python then installs no handler.  The
# tests of Ctrl-C, and the processes that they start, need one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def vm() -> Iterator[VM]:
    """Some test files replace it by one with slots."""
    with VM() as vm:
        yield vm


def pytest_collection_finish() -> None:
    """Keeps pytest's own objects out of collections: with 7,600 tests each gc.collect() took 0.15 s."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how many calls the differential tests compared; each test records its number as a user property."""
    made = wanted = 0
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, value in report.user_properties:
                    if name == "calls compared with the kernel":
                        made, wanted = made + value[0], wanted + value[1]
    if wanted:
        why = "" if made == wanted else " (out of time: the machine is busy; MEMSLOTS_KVM_SECONDS)"
        terminalreporter.line(f"kernel: {made:,} of {wanted:,} calls compared{why}")
