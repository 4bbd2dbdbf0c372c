# SPDX-License-Identifier: MIT
"""README.md and docs/ match the package: examples run, links resolve, commands and calls exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memslots
from memslots import VM
from memslots.commands import cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CALLS = ROOT / "docs" / "python.md"
COMMANDS = ROOT / "docs" / "commands.md"
GUEST_PAGE = ROOT / "docs" / "guest-memory.md"
LAYOUTS_PAGE = ROOT / "docs" / "layouts.md"
SNAPSHOTS_PAGE = ROOT / "docs" / "snapshots.md"
C_PAGE = ROOT / "docs" / "c.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")])

pytestmark = pytest.mark.skipif(not README.exists(), reason="there is no checkout around the tests")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in some language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


# ---- the example --------------------------------------------------------------------------------------


def expected_value(line: str) -> str:
    """The comment of a line, up to the first semicolon."""
    return line.partition("  # ")[2].partition(";")[0].strip()


def run_example() -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs README's example; returns its variables, and the value of each of its expressions.

    Each line that is a call of the VM is run as `seen[line] = call`, so that the test can compare the
    value with the comment on that line.
    """
    lines, names, seen = [], {}, {}
    for line in blocks(README, "python")[0].splitlines():
        code = line.partition("  # ")[0].rstrip()
        call = re.fullmatch(r"(\s+)(vm\.(?!set_)\w+\(.*\))", code)
        lines.append(f"{call[1]}seen[{call[2]!r}] = {call[2]}" if call else line)
    names["seen"] = seen
    exec("\n".join(lines), names)
    return names, seen


def test_example_gives_the_values_of_its_comments() -> None:
    names, seen = run_example()
    source = blocks(README, "python")[0]
    comments = {
        line.partition("  # ")[0].strip(): expected_value(line)
        for line in source.splitlines()
        if "  # " in line
    }
    assert seen["vm.gfn_to_hva(0x1234)"] == int(comments["vm.gfn_to_hva(0x1234)"], 16)
    assert type(seen["vm.gfn_to_memslot(0x1234)"]) is memslots.MemorySlot
    many = next(value for call, value in seen.items() if "_many" in call)
    assert many.dtype == np.uint64
    assert many.tolist() == [0x7F00_0001_0000, 0x7F00_0002_0000]
    log = seen["vm.get_dirty_log(0)"]
    assert len(log) == -(-0x8_0000 // 64)
    assert (int(log[1]), int(log.sum())) == (4, 4)
    assert names["vm"].closed


def test_example_prints_the_text_of_its_comment(capsys: pytest.CaptureFixture[str]) -> None:
    """The comment after print(error) equals the output."""
    run_example()
    shown = capsys.readouterr().out.strip()
    comment = re.search(r"print\(error\)\s+# (.*)", text_of(README))
    assert comment
    assert shown == comment[1]


def test_example_of_guest_memory_gives_the_value_of_its_comment() -> None:
    """README's second example.  The last line is an expression, and its comment the value."""
    source = blocks(README, "python")[1].rstrip()
    body, _, last = source.rpartition("\n")
    names: dict[str, Any] = {}
    code = last.partition("  # ")[0].strip()
    exec(f"{body}\n    value = {code}", names)
    assert repr(names["value"]) == last.partition("  # ")[2].strip()


@pytest.mark.parametrize(
    ("page", "count"),
    [(GUEST_PAGE, 2), (LAYOUTS_PAGE, 3), (SNAPSHOTS_PAGE, 2)],
    ids=["guest-memory", "layouts", "snapshots"],
)
def test_examples_of_a_page_run(
    page: Path, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their comments are asserts."""
    sources = blocks(page, "python")
    assert len(sources) == count
    monkeypatch.chdir(tmp_path)  # an example writes a file
    for source in sources:
        exec(source, {})


def test_lookup_in_a_hole_behaves_as_documented() -> None:
    """Checks the comments "LookupError in a hole" and "HVA_ERR_BAD in holes"."""
    with VM() as vm:
        with pytest.raises(LookupError):
            vm.gfn_to_hva(0x1234)
        assert vm.gfn_to_memslot(0x1234) is None
        assert vm.gfn_to_hva_many(np.array([5], np.uint64))[0] == memslots.HVA_ERR_BAD


# ---- tables ---------------------------------------------------------------------------------------------


def table_rows(page: Path, header: str) -> list[list[str]]:
    """The rows of the page's table whose first line starts with `header`."""
    lines = iter(text_of(page).splitlines())
    for line in lines:
        if line.startswith(header):
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
    assert rows, f"no table {header}"
    return rows


def test_documented_calls_exist() -> None:
    """Every call in the table of calls is a name of the package or of one of these classes."""
    classes = (VM, memslots.Update, memslots.Snapshot, memslots.Transaction)
    names = {name for cls in classes for name in dir(cls)} | {*memslots.__all__}
    hooks = {name for name in dir(memslots.Listener) if not name.startswith("_")}
    found = 0
    for _, calls in table_rows(CALLS, "| purpose | calls |"):
        for name in re.findall(r"`(\w+)(?:\(.*?\))?`", calls):
            found += 1
            assert name in names | hooks, name
    assert found >= 20


def test_every_call_is_documented() -> None:
    """The page names every public member of VM, except limits, counts and close()."""
    named = text_of(CALLS) + text_of(README)
    excepted = {
        "close",
        "closed",
        "address_spaces",
        "user_mem_slots",
        "gpa_bits",
        "hva_end_max",
        "backend",
        "dereference_raw_addresses",
        *(
            f"{way}_u{bits}" for way in ("read", "write") for bits in (16, 32)
        ),  # "read_u8 to read_u64"
    }
    excepted |= {"nr_memslot_pages", "memslots", "memslots_array", "remove_listener"}
    for name in dir(VM):
        if not name.startswith("_") and not name.endswith("_many") and name not in excepted:
            assert name in named, name


def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "memslots", *command, "--help"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_documented_commands_exist() -> None:
    """The --help of each command lists the documented options and has an example."""
    listed = help_of()
    for command, description in table_rows(COMMANDS, "| command | what it does |"):
        name = re.match(r"`memslots (\w+)", command)
        assert name
        assert re.search(rf"^\s+{name[1]}\b", listed, re.MULTILINE)
        words = help_of(name[1])
        assert "example: memslots" in words
        for option in re.findall(r"--[a-z-]+", command + description):
            assert option in words


def test_every_command_is_documented() -> None:
    listed = {
        re.match(r"`memslots (\w+)", row[0])[1]
        for row in table_rows(COMMANDS, "| command | what it does |")
    }
    assert listed == set(cli._COMMANDS)


# ---- the C example ------------------------------------------------------------------------------------------


def test_c_example_compiles_and_runs(tmp_path: Path) -> None:
    """The example of docs/c.md compiles without warnings and prints the address of its comment."""
    source = blocks(C_PAGE, "c")[0]
    (tmp_path / "example.c").write_text(source, encoding="utf-8")
    core = ROOT / "src" / "_core"
    compile_c = ["cc", "-std=gnu11", "-I", str(core / "include")]
    strict = ["-Wall", "-Wextra", "-Werror", "-c", "example.c"]
    library = [*map(str, sorted(core.glob("*.c"))), "-pthread", "-o", "example"]
    subprocess.run([*compile_c, *strict], check=True, cwd=tmp_path, timeout=300)
    subprocess.run([*compile_c, "example.o", *library], check=True, cwd=tmp_path, timeout=300)
    done = subprocess.run([tmp_path / "example"], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == re.search(r"printf\(.*?/\* (\w+) \*/", source)[1]


# ---- links and makefile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_a_target(page: Path) -> None:
    """The file exists, and so does the heading after a #."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(file), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
                for heading in headings
            }
            assert anchor in slugs, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    code = re.findall(r"`([^`\n]+)`", text_of(page)) + blocks(page, "")
    for target in re.findall(r"\bmake ([a-z-]+)", "\n".join(code)):
        assert target in targets, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_paths_exist(page: Path) -> None:
    """Paths in backquotes that start with a folder of the repository."""
    for path in re.findall(r"`((?:src|docs|tests|tools|bench|\.ci)/[\w./<>*-]*)`", text_of(page)):
        pattern = path.rstrip("/").replace("<file>", "*").replace("NAME", "*")
        assert list(ROOT.glob(pattern)), path


def test_documented_presets_exist() -> None:
    presets = text_of(ROOT / "CMakePresets.json")
    for page in PAGES:
        for preset in re.findall(r"cmake --workflow --preset (\w+)", text_of(page)):
            assert f'"name": "{preset}"' in presets


def test_documented_limits_are_those_of_the_engine() -> None:
    """Compares README's figures with the engine's constants."""
    assert "32,764 slots" in text_of(README)
    assert VM().user_mem_slots == 32764
    assert VM().address_spaces == 1


def test_documented_python_versions_match_the_classifiers() -> None:
    """Compares README's prerequisites with the classifiers of the package."""
    first, last = re.search(r"Python 3\.(\d+) to 3\.(\d+)", text_of(README)).groups()
    listed = re.findall(r"Python :: 3\.(\d+)\"", text_of(ROOT / "pyproject.toml"))
    assert (listed[0], listed[-1]) == (first, last)
    assert f'requires-python = ">=3.{first}"' in text_of(ROOT / "pyproject.toml")


def test_version_is_in_the_changelog() -> None:
    assert memslots.__version__ in text_of(ROOT / "CHANGELOG.md")
