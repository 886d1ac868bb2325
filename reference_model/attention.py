"""Multi-latent and grouped-query attention over a cache.

Both follow one shape: `project` makes the query and the rows that enter the cache, `attend`
compares the query with past and new rows, `wo` mixes the heads. The exporter keeps `project` and
`wo` and formulates `attend` anew for each target; here `attend` is the definition.

Shape letters: b batch, s new tokens, p past tokens, h heads, d model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reference_model.layers import RMSNorm, Rope, apply_rope
from reference_model.open_mythos.config import MythosConfig

__all__ = ["Attention", "GroupedQueryAttention", "LatentAttention", "Rows", "visible_keys"]

Rows = tuple[Tensor, Tensor]  # what one layer caches: MLA (latent, rope key), GQA (key, value)


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


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    """q [b, s, h, n], k [b, p + s, h, n], v [b, p + s, h, v] -> [b, s, h * v].

    A hidden key gets the lowest finite score, not -inf: a padding row that sees no key stays finite.
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scores = (q @ k.transpose(-2, -1)) * scale  # [b, h, s, p + s]
    weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(-2)


class LatentAttention(nn.Module):
    """Multi-latent attention (DeepSeek-V2, arXiv 2405.04434; `open_mythos.main.MLAttention`).

    Caches the latent after `kv_norm` and one rotated key shared by all heads. Upstream caches the
    latent before the norm and a copy of that key per head; the outcome is the same, in less memory.
    """

    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.v_dim, self.kv_rank = config.v_head_dim, config.kv_lora_rank
        self.scale = (self.nope_dim + self.rope_dim) ** -0.5
        dim, q_rank, heads = config.dim, config.q_lora_rank, config.n_heads
        self.q_down = nn.Linear(dim, q_rank, bias=False)
        self.q_norm = RMSNorm(q_rank)
        self.q_up_nope = nn.Linear(q_rank, heads * self.nope_dim, bias=False)
        self.q_up_rope = nn.Linear(q_rank, heads * self.rope_dim, bias=False)
        self.kv_down = nn.Linear(dim, self.kv_rank + self.rope_dim, bias=False)
        self.kv_norm = RMSNorm(self.kv_rank)
        self.kv_up = nn.Linear(self.kv_rank, heads * (self.nope_dim + self.v_dim), bias=False)
        self.wo = nn.Linear(heads * self.v_dim, dim, bias=False)

    def forward(self, x: Tensor, rope: Rope, visible: Tensor, past: Rows) -> tuple[Tensor, Rows]:
        """x [b, s, d], visible [b, 1, s, p + s], past [b, p, ...] -> ([b, s, d], rows [b, s, ...])."""
        query, rows = self.project(x, rope)
        return self.wo(self.attend(query, rows, past, visible)), rows

    def project(self, x: Tensor, rope: Rope) -> tuple[tuple[Tensor, Tensor], Rows]:
        """Query (nope [b, s, h, nope_dim], rope [b, s, h, rope_dim]) and the rows to cache."""
        compressed = self.q_norm(self.q_down(x))
        q_nope = self.q_up_nope(compressed).unflatten(-1, (self.n_heads, self.nope_dim))
        q_rope = apply_rope(self.q_up_rope(compressed).unflatten(-1, (self.n_heads, self.rope_dim)), rope)
        latent, rope_key = self.kv_down(x).split((self.kv_rank, self.rope_dim), dim=-1)
        rope_key = apply_rope(rope_key.unsqueeze(2), rope).squeeze(2)  # [b, s, rope_dim]
        return (q_nope, q_rope), (self.kv_norm(latent), rope_key)

    def attend(self, query: tuple[Tensor, Tensor], rows: Rows, past: Rows, visible: Tensor) -> Tensor:
        """Attention of new tokens over past and new rows -> [b, s, h * v_dim]."""
        latent, rope_key = (torch.cat(pair, dim=1) for pair in zip(past, rows))  # [b, p + s, ...]
        keys_values = self.kv_up(latent).unflatten(-1, (self.n_heads, self.nope_dim + self.v_dim))
        k_nope, v = keys_values.split((self.nope_dim, self.v_dim), dim=-1)  # [b, p + s, h, ...]
        q_nope, q_rope = query
        k_rope = rope_key.unsqueeze(2).expand(-1, -1, self.n_heads, -1)
        q, k = torch.cat((q_nope, q_rope), dim=-1), torch.cat((k_nope, k_rope), dim=-1)
        return _attend(q, k, v, visible, self.scale)


class GroupedQueryAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245; `open_mythos.main.GQAttention`)."""

    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.groups = self.n_heads // self.n_kv_heads
        self.scale = self.head_dim**-0.5
        self.wq = nn.Linear(config.dim, self.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(self.n_heads * self.head_dim, config.dim, bias=False)

    def forward(self, x: Tensor, rope: Rope, visible: Tensor, past: Rows) -> tuple[Tensor, Rows]:
        """x [b, s, d], visible [b, 1, s, p + s], past [b, p, ...] -> ([b, s, d], rows [b, s, ...])."""
        query, rows = self.project(x, rope)
        return self.wo(self.attend(query, rows, past, visible)), rows

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Rows]:
        """Rotated query [b, s, h, head_dim]; rotated key and value [b, s, n_kv_heads, head_dim]."""
        query = apply_rope(self.wq(x).unflatten(-1, (self.n_heads, self.head_dim)), rope)
        key = apply_rope(self.wk(x).unflatten(-1, (self.n_kv_heads, self.head_dim)), rope)
        value = self.wv(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        return query, (key, value)

    def attend(self, query: Tensor, rows: Rows, past: Rows, visible: Tensor) -> Tensor:
        """Attention of new tokens over past and new rows -> [b, s, h * head_dim]."""
        key, value = (torch.cat(pair, dim=1) for pair in zip(past, rows))  # [b, p + s, kv, head_dim]
        key, value = (part.repeat_interleave(self.groups, dim=2) for part in (key, value))
        return _attend(query, key, value, visible, self.scale)


Attention = LatentAttention | GroupedQueryAttention
