"""One pre-norm transformer block: attention, then a feed-forward (dense, or a mixture of experts)."""

from __future__ import annotations

from torch import Tensor, nn

from reference_model.attention import GroupedQueryAttention, LatentAttention, Rows
from reference_model.layers import RMSNorm, Rope, SwiGLU
from reference_model.moe import MixtureOfExperts, Routing
from reference_model.open_mythos.config import MythosConfig

__all__ = ["DenseBlock", "MoEBlock"]


class _Block(nn.Module):
    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.dim)
        self.ffn_norm = RMSNorm(config.dim)
        self.attn = LatentAttention(config) if config.attn_type == "mla" else GroupedQueryAttention(config)

    def attend(self, x: Tensor, rope: Rope, visible: Tensor, past: Rows) -> tuple[Tensor, Rows]:
        """The attention half with its residual."""
        attended, rows = self.attn(self.attn_norm(x), rope, visible, past)
        return x + attended, rows


class DenseBlock(_Block):
    """A block of the prelude or the coda."""

    def __init__(self, config: MythosConfig) -> None:
        super().__init__(config)
        self.ffn = SwiGLU(config.dim, config.ffn_dim)

    def forward(self, x: Tensor, rope: Rope, visible: Tensor, past: Rows) -> tuple[Tensor, Rows]:
        """x [b, s, d] -> ([b, s, d], the rows this call adds to the cache)."""
        x, rows = self.attend(x, rope, visible, past)
        return x + self.ffn(self.ffn_norm(x)), rows


class MoEBlock(_Block):
    """The block that is looped."""

    def __init__(self, config: MythosConfig) -> None:
        super().__init__(config)
        self.ffn = MixtureOfExperts(config)

    def forward(
        self, x: Tensor, rope: Rope, visible: Tensor, past: Rows, within_depth: Tensor
    ) -> tuple[Tensor, Rows, Routing]:
        """x [b, s, d], within_depth bool [b, 1, 1] -> ([b, s, d], the rows this call adds to the cache, routing)."""
        x, rows = self.attend(x, rope, visible, past)
        mixed, routing = self.ffn(self.ffn_norm(x), within_depth)
        return x + mixed, rows, routing
