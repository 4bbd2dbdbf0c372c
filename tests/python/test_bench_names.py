# SPDX-License-Identifier: MIT
"""bench/suite runs on older packages too: it uses only names that bench/suite/names.json lists."""

import ast
import json
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "bench" / "suite"
LAYOUTS = ROOT / "src" / "memslots" / "lab" / "layouts.py"  # conftest.py loads it by its path

pytestmark = pytest.mark.skipif(not SUITE.exists(), reason="there is no checkout around the tests")


def names_in(source: str, package: str | None = None) -> Iterator[tuple[str, str]]:
    """(module, name) of each import from memslots and of each attribute of one of its modules; ("memslots.VM", name)
    of each attribute of a variable `vm`."""
    owners = {"vm": "memslots.VM", "VM": "memslots.VM", "memslots": "memslots"}
    owners["_memslots"] = "memslots._memslots"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (("import", n.name) for n in node.names if n.name.startswith("memslots."))
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            if module.split(".")[0] == "memslots":
                yield from ((module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute):
            owner = owners.get(node.value.id) if isinstance(node.value, ast.Name) else None
            yield from [(owner, node.attr)] if owner else []


def unknown(source: str, package: str | None = None) -> set[tuple[str, str]]:
    known = json.loads((SUITE / "names.json").read_text(encoding="utf-8"))
    return {(m, name) for m, name in names_in(source, package) if name not in known.get(m, ())}


@pytest.mark.parametrize("path", sorted(SUITE.glob("*.py")), ids=lambda path: path.name)
def test_suite_uses_only_names_of_the_old_package(path: Path) -> None:
    assert unknown(path.read_text(encoding="utf-8")) == set()


def test_layouts_use_only_names_of_the_old_package() -> None:
    assert unknown(LAYOUTS.read_text(encoding="utf-8"), "memslots.lab") == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from memslots.traces import player", ("memslots.traces", "player")),
        ("from memslots import load", ("memslots", "load")),
        ("import memslots.traces", ("import", "memslots.traces")),
        ("def f():\n from memslots._memslots import new", ("memslots._memslots", "new")),
        ("from .sample import Row", ("memslots.lab.sample", "Row")),
        ("memslots.load('x')", ("memslots", "load")),
        ("vm.new_method()", ("memslots.VM", "new_method")),
    ],
)
def test_name_that_the_old_package_lacks_is_found(source: str, found: tuple[str, str]) -> None:
    assert unknown(source, "memslots.lab") == {found}
