"""Mixture of experts: top-k routed experts beside shared ones that always run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference_model.components.component import Component, Linear
from reference_model.components.mlp import SwiGLU
from reference_model.ops import ExpertSizes

__all__ = ["MixtureOfExperts", "MixtureSizes", "Routing"]


class Routing(NamedTuple):
    """Where the router sends each of n tokens."""

    scores: Tensor  # [n, experts]: logits plus bias; what the top-k compares
    experts: Tensor  # [n, k] int64, best first
    weights: Tensor  # [n, k], sum 1; all 0 for a token that needs no expert


class MixtureSizes(NamedTuple):
    """Of a whole mixture."""

    routed: ExpertSizes
    shared: int  # experts that always run
    shared_hidden: int


class MixtureOfExperts(Component):
    """DeepSeekMoE feed-forward (arXiv 2401.06066).

    The router bias moves the selection only (aux-loss-free balancing, arXiv 2408.15664):
    the mixing weights are the unbiased softmax, renormalized over the chosen experts.
    """

    def __init__(self, sizes: MixtureSizes, *, with_experts: bool = True) -> None:
        """Prepare.

        Args:
            with_experts: false leaves the routed experts out; symbolic operations, which name their weights and never
                call them, do without hundreds of modules.
        """
        super().__init__()
        self.sizes = sizes.routed
        count, _, dim, hidden = sizes.routed
        self.router = Linear(dim, count, bias=False)
        self.router_bias: Tensor
        self.register_buffer("router_bias", torch.zeros(count))
        self.routed_experts = nn.ModuleList(SwiGLU(dim, hidden) for _ in range(count if with_experts else 0))
        self.shared_experts = nn.ModuleList(SwiGLU(dim, sizes.shared_hidden) for _ in range(sizes.shared))

    def forward(self, x: Tensor, within_depth: Tensor, experts: Tensor | None = None) -> tuple[Tensor, Routing]:
        """[b, s, d] -> ([b, s, d], the router's own choice for the b * s tokens).

        Args:
            within_depth: bool [b, 1, 1]. Nobody reads what a sequence computes past its depth: it weighs its experts
                by 0, so that a runtime may leave them out.
            experts: int64 [b * s, k], whom to mix instead of whom the router chooses.
        """
        tokens = x.flatten(0, 1)
        needed = within_depth.expand(-1, x.shape[1], -1).flatten(0, 1)  # [n, 1]
        logits = self.router(tokens)
        scores = logits + self.router_bias
        own = scores.topk(self.sizes.top_k, dim=-1).indices
        routing = Routing(scores, own, self._shares(logits, own, needed))
        mixed = routing if experts is None else Routing(scores, experts, self._shares(logits, experts, needed))
        out = self.mix(tokens, mixed)
        for expert in self.shared_experts:
            out = out + expert(tokens)
        return out.view_as(x), routing

    def mix(self, tokens: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of each token's chosen experts: [n, d] -> [n, d]."""
        return self.ops.mix_experts(tokens, routing.experts, routing.weights, self.routed_experts, self.sizes)

    @staticmethod
    def _shares(logits: Tensor, experts: Tensor, needed: Tensor) -> Tensor:
        """What each expert contributes to its token: [n, k]."""
        weights = logits.softmax(dim=-1).gather(-1, experts)
        return torch.where(needed, weights / weights.sum(dim=-1, keepdim=True), 0.0)
