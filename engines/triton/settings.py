"""The settings in a model's config.pbtxt, as its Python process reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.errors import EngineError
from engines.triton.contract import SETTINGS

__all__ = ["read_settings"]


def read_settings(config: Mapping[str, Any]) -> dict[str, int]:
    """Those of `contract.SETTINGS` that are given.

    Args:
        config: what Triton hands a model as `model_config`, parsed.

    Raises:
        EngineError: one is not an integer of at least 1.
    """
    values = {}
    for name in SETTINGS:
        text = config.get("parameters", {}).get(name, {}).get("string_value", "")
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and int(text)):
            raise EngineError(f"parameter {name} of config.pbtxt is {text!r}; it must be an integer of at least 1")
        values[name] = int(text)
    return values
