# SPDX-License-Identifier: MIT
"""Traces of real KVM calls.  `import memslots` does not load this package; import its modules by name.

schema    every field of a file, with its type and range
runs      dirty pages: conversion between runs and bitmaps
regions   the slots after a series of accepted changes
vectors   reads and writes the files
player    plays a file on a VM and compares every result
logs      reads logs of other programs: strace_log, qemu_log and mtree_log, one for each format
changes   the changes that a log has, and an account of all its other lines
history   the slots that a file describes over time
data/     the packaged QEMU traces
"""
