# SPDX-License-Identifier: MIT
"""Reports of measurements as text.

words   plurals, lists of names
tables  tables and paragraphs for terminals of any width
show    times, factors and notes; both reports use them
perf    the text of `memslots perf`
scale   the text of `memslots scale`
"""
