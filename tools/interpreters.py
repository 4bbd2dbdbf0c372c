# SPDX-License-Identifier: MIT
"""interpreters.py - find the supported Pythons on this machine, so that `make ci` and `make nightly` can test on them.

The classifiers of pyproject.toml name the supported versions.  The version of this interpreter is left out, because
`make test` runs on it.  The tool prints a line `VERSION PATH` for each interpreter that it finds, newest first.  On
stderr it names each version that it does not find, or that cannot build extensions.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = (
    "import sys, sysconfig; "
    "print('%d.%d' % sys.version_info[:2] + 't' * bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"
)


def supported(pyproject: str) -> list[str]:
    """Return the versions in the classifiers, newest first."""
    classifiers = tomllib.loads(pyproject)["project"]["classifiers"]
    found = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in classifiers]
    versions = [match[1] for match in found if match]
    return sorted(versions, key=lambda version: int(version.split(".")[1]), reverse=True)


def candidates(version: str) -> Iterator[Path]:
    """Yield possible paths of an interpreter of this version: on PATH, then in the folders of pyenv and uv."""
    home = Path.home()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield Path(folder) / f"python{version}"
    for root, pattern in (
        (Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions", f"{version}*"),
        (home / ".local/share/uv/python", f"cpython-{version}*"),
    ):
        for folder in sorted(root.glob(pattern)):
            yield folder / "bin" / f"python{version}"


def is_version(path: Path, version: str) -> bool:
    """Whether the interpreter runs and has this version.  A shim of pyenv may exist but not run."""
    if not os.access(path, os.X_OK):
        return False
    try:
        done = subprocess.run(
            [path, "-c", PROBE], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def can_build(path: Path) -> bool:
    command = ["sh", str(ROOT / "tools" / "prerequisites.sh"), str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def find(version: str) -> Path | str:
    """Return an interpreter that can build extensions, or the reason why there is none."""
    found = dict.fromkeys(path for path in candidates(version) if is_version(path, version))
    usable = next((path for path in found if can_build(path)), None)
    if usable:
        return usable
    return f"{next(iter(found))} lacks its headers or venv" if found else "there is none"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--most", type=int, metavar="N", help="print at most N interpreters")
    most = parser.parse_args(argv).most
    own = "{}.{}".format(*sys.version_info[:2])
    printed = 0
    for version in supported((ROOT / "pyproject.toml").read_text()):
        if version == own:
            continue
        answer = find(version)
        if isinstance(answer, str):
            print(f"Python {version}: NOT RUN, {answer}", file=sys.stderr)
        elif most is None or printed < most:
            printed += 1
            print(version, answer)
        else:
            print(f"Python {version}: NOT RUN, `make nightly` runs it", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
