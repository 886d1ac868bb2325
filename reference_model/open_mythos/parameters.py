"""All tensors of an OpenMythos model and what each is for, from its config alone.

The exporter plans a trillion parameters from this table; a test holds it to what the modules really have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from reference_model.architecture import (
    EMBEDDING,
    HALTING_WEIGHTED,
    HEAD,
    LOOP,
    WHOLE,
    Control,
    Expert,
    Layer,
    Parameter,
    Shape,
    View,
)
from reference_model.open_mythos.config import MythosConfig

__all__ = ["ROUTED_EXPERTS", "parameter_shapes", "parameters"]

_BLOCK = "recurrent.block"
ROUTED_EXPERTS = f"{_BLOCK}.ffn.routed_experts"

# Cheap, and each of them steers a feedback loop: who computes a token, when it halts, what depth it believes in.
_HALTING = Control("recurrent.act.*", "halting")
_DEPTH_LORA = Control("recurrent.lora.*", "depth LoRA")
_INJECTION = Control("recurrent.injection.*", "injection")
_ROUTER = Control(f"{_BLOCK}.ffn.router*", "router")

_MATRICES: tuple[Literal["gate", "up", "down"], ...] = ("gate", "up", "down")


def parameter_shapes(config: MythosConfig) -> dict[str, Shape]:
    """Shape of every tensor of `MythosModel(config).state_dict()`, without building the model."""
    return {parameter.name: parameter.shape for parameter in parameters(config)}


def parameters(config: MythosConfig) -> Iterator[Parameter]:
    """Every tensor, in the order of the description."""
    vocab, dim = config.vocab_size, config.dim
    uses = (Layer("head", dim), Layer("embed", dim, WHOLE, lookup=True))
    yield Parameter("embed.weight", (vocab, dim), "table", EMBEDDING, "table", uses)
    for stage, layers in (("prelude", config.prelude_layers), ("coda", config.coda_layers)):
        for layer in range(layers):
            behind_loop = stage == "coda" and layer == 0
            yield from _attention_half(f"{stage}.{layer}", stage, config, behind_loop=behind_loop)
            yield from _swiglu(f"{stage}.{layer}.ffn", stage, "feed-forward", dim, config.ffn_dim)
    yield from _attention_half(_BLOCK, LOOP, config)
    yield from _mixture(f"{_BLOCK}.ffn", config)
    yield from _loop(config)
    yield Parameter("norm.weight", (dim,), "vector", HEAD, "norms")


def _attention_half(block: str, stage: str, config: MythosConfig, *, behind_loop: bool = False) -> Iterator[Parameter]:
    yield _norm(f"{block}.attn_norm", stage, config.dim)
    yield _norm(f"{block}.ffn_norm", stage, config.dim)
    attention = _latent_attention if config.attn_type == "mla" else _grouped_query_attention
    yield from attention(f"{block}.attn", stage, config, frozenset({HALTING_WEIGHTED}) if behind_loop else frozenset())


def _grouped_query_attention(
    block: str, stage: str, config: MythosConfig, hazards: frozenset[str]
) -> Iterator[Parameter]:
    rows, kv_rows = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    for name, out in (("wq", rows), ("wk", kv_rows), ("wv", kv_rows)):
        yield _linear(f"{block}.{name}", stage, "attention", (out, config.dim), hazards=hazards)
    yield _linear(f"{block}.wo", stage, "attention", (config.dim, rows))


def _latent_attention(block: str, stage: str, config: MythosConfig, hazards: frozenset[str]) -> Iterator[Parameter]:
    dim, heads, q_rank, kv_rank = config.dim, config.n_heads, config.q_lora_rank, config.kv_lora_rank
    nope, rope, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    yield _norm(f"{block}.q_norm", stage, q_rank)
    yield _norm(f"{block}.kv_norm", stage, kv_rank)
    yield _linear(f"{block}.q_down", stage, "attention", (q_rank, dim), hazards=hazards)
    yield _linear(f"{block}.q_up_nope", stage, "attention", (heads * nope, q_rank))
    yield _linear(f"{block}.q_up_rope", stage, "attention", (heads * rope, q_rank))
    yield _linear(f"{block}.kv_down", stage, "attention", (kv_rank + rope, dim), hazards=hazards)
    # [heads * (nope + v), rank], absorbed: its keys' part into the query, its values' part into the output
    absorbed = (
        Layer(f"{block}.kv_up.key", nope, View(".key", groups=heads, stop=nope)),
        Layer(f"{block}.kv_up.value", kv_rank, View(".value", transposed=True, groups=heads, start=nope)),
    )
    yield Parameter(f"{block}.kv_up.weight", (heads * (nope + v), kv_rank), "linear", stage, "attention", absorbed)
    yield _linear(f"{block}.wo", stage, "attention", (dim, heads * v))


def _mixture(block: str, config: MythosConfig) -> Iterator[Parameter]:
    dim, experts = config.dim, config.n_experts
    yield _control(f"{block}.router.weight", (experts, dim), _ROUTER, Layer(f"{block}.router", dim))
    yield _control(f"{block}.router_bias", (experts,), _ROUTER)
    for index in range(experts):
        yield from _swiglu(f"{block}.routed_experts.{index}", LOOP, "routed experts", dim, config.expert_dim, index)
    for index in range(config.n_shared_experts):
        yield from _swiglu(f"{block}.shared_experts.{index}", LOOP, "shared experts", dim, config.shared_expert_dim)


def _loop(config: MythosConfig) -> Iterator[Parameter]:
    """What only the loop has."""
    dim, rank = config.dim, config.lora_rank
    yield _control("recurrent.injection.log_A", (dim,), _INJECTION)
    yield _control("recurrent.injection.log_dt", (1,), _INJECTION)
    yield _control("recurrent.injection.B", (dim,), _INJECTION)
    yield _control("recurrent.act.halt.weight", (1, dim), _HALTING, Layer("recurrent.act.halt", dim))
    yield _control("recurrent.act.halt.bias", (1,), _HALTING)
    yield _control("recurrent.lora.down.weight", (rank, dim), _DEPTH_LORA, Layer("recurrent.lora.down", dim))
    yield _control("recurrent.lora.B", (rank, dim), _DEPTH_LORA, Layer("recurrent.lora.B", rank, WHOLE))
    by_depth = Layer("recurrent.lora.scale", rank, WHOLE, lookup=True)
    yield _control("recurrent.lora.scale.weight", (config.max_loop_iters, rank), _DEPTH_LORA, by_depth)
    yield _norm("recurrent.norm", LOOP, dim)


def _swiglu(block: str, stage: str, part: str, dim: int, hidden: int, expert: int | None = None) -> Iterator[Parameter]:
    for matrix in _MATRICES:
        shape = (dim, hidden) if matrix == "down" else (hidden, dim)
        if expert is None:
            yield _linear(f"{block}.{matrix}", stage, part, shape)
            continue
        layer = Layer(f"{ROUTED_EXPERTS}.*.{matrix}", shape[1])
        member = Expert(ROUTED_EXPERTS, expert, matrix)
        yield Parameter(f"{block}.{matrix}.weight", shape, "linear", stage, part, (layer,), expert=member)


def _linear(
    module: str, stage: str, part: str, shape: tuple[int, int], *, hazards: frozenset[str] = frozenset()
) -> Parameter:
    return Parameter(f"{module}.weight", shape, "linear", stage, part, (Layer(module, shape[1]),), hazards=hazards)


def _norm(module: str, stage: str, dim: int) -> Parameter:
    return Parameter(f"{module}.weight", (dim,), "vector", stage, "norms")


def _control(name: str, shape: Shape, control: Control, *layers: Layer) -> Parameter:
    return Parameter(name, shape, "control", LOOP, control.reason, layers, control)
