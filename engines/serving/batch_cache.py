"""The cache of sequences that decode together: each with its own length, all in dense buffers.

A step writes each sequence's new row into that sequence's next slot and copies nothing else: the
buffers go into the graph whole, and the mask hides what is free. Only when sequences join or
leave, or the slots run out, is everything laid out anew, at the depth and the length still needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.cache import slots_for, storage_dtype
from engines.errors import EngineError
from mythos_export.bundle import CachePart

__all__ = ["BatchCache", "Buffers", "Held", "roomy"]

_SPARE_SLOTS, _GROWTH = 64, 1.25


class Buffers(Protocol):
    """Cached rows: `past.<name>` -> [depth, batch, capacity, *row]."""

    past: dict[str, NDArray[Any]]

    def drop(self, name: str) -> None:
        """Forget one tensor, so that its memory is free."""


class Held(NamedTuple):
    """Where the rows of one sequence lie: the first `length` slots in one row of a batch."""

    cache: Buffers
    row: int
    length: int
    loops: int  # depths that matter to it


def roomy(longest: int, most: int) -> int:
    """Slots to lay out where `longest` are taken and `most` is all that will ever be, rounded up by `slots_for`.

    They grow by a share of themselves, so all the copying of a long generation comes to a few
    copies of its rows.
    """
    return slots_for(min(most, int(_GROWTH * longest) + _SPARE_SLOTS))


class BatchCache:
    """Rows of every stage for the sequences of one batch.

    Attributes:
        bytes_copied: all bytes that this class has copied so far.
        capacity: slots per sequence.
        lengths: int64 [batch], slots that each sequence has filled.
        mask: int64 [batch, capacity + 1], the attention mask of a step of one token.
        past: `past.<name>` -> [depth, batch, capacity, *row], zero where free.
    """

    def __init__(self, parts: Sequence[CachePart]) -> None:
        self._parts = list(parts)
        self.bytes_copied = 0
        self.clear()

    def clear(self) -> None:
        """Free everything."""
        self.past: dict[str, NDArray[Any]] = {}
        self.capacity = 0
        self.lengths: NDArray[np.int64] = np.zeros(0, np.int64)
        self.mask: NDArray[np.int64] = np.zeros((0, 1), np.int64)

    @property
    def outputs(self) -> list[str]:
        """Names of the rows that `append` takes, in its order."""
        return [f"new.{part.name}" for part in self._parts]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.mask.nbytes + sum(buffer.nbytes for buffer in self.past.values())

    @property
    def full(self) -> bool:
        """Whether some sequence has no slot left for another token."""
        return bool(len(self.lengths)) and int(self.lengths.max()) >= self.capacity

    def held(self, row: int, loops: int) -> Held:
        """Where a sequence of this batch lies."""
        return Held(self, row, int(self.lengths[row]), loops)

    def drop(self, name: str) -> None:
        """Forget one tensor, so that its memory is free."""
        del self.past[name]

    def arrange(self, sequences: Sequence[Held], *, loops: int, capacity: int) -> None:
        """Lay out a batch of sequences out of this cache and others.

        Tensor by tensor: the old one is dropped, here and wherever a sequence comes from, before
        the next one is made.

        Args:
            sequences: from anywhere, in the new order.
            loops: depths to hold for the recurrent stage.

        Raises:
            EngineError: it does not fit into memory; what is left is of no use.
        """
        lengths = np.array([held.length for held in sequences], np.int64)
        self.mask = np.zeros((len(sequences), capacity + 1), np.int64)
        for part in self._parts:
            self._move(part, sequences, loops if part.depth == "loops" else part.depth, capacity)
        self.mask[:, :capacity] = np.arange(capacity) < lengths[:, None]
        self.mask[:, capacity] = 1
        self.lengths, self.capacity = lengths, capacity

    def append(self, rows: Sequence[NDArray[Any]]) -> None:
        """Write one new row per sequence, and make it visible.

        Args:
            rows: one [depth, batch, 1, *row] per part; deeper ones than those given stay as they are.

        Raises:
            EngineError: the graph returned rows of another shape.
        """
        batch = len(self.lengths)
        each = np.arange(batch)
        for part, new in zip(self._parts, rows):
            buffer = self.past[f"past.{part.name}"]
            if new.shape[1:] != (batch, 1, *part.row) or new.shape[0] > buffer.shape[0]:
                raise EngineError(
                    f"the graph returned new.{part.name} of shape {new.shape}: not what its manifest says"
                )
            buffer[: new.shape[0], each, self.lengths] = new[:, :, 0]
            self.bytes_copied += new.nbytes
        self.mask[each, self.lengths] = 1
        self.lengths += 1

    def _move(self, part: CachePart, sequences: Sequence[Held], depth: int, capacity: int) -> None:
        name = f"past.{part.name}"
        try:
            buffer = np.zeros((depth, len(sequences), capacity, *part.row), storage_dtype(part.dtype))
        except (MemoryError, ValueError) as error:  # ValueError: more bytes than an address can count
            raise EngineError(
                f"no memory for a cache of {len(sequences)} x {capacity} tokens; lower cache_bytes"
            ) from error
        for index, held in enumerate(sequences):
            kept = held.loops if part.depth == "loops" else depth
            rows = held.cache.past[name][:kept, held.row, : held.length]
            buffer[:kept, index, : held.length] = rows
            self.bytes_copied += rows.nbytes
        for cache in {id(held.cache): held.cache for held in sequences}.values():
            cache.drop(name)
        self.past[name] = buffer
