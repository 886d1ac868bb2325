"""Operations as nodes of our own domain, one each, for each target to lower in its own way.

What a node's lowering must know of sizes are its attributes, so that passes know no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from reference_model.components.component import Linear
from reference_model.ops import ExpertSizes, Rope, Rows, TorchOps

__all__ = ["DOMAIN", "SymbolicOps"]

DOMAIN = "mythos"


class SymbolicOps(TorchOps):
    """For tracing: norms, rotary positions, attention and mixtures are one node each, the rest is traced as it is."""

    def cached(self, rows: Rows) -> Rows:
        """As they are: a pass rounds them where the cache is in half precision."""
        return rows

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """`mythos::RMSNorm`."""
        return _node("RMSNorm", (x, weight), {"epsilon": epsilon}, like=x, shape=x.shape)

    def rotate(self, x: Tensor, rope: Rope, *, interleaved: bool) -> Tensor:
        """`mythos::RotaryEmbedding`."""
        attributes = {"width": x.shape[-1], "interleaved": int(interleaved)}
        return _node("RotaryEmbedding", (x, *rope), attributes, like=x, shape=x.shape)

    def attend(self, query: Tensor, rows: Rows, past: Rows, visible: Tensor, *, scale: float) -> Tensor:
        """`mythos::GroupedQueryAttention`."""
        heads, head_dim = query.shape[2:]
        kv_heads, value_dim = rows[1].shape[2:]
        attributes = {
            "scale": scale,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "value_dim": value_dim,
        }
        shape = (*query.shape[:2], heads * value_dim)
        return _node("GroupedQueryAttention", (query, *rows, *past, visible), attributes, like=query, shape=shape)

    def attend_latent(
        self, query: tuple[Tensor, Tensor], rows: Rows, past: Rows, visible: Tensor, up: Linear, *, scale: float
    ) -> Tensor:
        """`mythos::LatentAttention`."""
        q_nope, q_rope = query
        heads, nope_dim = q_nope.shape[2:]
        v_dim = up.weight.shape[0] // heads - nope_dim
        attributes = {
            "scale": scale,
            "heads": heads,
            "nope_dim": nope_dim,
            "rope_dim": q_rope.shape[-1],
            "v_dim": v_dim,
        }
        shape = (*q_nope.shape[:2], heads * v_dim)
        inputs = (q_nope, q_rope, *rows, *past, visible, up.weight)
        return _node("LatentAttention", inputs, attributes, like=q_nope, shape=shape)

    def mix_experts(
        self, tokens: Tensor, chosen: Tensor, weights: Tensor, experts: nn.ModuleList, sizes: ExpertSizes
    ) -> Tensor:
        """`mythos::SparseMoE`."""
        attributes = {"experts": sizes.experts, "top_k": sizes.top_k, "dim": sizes.dim, "expert_dim": sizes.hidden}
        return _node("SparseMoE", (tokens, chosen, weights), attributes, like=tokens, shape=tokens.shape)

    def sigmoid(self, x: Tensor) -> Tensor:
        """From its definition.

        ONNX Runtime's Sigmoid is exact to 1e-7 absolute, not relative. A token that spends a probability
        of 1e-5 in all its loops leaves an output that small, and the coda's norm scales it back up: with
        Sigmoid its logits are off in the third digit.
        """
        return 1.0 / (1.0 + torch.exp(-x))


def _node(
    op: str, inputs: Sequence[Tensor], attributes: Mapping[str, float | int], *, like: Tensor, shape: Sequence[int]
) -> Tensor:
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{op}", inputs, attrs={**attributes}, dtype=like.dtype, shape=shape)
