"""Prefill, decode and stop: the same over every engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.cache import KVCache
from engines.errors import EngineError
from engines.prompts import Loops, Prompts, read_loops
from engines.sampling import Sampler
from mythos_export.bundle import Manifest

__all__ = ["Graph", "RunningBatch", "Stops", "stream"]

Stop = int | Sequence[int | Sequence[int]]


class Graph(Protocol):
    """One loaded graph of a bundle; whatever runs it, tensors go in and out by their contract names."""

    @property
    def loops(self) -> int | Literal["dynamic"]:
        """The depth it is unrolled to, or "dynamic"."""

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Run once; the outputs asked for, in that order.

        Raises:
            EngineError: the runtime failed.
        """


class RunningBatch:
    """Sequences under way: their cache, their positions and their depth.

    A sequence keeps its depth for life: its cache holds that many depths of every token. It may go
    shallower, and then stays so.

    Attributes:
        logits: fp32 [batch, vocab], of the last token.
        halting_depth: int64 [batch], loops that ran before ACT halted the last token.
        cache: the cache, for its counters.
    """

    logits: NDArray[np.float32]
    halting_depth: NDArray[np.int64]

    def __init__(self, graph: Graph, manifest: Manifest, loops: NDArray[np.int64], capacity: int) -> None:
        """Allocate for sequences of at most `capacity` tokens, padding included; `loops` int64 [batch]."""
        batch = len(loops)
        self._graph, self._limits = graph, manifest.limits
        self._n_loops = loops.copy()
        depth = graph.loops if isinstance(graph.loops, int) else int(loops.max())
        make_cache = getattr(graph, "new_cache", KVCache)  # where the runtime's memory is not the host's
        self.cache: KVCache = make_cache(manifest.cache, loops=depth, batch=batch, capacity=capacity)
        self._outputs = ["logits", "halting.depth", *self.cache.outputs]
        self._lengths = np.zeros(batch, np.int64)  # real tokens so far
        # inputs of a decode step, made once and changed in place
        self._tokens = np.zeros((batch, 1), np.int64)
        self._positions = np.zeros((batch, 1), np.int64)
        self._step: dict[str, NDArray[Any]] = {
            "input_ids": self._tokens,
            "attention_mask": self.cache.mask,
            "position_ids": self._positions,
            "n_loops": self._n_loops,
            "logits_to_keep": np.array(1, np.int64),
            **self.cache.past,
        }

    def extend(self, prompts: Prompts, logits_to_keep: int = 1) -> NDArray[np.float32]:
        """Take in several tokens per sequence at once (padding on the left).

        Returns:
            Logits of the last k positions, [batch, k, vocab]; of all if `logits_to_keep` is 0.

        Raises:
            EngineError: no room left.
        """
        mask, real = prompts.mask, prompts.mask.sum(axis=1)
        if len(mask) != len(self._lengths):
            raise EngineError(f"{len(mask)} prompts for a batch of {len(self._lengths)} sequences")
        self._require_room(mask.shape[1], int((self._lengths + real).max()))
        logits, halting, *rows = self._graph.run(self._inputs(prompts, logits_to_keep), self._outputs)
        self.cache.append(rows, mask)
        self._lengths += real
        self.logits, self.halting_depth = logits[:, -1], halting[:, -1]
        return logits

    def peek(self, prompts: Prompts, output: str, logits_to_keep: int = 0) -> NDArray[Any]:
        """One output of the graph for tokens that are not kept."""
        return self._graph.run(self._inputs(prompts, logits_to_keep), [output])[0]

    def step(self, tokens: Sequence[int] | NDArray[np.int64], loops: Loops | None = None) -> NDArray[np.float32]:
        """Take in one token per sequence.

        Args:
            tokens: [batch].
            loops: from now on; no deeper than it was.

        Returns:
            Logits of the next token, [batch, vocab].

        Raises:
            EngineError: a bad token, deeper loops than the cache holds, or no room left.
        """
        self._require_room(1, int(self._lengths.max()) + 1)
        self._take(np.asarray(tokens))
        if loops is not None:
            self._lower_loops(read_loops(loops, len(self._n_loops)))
        self._positions[:, 0] = self._lengths
        logits, halting, *rows = self._graph.run(self._step, self._outputs)
        self.cache.append(rows)
        self._lengths += 1
        self.logits, self.halting_depth = logits[:, -1], halting[:, -1]
        return self.logits

    def retire(self, finished: NDArray[np.bool_]) -> None:
        """Spend one loop only on sequences whose further tokens nobody reads; bool [batch]."""
        self._n_loops[finished] = 1

    def _inputs(self, prompts: Prompts, logits_to_keep: int) -> dict[str, NDArray[Any]]:
        counted = self._lengths[:, None] + prompts.mask.cumsum(axis=1) - 1  # positions count real tokens, not slots
        return {
            "input_ids": np.ascontiguousarray(prompts.ids),
            "position_ids": counted.clip(min=0),
            "n_loops": self._n_loops,
            "logits_to_keep": np.array(logits_to_keep, np.int64),
            **self.cache.inputs(prompts.mask),
        }

    def _take(self, tokens: NDArray[Any]) -> None:
        if tokens.shape != self._lengths.shape or tokens.dtype.kind not in "iu":
            raise EngineError(f"a step takes {len(self._lengths)} integers, one token per sequence")
        vocab = self._limits.vocab_size
        for token in tokens.tolist():
            if not 0 <= token < vocab:
                raise EngineError(f"token id {token} is outside the vocabulary 0..{vocab - 1}")
        self._tokens[:, 0] = tokens

    def _lower_loops(self, loops: NDArray[np.int64]) -> None:
        for index, (now, held) in enumerate(zip(loops.tolist(), self._n_loops.tolist())):
            if now > held:
                raise EngineError(
                    f"loops is {now} but the cache of sequence {index} holds {held}; "
                    "a sequence keeps its depth for life, so start it again to go deeper"
                )
        self._n_loops[:] = loops

    def _require_room(self, slots: int, tokens: int) -> None:
        self.cache.require_room(slots)
        if tokens > self._limits.max_seq_len:
            limit = self._limits.max_seq_len
            raise EngineError(f"a sequence would grow to {tokens} tokens, more than max_seq_len {limit}")


class Stops:
    """What ends a sequence: a token, or several in a row."""

    def __init__(self, stop: Stop, batch: int, vocab: int, end_ids: Sequence[int] = ()) -> None:
        """Check the stops.

        Args:
            stop: a token id, or several entries, each an id or a sequence of ids that must come in a row.
            end_ids: further ids, the model's own.

        Raises:
            EngineError: an entry is not that, or holds an id outside the vocabulary.
        """
        if isinstance(stop, (int, np.integer)):
            stop = [int(stop)] if not isinstance(stop, bool) else [stop]
        if isinstance(stop, (str, bytes)) or not hasattr(stop, "__iter__"):
            raise EngineError(f"stop is {stop!r}; it must be a token id, or a list of them")
        entries = list(stop)
        self._ends = tuple({self._entry(entry, vocab) for entry in [*entries, *end_ids]})
        self._keep = max((len(end) for end in self._ends), default=0)
        self._tails: list[tuple[int, ...]] = [()] * batch

    def reached(self, index: int, token: int) -> bool:
        """Add a token to a sequence; whether that ends it."""
        if not self._keep:
            return False
        tail = self._tails[index] = (*self._tails[index], token)[-self._keep :]
        return any(tail[-len(end) :] == end for end in self._ends)

    @staticmethod
    def _entry(entry: Any, vocab: int) -> tuple[int, ...]:
        ids = (entry,) if isinstance(entry, (int, np.integer)) else entry
        if isinstance(ids, (str, bytes)) or not hasattr(ids, "__len__") or not len(ids):
            raise EngineError(f"stop holds {entry!r}; it must be a token id, or several in a row")
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not 0 <= token < vocab:
                raise EngineError(f"stop holds {token!r}, which is not a token id in 0..{vocab - 1}")
        return tuple(int(token) for token in ids)


def stream(running: RunningBatch, sampler: Sampler, stops: Stops, max_new_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Tokens of prefilled sequences, int64 [batch] a step.

    A sequence that stops yields its stop token, then -1; the stream ends with the last of them.
    """
    finished = np.zeros(len(running.logits), bool)
    for produced in range(1, max_new_tokens + 1):
        tokens = sampler.choose(running.logits, finished)
        live = [index for index, token in enumerate(tokens.tolist()) if token >= 0]
        ended = [index for index in live if stops.reached(index, int(tokens[index]))]
        if ended:
            finished[ended] = True
            running.retire(finished)
        fed = np.where(finished, 0, tokens)  # what a finished sequence is fed matters to nobody
        yield tokens
        if finished.all() or produced == max_new_tokens:
            return
        running.step(fed)
