"""PyTorch to bundle: the export pipeline of looped (recurrent-depth) language models.

`mythos_export.load("mythos-1b-fp32").generate([1, 2, 3], loops=8)` is a stream of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engines import Engine

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(
    path: str | Path,
    *,
    check_hashes: bool = True,
    progress: Callable[[int], None] | None = None,
    runtime: str = "onnxruntime",
    **options: Any,
) -> Engine:
    """Open and check a bundle, and start the engine that runs it; needs neither torch nor onnx.

    Args:
        path: the bundle's folder.
        check_hashes: hash every file (about a second per 1.5 GB); sizes, and the graphs, are always checked.
        progress: called with the number of bytes just hashed.
        runtime: onnxruntime, tensorrt_rtx or tensorrt; the last two need engines that `mythos-export build` made.
        options: the engine's own, see `engines.onnxruntime.OnnxRuntimeEngine` and `engines.tensorrt.TensorRtEngine`.

    Raises:
        BundleError: not a bundle, or damaged.
        EngineError: nothing here runs it; the message says what to install.
        BrokenInstallation: another package or file called `engines` is in the way of this one's.
    """
    from mythos_export.installation import check_installation

    check_installation(("engines",))
    import engines

    return engines.load(path, check_hashes=check_hashes, progress=progress, runtime=runtime, **options)
