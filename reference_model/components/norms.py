"""Norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reference_model.components.component import Component

__all__ = ["RMSNorm"]


class RMSNorm(Component):
    """Root mean square norm with a learned gain (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, dim: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.ops.rms_norm(x, self.weight, self.epsilon)
