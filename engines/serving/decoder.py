"""Decoding: one token for every running sequence, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine
from engines.generation import Graph
from engines.serving.batch_cache import BatchCache, Held, roomy
from engines.serving.calls import Answer, call
from engines.serving.copies import row_copies
from engines.serving.ticket import Ticket

__all__ = ["Decoder"]


class Decoder:
    """The batch that runs.

    A row costs a loop's work at every depth of the deepest sequence, so who has finished is not carried along.
    Where the kernels want it (`row_copies`), the rows of a step are all sequences and then all of them again, also if
    there is but one.

    Attributes:
        cache: the cache, for its counters.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._copies = row_copies(engine.manifest)
        self.cache = BatchCache(engine.manifest.cache)
        self._tickets: list[Ticket] = []
        self._graph: Graph | None = None
        self._inputs: dict[str, NDArray[Any]] = {}

    def step(self, tickets: Sequence[Ticket], joining: Mapping[Ticket, Held]) -> Answer:
        """Feed each ticket's last token.

        Args:
            tickets: who runs, those that join included; who is missing has left.
            joining: where the prompts of those that join lie.

        Raises:
            EngineError: no memory, or the call failed.
        """
        if self._tickets != list(tickets) or self.cache.full:
            self._arrange(tickets, joining)
        self._inputs["input_ids"][:, 0] = [ticket.last for ticket in tickets] * self._copies
        self._inputs["position_ids"][:, 0] = self.cache.lengths
        assert self._graph is not None
        answer = call(self._graph, self._inputs, self.cache.outputs, self._engine.manifest.limits.vocab_size)
        self.cache.append(answer.rows)
        return Answer(answer.logits[: len(tickets)], answer.halting_depth[: len(tickets)], answer.rows)

    def settle(self, tickets: Sequence[Ticket]) -> None:
        """Give back the memory of those that have left.

        Raises:
            EngineError: no memory to lay out the others in.
        """
        if not tickets:
            self.clear()
        elif self._tickets != list(tickets):
            self._arrange(tickets, {})

    def clear(self) -> None:
        """Free everything."""
        self.cache.clear()
        self._tickets, self._graph, self._inputs = [], None, {}

    def _arrange(self, tickets: Sequence[Ticket], joining: Mapping[Ticket, Held]) -> None:
        rows = {ticket: row for row, ticket in enumerate(self._tickets)}
        sequences = [joining.get(ticket) or self.cache.held(rows[ticket], ticket.loops) for ticket in tickets]
        self._inputs = {}  # it refers to the old buffers, which are freed one by one
        depths = np.array([ticket.loops for ticket in tickets] * self._copies)
        self._graph = graph = self._engine.graph(depths)
        capacity = roomy(max(held.length for held in sequences), max(ticket.slots for ticket in tickets))
        held = int(depths.max()) if graph.loops == "dynamic" else graph.loops
        self.cache.arrange(sequences * self._copies, loops=held, capacity=capacity)
        self._tickets = list(tickets)
        self._inputs = {
            "input_ids": np.zeros((len(depths), 1), np.int64),
            "attention_mask": self.cache.mask,
            "position_ids": np.zeros((len(depths), 1), np.int64),
            "n_loops": depths,
            **self.cache.past,
        }
