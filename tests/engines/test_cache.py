"""The cache: in place, whole, and no more bytes per token however long the context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engines
from engines import Engine, EngineError
from engines.cache import KVCache, slots_for
from mythos_export.bundle import CachePart
from reference_model.open_mythos.config import MythosConfig

PARTS = [
    CachePart(name="prelude.key", depth=2, row=[3, 4], dtype="float32"),
    CachePart(name="recurrent.key", depth="loops", row=[3, 4], dtype="float16"),
    CachePart(name="coda.key", depth=0, row=[5], dtype="bfloat16"),
]


def rows(loops: int, seq: int, value: float = 1) -> list[np.ndarray]:
    return [
        np.full((2, 2, seq, 3, 4), value, np.float32),
        np.full((loops, 2, seq, 3, 4), value, np.float16),
        np.zeros((0, 2, seq, 5), np.uint16),
    ]


def new_cache(capacity: int = 8, loops: int = 3) -> KVCache:
    return KVCache(PARTS, loops=loops, batch=2, capacity=capacity)


def test_slots_and_the_new_token_fill_whole_vectors() -> None:
    assert [slots_for(tokens) for tokens in (0, 1, 79, 80, 95, 96, 255)] == [0, 79, 79, 95, 95, 111, 255]


def test_shapes_and_names() -> None:
    cache = new_cache()
    assert {name: (buffer.shape, buffer.dtype.name) for name, buffer in cache.past.items()} == {
        "past.prelude.key": ((2, 2, 79, 3, 4), "float32"),
        "past.recurrent.key": ((3, 2, 79, 3, 4), "float16"),
        "past.coda.key": ((0, 2, 79, 5), "uint16"),
    }
    assert cache.outputs == ["new.prelude.key", "new.recurrent.key", "new.coda.key"]


def test_an_empty_cache_is_fed_as_no_rows() -> None:
    inputs = new_cache().inputs(np.ones((2, 5), np.int64))
    assert inputs["past.recurrent.key"].shape == (3, 2, 0, 3, 4)
    assert inputs["attention_mask"].shape == (2, 5)


def test_a_filled_cache_is_fed_whole_and_never_copied() -> None:
    cache = new_cache()
    cache.append(rows(3, 2), np.array([[0, 1], [1, 1]]))
    inputs = cache.inputs(np.ones((2, 1), np.int64))
    assert all(inputs[name] is buffer and buffer.flags.c_contiguous for name, buffer in cache.past.items())
    assert inputs["attention_mask"].tolist() == [[0, 1, *[0] * 77, 1], [1, 1, *[0] * 77, 1]]
    assert cache.mask.tolist() == inputs["attention_mask"].tolist()  # the same, ready for one token


def test_rows_go_to_their_slots_and_nowhere_else() -> None:
    cache = new_cache()
    cache.append(rows(3, 2, 1), np.ones((2, 2), np.int64))
    cache.append(rows(2, 1, 2))  # shallower: the third depth stays as it was
    recurrent = cache.past["past.recurrent.key"][:, 0, :, 0, 0].tolist()
    assert recurrent == [[1, 1, 2, *[0] * 76], [1, 1, 2, *[0] * 76], [1, 1, *[0] * 77]]
    assert cache.past["past.prelude.key"][1, 1, :, 2, 3].tolist() == [1, 1, 2, *[0] * 76]
    assert cache.length == 3


def test_refuses_what_does_not_fit() -> None:
    cache = new_cache(capacity=2)
    with pytest.raises(EngineError, match="the cache is full: 0 of 2 slots are taken and 3 more are needed"):
        cache.append(rows(3, 3), np.ones((2, 3), np.int64))
    with pytest.raises(EngineError, match=r"the graph returned new.recurrent.key of shape \(4, 2, 1, 3, 4\)"):
        cache.append(rows(4, 1))
    wrong = rows(3, 1)
    wrong[0] = wrong[0][:, :1]
    with pytest.raises(EngineError, match=r"the graph returned new.prelude.key of shape \(2, 1, 1, 3, 4\)"):
        cache.append(wrong)


def test_unknown_type() -> None:
    part = CachePart(name="x", depth=1, row=[1], dtype="float8")
    with pytest.raises(EngineError, match="a cache of 'float8' is unknown to this release"):
        KVCache([part], loops=1, batch=1, capacity=1)


def test_appending_copies_the_new_rows_whatever_the_context(toy_engine: Engine) -> None:
    running = toy_engine.start([[3, 1, 4], [1, 5, 9]], loops=5, capacity=60)
    per_step = []
    for _ in range(57):
        before = running.cache.bytes_copied
        running.step([2, 7])
        per_step.append(running.cache.bytes_copied - before)
    rows_of_a_token = 4 * (1 + 5)  # one float32 in the prelude, one a loop
    assert set(per_step) == {2 * (rows_of_a_token + 8)}  # and its mask
    assert running.cache.length == 60


@pytest.fixture(scope="module")
def wide_bundle(make_bundle: Callable[..., Any], mla_config: MythosConfig) -> Path:
    """One with so wide a latent that its products are summed in blocks."""
    path: Path = make_bundle(replace(mla_config, kv_lora_rank=160)).path
    return path


@pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_gqa_bundle", "wide_bundle"])
@pytest.mark.parametrize(("read", "chunk"), [(1, None), (20, None), (20, 7), (140, 64)])
def test_logits_do_not_depend_on_the_room_there_is(
    request: pytest.FixtureRequest, bundle: str, read: int, chunk: int | None
) -> None:
    """To the last bit."""
    engine = engines.load(request.getfixturevalue(bundle), threads=1)
    tokens = np.random.default_rng(read).integers(97, size=read + 40).tolist()

    def logits(capacity: int) -> np.ndarray:
        running = engine.start(tokens[:read], 5, capacity=capacity, prefill_chunk=chunk)
        return np.stack([running.logits, *(running.step([token]) for token in tokens[read:])])

    expected = logits(len(tokens))
    for more in (1, 7, 15, 16, 50, 64, 100, 130, 300):
        assert np.array_equal(logits(len(tokens) + more), expected), more


def test_a_step_hands_over_the_very_buffers(toy_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter above is our own; this watches what the graph is really given."""
    running = toy_engine.start([3, 1, 4], loops=2, capacity=30)
    seen: list[dict[str, np.ndarray]] = []
    run = running._graph.run

    def watch(inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        seen.append(dict(inputs))
        return run(inputs, outputs)

    monkeypatch.setattr(running._graph, "run", watch)
    for _ in range(20):
        running.step([5])
    for name, buffer in {**running.cache.past, "attention_mask": running.cache.mask}.items():
        assert all(inputs[name] is buffer for inputs in seen)
        assert buffer.flags.c_contiguous
