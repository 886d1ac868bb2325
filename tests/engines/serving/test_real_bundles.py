"""The promise of the scheduler, on exported bundles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stored_weights import eventful_weights

import engines
from engines import Engine
from engines.sampling import Sampling
from engines.serving import Request, Scheduler, ServingLimits
from engines.serving.ticket import Ticket
from reference_model.open_mythos.config import MythosConfig

Serve = Callable[..., list[Any]]
Alone = Callable[[Engine, Request], list[int]]
Logits = list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def eventful_bundle(make_bundle: Callable[..., Any], mla_config: MythosConfig) -> Path:
    """One whose tokens halt at different depths, and choose their experts."""
    path: Path = make_bundle(mla_config, source=eventful_weights(mla_config)).path
    assert len(set(engines.load(path).halting_depth(list(range(60)), 12).tolist())) > 3
    return path


@pytest.fixture(scope="module", params=["tiny_bundle", "tiny_gqa_bundle", "eventful_bundle"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return engines.load(request.getfixturevalue(request.param), threads=1)


@pytest.fixture(scope="module")
def requests(many: Callable[..., list[Request]]) -> list[Request]:
    return many(40, 97, 60, 24, 40)


@pytest.fixture(scope="module")
def expected(engine: Engine, alone: Alone, requests: list[Request]) -> list[list[int]]:
    return [alone(engine, request) for request in requests]


@pytest.mark.parametrize(("chunk", "batch"), [(256, 40), (7, 12)])
def test_mixed_depths_lengths_and_seeds(
    engine: Engine, serve: Serve, requests: list[Request], expected: list[list[int]], chunk: int, batch: int
) -> None:
    heard = serve(engine, requests, max_batch=batch, prefill_chunk=chunk)
    assert [each.tokens for each in heard] == expected


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Logits]:
    """What the scheduler chooses each listener's tokens from."""
    noted: dict[Any, Logits] = defaultdict(list)
    accept = Ticket.accept

    def noting(self: Ticket, row: NDArray[np.float32], halting_depth: int) -> Any:
        noted[self._listener].append(row.copy())
        return accept(self, row, halting_depth)

    monkeypatch.setattr(Ticket, "accept", noting)
    return noted


def logits_alone(engine: Engine, request: Request, tokens: list[int], chunk: int) -> Logits:
    """What they would be chosen from if nothing else ran."""
    capacity = len(request.ids) + len(tokens) - 1
    running = engine.start(request.ids, request.loops, capacity=capacity, prefill_chunk=chunk)
    return [running.logits[0], *(running.step([token])[0] for token in tokens[:-1])]


@pytest.mark.parametrize(("batch", "chunk"), [(1, 256), (4, 256), (16, 256), (4, 7), (16, 16)])
def test_a_sequence_gets_the_same_bits_in_any_batch(
    engine: Engine, recorder: Any, many: Callable[..., list[Request]], logits: dict[Any, Logits], batch: int, chunk: int
) -> None:
    """All logits of requests of mixed depths and lengths that come and go, one of them over several layouts."""
    others = [replace(each, loops=1 + index % 12) for index, each in enumerate(many(24, 97, 70, 12, 24))]
    twins = [replace(others[0], loops=depth, ids=[depth] * 5) for depth in (3, 9, 1)]  # read in one call
    requests = [Request([1, 2, 3], loops=4, max_new_tokens=250), *twins, *others]
    scheduler, heard = Scheduler(engine, ServingLimits(max_batch=batch, prefill_chunk=chunk)), []
    capacities, running = set(), set()
    busy = True
    while busy:
        for request in requests[len(heard) : len(heard) + 4]:  # four more a step
            heard.append(recorder())
            scheduler.submit(request, heard[-1])
        busy = scheduler.step()
        capacities.add(scheduler._decoder.cache.capacity)
        running.add(scheduler.stats.running)
    assert len(capacities - {0}) >= 3 and min(capacities - {0}) < 128 < max(capacities)
    assert max(running) >= min(batch, 8)
    for request, listener in zip(requests, heard):
        assert listener.end == "length"
        expected = logits_alone(engine, request, listener.tokens, chunk)
        assert len(logits[listener]) == len(expected) == request.max_new_tokens
        for index, (row, alone) in enumerate(zip(logits[listener], expected)):
            assert np.array_equal(row, alone), (len(request.ids), request.loops, index)


def test_halting_depths_are_those_of_the_whole_sequence(engine: Engine, serve: Serve) -> None:
    rng = np.random.default_rng(5)
    requests = [
        Request(rng.integers(97, size=length).tolist(), loops, 16, Sampling(1.0, seed=loops))
        for length, loops in ((9, 6), (2, 12), (20, 3))
    ]
    for request, heard in zip(requests, serve(engine, requests)):
        whole = engine.halting_depth([*request.ids, *heard.tokens[:-1]], request.loops)
        assert heard.halting == whole[len(request.ids) - 1 :].tolist()


def test_a_deep_neighbour_that_comes_and_goes_changes_nothing(engine: Engine, recorder: Any, alone: Alone) -> None:
    scheduler = Scheduler(engine, ServingLimits(prefill_chunk=16))
    request = Request([1, 2, 3], loops=2, max_new_tokens=200, sampling=Sampling(1.0, seed=1))
    steady = recorder()
    scheduler.submit(request, steady)
    for step in range(90):
        if step % 20 == 5:
            deep = replace(request, ids=[5] * (step + 1), loops=24, max_new_tokens=8)
            scheduler.submit(deep, recorder())
        scheduler.step()
    while scheduler.step():
        pass
    assert steady.tokens == alone(engine, request)
    assert scheduler.stats.finished == 6
