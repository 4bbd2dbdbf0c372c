# SPDX-License-Identifier: MIT
"""The hooks that a change runs where KVM runs its architecture's."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ._memslots import MemorySlot

__all__ = ["Change", "ChangeKind", "Listener"]


class ChangeKind(enum.IntEnum):
    """enum kvm_mr_change."""

    CREATE = 0
    DELETE = 1
    MOVE = 2
    FLAGS_ONLY = 3


class Change(NamedTuple):
    """One change: ``old`` is None in a CREATE, ``new`` in a DELETE."""

    kind: ChangeKind
    old: MemorySlot | None
    new: MemorySlot | None


class Listener:
    """Base of the objects that ``VM.add_listener`` takes; override the hooks that you need.

    The thread that makes the change calls all four, while it holds the VM's lock: lookups are fine, a change of the
    same VM raises ReentrantChangeError.  A read section that a hook leaves open does not hold up its own change, but
    every one after it.

    A hook returns None: any other value is a TypeError, and so is a hook that is ``async`` or a generator.  A method
    whose name is at most two edits away from a hook's, and which could be called like it, is taken for a misspelled
    hook: the class is refused with TypeError, unless it has the hook as well or the name begins with an underscore.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_spelling(cls.__name__, vars(cls), bound=False)

    def prepare(self, change: Change) -> None:
        """May refuse: an exception undoes the change and reaches the caller.  A DELETE or MOVE has published its
        INVALID copy by now.  An ioctl that mirrors the change belongs in the last listener's prepare."""

    def abort(self, change: Change) -> None:
        """The change that this listener had prepared is undone; called in reverse order."""

    def flush(self, active: MemorySlot, old: MemorySlot) -> None:
        """A slot is about to go or move: drop what was derived from it.  ``active`` is the INVALID copy that
        readers see from now on, ``old`` the slot as it was.  (Linux 5.17 and later hand over ``old`` alone.)"""

    def commit(self, change: Change) -> None:
        """The change is complete.  An exception from here or from flush reaches the caller afterwards."""

    def __repr__(self) -> str:
        own = [name for name in HOOKS if getattr(type(self), name) is not getattr(Listener, name)]
        return f"<{type(self).__name__}: {', '.join(own) or 'no hooks'}>"


#: The hooks, and how many arguments each gets.
HOOKS = {"prepare": 1, "abort": 1, "flush": 2, "commit": 1}


def check_hooks(listener: object) -> None:
    """TypeError for an object that cannot be a listener, or whose author meant other hooks than it has."""
    if isinstance(listener, type):
        raise TypeError(f"a listener is an object, not a class: {listener.__name__}()?")
    name = type(listener).__name__
    for part in type(listener).__mro__:
        if part is not object:
            _check_spelling(part.__name__, vars(part), bound=False)
    own = getattr(listener, "__dict__", None)
    if isinstance(own, dict):
        _check_spelling(name, own, bound=True)
    for hook in HOOKS:
        found = getattr(listener, hook, None)
        if not callable(found):
            raise TypeError(
                f"a listener has prepare, abort, flush and commit; {hook} of {name} is not callable"
            )
        _check_runs_at_once(f"{hook} of {name}", found)


def _check_runs_at_once(name: str, hook: Any) -> None:
    """A call of a coroutine function or a generator function runs none of its body."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    call = getattr(type(hook), "__call__", None)  # noqa: B004 (the function, not whether there is one)
    for function in (hook, call):
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{name} is a coroutine function: nobody would await it; make it a plain function"
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{name} is a generator function: a call runs none of it; make it a plain function"
            )


# ---- misspelled hooks --------------------------------------------------------------------------------------------


def _check_spelling(owner: str, members: Mapping[str, Any], bound: bool) -> None:
    for name in list(members):
        hook = _misspelled(name, members)
        if hook and _takes(members[name], HOOKS[hook], bound):
            raise TypeError(
                f"{owner}.{name}() is no hook of a Listener: did you mean {hook}()?  "
                f"If not, give it another name, or one that begins with an underscore"
            )


def _misspelled(name: object, members: Iterable[str]) -> str | None:
    """The hook that the name is nearly equal to, if it is not there itself."""
    if not isinstance(name, str) or name in HOOKS or name.startswith("_"):
        return None
    near = (hook for hook in HOOKS if hook not in members and _edits(name, hook) <= 2)
    return min(near, key=lambda hook: _edits(name, hook), default=None)


def _edits(a: str, b: str) -> int:
    """How many characters must be inserted, removed or replaced to make b of a (Levenshtein)."""
    if abs(len(a) - len(b)) > 2:
        return 3  # or more
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def _takes(member: Any, arguments: int, bound: bool) -> bool:
    """Whether it is a function that could be called with so many arguments, self apart."""
    if isinstance(member, classmethod):
        member = member.__func__
    elif isinstance(member, staticmethod):
        member, bound = member.__func__, True
    if not callable(member) or isinstance(member, type):
        return False
    has_self = not bound and inspect.isroutine(member)
    try:
        inspect.signature(member).bind(*[None] * (arguments + has_self))
    except (TypeError, ValueError):
        return False
    return True
