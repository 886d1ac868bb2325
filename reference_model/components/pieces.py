"""Modules that are traced for every family: the entry, and a dense block. See `reference_model/frame.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reference_model.components.attention import Attention, visible_keys
from reference_model.components.blocks import DenseBlock
from reference_model.components.component import Component
from reference_model.components.rope import rope_at, rope_frequencies
from reference_model.frame import Piece, Port

__all__ = ["block_ports", "dense_piece", "embed_piece", "new_rows"]


def embed_piece(*, vocab_size: int, dim: int, rope_dim: int, theta: float) -> Piece:
    """Tokens become embeddings, and what every later piece needs of positions and mask; parameter `embed.weight`."""
    tokens = (
        Port("input_ids", ("batch", "seq"), torch.int64),
        Port("attention_mask", ("batch", "total"), torch.int64),
        Port("position_ids", ("batch", "seq"), torch.int64),
    )
    return Piece(_Embed(vocab_size, dim, rope_dim, theta), tokens, ("x", "cos", "sin", "visible"))


def dense_piece(block: DenseBlock, *, dim: int, rope_dim: int) -> Piece:
    """A dense block with the cache of its layer."""
    return Piece(_Dense(block), block_ports(block.attn, dim=dim, rope_dim=rope_dim), ("next.x", *new_rows(block.attn)))


def block_ports(attn: Attention, *, dim: int, rope_dim: int) -> tuple[Port, ...]:
    """What every block reads: `x`, positions and mask, its layer's cache."""
    return (
        Port("x", ("batch", "seq", dim)),
        Port("cos", ("batch", "seq", rope_dim // 2)),
        Port("sin", ("batch", "seq", rope_dim // 2)),
        Port("visible", ("batch", 1, "seq", "total"), torch.bool),
        *(Port(f"past.{part}", ("batch", "past", *row)) for part, row in zip(attn.parts, attn.rows)),
    )


def new_rows(attn: Attention) -> tuple[str, ...]:
    """What a block leaves for the cache."""
    return tuple(f"new.{part}" for part in attn.parts)


class _Embed(Component):
    def __init__(self, vocab_size: int, dim: int, rope_dim: int, theta: float) -> None:
        super().__init__()
        self.rope_dim, self.theta = rope_dim, theta
        self.embed = nn.Embedding(vocab_size, dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """input_ids, position_ids [b, s], attention_mask [b, p + s]."""
        rope = rope_at(position_ids, rope_frequencies(self.rope_dim, self.theta))
        return (self.embed(input_ids), *rope, visible_keys(attention_mask, input_ids.shape[1]))


class _Dense(Component):
    def __init__(self, block: DenseBlock) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, first: Tensor, second: Tensor
    ) -> tuple[Tensor, ...]:
        """x [b, s, d]; `first`, `second`: the cache of this layer, [b, p, ...]."""
        x, rows = self.block(x, (cos, sin), visible, (first, second))
        return (x, *rows)
