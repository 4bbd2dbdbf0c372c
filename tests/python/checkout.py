# SPDX-License-Identifier: MIT
"""The checkout around the tests, and its tools.  Tests that need it are skipped where only the tests were copied."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"

needs_tools = pytest.mark.skipif(not TOOLS.is_dir(), reason="there is no checkout around the tests")


@cache
def tool(name: str) -> ModuleType:
    """Imports tools/NAME.py."""
    # Append: tools/coverage.py must not hide the package of that name.
    sys.path.append(str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))
