"""How many rows of a step belong to one sequence."""

from __future__ import annotations

from mythos_export.bundle import Manifest

__all__ = ["row_copies"]

_BLOCKWISE = ("int8", "int4")  # of the target onnxruntime


def row_copies(manifest: Manifest) -> int:
    """2 where a row's bits depend on how many rows are computed beside it, else 1.

    ONNX Runtime's MatMulNBits and QMoE take rows in pairs, and an odd last one by a kernel that adds up in another
    order; in half precision a single row has a kernel of its own. The rows of an expert are those that chose it.
    Beside its own copy a sequence always goes through the kernel for pairs: the copy chooses the same experts, so
    the number of rows is even everywhere.
    """
    blockwise = manifest.target == "onnxruntime" and manifest.precision in _BLOCKWISE
    return 2 if blockwise or manifest.precision == "fp16" else 1
