"""Weights on their way from a checkpoint into a bundle: one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir import external_data
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from mythos_export.graph_parts import sizes
from mythos_export.weights.layout import DTYPES
from mythos_export.weights.names import read_name, weight_of
from mythos_export.weights.store import Quantizer
from mythos_export.weights.tensors import ALIGNED_ABOVE, ALIGNMENT, StoredTensor
from mythos_export.weights.views import cut_out
from reference_model.architecture import Architecture
from reference_model.checkpoint import CheckpointError, WeightSource

__all__ = ["DATA_FILE", "LayoutError", "bind", "expected", "parameters_of", "quantizer_of", "write"]

DATA_FILE = "model.onnx.data"


class LayoutError(RuntimeError):
    """The graphs of a bundle want other weights than its layout says."""


def parameters_of(models: Iterable[ir.Model]) -> dict[str, ir.Value]:
    """The parameters of graphs that share weights, by name."""
    return {
        name: value for model in models for name, value in model.graph.initializers.items() if value.const_value is None
    }


def bind(
    parameters: dict[str, ir.Value],
    source: WeightSource,
    architecture: Architecture,
    planned: Sequence[StoredTensor] | None = None,
) -> list[ir.TensorProtocol]:
    """A tensor for each parameter, read from the source only when it is written.

    Args:
        planned: what the file is to hold, in order; by default what the graphs want, in theirs.

    Raises:
        LayoutError: what is planned is not what the graphs want (a defect of ours).
    """
    if planned is not None:
        _check_planned(parameters, planned)
        parameters = {tensor.name: parameters[tensor.name] for tensor in planned}
    quantizer = quantizer_of(source, architecture)
    return [_lazy(value, source, architecture, quantizer) for value in parameters.values()]


def _check_planned(parameters: dict[str, ir.Value], planned: Sequence[StoredTensor]) -> None:
    wanted = {
        name: (sizes(value), DTYPES.get(value.dtype or ir.DataType.UNDEFINED)) for name, value in parameters.items()
    }
    ours = {tensor.name: (list(tensor.shape), tensor.dtype) for tensor in planned}
    for name in sorted(wanted.keys() | ours.keys()):
        if wanted.get(name) != ours.get(name):
            raise LayoutError(f"{name}: the graphs want {wanted.get(name)}, the layout says {ours.get(name)}")


def quantizer_of(source: WeightSource, architecture: Architecture) -> Quantizer:
    """One that reads a checkpoint."""
    return Quantizer(lambda name: expected(name, torch.float32, source, architecture).numpy(), architecture)


def expected(parameter: str, dtype: torch.dtype, source: WeightSource, architecture: Architecture) -> Tensor:
    """What a float parameter must hold, in its type and layout (a view where that takes no copy).

    Raises:
        ValueError: the model has no such weight.
        CheckpointError: the checkpoint's tensor is not finite, or not in that type.
    """
    weight = weight_of(parameter, architecture)
    name = weight.parameter.name
    return cut_out(_as_dtype(source.read(name), dtype, name), weight.view)


def _lazy(value: ir.Value, source: WeightSource, architecture: Architecture, quantizer: Quantizer) -> ir.TensorProtocol:
    assert value.name is not None and value.shape is not None and value.dtype is not None
    name, dtype, shape, stored = value.name, value.dtype, value.shape, read_name(value.name)

    def read() -> ir.TensorProtocol:
        if stored is not None:
            return quantizer.tensor(stored, name)
        torch_dtype = getattr(torch, DTYPES[dtype])
        return TorchTensor(expected(name, torch_dtype, source, architecture).contiguous(), name=name)

    return ir.LazyTensor(read, dtype=dtype, shape=shape, name=name)


def _as_dtype(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    _check_finite(tensor, name, "has NaN or infinite values; the checkpoint is damaged or its training diverged")
    if tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    if dtype == torch.float16:
        _check_finite(converted, name, "has values beyond fp16's 65504; use --precision bf16 or fp32")
    return converted


def _check_finite(tensor: Tensor, name: str, complaint: str) -> None:
    # The sum is finite for all but absurd weights, and needs no second tensor in memory.
    if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
        raise CheckpointError(f"{name}: {complaint}")


def write(
    models: Iterable[ir.Model], tensors: list[ir.TensorProtocol], folder: Path, progress: Callable[[str, int], None]
) -> None:
    """Stream the tensors to the data file and point every graph's parameters at it.

    Args:
        progress: called with each tensor's name and bytes.
    """

    def done(tensor: ir.TensorProtocol, info: external_data.CallbackInfo) -> None:
        progress(str(tensor.name), tensor.nbytes)

    written = external_data.convert_tensors_to_external(
        tensors, folder, DATA_FILE, callback=done, alignment=ALIGNMENT, align_threshold=ALIGNED_ABOVE
    )
    by_name = {tensor.name: tensor for tensor in written}
    for model in models:
        for name, value in model.graph.initializers.items():
            if value.const_value is None:
                value.const_value = by_name[name]
