"""What each target takes: one entry a target, its passes, precisions and session options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from mythos_export import passes
from mythos_export.quantization import QUANTIZED, Choices
from reference_model.config import MythosConfig

__all__ = ["TARGETS", "Target"]

Passes = list[ir.passes.InPlacePass]


@dataclass(frozen=True)
class Target:
    """A family of runtimes and the graph it wants."""

    precisions: tuple[str, ...]
    opset: int
    lowerings: Callable[[MythosConfig], Passes]
    precision_passes: Callable[[str, Choices], Passes]
    newest_opset: int = 24
    session: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by precision, ONNX Runtime's options


def _portable(config: MythosConfig) -> Passes:
    return [
        passes.LowerNorm(),
        _attention(config),
        passes.LowerMoEGrouped(
            experts=config.n_experts, top_k=config.n_experts_per_tok, dim=config.dim, expert_dim=config.expert_dim
        ),
        passes.TransposeWeights(),
    ]


def _attention(config: MythosConfig) -> ir.passes.InPlacePass:
    if config.attn_type == "mla":
        return passes.LowerLatentAttention(
            heads=config.n_heads, nope_dim=config.qk_nope_head_dim, v_dim=config.v_head_dim
        )
    return passes.LowerGroupedQueryAttention(heads=config.n_heads, head_dim=config.head_dim)


def _portable_precision(precision: str, choices: Choices) -> Passes:
    if precision == "fp32":
        return []
    if precision in QUANTIZED:
        return [passes.Quantize(QUANTIZED[precision], choices)]
    if precision == "fp16":
        return [passes.ReducePrecision(ir.DataType.FLOAT16, compute=ir.DataType.FLOAT16)]
    # ONNX Runtime has no bf16 MatMul on a CPU: bf16 is how weights and cache are stored.
    return [passes.ReducePrecision(ir.DataType.BFLOAT16, compute=ir.DataType.FLOAT)]


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
}
