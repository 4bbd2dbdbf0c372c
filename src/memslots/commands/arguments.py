# SPDX-License-Identifier: MIT
"""Argument types for argparse.  Their error messages name the valid values."""

from __future__ import annotations

import argparse

from .. import backends
from ..report.words import choices


def number(text: str, first: int, last: int) -> int:
    """Parses an integer from `first` to `last`."""
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or not first <= value <= last:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {first:,} to {last:,}")
    return value


def rounds(text: str) -> int:
    return number(text, 1, 1_000_000)


def seed(text: str) -> int:
    return number(text, 0, 2**64 - 1)


def backend(text: str) -> str:
    """The name of a design of the engine, or "kvm" for the kernel."""
    names = [*backends(), "kvm"]
    if text not in names:
        raise argparse.ArgumentTypeError(f"there is no backend {text!r}{choices(text, names)}")
    return text
