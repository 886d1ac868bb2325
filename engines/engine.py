"""What every engine offers: logits, generation, and a running batch for a server to drive."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.generation import Graph, RunningBatch, Stop, Stops, stream
from engines.prompts import Ids, Loops, Prompts, check_count, read_loops, read_prompts
from engines.sampling import Sampler, Sampling
from engines.text import Tokenizer
from mythos_export.bundle import Bundle, GraphFile, TensorSpec

__all__ = ["Engine", "Plan", "Signature"]

_DEFAULT_NEW_TOKENS = 128


class Signature(NamedTuple):
    """Inputs and outputs of the graph."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class Plan(NamedTuple):
    """What a generation comes to, once checked."""

    prompts: Prompts
    depths: NDArray[np.int64]  # [batch]
    max_new_tokens: int


class Engine(ABC):
    """Runs one bundle.

    Wherever `ids` is asked for, a flat list is one prompt, and nested lists (ragged ones are padded
    on the left) or an array [batch, seq] are several; the answer has a batch dimension only for several.
    `loops` is one depth for all or one per sequence; by default the depth the model was made for.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self._graphs: dict[str, Graph] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def load_graph(self, file: GraphFile) -> Graph:
        """Load one graph of the bundle, whether or not a depth asks for it.

        Raises:
            EngineError: it cannot be loaded.
        """

    @property
    def signature(self) -> Signature:
        """Names, types and shapes of what goes in and out of the graph."""
        return Signature(self.manifest.inputs, self.manifest.outputs)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer.

        Raises:
            EngineError: it has none.
        """
        return Tokenizer.open(self.bundle)

    @property
    def default_loops(self) -> int:
        """The depth used when none is given."""
        depths = [graph.loops for graph in self.manifest.graphs]
        return self.manifest.limits.max_loop_iters if "dynamic" in depths else max(map(int, depths))

    def logits(
        self, ids: Ids, loops: Loops | None = None, *, attention_mask: Any = None, logits_to_keep: int = 0
    ) -> NDArray[np.float32]:
        """Logits [seq, vocab] of one prompt, [batch, seq, vocab] of several (meaningless where padded).

        Args:
            attention_mask: shape of `ids`, 1 real, 0 padding on the left.
            logits_to_keep: of the last k positions only; 0 for all.

        Raises:
            EngineError: see `engines.prompts`.
        """
        check_count("logits_to_keep", logits_to_keep, low=0)
        return self._forward("logits", ids, loops, attention_mask, logits_to_keep)

    def halting_depth(self, ids: Ids, loops: Loops | None = None, *, attention_mask: Any = None) -> NDArray[np.int64]:
        """Loops that ran before ACT halted each token, int64 [seq] or [batch, seq]; its `loops` where it never did.

        Raises:
            EngineError: see `engines.prompts`.
        """
        return self._forward("halting.depth", ids, loops, attention_mask, 1)

    def start(
        self,
        ids: Ids,
        loops: Loops | None = None,
        *,
        capacity: int,
        attention_mask: Any = None,
        prefill_chunk: int | None = None,
    ) -> RunningBatch:
        """Prefill, and hand over the running sequences; `step` them one token at a time.

        Args:
            capacity: slots per sequence: prompt (with padding) and every token that will be fed.
            prefill_chunk: tokens per call of the graph; the whole prompt at once if None.

        Raises:
            EngineError: a bad prompt, depth or capacity.
        """
        prompts, depths = self._read(ids, loops, attention_mask)
        check_count("capacity", capacity, low=prompts.ids.shape[1])
        return self._prefill(prompts, depths, capacity, _chunk(prefill_chunk))

    def generate(
        self,
        ids: Ids,
        loops: Loops | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Stop = (),
        ignore_eos: bool = False,
        attention_mask: Any = None,
        prefill_chunk: int | None = None,
    ) -> Iterator[Any]:
        """Generate, as a stream.

        Everything is checked here; the model runs as the stream is read.

        Args:
            max_new_tokens: by default 128, or what `max_seq_len` leaves.
            temperature, top_k, top_p, seed: see `engines.sampling.Sampling`; greedy by default.
            stop: a token id, or several entries, each an id or a sequence of ids that must come in a row; they end an
                answer as the bundle's own end ids do.
            ignore_eos: go on after the bundle's own end ids.
            prefill_chunk: tokens per call of the graph; the whole prompt at once if None.

        Returns:
            Tokens as plain ints for one prompt; int64 [batch] a step for several. A sequence that
            stops yields its stop token, then -1 until the last one stops.

        Raises:
            EngineError: a bad prompt, depth or option, or more tokens than `max_seq_len`.
        """
        prompts, depths, count = self.plan(ids, loops, max_new_tokens=max_new_tokens, attention_mask=attention_mask)
        sampling = Sampling(temperature, top_k, top_p, seed)
        stops = self.stops(stop, len(depths), ignore_eos=ignore_eos)
        chunk = _chunk(prefill_chunk)

        def tokens() -> Iterator[Any]:
            # the last token is yielded and never fed, so it needs no slot
            running = self._prefill(prompts, depths, prompts.ids.shape[1] + count - 1, chunk)
            for step in stream(running, Sampler(sampling, len(depths)), stops, count):
                yield int(step[0]) if prompts.single else step

        return tokens()

    def plan(
        self, ids: Ids, loops: Loops | None = None, *, max_new_tokens: int | None = None, attention_mask: Any = None
    ) -> Plan:
        """Check what is asked of `generate`, and settle what was left open; runs and loads nothing.

        Raises:
            EngineError: a bad prompt or depth, or more tokens than `max_seq_len`.
        """
        prompts, depths = self._read(ids, loops, attention_mask)
        return Plan(prompts, depths, self._count(prompts, max_new_tokens))

    @property
    def end_ids(self) -> list[int]:
        """Ids of which any ends an answer, as the model's own files say."""
        return list(self.manifest.text.end) if self.manifest.text is not None else []

    def stops(self, stop: Stop, batch: int, *, ignore_eos: bool) -> Stops:
        """What ends each sequence of a batch.

        Raises:
            EngineError: a stop is none.
        """
        return Stops(stop, batch, self.manifest.limits.vocab_size, () if ignore_eos else self.end_ids)

    def cached_loops(self, loops: int) -> int:
        """Depths that the cache of a batch holds whose deepest sequence has `loops`.

        Raises:
            EngineError: no graph has them.
        """
        graph = self._pick(np.array([loops]))
        return loops if graph.loops == "dynamic" else graph.loops

    def graph(self, depths: NDArray[np.int64]) -> Graph:
        """The graph for a batch of these depths, loaded when first needed.

        Raises:
            EngineError: none has them, or it cannot be loaded.
        """
        file = self._pick(depths)
        with self._lock:
            if file.file not in self._graphs:
                self._graphs[file.file] = self.load_graph(file)
            return self._graphs[file.file]

    def _read(self, ids: Ids, loops: Loops | None, attention_mask: Any) -> tuple[Prompts, NDArray[np.int64]]:
        prompts = read_prompts(ids, attention_mask, self.manifest.limits)
        depths = read_loops(self.default_loops if loops is None else loops, len(prompts.ids))
        self._pick(depths)  # a depth that no graph has is an error before anything runs
        return prompts, depths

    def _forward(self, output: str, ids: Ids, loops: Loops | None, attention_mask: Any, keep: int) -> NDArray[Any]:
        prompts, depths = self._read(ids, loops, attention_mask)
        running = RunningBatch(self.graph(depths), self.manifest, depths, capacity=0)
        result = running.peek(prompts, output, keep)
        return result[0] if prompts.single else result

    def _prefill(self, prompts: Prompts, depths: NDArray[np.int64], capacity: int, chunk: int | None) -> RunningBatch:
        running = RunningBatch(self.graph(depths), self.manifest, depths, capacity)
        for part in prompts.chunks(chunk):
            running.extend(part)
        return running

    def _count(self, prompts: Prompts, max_new_tokens: int | None) -> int:
        limit = self.manifest.limits.max_seq_len
        room = limit - prompts.longest
        if room < 1:
            raise EngineError(f"a prompt of {prompts.longest} tokens fills max_seq_len {limit}; shorten it")
        if max_new_tokens is None:
            return min(_DEFAULT_NEW_TOKENS, room)
        if check_count("max_new_tokens", max_new_tokens) > room:
            raise EngineError(
                f"a prompt of {prompts.longest} tokens and max_new_tokens {max_new_tokens} exceed "
                f"max_seq_len {limit}; ask for at most {room}"
            )
        return int(max_new_tokens)

    def _pick(self, depths: NDArray[np.int64]) -> GraphFile:
        """Unrolled to exactly the depth, else the Loop, else unrolled deeper (exact too: it freezes)."""
        wanted = int(depths.max())
        unrolled = {graph.loops: graph for graph in self.manifest.graphs if isinstance(graph.loops, int)}
        if wanted in unrolled:
            return unrolled[wanted]
        for graph in self.manifest.graphs:
            if graph.loops == "dynamic":
                return graph
        deeper = [depth for depth in unrolled if depth > wanted]
        if deeper:
            return unrolled[min(deeper)]
        known = ", ".join(map(str, sorted(unrolled)))
        raise EngineError(
            f"loops is {wanted}, but the graphs of this bundle are unrolled to {known}; export with --loops dynamic"
        )


def _chunk(prefill_chunk: int | None) -> int | None:
    return None if prefill_chunk is None else check_count("prefill_chunk", prefill_chunk)
