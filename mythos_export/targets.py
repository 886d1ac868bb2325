"""What each target takes: one entry a target, its passes, precisions and session options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from mythos_export import passes
from mythos_export.linears import contractions, layer_names
from mythos_export.minimum_runtime import FUSED_EXPERTS_SINCE
from mythos_export.quantization import EMBEDDING, QUANTIZED, ROUTED_EXPERTS, Choices, Quantization, blockwise
from reference_model.config import MythosConfig

__all__ = ["TARGETS", "Target", "quantization_of", "settled"]

Passes = list[ir.passes.InPlacePass]


def _reads_act_output(config: MythosConfig, precision: str) -> dict[str, str]:
    """The layers right behind the loop.

    A token that has spent little of its halting probability leaves an output that is small as a whole. One int8
    scale for all tokens rounds it to nothing, and the norm behind these layers scales what is lost back up. (fp8
    has an exponent, and weights alone do not care.)
    """
    if precision != "int8" or not config.coda_layers:
        return {}
    names = ("q_down", "kv_down") if config.attn_type == "mla" else ("wq", "wk", "wv")
    reason = "reads what ACT has weighted, which is tiny for some tokens: one int8 scale for all would lose them"
    return {f"coda.0.attn.{name}": reason for name in names}


def _standard(config: MythosConfig, precision: str) -> Quantization:
    return QUANTIZED[precision]


@dataclass(frozen=True)
class Target:
    """A family of runtimes and the graph it wants."""

    precisions: tuple[str, ...]
    opset: int
    lowerings: Callable[[MythosConfig, str, Choices], Passes]  # of a precision
    precision_passes: Callable[[MythosConfig, str, Choices], Passes]
    newest_opset: int = 24
    session: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by precision, ONNX Runtime's options
    quantization: Callable[[MythosConfig, str], Quantization] = _standard  # of a quantised precision
    # Layers that a precision leaves in float whatever the user asks for, and why.
    float_layers: Callable[[MythosConfig, str], dict[str, str]] = _reads_act_output
    bfloat16_products: bool = False  # does bf16 multiply in bf16, or only store it?
    linted: bool = False  # are the written graphs held against the list of what TensorRT does not take?


def quantization_of(target: str, precision: str, config: MythosConfig) -> Quantization:
    """What a quantised precision means for a target and a model.

    Raises:
        KeyError: the precision is not a quantised one, or the target does not have it.
    """
    if precision not in TARGETS[target].precisions:
        raise KeyError(precision)
    return TARGETS[target].quantization(config, precision)


def settled(choices: Choices, target: str, config: MythosConfig, precision: str) -> Choices:
    """The choices with the layers that the target leaves in float anyway; idempotent."""
    return replace(choices, keep=choices.keep | TARGETS[target].float_layers(config, precision).keys())


def _portable(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    return [*_common(config, past_first=True), passes.SpreadPast()]


def _common(config: MythosConfig, *, past_first: bool) -> Passes:
    return [
        passes.LowerNorm(),
        passes.LowerRotary(),
        _attention(config, past_first=past_first),
        passes.LowerMoEGrouped(
            experts=config.n_experts, top_k=config.n_experts_per_tok, dim=config.dim, expert_dim=config.expert_dim
        ),
        passes.TransposeWeights(),
        passes.Hoist(),
    ]


def _attention(config: MythosConfig, *, past_first: bool) -> ir.passes.InPlacePass:
    if config.attn_type == "mla":
        return passes.LowerLatentAttention(
            heads=config.n_heads,
            nope_dim=config.qk_nope_head_dim,
            rope_dim=config.qk_rope_head_dim,
            v_dim=config.v_head_dim,
            past_first=past_first,
        )
    return passes.LowerGroupedQueryAttention(heads=config.n_heads, head_dim=config.head_dim)


def _portable_precision(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    if precision == "fp32":
        return []
    if precision in QUANTIZED:
        return [passes.Quantize(QUANTIZED[precision], choices)]
    if precision == "fp16":
        return [passes.ReducePrecision(ir.DataType.FLOAT16, compute=ir.DataType.FLOAT16)]
    # ONNX Runtime has no bf16 MatMul on a CPU: bf16 is how weights and cache are stored.
    return [passes.ReducePrecision(ir.DataType.BFLOAT16, compute=ir.DataType.FLOAT)]


def _onnxruntime(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    lowerings = _portable(config, precision, choices)
    if precision not in QUANTIZED or not _fits_fused(config, precision, choices):
        return lowerings
    fused = passes.LowerMoEFused(
        blockwise(config, precision),
        experts=config.n_experts,
        top_k=config.n_experts_per_tok,
        dim=config.dim,
        expert_dim=config.expert_dim,
    )
    return [fused if isinstance(each, passes.LowerMoEGrouped) else each for each in lowerings]


def _fits_fused(config: MythosConfig, precision: str, choices: Choices) -> bool:
    """May one kernel take all routed experts? It takes them in whole blocks, and none in float."""
    block = blockwise(config, precision).block
    assert block is not None
    if choices.runtime is not None and choices.runtime < FUSED_EXPERTS_SINCE:
        return False
    kept = any(layer.startswith(f"{ROUTED_EXPERTS}.") for layer in choices.keep)
    return not kept and config.dim % block == 0 and config.expert_dim % block == 0


def _onnxruntime_precision(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    if precision in QUANTIZED:
        return [passes.QuantizeNBits(blockwise(config, precision), choices)]
    return _portable_precision(config, precision, choices)


def _onnxruntime_floats(config: MythosConfig, precision: str) -> dict[str, str]:
    if precision not in QUANTIZED:
        return {}
    reason = "absorbed into attention: a batch of small matrices, which MatMulNBits does not take"
    return {layer: reason for layer in layer_names(config) if layer.endswith((".kv_up.key", ".kv_up.value"))}


def _tensorrt(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    dense = passes.LowerMoEDense(experts=config.n_experts, dim=config.dim, expert_dim=config.expert_dim)
    return [dense if isinstance(each, passes.LowerMoEGrouped) else each for each in _common(config, past_first=False)]


def _tensorrt_precision(config: MythosConfig, precision: str, choices: Choices) -> Passes:
    if precision in _HALF:
        # A GPU multiplies both halves; unlike ONNX Runtime on a CPU it needs no detour through fp32.
        return [passes.ReducePrecision(_HALF[precision], compute=_HALF[precision]), passes.FloatScans()]
    return _portable_precision(config, precision, choices)


def _tensorrt_floats(config: MythosConfig, precision: str) -> dict[str, str]:
    if precision not in QUANTIZED:
        return {}
    floats = _reads_act_output(config, precision)
    floats[EMBEDDING] = "TensorRT takes no Gather on an int8 table"
    block = QUANTIZED[precision].block
    if block is not None:
        reason = f"TensorRT takes whole blocks only, and {block} does not divide its contraction"
        floats |= {layer: reason for layer, size in contractions(config).items() if size % block}
    return floats


_HALF = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
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
    ),
    "tensorrt": Target(
        precisions=("fp32", "fp16", "bf16", "int8", "fp8", "int4"),
        opset=21,
        newest_opset=21,  # what TensorRT 10.3 reads
        lowerings=_tensorrt,
        precision_passes=_tensorrt_precision,
        session={"int8": _INTEGER, "fp8": _AS_WRITTEN, "int4": _AS_WRITTEN},
        float_layers=_tensorrt_floats,
        bfloat16_products=True,
        linted=True,
    ),
}
