"""How results are printed."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["print_json", "size"]


def print_json(values: dict[str, Any]) -> None:
    """One JSON object on stdout; what is no finite number is null, as in the files that pydantic writes."""
    print(json.dumps(_finite(values), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size(count: float) -> str:
    """Bytes, readably: 4.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
