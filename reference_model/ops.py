"""The operations that a model is made of, apart from who computes them.

Every component calls `self.ops` for what a target may formulate in its own way, and for what a quantized bundle rounds.
So one model definition serves three purposes, each an implementation of the protocol `Ops`: `TorchOps` computes (the
oracle), `SymbolicOps` of `mythos_export` is traced, a node for each operation, and `RoundedOps` of `calibration`
computes as a quantized bundle does.

Shape letters: b batch, s new tokens, p past tokens, h query heads, g key heads, d model dim, n tokens, k experts of a
token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from reference_model.components.component import Linear

__all__ = ["ExpertSizes", "Ops", "Rope", "Rows", "TorchOps"]

Rope = tuple[Tensor, Tensor]  # cos and sin, each [b, s, rope_dim / 2], fp32
Rows = tuple[Tensor, Tensor]  # what one layer caches: (key, value), or of latent attention (latent, rope key)


class ExpertSizes(NamedTuple):
    """Of the routed experts of a mixture."""

    experts: int
    top_k: int
    dim: int
    hidden: int


class Ops(Protocol):
    """What components ask for."""

    def enter_loop(self, index: int) -> None:
        """The loop that is about to be computed, counted from 0; the model says so before each."""

    def linear(self, layer: Linear, x: Tensor) -> Tensor:
        """x [..., in] times the layer's weight, plus its bias if it has one -> [..., out]."""

    def head(self, x: Tensor, weight: Tensor) -> Tensor:
        """Logits [b, s, vocab] of x [b, s, d]; weight [vocab, d], which may be the embedding's table."""

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Root mean square norm over the last axis with a gain [d]."""

    def rotate(self, x: Tensor, rope: Rope, *, interleaved: bool) -> Tensor:
        """Rotary positions of x [b, s, heads, rope_dim]: adjacent pairs if interleaved, else the halves' pairs."""

    def cached(self, rows: Rows) -> Rows:
        """New rows as the cache holds them, and as they are attended to."""

    def attend(self, query: Tensor, rows: Rows, past: Rows, visible: Tensor, *, scale: float) -> Tensor:
        """Grouped-query attention over past and new rows.

        Args:
            query: [b, s, h, width].
            rows, past: key [b, s or p, g, width] and value [b, s or p, g, value width].
            visible: bool [b, 1, s, p + s].

        Returns:
            [b, s, h * value width].
        """

    def attend_latent(
        self, query: tuple[Tensor, Tensor], rows: Rows, past: Rows, visible: Tensor, up: Linear, *, scale: float
    ) -> Tensor:
        """Multi-head latent attention over past and new rows.

        Args:
            query: without positions [b, s, h, nope] and rotated [b, s, h, rope].
            rows, past: latent [b, s or p, rank] and rotated key [b, s or p, rope].
            up: from the latent to keys and values, [h * (nope + v), rank].

        Returns:
            [b, s, h * v].
        """

    def mix_experts(
        self, tokens: Tensor, chosen: Tensor, weights: Tensor, experts: nn.ModuleList, sizes: ExpertSizes
    ) -> Tensor:
        """Weighted sum of each token's chosen experts: tokens [n, d], chosen and weights [n, k] -> [n, d]."""

    def sigmoid(self, x: Tensor) -> Tensor:
        """Of a halting probability or an exit gate, exact relative to its size."""


class TorchOps:
    """Every operation by its definition, in plain PyTorch."""

    def __init__(self, cache: torch.dtype = torch.float32) -> None:
        """Prepare.

        Args:
            cache: type of a cached row; a row is rounded to it before anybody attends to it.
        """
        self.cache = cache

    def enter_loop(self, index: int) -> None:
        """Every loop computes alike."""

    def linear(self, layer: Linear, x: Tensor) -> Tensor:
        """`torch.nn.functional.linear`."""
        return F.linear(x, layer.weight, layer.bias)

    def head(self, x: Tensor, weight: Tensor) -> Tensor:
        """`torch.nn.functional.linear`."""
        return F.linear(x, weight)

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Zhang & Sennrich 2019, arXiv 1910.07467."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight

    def rotate(self, x: Tensor, rope: Rope, *, interleaved: bool) -> Tensor:
        """Su et al. 2021, arXiv 2104.09864."""
        cos, sin = (part.unsqueeze(2) for part in rope)  # [b, s, 1, rope_dim / 2]
        if interleaved:
            first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # [b, s, h, rope_dim / 2]
            return torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

    def cached(self, rows: Rows) -> Rows:
        """Rounded to the cache's type."""
        first, second = (row.to(self.cache).to(row.dtype) for row in rows)
        return first, second

    def attend(self, query: Tensor, rows: Rows, past: Rows, visible: Tensor, *, scale: float) -> Tensor:
        """Ainslie et al. 2023, arXiv 2305.13245."""
        key, value = (torch.cat(pair, dim=1) for pair in zip(past, rows))  # [b, p + s, g, ...]
        groups = query.shape[2] // key.shape[2]
        key, value = (part.repeat_interleave(groups, dim=2) for part in (key, value))
        return _attend(query, key, value, visible, scale)

    def attend_latent(
        self, query: tuple[Tensor, Tensor], rows: Rows, past: Rows, visible: Tensor, up: Linear, *, scale: float
    ) -> Tensor:
        """DeepSeek-V2, arXiv 2405.04434."""
        q_nope, q_rope = query
        heads, nope = q_nope.shape[2:]
        latent, rope_key = (torch.cat(pair, dim=1) for pair in zip(past, rows))  # [b, p + s, ...]
        keys_values = F.linear(latent, up.weight).unflatten(-1, (heads, -1))
        k_nope, v = keys_values[..., :nope], keys_values[..., nope:]  # [b, p + s, h, ...]
        k_rope = rope_key.unsqueeze(2).expand(-1, -1, heads, -1)
        q, k = torch.cat((q_nope, q_rope), dim=-1), torch.cat((k_nope, k_rope), dim=-1)
        return _attend(q, k, v, visible, scale)

    def mix_experts(
        self, tokens: Tensor, chosen: Tensor, weights: Tensor, experts: nn.ModuleList, sizes: ExpertSizes
    ) -> Tensor:
        """Each expert on the tokens that chose it."""
        mixed = torch.zeros_like(tokens)
        for index in chosen.unique().tolist():
            token, slot = torch.where(chosen == index)
            out = experts[index](tokens[token]) * weights[token, slot, None]
            mixed = mixed.index_add(0, token, out)
        return mixed

    def sigmoid(self, x: Tensor) -> Tensor:
        """`torch.sigmoid`."""
        return torch.sigmoid(x)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    """q [b, s, h, n], k [b, p + s, h, n], v [b, p + s, h, v] -> [b, s, h * v].

    A hidden key gets the lowest finite score, not -inf: a padding row that sees no key stays finite.
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scores = (q @ k.transpose(-2, -1)) * scale  # [b, h, s, p + s]
    weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(-2)
