"""The model cut into the three pieces that become graphs, shaped for export.

The entry, one dense block, one recurrent step. Each is a thin module over the reference model's own parts, so what
is traced is what the oracle computes. What targets formulate differently leaves the tracer as one
node of our own domain (`domain_ops`): norms, rotary positions, attention over the cache, the sparse mixture of experts.

Shape letters: b batch, s new tokens, p past tokens, d model dim, n = b * s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from unittest.mock import patch

import torch
from torch import Tensor, nn

from reference_model import attention
from reference_model.attention import GroupedQueryAttention, LatentAttention, Rows, visible_keys
from reference_model.layers import RMSNorm, Rope, rope_at
from reference_model.model import MythosModel
from reference_model.moe import MixtureOfExperts, Routing
from reference_model.recurrent import Halting, LoopState

__all__ = ["DOMAIN", "BlockStage", "EmbedStage", "StepStage", "domain_ops"]

DOMAIN = "mythos"


class EmbedStage(nn.Module):
    """Tokens -> embeddings, and what every later stage needs of positions and mask."""

    output_names = ("embedded", "rope.cos", "rope.sin", "visible")

    def __init__(self, model: MythosModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> tuple[Tensor, ...]:
        """input_ids, position_ids [b, s], attention_mask [b, p + s]."""
        rope = rope_at(position_ids, self.model.rope_frequencies())
        return (self.model.embed(input_ids), *rope, visible_keys(attention_mask, input_ids.shape[1]))


class BlockStage(nn.Module):
    """One dense block; traced once and laid down for every layer of prelude and coda."""

    output_names = ("out", "rows.first", "rows.second")

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, first: Tensor, second: Tensor
    ) -> tuple[Tensor, ...]:
        """x [b, s, d]; `first`, `second`: the cache of this layer, [b, p, ...]."""
        x, rows = self.block(x, (cos, sin), visible, (first, second))
        return (x, *rows)


class StepStage(nn.Module):
    """One loop of the recurrent block; becomes the body of the `Loop`.

    The last three outputs are not part of the contract: the parity check reads them.
    """

    output_names = (
        *("next.hidden", "next.output", "next.cumulative_p", "rows.first", "rows.second", "running"),
        *("act.weight", "router.scores", "router.experts"),
    )

    def __init__(self, model: MythosModel) -> None:
        super().__init__()
        self.recurrent = model.recurrent

    def forward(
        self,
        loop_index: Tensor,
        hidden: Tensor,
        output: Tensor,
        cumulative_p: Tensor,
        encoded: Tensor,
        n_loops: Tensor,
        cos: Tensor,
        sin: Tensor,
        visible: Tensor,
        first: Tensor,
        second: Tensor,
    ) -> tuple[Tensor, ...]:
        """loop_index [] int64, state [b, s, d]; `first`, `second`: the cache of this depth, [b, p, ...]."""
        state = LoopState(hidden, output, cumulative_p)
        after, rows, trace = self.recurrent.step(
            state, encoded, loop_index, n_loops, (cos, sin), visible, (first, second)
        )
        return (*after, *rows, trace.running, trace.act_weight, trace.routing.scores, trace.routing.experts)


@contextlib.contextmanager
def domain_ops() -> Iterator[None]:
    """While it lasts, the parts that targets formulate differently trace to one node each."""
    with (
        patch.object(RMSNorm, "forward", _rms_norm),
        patch.object(attention, "apply_rope", _rotary_embedding),
        patch.object(LatentAttention, "attend", _latent_attention),
        patch.object(GroupedQueryAttention, "attend", _grouped_query_attention),
        patch.object(MixtureOfExperts, "mix", _sparse_moe),
        patch.object(Halting, "probability", _halting_probability),
    ):
        yield


def _rms_norm(self: RMSNorm, x: Tensor) -> Tensor:
    return _node("RMSNorm", (x, self.weight), {"epsilon": self.eps}, like=x, shape=x.shape)


def _rotary_embedding(x: Tensor, rope: Rope) -> Tensor:
    return _node("RotaryEmbedding", (x, *rope), {"width": x.shape[-1]}, like=x, shape=x.shape)


def _latent_attention(
    self: LatentAttention, query: tuple[Tensor, Tensor], rows: Rows, past: Rows, visible: Tensor
) -> Tensor:
    q_nope, q_rope = query
    shape = (*q_nope.shape[:2], self.n_heads * self.v_dim)
    inputs = (q_nope, q_rope, *rows, *past, visible, self.kv_up.weight)
    return _node("LatentAttention", inputs, {"scale": self.scale}, like=q_nope, shape=shape)


def _grouped_query_attention(
    self: GroupedQueryAttention, query: Tensor, rows: Rows, past: Rows, visible: Tensor
) -> Tensor:
    attributes = {"scale": self.scale, "kv_heads": self.n_kv_heads}
    shape = (*query.shape[:2], self.n_heads * self.head_dim)
    return _node("GroupedQueryAttention", (query, *rows, *past, visible), attributes, like=query, shape=shape)


def _sparse_moe(self: MixtureOfExperts, tokens: Tensor, routing: Routing) -> Tensor:
    return _node("SparseMoE", (tokens, routing.experts, routing.weights), {}, like=tokens, shape=tokens.shape)


def _halting_probability(self: Halting, hidden: Tensor) -> Tensor:
    """The sigmoid from its definition.

    ONNX Runtime's Sigmoid is exact to 1e-7 absolute, not relative. A token that spends a probability
    of 1e-5 in all its loops leaves an output that small, and the coda's norm scales it back up: with
    Sigmoid its logits are off in the third digit.
    """
    return 1.0 / (1.0 + torch.exp(-self.halt(hidden)))


def _node(
    op: str, inputs: Sequence[Tensor], attributes: Mapping[str, float | int], *, like: Tensor, shape: Sequence[int]
) -> Tensor:
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{op}", inputs, attrs={**attributes}, dtype=like.dtype, shape=shape)
