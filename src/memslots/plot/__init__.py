# SPDX-License-Identifier: MIT
"""Pictures of the results of `memslots perf` and `memslots scale` and of vector files: PNG or SVG by the suffix.

The first three functions take the object that `--json` prints.  Each returns the path of the file that it wrote.
`check_picture` checks before the work whether a file of this name can be written.  All need matplotlib; they need no
display and leave pyplot's global state alone.
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
