# SPDX-License-Identifier: MIT
"""The benchmark lab: what `memslots perf` and `memslots scale` are made of.

subjects  who is measured: designs of the engine, this machine's kernel
case      one thing to measure; sample: what one run of it gave
selftest, lookups, changes, replays, peers  the cases
rounds    lets the subjects take turns, and keeps what came of it
costs     roughly what operations cost, to choose how many fit into a round
crossover, fit, published  what follows from the figures, and what others measured
show      figures as text
"""
