"""How results are printed."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["print_json", "size"]


def print_json(values: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(values, indent=2, default=str))


def size(count: float) -> str:
    """Bytes, readably: 4.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
