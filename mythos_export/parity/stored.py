"""A bundle's own weights: held against the checkpoint, bit for bit, and handed to the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from mythos_export.bundle import Bundle, BundleError
from mythos_export.parity.source import load_graph
from mythos_export.weights.names import SCALE, read_name, rows_name
from mythos_export.weights.restore import TIED_HEAD, Restored, restored_tensors
from mythos_export.weights.write import expected, quantizer_of
from reference_model.architecture import Architecture
from reference_model.checkpoint import WeightSource

__all__ = ["StoredWeights", "compare_weights"]


@dataclass
class StoredWeights:
    """A bundle's parameters, and how they compare with the checkpoint's."""

    compared: int
    table: str  # the embedding's, by the checkpoint's name
    differing: list[str] = field(default_factory=list)
    parts: dict[str, list[Restored]] = field(default_factory=dict)  # by the checkpoint's names, what is as it should be

    def read(self, name: str, source: WeightSource) -> Tensor:
        """A tensor of the checkpoint with the values that the bundle stands for, fp32 and in upstream's layout.

        Where the bundle holds the same numbers in fp32, it is the bundle's own memory.
        """
        parts = self.parts.get(name, [])
        if len(parts) == 1 and parts[0].rows is None:
            return _as_torch(parts[0].read())
        whole = source.read(name).to(torch.float32, copy=True)
        for part in parts:
            whole[torch.from_numpy(part.rows)] = _as_torch(part.read())
        return whole

    def head(self, source: WeightSource) -> Tensor:
        """The output head's weight, [vocab, dim], which quantised need not be the embedding's."""
        (own,) = self.parts.get(TIED_HEAD, [None])
        return self.read(self.table, source) if own is None else _as_torch(own.read())


def compare_weights(
    bundle: Bundle, source: WeightSource, architecture: Architecture, progress: Callable[[int], None]
) -> StoredWeights:
    """Hold every parameter of the bundle against what the checkpoint gives, bit for bit.

    Raises:
        BundleError: a parameter cannot be read, or is none of this model.
    """
    stored = _parameters(bundle)
    table = architecture.table.name
    result, seen = StoredWeights(compared=len(stored), table=table), set()
    quantizer = quantizer_of(source, architecture)
    for name, tensor in stored.items():
        progress(tensor.nbytes)
        if (kept := read_name(name)) is not None and kept.is_scale:
            continue  # compared with its numbers
        array, scales = _array(bundle, tensor), None
        if kept is not None:
            scales = _array(bundle, _scales_of(bundle, name, stored))
        parts = _restored(bundle, name, array, scales, architecture)
        if scales is None:
            wanted = expected(name, _as_torch(array[:0]).dtype, source, architecture)
            differing = [] if torch.equal(_as_torch(array), wanted) else [name]
        else:
            differing = quantizer.differing(name, array, scales)
        result.differing += differing
        for part in parts:
            if name == table and rows_name(table) in stored:  # kept in float for the head alone
                part = replace(part, name=TIED_HEAD)
            seen.add(part.name)
            if not differing:
                result.parts.setdefault(part.name, []).append(part)
    result.differing += sorted(architecture.by_name.keys() - seen)  # left out, or put in the graph
    return result


def _parameters(bundle: Bundle) -> dict[str, ir.ExternalTensor]:
    model = load_graph(bundle, bundle.manifest.graphs[0].file)
    return {
        name: _vouched(value.const_value)
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }


def _vouched(stored: ir.ExternalTensor) -> ir.ExternalTensor:
    """Without onnx-ir's own look at the file, which refuses one with several hard links (of a bundle that is served).

    Opening the bundle has checked where its files lie, and their hashes.
    """
    return ir.ExternalTensor(
        stored.path, stored.offset, stored.length, stored.dtype, shape=stored.shape, name=stored.name, base_dir=""
    )


def _scales_of(bundle: Bundle, name: str, stored: dict[str, ir.ExternalTensor]) -> ir.ExternalTensor:
    if f"{name}{SCALE}" not in stored:
        raise BundleError(f"{bundle.path}: {name} has no scales; export it again")
    return stored[f"{name}{SCALE}"]


def _array(bundle: Bundle, stored: ir.ExternalTensor) -> NDArray[Any]:
    try:
        return stored.numpy()
    except (OSError, TypeError, ValueError) as error:  # beyond the file's end
        raise BundleError(f"{bundle.path}: {stored.name} cannot be read ({error}); copy or export it again") from error


def _restored(
    bundle: Bundle, name: str, array: NDArray[Any], scales: NDArray[Any] | None, architecture: Architecture
) -> list[Restored]:
    try:
        return restored_tensors(name, array, scales, architecture)
    except (KeyError, ValueError) as error:
        raise BundleError(f"{bundle.path}: {name} is no parameter of this model; export it again") from error


def _as_torch(array: NDArray[Any]) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mapping is read-only, and nobody writes to it
        return torch.from_numpy(array)
