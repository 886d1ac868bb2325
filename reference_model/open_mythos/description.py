"""OpenMythos as an `Architecture`."""

from __future__ import annotations

import functools

from reference_model.architecture import (
    LOOP,
    Architecture,
    CachePart,
    Decision,
    ExpertGroup,
    Head,
    Loop,
    Shape,
    Stage,
    State,
    Work,
)
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.parameters import ROUTED_EXPERTS, parameters

__all__ = ["architecture"]


@functools.lru_cache(maxsize=8)
def architecture(config: MythosConfig) -> Architecture:
    """The description of a model of this config; for equal configs it is the same object."""
    prelude = Stage("prelude", "dense", config.prelude_layers)
    coda = Stage("coda", "dense", config.coda_layers)
    return Architecture(
        family="open-mythos",
        vocab_size=config.vocab_size,
        dim=config.dim,
        max_positions=config.max_seq_len,
        before=(prelude,),
        loop=_loop(config),
        after=(coda,),
        head=Head(tied=True, norm=True),
        cache=_cache(config),
        parameters=tuple(parameters(config)),
        work=_work(config),
        experts=(
            ExpertGroup(
                ROUTED_EXPERTS, LOOP, config.n_experts, config.n_experts_per_tok, config.dim, config.expert_dim
            ),
        ),
        decisions=(
            Decision("router", "between the last expert chosen and the first one not, over the spread of the scores"),
            Decision("halting", "of the halting probability spent, from the threshold"),
        ),
    )


def _loop(config: MythosConfig) -> Loop:
    states = (("hidden", "encoded"), ("output", "zeros"), ("cumulative_p", "zeros"))
    return Loop(
        stage=Stage(LOOP, "moe", 1),
        states=tuple(State(name, start, config.dim) for name, start in states),  # type: ignore[arg-type]
        readout="weighted",
        trained=config.max_loop_iters,
        default=config.max_loop_iters,
        may_exceed=True,  # deeper loops take the depth LoRA's last row
    )


def _cache(config: MythosConfig) -> tuple[CachePart, ...]:
    rows: dict[str, Shape] = dict.fromkeys(("key", "value"), (config.n_kv_heads, config.head_dim))
    if config.attn_type == "mla":
        rows = {"latent": (config.kv_lora_rank,), "rope": (config.qk_rope_head_dim,)}
    stages = (
        ("prelude", "prelude", config.prelude_layers, False),
        ("recurrent", LOOP, 1, True),
        ("coda", "coda", config.coda_layers, False),
    )
    return tuple(
        CachePart(f"{prefix}.{part}", stage, row, layers, per_loop)
        for prefix, stage, layers, per_loop in stages
        for part, row in rows.items()
    )


def _work(config: MythosConfig) -> Work:
    hidden = max(config.ffn_dim, config.shared_expert_dim)
    if config.attn_type == "mla":  # in latent space the latent is key and value
        latent, rope = config.kv_lora_rank, config.qk_rope_head_dim
        return Work(config.n_heads, latent + rope, config.n_heads * (2 * latent + rope), hidden)
    return Work(config.n_heads, config.head_dim, config.n_heads * 2 * config.head_dim, hidden)
