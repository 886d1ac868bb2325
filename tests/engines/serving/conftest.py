"""Who listens, and who looks over the engine's shoulder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engines
from engines.engine import Engine
from engines.generation import Graph
from engines.sampling import Sampling
from engines.serving import Request, Scheduler, ServingLimits
from mythos_export.bundle import Bundle, GraphFile

Script = Callable[["Recorder"], bool]


class Recorder:
    """A listener that keeps what it hears, and checks that it hears it in order.

    `on_token` answers with `wants(self)`, `is_cancelled` with `gone(self)`.
    """

    def __init__(self, wants: Script = lambda _: True, gone: Script = lambda _: False) -> None:
        self.tokens: list[int] = []
        self.halting: list[int] = []
        self.ends: list[str] = []
        self.ended = threading.Event()
        self.threads: set[int] = set()
        self._wants, self._gone = wants, gone

    @property
    def end(self) -> str:
        assert len(self.ends) == 1, self.ends
        return self.ends[0]

    def on_token(self, token: int, halting_depth: int) -> bool:
        assert not self.ends
        assert type(token) is int and type(halting_depth) is int
        self.tokens.append(token)
        self.halting.append(halting_depth)
        self.threads.add(threading.get_ident())
        return self._wants(self)

    def on_finish(self, reason: str) -> None:
        self._end(reason)

    def on_error(self, message: str) -> None:
        self._end(f"error: {message}")

    def is_cancelled(self) -> bool:
        assert not self.ends
        return self._gone(self)

    def _end(self, how: str) -> None:
        self.threads.add(threading.get_ident())
        self.ends.append(how)
        self.ended.set()


class Spy:
    """A graph that notes its calls, and does something else instead where it is told to."""

    def __init__(self, graph: Graph, calls: list[dict[str, Any]], spied: Spied) -> None:
        self._graph, self._calls, self._spied = graph, calls, spied

    @property
    def loops(self) -> Any:
        return self._graph.loops

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        batch, seq = inputs["input_ids"].shape
        loops = inputs["n_loops"].tolist()
        for name, value in inputs.items():
            # what is not contiguous, the runtime would copy at every step
            assert value.flags.c_contiguous or not value.size, name
        past = {name: value.shape for name, value in inputs.items() if name.startswith("past.")}
        ids = inputs["input_ids"][inputs["attention_mask"][:, -seq:] == 1].tolist()
        self._calls.append({"batch": batch, "seq": seq, "loops": loops, "past": past, "ids": ids})
        self._spied.before(self._calls[-1])
        return self._spied.after(self._calls[-1], self._graph.run(inputs, outputs))


class Spied:
    """An engine whose calls are noted: dicts with batch, seq, loops, past (shapes) and ids (real tokens)."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls: list[dict[str, Any]] = []
        self.before: Callable[[dict[str, Any]], None] = lambda call: None
        self.after: Callable[[dict[str, Any], list[Any]], list[Any]] = lambda call, results: results
        load = engine.load_graph

        def spying(file: GraphFile) -> Graph:
            return Spy(load(file), self.calls, self)

        engine.load_graph = spying  # type: ignore[method-assign]

    @property
    def decodes(self) -> list[dict[str, Any]]:
        """Calls that had a past and one token each."""
        return [call for call in self.calls if call["seq"] == 1 and call["past"]["past.prelude.latent"][2]]


@pytest.fixture
def spied(toy_engine: Engine) -> Spied:
    """The toy, spied on."""
    return Spied(toy_engine)


@pytest.fixture
def spy_on() -> Callable[[Engine], Spied]:
    return Spied


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def serve() -> Callable[..., list[Recorder]]:
    """Run requests together to their end: `serve(engine, requests, **limits)`."""

    def run(engine: Engine, requests: Sequence[Request], **limits: int) -> list[Recorder]:
        scheduler = Scheduler(engine, ServingLimits(**limits))
        heard = [Recorder() for _ in requests]
        for request, listener in zip(requests, heard):
            scheduler.submit(request, listener)
        while scheduler.step():
            pass
        assert scheduler.stats[:4] == (0, 0, 0, 0)
        return heard

    return run


@pytest.fixture(scope="session")
def alone() -> Callable[[Engine, Request], list[int]]:
    """What the request gives when nothing else runs."""

    def tokens(engine: Engine, request: Request) -> list[int]:
        how = request.sampling
        return list(
            engine.generate(
                request.ids,
                request.loops,
                max_new_tokens=request.max_new_tokens,
                temperature=how.temperature,
                top_k=how.top_k,
                top_p=how.top_p,
                seed=how.seed,
                stop=request.stop,
            )
        )

    return tokens


@pytest.fixture(scope="session")
def many() -> Callable[..., list[Request]]:
    """Requests of every sort: `many(count, vocab, longest, deepest, tokens)`."""

    def make(count: int, vocab: int, longest: int, deepest: int, tokens: int) -> list[Request]:
        rng = np.random.default_rng(count)
        sorts = [Sampling(), Sampling(0.9, seed=3), Sampling(1.3, top_k=5, seed=9), Sampling(0.7, top_p=0.8, seed=1)]
        return [
            Request(
                rng.integers(vocab, size=rng.integers(1, longest + 1)).tolist(),
                loops=int(rng.integers(1, deepest + 1)),
                max_new_tokens=int(rng.integers(1, tokens + 1)),
                sampling=sorts[index % 4],
            )
            for index in range(count)
        ]

    return make


@pytest.fixture
def toy_engine_of(toy: Callable[..., Bundle]) -> Callable[..., Engine]:
    """An engine on any toy: `toy_engine_of(loops=[4, 8], dtype="bfloat16")`."""

    def make(**options: Any) -> Engine:
        path: Path = toy(**options).path
        return engines.load(path, threads=1)

    return make
