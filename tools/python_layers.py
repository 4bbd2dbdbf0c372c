# SPDX-License-Identifier: MIT
"""python_layers.py - check the imports of the Python package against its layers, and that they have no circle.

It reads .py, .pyx, .pxi and .pxd files: imports at every depth, also inside functions, cimports, includes, and calls of
import_module() and __import__().  Imports below `if TYPE_CHECKING` do not run, so they do not count.

A part is a module of the package, the extension with all files that it includes, or a folder.  A part imports parts of
lower layers only.  Inside a folder every order is allowed, but no circle, as in the whole package.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

ROOT = "__init__"  # the part of the package's own __init__
EXTENSION = "_memslots"  # the part of all Cython files except libmemslots.pxd

# From the lowest layer up.
LAYERS = (
    # Modules that `import memslots` loads.
    ("_interpreter", "constants", "libmemslots", "whole_file"),
    ("errors", "listener", "diff", "snapshot_file"),
    ("memory",),
    (EXTENSION,),
    ("layout",),
    ("recorder",),
    (ROOT,),
    # Libraries that are imported by name.
    ("kvm",),
    ("traces",),
    # The laboratory and the command line.
    ("lab",),
    ("measure",),
    ("verdicts",),
    ("plot",),
    ("report",),
    ("commands",),
    ("__main__",),
)
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}

#: Imports inside of functions that may name a higher layer: the layers below work without them.
DEFERRED = {("__init__.py", "traces/logs.py"): "memslots.load() reads a file when a user calls it"}

#: Modules that may compute the names of imports.  Such names cannot be checked; these are modules of the interpreter.
COMPUTED = ("_interpreter",)

CYTHON = (".pyx", ".pxi", ".pxd")
CALLS = ("import_module", "__import__")
BEYOND = "beyond the package:"


class Wrong(NamedTuple):
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Import(NamedTuple):
    """One import: its line, and the names as they are written."""

    line: int
    module: str | None  # with its leading dots; None where it is computed
    names: tuple[str, ...] = ()  # in `from module import names`
    cimport: bool = False  # imports declarations
    include: bool = False  # `module` is the path of a file
    prefix: bool = False  # `module` is the common beginning of several module names


class Edge(NamedTuple):
    """One file of the package imports or includes another."""

    source: str
    line: int
    target: str


@cache  # the tests check many copies of the package that differ in one file
def imports_in(source: str, suffix: str) -> tuple[Import, ...]:
    return tuple(python_imports(source) if suffix == ".py" else cython_imports(source))


# ---- Python --------------------------------------------------------------------------------------


def python_imports(source: str) -> Iterator[Import]:
    for node in running_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Import(node.lineno, "." * node.level + (node.module or ""), names)
        elif isinstance(node, ast.Call) and called(node) in CALLS:
            yield imported_by_call(node)


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below this one, except nodes for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from running_nodes(other)
        else:
            yield child
            yield from running_nodes(child)


def called(node: ast.Call) -> str:
    """Return the last part of the name of the called function."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def imported_by_call(node: ast.Call) -> Import:
    """Return the import of a literal name, or of the literal beginning of an f-string.

    A relative name is relative to the package of the caller.
    """
    name = node.args[0] if node.args else None
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return Import(node.lineno, name.value)
    if isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
        return Import(node.lineno, str(name.values[0].value), prefix=True)
    return Import(node.lineno, None)


# ---- Cython --------------------------------------------------------------------------------------

STRING = r"""\"\"\"[\s\S]*?\"\"\"|\'\'\'[\s\S]*?\'\'\'|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
TOKEN = re.compile(rf"({STRING})|#[^\n]*|\\\n|([\w.]+|\S|\n)")


def cython_imports(source: str) -> Iterator[Import]:
    for line, words in statements(source):
        for place, word in enumerate(words):
            if word in ("import", "cimport"):
                yield from import_statement(line, words, place)
            elif word.split(".")[-1] in CALLS and words[place + 1 : place + 2] == ["("]:
                literal = re.fullmatch(r"""["']([\w.]+)["']""", words[place + 2])
                yield Import(line, literal[1] if literal else None)
        if words[0] == "include":
            yield Import(line, ast.literal_eval(words[1]), include=True)


def statements(source: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the tokens of each statement.  Inside brackets a statement may span several lines."""
    words: list[str] = []
    begin, depth = 1, 0
    for match in TOKEN.finditer(source + "\n"):
        word = match[1] or match[2]
        if word == ";" or (word == "\n" and not depth):
            if words:
                yield begin, words
            words = []
        elif word and word != "\n":
            begin = begin if words else source.count("\n", 0, match.start()) + 1
            words.append(word)
            depth += (word in "([{") - (word in ")]}")


def import_statement(line: int, words: list[str], place: int) -> Iterator[Import]:
    """Parse [from MODULE] import NAMES; `as` and its name are dropped."""
    text = re.sub(r" as \w+", "", " ".join(words[place + 1 :]))
    names = tuple(name.strip() for name in text.strip("() ,").split(","))
    cimport = words[place] == "cimport"
    if "from" in words[:place]:
        yield Import(line, words[words.index("from") + 1], names, cimport)
    else:
        yield from (Import(line, name, cimport=cimport) for name in names)


# ---- the graph -----------------------------------------------------------------------------------


class Package:
    """The files of a package by path, and the edges between them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        paths = sorted(p for p in folder.rglob("*") if p.suffix in (".py", *CYTHON))
        self.files = {p.relative_to(folder).as_posix(): p for p in paths}
        self.edges: list[Edge] = []
        self.wrong: list[Wrong] = []
        self.count = 0
        for file, path in self.files.items():
            for found in imports_in(path.read_text(encoding="utf-8"), path.suffix):
                self.count += 1
                self._add(file, found)
        self._add_declarations()

    def _add(self, file: str, found: Import) -> None:
        if found.module is None and Path(file).stem not in COMPUTED:
            self._object(file, found.line, "imports a computed name, which cannot be checked")
        for target in self._targets(file, found):
            if target in self.files:
                self.edges.append(Edge(file, found.line, target))
            else:
                self._object(file, found.line, f"imports {target}, which does not exist")

    def _object(self, file: str, line: int, reason: str) -> None:
        self.wrong.append(Wrong(f"{self.folder / file}:{line}", reason))

    def _add_declarations(self) -> None:
        """Add the implicit include: a .pyx file includes the .pxd file of the same name."""
        for file in self.files:
            pxd = Path(file).with_suffix(".pxd").as_posix()
            if file.endswith(".pyx") and pxd in self.files:
                self.edges.append(Edge(file, 1, pxd))

    def _targets(self, file: str, found: Import) -> Iterator[str]:
        """Yield the paths of the files of this package that an import names."""
        if found.module is None:
            return
        if found.include:
            yield (Path(file).parent / found.module).as_posix()
            return
        module = self._absolute(file, found.module)
        if found.prefix:
            yield from (f for f in self.files if f != file and self._module(f).startswith(module))
        elif module.startswith(BEYOND):
            yield module
        elif module.split(".")[0] == self.name:
            yield from dict.fromkeys(self._imported(module, found))

    def _absolute(self, file: str, module: str) -> str:
        package = ".".join([self.name, *Path(file).parent.parts])
        try:
            return resolve_name(module, package)
        except ImportError:
            return f"{BEYOND} {module}"

    def _module(self, file: str) -> str:
        path = Path(file).with_suffix("")
        parts = path.parent.parts if path.name == "__init__" else path.parts
        return ".".join([self.name, *parts])

    def _imported(self, module: str, found: Import) -> Iterator[str]:
        """Resolve `from package import name`: the module of that name if it exists, otherwise the package itself."""
        for name in found.names or ("",):
            file = self._file(f"{module}.{name}", found.cimport) if name else None
            yield file or self._file(module, found.cimport) or module

    def _file(self, module: str, cimport: bool) -> str | None:
        path = "/".join(module.split(".")[1:])
        for ending in (".pxd",) if cimport else (".py", ".pyx"):
            for name in (f"{path}{ending}", f"{path}/__init__{ending}".lstrip("/")):
                if name in self.files:
                    return name
        return None


def part_of(file: str) -> str:
    """Return the part that the file belongs to."""
    path = Path(file)
    if len(path.parts) > 1:
        return path.parts[0]
    cython = path.suffix in CYTHON and path.stem not in (ROOT, "libmemslots")
    return EXTENSION if cython else path.stem


# ---- faults --------------------------------------------------------------------------------------


def objection(edge: Edge) -> str | None:
    """Return the reason why this import breaks the layers, or None."""
    mine, its = part_of(edge.source), part_of(edge.target)
    if mine == its or LAYER_OF[its] < LAYER_OF[mine] or (edge.source, edge.target) in DEFERRED:
        return None
    relation = "the same layer" if LAYER_OF[its] == LAYER_OF[mine] else "a higher layer"
    return f"{mine} imports {edge.target} of {relation}; only lower ones are allowed"


def layer_faults(package: Package) -> Iterator[Wrong]:
    unknown = {f: part for f in package.files if (part := part_of(f)) not in LAYER_OF}
    for file, part in unknown.items():
        yield Wrong(f"{package.folder / file}:1", f"{part} has no layer in tools/python_layers.py")
    for edge in package.edges:
        if edge.source in unknown or edge.target in unknown:
            continue
        if reason := objection(edge):
            yield Wrong(f"{package.folder / edge.source}:{edge.line}", reason)


def circles(package: Package) -> Iterator[Wrong]:
    """Yield one circle for each edge that closes a circle in a depth-first search from every file."""
    edges: dict[str, list[Edge]] = {}
    for edge in package.edges:
        edges.setdefault(edge.source, []).append(edge)
    done: set[str] = set()
    path: list[str] = []

    def visit(file: str) -> Iterator[Wrong]:
        path.append(file)
        for edge in edges.get(file, ()):
            if edge.target in path:
                circle = " -> ".join([*path[path.index(edge.target) :], edge.target])
                yield Wrong(f"{package.folder / file}:{edge.line}", f"closes the circle {circle}")
            elif edge.target not in done:
                yield from visit(edge.target)
        done.add(path.pop())

    for file in package.files:
        if file not in done:
            yield from visit(file)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    folder = Path(__file__).resolve().parent.parent / "src" / "memslots"
    parser.add_argument("--package", type=Path, default=folder, help="the folder of the package")
    args = parser.parse_args(argv)

    package = Package(args.package)
    if not package.files:
        parser.error(f"no Python file under {args.package}")
    wrong = [*package.wrong, *layer_faults(package), *circles(package)]
    for w in wrong:
        print(w)
    counts = f"{len(package.files)} files, {package.count} imports, {len(package.edges)} of them in"
    print(f"python layers: {counts} the package, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
