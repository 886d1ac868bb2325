"""Rows of many sequences in dense buffers: what lies where, and what is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines import EngineError
from engines.cache import KVCache, slots_for
from engines.serving.batch_cache import BatchCache, Held, roomy
from engines.serving.footprint import Footprint
from engines.serving.prefill import PrefillCache
from mythos_export.bundle import CachePart

PARTS = [
    CachePart(name="prelude.latent", depth=2, row=[3], dtype="float32"),
    CachePart(name="recurrent.key", depth="loops", row=[2, 2], dtype="bfloat16"),
    CachePart(name="coda.latent", depth=0, row=[1], dtype="float16"),
]


def rows(value: int, batch: int, seq: int, loops: int) -> list[np.ndarray]:
    """New rows, each filled with `value`, 10 more for every sequence and 1 more for every token."""
    marks = value + 10 * np.arange(batch)[:, None] + np.arange(seq)
    shapes = [(2, batch, seq, 3), (loops, batch, seq, 2, 2), (0, batch, seq, 1)]
    dtypes: list[Any] = [np.float32, np.uint16, np.float16]
    return [
        np.broadcast_to(marks.reshape(1, batch, seq, *[1] * (len(shape) - 3)), shape).astype(dtype)
        for shape, dtype in zip(shapes, dtypes)
    ]


def prefilled(value: int, batch: int, length: int, loops: int) -> PrefillCache:
    cache = PrefillCache(PARTS, loops=loops, batch=batch, capacity=length)
    cache.append(rows(value, batch, length, loops), np.ones((batch, length), np.int64))
    return cache


def joined(capacity: int = 5) -> BatchCache:
    """Sequences of 3 and 1 tokens at 2 and 4 loops, each out of a prefill of two at 4."""
    sources = prefilled(100, 2, 3, 4), prefilled(102, 2, 1, 4)
    cache = BatchCache(PARTS)
    cache.arrange([Held(sources[0], 0, 3, 2), Held(sources[1], 1, 1, 4)], loops=4, capacity=capacity)
    assert all(source.nbytes == source.mask.nbytes for source in sources)  # handed over
    return cache


def latent(cache: BatchCache) -> list[list[int]]:
    return cache.past["past.prelude.latent"][1, :, :, 2].astype(int).tolist()


def key(cache: BatchCache, depth: int) -> list[list[int]]:
    return cache.past["past.recurrent.key"][depth, :, :, 1, 0].tolist()


def test_prompts_of_several_prefills_lie_side_by_side() -> None:
    cache = joined()
    assert latent(cache) == [[100, 101, 102, 0, 0], [112, 0, 0, 0, 0]]
    assert key(cache, 1) == [[100, 101, 102, 0, 0], [112, 0, 0, 0, 0]]
    assert key(cache, 3) == [[0] * 5, [112, 0, 0, 0, 0]]  # the first never looks deeper than 2
    assert cache.mask.tolist() == [[1, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1]]
    assert cache.past["past.coda.latent"].shape == (0, 2, 5, 1)


def test_each_sequence_writes_into_its_own_next_slot() -> None:
    cache = joined()
    cache.append(rows(200, 2, 1, 4))
    cache.append(rows(300, 2, 1, 3))  # a shallower trip
    assert latent(cache) == [[100, 101, 102, 200, 300], [112, 210, 310, 0, 0]]
    assert key(cache, 2) == [[0, 0, 0, 200, 300], [112, 210, 310, 0, 0]]
    assert key(cache, 3) == [[0, 0, 0, 200, 0], [112, 210, 0, 0, 0]]
    assert cache.mask.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1]]
    assert cache.full and cache.lengths.tolist() == [5, 3]


def test_join_leave_grow_and_deepen_in_one_move() -> None:
    cache = joined()
    cache.append(rows(200, 2, 1, 4))
    late = prefilled(500, 1, 2, 6)
    cache.arrange([Held(late, 0, 2, 6), cache.held(1, 4)], loops=6, capacity=4)
    assert latent(cache) == [[500, 501, 0, 0], [112, 210, 0, 0]]
    assert key(cache, 5) == [[500, 501, 0, 0], [0] * 4]
    assert cache.lengths.tolist() == [2, 2]
    cache.arrange([cache.held(1, 4)], loops=4, capacity=2)
    assert latent(cache) == [[112, 210]]
    assert cache.past["past.recurrent.key"].shape == (4, 1, 2, 2, 2)
    assert cache.full
    cache.clear()
    assert cache.nbytes == 0 and not cache.full


def test_a_step_copies_its_own_rows_and_nothing_else() -> None:
    cache, new = joined(), rows(200, 2, 1, 4)
    before, buffers = cache.bytes_copied, dict(cache.past)
    cache.append(new)
    assert cache.bytes_copied - before == sum(each.nbytes for each in new)
    assert all(cache.past[name] is buffer for name, buffer in buffers.items())


def test_slots_grow_geometrically() -> None:
    assert roomy(100, 105) == slots_for(105) == 111  # never more than will be used, but for the rounding up
    assert roomy(100, 1000) == slots_for(189) == 191
    slots, moved, length = 0, 0, 0
    while length < 100_000:
        if length == slots:
            moved, slots = moved + length, roomy(length, 1 << 40)
        length += 1
    assert moved < 5 * length


@pytest.mark.parametrize(
    "bad",
    [rows(1, 3, 1, 4), rows(1, 2, 2, 4), rows(1, 2, 1, 5)],
    ids=["batch", "seq", "depth"],
)
def test_rows_of_another_shape(bad: list[np.ndarray]) -> None:
    with pytest.raises(EngineError, match=r"the graph returned new\.\w+\.\w+ of shape"):
        joined().append(bad)


def test_the_footprint_is_what_is_allocated() -> None:
    footprint = Footprint(PARTS)
    assert footprint.bytes(2, 5, 4) == footprint.bytes(2, 79, 4) == joined(slots_for(5)).nbytes
    prefill = PrefillCache(PARTS, loops=6, batch=3, capacity=7)
    assert footprint.bytes(3, 7, 6) == prefill.nbytes
    whole = KVCache(PARTS, loops=6, batch=3, capacity=7)
    assert prefill.nbytes == whole.mask.nbytes + sum(buffer.nbytes for buffer in whole.past.values())


def test_no_memory() -> None:
    with pytest.raises(EngineError, match=r"no memory for a cache of 1 x \d+ tokens; lower cache_bytes"):
        BatchCache(PARTS).arrange([Held(prefilled(0, 1, 1, 1), 0, 1, 1)], loops=1 << 31, capacity=1 << 20)
