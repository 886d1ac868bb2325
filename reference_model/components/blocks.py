"""Transformer blocks: attention, then a feed-forward (dense, or a mixture of experts)."""

from __future__ import annotations

from torch import Tensor

from reference_model.components.attention import Attention
from reference_model.components.component import Component
from reference_model.components.mlp import SwiGLU
from reference_model.components.moe import MixtureOfExperts, Routing
from reference_model.components.norms import RMSNorm
from reference_model.ops import Rope, Rows

__all__ = ["DenseBlock", "MoEBlock"]


class _PreNorm(Component):
    """A norm before each half, which adds to the residual stream."""

    def __init__(self, dim: int, attn: Attention, epsilon: float) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(dim, epsilon)
        self.ffn_norm = RMSNorm(dim, epsilon)
        self.attn = attn

    def attend(self, x: Tensor, rope: Rope, visible: Tensor, past: Rows) -> tuple[Tensor, Rows]:
        """The attention half with its residual."""
        attended, rows = self.attn(self.attn_norm(x), rope, visible, past)
        return x + attended, rows


class DenseBlock(_PreNorm):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, dim: int, attn: Attention, ffn: SwiGLU, epsilon: float) -> None:
        super().__init__(dim, attn, epsilon)
        self.ffn = ffn

    def forward(self, x: Tensor, rope: Rope, visible: Tensor, past: Rows) -> tuple[Tensor, Rows]:
        """x [b, s, d] -> ([b, s, d], the rows this call adds to the cache)."""
        x, rows = self.attend(x, rope, visible, past)
        return x + self.ffn(self.ffn_norm(x)), rows


class MoEBlock(_PreNorm):
    """Pre-norm attention and a mixture of experts."""

    def __init__(self, dim: int, attn: Attention, ffn: MixtureOfExperts, epsilon: float) -> None:
        super().__init__(dim, attn, epsilon)
        self.ffn = ffn

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        visible: Tensor,
        past: Rows,
        within_depth: Tensor,
        experts: Tensor | None = None,
    ) -> tuple[Tensor, Rows, Routing]:
        """x [b, s, d] -> ([b, s, d], the rows this call adds to the cache, routing); else as the mixture takes it."""
        x, rows = self.attend(x, rope, visible, past)
        mixed, routing = self.ffn(self.ffn_norm(x), within_depth, experts)
        return x + mixed, rows, routing
