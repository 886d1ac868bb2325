"""Whatever comes and goes, whenever it does: everybody gets what it would get alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines import Engine
from engines.sampling import Sampling
from engines.serving import QueueFull, Request, Scheduler, ServingLimits
from engines.serving.footprint import Footprint


@dataclass(frozen=True)
class Visit:
    """A request, when it comes, and when its client loses patience."""

    request: Request
    arrives: int  # step
    patience: int | None  # steps after that; None: any number
    enough: int  # tokens after which the listener wants no more


requests = st.builds(
    Request,
    ids=st.lists(st.integers(0, 15), min_size=1, max_size=20),
    loops=st.integers(1, 9),
    max_new_tokens=st.integers(1, 15),
    sampling=st.one_of(
        st.just(Sampling()),
        st.builds(Sampling, temperature=st.just(1.5), top_k=st.integers(0, 6), seed=st.integers(0, 99)),
    ),
    stop=st.lists(st.integers(0, 15), max_size=2),
)
visits = st.builds(
    Visit, requests, st.integers(0, 25), st.one_of(st.none(), st.none(), st.integers(0, 20)), st.integers(1, 30)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schedule=st.lists(visits, min_size=1, max_size=12),
    max_batch=st.integers(1, 6),
    chunk=st.integers(1, 24),
    max_queue=st.integers(1, 8),
    roomy=st.integers(1, 6),
)
def test_any_schedule(
    spied: Any,
    recorder: Any,
    alone: Callable[[Engine, Request], list[int]],
    schedule: list[Visit],
    max_batch: int,
    chunk: int,
    max_queue: int,
    roomy: int,
) -> None:
    engine = spied.engine
    spied.calls.clear()
    room = Footprint(engine.manifest.cache).worst(roomy, 34, 9)
    scheduler = Scheduler(
        engine, ServingLimits(max_batch=max_batch, max_queue=max_queue, prefill_chunk=chunk, cache_bytes=room)
    )
    now = [0]
    heard = [_listener(recorder, visit, now) for visit in schedule]
    refused = _play(scheduler, schedule, heard, now, room)
    spied_calls = list(spied.calls)

    stats = scheduler.stats
    assert stats[:4] == (0, 0, 0, 0) and stats.failed == 0
    assert stats.finished + stats.cancelled + len(refused) == len(schedule)
    assert max((call["batch"] for call in spied_calls), default=0) <= max_batch
    assert max((call["batch"] * call["seq"] for call in spied_calls if call["seq"] > 1), default=0) <= chunk
    for index, (visit, listener) in enumerate(zip(schedule, heard)):
        if index in refused:
            assert not listener.ends and not listener.tokens
            continue
        expected = alone(engine, visit.request)
        whole = expected[: visit.enough]
        assert listener.tokens == whole[: len(listener.tokens)]
        if listener.end != "cancelled":
            stopped = expected[-1] in visit.request.stop or visit.enough <= len(expected)
            assert listener.tokens == whole
            assert listener.end == ("stop" if stopped or visit.enough == len(whole) else "length")
        else:
            assert visit.patience is not None


def _listener(recorder: Any, visit: Visit, now: list[int]) -> Any:
    return recorder(
        wants=lambda self: len(self.tokens) < visit.enough,
        gone=lambda _: visit.patience is not None and now[0] > visit.arrives + visit.patience,
    )


def _play(scheduler: Scheduler, schedule: list[Visit], heard: list[Any], now: list[int], room: int) -> set[int]:
    """Step until everything has come and gone; who found the queue full."""
    refused = set()
    busy = True
    while busy or now[0] <= max(visit.arrives for visit in schedule):
        for index, visit in enumerate(schedule):
            if visit.arrives == now[0]:
                try:
                    scheduler.submit(visit.request, heard[index])
                except QueueFull:
                    refused.add(index)
        busy = scheduler.step()
        now[0] += 1
        assert scheduler.stats.cache_bytes <= room
        assert now[0] < 2000
    return refused
