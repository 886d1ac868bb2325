"""Rotary positions: the angle of each position (Su et al. 2021, arXiv 2104.09864). `Ops.rotate` applies them."""

from __future__ import annotations

import torch
from torch import Tensor

from reference_model.ops import Rope

__all__ = ["rope_at", "rope_frequencies"]


def rope_frequencies(rope_dim: int, theta: float) -> Tensor:
    """Angular frequency of each rotated pair, [rope_dim / 2] fp32."""
    return 1.0 / (theta ** (torch.arange(0, rope_dim, 2, dtype=torch.float32) / rope_dim))


def rope_at(position_ids: Tensor, frequencies: Tensor) -> Rope:
    """cos and sin of each position's rotation: [b, s] -> two of [b, s, rope_dim / 2]."""
    angles = position_ids.to(torch.float32).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()
