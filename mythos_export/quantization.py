"""The quantised precisions: what each does to a linear layer, and how its weights are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from mythos_export.number_formats import FORMATS, NumberFormat
from reference_model.architecture import HALTING_WEIGHTED, Architecture

__all__ = ["HAZARDS", "QUANTIZED", "Choices", "MissingRange", "Quantization", "blockwise"]


class MissingRange(ValueError):
    """A recipe without a range that the graph needs."""


@dataclass(frozen=True)
class Quantization:
    """One way to quantise linear layers."""

    format: NumberFormat
    dtype: ir.DataType
    activations: bool  # are the inputs of a MatMul quantised too, by ranges that were calibrated?
    tied_head: bool = False  # may the head read the embedding's int8 table?
    block: int | None = None  # weights along the contraction that share a scale; None: all of an output channel
    packed: bool = False  # stored as ONNX Runtime's own operators read it (`mythos_export.weights.packing`)
    # Activations along the contraction that the kernel rounds to int8 by their own largest; None: it does not.
    dynamic_block: int | None = None

    def bytes_of(self, numbers: int) -> int:
        """What so many of them take, packed."""
        return numbers * self.format.bits // 8


@dataclass(frozen=True)
class Choices:
    """What a model's quantisation is to be, beyond its precision."""

    limits: Mapping[str, Sequence[float]] = field(default_factory=dict)  # by activation: one in all, or one per depth
    keep: frozenset[str] = frozenset()  # layers that stay in float
    runtime: tuple[int, ...] | None = None  # the oldest ONNX Runtime that is to run it; None: only newer ones need to


# In standard ONNX; what another target does instead, its entry in `mythos_export.targets` says.
QUANTIZED = {
    "int8": Quantization(FORMATS["int8"], ir.DataType.INT8, activations=True, tied_head=True),
    "fp8": Quantization(FORMATS["fp8"], ir.DataType.FLOAT8E4M3FN, activations=True),
    "int4": Quantization(FORMATS["int4"], ir.DataType.INT4, activations=False, block=32),
}
# What a precision must not be used on, and why. (fp8 has an exponent, and weights alone do not care.)
HAZARDS = {
    "int8": {
        HALTING_WEIGHTED: "reads what ACT has weighted, which is tiny for some tokens: "
        "one int8 scale for all would lose them"
    }
}
_BLOCKS = (128, 64, 32)  # that MatMulNBits and QMoE have kernels for; the larger, the quicker


def blockwise(architecture: Architecture, precision: str) -> Quantization:
    """int8 or int4 as ONNX Runtime's MatMulNBits and QMoE compute it, in the largest blocks that its experts take.

    At accuracy level 4 these multiply integers: each block of a row of activations is rounded to int8 as it comes.
    QMoE wants whole blocks; where none fits, the smallest wastes least on what fills up the last one.
    """
    widths = {architecture.dim, *(group.hidden for group in architecture.experts)}
    block = next((block for block in _BLOCKS if not any(width % block for width in widths)), _BLOCKS[-1])
    return Quantization(
        FORMATS[precision], ir.DataType.UINT8, activations=False, block=block, packed=True, dynamic_block=block
    )
