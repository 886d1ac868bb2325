"""What each target takes: one entry a target, its passes, precisions and session options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_ir as ir

from mythos_export import passes
from mythos_export.minimum_runtime import FUSED_EXPERTS_SINCE
from mythos_export.quantization import HAZARDS, QUANTIZED, Choices, Quantization, blockwise
from mythos_export.weights.layout import DTYPES, Storage
from mythos_export.weights.tensors import float_type
from reference_model.architecture import Architecture
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

__all__ = ["TARGETS", "Formulation", "Target", "quantization_of", "settled", "storage_of"]

Passes = list[ir.passes.InPlacePass]
_NO_CHOICES = Choices()


# How the routed experts are computed: each on the tokens sent to it, every one on every token, or by one kernel over
# stacks of all.
Formulation = Literal["grouped", "dense", "fused"]


def _endangered(architecture: Architecture, precision: str) -> dict[str, str]:
    """Layers that read what the precision must not be used on."""
    reasons = HAZARDS.get(precision, {})
    return {
        layer.name: reasons[hazard]
        for parameter in architecture.parameters
        for hazard in sorted(parameter.hazards & reasons.keys())
        for layer in parameter.layers
    }


def _standard(architecture: Architecture, precision: str) -> Quantization:
    return QUANTIZED[precision]


def _grouped(architecture: Architecture, precision: str, choices: Choices) -> Formulation:
    return "grouped"


@dataclass(frozen=True)
class Target:
    """A family of runtimes and the graph it wants."""

    precisions: tuple[str, ...]
    opset: int
    lowerings: Callable[[MythosConfig, str, Choices], Passes]  # of a precision
    precision_passes: Callable[[MythosConfig, str, Choices], Passes]
    newest_opset: int = 24
    session: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by precision, ONNX Runtime's options
    quantization: Callable[[Architecture, str], Quantization] = _standard  # of a quantised precision
    # Layers that a precision leaves in float whatever the user asks for, and why.
    float_layers: Callable[[Architecture, str], dict[str, str]] = _endangered
    experts: Callable[[Architecture, str, Choices], Formulation] = _grouped
    bfloat16_products: bool = False  # does bf16 multiply in bf16, or only store it?
    linted: bool = False  # are the written graphs held against the list of what TensorRT does not take?


def quantization_of(target: str, precision: str, described: Architecture) -> Quantization:
    """What a quantised precision means for a target and a model.

    Raises:
        KeyError: the precision is not a quantised one, or the target does not have it.
    """
    if precision not in TARGETS[target].precisions:
        raise KeyError(precision)
    return TARGETS[target].quantization(described, precision)


def settled(choices: Choices, target: str, described: Architecture, precision: str) -> Choices:
    """The choices with the layers that the target leaves in float anyway; idempotent."""
    return replace(choices, keep=choices.keep | TARGETS[target].float_layers(described, precision).keys())


def storage_of(target: str, precision: str, described: Architecture, choices: Choices = _NO_CHOICES) -> Storage:
    """How a bundle of this target stores its weights.

    Args:
        choices: layers that stay in float besides those that the target leaves there anyway, and how old a runtime may
            be; ranges make no difference.

    Raises:
        KeyError: the target does not have that precision.
    """
    quantization = quantization_of(target, precision, described) if precision in QUANTIZED else None
    choices = settled(choices, target, described, precision)
    stacked = TARGETS[target].experts(described, precision, choices) == "fused"
    return Storage(float_type(precision), quantization, choices.keep, stacked)


def _portable(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    grouped = passes.LowerMoEGrouped(architecture(config))
    return [*_common(config, grouped, past_first=True), passes.SpreadPast()]


def _common(config: MythosConfig, experts: ir.passes.InPlacePass, *, past_first: bool) -> Passes:
    return [
        passes.LowerNorm(),
        passes.LowerRotary(),
        _attention(config, past_first=past_first),
        experts,
        passes.TransposeWeights(),
        passes.Hoist(),
    ]


def _attention(config: MythosConfig, *, past_first: bool) -> ir.passes.InPlacePass:
    if config.attn_type == "mla":
        return passes.LowerLatentAttention(
            architecture(config),
            heads=config.n_heads,
            rope_dim=config.qk_rope_head_dim,
            v_dim=config.v_head_dim,
            past_first=past_first,
        )
    return passes.LowerGroupedQueryAttention(heads=config.n_heads, head_dim=config.head_dim)


def _portable_precision(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    if precision == "fp32":
        return []
    if precision in QUANTIZED:
        return [passes.Quantize(QUANTIZED[precision], choices, architecture(config))]
    # ONNX Runtime has no bf16 MatMul on a CPU: bf16 is how weights and cache are stored.
    storage = _dtype(precision)
    compute = ir.DataType.FLOAT if storage == ir.DataType.BFLOAT16 else storage
    return [passes.ReducePrecision(storage, compute=compute, architecture=architecture(config))]


def _dtype(precision: str) -> ir.DataType:
    return next(dtype for dtype, name in DTYPES.items() if name == float_type(precision))


def _onnxruntime(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    described = architecture(config)
    if _onnxruntime_experts(described, precision, choices) == "grouped":
        return _portable(config, precision, choices)
    fused = passes.LowerMoEFused(blockwise(described, precision), described)
    return [*_common(config, fused, past_first=True), passes.SpreadPast()]


def _onnxruntime_experts(described: Architecture, precision: str, choices: Choices) -> Formulation:
    """May one kernel take all routed experts? It takes them in whole blocks, and none in float."""
    if precision not in QUANTIZED or not described.experts:
        return "grouped"
    block = blockwise(described, precision).block
    assert block is not None
    if choices.runtime is not None and choices.runtime < FUSED_EXPERTS_SINCE:
        return "grouped"
    whole = all(group.dim % block == 0 and group.hidden % block == 0 for group in described.experts)
    members = (parameter for parameter in described.parameters if parameter.expert is not None)
    floats = any(layer.name in choices.keep for parameter in members for layer in parameter.layers)
    return "fused" if whole and not floats else "grouped"


def _onnxruntime_precision(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    if precision in QUANTIZED:
        described = architecture(config)
        return [passes.QuantizeNBits(blockwise(described, precision), choices, described)]
    return _portable_precision(config, precision, choices)


def _onnxruntime_floats(described: Architecture, precision: str) -> dict[str, str]:
    if precision not in QUANTIZED:
        return {}
    reason = "absorbed into attention: a batch of small matrices, which MatMulNBits does not take"
    return {name: reason for name, layer in described.layers.items() if layer.view.groups is not None}


def _tensorrt(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    return _common(config, passes.LowerMoEDense(architecture(config)), past_first=False)


def _dense(described: Architecture, precision: str, choices: Choices) -> Formulation:
    return "dense"


def _tensorrt_precision(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    storage = _dtype(precision)
    if precision in QUANTIZED or storage == ir.DataType.FLOAT:
        return _portable_precision(config, precision, choices)
    # A GPU multiplies both halves; unlike ONNX Runtime on a CPU it needs no detour through fp32.
    half = passes.ReducePrecision(storage, compute=storage, architecture=architecture(config))
    return [half, passes.FloatScans()]


def _tensorrt_floats(described: Architecture, precision: str) -> dict[str, str]:
    if precision not in QUANTIZED:
        return {}
    floats = _endangered(described, precision)
    floats[described.lookup.name] = "TensorRT takes no Gather on an int8 table"
    block = QUANTIZED[precision].block
    if block is not None:
        products = ((name, layer) for name, layer in described.layers.items() if not layer.lookup)
        reason = f"TensorRT takes whole blocks only, and {block} does not divide its contraction"
        floats |= {name: reason for name, layer in products if layer.contraction % block}
    return floats


_INTEGER = {"disabled_optimizers": "MatMulAddFusion"}  # it makes a Gemm of MatMul and Add, and int8 is lost
# ONNX Runtime has no kernel for these on a CPU, and what it tries instead fails inside a body: it is
# to compute what the graph says, in float.
_AS_WRITTEN = {"session.disable_quant_qdq": "1"}

TARGETS: dict[str, Target] = {
    "portable": Target(
        precisions=("fp32", "fp16", "bf16", "int8", "fp8", "int4"),
        opset=21,
        lowerings=_portable,
        precision_passes=_portable_precision,
        session={"int8": _INTEGER, "fp8": _AS_WRITTEN, "int4": _AS_WRITTEN},
    ),
    "onnxruntime": Target(
        precisions=("fp32", "int8", "int4"),
        opset=21,
        lowerings=_onnxruntime,
        precision_passes=_onnxruntime_precision,
        quantization=blockwise,
        float_layers=_onnxruntime_floats,
        experts=_onnxruntime_experts,
    ),
    "tensorrt": Target(
        precisions=("fp32", "fp16", "bf16", "int8", "fp8", "int4"),
        opset=21,
        newest_opset=21,  # what TensorRT 10.3 reads
        lowerings=_tensorrt,
        precision_passes=_tensorrt_precision,
        session={"int8": _INTEGER, "fp8": _AS_WRITTEN, "int4": _AS_WRITTEN},
        float_layers=_tensorrt_floats,
        experts=_dense,
        bfloat16_products=True,
        linted=True,
    ),
}
