"""Weights on their way from a checkpoint into a bundle: one tensor in memory at a time.

A parameter of the graph is named after the checkpoint's tensor it comes from; a suffix says how it is
laid out. The same names lead back, so the parity check can map a bundle's weights instead of
reading the checkpoint a second time. `mythos_export.quantized_weights` knows the suffixes of low precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir import external_data
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from mythos_export.planning.tensors import ALIGNED_ABOVE, ALIGNMENT
from mythos_export.quantized_weights import Quantizer, stored_as
from reference_model.checkpoint import CheckpointError, WeightSource
from reference_model.open_mythos.config import MythosConfig

__all__ = ["DATA_FILE", "bind", "expected", "parameters_of", "source_of", "write"]

DATA_FILE = "model.onnx.data"
_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}

Layout = Callable[[Tensor, MythosConfig], Tensor]


def _plain(tensor: Tensor, config: MythosConfig) -> Tensor:
    return tensor


def _transposed(tensor: Tensor, config: MythosConfig) -> Tensor:
    return tensor.T


def _absorbed_key(kv_up: Tensor, config: MythosConfig) -> Tensor:
    """[h * (nope + v), rank] -> [h, nope, rank]."""
    return kv_up.unflatten(0, (config.n_heads, -1))[:, : config.qk_nope_head_dim]


def _absorbed_value(kv_up: Tensor, config: MythosConfig) -> Tensor:
    """[h * (nope + v), rank] -> [h, rank, v]."""
    return kv_up.unflatten(0, (config.n_heads, -1))[:, config.qk_nope_head_dim :].transpose(1, 2)


_LAYOUTS: dict[str, Layout] = {".T": _transposed, ".key": _absorbed_key, ".value": _absorbed_value}


def source_of(parameter: str) -> tuple[str, Layout]:
    """The checkpoint tensor a graph parameter is made from, and how."""
    for suffix, layout in _LAYOUTS.items():
        if parameter.endswith(suffix):
            return parameter.removesuffix(suffix), layout
    return parameter, _plain


def parameters_of(models: Iterable[ir.Model]) -> dict[str, ir.Value]:
    """The parameters of graphs that share weights, by name."""
    return {
        name: value for model in models for name, value in model.graph.initializers.items() if value.const_value is None
    }


def bind(
    parameters: dict[str, ir.Value], source: WeightSource, config: MythosConfig, order: Iterable[str] = ()
) -> list[ir.TensorProtocol]:
    """A tensor for each parameter, read from the source only when it is written.

    Args:
        order: names of parameters as the file is to hold them; one that is not among them comes last.
    """
    places = {name: place for place, name in enumerate(order)}
    quantizer = Quantizer(lambda name: expected(name, torch.float32, source, config).numpy(), config)
    in_order = sorted(parameters.items(), key=lambda each: places.get(each[0], len(places)))
    return [_lazy(value, source, config, quantizer) for _, value in in_order]


def expected(parameter: str, dtype: torch.dtype, source: WeightSource, config: MythosConfig) -> Tensor:
    """What a float parameter must hold, in its type and layout (a view where that takes no copy).

    Raises:
        CheckpointError: the checkpoint's tensor is not finite, or not in that type.
    """
    name, layout = source_of(parameter)
    return layout(_as_dtype(source.read(name), dtype, name), config)


def _lazy(value: ir.Value, source: WeightSource, config: MythosConfig, quantizer: Quantizer) -> ir.TensorProtocol:
    assert value.name is not None and value.shape is not None and value.dtype is not None
    name, dtype, shape, stored = value.name, value.dtype, value.shape, stored_as(value.name)

    def read() -> ir.TensorProtocol:
        if stored is not None:
            return quantizer.tensor(stored, name)
        return TorchTensor(expected(name, _DTYPES[dtype], source, config).contiguous(), name=name)

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
