"""Weights that make things happen; plain random ones halt every token at once and route evenly."""

from __future__ import annotations

import torch

__all__ = ["eventful_"]


def eventful_(model: torch.nn.Module, seed: int, *, spread: float = 1.0) -> None:
    """Fill any OpenMythos model, in place, so that things happen.

    Router margins from large to nearly none, a router bias that changes choices, tokens that halt
    at different depths and some never, a depth LoRA that matters.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float, mean: float = 0.0) -> None:
        tensor.normal_(mean, std, generator=generator)

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith("freqs") or name == "head.weight":
                continue
            if name.endswith("norm.weight"):
                normal(tensor, 0.1, 1.0)
            elif tensor.ndim > 1:
                normal(tensor, spread * 0.7 / tensor.shape[-1] ** 0.5)
        state = model.state_dict()
        normal(state["embed.weight"], 1.0)
        normal(state["recurrent.block.ffn.router.weight"], 2.0 / state["embed.weight"].shape[1] ** 0.5)
        router = state["recurrent.block.ffn.router.weight"]
        if len(router) > 2:
            router[1] = router[0] + 1e-3 * router[2]  # two experts that are nearly tied for every token
        normal(state["recurrent.block.ffn.router_bias"], 0.5)
        normal(state["recurrent.lora.scale.weight"], 1.0)
        normal(state["recurrent.lora.B"], 0.3)
        normal(state["recurrent.injection.log_A"], 0.3)
        normal(state["recurrent.injection.B"], 0.05, 0.1)
        normal(state["recurrent.act.halt.weight"], 1.0 / state["embed.weight"].shape[1] ** 0.5)
        state["recurrent.act.halt.bias"].fill_(-1.7)
