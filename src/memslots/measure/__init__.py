# SPDX-License-Identifier: MIT
"""Rounds of measuring, and the conclusions from their rows.

rounds      lets backends take turns, and keeps the samples
duel        the array against the tree, from their rows
fit         growth of a cost with the number of slots
crossover   up to which number of slots the array is the better design
published   the figures of the authors of the trees
"""
