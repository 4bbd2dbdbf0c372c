# SPDX-License-Identifier: MIT
"""Traces of real KVM calls.  `import memslots` does not load this package; import its modules by name.

schema    every field of a file, with its type and range
runs      dirty pages: conversion between runs and bitmaps
regions   the slots after a series of accepted changes
vectors   reads and writes the files
player    plays a file on a VM and compares every result
history   the slots that a file describes over time
data/     the packaged QEMU traces
"""
