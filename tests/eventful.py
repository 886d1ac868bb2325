"""Weights that make things happen; plain random ones halt every token at once and route evenly."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from reference_model.open_mythos.config import MythosConfig

__all__ = ["configs", "eventful_"]


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


def configs() -> st.SearchStrategy[MythosConfig]:
    """Random small models of every feature."""

    def build(
        heads: int, groups: int, half_head: int, attn: str, experts: int, top_k: int, **rest: int
    ) -> MythosConfig:
        return MythosConfig(
            vocab_size=53,
            dim=heads * groups * 2 * half_head,
            n_heads=heads * groups,
            n_kv_heads=heads,
            max_seq_len=32,
            attn_type=attn,
            kv_lora_rank=12,
            q_lora_rank=10,
            qk_rope_head_dim=2 * half_head,
            qk_nope_head_dim=6,
            v_head_dim=5,
            n_experts=experts,
            n_experts_per_tok=min(top_k, experts),
            expert_dim=16,
            lora_rank=3,
            **rest,
        )

    return st.builds(
        build,
        heads=st.integers(1, 3),
        groups=st.integers(1, 2),
        half_head=st.sampled_from([2, 4, 8]),
        attn=st.sampled_from(["mla", "gqa"]),
        experts=st.integers(1, 6),
        top_k=st.integers(1, 3),
        n_shared_experts=st.integers(0, 2),
        prelude_layers=st.integers(0, 2),
        coda_layers=st.integers(0, 2),
        max_loop_iters=st.integers(1, 4),
    )
