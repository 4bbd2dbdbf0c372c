# SPDX-License-Identifier: MIT
"""requirements.py NAME - print requirements from pyproject.toml, one on each line, for `pip install -r`.

NAME is `build` for the build backend, or an extra of the project.  The Makefile uses this tool to install one kind of
requirement at a time, so that all requirements stand only in pyproject.toml.
"""

import sys
import tomllib
from pathlib import Path


def requirements(name: str) -> list[str]:
    pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    if name == "build":
        return pyproject["build-system"]["requires"]
    return pyproject["project"]["optional-dependencies"][name]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
