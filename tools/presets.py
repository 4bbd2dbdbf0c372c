# SPDX-License-Identifier: MIT
"""presets.py - the settings of CMakePresets.json that the tools need, too."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def sanitizer_options() -> dict[str, str]:
    """Return the environment variables that the test presets give to sanitizers."""
    presets = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))["testPresets"]
    return next(dict(p["environment"]) for p in presets if p["name"] == "base")
