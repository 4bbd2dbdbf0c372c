# SPDX-License-Identifier: MIT
"""The figures of pages that look measured, although no file derives them and no entry says that they are given.

A figure looks measured if it has one of SHAPES and stands outside of code.  A version, such as Linux 5.17, does not.  A
given figure is one that nobody of this project measured: a limit, a rule, a constant, a definition.  docs/figures.toml
lists such figures by a text of the page or several, or by a column of its tables:

    [[given]]                                       [[given]]
    page = "docs/kvm.md"                            page = "docs/reliability.md"
    text = "up to 100 times"                        column = "limit"
    why = "a constant of vm_layout.pxi"             why = "the limits are chosen"

A text that is not in its page, or that has no such figure, is an error too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from table_figures import tables

Span = tuple[int, int]

DIGITS = r"(?<![\w.,/^-])\d[\d,]*(?:\.\d+)?"
WORDS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty"
NUMBER = rf"(?:{DIGITS}|\b(?:{WORDS}))"
SHAPES = {
    "time": rf"{NUMBER}\s+(?:ns|us|ms|s|(?:nano|micro|milli)?seconds?|min|minutes?|h|hours?|days?)\b",
    "percentage": rf"{NUMBER}\s*(?:%|per\s?cent\b)",
    "factor": rf"{NUMBER}\s+times\b|\bfactors?\s+of\s+{NUMBER}|\b(?:twice|half)\s+(?:as|the\s+time)\b",
    "fraction": r"(?<![\w/.])1/\d[\d.]*(?![\w/])",
    "rate": rf"{NUMBER}\s+(?:million\s+)?(?:[kMG]/s|\w+/s|\w+\s+(?:per|a|each)\s+second|[MG]B/s)\b",
    "size": rf"{DIGITS}\s+(?:instructions|bytes\s+(?:a|per|for\s+each)\s+\w+)\b",
    "large number": rf"{DIGITS}\s+(?:thousand|million|billion)\b",
    "decimal": r"(?<![\w.,^-])\d[\d,]*\.\d+(?![\w.]*\w)",
    "cell": r"(?<=.\|)[ *]*\d[\d,.]*[ *!]*(?=\|)",  # not in the first column, which names the row
    "count": r"(?<![\w.,^])\d{1,3}(?:,\d{3})+(?![\d,.]\d)",
}
LOOKS_MEASURED = {name: re.compile(shape) for name, shape in SHAPES.items()}

PROGRAMS = "Linux|KVM since|QEMU|Python|CPython|numpy|gcc|clang|cmake"
VERSION = re.compile(rf"\b(?:{PROGRAMS})\s+\d+\.[\w.-]*\w(?:\s+(?:to|and|or)\s+\d+\.\d+)?")
# A block with a language is a program.  In one without, the comments behind commands are text.
CODE = re.compile(r"^```\w+\n.*?^```|`[^`\n]*`|\]\([^)\n]*\)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```\n.*?^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^((?:(?!  # ).)*)", re.MULTILINE)

SLOT_LIMITS = (32_764, 32_767)  # of KVM; they are sizes of measurements, as round numbers are
BAR = re.compile(r"(?<!\\)\|")


class Fault(NamedTuple):
    place: str
    text: str


def blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def text_of(page: str) -> str:
    """Return the page with spaces in place of code, links and versions."""
    page = BLOCK.sub(lambda block: COMMAND.sub(blank, block[0]), page)
    return VERSION.sub(blank, CODE.sub(blank, page))


def looking_measured(page: str) -> list[Span]:
    """Return the places of the figures.  Shapes that overlap are one figure."""
    text = text_of(page)
    found = sorted(
        match.span()
        for name, shape in LOOKS_MEASURED.items()
        for match in shape.finditer(text)
        if name != "count" or not is_round(match[0])
    )
    figures: list[Span] = []
    for begin, end in found:
        if figures and begin < figures[-1][1]:
            begin, end = figures[-1][0], max(end, figures.pop()[1])
        figures.append((begin, end))
    return figures


def is_round(number: str) -> bool:
    """Numbers that a person chooses: hundreds, powers of two, and limits of KVM."""
    value = int(number.replace(",", ""))
    return value % 100 == 0 or value & (value - 1) == 0 or value in SLOT_LIMITS


# ---- the list ------------------------------------------------------------------------------------


class Given(NamedTuple):
    """One text or column of an entry."""

    page: str
    text: str
    is_column: bool

    def spans(self, page: str) -> list[Span]:
        """Return the places of the page that it is about."""
        if self.is_column:
            return list(column(page, self.text))
        words = r"\s+".join(re.escape(word) for word in self.text.split())
        return [match.span() for match in re.finditer(words, page)]


def given(listed: dict[str, Any]) -> Iterator[Given]:
    for entry in listed.get("given", []):
        if not entry.get("why") or not {"text", "column"} & entry.keys():
            raise ValueError(f"[[given]] needs a page, a text or a column, and why: {entry}")
        texts = entry.get("text", [])
        for text in [texts] if isinstance(texts, str) else texts:
            yield Given(entry["page"], text, is_column=False)
        if "column" in entry:
            yield Given(entry["page"], entry["column"], is_column=True)


def column(page: str, name: str) -> Iterator[Span]:
    """Yield the cells below a header."""
    for table in tables(page):
        for begin, end in pairwise(table.begins):
            bars = [begin + bar.start() for bar in BAR.finditer(page[begin:end])]
            cells = zip(table.header, pairwise(bars), strict=False)
            yield from (cell for head, cell in cells if head == name)


def meets(one: Span, spans: list[Span]) -> bool:
    return any(one[0] < end and begin < one[1] for begin, end in spans)


def faults(root: Path, listed: dict[str, Any], derived: dict[str, list[Span]]) -> Iterator[Fault]:
    """Yield the figures without a source, and the entries without a figure.  derived: the places of each page."""
    pages = pages_of(root, listed.get("scan", {}))
    entries = list(given(listed))
    for entry in entries:
        if entry.page not in pages:
            yield Fault(entry.page, f"is no page that is scanned; remove its entry {entry.text!r}")
    for name in pages:
        page = (root / name).read_text(encoding="utf-8")
        of_page = [entry for entry in entries if entry.page == name]
        yield from faults_of(name, page, derived.get(name, []), of_page)


def faults_of(name: str, page: str, derived: list[Span], entries: list[Given]) -> Iterator[Fault]:
    left = [one for one in looking_measured(page) if not meets(one, derived)]
    for entry in entries:
        spans = entry.spans(page)
        if not any(meets(one, spans) for one in left):
            why = "has no figure without a source" if spans else "is not there"
            yield Fault(name, f"{entry.text!r} {why}; remove the entry")
        left = [one for one in left if not meets(one, spans)]
    for begin, end in left:
        line = page.count("\n", 0, begin) + 1
        yield Fault(f"{name}:{line}", f"{' '.join(page[begin:end].split())} has no source")


def pages_of(root: Path, scan: dict[str, list[str]]) -> list[str]:
    found = (path for pattern in scan.get("pages", []) for path in sorted(root.glob(pattern)))
    return [path.relative_to(root).as_posix() for path in found]
