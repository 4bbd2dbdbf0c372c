# SPDX-License-Identifier: MIT
"""The files that commands write.  They are checked before the work begins, and are never left half written."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .terminal import UsageError

PROBE = 4096  # bytes: a disk without room for a page is full


def picture(path: Path) -> Path:
    """The path of a picture of this name, with .png if it has no suffix.  Raises as `check` does."""
    try:
        return Path(_plot().check_picture(path))
    except ValueError as e:
        raise UsageError(str(e)) from e


def _plot() -> Any:
    try:
        return importlib.import_module("memslots.plot")
    except ImportError as e:
        raise UsageError(f"a picture needs matplotlib ({e}): pip install 'memslots[plot]'") from e
    except (OSError, ValueError) as e:  # such as a bad MPLBACKEND, or no folder for a cache
        raise UsageError(f"matplotlib cannot start: {e}") from e


def check(outputs: Iterable[Path]) -> None:
    """UsageError or OSError if an output cannot be written.  Call it before minutes of work.  Changes no file."""
    written = list(outputs)
    for path in written:
        _check_writable(path)
    real = [_real(path) for path in written]
    for path in written:
        if _is_replaced(_real(path)) and real.count(_real(path)) > 1:
            raise UsageError(f"{path}: two outputs have this name")


def _check_writable(path: Path) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    with _named(path):
        real = _real(path)
        if not _is_replaced(real):
            return
        part = _part(real)
        try:
            part.write_bytes(bytes(PROBE))
        finally:
            part.unlink(missing_ok=True)
        if real.exists() and not os.access(real, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to.  If the block succeeds, that file replaces `path`; otherwise it is deleted."""
    with _named(path):
        real = _real(path)
        if not _is_replaced(real):
            yield path
            return
        part = _part(real)
        try:
            yield part
            if real.exists():
                shutil.copymode(real, part)
            part.replace(real)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Lets an OSError of the block name `path`, the name that the user gave."""
    try:
        yield
    except OSError as e:
        e.filename = str(path)
        raise


def _real(path: Path) -> Path:
    """The file to replace: of a symbolic link, the file that it points to."""
    return Path(os.path.realpath(path))


def _is_replaced(real: Path) -> bool:
    """Whether a new file replaces the old one.  False for devices and pipes, such as /dev/stdout, which are opened."""
    try:
        mode = real.stat().st_mode
    except FileNotFoundError:
        return True
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return stat.S_ISREG(mode)


def _part(real: Path) -> Path:
    """A temporary file in the same folder, to be renamed.  It has the same suffix, which chooses a picture's format."""
    return real.with_name(f".memslots-{os.getpid()}{real.suffix}")
