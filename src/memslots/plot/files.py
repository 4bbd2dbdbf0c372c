# SPDX-License-Identifier: MIT
"""The file of a picture: its path, and the check that it can be written."""

from __future__ import annotations

import os
import stat
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

DEFAULT_SUFFIX = ".png"


def check_picture(path: str | Path) -> Path:
    """Returns the path that a picture of this name is written to.  Call it before the work whose result is drawn.

    Raises ValueError for a suffix that matplotlib cannot write, and OSError for a file that cannot be written: its
    folder does not exist, is read-only, and so on.  An existing file keeps its content.  No new file stays behind.
    """
    target = written_path(path)
    _try_format(target)
    _try_to_open(target)
    return target


def written_path(path: str | Path) -> Path:
    """`path`, with .png if it has no suffix."""
    stem, suffix = os.path.splitext(path)
    return Path(path) if suffix.strip(".") else Path(stem + DEFAULT_SUFFIX)


def _try_format(target: Path) -> None:
    """Writes an empty figure to memory: some formats need a program that may not be installed."""
    suffix = target.suffix[1:]
    try:
        Figure(figsize=(1, 1)).savefig(BytesIO(), format=suffix)
    except (ValueError, RuntimeError, ImportError, OSError) as e:
        raise ValueError(
            f"{target}: no picture with the suffix .{suffix}, use .png or .svg: {e}"
        ) from e


def _try_to_open(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: there is no folder {target.parent}")
    existed = target.exists()
    # O_NONBLOCK: a FIFO without a reader would block for ever; with this flag, open() fails.
    file = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    regular = stat.S_ISREG(os.fstat(file).st_mode)
    os.close(file)
    if not existed and regular:
        os.unlink(os.path.realpath(target))  # of a link to a missing file, not the link itself
