# SPDX-License-Identifier: MIT
"""Builds a version of the package, and links it several times with the objects of the core in another order.

The place of a function in memory changes its time by up to a few percent.  With one link order each, two equal versions
would differ by this much, always in the same direction.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

HERE = "."  # the files of the checkout as they are
PARTS = ("src", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")  # the inputs of a build

Say = Callable[[str], object]


class BuildError(Exception):
    """A version cannot be built."""


class Version(NamedTuple):
    """A version to compare: its name as given, and the folders where it is installed, one for each link order."""

    name: str
    sites: list[Path]


def checkout(start: Path) -> Path:
    """Return the top of the git checkout of memslots around `start`."""
    done = _run(
        ["git", "-C", str(start), "rev-parse", "--show-toplevel"],
        f"{start} is not in a git checkout",
    )
    root = Path(done.strip())
    if not (root / "src" / "memslots").is_dir():
        raise BuildError(f"{root} is not a checkout of memslots: it has no folder src/memslots")
    return root


def build(root: Path, name: str, side: str, orders: int, say: Say) -> Version:
    """Build a commit, or the files as they are, and link it `orders` times.

    The two sides get different orders, so that equal versions differ as much as two builds of one version can.
    """
    folder = built(root, name, say)
    commit = folder.name
    shown = name if name == HERE or commit.startswith(name) else f"{name} ({commit[:7]})"
    return Version(shown, linked(folder, side, orders, say))


def built(root: Path, name: str, say: Say) -> Path:
    """Build a commit, unless that was done before, or the files as they are.  The folder's `site` has the package."""
    commit = "files" if name == HERE else commit_of(root, name)
    folder = root / "build" / "compare" / commit
    if name == HERE or not (folder / "done").exists():
        say(f"building {folder.relative_to(root)}")
        shutil.rmtree(folder / "site", ignore_errors=True)
        copy(root, commit, folder / "source")
        install(folder, commit)
        (folder / "done").touch()
    return folder


def commit_of(root: Path, name: str) -> str:
    words = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    return _run(words, f"git knows no commit {name!r}").strip()[:12]


def copy(root: Path, commit: str, source: Path) -> None:
    """Copy the inputs of a build.  For a commit this uses git archive, which leaves the repository as it is."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    if commit == "files":
        for part in PARTS:
            if (root / part).is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(root / part, source / part, ignore=skip)
            else:
                shutil.copy2(root / part, source / part)
        return
    with subprocess.Popen(
        ["git", "-C", str(root), "archive", commit], stdout=subprocess.PIPE
    ) as archive:
        subprocess.run(["tar", "-x", "-C", str(source)], stdin=archive.stdout, check=True)
    if archive.returncode:
        raise BuildError(f"git archive {commit} failed")


def install(folder: Path, commit: str) -> None:
    command = [sys.executable, "-m", "pip", "-qq", "install", "--no-build-isolation", "--no-deps"]
    command += ["--target", str(folder / "site"), f"--config-settings=build-dir={folder / 'build'}"]
    env = {**os.environ, "MEMSLOTS_COMMIT": commit}
    if subprocess.run([*command, str(folder / "source")], env=env, check=False).returncode:
        raise BuildError(f"{folder / 'source'} does not build")


# ---- link orders ----------------------------------------------------------------------------------


def linked(folder: Path, side: str, orders: int, say: Say) -> list[Path]:
    """Return `orders` folders with the package, whose extensions have their objects in different orders."""
    command = link_command(folder / "build")
    objects = sorted(
        p.relative_to(folder / "build").as_posix() for p in (folder / "build").glob(OBJECTS)
    )
    if not command or len(objects) < 2:
        say(f"{folder.name}: its build names no objects, so there is only one link order")
        return [folder / "site"] * orders
    say(f"linking {folder.name} {orders} times for side {side}")
    sites = []
    for i in range(orders):
        site = folder / f"{side}{i}"
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(folder / "site", site, copy_function=os.link)
        (extension,) = (site / "memslots").glob("_memslots*.so")
        extension.unlink()
        Random(f"{side} {i}").shuffle(objects)
        words = relinked(command, objects, extension)
        done = subprocess.run(
            words, cwd=folder / "build", capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BuildError(f"linking failed: {done.stderr.strip()}")
        sites.append(site)
    return sites


OBJECTS = "CMakeFiles/memslots.dir/src/_core/*.o"
LIBRARY = "libmemslots.a"


def link_command(build_folder: Path) -> list[str]:
    """Return the command that links the extension, from ninja; or nothing."""
    targets = [path.name for path in build_folder.glob("_memslots*.so")]
    ninja = shutil.which(
        "ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if not targets or not ninja:
        return []
    done = subprocess.run(
        [ninja, "-C", str(build_folder), "-t", "commands", targets[0]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if LIBRARY in line and "-shared" in line]
    if done.returncode or not lines:
        return []
    command = re.sub(r"^: && | && :$", "", lines[-1])
    return shlex.split(command)


def relinked(command: list[str], objects: list[str], output: Path) -> list[str]:
    """Return the command with the objects instead of the library, and with another output.  -s strips symbols."""
    words = []
    for before, word in zip(["", *command], command, strict=False):
        words += [str(output)] if before == "-o" else objects if word == LIBRARY else [word]
    return [*words, "-s"]


def _run(words: list[str], failure: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as e:
        raise BuildError(f"{failure}: {e}") from e
    if done.returncode:
        raise BuildError(f"{failure}: {done.stderr.strip()}" if done.stderr.strip() else failure)
    return done.stdout
