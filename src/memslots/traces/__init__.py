# SPDX-License-Identifier: MIT
"""Traces of real KVM calls: `import memslots` leaves this package out, import its modules by name.

vectors   reads and writes the files
player    plays one on a VM and compares every result
history   the slots that a file describes over time
data/     the packaged QEMU traces
"""
