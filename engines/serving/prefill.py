"""Reading prompts: a chunk a call, or several short ones of one length in one call.

Others are not padded to that length: it would shift a prompt in its cache, and with it the order of additions.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from engines.cache import KVCache
from engines.engine import Engine
from engines.prompts import Prompts
from engines.serving.batch_cache import Held
from engines.serving.calls import Answer, call
from engines.serving.ticket import Ticket

__all__ = ["Prefill", "next_prefill"]


class PrefillCache(KVCache):
    """A cache whose tensors are handed over one at a time."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.mask.nbytes + sum(buffer.nbytes for buffer in self._buffers)

    def drop(self, name: str) -> None:
        """Forget one tensor, so that its memory is free."""
        dropped = self.past.pop(name)
        self._buffers = [buffer for buffer in self._buffers if buffer is not dropped]


class Prefill:
    """Prompts of one length on their way into a cache.

    Attributes:
        tickets: whose prompts; several only if one call reads them all.
        last_read: tokens that the last call read.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.tickets = [ticket]
        self.last_read = 0
        self._cache: PrefillCache | None = None
        self._chunks: list[Prompts] = []

    @property
    def started(self) -> bool:
        """Whether a chunk has been read."""
        return self._cache is not None

    @property
    def done(self) -> bool:
        """Whether everything has been read."""
        return self.started and not self._chunks

    @property
    def width(self) -> int:
        """Tokens of each prompt."""
        return len(self.tickets[0].ids)

    @property
    def nbytes(self) -> int:
        """Bytes of its cache."""
        return 0 if self._cache is None else self._cache.nbytes

    def step(self, engine: Engine, chunk: int) -> Answer:
        """Read up to `chunk` tokens of each prompt.

        Raises:
            EngineError: no memory, or the call failed.
        """
        depths = np.array([ticket.loops for ticket in self.tickets])
        graph = engine.graph(depths)
        if self._cache is None:
            held = int(depths.max()) if graph.loops == "dynamic" else graph.loops
            self._cache = PrefillCache(engine.manifest.cache, loops=held, batch=len(depths), capacity=self.width)
            ids = np.stack([ticket.ids for ticket in self.tickets])
            self._chunks = Prompts(ids, np.ones_like(ids), single=False).chunks(chunk)
        cache, part = self._cache, self._chunks.pop(0)
        inputs: dict[str, Any] = {
            "input_ids": np.ascontiguousarray(part.ids),
            "position_ids": cache.length + part.mask.cumsum(axis=1) - 1,
            "n_loops": depths,
            **cache.inputs(part.mask),
        }
        answer = call(graph, inputs, cache.outputs, engine.manifest.limits.vocab_size)
        cache.append(answer.rows, part.mask)
        self.last_read = part.ids.size
        return answer

    def held(self, row: int) -> Held:
        """Where a prompt lies, once everything has been read."""
        assert self._cache is not None
        return Held(self._cache, row, self.width, self.tickets[row].loops)


def next_prefill(turns: deque[Prefill], together: int) -> Prefill:
    """Take out whose turn it is, and with it those of the same length.

    Args:
        together: tokens of several prompts in one call, at most; a chunk, or 0 where each must be read alone.
    """
    chosen = turns.popleft()
    for other in list(turns):  # one that takes several calls is longer than a chunk, and fits with none
        if chosen.width == other.width and chosen.width * (len(chosen.tickets) + 1) <= together:
            turns.remove(other)
            chosen.tickets += other.tickets
    return chosen
