# SPDX-License-Identifier: MIT
"""layers.py - check the includes of the C core against its layers, and the prefix of its symbols.

A file of the core may include headers of strictly lower layers, its own header, and the public header memslots.h.
memslots.h includes no header of the core.  Two files of one layer never include each other.  A file of the writer and a
file of the reader never include each other in any layer; they share only vm_index.h and lower layers.  No file of the
core includes Python.h.

With --library the tool also checks that every global symbol of the static library begins with ms_.  QEMU and other
programs define symbols such as interval_tree_insert() too.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# From the lowest layer up.  A letter orders the layers of one number.
LAYERS = {
    "0a": ("namespace",),
    "0b": ("compiler",),
    "0c": ("rbtree", "points", "thread", "guest_bytes", "sort"),
    "0cc": ("guest_fault",),
    "0d": ("memory",),
    "1": ("id_hash", "srcu", "slots_lock", "dirty_summary", "list"),
    "2": ("interval_tree", "dirty_log", "backing", "flat_index", "stall_report"),
    "2b": ("designs", "overlay", "flat_builder", "flat_kernel"),
    "2bb": ("flat_blocks",),
    "2c": ("flat_many", "flat_avx2", "flat_avx512"),
    "3a": ("memslot_set",),
    "3c": ("change", "holds", "vcpu_hint"),
    "4a": ("vm",),
    "4b": ("rules", "slot_make", "look", "listeners"),
    "4c": ("vm_index", "snapshot", "preview", "comparison"),
    "4d": ("search", "writer", "update", "held_index", "layout_steps"),
    "4e": ("batch_walk", "guest_run"),
    "4f": ("guest_pins",),
    "5": (
        "lookup",
        "batch",
        "region",
        "load",
        "update_steps",
        "update_changes",
        "transaction",
        "dirty_harvest",
        "dirty_ioctl",
        "vcpu",
        "stats",
        "measure",
        "check",
        "build_info",
        "rule_table",
        "guest_memory",
        "guest_copy",
        "guest_many",
        "guest_ranges",
        "hva_cache",
    ),
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}
SIDES = {
    "writer": (
        "rules",
        "slot_make",
        "listeners",
        "writer",
        "update",
        "region",
        "load",
        "update_steps",
        "update_changes",
        "layout_steps",
        "transaction",
        "dirty_harvest",
        "dirty_ioctl",
    ),
    "reader": (
        "search",
        "held_index",
        "batch_walk",
        "guest_run",
        "guest_pins",
        "lookup",
        "batch",
        "guest_memory",
        "guest_copy",
        "guest_many",
        "guest_ranges",
        "hva_cache",
    ),
}
SIDE_OF = {module: side for side, modules in SIDES.items() for module in modules}
DESIGNS = "3b"  # the layer of every other *_set; a new one needs no entry here
PUBLIC = "memslots.h"

INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')
PREFIX = "ms_"
INSTRUMENTATION = ("__odr_asan",)  # symbols that a sanitizer adds


class Wrong(NamedTuple):
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def layer_of(module: str) -> str | None:
    return LAYER_OF.get(module) or (DESIGNS if module.endswith("_set") else None)


def includes(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield line number, name, and whether the name is in quotes, of each #include."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if match := INCLUDE.match(line):
            yield number, match[2], match[1] == '"'


def objection(includer: Path, name: str, quoted: bool, headers: set[str]) -> str | None:
    """Return the reason why the file may not include the name, or None."""
    header = Path(name).name
    if header == "Python.h":
        return "the core builds without Python.h"
    if not quoted and header not in headers:
        return None  # a header of the compiler or the system
    if includer.name == PUBLIC:
        return f"{PUBLIC} is the wall: it includes nothing of the core, but here {header}"
    if header == PUBLIC:
        return None
    module, target = includer.stem, Path(header).stem
    if layer_of(target) is None:
        return f"{header} has no layer in tools/layers.py"
    if module == target and includer.suffix == ".c":
        return None
    if {SIDE_OF.get(module), SIDE_OF.get(target)} == set(SIDES):
        return (
            f"{includer.name} of the {SIDE_OF[module]} includes {header} of the {SIDE_OF[target]}"
        )
    mine, its = layer_of(module), layer_of(target)
    if its < mine:
        return None
    relation = "the same layer" if its == mine else "a higher layer"
    return f"layer {mine} includes {header} of {relation} {its}; only lower ones are allowed"


def check_includes(core: Path) -> tuple[list[Wrong], int, int]:
    """Return the faults under the folder of the core, and the numbers of checked files and includes."""
    files = sorted(p for p in core.rglob("*") if p.suffix in (".c", ".h"))
    headers = {p.name for p in files if p.suffix == ".h"}
    wrong, count = [], 0
    for path in files:
        if path.name != PUBLIC and layer_of(path.stem) is None:
            wrong.append(Wrong(f"{path}:1", f"{path.stem} has no layer in tools/layers.py"))
            continue
        for number, name, quoted in includes(path):
            count += 1
            if reason := objection(path, name, quoted, headers):
                wrong.append(Wrong(f"{path}:{number}", reason))
    return wrong, len(files), count


def check_symbols(library: Path, nm: str) -> tuple[list[Wrong], int]:
    """Return the global symbols of the library without the prefix, and the number of its global symbols."""
    out = subprocess.run(
        [nm, "--extern-only", "--defined-only", "--format=posix", str(library)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    wrong, count, member = [], 0, str(library)
    for line in out.splitlines():
        fields = line.split()
        if line.endswith(":"):
            member = line[:-1]
        elif fields and not fields[0].startswith(INSTRUMENTATION):
            count += 1
            if not fields[0].startswith(PREFIX):
                reason = f"global symbol {fields[0]} lacks {PREFIX}"
                wrong.append(Wrong(member, f"{reason}; name it in namespace.h, or make it static"))
    return wrong, count


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    core = Path(__file__).resolve().parent.parent / "src" / "_core"
    parser.add_argument("--core", type=Path, default=core, help="the folder of the C core")
    parser.add_argument("--library", type=Path, help="the static library; check its symbols")
    parser.add_argument("--nm", default="nm", help="the nm that reads the library")
    args = parser.parse_args(argv)

    wrong, files, count = check_includes(args.core)
    if not files:
        parser.error(f"no C file under {args.core}")
    looked_at = f"{files} files, {count} includes"
    if args.library:
        unprefixed, symbols = check_symbols(args.library, args.nm)
        wrong += unprefixed
        looked_at += f", {symbols} symbols"
        if not symbols:
            wrong.append(Wrong(str(args.library), "defines no symbol at all"))
    for w in wrong:
        print(w)
    print(f"layers: {looked_at}, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
