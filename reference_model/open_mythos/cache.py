"""The key/value cache: three stages, two tensors each, never changed in place.

Names and shapes are the graph contract's: stage `prelude`, `recurrent`, `coda`; parts `latent` and
`rope` (MLA) or `key` and `value` (GQA), each [depth, batch, past, ...], where `depth` counts the
stage's layers, or the loops for `recurrent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference_model.config import MythosConfig
from reference_model.ops import Rows

__all__ = ["STAGES", "Cache", "part_names", "part_shapes"]

STAGES = ("prelude", "recurrent", "coda")


def part_names(config: MythosConfig) -> tuple[str, str]:
    """What the two cached tensors of a layer are called."""
    return ("latent", "rope") if config.attn_type == "mla" else ("key", "value")


def part_shapes(config: MythosConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of one cached row of each part."""
    if config.attn_type == "mla":
        return (config.kv_lora_rank,), (config.qk_rope_head_dim,)
    return (config.n_kv_heads, config.head_dim), (config.n_kv_heads, config.head_dim)


@dataclass(frozen=True)
class Cache:
    """Rows of every layer and depth; the same type holds a past and the rows one call adds."""

    prelude: Rows  # each [layers, b, p, ...]
    recurrent: Rows  # each [loops, b, p, ...]
    coda: Rows  # each [layers, b, p, ...]

    @classmethod
    def empty(cls, config: MythosConfig, *, batch: int, loops: int, device: torch.device | None = None) -> Cache:
        """A cache of no tokens for sequences of at most `loops` loops."""
        depths = (config.prelude_layers, loops, config.coda_layers)

        def stage(depth: int) -> Rows:
            first, second = (torch.zeros(depth, batch, 0, *row, device=device) for row in part_shapes(config))
            return first, second

        return cls(*(stage(depth) for depth in depths))

    @classmethod
    def stack(cls, prelude: Sequence[Rows], recurrent: Sequence[Rows], coda: Sequence[Rows], like: Cache) -> Cache:
        """Gather per-layer rows [b, s, ...] into one cache; `like` gives the shape of a stage without layers."""

        def stage(rows: Sequence[Rows], empty: Rows) -> Rows:
            if not rows:
                return empty
            return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

        return cls(stage(prelude, like.prelude), stage(recurrent, like.recurrent), stage(coda, like.coda))

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.recurrent[0].shape[2]

    @property
    def loops(self) -> int:
        """Depths held for the recurrent block."""
        return self.recurrent[0].shape[0]

    def append(self, rows: Cache) -> Cache:
        """This cache followed by new rows.

        Raises:
            ValueError: the rows go deeper than this cache, or are of another depth than what it holds.
        """
        if self.length and rows.loops != self.loops:
            raise ValueError(
                f"the cache holds {self.loops} loops but the new rows {rows.loops}; a sequence keeps its depth for life"
            )

        def join(old: Rows, new: Rows) -> Rows:
            depth = new[0].shape[0]
            return torch.cat((old[0][:depth], new[0]), dim=2), torch.cat((old[1][:depth], new[1]), dim=2)

        return Cache(join(self.prelude, rows.prelude), join(self.recurrent, rows.recurrent), join(self.coda, rows.coda))

    def named(self, config: MythosConfig, prefix: str) -> dict[str, Tensor]:
        """The tensors under their contract names, e.g. `past.prelude.latent`."""
        parts = part_names(config)
        return {
            f"{prefix}.{stage}.{part}": tensor for stage in STAGES for part, tensor in zip(parts, getattr(self, stage))
        }
