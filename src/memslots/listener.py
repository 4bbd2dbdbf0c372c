# SPDX-License-Identifier: MIT
"""Listeners: the hooks that a change calls where KVM calls its architecture code."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    import numpy.typing as npt

    from ._memslots import MemorySlot

__all__ = ["Change", "ChangeKind", "Listener"]


class ChangeKind(enum.IntEnum):
    """The kind of a change (enum kvm_mr_change)."""

    CREATE = 0
    DELETE = 1
    MOVE = 2
    FLAGS_ONLY = 3
    #: Of a transaction or an update: other pages, and maybe another place and other flags.
    RESIZE = 4


class _Change(NamedTuple):
    kind: ChangeKind
    old: MemorySlot | None
    new: MemorySlot | None


class Change(_Change):
    """The argument of prepare, abort and commit.  ``old`` is None in a CREATE, and ``new`` is None in a DELETE.

    ``dirty`` is not None in commit if the change ends the slot's dirty log: a DELETE of a logged slot, or a change that
    switches LOG_DIRTY_PAGES off.  Then it has the last bits of the log, in an array as from ``get_dirty_log``.  After a
    RESIZE, and where pages went to other slots, it has the bits of the pages that no log has any more, and is None if
    there are none.  It is not a part of the tuple, so it does not count in a comparison, and ``_replace()`` does not
    keep it.
    """

    dirty: npt.NDArray[np.uint64] | None = None

    def __new__(
        cls,
        kind: ChangeKind,
        old: MemorySlot | None,
        new: MemorySlot | None,
        dirty: npt.NDArray[np.uint64] | None = None,
    ) -> Self:
        change = super().__new__(cls, kind, old, new)
        if dirty is not None:  # most changes need no dictionary of attributes
            change.dirty = dirty
        return change


class Listener:
    """The base of the objects that ``VM.add_listener`` takes.  Override the hooks that you need.

    The thread that makes the change calls the hooks, while it holds the VM's lock.  A hook may make lookups.  A change
    of the same VM inside a hook raises ReentrantChangeError.  A read section that a hook leaves open does not delay the
    change that called the hook, but it delays every later change.

    ``load_memslots``, a transaction and an update make several changes at once.  They reach the listeners as one list:
    the first listener prepares all of them, then the second.  If one refuses, nothing is changed, and each prepared
    change gets its abort, in reverse order.  Otherwise flush follows for each slot that went, then commit for each
    change.  An update (``begin_update``) reaches the listeners at its end.

    A hook returns None.  Any other value raises TypeError.  A hook that is ``async`` or a generator function raises
    TypeError when the listener is added.

    A method counts as a misspelled hook if its name is at most two edits away from a hook's, and if it could be called
    with that hook's arguments.  A class with such a method raises TypeError, unless it has the real hook too.  Names
    that begin with an underscore are never misspelled hooks.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_spelling(cls.__name__, vars(cls), bound=False)

    def prepare(self, change: Change) -> None:
        """Runs before the change takes effect, and may refuse it: an exception undoes the change and reaches the
        caller.  A DELETE or MOVE has published its INVALID copy at this point.

        An ioctl that makes the same change elsewhere belongs in the prepare of the last listener: no later listener can
        refuse the change then."""

    def prepare_many(self, changes: list[Change]) -> None:
        """Runs instead of prepare, if the class overrides it, with all changes of one call: a list of one, or more.

        It accepts all of them, or raises an exception and has prepared none.  The method of Listener calls prepare for
        each change; if one refuses, it calls abort for the changes before it."""
        for i, change in enumerate(changes):
            try:
                self.prepare(change)
            except BaseException:
                for prepared in reversed(changes[:i]):
                    self.abort(prepared)
                raise

    def abort(self, change: Change) -> None:
        """Runs when a change is undone that this listener's prepare accepted.  The listeners are called in reverse
        order."""

    def flush(self, active: MemorySlot, old: MemorySlot) -> None:
        """Runs before a slot is deleted or moved: drop everything that was derived from the slot.

        ``active`` is the INVALID copy, which readers see from now on.  ``old`` is the slot as it was.  (Linux 5.17 and
        later pass only ``old`` to their flush.)"""

    def commit(self, change: Change) -> None:
        """Runs when the change is complete.  An exception of commit or flush does not undo the change.  The caller gets
        it at the end."""

    def closed(self) -> None:
        """Runs once at the end of the VM, if the class overrides it: in ``close()``, or when a VM that was not closed
        goes away.  Every reader has left the slots, and lookups find holes, but no buffer of a slot was released yet.

        The exceptions are those of commit: ``close()`` raises them.  Without ``close()`` they go to
        sys.unraisablehook.  If the garbage collector finds the VM, the hook runs afterwards in the main thread, as a
        pending call.  It does not run while the interpreter exits, nor in a forked child."""

    def __repr__(self) -> str:
        own = [name for name in HOOKS if getattr(type(self), name) is not getattr(Listener, name)]
        return f"<{type(self).__name__}: {', '.join(own) or 'no hooks'}>"


#: The names of the hooks, and the number of arguments of each.
HOOKS = {"prepare": 1, "abort": 1, "flush": 2, "commit": 1, "prepare_many": 1, "closed": 0}

#: Hooks that an object without the base class may lack.
_OPTIONAL = ("prepare_many", "closed")

#: Words that look like a hook, but are names of other methods.
_OTHER_WORDS = ("close", "clone")


def has_own(listener: object, hook: str) -> bool:
    """Whether the listener has a hook that is not that of Listener."""
    found = getattr(listener, hook, None)
    return found is not None and getattr(found, "__func__", found) is not getattr(Listener, hook)


def check_hooks(listener: object) -> None:
    """TypeError for an object that cannot be a listener, or that has a misspelled hook."""
    if isinstance(listener, type):
        raise TypeError(
            f"a listener is an object, not a class: did you mean {listener.__name__}()?"
        )
    name = type(listener).__name__
    for part in type(listener).__mro__:
        if part is not object:
            _check_spelling(part.__name__, vars(part), bound=False)
    own = getattr(listener, "__dict__", None)
    if isinstance(own, dict):
        _check_spelling(name, own, bound=True)
    for hook in HOOKS:
        found = getattr(listener, hook, None)
        if found is None and hook in _OPTIONAL:
            continue
        if not callable(found):
            raise TypeError(
                f"a listener has prepare, abort, flush and commit; {hook} of {name} is not callable"
            )
        _check_runs_at_once(f"{hook} of {name}", found)


def _check_runs_at_once(name: str, hook: Any) -> None:
    """TypeError for a coroutine function or a generator function: a call runs nothing of its body."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    call = getattr(type(hook), "__call__", None)  # noqa: B004 (the function, not whether there is one)
    for function in (hook, call):
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{name} is a coroutine function: a call would not run it; make it a plain function"
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{name} is a generator function: a call would not run it; make it a plain function"
            )


# ---- misspelled hooks --------------------------------------------------------------------------------------------


def _check_spelling(owner: str, members: Mapping[str, Any], bound: bool) -> None:
    for name in list(members):
        hook = _misspelled(name, members)
        if hook and _takes(members[name], HOOKS[hook], bound):
            raise TypeError(
                f"{owner}.{name}() is not a hook of a Listener: did you mean {hook}()?  "
                f"If not, give the method another name, or one that begins with an underscore"
            )


def _misspelled(name: object, members: Iterable[str]) -> str | None:
    """The hook at most two edits away from the name, if the members do not have that hook.  Otherwise None."""
    if not isinstance(name, str) or name in HOOKS or name in _OTHER_WORDS or name.startswith("_"):
        return None
    near = (hook for hook in HOOKS if hook not in members and _edits(name, hook) <= 2)
    return min(near, key=lambda hook: _edits(name, hook), default=None)


def _edits(a: str, b: str) -> int:
    """The number of characters to insert, remove or replace to turn a into b (Levenshtein); 3 can stand for more."""
    if abs(len(a) - len(b)) > 2:
        return 3
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def _takes(member: Any, arguments: int, bound: bool) -> bool:
    """Whether the member is a function that accepts this number of arguments, not counting self."""
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
