# SPDX-License-Identifier: MIT
"""tools/layers.py and tools/python_layers.py accept the present sources, and find each kind of violation."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import ROOT, tool


def run(tool: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ---- the core ------------------------------------------------------------------------------------


def layers(*args: object) -> subprocess.CompletedProcess[str]:
    return run("layers.py", *args)


@pytest.fixture
def core(tmp_path: Path) -> Path:
    copy = tmp_path / "_core"
    shutil.copytree(ROOT / "src" / "_core", copy)
    return copy


def test_core_has_no_wrong_include() -> None:
    done = layers()
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(" 0 wrong\n")


@pytest.mark.parametrize(
    ("name", "include", "reason"),
    [
        ("rbtree.h", '"vm.h"', "layer 0c includes vm.h of a higher layer 4a"),
        ("srcu.c", '"id_hash.h"', "layer 1 includes id_hash.h of the same layer 1"),
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
def test_wrong_include_is_named_with_file_line_and_reason(
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


def test_file_without_a_layer_is_named(core: Path) -> None:
    (core / "stray.c").write_text("int stray;\n")
    done = layers("--core", core)
    assert done.returncode == 1
    assert f"{core / 'stray.c'}:1: stray has no layer" in done.stdout


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
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
def test_global_symbol_without_the_prefix_is_named(
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


def test_library_without_symbols_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "liba.a").write_text("!<arch>\n")
    done = layers("--library", tmp_path / "liba.a")
    assert done.returncode == 1
    assert "defines no symbol" in done.stdout


# ---- the Python package --------------------------------------------------------------------------


Findings = Callable[[], list[str]]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    copy = tmp_path / "memslots"
    skipped = shutil.ignore_patterns("data", "__pycache__")
    shutil.copytree(ROOT / "src" / "memslots", copy, ignore=skipped)
    return copy


def plant(package: Path, file: str, text: str) -> int:
    """Appends the text; returns the line of its last line."""
    path = package / file
    path.write_text(path.read_text(encoding="utf-8") + "\n" + text + "\n", encoding="utf-8")
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.fixture
def findings(package: Path, capsys: pytest.CaptureFixture[str]) -> Findings:
    def run() -> list[str]:
        code = tool("python_layers").main(["--package", str(package)])
        *found, last = capsys.readouterr().out.splitlines()
        assert last.endswith(f" {len(found)} wrong")
        assert code == (1 if found else 0)
        return found

    return run


def test_package_has_no_wrong_import() -> None:
    done = run("python_layers.py")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(" 0 wrong\n")


# Each line below makes a file import a module that already imports this file.
CIRCLES = {
    "plain": ("lab/sample.py", "import memslots.lab.case"),
    "plain from": ("lab/sample.py", "from memslots.lab.case import Case"),
    "relative": ("lab/sample.py", "from .case import Case"),
    "relative module": ("lab/sample.py", "from . import case"),
    "its own package": ("plot/style.py", "from . import perf_picture"),
    "in a function": ("lab/sample.py", "def f():\n    from .case import Case"),
    "in a method": ("lab/sample.py", "class A:\n    def f(self):\n        from . import case"),
    "in a try": ("lab/sample.py", "try:\n    pass\nexcept ImportError:\n    from . import case"),
    "not for checkers": (
        "lab/sample.py",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from . import case",
    ),
    "import_module": ("lab/sample.py", 'importlib.import_module("memslots.lab.case")'),
    "import_module relative": ("lab/sample.py", 'import_module(".case", __package__)'),
    "import_module of some": ("lab/sample.py", 'import_module(f"memslots.lab.{name}")'),
    "__import__": ("lab/sample.py", 'x = [__import__("memslots.lab.case")]'),
    "cimport in a pxd": ("libmemslots.pxd", "from ._memslots cimport VM"),
    "plain cimport": ("libmemslots.pxd", "cimport memslots._memslots as core"),
    "cimport over lines": ("libmemslots.pxd", "from memslots._memslots cimport (VM,\n VCPU)"),
    "include": ("_integers.pxi", 'include "_memslots.pyx"'),
    "include of itself": ("_integers.pxi", 'include "_integers.pxi"'),
    "import in a pxi": ("_integers.pxi", "def f():\n    from ._memslots import VM"),
    "import_module in a pxi": ("_integers.pxi", 'import_module("memslots._memslots")'),
    "import in a pyx": ("_memslots.pyx", "def f():\n    from ._memslots import VM"),
}


@pytest.mark.parametrize("kind", CIRCLES)
def test_import_cycle_is_found(package: Path, findings: Findings, kind: str) -> None:
    file, text = CIRCLES[kind]
    plant(package, file, text)
    assert any("closes the circle" in line and file in line for line in findings())


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("lab/machine.py", "from ..commands import cli", "lab imports commands/cli.py of a higher"),
        ("lab/costs.py", "def f():\n    from memslots import plot", "lab imports plot/__init__.py"),
        ("measure/fit.py", 'import_module("memslots.plot.scale")', "measure imports plot/scale.py"),
        ("plot/rows.py", "import memslots.report.show", "plot imports report/show.py of a higher"),
        ("traces/vectors.py", "from ..lab import layouts", "traces imports lab/layouts.py"),
        ("kvm/__init__.py", "from ..traces import player", "kvm imports traces/player.py of a"),
        ("__init__.py", "from . import kvm", "__init__ imports kvm/__init__.py of a higher layer"),
        ("errors.py", "from . import listener", "errors imports listener.py of the same layer"),
        ("constants.py", "from . import errors", "constants imports errors.py of a higher layer"),
        ("_hooks.pxi", "from .kvm import KvmVM", "_memslots imports kvm/__init__.py of a higher"),
        ("stray.py", "", "stray has no layer"),
        ("lab/case.py", "from .nowhere import x", "imports memslots.lab.nowhere, which does not"),
        ("lab/case.py", "from .... import x", "imports beyond the package: ...., which does not"),
        ("_hooks.pxi", 'include "_gone.pxi"', "imports _gone.pxi, which does not exist"),
        ("lab/case.py", "import_module(name)", "imports a computed name"),
        ("_hooks.pxi", "import_module(name)", "imports a computed name"),
    ],
)
def test_wrong_import_is_named_with_file_line_and_reason(
    package: Path, findings: Findings, file: str, text: str, reason: str
) -> None:
    (package / file).touch()
    line = plant(package, file, text) if text else 1
    assert any(f.startswith(f"{package / file}:{line}: {reason}") for f in findings())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("lab/sample.py", "if TYPE_CHECKING:\n    from .case import Case"),
        ("lab/sample.py", 'TEXT = """\nfrom .case import Case\n"""'),
        ("_integers.pxi", "# from ._memslots import VM"),
        ("_integers.pxi", '"""\ninclude "_memslots.pyx"\n"""'),
        ("_integers.pxi", "x = 'from .kvm import y'"),
        ("libmemslots.pxd", "cimport numpy\nfrom libc.string cimport memcpy"),
    ],
)
def test_text_that_only_looks_like_an_import_is_ignored(
    package: Path, findings: Findings, file: str, text: str
) -> None:
    plant(package, file, text)
    assert findings() == []


def test_folder_without_python_is_an_error(tmp_path: Path) -> None:
    assert run("python_layers.py", "--package", tmp_path).returncode == 2


# ---- modules that `import memslots` loads ----------------------------------------------------------

NEW_MODULES = """
import json, sys
before = set(sys.modules)
import memslots
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded() -> list[str]:
    """The modules that `import memslots` adds to a fresh interpreter."""
    command = [sys.executable, "-c", NEW_MODULES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names: list[str] = json.loads(done.stdout)
    return names


def test_import_loads_no_module_above_the_library() -> None:
    below = {name.split(".")[1] for name in loaded() if name.startswith("memslots.")}
    layer_of = tool("python_layers").LAYER_OF
    assert "_memslots" in below
    assert {part for part in below if layer_of[part] > layer_of["__init__"]} == set()


def test_import_needs_only_numpy() -> None:
    tops = {name.split(".")[0] for name in loaded()}
    hidden = {
        "_interpreters",
        "_xxsubinterpreters",
    }  # standard modules that sys.stdlib_module_names lacks
    own = {name for name in tops if name.startswith("_cython_")} | {"cython_runtime", "memslots"}
    assert tops - sys.stdlib_module_names - hidden - own == {"numpy"}
