# SPDX-License-Identifier: MIT
"""tests/mutants matches the sources, and tools/mutants.py distinguishes a caught mutant from a surviving one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, needs_tools, tool

pytestmark = needs_tools


@cache
def catalogue() -> Any:
    return tool("mutant_list").read_catalogue()


@cache
def sources() -> Any:
    return tool("mutant_list").Sources(ROOT)


# ---- the list ----------------------------------------------------------------------------------------


def test_every_anchor_is_found() -> None:
    """A change of the code under an anchor must change the anchor, too."""
    stale = {
        m.name: tool("mutant_list").stale(m, sources())
        for m in (*catalogue().mutants, *catalogue().left)
    }
    assert not {name: why for name, why in stale.items() if why}


def test_every_hazard_has_a_mutant_or_an_excuse() -> None:
    assert tool("mutant_list").uncovered(catalogue()) == []
    assert len(catalogue().mutants) >= 45
    for hazard, reason in catalogue().excused.items():
        assert hazard in tool("mutant_list").HAZARDS
        assert len(reason) > 20


def test_texts_of_mutants_are_sentences() -> None:
    for m in (*catalogue().mutants, *catalogue().left):
        first = m.wrong.split()[0]
        assert first[0].isupper() or "_" in first or first.endswith(("()", "():"))
        assert m.wrong.endswith(".")
        assert m.name == m.name.lower().replace(" ", "-")


@cache
def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_named_test_exists() -> None:
    for m in catalogue().mutants:
        for test in m.tests:
            if test.build in (tool("mutants").PYTHON, tool("mutants").PURE):
                file, _, name = test.name.partition("::")
                assert name.partition("[")[0] in functions_of(ROOT / file), f"{m.name}: {test.name}"
            else:
                source, folder = (
                    ROOT / f"tests/core/{test.name}{end}" for end in (".c", "/main.c")
                )
                assert source.exists() or folder.exists(), f"{m.name}: {test.name}"


def test_quick_mutants_are_few_and_cover_core_and_binding() -> None:
    """The quick mutants must run within a minute."""
    quick = [m for m in catalogue().mutants if m.quick]
    assert 12 <= len(quick) <= 30
    assert any(t.build == tool("mutants").PYTHON for m in quick for t in m.tests)
    assert sum(t.build == tool("mutants").PYTHON for m in quick for t in m.tests) <= 3


# ---- reading it ---------------------------------------------------------------------------------------

ENTRY = {
    "name": "a",
    "hazard": "H1",
    "wrong": "It is\nwrong.",
    "in": "f",
    "old": "one\n",
    "new": "two\n",
    "caught_by": ["test_a", "asan:test_b scale=2 seed=7", "tests/python/test_c.py::test_d[e]"],
}


def test_entry_is_parsed() -> None:
    m = tool("mutant_list").parse_mutant(ENTRY)
    assert m.wrong == "It is wrong."
    assert m.edits == (tool("mutant_list").Edit("f", "one", "two", ""),)
    assert [t.build for t in m.tests] == ["plain", "asan", "python"]
    assert m.tests[0].scale == tool("mutant_list").SCALE
    assert m.tests[1][1:] == ("test_b", 2.0, "7")
    assert m.tests[2].name == "tests/python/test_c.py::test_d[e]"
    assert [str(t) for t in m.tests] == ["test_a", "asan:test_b", "test_c.py::test_d[e]"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hazard": "H99"}, "no such hazard: H99"),
        ({"hazard": []}, "none is named"),
        ({"caught_by": []}, "must name the tests"),
        ({"caught_by": ["test_a times=3"]}, "only scale= and seed="),
        ({"also": [{"file": "x.c", "old": "three"}]}, "has no 'new'"),
        ({"in": ""}, "has no 'in'"),
    ],
)
def test_bad_entry_is_refused_with_a_reason(change: dict[str, Any], why: str) -> None:
    with pytest.raises(tool("mutant_list").ListError, match=why):
        tool("mutant_list").parse_mutant({**ENTRY, **change})


def test_mutant_of_python_modules_needs_no_build(tmp_path: Path) -> None:
    """One edit of another file is enough for a build."""
    (tmp_path / "src").mkdir()
    for name in ("a.py", "b.pyx"):
        (tmp_path / "src" / name).write_text(f"def {name[0]}():\n    return one\n")
    there = tool("mutant_list").Sources(tmp_path)
    entry = {**ENTRY, "in": "a", "caught_by": ["tests/python/test_c.py::test_d", "test_e"]}
    other = {"in": "b", "old": "one", "new": "two"}

    def builds(**more: Any) -> list[str]:
        mutant = tool("mutant_list").parse_mutant({**entry, **more})
        return [t.build for t in tool("mutant_list").without_build(mutant, there).tests]

    assert builds() == ["pure", "plain"]
    assert builds(also=[other]) == ["python", "plain"]
    assert builds(**other) == ["python", "plain"]
    assert builds(**{"in": "gone"}) == ["python", "plain"]


def test_package_of_such_a_mutant_is_the_installed_one_with_the_changed_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, package = tmp_path / "tree", tmp_path / "platlib" / "memslots"
    for folder in (root / "src" / "memslots" / "lab", package / "lab"):
        folder.mkdir(parents=True)
    (root / "src" / "memslots" / "lab" / "a.py").write_text("def f():\n    return 1\n")
    (package / "lab" / "a.py").write_text("an older version")
    (package / "_memslots.so").write_text("the extension")
    for name, value in (("ROOT", root), ("WORK", tmp_path / "work"), ("PARTS", ("src",))):
        monkeypatch.setattr(tool("mutants"), name, value)
    monkeypatch.setattr(tool("mutants"), "installed", lambda: package)
    copy, pure = tool("mutants").Copy(0), tool("mutants").PURE
    copy.plant([tool("mutant_list").Edit("f", "return 1", "return 2", "src/memslots/lab/a.py")])
    copy.build(pure, [])
    site = copy.site(pure) / "memslots"
    assert (site / "lab" / "a.py").read_text() == "def f():\n    return 2\n"
    assert (site / "_memslots.so").read_text() == "the extension"
    assert (package / "lab" / "a.py").read_text() == "an older version"
    copy.plant([])
    copy.build(pure, [])
    assert (site / "lab" / "a.py").read_text() == "def f():\n    return 1\n"


def test_bad_list_is_refused_with_a_reason(tmp_path: Path) -> None:
    two = (
        '[[mutant]]\nname="a"\nhazard="H1"\nwrong="W."\nin="x"\nold="o"\nnew="n"\ncaught_by=["t"]\n'
        * 2
    )
    (tmp_path / "a.toml").write_text(two)
    with pytest.raises(tool("mutant_list").ListError, match="two mutants have the name a"):
        tool("mutant_list").read_catalogue(tmp_path)
    (tmp_path / "a.toml").write_text("[[mutants]]\n")
    with pytest.raises(tool("mutant_list").ListError, match="of the kind mutants"):
        tool("mutant_list").read_catalogue(tmp_path)


def tree(tmp_path: Path, **bodies: str) -> Any:
    """Sources with one C file for each argument; each file has a function f with that body."""
    (tmp_path / "src").mkdir()
    for name, body in bodies.items():
        (tmp_path / "src" / f"{name}.c").write_text(f"void f(void) {{ {body} }}\n")
    return tool("mutant_list").Sources(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("one two", ""),
        ("nil", "mutant a: f: the old text occurs 0 times"),
        ("one one", "mutant a: f: the old text occurs 2 times"),
        (None, "mutant a: no function 'f'"),
    ],
)
def test_stale_anchor_is_reported_with_a_reason(tmp_path: Path, text: str | None, why: str) -> None:
    said = tool("mutant_list").stale(
        tool("mutant_list").parse_mutant(ENTRY), tree(tmp_path, **({"x": text} if text else {}))
    )
    assert why in said
    assert bool(said) == bool(why)


def test_edit_that_changes_nothing_is_stale(tmp_path: Path) -> None:
    said = tool("mutant_list").stale(
        tool("mutant_list").parse_mutant({**ENTRY, "new": "one"}), tree(tmp_path, x="one")
    )
    assert "the same" in said


def test_cpu_flags_are_read_from_the_entry_and_from_cpuinfo(tmp_path: Path) -> None:
    assert tool("mutant_list").parse_mutant(ENTRY).cpu == frozenset()
    assert tool("mutant_list").parse_mutant({**ENTRY, "cpu": "avx2 bmi2"}).cpu == {"avx2", "bmi2"}
    (tmp_path / "cpuinfo").write_text("flags first\nflags\t\t: sse avx2\nbugs\t: none\n")
    assert tool("mutants").cpu_flags(tmp_path / "cpuinfo") == {"sse", "avx2"}
    assert tool("mutants").cpu_flags(tmp_path / "none") == set()


def test_mutant_for_another_cpu_is_not_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tool("mutant_list").Catalogue(
        [tool("mutant_list").parse_mutant({**ENTRY, "cpu": "avx9 sse"})], [], {}, []
    )
    monkeypatch.setattr(tool("mutants"), "read_catalogue", lambda sources: alone)
    monkeypatch.setattr(tool("mutants"), "cpu_flags", lambda: {"sse"})
    monkeypatch.setattr(tool("mutants"), "WORK", tmp_path)
    assert tool("mutants").main(["--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "not planted: this CPU has no avx9\n" in said
    assert said.endswith("mutants: 0 planted, 0 caught\n")


def test_options_select_mutants_by_name_hazard_quick_and_shard(tmp_path: Path) -> None:
    mutants = [
        tool("mutant_list").parse_mutant({**ENTRY, "name": name, "hazard": hazard, "quick": quick})
        for name, hazard, quick in (
            ("fork", "H1", True),
            ("forks", "H11", False),
            ("hint", "H2", True),
        )
    ]

    there = tree(tmp_path, x="one")

    def names(pattern: str = "", quick: bool = False, shard: tuple[int, int] = (1, 1)) -> list[str]:
        return [m.name for m in tool("mutant_list").select(mutants, pattern, quick, shard, there)]

    assert names() == ["fork", "forks", "hint"]
    assert names("fork") == ["fork", "forks"]
    assert names("H1") == ["fork"]
    assert names("fork?") == ["forks"]
    assert names("asan:") == names("src/x.c") == names("f") == names()
    assert names(quick=True) == ["fork", "hint"]
    assert names(shard=(1, 2)) + names(shard=(2, 2)) == ["fork", "hint", "forks"]
    assert names("nothing") == []


# ---- flips -------------------------------------------------------------------------------------------

FLIPS = """
[[flips]]
in = "f"
hazard = "H1"
caught_by = ["test_a"]
quick = ["flip:f:lt-le:1"]
"""
LT = '[[flips.equivalent]]\nflip = "lt-le:1"\ncode = "a<b"\nreason = "b is never a"\n'


def flips(tmp_path: Path, text: str, body: str = "if (a < b) one;") -> Any:
    there = tree(tmp_path, x=body)
    (tmp_path / "flips.toml").write_text(text)
    return tool("mutant_list").read_catalogue(tmp_path, there), there


def test_flips_become_mutants(tmp_path: Path) -> None:
    found, there = flips(tmp_path, FLIPS)
    assert {m.name: m.quick for m in found.mutants} == {
        "flip:f:if-true:1": False,
        "flip:f:if-false:1": False,
        "flip:f:lt-le:1": True,
    }
    lt_le = found.mutants[-1]
    assert lt_le.wrong == "f(): `a < b` becomes `a <= b`."
    assert tool("mutant_list").planted(lt_le.edits, there) == {
        "src/x.c": "void f(void) { if (a <= b) one; }\n"
    }
    assert [
        m.name
        for m in tool("mutant_list").select(found.mutants, "flip:*:lt*", False, (1, 1), there)
    ] == [lt_le.name]


def test_equivalent_flips_are_left_out(tmp_path: Path) -> None:
    found, _ = flips(tmp_path, FLIPS + LT)
    assert [m.name for m in found.mutants] == ["flip:f:if-true:1", "flip:f:if-false:1"]
    assert found.equivalents == [
        tool("mutant_list").Equivalent("flip:f:lt-le:1", "a < b", "b is never a")
    ]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("a<b", "a<c", "f:lt-le:1 is about `a<c`, but that flip changes `a < b`"),
        ("lt-le:1", "lt-le:2", "no flip of the name f:lt-le:2"),
        ("b is never a", "", "f:lt-le:1 needs a reason"),
    ],
)
def test_bad_equivalent_flip_is_refused_with_a_reason(
    tmp_path: Path, old: str, new: str, why: str
) -> None:
    with pytest.raises(tool("mutant_list").ListError, match=re.escape(why)):
        flips(tmp_path, FLIPS + LT.replace(old, new))


def test_flips_of_a_missing_function_are_one_stale_mutant(tmp_path: Path) -> None:
    """The flips of the other functions remain usable."""
    found, there = flips(
        tmp_path, FLIPS.replace('"f"', '["f", "gone"]') + LT.replace("lt-le", "f:lt-le")
    )
    assert [m.name for m in found.mutants] == [
        "flip:f:if-true:1",
        "flip:f:if-false:1",
        "flip:gone:any",
    ]
    assert (
        tool("mutant_list").stale(found.mutants[-1], there)
        == "mutant flip:gone:any: no function 'gone'"
    )


# ---- copies ------------------------------------------------------------------------------------------


def test_bugs_are_planted_only_in_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tree"
    (root / "src").mkdir(parents=True)
    files = {name: root / "src" / name for name in ("a.c", "b.c")}
    whole = "void f(void) { one two three }"
    for path in files.values():
        path.write_text(whole)
    monkeypatch.setattr(tool("mutants"), "ROOT", root)
    monkeypatch.setattr(tool("mutants"), "WORK", tmp_path / "work")
    monkeypatch.setattr(tool("mutants"), "PARTS", ("src",))
    copy = tool("mutants").Copy(0)

    def edit(file: str, old: str, new: str) -> Any:
        return tool("mutant_list").Edit("f", old, new, file)

    def texts() -> list[str]:
        assert [path.read_text() for path in files.values()] == [whole] * 2
        copies = [(copy.source / "src" / name).read_text() for name in files]
        return [text[text.index("{") + 2 : -2] for text in copies]

    copy.plant([edit("src/a.c", "one", "1"), edit("src/a.c", "three", "3")])
    assert texts() == ["1 two 3", "one two three"]
    copy.plant([edit("src/a.c", "two", "2"), edit("src/b.c", "two", "2")])
    assert texts() == ["one 2 three"] * 2
    copy.plant([edit("src/b.c", "one", "two one"), edit("src/b.c", "two", "2")])
    assert texts() == [
        "one two three",
        "two one 2 three",
    ]  # each edit applies to the original text
    copy.plant([edit("src/b.c", "one", "1")])
    assert texts() == ["one two three", "1 two three"]
    (copy.source / "src" / "gone.c").write_text("")
    copy = tool("mutants").Copy(0)  # as after an interrupted run
    assert texts() == ["one two three"] * 2
    assert not (copy.source / "src" / "gone.c").exists()
    time = (copy.source / "src" / "a.c").stat().st_mtime_ns
    copy = tool("mutants").Copy(0)
    assert (copy.source / "src" / "a.c").stat().st_mtime_ns == time


# ---- verdicts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "output", "how"),
    [
        (
            1,
            "/a/test_x.c:12: a is not b: 1 is not 2\n  seed 1",
            "check: test_x.c:12: a is not b: 1 is not 2",
        ),
        (1, "M6: hint (design tree)\n/a/fixture.h:9: r is not 0", "check: M6: hint (design tree)"),
        (
            1,
            "==1==ERROR: AddressSanitizer: heap-use-after-free on",
            "sanitizer: AddressSanitizer heap-use-after-free",
        ),
        (
            1,
            "x.c:3:4: runtime error: shift exponent 64",
            "sanitizer: runtime error shift exponent 64",
        ),
        (
            66,
            "WARNING: ThreadSanitizer: data race (pid=1)",
            "sanitizer: ThreadSanitizer data race (pid",
        ),
        (-6, "t: vm.c:5: f: Assertion `a == b' failed.", "assertion: vm.c: a == b"),
        (-11, "", "crash: SIGSEGV"),
        (None, "", "watchdog"),
        (2, "the watchdog ended a test that hangs", "watchdog"),
        (1, "FAILED tests/python/test_x.py::test_y[z] - assert 1", "check: test_y[z]: assert 1"),
        (7, "", "check: exit 7"),
    ],
)
def test_outcome_names_the_check_that_caught_the_mutant(
    status: int | None, output: str, how: str
) -> None:
    outcome = tool("mutants").Outcome(status, output, 0.0)
    assert outcome.failed
    assert outcome.how == how
    assert not tool("mutants").Outcome(0, output, 0.0).failed


class FakeCopy:
    """Builds nothing; a test fails if the planted text contains the name of the test."""

    planted = ""

    def plant(self, edits: Any) -> None:
        self.planted = "".join(e.new for e in edits)

    def run(self, test: Any, limit: float) -> Any:
        if "syntax" in self.planted:
            raise tool("mutants").BuildError("x.c:1: error: expected")
        return tool("mutants").Outcome(int(test.name in self.planted), "", 0.1)


class StallingCopy(FakeCopy):
    """The watchdog ends the first runs of every test, with and without a bug."""

    def __init__(self, stalls: int) -> None:
        self.stalls = stalls
        self.runs: dict[Any, int] = {}

    def plant(self, edits: Any) -> None:
        super().plant(edits)
        self.runs.clear()

    def run(self, test: Any, limit: float) -> Any:
        self.runs[test] = self.runs.get(test, 0) + 1
        if self.runs[test] <= self.stalls:
            return tool("mutants").Outcome(None, "", limit)
        return super().run(test, limit)


def verdict(
    new: str, useless: tuple[str, ...] = (), every: bool = False, copy: FakeCopy | None = None
) -> Any:
    mutant = tool("mutant_list").parse_mutant(
        {**ENTRY, "new": new, "caught_by": ["test_a", "test_b"]}
    )
    run = tool("mutants").Run([mutant], 0, every, sources())
    run.copies = [copy or FakeCopy()]
    run.groups = lambda: tool("mutants").deque([[mutant]])  # the mutant has no file
    run.prove()
    assert set(run.limits) == set(mutant.tests)
    run.useless = {t: "" for t in mutant.tests if t.name in useless}
    run.try_all()
    return run.verdicts[0]


def test_verdict_is_caught_survived_or_unusable() -> None:
    caught = verdict("breaks test_a and test_b")
    assert [t.name for t, _ in caught.caught] == ["test_a"]
    assert [t.name for t, _ in verdict("breaks test_a and test_b", every=True).caught] == [
        "test_a",
        "test_b",
    ]
    assert [t.name for t, _ in verdict("breaks test_b").caught] == ["test_b"]
    assert "SURVIVED" in verdict("breaks nothing").line()
    assert "does not compile" in verdict("syntax").line()
    assert not verdict("syntax").caught
    assert not verdict("breaks test_a", useless=("test_a",)).caught
    assert "fail without it" in verdict("breaks test_a", useless=("test_a", "test_b")).line()


def test_run_that_the_watchdog_ends_is_repeated() -> None:
    """A busy machine may cause one hang, so the second run counts."""
    assert "SURVIVED" in verdict("breaks nothing", copy=StallingCopy(1)).line()
    [(test, how)] = verdict("breaks test_b", copy=StallingCopy(1)).caught
    assert (test.name, how) == ("test_b", "check: exit 1")
    copy, test = StallingCopy(2), tool("mutant_list").parse_test("test_a")
    assert tool("mutants").outcome_of(copy, test, 1.0).how == "watchdog"
    assert copy.runs == {test: 2}


def test_test_that_fails_without_a_bug_is_not_used() -> None:
    mutant = tool("mutant_list").parse_mutant(ENTRY)
    run = tool("mutants").Run([mutant], 0, False, sources())
    run.copies = [FakeCopy()]
    run.copies[0].planted = "test_b"
    run.prove()
    assert [t.name for t in run.useless] == ["test_b"]
    assert len(run.limits) == 2


def rows_of(text: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with this line."""
    table = text.partition(head + "\n")[2].partition("\n\n")[0].splitlines()
    assert table[0].startswith("|---")
    return [row.strip("| ").split(" | ") for row in table[1:]]


MUTANTS = "| hazard | mutant | wrong | caught by |"


def test_markdown_has_all_four_tables() -> None:
    mutant = tool("mutant_list").parse_mutant({**ENTRY, "hazard": ["H2", "H1"], "wrong": "a || b."})
    text = tool("mutant_list").markdown([mutant], catalogue())
    by = "test_a, asan:test_b, test_c.py::test_d[e]"
    assert rows_of(text, MUTANTS) == [[h, "a", "a &#124;&#124; b.", by] for h in ("H1", "H2")]
    excused = rows_of(text, "| hazard | why it has no mutant |")
    assert {row[0] for row in excused} == catalogue().excused.keys()
    left = rows_of(text, "| hazard | not planted | wrong | left to |")
    assert {row[1] for row in left} == {m.name for m in catalogue().left}
    equivalent = rows_of(text, "| equivalent flip | code | reason |")
    assert {row[0] for row in equivalent} == {e.name for e in catalogue().equivalents}


HAZARD = re.compile(r"^\| (H\d+) \|", re.MULTILINE)


def test_document_has_a_row_for_every_hazard() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert tuple(HAZARD.findall(text)) == tool("mutant_list").HAZARDS


# ---- the program --------------------------------------------------------------------------------------


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "mutants.py"), *args],
        capture_output=True,
        text=True,
        check=False,
    )


def test_list_option_prints_every_mutant() -> None:
    done = run("--list")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith(f"{len(catalogue().mutants)} mutants, ")
    assert all(m.name in done.stdout for m in catalogue().mutants)


def test_markdown_option_prints_the_selected_mutants() -> None:
    done = run("--markdown", "-k", "H16")
    assert done.returncode == 0
    chosen = {m.name for m in catalogue().mutants if "H16" in m.hazards}
    assert {row[1] for row in rows_of(done.stdout, MUTANTS)} == chosen


def test_selection_without_a_match_is_an_error() -> None:
    done = run("-k", "there is none of this name")
    assert done.returncode == 1
    assert "no mutant fits" in done.stderr
