# SPDX-License-Identifier: MIT
"""Each way of installing the package: the header is where get_include() says, and .pxd files are where Cython looks.

The package that runs these tests is one install.  Another one, editable, is built into an environment of its own, and a
third one, `--target`, from the same build.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import site
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import memslots

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "src" / "_core" / "include" / "memslots.h"
BUILD_TOOLS = ("scikit_build_core", "Cython", "cython_cmake", "cmake", "ninja")

# Prints the folders of an install as JSON.
SHOW = """
import json, os, memslots
folder, package = memslots.get_include(), os.path.dirname(memslots.__file__)
with memslots.VM() as vm:
    vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=4096, userspace_addr=0x10000)
    assert vm.gfn_to_hva(0) == 0x10000
pxd = os.path.exists(os.path.join(package, "_memslots.pxd"))
print(json.dumps({"include": folder, "package": package, "pxd": pxd}))
"""


def test_header_has_the_version_of_the_package() -> None:
    """Holds for every kind of install that runs the tests."""
    header = Path(memslots.get_include()) / "memslots.h"
    assert header.is_absolute()
    assert f'#define MS_VERSION "{memslots.__version__}"' in header.read_text(encoding="utf-8")


def test_missing_header_raises_filenotfounderror(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message names the folder that get_include() searched."""
    monkeypatch.setattr(memslots, "__path__", [str(tmp_path)])
    monkeypatch.setattr(memslots, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "include"))):
        memslots.get_include()


def can_build() -> bool:
    return HEADER.exists() and all(importlib.util.find_spec(name) for name in BUILD_TOOLS)


needs_build = pytest.mark.skipif(
    not can_build(), reason="the build tools of a checkout are not here (make .venv/.with-build)"
)


def environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment that sees the packages of this one, but not its memslots."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    shared = folder / "shared"
    shared.mkdir()
    for place in filter(
        Path.is_dir, map(Path, site.getsitepackages())
    ):  # Debian lists folders that are not there
        for entry in place.iterdir():
            if (
                not entry.name.lower().startswith(("memslots", "_memslots"))
                and entry.suffix != ".pth"
            ):
                (shared / entry.name).symlink_to(entry)
    (packages / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
    return folder / "bin" / "python"


def install(python: Path, build: Path, *how: str) -> None:
    """Runs `pip install` in a checkout, without optimization to save time."""
    command = [str(python), "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
    options = {
        "build-dir": str(build),
        "cmake.build-type": "Debug",
        "cmake.define.CMAKE_C_FLAGS_DEBUG": "-O0",
    }
    settings = [f"--config-settings={name}={value}" for name, value in options.items()]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command, *settings, *how, str(ROOT)],
        env=os.environ | {"PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def folders_of(python: Path, folder: Path, **env: str) -> dict[str, Any]:
    """The folders of an install, printed by a process outside of the checkout."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", SHOW],
        cwd=folder,
        env=clean | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@needs_build
@pytest.mark.builds
@pytest.mark.slow
def test_editable_and_target_installs_find_their_header(tmp_path: Path) -> None:
    """An editable install keeps the package in the checkout and installs the header."""
    python = environment(tmp_path / "venv")
    build = tmp_path / "build"
    target = tmp_path / "target"
    install(python, build, "--target", str(target))
    plain = folders_of(python, tmp_path, PYTHONPATH=str(target))
    assert Path(plain["package"]) == target / "memslots"
    install(python, build, "--editable")
    editable = folders_of(python, tmp_path)
    assert Path(editable["package"]) == ROOT / "src" / "memslots"
    for found in (editable, plain):
        header = Path(found["include"]) / "memslots.h"
        assert header.read_bytes() == HEADER.read_bytes()
        assert found["pxd"]
    assert not (target / "memslots" / "_calls.pxd").exists()
