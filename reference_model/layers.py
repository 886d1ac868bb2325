"""The small parts every block is made of: RMSNorm, SwiGLU and rotary positions.

Shape letters here and in the files beside: b batch, s sequence, d model dim, h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RMSNorm", "Rope", "SwiGLU", "apply_rope", "rope_at", "rope_frequencies"]

Rope = tuple[Tensor, Tensor]  # cos and sin, each [b, s, rope_dim / 2], fp32


class RMSNorm(nn.Module):
    """Root mean square norm with a learned gain (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    eps = 1e-6

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`: an expert, or the dense feed-forward of prelude and coda."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


def rope_frequencies(rope_dim: int, theta: float) -> Tensor:
    """Angular frequency of each rotated pair, [rope_dim / 2] fp32 (Su et al. 2021, arXiv 2104.09864)."""
    return 1.0 / (theta ** (torch.arange(0, rope_dim, 2, dtype=torch.float32) / rope_dim))


def rope_at(position_ids: Tensor, frequencies: Tensor) -> Rope:
    """cos and sin of each position's rotation: [b, s] -> two of [b, s, rope_dim / 2]."""
    angles = position_ids.to(torch.float32).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate adjacent pairs of the last axis: x [b, s, h, rope_dim] -> same shape."""
    cos, sin = (part.unsqueeze(2) for part in rope)  # [b, s, 1, rope_dim / 2]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)  # [b, s, h, rope_dim / 2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
