"""Weights in low precision on their way into a bundle, and back out of it.

`<weight>.int8` holds the numbers and `<weight>.int8.scale` their scales; so for fp8, for int4 in blocks
(`.int4b32`), and for the embedding's table (`.rows`: int8, a scale per row).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mythos_export.number_formats import FORMATS, NumberFormat, block_scales, channel_scales, dequantize, quantize

__all__ = ["Quantizer", "Stored", "restored", "stored_as"]

_SUFFIX = re.compile(r"(?P<weight>.+)\.(?P<kind>int8|fp8|rows|int4b(?P<block>[1-9][0-9]{0,4}))(?P<scale>\.scale)?")
_NUMPY = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn), "int4": np.dtype(ml_dtypes.int4)}

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """What a parameter's name says: the float weight behind it, and how it is kept."""

    weight: str
    format: NumberFormat
    block: int | None  # along the contraction (axis -2)
    axis: int  # what shares a scale where there are no blocks: the contraction (-2), or a row (-1)
    is_scale: bool


def stored_as(parameter: str) -> Stored | None:
    """Read a parameter's name; None for one that is kept in float."""
    found = _SUFFIX.fullmatch(parameter)
    if found is None:
        return None
    kind, block = found["kind"], found["block"]
    name = "int8" if kind == "rows" else "int4" if block else kind
    return Stored(
        weight=found["weight"],
        format=FORMATS[name],
        block=int(block) if block else None,
        axis=-1 if kind == "rows" else -2,
        is_scale=found["scale"] is not None,
    )


class Quantizer:
    """Quantises float weights as they are asked for; numbers and scales of one are made together."""

    def __init__(self, read: Callable[[str], Float]) -> None:
        """`read` gives a float weight in the layout of the graph."""
        self._read = read
        self._last: tuple[tuple[str, NumberFormat, int | None, int], Float, Float] | None = None

    def tensor(self, stored: Stored, name: str) -> ir.TensorProtocol:
        """The numbers, or the scales, as the graph wants them."""
        levels, scales = self._quantized(stored)
        if not stored.is_scale:
            return ir.Tensor(levels.astype(_NUMPY[stored.format.name]), name=name)
        return ir.Tensor(_as_stored(scales, stored), name=name)

    def _quantized(self, stored: Stored) -> tuple[Float, Float]:
        key = (stored.weight, stored.format, stored.block, stored.axis)
        if self._last is None or self._last[0] != key:
            weight = np.ascontiguousarray(self._read(stored.weight), np.float32)
            if stored.block is not None:
                scales = block_scales(weight, stored.block, stored.format)
            else:
                scales = channel_scales(weight, stored.axis, stored.format)
            self._last = key, quantize(weight, scales, stored.format, stored.block), scales
        return self._last[1:]


def _as_stored(scales: Float, stored: Stored) -> Float:
    """ONNX wants the scales of a matrix's channels, or rows, flat."""
    return scales.reshape(-1) if stored.block is None and scales.ndim == 2 else scales


def restored(stored: Stored, levels: NDArray[np.generic], scales: Float) -> Float:
    """The float weight that numbers and scales of a bundle stand for."""
    return dequantize(levels.astype(np.float32), scales, stored.block)
