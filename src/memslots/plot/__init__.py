# SPDX-License-Identifier: MIT
"""Draws pictures of the results of `memslots perf` and `memslots scale`, and of vector files.

`perf_picture`, `latency_picture` and `scale_picture` take the object that `--json` prints; `memory_map_picture` takes a
vector file.  Each returns the path of the file that it wrote.  The suffix chooses the format, such as PNG or SVG.  Call
`check_picture` before long work: it checks that a file of this name can be written.  The functions need matplotlib, but
no display.  They do not change the global state of pyplot.
"""

from .files import check_picture
from .latency import latency_picture
from .memory_map import memory_map_picture
from .perf import perf_picture
from .scale import scale_picture

__all__ = [
    "check_picture",
    "latency_picture",
    "memory_map_picture",
    "perf_picture",
    "scale_picture",
]
