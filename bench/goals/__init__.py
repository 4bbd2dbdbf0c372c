# SPDX-License-Identifier: MIT
"""Measure the goals P1 to P13 of docs/benchmarks.md: `make bench-goals`.

Each goal compares the engine with a yardstick, for example a copy by numpy.  There is one file for each kind of
yardstick.  The files share scorecard.py (figures, bounds, verdicts), work.py (settings, slots, VMs), workers.py
(readers and writers in threads) and timing.py (turns and quartiles).  A missed goal is a finding, not a failure; a
wrong answer is a failure.  docs/design.md explains the differences from `memslots perf` and from bench/suite.
"""
