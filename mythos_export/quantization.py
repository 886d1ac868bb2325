"""The quantised precisions: what each does to a linear layer, and how its weights are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from mythos_export.number_formats import FORMATS, NumberFormat

__all__ = ["EMBEDDING", "QUANTIZED", "TABLE", "Choices", "MissingRange", "Quantization", "scale_shape", "stored_name"]

EMBEDDING = "embed"  # the embedding's table, as a layer
TABLE = "embed.weight.rows"  # the same quantised, as a parameter


class MissingRange(ValueError):
    """A recipe without a range that the graph needs."""


@dataclass(frozen=True)
class Quantization:
    """One way to quantise linear layers."""

    format: NumberFormat
    dtype: ir.DataType
    activations: bool  # are the inputs of a MatMul quantised too?
    tied_head: bool = False  # may the head read the embedding's int8 table?
    block: int | None = None  # weights along the contraction that share a scale; None: all of an output channel


@dataclass(frozen=True)
class Choices:
    """What a model's quantisation is to be, beyond its precision."""

    limits: Mapping[str, Sequence[float]] = field(default_factory=dict)  # by activation: one in all, or one per depth
    keep: frozenset[str] = frozenset()  # layers that stay in float


QUANTIZED = {
    "int8": Quantization(FORMATS["int8"], ir.DataType.INT8, activations=True, tied_head=True),
    "fp8": Quantization(FORMATS["fp8"], ir.DataType.FLOAT8E4M3FN, activations=True),
    "int4": Quantization(FORMATS["int4"], ir.DataType.INT4, activations=False, block=32),
}


def stored_name(weight: str, quantization: Quantization) -> str:
    """Name of the parameter that holds a weight quantised."""
    block = f"b{quantization.block}" if quantization.block else ""
    return f"{weight}.{quantization.format.name}{block}"


def scale_shape(shape: Sequence[int], quantization: Quantization) -> list[int]:
    """Shape of the scales of a weight [..., contraction, channels].

    [channels] of a matrix, [..., 1, channels] of a batch of them, [..., blocks, channels] where there are blocks.
    """
    if quantization.block is None:
        return [shape[-1]] if len(shape) == 2 else [*shape[:-2], 1, shape[-1]]
    return [*shape[:-2], math.ceil(shape[-2] / quantization.block), shape[-1]]
