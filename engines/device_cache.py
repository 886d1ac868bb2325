"""The key/value cache in device memory: allocated once, read by the engine where it lies, appended to in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.cache import storage_dtype
from engines.cuda import Cuda
from engines.errors import EngineError
from mythos_export.bundle import CachePart

__all__ = ["DeviceCache", "DeviceTensor"]


class DeviceTensor(NamedTuple):
    """A contiguous tensor in device memory."""

    address: int
    shape: tuple[int, ...]


class DeviceCache:
    """As `engines.cache.KVCache`, with its rows on the device; the mask stays on the host.

    Attributes:
        past: `past.<name>` -> [depth, batch, capacity, *row], zero where free.
    """

    def __init__(self, cuda: Cuda, parts: Sequence[CachePart], *, loops: int, batch: int, capacity: int) -> None:
        """Allocate; arguments as of `KVCache`.

        Raises:
            EngineError: it does not fit into the device's memory.
        """
        self.capacity, self.length, self.bytes_copied = capacity, 0, 0
        self._cuda, self._batch, self._names = cuda, batch, [part.name for part in parts]
        self._row_bytes = [math.prod(part.row) * storage_dtype(part.dtype).itemsize for part in parts]
        self.mask: NDArray[np.int64] = np.zeros((batch, capacity + 1), np.int64)
        self.mask[:, capacity] = 1
        self.past: dict[str, DeviceTensor] = {}
        for part, row in zip(parts, self._row_bytes):
            shape = (loops if part.depth == "loops" else part.depth, batch, capacity, *part.row)
            address = cuda.allocate(shape[0] * batch * capacity * row)
            self.past[f"past.{part.name}"] = DeviceTensor(address, shape)

    @property
    def outputs(self) -> list[str]:
        """Names of the rows that `append` takes, in its order."""
        return [f"new.{name}" for name in self._names]

    def inputs(self, new_mask: NDArray[np.int64]) -> dict[str, Any]:
        """`past.…` and `attention_mask` for a call with new tokens, int64 [batch, seq]."""
        if not self.length:
            past = {name: whole._replace(shape=_empty(whole.shape)) for name, whole in self.past.items()}
            return {**past, "attention_mask": np.ascontiguousarray(new_mask)}
        return {**self.past, "attention_mask": np.concatenate((self.mask[:, : self.capacity], new_mask), axis=1)}

    def append(self, rows: Sequence[DeviceTensor], new_mask: NDArray[np.int64] | None = None) -> None:
        """Copy the rows of new tokens into the next free slots, on the device.

        Raises:
            EngineError: no room, or the engine returned rows of another shape.
        """
        seq = 1 if new_mask is None else new_mask.shape[1]
        self.require_room(seq)
        for whole, row, new in zip(self.past.values(), self._row_bytes, rows):
            if new.shape[1:] != (self._batch, seq, *whole.shape[3:]) or new.shape[0] > whole.shape[0]:
                raise EngineError(f"the engine returned rows of shape {new.shape}: not what its manifest says")
            to, pitch = whole.address + self.length * row, self.capacity * row
            self._cuda.copy_rows(to, pitch, new.address, seq * row, new.shape[0] * self._batch)
            self.bytes_copied += math.prod(new.shape[:3]) * row
        self.mask[:, self.length : self.length + seq] = 1 if new_mask is None else new_mask
        self.length += seq

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

    def __del__(self) -> None:
        for whole in getattr(self, "past", {}).values():
            self._cuda.free(whole.address)


def _empty(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], 0, *shape[3:])
