"""What caches take, in bytes, before any is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engines.cache import slots_for, storage_dtype
from mythos_export.bundle import CachePart

__all__ = ["Footprint"]

_MASK_BYTES = 8  # int64, one a slot


class Footprint:
    """Bytes of rectangular caches with the parts of one manifest."""

    def __init__(self, parts: Sequence[CachePart], copies: int = 1) -> None:
        """Prepare; `copies` of each sequence lie in the cache of a batch."""
        self._copies = copies
        self._rows = [(part.depth, math.prod(part.row) * storage_dtype(part.dtype).itemsize) for part in parts]

    def bytes(self, sequences: int, slots: int, loops: int) -> int:
        """Of one cache for so many tokens a sequence."""
        slots = slots_for(slots)
        return sequences * (_MASK_BYTES * (slots + 1) + slots * sum(self._row_bytes(loops)))

    def worst(self, sequences: int, slots: int, loops: int) -> int:
        """The most that sequences of at most so many slots and loops ever hold.

        Wherever each of them lies, in its prefill's cache or in the batch's, it takes at most its
        share of one rectangle. The batch is laid out anew tensor by tensor, and then one of them is there twice.
        """
        slots, sequences = slots_for(slots), sequences * self._copies
        twice = max(self._row_bytes(loops), default=0)
        return self.bytes(sequences, slots, loops) + sequences * (slots * twice + _MASK_BYTES * (slots + 1))

    def _row_bytes(self, loops: int) -> list[int]:
        """Of one slot, by part."""
        return [(loops if depth == "loops" else depth) * size for depth, size in self._rows]
