"""What a measurement leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["as_json", "write_whole"]


def as_json(values: Any) -> str:
    """Text of a JSON file."""
    return json.dumps(values, indent=1) + "\n"


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
