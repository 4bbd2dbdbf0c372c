# SPDX-License-Identifier: MIT
"""What every command shares: exit codes, and how it prints an object or an error."""

import json
import sys
from typing import Any

EXIT_OK, EXIT_FOUND, EXIT_USAGE = 0, 1, 2


def complain(message: object) -> int:
    print(f"memslots: {message}", file=sys.stderr)
    return EXIT_USAGE


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))
