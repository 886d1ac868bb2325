"""The promise of the scheduler, on exported bundles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_weights import eventful_weights

import engines
from engines import Engine
from engines.sampling import Sampling
from engines.serving import Request, Scheduler, ServingLimits
from reference_model.config import MythosConfig

Serve = Callable[..., list[Any]]
Alone = Callable[[Engine, Request], list[int]]


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
