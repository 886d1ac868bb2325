"""Runs a bundle: on ONNX Runtime, or on TensorRT from built engines. Needs neither torch nor onnx.

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
    runtime: str = "onnxruntime",
    **options: Any,
) -> Engine:
    """Open and check a bundle, and start the engine that runs it.

    Args:
        path: the bundle's folder.
        check_hashes: hash every file (about a second per 1.5 GB); sizes, and the graphs, are always checked.
        progress: called with the number of bytes just hashed.
        runtime: onnxruntime, tensorrt_rtx or tensorrt; the last two need engines that `mythos-export build` made.
        options: the engine's own, see `engines.onnxruntime.OnnxRuntimeEngine` and `engines.tensorrt.TensorRtEngine`.

    Raises:
        BundleError: not a bundle, or damaged.
        EngineError: nothing here runs it; the message says what to install.
    """
    if runtime not in ("onnxruntime", "tensorrt_rtx", "tensorrt"):
        raise EngineError(f"runtime is {runtime!r}; it must be onnxruntime, tensorrt_rtx or tensorrt")
    bundle = Bundle.open(path, check_hashes=check_hashes, progress=progress)
    if runtime != "onnxruntime":
        from engines.tensorrt import TensorRtEngine

        return TensorRtEngine(bundle, runtime=runtime, **options)
    from engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, **options)
