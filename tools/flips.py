# SPDX-License-Identifier: MIT
"""flips.py - make simple mutants of a C function.  Each flips one comparison, one operator or one condition.

    kind                  effect
    lt-le le-lt           `a < b` becomes `a <= b`, and the reverse
    gt-ge ge-gt           `a > b` becomes `a >= b`, and the reverse
    and-or or-and         `a && b` becomes `a || b`, and the reverse
    plus-one minus-one    `a + 1` and `a - 1` become `a`
    if-true if-false      the condition of an `if` is forced
    never                 the condition of a `while` or a `for` is false: the loop ends
    first second          `c ? a : b` becomes `a`, or `b`

The name of a flip is its kind and its number among the flips of that kind in the function: `lt-le:2`.
"""

import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from anchors import AnchorError, Place, Source, Sources, Unit, is_c

OPERATORS = {
    "<": ("<=", "lt-le"),
    "<=": ("<", "le-lt"),
    ">": (">=", "gt-ge"),
    ">=": (">", "ge-gt"),
    "&&": ("||", "and-or"),
    "||": ("&&", "or-and"),
}
STEPS = {"+": "plus-one", "-": "minus-one"}
OPEN, CLOSED = "([{", ")]}"
BEFORE_CONDITION = {"=", "return", ",", ";", "?", ":", "+=", "-=", "|=", "&=", *"([{}"}


class Flip(NamedTuple):
    """One flip in the function `name`.  It is planted in the same way as an Edit."""

    name: str
    label: str  # kind:number
    file: str = ""

    def place(self, sources: Sources) -> Place:
        return found(self, sources).place


class Found(NamedTuple):
    label: str
    place: Place
    code: str  # the expression or the condition that changes, on one line
    text: str  # the same code with the flip


class Change(NamedTuple):
    """Tokens [first, end) become `text`.  Messages show the tokens [shown, shown_end)."""

    kind: str
    first: int
    end: int
    text: str
    shown: int
    shown_end: int


def closing(words: list[str], at: int) -> int:
    """Return the index of the bracket that closes the bracket at `at`."""
    depth = 0
    for i in range(at, len(words)):
        depth += (words[i] in OPEN) - (words[i] in CLOSED)
        if depth == 0:
            return i
    raise AnchorError(f"the bracket {words[at]!r} is never closed")


def beginning(words: list[str], at: int) -> int:
    """Return the first token of the expression that ends before `at`."""
    depth = 0
    for i in range(at - 1, -1, -1):
        if depth == 0 and words[i] in BEFORE_CONDITION:
            return i + 1
        depth += (words[i] in CLOSED) - (words[i] in OPEN)
    return 0


def ending(words: list[str], at: int) -> int:
    """Return the token after the expression that begins at `at`."""
    depth = 0
    for i in range(at, len(words)):
        if depth == 0 and words[i] in {")", "]", "}", ";", ",", "?", ":", "{"}:
            return i
        depth += (words[i] in OPEN) - (words[i] in CLOSED)
    return len(words)


def forced(words: list[str], i: int) -> Iterator[Change]:
    """Yield the flips of the condition that begins with the token i."""
    if words[i] in ("if", "while") and words[i + 1] == "(":
        first, end = i + 2, closing(words, i + 1)
        for kind, value in (
            (("if-true", "true"), ("if-false", "false"))
            if words[i] == "if"
            else (("never", "false"),)
        ):
            yield Change(kind, first, end, value, first, end)
    elif words[i] == "for" and words[i + 1] == "(":
        first = ending(words, i + 2)
        while words[first] != ";":
            first = ending(words, first + 1)
        end = ending(words, first + 1)
        while words[end] != ";":
            end = ending(words, end + 1)
        if end > first + 1:
            yield Change("never", first + 1, end, "false", first + 1, end)
    elif words[i] == "?":
        first = beginning(words, i)
        for kind, value in (("first", "true"), ("second", "false")):
            yield Change(kind, first, i, value, first, ending(words, ending(words, i + 1) + 1))


def changes(words: list[str]) -> Iterator[Change]:
    """Yield all flips of a function with these tokens, in order."""
    for i, word in enumerate(words):
        if word in OPERATORS:
            text, kind = OPERATORS[word]
            yield Change(kind, i, i + 1, text, beginning(words, i), ending(words, i + 1))
        elif word in STEPS and words[i + 1 : i + 2] == ["1"] and is_operand(words[i - 1]):
            yield Change(STEPS[word], i, i + 2, "", beginning(words, i), ending(words, i + 2))
        else:
            yield from forced(words, i)


def is_operand(word: str) -> bool:
    return word not in ("return", "case") and (word[0].isalnum() or word[0] in "_)]")


def body(source: Source, unit: Unit) -> tuple[int, list[str]]:
    """Return the tokens of a function after its head, or of a macro after its name."""
    words = source.words[unit.first : unit.end]
    skip = 3 if words[0] == "#" else words.index("{") if "{" in words else 0
    return unit.first + skip, words[skip:]


def flips_in(source: Source, unit: Unit) -> list[Found]:
    first, words = body(source, unit)
    numbers: Counter[str] = Counter()
    result = []
    for change in changes(words):
        numbers[change.kind] += 1
        tokens = source.tokens[first + change.first : first + change.end]
        if change.text == "" and tokens[0].text in STEPS:  # remove the space before it too
            start = source.tokens[first + change.first - 1].end
        else:
            start = tokens[0].start
        place = Place(source.file, start, tokens[-1].end, change.text)
        shown = source.tokens[first + change.shown : first + change.shown_end]
        before = " ".join(source.text[shown[0].start : place.start].split())
        after = " ".join(source.text[place.end : shown[-1].end].split())
        code = " ".join(source.text[shown[0].start : shown[-1].end].split())
        label = f"{change.kind}:{numbers[change.kind]}"
        result.append(
            Found(label, place, code, " ".join(filter(None, [before, change.text.strip(), after])))
        )
    return result


def flips_of(sources: Sources, name: str, file: str = "") -> list[Found]:
    """Return all flips of the function of this name.  There must be exactly one."""
    units = [
        (s, u)
        for s, u in sources.units(name, file)
        if is_c(s.file) and "{" in s.words[u.first : u.end]
    ]
    if len(units) != 1:
        where = ", ".join(sorted(s.file for s, _ in units))
        raise AnchorError(
            f"{name}: flips need one function of C of this name, and there are {len(units)} ({where})"
        )
    return flips_in(*units[0])


def found(flip: Flip, sources: Sources) -> Found:
    flips = {f.label: f for f in flips_of(sources, flip.name, flip.file)}
    if flip.label not in flips:
        there = textwrap.shorten(", ".join(flips), 200)
        raise AnchorError(f"{flip.name}: there is no flip {flip.label!r}, but {there}")
    return flips[flip.label]
