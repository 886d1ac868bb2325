"""Which tensors a bundle's data file holds, and in which order: from a description alone, no graph is traced.

An export writes them in this order and a plan counts them. Names, shapes and types are those of the initializers of the
written graphs, to the last byte (tests compare them). What small constants a graph holds itself, among them scales of
activations, is not counted: kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mythos_export.quantization import Quantization
from mythos_export.weights.names import SCALE, Weight, experts_of, rows_name, stack_of, weights_of
from mythos_export.weights.tensors import FLOATS, Place, StoredTensor, is_large
from reference_model.architecture import EMBEDDING, HEAD, Architecture, ExpertGroup

__all__ = ["DTYPES", "Storage", "scale_shape", "stack_shapes", "stored_name", "stored_shape", "stored_tensors"]

DTYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT8E4M3FN: "float8e4m3fn",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "uint8",
    ir.DataType.INT4: "int4",
}


@dataclass(frozen=True)
class Storage:
    """How one target stores weights in one precision (`mythos_export.targets.storage_of`)."""

    dtype: str  # of matrices in float
    quantization: Quantization | None = None
    kept: frozenset[str] = frozenset()  # layers that stay in float
    stacked: bool = False  # do the routed experts lie in stacks, for a fused kernel?


def stored_tensors(architecture: Architecture, storage: Storage) -> list[StoredTensor]:
    """Every parameter in the data file of such a bundle, in the order of the file; all its graphs share them."""
    tensors = [*_stacks(architecture, storage)] if storage.stacked else []
    for weight in weights_of(architecture).values():
        parameter = weight.parameter
        if parameter.role == "table":
            tensors += _of_table(weight, storage)
        elif not (storage.stacked and parameter.expert is not None):
            tensors += _of_weight(weight, storage)
    return sorted(tensors, key=_write_order)


def stored_name(weight: str, quantization: Quantization, *, stacked: bool = False) -> str:
    """Name of the parameter that holds a weight, or a stack of them, quantised."""
    block = f"b{quantization.block}" if quantization.block else ""
    layout = "" if not quantization.packed else ".stacked" if stacked else ".packed"
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


def _write_order(tensor: StoredTensor) -> tuple[bool, bool, str]:
    """What is small comes first, for what is large begins at a page; the embedding comes last.

    But numbers and scales stay together, for they are made together.
    """
    small = tensor.dtype in FLOATS and not tensor.name.endswith(SCALE) and not is_large(tensor)
    embedding = tensor.place.stage == EMBEDDING or tensor.place == Place(HEAD, "output")
    return not small, embedding, tensor.name if embedding else ""


def _of_weight(weight: Weight, storage: Storage) -> list[StoredTensor]:
    if weight.parameter.role != "linear" or weight.layer is None:
        return [StoredTensor(weight.name, weight.shape, "float32", weight.place)]
    if storage.quantization is None or weight.layer.name in storage.kept:
        return [StoredTensor(weight.name, weight.shape, storage.dtype, weight.place)]
    return _quantized(weight, storage.quantization)


def _of_table(weight: Weight, storage: Storage) -> list[StoredTensor]:
    """A table, which is a tied head's weight too unless one of them is quantised without the other."""
    table, quantization = weight.parameter, storage.quantization
    lookup, product = (next((each for each in table.layers if each.lookup is wanted), None) for wanted in (True, False))
    assert lookup is not None and weight.layer is not None
    small_table = quantization is not None and lookup.name not in storage.kept
    small_head = quantization is not None and product is not None and product.name not in storage.kept
    if weight.layer.lookup:
        stays = not small_table or (product is not None and not small_head)
        whole = [StoredTensor(weight.name, weight.shape, storage.dtype, weight.place)] if stays else []
        return whole + (_rows(weight) if small_table else [])
    if quantization is None or not small_head or (small_table and quantization.tied_head):
        return []
    return _quantized(weight, quantization)


def _rows(table: Weight) -> list[StoredTensor]:
    name = rows_name(table.name)
    return [
        StoredTensor(name, table.shape, "int8", table.place),
        StoredTensor(f"{name}{SCALE}", table.shape[:1], "float32", table.place),
    ]


def _quantized(weight: Weight, quantization: Quantization) -> list[StoredTensor]:
    name, shape = stored_name(weight.name, quantization), weight.shape
    dtype = DTYPES[quantization.dtype]
    return [
        StoredTensor(name, tuple(stored_shape(shape, quantization)), dtype, weight.place),
        StoredTensor(f"{name}{SCALE}", tuple(scale_shape(shape, quantization)), "float32", weight.place),
    ]


def _stacks(architecture: Architecture, storage: Storage) -> Iterator[StoredTensor]:
    """All routed experts as the fused kernel reads them."""
    quantization = storage.quantization
    assert quantization is not None
    for group in architecture.experts:
        place = experts_of(group.name, architecture)[0]["down"].place
        for name, numbers, scales in stack_shapes(group, quantization):
            # the scales first: numbers that are written behind them find them in the file
            yield StoredTensor(f"{name}{SCALE}", scales, "float32", place)
            yield StoredTensor(name, numbers, DTYPES[quantization.dtype], place)


def stack_shapes(
    group: ExpertGroup, quantization: Quantization
) -> Iterator[tuple[str, tuple[int, int, int], tuple[int, int, int]]]:
    """Name of each stack of a group, and shapes of its numbers and scales.

    [experts, channels, bytes of the contraction] and [experts, channels, blocks].
    """
    assert quantization.block is not None
    gate_up, down = (stack_of(group.name, name) for name in ("gate_up", "down"))
    for stack, channels, contraction in ((gate_up, 2 * group.hidden, group.dim), (down, group.dim, group.hidden)):
        yield (
            stored_name(stack, quantization, stacked=True),
            (group.count, channels, quantization.bytes_of(contraction)),
            (group.count, channels, contraction // quantization.block),
        )
