"""Runs a bundle: on ONNX Runtime today. Needs neither torch nor onnx.

`engines.load("mythos-1b-fp32").generate([1, 2, 3], loops=8)` is a stream of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.engine import Engine
from engines.errors import EngineError
from mythos_export.bundle import Bundle

__all__ = ["Engine", "EngineError", "load"]


def load(
    path: str | Path,
    *,
    check_hashes: bool = True,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Engine:
    """Open and check a bundle, and pick the engine for what it holds.

    Args:
        path: the bundle's folder.
        check_hashes: hash every file (about a second per 1.5 GB); sizes are always checked.
        progress: called with the number of bytes just hashed.
        options: the engine's own, see `engines.onnxruntime.OnnxRuntimeEngine`.

    Raises:
        BundleError: not a bundle, or damaged.
        EngineError: nothing here runs it; the message says what to install.
    """
    from engines.onnxruntime import OnnxRuntimeEngine  # the one kind of graph there is so far

    return OnnxRuntimeEngine(Bundle.open(path, check_hashes=check_hashes, progress=progress), **options)
