# SPDX-License-Identifier: MIT
"""Checks that decoded JSON has the type that a TypedDict describes."""

from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict


def faults(value: Any, kind: Any, at: str = "the object") -> list[str]:
    """One line for each value of a wrong type, each missing key and each unknown key."""
    if is_typeddict(kind):
        return dict_faults(value, kind, at)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return min((faults(value, one, at) for one in args), key=len)
    if origin is list and isinstance(value, list):
        return [f for i, item in enumerate(value) for f in faults(item, args[0], f"{at}[{i}]")]
    if origin is dict and isinstance(value, dict):
        return [f for key, item in value.items() for f in faults(item, args[1], f"{at}.{key}")]
    return [] if is_a(value, origin or kind) else [f"{at} is {value!r}, not of {kind}"]


def is_a(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def dict_faults(value: Any, kind: Any, at: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{at} is {value!r}, not an object"]
    hints = get_type_hints(kind)
    found = [f"{at} lacks {key}" for key in sorted(kind.__required_keys__ - value.keys())]
    found += [f"{at} has {key}, which is unknown" for key in value if key not in hints]
    for key in value.keys() & hints.keys():
        found += faults(value[key], hints[key], f"{at}.{key}")
    return found
