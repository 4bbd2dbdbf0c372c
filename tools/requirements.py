# SPDX-License-Identifier: MIT
"""requirements.py NAME - what pyproject.toml asks for, a line each, for `pip install -r`.

NAME is `build` for the build backend, or one of the project's extras.  It lets the Makefile install
one kind of requirement at a time, each of which stands in pyproject.toml alone.
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
