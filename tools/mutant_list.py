# SPDX-License-Identifier: MIT
"""mutant_list.py - read tests/mutants/*.toml: the mutants, the flips, and the reasons for everything that is left out.

    [[mutant]]     name, hazard, wrong (one sentence), in/file, old, new, caught_by; also: more edits; quick; cpu
    [[flips]]      in (one function or a list), hazard, caught_by; equivalent: flips that change nothing observable
    [[left]]       a mutant that no test here can catch; left_to: the reason
    [[excused]]    a hazard without a mutant, and the reason

anchors.py describes how `in`, `file` and `old` are compared with the sources.  flips.py lists the kinds of flips.  A
test is the name of a ctest, with `asan:` or `tsan:` before it for a build with sanitizers, or the node id of a pytest.
It may end in `scale=` and `seed=`, which test.h reads.
"""

import fnmatch
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from anchors import AnchorError, Place, Sources, applied
from flips import Flip, Found, flips_of

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "mutants"
HAZARDS = tuple(f"H{i}" for i in range(1, 41))
BAD_INPUT = "input"  # any row of the table "Bad input and lifetimes"; its rows have no numbers
FIGURES = "figures"  # a wrong figure, table, picture or check of the laboratory and of the commands
SANITIZERS = {"plain": "", "asan": "address,undefined", "tsan": "thread"}
PYTHON = "python"  # the build of the extension
PURE = "pure"  # the installed extension with the Python modules of the copy; nothing is compiled
SCALE = 0.1  # of the random parts of the tests; a test that finds a bug usually finds it early
KINDS = {"mutant", "flips", "left", "excused"}


class Edit(NamedTuple):
    """`old` becomes `new` in the function `name`, or in the files that `file` matches."""

    name: str
    old: str
    new: str
    file: str = ""

    def place(self, sources: Sources) -> Place:
        return sources.find(self.name, self.file, self.old, self.new)


class Test(NamedTuple):
    """`name` is a ctest, or the node id of a pytest if build is PYTHON or PURE."""

    build: str
    name: str
    scale: float = SCALE
    seed: str = ""

    def __str__(self) -> str:
        prefix = "" if self.build in ("plain", PYTHON, PURE) else f"{self.build}:"
        name = self.name.removeprefix("tests/python/")
        return prefix + name


class Mutant(NamedTuple):
    name: str
    hazards: tuple[str, ...]
    wrong: str
    edits: tuple[Edit | Flip, ...]
    tests: tuple[Test, ...]
    quick: bool  # --quick plants it too
    left_to: str  # the reason why it is not planted, or empty
    cpu: frozenset[str]  # the CPU flags that the code needs


class Equivalent(NamedTuple):
    """A flip that changes nothing observable."""

    name: str
    code: str
    reason: str


class Catalogue(NamedTuple):
    mutants: list[Mutant]
    left: list[Mutant]
    excused: dict[str, str]  # hazard -> the reason why there is no mutant
    equivalents: list[Equivalent]


class ListError(Exception):
    """An entry of the list is wrong; the message names the entry and the reason."""


# ---- reading ------------------------------------------------------------------------------------


def parse_test(text: str) -> Test:
    name, *options = text.split()
    values = dict(option.split("=", 1) for option in options)
    if not values.keys() <= {"scale", "seed"}:
        raise ListError(f"test {text!r}: only scale= and seed= may follow")
    build, _, rest = name.partition(":")
    if "/" in name:
        build, rest = PYTHON, name
    elif build not in SANITIZERS or not rest:
        build, rest = "plain", name
    return Test(build, rest, float(values.get("scale", SCALE)), values.get("seed", ""))


def parse_edit(entry: dict[str, Any]) -> Edit:
    """Read an edit.  The last line break is not part of a text, so the closing quotes may have their own line."""
    if not entry.get("in") and not entry.get("file"):
        raise KeyError("in")
    old, new = (entry[key].removesuffix("\n") for key in ("old", "new"))
    return Edit(entry.get("in", ""), old, new, entry.get("file", ""))


def listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def parse_hazards(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    hazards = tuple(listed(entry["hazard"]))
    unknown = set(hazards) - {*HAZARDS, BAD_INPUT, FIGURES}
    if unknown or not hazards:
        raise ListError(f"mutant {name}: no such hazard: {', '.join(unknown) or 'none is named'}")
    return hazards


def parse_mutant(entry: dict[str, Any], left_to: str = "") -> Mutant:
    name = entry.get("name", "?")
    try:
        mutant = Mutant(
            name,
            parse_hazards(name, entry),
            " ".join(entry["wrong"].split()),
            tuple(map(parse_edit, [entry, *entry.get("also", [])])),
            tuple(map(parse_test, entry.get("caught_by", []))),
            entry.get("quick", False),
            left_to,
            frozenset(entry.get("cpu", "").split()),
        )
    except KeyError as error:
        raise ListError(f"mutant {name} has no {error.args[0]!r}") from error
    if bool(mutant.tests) == bool(left_to):
        raise ListError(f"mutant {name} must name the tests that catch it, or say why none can")
    return mutant


def without_build(mutant: Mutant, sources: Sources) -> Mutant:
    """Give a mutant that changes only Python modules to the build PURE."""
    files = files_of(mutant, sources)
    if not files or not all(file.endswith(".py") for file in files):
        return mutant
    tests = (t._replace(build=PURE) if t.build == PYTHON else t for t in mutant.tests)
    return mutant._replace(tests=tuple(tests))


def parse_equivalents(entry: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the equivalent flips by name, `function:kind:number`."""
    functions, found = listed(entry["in"]), {}
    for e in entry.get("equivalent", []):
        name = e["flip"] if len(functions) > 1 else f"{functions[0]}:{e['flip']}"
        if not e.get("reason") or name.partition(":")[0] not in functions:
            raise ListError(f"flips: the equivalent {name} needs a reason, and a function of `in`")
        found[name] = e
    return found


def parse_flips(entry: dict[str, Any], sources: Sources) -> tuple[list[Mutant], list[Equivalent]]:
    """Return all flips of the functions.  A missing function becomes one mutant, which cannot be planted."""
    functions = listed(entry["in"])
    equivalents = parse_equivalents(entry)
    tests = tuple(map(parse_test, entry["caught_by"]))
    mutants, left_out = [], []

    def mutant(name: str, label: str, wrong: str) -> Mutant:
        flip = Flip(name, label, entry.get("file", ""))
        hazards, whole = parse_hazards(f"flip:{name}", entry), f"flip:{name}:{label}"
        return Mutant(
            whole, hazards, wrong, (flip,), tests, whole in entry.get("quick", []), "", frozenset()
        )

    for name in functions:
        try:
            flips = flips_of(sources, name, entry.get("file", ""))
        except AnchorError:
            mutants.append(mutant(name, "any", f"{name}() is not there."))
            continue
        for flip in flips:
            if same := equivalents.pop(f"{name}:{flip.label}", None):
                left_out.append(equivalent(name, flip, same))
            else:
                mutants.append(
                    mutant(name, flip.label, f"{name}(): `{flip.code}` becomes `{flip.text}`.")
                )
    missing = {m.edits[0].name for m in mutants if m.name.endswith(":any")}
    if unknown := [name for name in equivalents if name.partition(":")[0] not in missing]:
        raise ListError(f"there is no flip of the name {', '.join(unknown)}; remove the equivalent")
    return mutants, left_out


def equivalent(name: str, flip: Found, entry: dict[str, str]) -> Equivalent:
    """Return the equivalent.  Its `code` must be that of the flip, because numbers change with the code."""
    if "".join(entry["code"].split()) != "".join(flip.code.split()):
        raise ListError(
            f"the equivalent {name}:{flip.label} is about `{entry['code']}`, but that flip changes `{flip.code}`"
        )
    return Equivalent(f"flip:{name}:{flip.label}", flip.code, " ".join(entry["reason"].split()))


def read_catalogue(folder: Path = FOLDER, sources: Sources | None = None) -> Catalogue:
    sources = sources or Sources(ROOT)
    catalogue = Catalogue([], [], {}, [])
    for path in sorted(folder.glob("*.toml")):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := data.keys() - KINDS:
            raise ListError(f"{path.name}: an entry cannot be of the kind {', '.join(unknown)}")
        mutants = map(parse_mutant, data.get("mutant", []))
        catalogue.mutants.extend(without_build(m, sources) for m in mutants)
        catalogue.left.extend(parse_mutant(e, e["left_to"]) for e in data.get("left", []))
        catalogue.excused.update((e["hazard"], e["reason"]) for e in data.get("excused", []))
        for entry in data.get("flips", []):
            mutants, equivalents = parse_flips(entry, sources)
            catalogue.mutants.extend(mutants)
            catalogue.equivalents.extend(equivalents)
    names = [m.name for m in (*catalogue.mutants, *catalogue.left)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ListError(f"two mutants have the name {', '.join(sorted(twice))}")
    return catalogue


# ---- queries ------------------------------------------------------------------------------------


def planted(edits: Iterable[Edit | Flip], sources: Sources) -> dict[str, str]:
    """Return the files that the edits change, with their new texts."""
    places: dict[str, list[Place]] = {}
    for edit in edits:
        place = edit.place(sources)
        places.setdefault(place.file, []).append(place)
    return {file: applied(sources.source(file).text, list_) for file, list_ in places.items()}


def stale(mutant: Mutant, sources: Sources) -> str:
    """Return the reason why the mutant cannot be planted in these sources, or an empty text."""
    try:
        planted(mutant.edits, sources)
    except AnchorError as error:
        return f"mutant {mutant.name}: {error}"
    return ""


def files_of(mutant: Mutant, sources: Sources) -> list[str]:
    """Return the files that the mutant changes.  Anchors that are not found are ignored."""
    found: dict[str, None] = {}
    for edit in mutant.edits:
        with suppress(AnchorError):
            found[edit.place(sources).file] = None
    return list(found)


def uncovered(catalogue: Catalogue) -> list[str]:
    """Return the hazards that have neither a mutant nor an excuse."""
    covered = {hazard for m in catalogue.mutants for hazard in m.hazards}
    return [hazard for hazard in HAZARDS if hazard not in covered | catalogue.excused.keys()]


def select(
    mutants: list[Mutant], pattern: str, quick: bool, shard: tuple[int, int], sources: Sources
) -> list[Mutant]:
    """Select mutants by a part of the name, hazard, function, file or test.

    A pattern with wildcards must match one of these as a whole.
    """

    def fits(m: Mutant) -> bool:
        words = [
            m.name,
            *m.hazards,
            *(e.name for e in m.edits),
            *files_of(m, sources),
            *map(str, m.tests),
        ]
        if any(c in pattern for c in "*?["):
            return any(fnmatch.fnmatch(word, pattern) for word in words)
        return pattern in m.hazards or any(pattern in word for word in words if word not in HAZARDS)

    chosen = [m for m in mutants if (not quick or m.quick) and (not pattern or fits(m))]
    return chosen[shard[0] - 1 :: shard[1]]


# ---- printing -----------------------------------------------------------------------------------


def in_order(hazard: str) -> tuple[int, str]:
    return (HAZARDS.index(hazard) if hazard in HAZARDS else len(HAZARDS), hazard)


def table(*head: str, rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield a Markdown table.  Bars are escaped, because a bar would end a cell."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in row)} |"
    yield ""


def markdown(mutants: list[Mutant], catalogue: Catalogue) -> str:
    """Return tables of the mutants by hazard, and of everything that is left out.

    A mutant has a row for each of its hazards.
    """
    by_hazard = sorted(
        ((h, m) for m in mutants for h in m.hazards), key=lambda x: (in_order(x[0]), x[1].name)
    )
    left = sorted(catalogue.left, key=lambda m: (in_order(m.hazards[0]), m.name))
    excused = sorted(catalogue.excused.items(), key=lambda x: in_order(x[0]))
    lines = [
        *table(
            *("hazard", "mutant", "wrong", "caught by"),
            rows=((h, m.name, m.wrong, ", ".join(map(str, m.tests))) for h, m in by_hazard),
        ),
        *table("hazard", "why it has no mutant", rows=excused),
        *table(
            *("hazard", "not planted", "wrong", "left to"),
            rows=((", ".join(m.hazards), m.name, m.wrong, m.left_to) for m in left),
        ),
        *table("equivalent flip", "code", "reason", rows=catalogue.equivalents),
    ]
    return "\n".join(lines)


def list_all(mutants: list[Mutant], catalogue: Catalogue, sources: Sources) -> Iterator[str]:
    for m in mutants:
        yield f"{','.join(m.hazards):8} {m.name:36} {m.wrong}"
        yield f"{'':8} {'':36} {', '.join(files_of(m, sources))}: {', '.join(map(str, m.tests))}"
    for m in catalogue.left:
        yield f"{','.join(m.hazards):8} {m.name:36} not planted, left to {' '.join(m.left_to.split())}"
    for e in catalogue.equivalents:
        yield f"{'':8} {e.name:36} equivalent: {e.reason}"
    for hazard in sorted(catalogue.excused, key=in_order):
        yield f"{hazard:8} {'':36} no mutant: {' '.join(catalogue.excused[hazard].split())}"
    yield (
        f"{len(mutants)} mutants, {len(catalogue.left)} left to others, {len(catalogue.equivalents)} equivalent flips, "
        f"{len(catalogue.excused)} hazards excused"
    )
