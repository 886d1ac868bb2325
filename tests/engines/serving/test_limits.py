"""What is refused at once, who waits, and that memory stays within its bound."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines import Engine, EngineError
from engines.serving import QueueFull, Request, Scheduler, ServingLimits
from engines.serving.footprint import Footprint

Serve = Callable[..., list[Any]]
Many = Callable[..., list[Request]]


@pytest.mark.parametrize("name", ["max_batch", "max_queue", "max_loops", "prefill_chunk", "cache_bytes", "sharers"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4"])
def test_limits_are_checked(name: str, value: Any) -> None:
    with pytest.raises(EngineError, match=f"^{name} is .* must be an integer of at least 1$"):
        ServingLimits(**{name: value})


def test_memory_is_a_quarter_of_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.serving.limits.available_memory", lambda: 6000)
    assert ServingLimits(cache_bytes=5, sharers=3).memory == 5
    assert ServingLimits().memory == 1500
    assert ServingLimits(sharers=3).memory == 500


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([]), "the prompt is empty"),
        (Request("text"), "the prompt is text"),  # type: ignore[arg-type]
        (Request([[1, 2]]), "a request takes one prompt"),  # type: ignore[list-item]
        (Request([1, 16]), "token id 16 at position 1 is not in 0..15"),
        (Request([1, 1.5]), "token 1.5 at position 1 is not an integer"),  # type: ignore[list-item]
        (Request([1] * 65), "the prompt has 65 tokens, more than max_seq_len 64"),
        (Request([1] * 60, max_new_tokens=5), "a prompt of 60 tokens and max_new_tokens 5 exceed max_seq_len 64"),
        (Request([1], max_new_tokens=0), "max_new_tokens is 0"),
        (Request([1], loops=0), "loops is 0; it must lie in"),
        (Request([1], loops=25), "loops is 25; this scheduler takes at most 24"),
        (Request([1], loops=[2, 3]), "loops has 2 values for 1 sequences"),  # type: ignore[arg-type]
        (Request([1], stop=16), "stop holds 16"),
    ],
)
def test_what_is_refused_at_once(toy_engine: Engine, recorder: Any, request_: Request, message: str) -> None:
    scheduler, listener = Scheduler(toy_engine), recorder()
    with pytest.raises(EngineError) as raised:
        scheduler.submit(request_, listener)
    assert str(raised.value).startswith(message)
    assert scheduler.stats.refused == 1
    assert not scheduler.step() and not listener.ends


def test_a_depth_no_graph_has_is_refused_at_once(toy_engine_of: Callable[..., Engine], recorder: Any) -> None:
    scheduler = Scheduler(toy_engine_of(loops=[2, 4]))
    with pytest.raises(EngineError, match="loops is 5, but the graphs of this bundle are unrolled to 2, 4"):
        scheduler.submit(Request([1], loops=5), recorder())


def test_the_deepest_is_a_setting(toy_engine: Engine, recorder: Any) -> None:
    scheduler = Scheduler(toy_engine, ServingLimits(max_loops=3))
    scheduler.submit(Request([1], loops=3), recorder())
    with pytest.raises(EngineError, match="loops is 4; this scheduler takes at most 3"):
        scheduler.submit(Request([1], loops=4), recorder())


@pytest.mark.parametrize(("deepest", "depth"), [(3, 3), (6, 6), (20, 6)])
def test_no_depth_is_the_models_own_or_the_deepest(
    toy_engine: Engine, serve: Serve, alone: Any, deepest: int, depth: int
) -> None:
    (heard,) = serve(toy_engine, [Request([1, 2], max_new_tokens=9)], max_loops=deepest)
    assert heard.tokens == alone(toy_engine, Request([1, 2], depth, 9))


def test_the_queue_is_bounded(toy_engine: Engine, recorder: Any) -> None:
    scheduler = Scheduler(toy_engine, ServingLimits(max_batch=1, max_queue=3))
    heard = [recorder() for _ in range(4)]
    for listener in heard[:3]:
        scheduler.submit(Request([1], max_new_tokens=4), listener)
    with pytest.raises(QueueFull, match=r"^the queue is full \(3 wait\); try again later$"):
        scheduler.submit(Request([1]), recorder())
    assert scheduler.stats.refused == 1
    scheduler.step()  # one is admitted, which makes room for one
    scheduler.submit(Request([1], max_new_tokens=4), heard[3])
    with pytest.raises(QueueFull):
        scheduler.submit(Request([1]), recorder())
    while scheduler.step():
        pass
    assert [each.end for each in heard] == ["length"] * 4


def test_load_is_of_what_fits(toy_engine: Engine, recorder: Any) -> None:
    """By `max_batch` or by memory, whichever is full first; so a target of less than 100 can be reached."""
    room = Footprint(toy_engine.manifest.cache).worst(2, 12, 6)
    scheduler = Scheduler(toy_engine, ServingLimits(max_batch=16, cache_bytes=room))
    assert scheduler.load == 0
    for expected in (6, 12, 150, 200):
        scheduler.submit(Request([1] * 3, 6, 10), recorder())
        scheduler.step()
        assert scheduler.load == expected, "of 16 at first; of two once the third has found no room"
    while scheduler.step():
        pass
    assert scheduler.load == 0


class TestMemory:
    """At 4 bytes for the prelude and for each loop, 8 for the mask."""

    def test_what_could_never_fit_is_refused(self, toy_engine: Engine, recorder: Any) -> None:
        needed = Footprint(toy_engine.manifest.cache).worst(1, 12, 6)
        assert needed == 79 * (1 + 6) * 4 + 79 * 6 * 4 + 2 * 80 * 8  # 79 slots, the loops' rows and the mask twice
        Scheduler(toy_engine, ServingLimits(cache_bytes=needed)).submit(Request([1] * 3, 6, 10), recorder())
        scheduler = Scheduler(toy_engine, ServingLimits(cache_bytes=needed - 1))
        with pytest.raises(EngineError) as raised:
            scheduler.submit(Request([1] * 3, 6, 10), recorder())
        assert str(raised.value) == (
            f"12 tokens at 6 loops need {needed} bytes of cache, and there are {needed - 1} for all; "
            "ask for fewer tokens or loops, or raise cache_bytes"
        )

    def test_a_large_one_at_the_head_waits_until_it_fits_and_then_goes_first(
        self, toy_engine: Engine, recorder: Any
    ) -> None:
        room = Footprint(toy_engine.manifest.cache).worst(1, 60, 20)
        scheduler = Scheduler(toy_engine, ServingLimits(cache_bytes=room))
        order: list[str] = []
        heard = {}
        for name, request in {
            "small": Request([1], 1, 6),
            "large": Request([2] * 50, 20, 11),
            "behind": Request([3], 1, 2),
        }.items():
            heard[name] = recorder(wants=lambda _, name=name: order.append(name) or True)
            scheduler.submit(request, heard[name])
        while scheduler.step():
            assert scheduler.stats.running + scheduler.stats.prefilling <= 1
        assert order == ["small"] * 6 + ["large"] * 11 + ["behind"] * 2

    def test_who_is_admitted_could_all_grow_to_the_largest(self, spied: Any, recorder: Any) -> None:
        manifest = spied.engine.manifest
        limits = manifest.limits.model_copy(update={"max_seq_len": 1000})
        spied.engine.manifest = manifest.model_copy(update={"limits": limits})
        footprint = Footprint(manifest.cache)
        scheduler = Scheduler(spied.engine, ServingLimits(cache_bytes=footprint.worst(3, 200, 8)))
        for request in (Request([1], 8, 2), Request([1], 1, 200), Request([1], 8, 6), Request([1], 1, 1)):
            scheduler.submit(request, recorder())
        scheduler.step()
        assert scheduler.stats[:3] == (2, 0, 1)  # a fourth would be one rectangle too many; the first has finished

    def test_the_bound_holds(self, spied: Any, serve: Serve, many: Many) -> None:
        """Arrays wide enough that the caches are what memory goes to."""
        width = 1024
        engine = widened(spied, width)
        footprint, room = Footprint(engine.manifest.cache), 32 << 20
        requests = many(30, 16, 30, 9, 20)
        assert footprint.worst(len(requests), 40, 9) > 3 * room
        tracemalloc.start()
        scheduler_room = {"cache_bytes": room, "prefill_chunk": 8, "max_batch": 30}
        baseline = tracemalloc.get_traced_memory()[0]
        serve(engine, requests, **scheduler_room)
        peak = tracemalloc.get_traced_memory()[1] - baseline
        tracemalloc.stop()
        assert max(call["batch"] for call in spied.decodes) > 3
        new_rows = max(call["batch"] * call["seq"] * max(call["loops"]) for call in spied.calls) * 4 * width * 2
        assert room / 3 < peak < room + new_rows + (1 << 20)

    def test_what_those_who_left_held_is_given_back_before_more_is_taken(self, spied: Any, recorder: Any) -> None:
        engine = widened(spied, 4096)
        room = Footprint(engine.manifest.cache).worst(2, 44, 4)
        scheduler = Scheduler(engine, ServingLimits(cache_bytes=room))
        tracemalloc.start()
        baseline = tracemalloc.get_traced_memory()[0]
        for count in (5, 2):
            scheduler.submit(Request([1] * 40, loops=4, max_new_tokens=count), recorder())
        scheduler.step()
        assert scheduler.stats.running == 1
        scheduler.submit(Request([2] * 40, loops=4, max_new_tokens=5), recorder())
        held = []
        spied.before = lambda call: held.append(tracemalloc.get_traced_memory()[0] - baseline)
        scheduler.step()
        tracemalloc.stop()
        assert held[0] < Footprint(engine.manifest.cache).bytes(2, 44, 4) + (1 << 18)  # while the prompt is read


def widened(spied: Any, width: int) -> Engine:
    """The toy, its cached rows as wide as those of a real model; the graph itself sees their first element."""
    engine = spied.engine
    engine._graphs.clear()
    parts = [part.model_copy(update={"row": [width]}) for part in engine.manifest.cache]
    engine.manifest = engine.manifest.model_copy(update={"cache": parts})
    load = engine.load_graph

    class Wide:
        def __init__(self, graph: Any) -> None:
            self.graph, self.loops = graph, graph.loops

        def run(self, inputs: Any, outputs: Any) -> list[np.ndarray]:
            narrow = {
                name: np.ascontiguousarray(value[..., :1]) if name.startswith("past.") else value
                for name, value in inputs.items()
            }
            results = self.graph.run(narrow, outputs)
            return [
                np.repeat(result, width, axis=-1) if name.startswith("new.") else result
                for name, result in zip(outputs, results)
            ]

    engine.load_graph = lambda file: Wide(load(file))
    return engine
