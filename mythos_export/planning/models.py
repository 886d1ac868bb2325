"""A model as work is counted for it: from a description and a precision, or from a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mythos_export.bundle import CachePart
from mythos_export.planning.cache import cache_size
from mythos_export.planning.devices import Device
from mythos_export.planning.devices import kernels as has_kernels
from mythos_export.planning.held import held_tensors
from mythos_export.planning.work import Model
from mythos_export.quantization import QUANTIZED, Choices
from mythos_export.signature import cache_parts
from mythos_export.targets import TARGETS, quantization_of, storage_of
from mythos_export.weights.layout import stored_tensors
from mythos_export.weights.tensors import StoredTensor, file_bytes, total_bytes
from reference_model.architecture import Architecture

__all__ = ["Stored", "model_of", "stored_from_config"]


@dataclass(frozen=True)
class Stored:
    """What is stored, and as what; the rest follows."""

    name: str
    architecture: Architecture
    target: str
    precision: str
    tensors: list[StoredTensor]
    file_bytes: int  # of the data file that holds them
    rows: list[CachePart]
    kept: frozenset[str] = frozenset()  # layers left in float, beyond those that the target leaves
    depths: tuple[int, ...] = ()  # the only loop counts that it runs; none where it runs any


def stored_from_config(name: str, architecture: Architecture, target: str, precision: str) -> Stored:
    """As an export would store it."""
    tensors = stored_tensors(architecture, storage_of(target, precision, architecture))
    rows = cache_parts(architecture, precision)
    return Stored(name, architecture, target, precision, tensors, file_bytes(tensors), rows)


def model_of(stored: Stored, device: Device | None = None) -> Model:
    """Ready to count, as that device runs it.

    One without kernels for the precision dequantises and computes in fp32.
    """
    architecture, target, precision = stored.architecture, stored.target, stored.precision
    kernels = device is None or has_kernels(device, target, precision)
    fast = _arithmetic(architecture, target, precision) if kernels else "fp32"
    kept = storage_of(target, precision, architecture, Choices(keep=stored.kept)).kept
    depth = max(stored.depths, default=None)
    held = held_tensors(stored.tensors, target, None if device is None else device.kind, depth)
    dense = TARGETS[target].experts(architecture, precision, Choices(keep=kept)) == "dense"
    return Model(
        architecture=architecture,
        tensors=held.tensors,
        stored=total_bytes(stored.tensors),
        packed=held.packed,
        cache=cache_size(stored.rows),
        arithmetic=_by_weight(architecture, fast, kept if precision in QUANTIZED else frozenset()),
        attention="fp32" if precision in QUANTIZED else fast,
        dense=dense,
        reads_all=dense or held.converted,
        last_level_cache=0 if device is None else device.last_level_cache_bytes or 0,
    )


def _arithmetic(architecture: Architecture, target: str, precision: str) -> str:
    """What the products of linear layers are formed in."""
    if precision in QUANTIZED:
        quantization = quantization_of(target, precision, architecture)
        if quantization.activations:
            return precision
        return "int8" if quantization.dynamic_block else "fp32"  # weights alone are small
    if precision == "bf16" and not TARGETS[target].bfloat16_products:
        return "fp32"
    return precision


def _by_weight(architecture: Architecture, fast: str, kept: frozenset[str]) -> Mapping[str, str]:
    """By weight of the checkpoint that something multiplies with; one of several layers by the fastest of them."""
    arithmetic = {}
    for parameter in architecture.parameters:
        products = [layer.name for layer in parameter.layers if not layer.lookup]
        if products:
            slow = parameter.role == "control" or kept.issuperset(products)
            arithmetic[parameter.name] = "fp32" if slow else fast
    return arithmetic
