"""Random weights for mixtures of experts, the same experts whatever layout a formulation wants them in.

A tensor is drawn from its name, when it is written: no more than one is in memory. What holds all experts is put
together from the tensors that hold one of them.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mythos_export.number_formats import FORMATS
from reference_model.open_mythos.parameters import ROUTED_EXPERTS
from tools.moe_graphs import Sizes

__all__ = ["drawn", "expert_bytes", "with_random_weights"]

_ALIGNMENT = 4096  # of a tensor in the file, so that it can be mapped
_EXPERT = re.compile(re.escape(ROUTED_EXPERTS) + r"\.\d+\.(?P<part>gate|up|down)\.weight\.T(\.(?P<format>int[48]).*)?")
_STACK = re.compile(re.escape(ROUTED_EXPERTS) + r"\.(?P<part>gate_up|gate|up|down)\.(?P<layout>.+)")
_SPREAD = 0.1  # of scales, about their mean


def with_random_weights(model: ir.Model, sizes: Sizes, file: Path) -> None:
    """Write the model with a value for every parameter, in a file beside it."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            assert value.shape is not None and value.dtype is not None
            make = functools.partial(_tensor, name, value.dtype, value.shape.numpy(), sizes)
            value.const_value = ir.LazyTensor(make, value.dtype, value.shape, name=name)
    ir.save(model, file, external_data=f"{file.name}.data", alignment=_ALIGNMENT, max_workers=1)


def expert_bytes(model: ir.Model, sizes: Sizes) -> int:
    """Of one routed expert's weights, their scales included."""
    parameters = (value for name, value in model.graph.initializers.items() if name.startswith(f"{ROUTED_EXPERTS}."))
    return sum(value.const_value.nbytes for value in parameters if value.const_value is not None) // sizes.experts


def drawn(name: str, dtype: ir.DataType, shape: Sequence[int], sizes: Sizes) -> NDArray[Any]:
    """A parameter of this name: numbers that leave activations about as large as they were."""
    found = _STACK.fullmatch(name)
    if found is None:
        return _of_expert(name, dtype, shape, sizes)
    experts = (_stacked(found, expert, dtype, shape[1:], sizes) for expert in range(shape[0]))
    whole = np.empty(shape, dtype.numpy())
    for expert, of_expert in zip(whole, experts):
        expert[...] = of_expert
    return whole


def _tensor(name: str, dtype: ir.DataType, shape: Sequence[int], sizes: Sizes) -> ir.TensorProtocol:
    return ir.Tensor(drawn(name, dtype, shape, sizes), name=name)


def _stacked(stack: re.Match[str], expert: int, dtype: ir.DataType, shape: Sequence[int], sizes: Sizes) -> NDArray[Any]:
    """One expert's part of a stack; rows of the gate's and of up's alternate where they are in one."""
    layout, parts = stack["layout"], stack["part"].split("_")
    rows, row = shape[0] // len(parts), shape[1]
    turned = layout == "rows"  # a float matrix whose rows are output channels; its expert's are its columns
    suffix = "" if layout in ("rows", "columns") else f".{layout.replace('stacked', 'packed')}"
    names = (f"{ROUTED_EXPERTS}.{expert}.{part}.weight.T{suffix}" for part in parts)
    single = [row, rows] if turned else [rows, row]
    members = [_of_expert(name, dtype, single, sizes) for name in names]
    return np.stack([each.T if turned else each for each in members], axis=1).reshape(shape)


def _of_expert(name: str, dtype: ir.DataType, shape: Sequence[int], sizes: Sizes) -> NDArray[Any]:
    found = _EXPERT.fullmatch(name)
    assert found is not None, name
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    bound = math.sqrt(3 / (sizes.expert_dim if found["part"] == "down" else sizes.dim))  # a variance of 1 / dim
    if name.endswith(".scale"):
        scales = draw.uniform(1 - _SPREAD, 1 + _SPREAD, shape) * bound / FORMATS[found["format"]].largest
        return scales.astype(np.float32)
    if dtype == ir.DataType.FLOAT:
        numbers = draw.random(math.prod(shape), np.float32)
        return ((2 * numbers - 1) * np.float32(bound)).reshape(shape)
    low, high = (0, 256) if dtype == ir.DataType.UINT8 else (-127, 128)
    return draw.integers(low, high, math.prod(shape), dtype.numpy()).reshape(shape)
