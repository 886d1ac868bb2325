"""Requests that share a batch get what each gets alone; on the toy, whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engines import Engine
from engines.sampling import Sampling
from engines.serving import Request, Scheduler, ServingLimits

Serve = Callable[..., list[Any]]
Alone = Callable[[Engine, Request], list[int]]
Many = Callable[..., list[Request]]
Tokens = Callable[..., list[int]]


@pytest.mark.parametrize("chunk", [1, 3, 8, 256])
@pytest.mark.parametrize("batch", [1, 5, 48])
def test_mixed_depths_lengths_and_seeds(
    toy_engine: Engine, serve: Serve, alone: Alone, many: Many, chunk: int, batch: int
) -> None:
    requests = many(48, 16, 30, 9, 30)
    heard = serve(toy_engine, requests, max_batch=batch, prefill_chunk=chunk)
    assert [each.tokens for each in heard] == [alone(toy_engine, request) for request in requests]
    assert {each.end for each in heard} == {"length"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_caches_in_half_precision(
    toy_engine_of: Callable[..., Engine], serve: Serve, toy_tokens: Tokens, dtype: str
) -> None:
    engine = toy_engine_of(dtype=dtype)
    requests = [Request([3, 1, 4], loops=5, max_new_tokens=9), Request([9], loops=2, max_new_tokens=20)]
    heard = serve(engine, requests)
    assert [each.tokens for each in heard] == [toy_tokens([3, 1, 4], 5, 9), toy_tokens([9], 2, 20)]


@pytest.mark.parametrize("loops", [(4, 8), ("dynamic", 4)])
def test_bundles_of_several_graphs(
    toy_engine_of: Callable[..., Engine],
    serve: Serve,
    toy_tokens: Tokens,
    spy_on: Callable[[Engine], Any],
    loops: tuple[int | str, ...],
) -> None:
    spied = spy_on(toy_engine_of(loops=loops))
    lengths = {1: 20, 3: 5, 4: 10, 7: 15, 8: 3}
    requests = [Request([depth, 2], loops=depth, max_new_tokens=count) for depth, count in lengths.items()]
    heard = serve(spied.engine, requests)
    assert [each.tokens for each in heard] == [toy_tokens([depth, 2], depth, n) for depth, n in lengths.items()]
    depths = [call["past"]["past.recurrent.latent"][0] for call in spied.decodes]
    assert depths[0] == 8
    assert depths[-1] == (4 if loops == (4, 8) else 1)  # the deep ones have gone, and so have their depths


def test_a_request_joins_in_the_middle(spied: Any, recorder: Any, toy_tokens: Tokens) -> None:
    scheduler = Scheduler(spied.engine)
    first, second = recorder(), recorder()
    scheduler.submit(Request([3, 1], loops=2, max_new_tokens=12), first)
    for _ in range(4):
        scheduler.step()
    assert len(first.tokens) == 5  # the first step gives the prompt's token and one more
    scheduler.submit(Request([7, 7, 7], loops=6, max_new_tokens=4), second)
    scheduler.step()
    assert (len(first.tokens), len(second.tokens)) == (6, 2)  # it runs along in the step in which it was read
    while scheduler.step():
        pass
    assert first.tokens == toy_tokens([3, 1], 2, 12)
    assert second.tokens == toy_tokens([7, 7, 7], 6, 4)


def test_who_has_finished_costs_no_row_and_no_depth(spied: Any, serve: Serve) -> None:
    serve(spied.engine, [Request([1], loops=depth, max_new_tokens=depth + 1) for depth in (2, 5, 3)])
    assert [call["loops"] for call in spied.decodes] == [[2, 5, 3]] * 2 + [[5, 3]] + [[5]] * 2
    assert [call["past"]["past.recurrent.latent"][:2] for call in spied.decodes[-2:]] == [(5, 1)] * 2


def test_no_call_is_made_for_a_token_nobody_reads(spied: Any, serve: Serve) -> None:
    heard = serve(spied.engine, [Request([1] * 60, max_new_tokens=4), Request([1], max_new_tokens=1)])
    assert [len(each.tokens) for each in heard] == [4, 1]
    assert len(spied.decodes) == 3


def test_a_long_generation_grows_its_slots_and_copies_each_row_a_few_times(
    toy_engine: Engine, serve: Serve, recorder: Any, toy_tokens: Tokens
) -> None:
    count = 700
    limits = toy_engine.manifest.limits.model_copy(update={"max_seq_len": 1000})
    toy_engine.manifest = toy_engine.manifest.model_copy(update={"limits": limits})
    scheduler = Scheduler(toy_engine)
    heard = [recorder(), recorder()]
    for token, listener in zip((3, 5), heard):
        scheduler.submit(Request([token] * token, loops=3, max_new_tokens=count), listener)
    capacities = set()
    while scheduler.step():
        capacities.add(scheduler._decoder.cache.capacity)
    assert [each.tokens for each in heard] == [toy_tokens([token] * token, 3, count) for token in (3, 5)]
    assert len(capacities - {0}) == 6  # geometrically, the last one to just what is needed
    rows = 2 * count * 4 * (1 + 3)
    assert rows < scheduler._decoder.cache.bytes_copied < 4 * rows


class TestPrefill:
    def test_short_prompts_of_one_length_share_a_call_and_others_do_not(self, spied: Any, serve: Serve) -> None:
        prompts = [[1, 2], [3], [4, 5], [6, 7, 8], [9, 9], [1, 1], [2, 2]]
        serve(spied.engine, [Request(prompt, max_new_tokens=1) for prompt in prompts], prefill_chunk=7)
        assert [(call["batch"], call["seq"], call["ids"]) for call in spied.calls] == [
            (3, 2, [1, 2, 4, 5, 9, 9]),
            (1, 1, [3]),
            (1, 3, [6, 7, 8]),
            (2, 2, [1, 1, 2, 2]),
        ]

    def test_no_call_reads_more_than_a_chunk(self, spied: Any, serve: Serve, many: Many) -> None:
        requests = many(40, 16, 30, 4, 8)
        serve(spied.engine, requests, prefill_chunk=7)
        assert max(call["batch"] * call["seq"] for call in spied.calls if call["seq"] > 1) == 7

    def test_a_long_prompt_stalls_nobody_for_more_than_a_chunk(
        self, spied: Any, recorder: Any, toy_tokens: Tokens
    ) -> None:
        scheduler = Scheduler(spied.engine, ServingLimits(prefill_chunk=4))
        running, long, short = recorder(), recorder(), recorder()
        scheduler.submit(Request([5], loops=1, max_new_tokens=40), running)
        scheduler.step()
        scheduler.submit(Request([1, 2] * 20, loops=6, max_new_tokens=3), long)
        scheduler.step()
        scheduler.submit(Request([8, 9], loops=2, max_new_tokens=3), short)
        before = len(running.tokens)
        scheduler.step()
        scheduler.step()
        assert len(short.tokens) >= 2  # read after at most one more chunk of the long one
        assert len(running.tokens) == before + 2
        assert not long.tokens
        while scheduler.step():
            pass
        assert [each.tokens for each in (running, long, short)] == [
            toy_tokens([5], 1, 40),
            toy_tokens([1, 2] * 20, 6, 3),
            toy_tokens([8, 9], 2, 3),
        ]

    def test_long_prompts_take_turns(self, spied: Any, serve: Serve) -> None:
        serve(spied.engine, [Request([token] * 6, max_new_tokens=1) for token in (1, 2)], prefill_chunk=2)
        assert [call["ids"][0] for call in spied.calls] == [1, 2, 1, 2, 1, 2]


class TestStop:
    def test_a_stop_token_is_handed_on_and_ends_it(self, toy_engine: Engine, serve: Serve, toy_tokens: Tokens) -> None:
        free = toy_tokens([3], 2, 20)
        heard = serve(
            toy_engine,
            [
                Request([3], loops=2, max_new_tokens=20, stop=free[4]),
                Request([3], loops=2, max_new_tokens=20, stop=[free[5:7]]),
                Request([3], loops=2, max_new_tokens=20),
                Request([3], loops=2, max_new_tokens=20, stop=free[0]),  # the prompt's own token
            ],
        )
        pair = next(i for i in range(20) if free[i : i + 2] == free[5:7])
        ends = [free.index(free[4]) + 1, pair + 2, 20, 1]
        assert [each.tokens for each in heard] == [free[:end] for end in ends]
        assert [each.end for each in heard] == ["stop", "stop", "length", "stop"]

    def test_the_listener_may_end_it(self, toy_engine: Engine, recorder: Any, toy_tokens: Tokens) -> None:
        scheduler = Scheduler(toy_engine)
        heard = [recorder(wants=lambda self, count=count: len(self.tokens) < count) for count in (1, 4, 7, 8)]
        for listener in heard:
            scheduler.submit(Request([3, 5], loops=3, max_new_tokens=7), listener)
        while scheduler.step():
            pass
        assert [len(each.tokens) for each in heard] == [1, 4, 7, 7]
        assert [each.end for each in heard] == ["stop", "stop", "stop", "length"]

    def test_halting_depth_is_that_of_the_position_the_token_was_chosen_at(
        self, toy_engine: Engine, serve: Serve
    ) -> None:
        [heard] = serve(toy_engine, [Request([0, 2], loops=4, max_new_tokens=6)])
        fed = [2, *heard.tokens[:-1]]
        assert heard.halting == [min(token + 1, 4) for token in fed]


def test_a_seed_draws_the_same_whoever_is_beside_it(toy_engine: Engine, serve: Serve, alone: Alone) -> None:
    request = Request([2], loops=3, max_new_tokens=25, sampling=Sampling(2.0, seed=11))
    others = [Request([1, 2, 3], loops=6, max_new_tokens=count, sampling=Sampling(1.0)) for count in (4, 9)]
    assert serve(toy_engine, [others[0], request, others[1]])[1].tokens == alone(toy_engine, request)


def test_figures(toy_engine: Engine, recorder: Any) -> None:
    scheduler = Scheduler(toy_engine, ServingLimits(max_batch=2, prefill_chunk=4))
    assert scheduler.stats == (0,) * 11
    assert not scheduler.step()
    for prompt in ([1] * 6, [2] * 3, [3]):
        scheduler.submit(Request(prompt, loops=2, max_new_tokens=3), recorder())
    assert scheduler.stats.waiting == 3
    scheduler.step()  # four tokens of the first
    assert scheduler.stats[:3] == (0, 2, 1)
    assert scheduler.stats.prompt_tokens == 4
    assert scheduler.stats.cache_bytes == 79 * (1 + 2) * 4 + 80 * 8  # the prelude's float, each loop's, the mask
    scheduler.step()  # the second, and its first step
    assert scheduler.stats[:3] == (1, 1, 1)
    assert (scheduler.stats.steps, scheduler.stats.tokens, scheduler.stats.prompt_tokens) == (1, 2, 7)
    while scheduler.step():
        pass
    assert scheduler.stats._replace(steps=0) == (0, 0, 0, 0, 0, 9, 10, 3, 0, 0, 0)
