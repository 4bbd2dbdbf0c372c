# SPDX-License-Identifier: MIT
"""tools/layers.py accepts the core as it is, and sees each kind of violation."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def layers(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "layers.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def core(tmp_path: Path) -> Path:
    copy = tmp_path / "_core"
    shutil.copytree(ROOT / "src" / "_core", copy)
    return copy


def test_the_core_keeps_its_layers() -> None:
    done = layers()
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(" 0 wrong\n")


@pytest.mark.parametrize(
    ("name", "include", "reason"),
    [
        ("rbtree.h", '"vm.h"', "layer 1 includes vm.h of a higher layer 4a"),
        ("rbtree.c", '"id_hash.h"', "layer 1 includes id_hash.h of the same layer 1"),
        ("memslot_set.h", '"tree_set.h"', "layer 3a includes tree_set.h of a higher layer 3b"),
        ("namespace.h", '"compiler.h"', "layer 0a includes compiler.h of a higher layer 0b"),
        ("load.c", '"region.h"', "layer 5 includes region.h of the same layer 5"),
        ("srcu.c", "<vm.h>", "layer 1 includes vm.h of a higher layer 4a"),
        ("region.c", '"lookup.h"', "region.c of the writer includes lookup.h of the reader"),
        ("lookup.c", '"region.h"', "lookup.c of the reader includes region.h of the writer"),
        ("lookup.c", '"writer.h"', "lookup.c of the reader includes writer.h of the writer"),
        ("load.c", '"search.h"', "load.c of the writer includes search.h of the reader"),
        ("vm.c", '"unheard_of.h"', "unheard_of.h has no layer"),
        ("vm.h", "<Python.h>", "the core builds without Python.h"),
        ("include/memslots.h", '"../compiler.h"', "memslots.h is the wall"),
    ],
)
def test_a_wrong_include_is_named_with_file_line_and_reason(
    core: Path, name: str, include: str, reason: str
) -> None:
    path = core / name
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, f"#  include {include}"]) + "\n")
    done = layers("--core", core)
    assert done.returncode == 1
    first, last = done.stdout.splitlines()
    assert first.startswith(f"{path}:{len(lines) + 1}: {reason}")
    assert last.endswith(" 1 wrong")


def test_a_file_without_a_layer_is_named(core: Path) -> None:
    (core / "stray.c").write_text("int stray;\n")
    done = layers("--core", core)
    assert done.returncode == 1
    assert f"{core / 'stray.c'}:1: stray has no layer" in done.stdout


def test_an_empty_folder_proves_nothing(tmp_path: Path) -> None:
    assert layers("--core", tmp_path).returncode == 2


@pytest.mark.skipif(not all(map(shutil.which, ("cc", "ar", "nm"))), reason="needs cc, ar and nm")
@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("int ms_one; static int two; int ms_f(void) { return two; }", None),
        ("int ms_one; int interval_tree_insert(void) { return 0; }", "interval_tree_insert"),
        ("_Thread_local int self;", "self"),
    ],
)
def test_symbols_of_the_library_have_the_prefix(
    tmp_path: Path, source: str, wrong: str | None
) -> None:
    (tmp_path / "a.c").write_text(source)
    subprocess.run(["cc", "-c", "a.c"], cwd=tmp_path, check=True)
    subprocess.run(["ar", "rc", "liba.a", "a.o"], cwd=tmp_path, check=True)
    done = layers("--library", tmp_path / "liba.a")
    if wrong is None:
        assert done.returncode == 0, done.stdout
    else:
        assert done.returncode == 1
        assert f"liba.a[a.o]: global symbol {wrong} lacks ms_" in done.stdout


def test_a_library_without_symbols_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "liba.a").write_text("!<arch>\n")
    done = layers("--library", tmp_path / "liba.a")
    assert done.returncode == 1
    assert "defines no symbol" in done.stdout
