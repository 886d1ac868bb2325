"""The quantised precisions: what each does to a linear layer, and how its weights are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir

from mythos_export.number_formats import FORMATS, NumberFormat

__all__ = [
    "EMBEDDING",
    "QUANTIZED",
    "ROUTED_EXPERTS",
    "STACKS",
    "TABLE",
    "Choices",
    "MissingRange",
    "Quantization",
    "blockwise",
    "scale_shape",
    "stored_name",
    "stored_shape",
]

EMBEDDING = "embed"  # the embedding's table, as a layer
TABLE = "embed.weight.rows"  # the same quantised, as a parameter
ROUTED_EXPERTS = "recurrent.block.ffn.routed_experts"
# Weights of all routed experts as one parameter, and what an expert puts into it: row 2i is the gate's, 2i + 1 up's.
STACKS = {f"{ROUTED_EXPERTS}.gate_up": ("gate", "up"), f"{ROUTED_EXPERTS}.down": ("down",)}


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
    packed: bool = False  # stored as ONNX Runtime's own operators read it (`mythos_export.packing`)
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
_BLOCKS = (128, 64, 32)  # that MatMulNBits and QMoE have kernels for; the larger, the quicker


class _Sizes(Protocol):
    """A model's config, or as much of it as decides."""

    @property
    def dim(self) -> int: ...

    @property
    def expert_dim(self) -> int: ...


def blockwise(sizes: _Sizes, precision: str) -> Quantization:
    """int8 or int4 as ONNX Runtime's MatMulNBits and QMoE compute it, in the largest blocks that its experts take.

    At accuracy level 4 these multiply integers: each block of a row of activations is rounded to int8 as it comes.
    QMoE wants whole blocks; where none fits, the smallest wastes least on what fills up the last one.
    """
    fitting = (block for block in _BLOCKS if not sizes.dim % block and not sizes.expert_dim % block)
    block = next(fitting, _BLOCKS[-1])
    return Quantization(
        FORMATS[precision], ir.DataType.UINT8, activations=False, block=block, packed=True, dynamic_block=block
    )


def stored_name(weight: str, quantization: Quantization) -> str:
    """Name of the parameter that holds a weight (or a stack of them) quantised."""
    block = f"b{quantization.block}" if quantization.block else ""
    layout = "" if not quantization.packed else ".stacked" if weight in STACKS else ".packed"
    return f"{weight}.{quantization.format.name}{block}{layout}"


def stored_shape(shape: Sequence[int], quantization: Quantization) -> list[int]:
    """Shape of the parameter that holds a weight [..., contraction, channels].

    [channels, blocks, bytes of a block] where it is packed: int4 puts two numbers into a byte. The last block is
    filled up.
    """
    if not quantization.packed:
        return list(shape)
    assert quantization.block is not None
    contraction, channels = shape
    return [channels, math.ceil(contraction / quantization.block), quantization.bytes_of(quantization.block)]


def scale_shape(shape: Sequence[int], quantization: Quantization) -> list[int]:
    """Shape of the scales of a weight [..., contraction, channels].

    [channels] of a matrix, [..., 1, channels] of a batch of them, [..., blocks, channels] where there are blocks,
    [channels, blocks] where they are packed.
    """
    if quantization.packed:
        return stored_shape(shape, quantization)[:2]
    if quantization.block is None:
        return [shape[-1]] if len(shape) == 2 else [*shape[:-2], 1, shape[-1]]
    return [*shape[:-2], math.ceil(shape[-2] / quantization.block), shape[-1]]
