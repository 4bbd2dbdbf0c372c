# SPDX-License-Identifier: MIT
"""Where the goals P1 to P10 of docs/benchmarks.md stand: `make bench-goals`.

One file for each kind of yardstick.  They share scorecard.py (figures, bounds, verdicts), work.py (settings, slots,
VMs) and timing.py (turns and quartiles).  A missed goal is a finding and no failure; a wrong answer is a failure.
docs/design.md says how this differs from `memslots perf` and from bench/suite.
"""
