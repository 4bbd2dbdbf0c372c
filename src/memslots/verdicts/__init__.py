# SPDX-License-Identifier: MIT
"""Verdicts about two versions, with known error rates.  docs/how-we-know.md explains them.

outcome    the tests: faster, slower, equivalent or inconclusive
runs       the measured processes of a comparison, and their pairs
suites     two sets of files of pytest-benchmark as a comparison
builds     builds two versions, each with several link orders
work       the program of one measured process; it also runs on old versions
processes  runs the processes in turns
pool       the error rates, from a recorded pool of processes
"""
