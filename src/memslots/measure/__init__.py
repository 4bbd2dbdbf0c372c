# SPDX-License-Identifier: MIT
"""Rounds of measurements, and conclusions from their rows.

rounds      runs backends in turns and keeps the samples
duel        the array against the tree, from their rows
groups      the groups of cases in tables and pictures
fit         the growth of a cost with the number of slots
crossover   the number of slots up to which the array is faster
published   the figures of the authors of the tree-based memslots
"""
