# SPDX-License-Identifier: MIT
"""The laboratory: the cases that `memslots perf` and `memslots scale` measure.

layouts   slots and streams of gfns from a seed, with the right answers
subjects  the VMs that are measured: designs of the engine, the kernel of this machine
case      one thing to measure; sample: one run of it
selftest, changes, lookups, scaling, replays, peers  the cases
filling   the cases that fill a new VM in each run
costs     rough costs of operations; they decide how many operations fit into a round
schema    the types of the JSON that the commands print
machine   the machine that figures come from
progress  a progress bar
"""
