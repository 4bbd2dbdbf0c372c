# SPDX-License-Identifier: MIT
"""Arguments that several commands have, and argument types whose error messages name the valid values."""

from __future__ import annotations

import argparse

from .. import backends
from ..lab.layouts import SEED
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


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def add_measurement(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every measurement: how often, of which operations, and of which cases."""
    parser.add_argument("--rounds", type=rounds, metavar="N", help="turns of each backend")
    parser.add_argument(
        "--seed",
        type=seed,
        default=SEED,
        metavar="N",
        help="the seed of slots and operations (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        help="only cases whose name contains PATTERN, which may have * and ?",
    )
    parser.add_argument("--no-kvm", action="store_true", help="leave out this machine's kernel")
