"""Prefill, decode, depth and stopping, on a toy whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from engines import Engine, EngineError
from engines.prompts import read_prompts

Next = Callable[[Sequence[int], int], int]
Tokens = Callable[[Sequence[int], int, int], list[int]]

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
DEPTHS = [5, 1, 3]


def columns(steps: list[np.ndarray]) -> list[list[int]]:
    """Steps of a batch -> the tokens of each sequence."""
    return [[int(step[index]) for step in steps] for index in range(len(steps[0]))]


@pytest.mark.parametrize("loops", [1, 2, 6, 9])
@pytest.mark.parametrize("chunk", [None, 1, 2, 100])
def test_one_prompt_streams_plain_integers(
    toy_engine: Engine, toy_tokens: Tokens, loops: int, chunk: int | None
) -> None:
    stream = toy_engine.generate(PROMPTS[0], loops=loops, max_new_tokens=12, prefill_chunk=chunk)
    tokens = list(stream)
    assert tokens == toy_tokens(PROMPTS[0], loops, 12)
    assert all(type(token) is int for token in tokens)


@pytest.mark.parametrize("chunk", [None, 2, 3])
def test_a_ragged_batch_of_mixed_depths_gives_what_each_gives_alone(
    toy_engine: Engine, toy_tokens: Tokens, chunk: int | None
) -> None:
    steps = list(toy_engine.generate(PROMPTS, loops=DEPTHS, max_new_tokens=9, prefill_chunk=chunk))
    assert all(step.dtype == np.int64 and step.shape == (3,) for step in steps)
    assert columns(steps) == [toy_tokens(prompt, depth, 9) for prompt, depth in zip(PROMPTS, DEPTHS)]


def test_an_explicit_mask_equals_a_ragged_batch(toy_engine: Engine) -> None:
    ids = np.array([[3, 1, 4], [-100, -100, 9]])  # what lies under the mask is nobody's business
    mask = np.array([[1, 1, 1], [0, 0, 1]])
    masked = list(toy_engine.generate(ids, attention_mask=mask, max_new_tokens=4))
    ragged = list(toy_engine.generate([[3, 1, 4], [9]], max_new_tokens=4))
    assert columns(masked) == columns(ragged)


def test_loops_default_to_what_the_model_was_made_for(toy_engine: Engine) -> None:
    assert list(toy_engine.generate([7], max_new_tokens=3)) == list(toy_engine.generate([7], loops=6, max_new_tokens=3))


def test_logits_shapes(toy_engine: Engine, toy_next: Next) -> None:
    assert toy_engine.logits(PROMPTS[0]).shape == (5, 16)
    assert toy_engine.logits([PROMPTS[0]]).shape == (1, 5, 16)
    assert toy_engine.logits(PROMPTS).shape == (3, 5, 16)
    assert toy_engine.logits(PROMPTS, logits_to_keep=2).shape == (3, 2, 16)
    every = toy_engine.logits(PROMPTS[0], loops=4).argmax(-1).tolist()
    assert every == [toy_next(PROMPTS[0][: end + 1], 4) for end in range(5)]


def test_halting_depth(toy_engine: Engine) -> None:
    assert toy_engine.halting_depth([0, 2, 9], loops=4).tolist() == [1, 3, 4]
    assert toy_engine.halting_depth([[0, 2], [9]], loops=[2, 5]).tolist() == [[1, 2], [1, 5]]


def test_signature_is_the_manifests(toy_engine: Engine) -> None:
    assert toy_engine.signature.inputs[0].name == "input_ids"
    assert toy_engine.signature.outputs == toy_engine.manifest.outputs


class TestStop:
    def test_the_stop_token_is_the_last_one(self, toy_engine: Engine, toy_tokens: Tokens) -> None:
        free = toy_tokens([3], 2, 20)
        expected = free[: free.index(free[4]) + 1]
        assert list(toy_engine.generate([3], loops=2, max_new_tokens=20, stop=free[4])) == expected
        assert list(toy_engine.generate([3], loops=2, max_new_tokens=20, stop=[free[4]])) == expected

    def test_several_in_a_row(self, toy_engine: Engine, toy_tokens: Tokens) -> None:
        free = toy_tokens([3], 2, 20)
        pair = free[5:7]
        at = next(i for i in range(20) if free[i : i + 2] == pair)
        assert list(toy_engine.generate([3], loops=2, max_new_tokens=20, stop=[pair])) == free[: at + 2]

    def test_a_finished_sequence_yields_minus_one_and_disturbs_nobody(
        self, toy_engine: Engine, toy_tokens: Tokens
    ) -> None:
        alone = [toy_tokens(prompt, depth, 20) for prompt, depth in zip(PROMPTS, DEPTHS)]
        stop = alone[0][2]  # the deepest sequence may end first, and the trip count falls
        ends = [tokens.index(stop) + 1 if stop in tokens else 20 for tokens in alone]
        assert len(set(ends)) > 1
        got = columns(list(toy_engine.generate(PROMPTS, loops=DEPTHS, max_new_tokens=20, stop=stop)))
        assert len(got[0]) == max(ends)
        for tokens, free, end in zip(got, alone, ends):
            assert tokens == free[:end] + [-1] * (max(ends) - end)

    def test_no_step_runs_for_a_token_nobody_reads(self, toy_engine: Engine) -> None:
        # 60 + 4 = max_seq_len: the fourth token must not be fed
        assert len(list(toy_engine.generate([1] * 60, max_new_tokens=4))) == 4

    @pytest.mark.parametrize(
        ("stop", "message"),
        [
            (16, "stop holds 16, which is not a token id in 0..15"),
            ([True], "stop holds True"),
            (["a"], "stop holds 'a'; it must be a token id"),
            ([[]], "stop holds []; it must be a token id"),
            ("end", "stop is 'end'; it must be a token id, or a list of them"),
            (1.5, "stop is 1.5"),
        ],
    )
    def test_bad_stops(self, toy_engine: Engine, stop: object, message: str) -> None:
        with pytest.raises(EngineError) as raised:
            toy_engine.generate([1], stop=stop)  # type: ignore[arg-type]
        assert str(raised.value).startswith(message)


class TestRunningBatch:
    def test_a_server_can_drive_it(self, toy_engine: Engine, toy_next: Next) -> None:
        running = toy_engine.start(PROMPTS, DEPTHS, capacity=12)
        sequences = [list(prompt) for prompt in PROMPTS]
        for _ in range(6):
            tokens = running.logits.argmax(-1)
            assert tokens.tolist() == [toy_next(seq, depth) for seq, depth in zip(sequences, DEPTHS)]
            for sequence, token in zip(sequences, tokens.tolist()):
                sequence.append(token)
            running.step(tokens)
            assert running.halting_depth.tolist() == [min(d, t + 1) for d, t in zip(DEPTHS, tokens.tolist())]

    def test_more_prompt_may_follow(self, toy_engine: Engine, toy_next: Next) -> None:
        running = toy_engine.start(PROMPTS, DEPTHS, capacity=20)
        more = [[1, 2], [3, 4, 5, 6], [7]]
        logits = running.extend(read_prompts(more, None, toy_engine.manifest.limits), logits_to_keep=0)
        assert logits.shape == (3, 4, 16)
        whole = [first + second for first, second in zip(PROMPTS, more)]
        assert logits[:, -1].argmax(-1).tolist() == [toy_next(seq, depth) for seq, depth in zip(whole, DEPTHS)]

    def test_loops_may_fall_but_never_rise(self, toy_engine: Engine, toy_next: Next) -> None:
        running = toy_engine.start([[3, 1], [4, 1]], loops=[4, 5], capacity=8)
        assert running.step([2, 2], loops=[3, 5]).argmax(-1).tolist() == [
            toy_next([3, 1, 2], 3),
            toy_next([4, 1, 2], 5),
        ]
        with pytest.raises(EngineError) as raised:
            running.step([2, 2], loops=[4, 5])
        assert str(raised.value) == (
            "loops is 4 but the cache of sequence 0 holds 3; "
            "a sequence keeps its depth for life, so start it again to go deeper"
        )
        with pytest.raises(EngineError, match="loops is 6 but the cache of sequence 1 holds 5"):
            running.step([2, 2], loops=[3, 6])

    def test_refusals_leave_it_as_it_was(self, toy_engine: Engine, toy_next: Next) -> None:
        running = toy_engine.start([3, 1], loops=2, capacity=3)
        for tokens, message in [
            ([16], "token id 16 is outside the vocabulary 0..15"),
            ([-1], "token id -1 is outside"),
            ([1, 2], "a step takes 1 integers, one token per sequence"),
            ([1.0], "a step takes 1 integers"),
        ]:
            with pytest.raises(EngineError, match=message):
                running.step(tokens)  # type: ignore[arg-type]
        assert running.step([5])[0].argmax() == toy_next([3, 1, 5], 2)
        with pytest.raises(EngineError, match="the cache is full: 3 of 3 slots are taken and 1 more"):
            running.step([5])

    def test_max_seq_len_counts_real_tokens(self, toy_engine: Engine) -> None:
        running = toy_engine.start([1] * 63, loops=1, capacity=80)
        running.step([1])
        with pytest.raises(EngineError, match="a sequence would grow to 65 tokens, more than max_seq_len 64"):
            running.step([1])

    def test_capacity_must_hold_the_prompt(self, toy_engine: Engine) -> None:
        with pytest.raises(EngineError, match="capacity is 1; it must be an integer of at least 2"):
            toy_engine.start([1, 2], capacity=1)

    def test_a_cache_beyond_memory_is_one_line(self, toy_engine: Engine) -> None:
        with pytest.raises(EngineError, match="no memory for a cache of 1 x 1125899906842624 tokens at 6 loops"):
            toy_engine.start([1, 2], capacity=1 << 50)


def test_sampling_in_a_batch_draws_what_each_draws_alone(toy_engine: Engine) -> None:
    options = {"loops": 3, "max_new_tokens": 10, "temperature": 1.7, "top_p": 0.9}
    batch = columns(list(toy_engine.generate(PROMPTS, seed=5, **options)))
    alone = [list(toy_engine.generate(prompt, seed=5 + index, **options)) for index, prompt in enumerate(PROMPTS)]
    assert batch == alone
    assert batch != columns(list(toy_engine.generate(PROMPTS, seed=50, **options)))


def test_by_default_it_generates_what_max_seq_len_leaves(toy_engine: Engine) -> None:
    assert len(list(toy_engine.generate([1] * 60))) == 4
    with pytest.raises(EngineError, match="a prompt of 64 tokens fills max_seq_len 64"):
        toy_engine.generate([1] * 64)


def test_everything_is_checked_before_the_stream_is_read(toy_engine: Engine) -> None:
    for wrong, message in [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be an integer of at least 1"),
        (
            {"max_new_tokens": 64},
            "a prompt of 1 tokens and max_new_tokens 64 exceed max_seq_len 64; ask for at most 63",
        ),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
        ({"loops": 0}, "loops is 0; it must lie in 1.."),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"seed": -1}, "seed is -1"),
    ]:
        with pytest.raises(EngineError) as raised:
            toy_engine.generate([1], **wrong)  # type: ignore[arg-type]
        assert str(raised.value).startswith(message)
