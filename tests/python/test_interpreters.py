# SPDX-License-Identifier: MIT
"""tools/interpreters.py finds the supported Pythons, and names each one that it does not find."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from checkout import ROOT, needs_tools, tool

pytestmark = needs_tools


@pytest.fixture
def interpreters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module, on a machine without any Python; every Python that a test adds can build extensions."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    module = tool("interpreters")
    monkeypatch.setattr(module, "can_build", lambda path: True)
    monkeypatch.setattr(module, "supported", lambda text: ["3.99", "3.98", "3.97"])
    return module


def add(folder: Path, version: str, script: str | None = None) -> Path:
    """Adds a program that prints this version, or runs the script."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"python{version}"
    path.write_text(f"#!/bin/sh\n{script or f'echo {version}'}\n")
    path.chmod(0o755)
    return path


def test_interpreters_on_path_and_in_pyenv_are_found(
    interpreters: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = add(tmp_path / "bin", "3.99")
    second = add(tmp_path / "pyenv" / "versions" / "3.98.4" / "bin", "3.98")
    assert interpreters.main([]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"3.99 {first}", f"3.98 {second}"]
    assert err.splitlines() == ["Python 3.97: NOT RUN, there is none"]


def test_at_most_one_interpreter_is_listed_for_each_version(
    interpreters: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [add(tmp_path / "bin", version) for version in ("3.98", "3.97")]
    assert interpreters.main(["--most", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"3.98 {found[0]}"]
    assert "Python 3.99: NOT RUN, there is none" in err
    assert "Python 3.97: NOT RUN, `make nightly` runs it" in err


@pytest.mark.parametrize("script", ["exit 127", "echo 3.97", "echo 3.99t", "kill -9 $$"])
def test_program_that_is_not_a_usable_python_is_skipped(
    interpreters: ModuleType, tmp_path: Path, script: str
) -> None:
    """Cases: a pyenv shim that fails, another version, a build without the GIL, a crash."""
    add(tmp_path / "bin", "3.99", script)
    assert interpreters.find("3.99") == "there is none"
    right = add(tmp_path / "home" / ".local/share/uv/python/cpython-3.99.1" / "bin", "3.99")
    assert interpreters.find("3.99") == right


def test_python_without_headers_is_named(
    interpreters: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add(tmp_path / "bin", "3.99")
    monkeypatch.setattr(interpreters, "can_build", lambda path: False)
    assert interpreters.find("3.99") == f"{path} lacks its headers or venv"


def test_running_interpreter_is_left_out(
    interpreters: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "{}.{}".format(*sys.version_info[:2])
    monkeypatch.setattr(interpreters, "supported", lambda text: [own])
    assert interpreters.main([]) == 0
    assert capsys.readouterr() == ("", "")


def test_supported_versions_are_those_of_the_classifiers() -> None:
    versions = tool("interpreters").supported((ROOT / "pyproject.toml").read_text())
    assert versions == sorted(versions, key=lambda v: int(v[2:]), reverse=True)
    assert {"3.11", "3.14"} <= set(versions)
