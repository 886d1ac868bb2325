"""What the key/value cache takes, as `engines.cache.KVCache` allocates it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from engines.cache import slots_for
from mythos_export.bundle import CachePart
from mythos_export.weights.tensors import BITS

__all__ = ["CacheSize", "cache_size"]

_MASK = 8  # bytes of a slot in the attention mask, int64


class CacheSize(NamedTuple):
    """Bytes of a token in one sequence."""

    per_token: int  # at no depth: prelude and coda
    per_token_and_loop: int

    def token(self, loops: int) -> int:
        """A token's rows at a depth."""
        return self.per_token + loops * self.per_token_and_loop

    def total(self, *, loops: int, batch: int, context: int) -> int:
        """Everything allocated for `context` tokens in each sequence, the mask (one slot more) included."""
        slots = slots_for(context)
        return batch * (slots * self.token(loops) + (slots + 1) * _MASK)


def cache_size(parts: Sequence[CachePart]) -> CacheSize:
    """Count the parts of a manifest's `cache`."""
    fixed = looped = 0
    for part in parts:
        row = math.prod(part.row) * BITS[part.dtype] // 8
        if part.depth == "loops":
            looped += row
        else:
            fixed += row * part.depth
    return CacheSize(fixed, looped)
