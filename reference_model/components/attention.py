"""Multi-head latent and grouped-query attention over a cache.

Both follow one shape: `project` makes the query and the rows that enter the cache, `attend` compares the query with
past and new rows, `wo` mixes the heads.

Shape letters: b batch, s new tokens, p past tokens, h heads, d model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_model.components.component import Component, Linear
from reference_model.components.norms import RMSNorm
from reference_model.ops import Rope, Rows

__all__ = ["Attention", "GroupedQueryAttention", "LatentAttention", "visible_keys"]


def visible_keys(attention_mask: Tensor, new_tokens: int) -> Tensor:
    """Which keys each new token may see: causal, and never padding.

    Args:
        attention_mask: [b, p + s], nonzero for a real token.
        new_tokens: s.

    Returns:
        bool [b, 1, s, p + s].
    """
    total = attention_mask.shape[1]
    keys = torch.arange(total, device=attention_mask.device)
    queries = torch.arange(new_tokens, device=attention_mask.device) + (total - new_tokens)
    causal = keys <= queries.unsqueeze(-1)  # [s, p + s]
    return causal & (attention_mask != 0)[:, None, None, :]


class LatentAttention(Component):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

    Caches the latent after `kv_norm` and one rotated key shared by all heads, in adjacent pairs.
    """

    parts = ("latent", "rope")  # what it caches

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        q_rank: int,
        kv_rank: int,
        nope_dim: int,
        rope_dim: int,
        v_dim: int,
        epsilon: float,
    ) -> None:
        super().__init__()
        self.n_heads, self.nope_dim, self.rope_dim, self.v_dim, self.kv_rank = heads, nope_dim, rope_dim, v_dim, kv_rank
        self.scale = (nope_dim + rope_dim) ** -0.5
        self.q_down = Linear(dim, q_rank, bias=False)
        self.q_norm = RMSNorm(q_rank, epsilon)
        self.q_up_nope = Linear(q_rank, heads * nope_dim, bias=False)
        self.q_up_rope = Linear(q_rank, heads * rope_dim, bias=False)
        self.kv_down = Linear(dim, kv_rank + rope_dim, bias=False)
        self.kv_norm = RMSNorm(kv_rank, epsilon)
        self.kv_up = Linear(kv_rank, heads * (nope_dim + v_dim), bias=False)
        self.wo = Linear(heads * v_dim, dim, bias=False)

    @property
    def rows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shape of one cached row of each part."""
        return (self.kv_rank,), (self.rope_dim,)

    def forward(self, x: Tensor, rope: Rope, visible: Tensor, past: Rows) -> tuple[Tensor, Rows]:
        """x [b, s, d], visible [b, 1, s, p + s], past [b, p, ...] -> ([b, s, d], rows [b, s, ...])."""
        query, rows = self.project(x, rope)
        return self.wo(self.attend(query, rows, past, visible)), rows

    def project(self, x: Tensor, rope: Rope) -> tuple[tuple[Tensor, Tensor], Rows]:
        """Query (nope [b, s, h, nope_dim], rope [b, s, h, rope_dim]) and the rows to cache."""
        compressed = self.q_norm(self.q_down(x))
        q_nope = self.q_up_nope(compressed).unflatten(-1, (self.n_heads, self.nope_dim))
        q_rope = self.q_up_rope(compressed).unflatten(-1, (self.n_heads, self.rope_dim))
        q_rope = self.ops.rotate(q_rope, rope, interleaved=True)
        latent, rope_key = self.kv_down(x).split((self.kv_rank, self.rope_dim), dim=-1)
        rope_key = self.ops.rotate(rope_key.unsqueeze(2), rope, interleaved=True).squeeze(2)  # [b, s, rope_dim]
        return (q_nope, q_rope), self.ops.cached((self.kv_norm(latent), rope_key))

    def attend(self, query: tuple[Tensor, Tensor], rows: Rows, past: Rows, visible: Tensor) -> Tensor:
        """Attention of new tokens over past and new rows -> [b, s, h * v_dim]."""
        return self.ops.attend_latent(query, rows, past, visible, self.kv_up, scale=self.scale)


class GroupedQueryAttention(Component):
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245); caches rotated keys, and values.

    Heads may be of any width, projections of query, key and value may have a bias, and query and key a norm of each
    head before they are rotated.
    """

    parts = ("key", "value")  # what it caches

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        interleaved: bool,
        bias: bool = False,
        norm_epsilon: float | None = None,
    ) -> None:
        """Prepare.

        Args:
            interleaved: rotate adjacent pairs; else pairs of the two halves.
            bias: of query, key and value.
            norm_epsilon: of the norms of query and key; None for a model without them.
        """
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim, self.interleaved = heads, kv_heads, head_dim, interleaved
        self.scale = head_dim**-0.5
        self.wq = Linear(dim, heads * head_dim, bias=bias)
        self.wk = Linear(dim, kv_heads * head_dim, bias=bias)
        self.wv = Linear(dim, kv_heads * head_dim, bias=bias)
        self.q_norm = None if norm_epsilon is None else RMSNorm(head_dim, norm_epsilon)
        self.k_norm = None if norm_epsilon is None else RMSNorm(head_dim, norm_epsilon)
        self.wo = Linear(heads * head_dim, dim, bias=False)

    @property
    def rows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shape of one cached row of each part."""
        return (self.n_kv_heads, self.head_dim), (self.n_kv_heads, self.head_dim)

    def forward(self, x: Tensor, rope: Rope, visible: Tensor, past: Rows) -> tuple[Tensor, Rows]:
        """x [b, s, d], visible [b, 1, s, p + s], past [b, p, ...] -> ([b, s, d], rows [b, s, ...])."""
        query, rows = self.project(x, rope)
        return self.wo(self.attend(query, rows, past, visible)), rows

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Rows]:
        """Rotated query [b, s, h, head_dim]; rotated key and value [b, s, n_kv_heads, head_dim]."""
        query = self.wq(x).unflatten(-1, (self.n_heads, self.head_dim))
        key = self.wk(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        value = self.wv(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        query = query if self.q_norm is None else self.q_norm(query)
        key = key if self.k_norm is None else self.k_norm(key)
        query, key = (self.ops.rotate(part, rope, interleaved=self.interleaved) for part in (query, key))
        return query, self.ops.cached((key, value))

    def attend(self, query: Tensor, rows: Rows, past: Rows, visible: Tensor) -> Tensor:
        """Attention of new tokens over past and new rows -> [b, s, h * head_dim]."""
        return self.ops.attend(query, rows, past, visible, scale=self.scale)


Attention = LatentAttention | GroupedQueryAttention
