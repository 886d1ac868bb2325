"""What is timed: one way to run the model, behind the few calls that a turn makes.

Each contestant is run as its user would run it: its own defaults for waiting threads, its own cache, its own logits
(open-mythos computes those of every token of a prompt; bundles are asked for the last one only, as `generate` asks).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.cache import BFLOAT16, KVCache, storage_dtype
from engines.generation import Graph, RunningBatch
from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle, CachePart, GraphFile, Manifest
from tools.benchmarking.context import Context

__all__ = ["BundleContestant", "Contestant", "Running", "Spec", "resumed"]

Logits = NDArray[np.float32]  # [batch, vocab]


@dataclass(frozen=True)
class Spec:
    """A contestant, described well enough to make it in another process."""

    name: str
    kind: str  # open-mythos, compiled, bundle
    threads: int
    config: Mapping[str, Any]  # of the model
    checkpoint: Path | None  # of PyTorch's weights; drawn from the seed if None
    seed: int
    bundle: Path | None = None


class Running(ABC):
    """Sequences under way, that can be taken back to where they stood; most often one."""

    @abstractmethod
    def step(self, tokens: NDArray[np.int64]) -> Logits:
        """Take in a token each, [batch]."""

    @abstractmethod
    def rewind(self) -> None:
        """Forget all steps."""

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Memory of the cache."""


class Contestant(ABC):
    """One way to run the model."""

    precision = "fp32"

    @abstractmethod
    def import_runtime(self) -> None:
        """Import what is needed, so that its memory does not count as the model's."""

    @abstractmethod
    def load(self, loops: Sequence[int]) -> None:
        """Load, ready for these depths."""

    @abstractmethod
    def prefill(self, ids: Sequence[int], loops: int, room: int) -> tuple[Logits, Running]:
        """Read a prompt; `room` is how many tokens the sequence may grow to."""

    @abstractmethod
    def resume(self, context: Context, depths: Sequence[int], room: int) -> Running:
        """Sequences with this past, one per depth; none is deeper than the context."""

    @property
    def inside(self) -> float | None:
        """Seconds spent so far in the runtime's own call; None where nothing is outside it."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """The runtime, with its version."""


class BundleContestant(Contestant):
    """A bundle on ONNX Runtime."""

    def __init__(self, spec: Spec) -> None:
        assert spec.bundle is not None
        self._bundle = Bundle.open(spec.bundle, check_hashes=False)  # whoever made the spec has checked them
        self.precision = self._bundle.manifest.precision
        self._threads = spec.threads
        self._engine: _TimedEngine

    def import_runtime(self) -> None:
        """Import onnxruntime."""
        import onnxruntime

        self._version: str = onnxruntime.__version__

    def load(self, loops: Sequence[int]) -> None:
        """Create the sessions for these depths."""
        self._engine = _TimedEngine(self._bundle, threads=self._threads)
        for depth in loops:
            self._engine.graph(np.array([depth]))

    def prefill(self, ids: Sequence[int], loops: int, room: int) -> tuple[Logits, Running]:
        """As the engine starts a generation."""
        running = self._engine.start(list(ids), loops, capacity=room)
        return running.logits, _Continued(running)

    def resume(self, context: Context, depths: Sequence[int], room: int) -> Running:
        """Sequences whose cache is filled, and nothing run."""
        loops = np.array(depths, np.int64)
        return resumed(self._engine.graph(loops), self._bundle.manifest, context, loops, room)

    @property
    def inside(self) -> float:
        """Seconds in `session.run`, and in passing tensors to it."""
        return self._engine.inside

    def describe(self) -> str:
        """Its version."""
        return f"onnxruntime {self._version}"


def resumed(graph: Graph, manifest: Manifest, context: Context, depths: NDArray[np.int64], room: int) -> Running:
    """Sequences on a graph, with a past that nobody read."""
    running = _Resumed(graph, manifest, depths, room)
    running.hold(context)
    return running


class _TimedEngine(OnnxRuntimeEngine):
    """Counts the seconds inside its sessions."""

    inside = 0.0

    def load_graph(self, file: GraphFile) -> Graph:
        return _TimedGraph(super().load_graph(file), self)


class _TimedGraph:
    def __init__(self, graph: Graph, engine: _TimedEngine) -> None:
        self._graph, self._engine = graph, engine

    @property
    def loops(self) -> int | Literal["dynamic"]:
        return self._graph.loops

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        start = time.perf_counter()
        results = self._graph.run(inputs, outputs)
        self._engine.inside += time.perf_counter() - start
        return results


class _Continued(Running):
    """A prompt that the engine has read."""

    def __init__(self, running: RunningBatch) -> None:
        self._running = running

    def step(self, tokens: NDArray[np.int64]) -> Logits:
        return self._running.step(tokens)

    def rewind(self) -> None:
        raise NotImplementedError("a prompt is read once")

    @property
    def cache_bytes(self) -> int:
        return _cache_bytes(self._running.cache)


class _Resumed(RunningBatch, Running):
    """A running batch whose past was given and not read."""

    def __init__(self, graph: Graph, manifest: Manifest, loops: NDArray[np.int64], capacity: int) -> None:
        super().__init__(graph, manifest, loops, capacity)
        self._parts = manifest.cache
        self._past = 0

    def hold(self, context: Context) -> None:
        """Fill the cache; every sequence has the same past."""
        batch, self._past = len(self._lengths), context.past
        rows = [_stored(context, part, batch) for part in self._parts]
        self.cache.append(rows, np.ones((batch, context.past), np.int64))
        self.rewind()

    def rewind(self) -> None:
        self.cache.length = self._past
        self.cache.mask[:, self._past : self.cache.capacity] = 0
        self._lengths[:] = self._past

    @property
    def cache_bytes(self) -> int:
        return _cache_bytes(self.cache)


def _stored(context: Context, part: CachePart, batch: int) -> NDArray[Any]:
    """[depth, past, *row] -> [depth, batch, past, *row] in the type of the cache."""
    rows = context.rows[part.name]
    dtype = storage_dtype(part.dtype)
    bfloat16 = dtype == BFLOAT16  # the upper half of an fp32 number, as a bit pattern
    stored = (rows.view(np.uint32) >> 16).astype(BFLOAT16) if bfloat16 else rows.astype(dtype, copy=False)
    return np.broadcast_to(stored[:, None], (len(stored), batch, *stored.shape[1:]))


def _cache_bytes(cache: KVCache) -> int:
    return sum(buffer.nbytes for buffer in cache.past.values())
