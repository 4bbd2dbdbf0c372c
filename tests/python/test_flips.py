# SPDX-License-Identifier: MIT
"""tools/flips.py makes each simple mutant of a C function, and gives it a stable name."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkout import ROOT, needs_tools, tool

pytestmark = needs_tools


def flips(body: str, head: str = "static int f(int a, int b)\n") -> dict[str, tuple[str, str, str]]:
    """By label of the flip: the code, its replacement, and the whole body after the replacement."""
    source = tool("anchors").Source("x.c", f"{head}{{ {body} }}\n")
    found = tool("flips").flips_in(source, source.units[0])
    whole = {f.label: tool("anchors").applied(source.text, [f.place]) for f in found}
    inside = {
        label: text[text.index("{") + 2 : text.rindex("}") - 1] for label, text in whole.items()
    }
    assert len(inside) == len(found)
    return {f.label: (f.code, f.text, inside[f.label]) for f in found}


@pytest.mark.parametrize(
    ("body", "label", "mutant"),
    [
        ("return a < b;", "lt-le:1", "return a <= b;"),
        ("return a <= b;", "le-lt:1", "return a < b;"),
        ("return a > b;", "gt-ge:1", "return a >= b;"),
        ("return a >= b;", "ge-gt:1", "return a > b;"),
        ("return a && b;", "and-or:1", "return a || b;"),
        ("return a || b;", "or-and:1", "return a && b;"),
        ("return a + 1;", "plus-one:1", "return a;"),
        ("return b[a - 1];", "minus-one:1", "return b[a];"),
        ("if (a) b++;", "if-true:1", "if (true) b++;"),
        ("if (f(a) /* so */) b++;", "if-false:1", "if (false /* so */) b++;"),
        ("while (a) b++;", "never:1", "while (false) b++;"),
        ("for (int i = 0; i != a; i++) b++;", "never:1", "for (int i = 0; false; i++) b++;"),
        ("return f(a, b ? a : 2);", "first:1", "return f(a, true ? a : 2);"),
        ("return a == b ? (b) : 2;", "second:1", "return false ? (b) : 2;"),
        ("int c = a < b ? 1 : 2;", "first:1", "int c = true ? 1 : 2;"),
    ],
)
def test_each_kind_of_flip_changes_the_code_as_named(body: str, label: str, mutant: str) -> None:
    assert flips(body)[label][2] == mutant


@pytest.mark.parametrize(
    "body",
    [
        "return -1;",
        "return a + 10;",
        "for (;;) b++;",
        "return a->b >> 1;",
        'return f("a < b");',
        "f(a, -1);",
    ],
)
def test_other_code_has_no_flip(body: str) -> None:
    assert flips(body) == {}


def test_flips_are_numbered_by_kind() -> None:
    found = flips("if (a < b || b < 2) return a < 3 ? 1 : 0; return b <= 1;")
    assert list(found) == [
        *("if-true:1", "if-false:1", "lt-le:1", "or-and:1", "lt-le:2"),
        *("lt-le:3", "first:1", "second:1", "le-lt:1"),
    ]
    assert found["lt-le:2"][:2] == ("a < b || b < 2", "a < b || b <= 2")
    assert found["lt-le:3"][:2] == ("a < 3", "a <= 3")
    assert found["second:1"][:2] == ("a < 3 ? 1 : 0", "false ? 1 : 0")


def test_head_of_a_function_has_no_flips() -> None:
    assert flips("return 0;", "static int f(int a[2 + 1], int (*b)(int))\n") == {}


def test_flips_of_the_core_change_code_and_have_unique_names() -> None:
    anchors = tool("anchors")
    sources = anchors.Sources(ROOT, ("src",))
    count = 0
    for file in filter(anchors.is_c, sources.files):
        source = sources.source(file)
        for unit in source.units:
            if "{" not in source.words[unit.first : unit.end] or unit.name.startswith("#"):
                continue
            found = tool("flips").flips_in(source, unit)
            assert len({f.label for f in found}) == len(found)
            for f in found:
                old = anchors.tokens_of(source.text[f.place.start : f.place.end], True)
                new = anchors.tokens_of(f.place.text, True)
                assert [t.text for t in old] != [t.text for t in new]
                count += 1
    assert count > 1000


def test_function_name_must_be_unique(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for name in "ab":
        (tmp_path / "src" / f"{name}.c").write_text("static int f(int a)\n{ return a < 1; }\n")
    (tmp_path / "src" / "c.h").write_text("int f(int a);\n")
    sources = tool("anchors").Sources(tmp_path, ("src",))
    with pytest.raises(tool("anchors").AnchorError, match=r"there are 2 \(src/a.c, src/b.c\)"):
        tool("flips").flips_of(sources, "f")
    assert [f.label for f in tool("flips").flips_of(sources, "f", "src/b*")] == ["lt-le:1"]
    flip = tool("flips").Flip("f", "gt-ge:1", "src/b.c")
    with pytest.raises(tool("anchors").AnchorError, match="no flip 'gt-ge:1', but lt-le:1"):
        flip.place(sources)
