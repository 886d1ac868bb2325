"""Feed-forwards."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from reference_model.components.component import Component, Linear

__all__ = ["SwiGLU"]


class SwiGLU(Component):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020, arXiv 2002.05202): an expert, or a dense block's feed-forward."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = Linear(dim, hidden_dim, bias=False)
        self.up = Linear(dim, hidden_dim, bias=False)
        self.down = Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))
