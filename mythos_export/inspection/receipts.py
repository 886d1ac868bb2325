"""The engines that were built beside a bundle, and whether they still belong to it."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel

from engines.errors import EngineError
from engines.receipts import FOLDER, Receipt, read_receipt, receipt_path
from mythos_export.bundle import Bundle

__all__ = ["BuiltEngines", "built_engines"]

_NAME = re.compile(r"sm([0-9]{1,2})([0-9])\.json")
_MAX_BYTES = 1 << 20


class BuiltEngines(BaseModel):
    """The engines of one architecture."""

    file: str
    sm: str
    receipt: Receipt | None  # None where it is of no use
    problem: str | None  # why


def built_engines(bundle: Bundle) -> list[BuiltEngines]:
    """Every receipt in the bundle's folder; one that is damaged, stale or foreign says so and is no error."""
    folder = bundle.path / FOLDER
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    found = []
    for name in names:
        if (parts := _NAME.fullmatch(name)) is not None:
            found.append(_built(bundle, f"{parts[1]}.{parts[2]}"))
    return found


def _built(bundle: Bundle, sm: str) -> BuiltEngines:
    file = f"{FOLDER}/{receipt_path(bundle, sm).name}"
    said = _said(bundle, sm)
    try:
        runtime, version = str(said.get("runtime")), str(said.get("runtime_version"))
        return BuiltEngines(
            file=file, sm=sm, receipt=read_receipt(bundle, sm, runtime=runtime, version=version), problem=None
        )
    except EngineError as error:
        return BuiltEngines(file=file, sm=sm, receipt=None, problem=str(error))


def _said(bundle: Bundle, sm: str) -> dict[str, Any]:
    """What a receipt says unchecked: `read_receipt` wants to be told the runtime, and here any will do."""
    path = receipt_path(bundle, sm)
    try:
        if not path.is_file() or path.is_symlink() or path.stat().st_size > _MAX_BYTES:
            return {}
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
