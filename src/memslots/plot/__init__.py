# SPDX-License-Identifier: MIT
"""Pictures of what `memslots perf`, `memslots scale` and vector files hold, as PNG or SVG by the suffix of the path.

The first three take the object that `--json` prints.  Needs matplotlib; no display, no global state of pyplot.
"""

from .latency import latency_picture
from .memory_map import memory_map_picture
from .perf import perf_picture
from .scale import scale_picture

__all__ = ["latency_picture", "memory_map_picture", "perf_picture", "scale_picture"]
