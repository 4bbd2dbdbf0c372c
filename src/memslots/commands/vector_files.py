# SPDX-License-Identifier: MIT
"""Vector files as arguments: a path, or the name of a packaged QEMU trace."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..report.words import choices
from ..traces import vectors
from .terminal import UsageError


def find(name: str) -> str:
    """The path of a file or of a packaged trace.  UsageError or FileNotFoundError if neither has this name."""
    if Path(name).exists():
        return name
    if path := vectors.packaged(name):
        return path
    if os.sep in name or vectors.is_vector_path(Path(name)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    names = map(vectors.stem, vectors.packaged_traces())
    raise UsageError(
        f"{name}: no such file, and no packaged trace has this name{choices(name, names)}"
    )
