# SPDX-License-Identifier: MIT
"""Reports of measurements as text.

show    times, factors and tables, which the others share
perf    the text of `memslots perf`
scale   the text of `memslots scale`
"""
