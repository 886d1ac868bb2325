"""Mixture of experts: top-k routed experts beside shared ones that always run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference_model.layers import SwiGLU
from reference_model.open_mythos.config import MythosConfig

__all__ = ["MixtureOfExperts", "Routing"]


class Routing(NamedTuple):
    """Where the router sends each of n tokens."""

    scores: Tensor  # [n, experts]: logits plus bias; what the top-k compares
    experts: Tensor  # [n, k] int64, best first
    weights: Tensor  # [n, k], sum 1; all 0 for a token that needs no expert


class MixtureOfExperts(nn.Module):
    """DeepSeekMoE feed-forward (arXiv 2401.06066; `open_mythos.main.MoEFFN`).

    The router bias moves the selection only (aux-loss-free balancing, arXiv 2408.15664):
    the mixing weights are the unbiased softmax, renormalised over the chosen experts.
    """

    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.top_k = config.n_experts_per_tok
        self.router = nn.Linear(config.dim, config.n_experts, bias=False)
        self.router_bias: Tensor
        self.register_buffer("router_bias", torch.zeros(config.n_experts))
        self.routed_experts = nn.ModuleList(SwiGLU(config.dim, config.expert_dim) for _ in range(config.n_experts))
        self.shared_experts = nn.ModuleList(
            SwiGLU(config.dim, config.shared_expert_dim) for _ in range(config.n_shared_experts)
        )

    def forward(self, x: Tensor, within_depth: Tensor) -> tuple[Tensor, Routing]:
        """[b, s, d] -> ([b, s, d], routing of the b * s tokens).

        Args:
            within_depth: bool [b, 1, 1]. Nobody reads what a sequence computes past its depth: it weighs its experts
                by 0, so that a runtime may leave them out.
        """
        tokens = x.flatten(0, 1)
        needed = within_depth.expand(-1, x.shape[1], -1).flatten(0, 1)  # [n, 1]
        routing = self.route(tokens)
        routing = routing._replace(weights=torch.where(needed, routing.weights, 0.0))
        out = self.mix(tokens, routing)
        for expert in self.shared_experts:
            out = out + expert(tokens)
        return out.view_as(x), routing

    def route(self, tokens: Tensor) -> Routing:
        """Choose experts for tokens [n, d]."""
        logits = self.router(tokens)
        scores = logits + self.router_bias
        experts = scores.topk(self.top_k, dim=-1).indices
        weights = logits.softmax(dim=-1).gather(-1, experts)
        return Routing(scores, experts, weights / weights.sum(dim=-1, keepdim=True))

    def mix(self, tokens: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of each token's chosen experts: [n, d] -> [n, d]."""
        mixed = torch.zeros_like(tokens)
        for index in routing.experts.unique().tolist():
            token, slot = torch.where(routing.experts == index)
            out = self.routed_experts[index](tokens[token]) * routing.weights[token, slot, None]
            mixed = mixed.index_add(0, token, out)
        return mixed
