"""The blocks of OpenMythos, from its config."""

from __future__ import annotations

from reference_model.components.attention import Attention, GroupedQueryAttention, LatentAttention
from reference_model.components.blocks import DenseBlock, MoEBlock
from reference_model.components.mlp import SwiGLU
from reference_model.components.moe import MixtureOfExperts, MixtureSizes
from reference_model.config import MythosConfig
from reference_model.ops import ExpertSizes

__all__ = ["EPSILON", "attention", "dense_block", "looped_block", "mixture_sizes"]

EPSILON = 1e-6  # of every norm; upstream has no field for it


def attention(config: MythosConfig) -> Attention:
    """`open_mythos.main.MLAttention` or `GQAttention`.

    Of MLA, upstream caches the latent before its norm and a copy of the rotated key per head; the outcome is the same
    in less memory.
    """
    if config.attn_type == "mla":
        return LatentAttention(
            config.dim,
            heads=config.n_heads,
            q_rank=config.q_lora_rank,
            kv_rank=config.kv_lora_rank,
            nope_dim=config.qk_nope_head_dim,
            rope_dim=config.qk_rope_head_dim,
            v_dim=config.v_head_dim,
            epsilon=EPSILON,
        )
    return GroupedQueryAttention(
        config.dim, heads=config.n_heads, kv_heads=config.n_kv_heads, head_dim=config.head_dim, interleaved=True
    )


def mixture_sizes(config: MythosConfig) -> MixtureSizes:
    """Sizes of `open_mythos.main.MoEFFN`."""
    routed = ExpertSizes(config.n_experts, config.n_experts_per_tok, config.dim, config.expert_dim)
    return MixtureSizes(routed, config.n_shared_experts, config.shared_expert_dim)


def dense_block(config: MythosConfig) -> DenseBlock:
    """A block of the prelude or the coda."""
    return DenseBlock(config.dim, attention(config), SwiGLU(config.dim, config.ffn_dim), EPSILON)


def looped_block(config: MythosConfig, *, with_experts: bool = True) -> MoEBlock:
    """The block that is looped."""
    mixture = MixtureOfExperts(mixture_sizes(config), with_experts=with_experts)
    return MoEBlock(config.dim, attention(config), mixture, EPSILON)
