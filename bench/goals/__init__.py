# SPDX-License-Identifier: MIT
"""Where the goals P1 to P10 of docs/benchmarks.md stand: `make bench-goals`.

One file for each kind of yardstick; book.py holds what they found, work.py the slots and VMs that they share, timing.py
how turns are taken.  A goal that is missed is a finding and no failure; a wrong answer is one.
"""
