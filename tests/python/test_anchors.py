# SPDX-License-Identifier: MIT
"""tools/anchors.py finds a text inside its function despite changes around it, and names each missing text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, needs_tools, tool

pytestmark = needs_tools


C = """\
#include <stddef.h>
#define LIMIT 16 /* how many,
                    in all */
#define EACH(x) \\
	do { \\
		if (x) /* a comment */ \\
			step(x); \\
	} while (0)

struct item {
	int key; /* of the item */
	struct item *next;
};

enum { ONE, TWO };

static const char *const names[2] = { "a { b", [TWO] = "c" };

const struct design DESIGN_OF(tree) = { .name = "tree" };

static inline int prototype(int x);

/* A comment. { */
__attribute__((noinline)) static int grow(struct item *i, int (*way)(int))
{
	/* a comment */
	if (i->key < LIMIT) { // another one
		i->key = way(i->key + 1); /* in
			two lines */
		return 1;
	}
	return 0;
}

#ifdef __cplusplus
extern "C" {
#endif
int shrink(struct item *i)
{
	return i->key < LIMIT ? 0 : '}' - 1;
}
#ifdef __cplusplus
}
#endif
"""

PYX = '''\
"""def not_a_function(): of the module"""
import os

LIMIT = 16  # how many

cdef extern from "x.h":
    int c_step(int x) nogil


cdef inline int step(int x, str why="def f():") except -1:
    """Steps.

    def nor_this_one():
    """
    # a comment
    if x < 16:
        return x + 1  # the next one
    return 0


cdef class Walker:
    """Walks."""
    cdef int at

    def go(
        self, int n
    ):
        for i in range(n):

# a comment that is not indented
            self.at += step(
    i)
        text = """
no code: for i in range(n):
"""
        return text

    def stop(self):
        """Stops."""
        with nogil:
            self.at = 0


class Other:
    def stop(self):
        return 1
'''


def sources(tmp_path: Path, **files: str) -> Any:
    """A tree with these files below src/; `__` stands for a dot in their names."""
    (tmp_path / "src").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (tmp_path / "src" / name.replace("__", ".")).write_text(text)
    return tool("anchors").Sources(tmp_path, ("src",))


def changed(s: Any, name: str, old: str, new: str, file: str = "") -> str:
    place = s.find(name, file, old, new)
    return tool("anchors").applied(s.source(place.file).text, [place])


def unit_names(s: Any, file: str) -> list[str]:
    return [u.name for u in s.source(file).units]


# ---- the parts of a file -------------------------------------------------------------------------------


def test_parts_of_c(tmp_path: Path) -> None:
    assert unit_names(sources(tmp_path, a__c=C), "src/a.c") == [
        *("#define LIMIT", "#define EACH"),
        *("struct item", "enum", "names", "DESIGN_OF", "grow", "shrink"),
    ]


def test_parts_of_python(tmp_path: Path) -> None:
    assert unit_names(sources(tmp_path, a__pyx=PYX), "src/a.pyx") == [
        *("step", "Walker", "Walker.go", "Walker.stop", "Other", "Other.stop")
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.[ch]")), ids=lambda p: p.name)
def test_every_brace_of_the_core_is_in_a_part(path: Path) -> None:
    source = tool("anchors").Source(path.name, path.read_text(encoding="utf-8"))
    inside = {i for u in source.units for i in range(u.first, u.end)}
    outside = [
        i
        for i, w in enumerate(source.words)
        if w in ("return", "if", "for", "while") and i not in inside
    ]
    lines = [tool("anchors").line_of(source.text, source.tokens[i].start) for i in outside]
    conditional = [source.text.splitlines()[n - 1].lstrip() for n in lines]
    assert all(line.startswith("#") for line in conditional), lines
    assert all(u.name and u.name != ")" for u in source.units)


# ---- texts that are found ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("shrink", "i->key < LIMIT ?", "i->key > LIMIT ?"),
        ("grow", "return 1;", ""),
        ("grow", "return 1;", "i = NULL;\nreturn 1;"),
        ("grow", "return 1;", "return 1;\ni = NULL;"),
        ("grow", "static int grow(", "int m;\nstatic int grow("),
        ("#define EACH", "step(x);", "step(1);"),
        ("#define LIMIT", "LIMIT 16", "LIMIT 17"),
        ("struct item", "int key;", "long key;"),
        ("enum", "ONE, TWO", "TWO, ONE"),
        ("names", '"a { b"', '"b"'),
    ],
)
def test_texts_of_c(tmp_path: Path, name: str, old: str, new: str) -> None:
    assert changed(sources(tmp_path, a__c=C), name, old, new) == C.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "gone", "come"),
    [
        ("if (i->key<LIMIT)", "if (i->key <= LIMIT)", "key < LIMIT) { //", "key <= LIMIT) { //"),
        ("i->key = way(i->key + 1); return 1;", "return 1;", "i->key = way(i->key + 1);", ""),
    ],
)
def test_only_the_tokens_that_differ_change(
    tmp_path: Path, old: str, new: str, gone: str, come: str
) -> None:
    """The spaces differ, and a comment inside the text stays."""
    assert changed(sources(tmp_path, a__c=C), "grow", old, new) == C.replace(gone, come, 1)


@pytest.mark.parametrize(
    ("name", "old", "new", "gone", "come"),
    [
        ("step", "if x < 16:\n    return x + 1", "if x <= 16:\n    return x + 1",
         "    if x < 16:\n        return x + 1", "    if x <= 16:\n        return x + 1"),
        ("Walker.go", "self.at += step(i)", "self.at += 1", "self.at += step(\n    i)", "self.at += 1"),
        ("Walker.stop", "with nogil:", "if True:", "with nogil:", "if True:"),
        ("go", "return text", "if n:\n    return 1\nreturn text",
         "        return text", "        if n:\n            return 1\n        return text"),
        ("Other.stop", "1", "2", "return 1", "return 2"),
    ],
)  # fmt: skip
def test_texts_of_python(
    tmp_path: Path, name: str, old: str, new: str, gone: str, come: str
) -> None:
    assert changed(sources(tmp_path, a__pyx=PYX), name, old, new) == PYX.replace(gone, come, 1)


def test_anchor_survives_new_comments_format_and_place(tmp_path: Path) -> None:
    """The anchor still matches after a comment is rewritten, the code is reformatted and the function has moved."""
    moved = C.replace("/* a comment */", "").replace(
        "i->key < LIMIT) {", "i->key\n\t    < LIMIT /* new */)\n\t{"
    )
    text = changed(
        sources(tmp_path, b__c="int other;\n", c__h=moved), "grow", "if (i->key < LIMIT)", "if (1)"
    )
    assert "if (1 /* new */)\n\t{" in text


def test_several_edits_of_one_file(tmp_path: Path) -> None:
    """All edits search the original text: a replacement cannot match another edit."""
    s = sources(tmp_path, a__c="void f(void)\n{\n\tone();\n\ttwo();\n}\n")
    edits = [s.find("f", "", "one();", ""), s.find("f", "", "two();", "one();\ntwo();")]
    text, applied = s.source("src/a.c").text, tool("anchors").applied
    assert applied(text, edits) == applied(text, edits[::-1])
    assert "one();\ntwo();" in applied(text, edits)
    both = [s.find("f", "", "one();", "1;"), s.find("f", "", "one(); two();", "2;")]
    with pytest.raises(tool("anchors").AnchorError, match="overlap at line 3"):
        applied(text, both)


# ---- texts that are not found --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "old", "why"),
    [
        ("missing", "", "x", "no function 'missing'$"),
        (
            "grow",
            "src/b.c",
            "x",
            "no function 'grow' in 'src/b.c'; there is one in src/a.c, src/a.pyx",
        ),
        ("", "src/none*.c", "x", "no file matches 'src/none"),
        ("shrink", "", "return 1;", r"occurs 0 times, not once \(src/a.c has shrink\)"),
        (
            "stop",
            "",
            "self",
            r"occurs 3 times, not once \(src/a.pyx:38, src/a.pyx:41, src/a.pyx:45\)",
        ),
        ("", "src/*.c", "LIMIT", "occurs 3 times, not once"),
        ("grow", "", "/* a comment */", "has no code"),
        ("grow", "", "return 0;", "the same"),
    ],
)
def test_errors_name_the_candidates(
    tmp_path: Path, name: str, file: str, old: str, why: str
) -> None:
    s = sources(tmp_path, a__c=C, a__pyx=PYX.replace("Other", "grow"), b__c="int other;\n")
    with pytest.raises(tool("anchors").AnchorError, match=why):
        s.find(name, file, old, "return 0;")


def test_text_then_file_decides_among_functions_of_one_name(tmp_path: Path) -> None:
    """The file decides if the text is in more than one of them."""
    one, two = "static int f(void)\n{\n\treturn 1;\n}\n", "static int f(void)\n{\n\treturn 2;\n}\n"
    s = sources(tmp_path, a__c=one, b__c=two, c__c=two)
    assert s.find("f", "", "return 1;", "return 0;").file == "src/a.c"
    assert s.find("f", "src/c.*", "return 2;", "return 0;").file == "src/c.c"
    with pytest.raises(
        tool("anchors").AnchorError, match=r"2 times, not once \(src/b.c:3, src/c.c:3\)"
    ):
        s.find("f", "", "return 2;", "return 0;")
