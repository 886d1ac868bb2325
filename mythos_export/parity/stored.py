"""A bundle's own weights: held against the checkpoint, bit for bit, and handed to the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from mythos_export.bundle import Bundle, BundleError
from mythos_export.parity.source import load_graph
from mythos_export.quantization import TABLE
from mythos_export.quantized_weights import Quantizer, restored, stored_as
from mythos_export.weights import expected, source_of
from reference_model.checkpoint import WeightSource
from reference_model.config import MythosConfig
from reference_model.parameters import parameter_shapes

__all__ = ["StoredWeights", "compare_weights"]

_MIN_MAPPED = 1 << 16  # numbers; smaller tensors are not worth a mapping
_HEAD = "embed.weight.T"


@dataclass
class StoredWeights:
    """A bundle's parameters and how they compare with the checkpoint's."""

    compared: int = 0
    differing: list[str] = field(default_factory=list)
    mapped: dict[str, Tensor] = field(default_factory=dict)  # by the checkpoint's names, in the bundle's memory
    rounded: dict[str, torch.dtype] = field(default_factory=dict)  # by the checkpoint's names: kept in half precision
    quantized: dict[str, Callable[[], Tensor]] = field(default_factory=dict)  # by graph names: what they stand for

    def read(self, name: str, source: WeightSource, config: MythosConfig) -> Tensor:
        """A tensor of the checkpoint as the bundle stores it, fp32 and in upstream's layout."""
        if name in self.mapped:
            return self.mapped[name]
        if name == "embed.weight" and "embed.weight" in self.quantized:
            return self.quantized[name]()
        if f"{name}.T" in self.quantized:
            return self.quantized[f"{name}.T"]().T
        plain = source.read(name).to(self.rounded.get(name, torch.float32)).to(torch.float32)
        absorbed = [self.quantized.get(f"{name}.{part}") for part in ("key", "value")]
        return plain if not any(absorbed) else _reassembled(plain, absorbed, config)

    def head(self, source: WeightSource, config: MythosConfig) -> Tensor:
        """The output head's weight, [vocab, dim], which quantised need not be the embedding's."""
        if _HEAD in self.quantized:
            return self.quantized[_HEAD]().T
        if "head" in self.rounded:  # the table itself, kept in float for the head
            return source.read("embed.weight").to(torch.float32)
        return self.read("embed.weight", source, config)


def _reassembled(kv_up: Tensor, absorbed: list[Callable[[], Tensor] | None], config: MythosConfig) -> Tensor:
    """kv_up [h * (nope + v), rank] from its parts [h, nope, rank] and [h, rank, v]."""
    parts = list(kv_up.unflatten(0, (config.n_heads, -1)).split((config.qk_nope_head_dim, config.v_head_dim), dim=1))
    key, value = absorbed
    parts[0] = parts[0] if key is None else key()
    parts[1] = parts[1] if value is None else value().mT
    return torch.cat(parts, dim=1).flatten(0, 1)


def compare_weights(
    bundle: Bundle, source: WeightSource, config: MythosConfig, progress: Callable[[int], None]
) -> StoredWeights:
    """Hold every parameter of the bundle against what the checkpoint gives, bit for bit.

    fp32 tensors that are equal are handed on mapped, so the reference need not hold a second copy.

    Raises:
        BundleError: a parameter cannot be read.
    """
    stored = _parameters(bundle)
    result = StoredWeights(compared=len(stored))
    quantizer = Quantizer(lambda name: expected(name, torch.float32, source, config).numpy())
    found = set()
    for name, tensor in stored.items():
        kept = stored_as(name)
        if kept is None:
            found.add(_compare_float(bundle, name, tensor, result, source, config))
        else:
            found.add(source_of(kept.weight)[0])
            wanted = quantizer.tensor(kept, name).numpy()
            if not _same(_array(bundle, tensor), wanted):
                result.differing.append(name)
            if not kept.is_scale:
                graph_name = "embed.weight" if name == TABLE else kept.weight
                result.quantized[graph_name] = _restorer(bundle, name, stored)
        progress(tensor.nbytes)
    result.differing += sorted(parameter_shapes(config).keys() - found)  # left out, or put in the graph
    return result


def _compare_float(
    bundle: Bundle,
    name: str,
    stored: ir.ExternalTensor,
    result: StoredWeights,
    source: WeightSource,
    config: MythosConfig,
) -> str:
    """Compare a parameter kept in float; returns the checkpoint's name."""
    tensor = _as_torch(_array(bundle, stored))
    origin = source_of(name)[0]
    if not torch.equal(tensor, expected(name, tensor.dtype, source, config)):
        result.differing.append(name)
    elif tensor.dtype == torch.float32 and tensor.numel() >= _MIN_MAPPED and not name.endswith((".key", ".value")):
        result.mapped[origin] = tensor.T if name.endswith(".T") else tensor
    result.rounded[origin] = tensor.dtype
    return origin


def _parameters(bundle: Bundle) -> dict[str, ir.ExternalTensor]:
    model = load_graph(bundle, bundle.manifest.graphs[0].file)
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }


def _array(bundle: Bundle, stored: ir.ExternalTensor) -> np.ndarray:
    try:
        return stored.numpy()
    except (OSError, TypeError, ValueError) as error:  # beyond the file's end, or a file with several hard links
        raise BundleError(f"{bundle.path}: {stored.name} cannot be read ({error}); copy or export it again") from error


def _same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal to the last bit, of whatever type."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    return np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(wanted).tobytes()


def _restorer(bundle: Bundle, name: str, stored: dict[str, ir.ExternalTensor]) -> Callable[[], Tensor]:
    """Dequantises when asked: only one weight at a time need be in memory."""
    kept = stored_as(name)
    assert kept is not None

    def read() -> Tensor:
        scales = _array(bundle, stored[f"{name}.scale"])
        if kept.axis == -1:
            scales = scales[:, None]
        return torch.from_numpy(restored(kept, _array(bundle, stored[name]), scales))

    return read


def _as_torch(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mapping is read-only, and nobody writes to it
        return torch.from_numpy(array)
