"""A model as work is counted for it: from a config and a precision, or from a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mythos_export.bundle import CachePart
from mythos_export.linears import always_float, layer_of
from mythos_export.planning.cache import cache_size
from mythos_export.planning.devices import Device
from mythos_export.planning.devices import kernels as has_kernels
from mythos_export.planning.held import held_tensors
from mythos_export.planning.tensors import StoredTensor, file_bytes, total_bytes
from mythos_export.planning.weights import formulation, stored_tensors
from mythos_export.planning.work import Model
from mythos_export.quantization import QUANTIZED, Choices
from mythos_export.targets import TARGETS, quantization_of, settled
from reference_model.config import MythosConfig
from reference_model.parameters import parameter_shapes

__all__ = ["Stored", "model_of", "rows_of", "stored_from_config"]

_HALF = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Stored:
    """What is stored, and as what; the rest follows."""

    name: str
    config: MythosConfig
    target: str
    precision: str
    tensors: list[StoredTensor]
    file_bytes: int  # of the data file that holds them
    rows: list[CachePart]
    kept: frozenset[str] = frozenset()  # layers left in float, beyond those that the target leaves
    depths: tuple[int, ...] = ()  # the only loop counts that it runs; none where it runs any


def stored_from_config(name: str, config: MythosConfig, target: str, precision: str) -> Stored:
    """As an export would store it."""
    tensors = stored_tensors(config, target, precision)
    return Stored(name, config, target, precision, tensors, file_bytes(tensors), rows_of(config, precision))


def rows_of(config: MythosConfig, precision: str) -> list[CachePart]:
    """What the manifest's `cache` would be; unlike `mythos_export.signature` this needs no torch."""
    dtype, depths = _HALF.get(precision, "float32"), {"prelude": config.prelude_layers, "coda": config.coda_layers}
    if config.attn_type == "mla":
        parts = {"latent": [config.kv_lora_rank], "rope": [config.qk_rope_head_dim]}
    else:
        parts = {part: [config.n_kv_heads, config.head_dim] for part in ("key", "value")}
    return [
        CachePart(name=f"{stage}.{part}", depth=depths.get(stage, "loops"), row=row, dtype=dtype)
        for stage in ("prelude", "recurrent", "coda")
        for part, row in parts.items()
    ]


def model_of(stored: Stored, device: Device | None = None) -> Model:
    """Ready to count, as that device runs it.

    One without kernels for the precision dequantises and computes in fp32.
    """
    config, target, precision = stored.config, stored.target, stored.precision
    kernels = device is None or has_kernels(device, target, precision)
    fast = _arithmetic(config, target, precision) if kernels else "fp32"
    kept = settled(Choices(keep=stored.kept), target, config, precision).keep if precision in QUANTIZED else frozenset()
    depth = max(stored.depths, default=None)
    held = held_tensors(stored.tensors, target, None if device is None else device.kind, depth)
    dense = formulation(config, target, precision, Choices(keep=stored.kept)).dense
    return Model(
        config=config,
        tensors=held.tensors,
        stored=total_bytes(stored.tensors),
        packed=held.packed,
        cache=cache_size(stored.rows),
        arithmetic=_by_weight(config, fast, kept),
        attention="fp32" if precision in QUANTIZED else fast,
        dense=dense,
        reads_all=dense or held.converted,
        last_level_cache=0 if device is None else device.last_level_cache_bytes or 0,
    )


def _arithmetic(config: MythosConfig, target: str, precision: str) -> str:
    """What the products of linear layers are formed in."""
    if precision in QUANTIZED:
        quantization = quantization_of(target, precision, config)
        if quantization.activations:
            return precision
        return "int8" if quantization.dynamic_block else "fp32"  # weights alone are small
    if precision == "bf16" and not TARGETS[target].bfloat16_products:
        return "fp32"
    return precision


def _by_weight(config: MythosConfig, fast: str, kept: frozenset[str]) -> Mapping[str, str]:
    """By weight of the checkpoint; `kv_up`, which is two layers in the graph, by the faster of them."""
    found = {}
    for name in parameter_shapes(config):
        layer = layer_of(name)
        parts = [f"{layer}.key", f"{layer}.value"] if layer.endswith(".kv_up") else [layer]
        slow = always_float(name) or all(part in kept for part in parts)
        found[name] = "fp32" if slow else fast
    return found
