"""The key/value cache: buffers allocated once, fed to the graph whole, and appended to in place.

A step costs the bytes of its new rows and nothing else. The whole buffer goes in as `past.<name>`
and the attention mask hides the slots nobody has written yet: a slice up to the last token would
not be contiguous, and the runtime would copy the cache at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from mythos_export.bundle import CachePart

__all__ = ["BFLOAT16", "KVCache", "slots_for", "storage_dtype"]

_VECTOR = 16  # floats in a CPU's widest
_FEWEST = 80  # slots; for up to 64, ONNX Runtime cuts the sums over rows of more than 128 numbers elsewhere

BFLOAT16 = np.dtype(np.uint16)  # numpy has no bfloat16: its bit patterns are kept, and 0 is 0
_STORAGE: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
}


def storage_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype that holds tensors of this type of the manifest.

    Raises:
        EngineError: a type no cache can have.
    """
    if name not in _STORAGE:
        known = ", ".join(_STORAGE)
        raise EngineError(f"a cache of {name!r} is unknown to this release (known: {known}); upgrade mythos-export")
    return _STORAGE[name]


def slots_for(tokens: int) -> int:
    """Slots to allocate for so many tokens: with the new token behind them they fill whole vectors, and not too few.

    A CPU adds up in vectors, so where the new token lies in one decides the order of additions. Here it is always
    the last, however much room there is: a sequence gets the same bits in any batch.
    """
    return max(-(-(tokens + 1) // _VECTOR) * _VECTOR, _FEWEST) - 1 if tokens else 0


class KVCache:
    """Rows of every stage for one running batch.

    Attributes:
        capacity: slots that may be filled, of each sequence; allocated are `slots_for` of them.
        length: slots filled.
        bytes_copied: all bytes that this class has copied so far; grows by the new rows only.
        mask: int64 [batch, slots + 1], the attention mask of a step of one token: 1 where a slot
            holds a real token, 0 for padding and free slots, 1 for the new token at the end.
        past: `past.<name>` -> [depth, batch, slots, *row], zero where free.
    """

    def __init__(self, parts: Sequence[CachePart], *, loops: int, batch: int, capacity: int) -> None:
        """Allocate.

        Args:
            parts: the manifest's `cache`.
            loops: depths to hold for the recurrent stage.

        Raises:
            EngineError: it does not fit into memory.
        """
        self.capacity, self.length, self.bytes_copied = capacity, 0, 0
        self._batch, self._slots = batch, slots_for(capacity)
        self._rows = [tuple(part.row) for part in parts]
        self._names = [part.name for part in parts]
        dtypes = [storage_dtype(part.dtype) for part in parts]
        depths = [loops if part.depth == "loops" else part.depth for part in parts]
        try:
            self._buffers = [
                np.zeros((depth, batch, self._slots, *row), dtype)
                for depth, row, dtype in zip(depths, self._rows, dtypes)
            ]
            self.mask: NDArray[np.int64] = np.zeros((batch, self._slots + 1), np.int64)
        except (MemoryError, ValueError) as error:  # ValueError: more bytes than an address can count
            raise EngineError(
                f"no memory for a cache of {batch} x {capacity} tokens at {loops} loops; "
                "ask for fewer tokens, sequences or loops"
            ) from error
        self.mask[:, self._slots] = 1
        self.past: dict[str, NDArray[Any]] = dict(zip((f"past.{name}" for name in self._names), self._buffers))

    @property
    def outputs(self) -> list[str]:
        """Names of the rows that `append` takes, in its order."""
        return [f"new.{name}" for name in self._names]

    def inputs(self, new_mask: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """`past.…` and `attention_mask` for a call with new tokens.

        Args:
            new_mask: int64 [batch, seq].
        """
        if not self.length:  # nothing to look at: spare the graph the empty slots
            past = {name: buffer[:, :, :0] for name, buffer in self.past.items()}
            return {**past, "attention_mask": np.ascontiguousarray(new_mask)}
        mask = np.concatenate((self.mask[:, : self._slots], new_mask), axis=1)
        self.bytes_copied += mask.nbytes
        return {**self.past, "attention_mask": mask}

    def append(self, rows: Sequence[NDArray[Any]], new_mask: NDArray[np.int64] | None = None) -> None:
        """Write the rows of new tokens into the next free slots.

        Args:
            rows: one [depth, batch, seq, *row] per part; fewer depths than the buffer's leave the deeper ones 0.
            new_mask: int64 [batch, seq]; one real token each if None.

        Raises:
            EngineError: no room, or the graph returned rows of another shape.
        """
        seq = 1 if new_mask is None else new_mask.shape[1]
        self.require_room(seq)
        start, end = self.length, self.length + seq
        for name, shape, buffer, new in zip(self._names, self._rows, self._buffers, rows):
            if new.shape[1:] != (self._batch, seq, *shape) or new.shape[0] > buffer.shape[0]:
                raise EngineError(f"the graph returned new.{name} of shape {new.shape}: not what its manifest says")
            buffer[: new.shape[0], :, start:end] = new
            self.bytes_copied += new.nbytes
        self.mask[:, start:end] = 1 if new_mask is None else new_mask
        self.bytes_copied += 8 * self._batch * seq
        self.length = end

    def require_room(self, seq: int) -> None:
        """Make sure that `seq` more tokens fit.

        Raises:
            EngineError: they do not.
        """
        if self.length + seq > self.capacity:
            raise EngineError(
                f"the cache is full: {self.length} of {self.capacity} slots are taken and {seq} more are needed; "
                "start with more capacity"
            )
