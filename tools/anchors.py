# SPDX-License-Identifier: MIT
"""anchors.py - find a text in the sources by the function that contains it.

An anchor is the name of a function and a text inside it.  Texts are compared token by token: comments, docstrings,
whitespace and line breaks do not count.  An anchor therefore survives a new comment, a reformatted line, and a function
that moves to another file.  It does not survive a change of the code that it names.

The name is one of:

    lookup            a function of C, Python or Cython, or a table of C (`= { ... }`)
    VM.close          a method; `close` alone finds it too
    struct memslot    a struct, a union or an enum of C; the name of an anonymous enum is `enum`
    #define NAME      a macro, with all its lines

`file` is a glob below the root.  It selects one of several functions with the same name.  Without a name, the tool
searches for the text in all of each file that matches.
"""

import re
import textwrap
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

FOLDERS = ("src", "tools")
C_SUFFIXES = (".c", ".h")
PYTHON_SUFFIXES = (".py", ".pyx", ".pxi", ".pxd")

SIGN = r"<<=|>>=|\.\.\.|->|\+\+|--|<<|>>|[<>=!]=|&&|\|\||[-+*/%&|^]=|\#\#|\*\*|//|:=|\S"
WORD_OR_SIGN = rf"[A-Za-z_]\w*|\.?\d[\w.]*|{SIGN}"
C_COMMENT = re.compile(
    r'(?P<keep>"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')|/\*.*?(?:\*/|\Z)|//[^\n]*|\\\n', re.S
)
C_TOKEN = re.compile(rf'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|{WORD_OR_SIGN}', re.S)
C_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.M)
C_DEFINE = re.compile(r"[ \t]*#[ \t]*define[ \t]+(\w+)")
C_NOT_A_NAME = {"__attribute__", "_Alignas", "alignas", "__declspec"}

PY_STRING = r"[rRbBuUfF]{0,2}(?:\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')"
PY_COMMENT = re.compile(rf"(?P<keep>{PY_STRING})|#[^\n]*|\\\n", re.S)
PY_TOKEN = re.compile(rf"{PY_STRING}|{WORD_OR_SIGN}", re.S)
PY_FUNCTION = re.compile(
    r"^(?P<indent>[ \t]*)(?:(?:async[ \t]+)?def[ \t]+(?P<d>\w+)|(?:cdef[ \t]+)?class[ \t]+(?P<k>\w+)"
    r"|c(?:p)?def\b[^\n=(:]*?\b(?P<c>\w+)[ \t]*\()",
    re.M,
)


class AnchorError(Exception):
    """A text is missing or ambiguous; the message names the function and the candidates."""


class Token(NamedTuple):
    text: str
    start: int
    end: int


class Unit(NamedTuple):
    """A function, or another named part of a file."""

    name: str
    first: int  # index of the first token
    end: int  # index of the token after the last one


class Place(NamedTuple):
    """Replace file[start:end] by text."""

    file: str
    start: int
    end: int
    text: str


def is_c(file: str) -> bool:
    return file.endswith(C_SUFFIXES)


def blanked(comments: re.Pattern[str], text: str) -> str:
    """Return the text with each comment replaced by spaces, so that all positions stay the same."""
    return comments.sub(lambda m: m[0] if m["keep"] else re.sub(r"[^\n]", " ", m[0]), text)


def tokens_of(text: str, c: bool) -> list[Token]:
    plain, token = blanked(C_COMMENT if c else PY_COMMENT, text), C_TOKEN if c else PY_TOKEN
    tokens = [Token(m[0], m.start(), m.end()) for m in token.finditer(plain)]
    return tokens if c else without_docstrings(text, tokens)


def without_docstrings(text: str, tokens: list[Token]) -> list[Token]:
    """Drop each string that is a statement of its own."""
    starts = {i for i, _ in first_of_lines(text, tokens)}
    return [
        t
        for i, t in enumerate(tokens)
        if not (
            i in starts
            and t.text.endswith(('"', "'"))
            and (i + 1 in starts or i + 1 == len(tokens))
        )
    ]


# ---- the parts of a file ------------------------------------------------------------------------


def declared(words: list[str]) -> str:
    """Return the name of a C declaration, from its tokens before the brace."""
    depth, calls = 0, list[str]()
    for i, word in enumerate(words):
        if word == "=" and depth == 0:
            names = [
                w for w in words[: words.index("[") if "[" in words[:i] else i] if w.isidentifier()
            ]
            return calls[-1] if calls else (names or [""])[-1]
        if word == "(" and depth == 0 and i and words[i - 1] not in C_NOT_A_NAME:
            calls.append(words[i - 1])
        depth += {"(": 1, ")": -1}.get(word, 0)
    if calls:
        return next((name for name in reversed(calls) if not name.isupper()), calls[-1])
    for kind in ("struct", "union", "enum"):
        if kind in words:
            rest = [
                w
                for w in words[words.index(kind) + 1 :]
                if w.isidentifier() and w not in C_NOT_A_NAME
            ]
            return f"{kind} {rest[-1]}" if rest else kind
    return ""


def directives(plain: str, tokens: list[Token]) -> Iterator[tuple[str, int, int]]:
    """Yield the text and the tokens (first, end) of each preprocessor directive."""
    starts = [t.start for t in tokens]
    for m in C_DIRECTIVE.finditer(plain):
        yield m[0], bisect_left(starts, m.start()), bisect_left(starts, m.end())


def comments_only(text: str) -> str:
    """Replace comments and their line breaks by spaces, but keep continued lines.  A directive is then one match."""

    def blank(m: re.Match[str]) -> str:
        return m[0] if m["keep"] or m[0] == "\\\n" else " " * len(m[0])

    return C_COMMENT.sub(blank, text)


def units_of_c(text: str, tokens: list[Token]) -> Iterator[Unit]:
    code = list(range(len(tokens)))
    for directive, first, end in directives(comments_only(text), tokens):
        if found := C_DEFINE.match(directive):
            yield Unit(f"#define {found[1]}", first, end)
        code[first:end] = [-1] * (end - first)
    first = -1  # the first token of the open declaration or definition, or -1
    depth, name = 0, ""
    head: list[str] = []
    for i in filter(lambda i: i >= 0, code):
        word = tokens[i].text
        if first < 0:
            first, head = i, []
        if word == "{":
            if depth == 0 and head == ["extern", '"C"']:
                first = -1
                continue
            if depth == 0 and not name:
                name = declared(head)
            depth += 1
        elif word == "}":
            if depth == 1 and name:
                yield Unit(name, first, i + 1)
            depth = max(0, depth - 1)  # the brace of `extern "C" {` was not counted
            if depth == 0:
                first, name = -1, ""
        elif depth == 0 and word == ";":
            first = -1
        elif depth == 0:
            head.append(word)


def units_of_python(text: str, tokens: list[Token]) -> Iterator[Unit]:
    starts = [t.start for t in tokens]
    line_tokens = first_of_lines(text, tokens)
    classes: list[tuple[int, str]] = []  # indent and name of the open classes
    for m in PY_FUNCTION.finditer(text):
        first = bisect_left(starts, m.end("indent"))
        if first >= len(tokens) or tokens[first].start != m.end("indent"):
            continue  # inside a string or a comment
        indent = len(m["indent"].expandtabs())
        end = next((i for i, column in line_tokens if i > first and column <= indent), len(tokens))
        classes = [(column, name) for column, name in classes if column < indent]
        name = m["d"] or m["k"] or m["c"]
        yield Unit(".".join([*(n for _, n in classes), name]), first, end)
        if m["k"]:
            classes.append((indent, name))


def first_of_lines(text: str, tokens: list[Token]) -> list[tuple[int, int]]:
    """Return index and column of the first token of each line that is not a continuation."""
    found, depth, last_end = [], 0, 0
    for i, token in enumerate(tokens):
        between = text[last_end : token.start]
        if depth == 0 and ("\n" in between or i == 0) and "\\\n" not in between:
            found.append((i, len(between.rpartition("\n")[2].expandtabs())))
        depth = max(
            0, depth + {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token.text, 0)
        )
        last_end = token.end
    return found


class Source:
    """A file, its tokens and its named parts."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text = file, text
        self.tokens = tokens_of(text, is_c(file))
        self.words = [t.text for t in self.tokens]
        self.units = list((units_of_c if is_c(file) else units_of_python)(text, self.tokens))
        self.whole = Unit(file, 0, len(self.tokens))

    def positions(self, unit: Unit, words: list[str]) -> list[int]:
        n, first = len(words), words[0]
        return [
            i
            for i in range(unit.first, unit.end - n + 1)
            if self.words[i] == first and self.words[i : i + n] == words
        ]


# ---- replacing a text ---------------------------------------------------------------------------


def common(a: list[str], b: list[str]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def place_in_c(source: Source, at: int, old: list[Token], new_text: str) -> Place:
    """Replace only the tokens that differ, so that the comments around them stay."""
    new = tokens_of(new_text, True)
    a, b = [t.text for t in old], [t.text for t in new]
    head = common(a, b)
    tail = common(a[head:][::-1], b[head:][::-1])
    first, last = at + head, at + len(a) - tail  # the tokens of the file that are replaced
    if first < last:
        text = (
            new_text[new[head].start : new[len(b) - tail - 1].end] if head < len(b) - tail else ""
        )
        return Place(source.file, source.tokens[first].start, source.tokens[last - 1].end, text)
    if head:
        position = source.tokens[first - 1].end
        text = new_text[new[head - 1].end : new[len(b) - tail - 1].end]
    else:
        position = source.tokens[first].start
        text = new_text[new[0].start : new[len(b) - tail].start]
    return Place(source.file, position, position, text)


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def place_in_python(
    source: Source, at: int, old: list[Token], old_text: str, new_text: str
) -> Place:
    """Replace the lines, and indent the new ones like the old ones."""
    start, end = source.tokens[at].start, source.tokens[at + len(old) - 1].end
    line = source.text[source.text.rfind("\n", 0, start) + 1 :].partition("\n")[0]
    first = old_text[old_text.rfind("\n", 0, old[0].start) + 1 :]
    shift = indent_of(line) - indent_of(first)
    lines = new_text.strip("\n").split("\n")
    moved = [
        " " * max(0, indent_of(s) + shift) + s.lstrip(" \t") if s.strip() else "" for s in lines
    ]
    if line.lstrip(" \t") and start == source.text.rfind("\n", 0, start) + 1 + indent_of(line):
        return Place(source.file, start - indent_of(line), end, "\n".join(moved))
    return Place(source.file, start, end, "\n".join([lines[0].lstrip(" \t"), *moved[1:]]))


class Sources:
    """The files below a root.  A file is read at its first use."""

    def __init__(self, root: Path, folders: Iterable[str] = FOLDERS) -> None:
        self.root = root
        paths = sorted(p for folder in folders for p in (root / folder).rglob("*"))
        self.files = [
            p.relative_to(root).as_posix()
            for p in paths
            if p.suffix in C_SUFFIXES + PYTHON_SUFFIXES
        ]
        self.cache: dict[str, Source] = {}
        self.by_name: dict[str, list[tuple[Source, Unit]]] = {}

    def source(self, file: str) -> Source:
        if file not in self.cache:
            self.cache[file] = Source(file, (self.root / file).read_text(encoding="utf-8"))
        return self.cache[file]

    def read_all(self) -> None:
        for file in self.files:
            self.source(file)

    def named(self, name: str) -> list[tuple[Source, Unit]]:
        if not self.by_name:
            self.read_all()
            for source in self.cache.values():
                for unit in source.units:
                    parts = unit.name.split(".")
                    for i in range(len(parts)):
                        self.by_name.setdefault(".".join(parts[i:]), []).append((source, unit))
        return self.by_name.get(" ".join(name.split()), [])

    def units(self, name: str, file: str = "") -> list[tuple[Source, Unit]]:
        """Return all parts of that name, or whole files if `name` is empty."""
        fits = [f for f in self.files if not file or fnmatch(f, file)]
        if not name:
            found = [(self.source(f), self.source(f).whole) for f in fits]
        else:
            found = [(s, u) for s, u in self.named(name) if s.file in fits]
        if not found:
            raise AnchorError(self.reason_for_none(name, file))
        return found

    def reason_for_none(self, name: str, file: str) -> str:
        if not name:
            return f"no file matches {file!r}"
        elsewhere = sorted({s.file for s, _ in self.named(name)})
        if elsewhere:
            return f"no function {name!r} in {file!r}; there is one in {', '.join(elsewhere)}"
        return f"no function {name!r}" + (f" in {file!r}" if file else "")

    def find(self, name: str, file: str, old: str, new: str) -> Place:
        units = self.units(name, file)
        hits = []
        for source, unit in units:
            tokens = tokens_of(old, is_c(source.file))
            if not tokens:
                raise AnchorError(f"{name or file}: the old text has no code")
            if [t.text for t in tokens] == [t.text for t in tokens_of(new, is_c(source.file))]:
                raise AnchorError(f"{name or file}: old and new text are the same")
            hits += [
                (source, at, tokens) for at in source.positions(unit, [t.text for t in tokens])
            ]
        if len(hits) != 1:
            head = textwrap.shorten(" ".join(old.split()), 100)
            where = [f"{s.file}:{line_of(s.text, s.tokens[at].start)}" for s, at, _ in hits]
            where = where or [f"{s.file} has {name or 'no name'}" for s, _ in units]
            raise AnchorError(
                f"{name or file}: the old text occurs {len(hits)} times, not once ({', '.join(where[:6])}): {head!r}"
            )
        source, at, tokens = hits[0]
        if is_c(source.file):
            return place_in_c(source, at, tokens, new)
        return place_in_python(source, at, tokens, old, new)


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def applied(text: str, places: Iterable[Place]) -> str:
    """Return the text with all places replaced.  Places must not overlap."""
    ordered = sorted(places, key=lambda p: (p.start, p.end))
    for a, b in pairwise(ordered):
        if b.start < a.end:
            raise AnchorError(
                f"{a.file}: two edits of one mutant overlap at line {line_of(text, b.start)}"
            )
    for place in reversed(ordered):
        text = text[: place.start] + place.text + text[place.end :]
    return text
