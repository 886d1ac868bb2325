"""Names and shapes of all tensors of a model, from its config alone.

The exporter plans a trillion parameters from this table; a test holds it to what the modules really have.
"""

from __future__ import annotations

from reference_model.open_mythos.config import MythosConfig

__all__ = ["parameter_shapes"]

Shape = tuple[int, ...]


def parameter_shapes(config: MythosConfig) -> dict[str, Shape]:
    """Shape of every tensor of `MythosModel(config).state_dict()`, without building the model."""
    dim = config.dim
    shapes: dict[str, Shape] = {"embed.weight": (config.vocab_size, dim)}
    for stage, layers in (("prelude", config.prelude_layers), ("coda", config.coda_layers)):
        for layer in range(layers):
            shapes |= _attention_half(f"{stage}.{layer}", config)
            shapes |= _swiglu(f"{stage}.{layer}.ffn", dim, config.ffn_dim)
    shapes |= _attention_half("recurrent.block", config)
    shapes |= _mixture("recurrent.block.ffn", config)
    shapes |= {
        "recurrent.injection.log_A": (dim,),
        "recurrent.injection.log_dt": (1,),
        "recurrent.injection.B": (dim,),
        "recurrent.act.halt.weight": (1, dim),
        "recurrent.act.halt.bias": (1,),
        "recurrent.lora.down.weight": (config.lora_rank, dim),
        "recurrent.lora.B": (config.lora_rank, dim),
        "recurrent.lora.scale.weight": (config.max_loop_iters, config.lora_rank),
        "recurrent.norm.weight": (dim,),
        "norm.weight": (dim,),
    }
    return shapes


def _attention_half(block: str, config: MythosConfig) -> dict[str, Shape]:
    dim, heads = config.dim, config.n_heads
    norms = {f"{block}.attn_norm.weight": (dim,), f"{block}.ffn_norm.weight": (dim,)}
    if config.attn_type == "gqa":
        rows, kv_rows = heads * config.head_dim, config.n_kv_heads * config.head_dim
        linears = {"wq": (rows, dim), "wk": (kv_rows, dim), "wv": (kv_rows, dim), "wo": (dim, rows)}
    else:
        q_rank, kv_rank, nope, rope = (
            config.q_lora_rank,
            config.kv_lora_rank,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
        )
        norms |= {f"{block}.attn.q_norm.weight": (q_rank,), f"{block}.attn.kv_norm.weight": (kv_rank,)}
        linears = {
            "q_down": (q_rank, dim),
            "q_up_nope": (heads * nope, q_rank),
            "q_up_rope": (heads * rope, q_rank),
            "kv_down": (kv_rank + rope, dim),
            "kv_up": (heads * (nope + config.v_head_dim), kv_rank),
            "wo": (dim, heads * config.v_head_dim),
        }
    return norms | {f"{block}.attn.{name}.weight": shape for name, shape in linears.items()}


def _mixture(block: str, config: MythosConfig) -> dict[str, Shape]:
    experts = config.n_experts
    shapes: dict[str, Shape] = {f"{block}.router.weight": (experts, config.dim), f"{block}.router_bias": (experts,)}
    for index in range(experts):
        shapes |= _swiglu(f"{block}.routed_experts.{index}", config.dim, config.expert_dim)
    for index in range(config.n_shared_experts):
        shapes |= _swiglu(f"{block}.shared_experts.{index}", config.dim, config.shared_expert_dim)
    return shapes


def _swiglu(block: str, dim: int, hidden: int) -> dict[str, Shape]:
    return {
        f"{block}.gate.weight": (hidden, dim),
        f"{block}.up.weight": (hidden, dim),
        f"{block}.down.weight": (dim, hidden),
    }
