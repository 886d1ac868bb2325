"""Which GPUs have kernels for a precision: the least compute capability of each."""

from __future__ import annotations

__all__ = ["LEAST_CAPABILITY", "LEAST_OF_RTX"]

# Of the hardware: below it there are no kernels to choose from.
LEAST_CAPABILITY = {"fp8": (8, 9), "int4": (8, 0), "bf16": (8, 0)}
# TensorRT-RTX lists 7.5, but its compiler has no fp32 products there, and every graph has some (router, halting).
LEAST_OF_RTX = (8, 0)
