"""Pre-norm blocks of grouped-query attention and SwiGLU, rotary positions in halves, a head of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reference_model.components.attention import GroupedQueryAttention, visible_keys
from reference_model.components.blocks import DenseBlock
from reference_model.components.component import Component
from reference_model.components.mlp import SwiGLU
from reference_model.components.norms import RMSNorm
from reference_model.components.rope import rope_at, rope_frequencies
from reference_model.ops import Rows

__all__ = ["PlainConfig", "PlainDecoder", "plain_block"]


@dataclass(frozen=True)
class PlainConfig:
    """Sizes; heads may be wider or narrower than their share of `dim`."""

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_dim: int
    theta: float = 10000.0
    epsilon: float = 1e-5
    bias: bool = False  # of query, key and value
    query_key_norm: bool = False


def plain_block(config: PlainConfig) -> DenseBlock:
    """One layer."""
    attention = GroupedQueryAttention(
        config.dim,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        interleaved=False,
        bias=config.bias,
        norm_epsilon=config.epsilon if config.query_key_norm else None,
    )
    return DenseBlock(config.dim, attention, SwiGLU(config.dim, config.hidden_dim), config.epsilon)


class PlainDecoder(Component):
    """The whole model."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(plain_block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.epsilon)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[Rows]
    ) -> tuple[Tensor, list[Rows]]:
        """Run s new tokens.

        Args:
            input_ids, position_ids: int64 [b, s].
            attention_mask: [b, p + s], 0 for padding.
            past: of each layer, key and value [b, p, kv_heads, head_dim].

        Returns:
            Logits [b, s, vocab], and what each layer adds to the cache.
        """
        config = self.config
        rope = rope_at(position_ids, rope_frequencies(config.head_dim, config.theta))
        visible = visible_keys(attention_mask, input_ids.shape[1])
        x, new = self.embed(input_ids), []
        for layer, rows in zip(self.layers, past, strict=True):
            x, added = layer(x, rope, visible, rows)
            new.append(added)
        return self.ops.head(self.norm(x), self.lm_head.weight), new

    def empty(self, batch: int) -> list[Rows]:
        """A cache of no tokens."""
        rows = torch.zeros(batch, 0, self.config.kv_heads, self.config.head_dim)
        return [(rows, rows)] * self.config.layers
