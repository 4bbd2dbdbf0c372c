# SPDX-License-Identifier: MIT
"""Traces of real KVM calls: `import memslots` leaves this package out, import its modules by name.

schema    every field of a file, with its type and range
runs      dirty pages as runs and as bitmaps
regions   the slots that accepted changes leave
vectors   reads and writes the files
player    plays one on a VM and compares every result
history   the slots that a file describes over time
data/     the packaged QEMU traces
"""
