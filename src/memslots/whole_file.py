# SPDX-License-Identifier: MIT
"""Files that other processes see whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A new file, open for writing, that takes the place of the path at the end of the block.

    Other processes see the old file or the whole new one.  After an exception the path is as before."""
    new = f"{path}.{secrets.token_hex(8)}.new"
    try:
        with open(new, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
