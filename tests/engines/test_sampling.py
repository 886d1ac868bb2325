"""Sampling against its definition, spelled out the slow way."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import EngineError
from engines.sampling import Sampler, Sampling, candidates

# coarse values, so that ties are common
LOGITS = st.lists(st.integers(-8, 8).map(lambda value: value / 2), min_size=1, max_size=40)


def by_definition(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[tuple[int, float]]:
    """Kept (token, probability), most likely first, with plain loops."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    kept = order[: top_k or len(order)]
    weights = [math.exp((logits[token] - max(logits)) / temperature) for token in kept]
    probabilities = [weight / sum(weights) for weight in weights]
    count, mass = 0, 0.0
    while count < len(kept) and (top_p == 1 or mass < top_p):
        mass += probabilities[count]
        count += 1
    return [(token, p / sum(probabilities[:count])) for token, p in zip(kept[:count], probabilities)]


@settings(max_examples=300, deadline=None)
@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 45),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
)
def test_kept_tokens_and_their_probabilities(logits: list[float], temperature: float, top_k: int, top_p: float) -> None:
    expected = by_definition(logits, temperature, top_k, top_p)
    ids, weights = candidates(np.array(logits, np.float32), Sampling(temperature, top_k, top_p))
    got = sorted(zip(ids.tolist(), (weights / weights.sum()).tolist()))
    if len(got) != len(expected):  # a mass that equals top_p to the last bits may fall on either side
        everything = by_definition(logits, temperature, top_k, 1.0)
        shorter = min(len(got), len(expected))
        assert sum(p for _, p in everything[:shorter]) == pytest.approx(top_p, abs=1e-9)
        return
    assert [token for token, _ in got] == sorted(token for token, _ in expected)
    assert [p for _, p in got] == pytest.approx([p for _, p in sorted(expected)], rel=1e-6)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_top_p_over_a_real_vocabulary(top_p: float, spread: float) -> None:
    logits = (np.random.default_rng(0).standard_normal(5000) * spread).astype(np.float32)
    ids, _ = candidates(logits, Sampling(1.0, 0, top_p))
    expected = by_definition(logits.tolist(), 1.0, 0, top_p)
    assert abs(len(ids) - len(expected)) <= 1  # sums of another order
    assert len(set(ids.tolist()) ^ {token for token, _ in expected}) <= 1


def test_greedy_takes_the_lowest_of_equals() -> None:
    sampler = Sampler(Sampling(), 2)
    assert sampler.choose(np.array([[1, 3, 3, 0], [2, 2, 2, 2]], np.float32)).tolist() == [1, 0]


def test_a_seed_repeats_and_another_differs() -> None:
    logits = np.zeros((1, 1000), np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(1.0, seed=seed), 1)
        return [int(sampler.choose(logits)[0]) for _ in range(8)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(None) != draw(None)


def test_a_sequence_draws_what_it_would_draw_alone() -> None:
    logits = np.random.default_rng(1).standard_normal((6, 3, 50)).astype(np.float32)  # [step, batch, vocab]
    together, finished = Sampler(Sampling(1.0, 20, 0.9, 7), 3), np.array([False, True, False])
    drawn = [together.choose(step, finished).tolist() for step in logits]
    assert all(tokens[1] == -1 for tokens in drawn)  # a neighbour that is done draws nothing
    for index in (0, 2):
        alone = Sampler(Sampling(1.0, 20, 0.9, 7 + index), 1)
        assert [tokens[index] for tokens in drawn] == [int(alone.choose(step[index : index + 1])[0]) for step in logits]


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2, 1e-9]], np.float32))
    sampler = Sampler(Sampling(1.0, top_k=3, seed=0), 1)
    counts = Counter(int(sampler.choose(logits)[0]) for _ in range(4000))
    assert [counts[token] / 4000 for token in range(4)] == pytest.approx([0.5, 0.3, 0.2, 0], abs=0.03)


def test_extremes() -> None:
    logits = np.array([[-np.inf, 1.0, 2.0, -1e38]], np.float32)
    assert Sampler(Sampling(1e-300), 1).choose(logits).tolist() == [2]
    assert Sampler(Sampling(1e300, top_p=1e-300), 1).choose(logits).tolist() == [2]
    hot = Sampler(Sampling(1e6, seed=0), 1)
    assert 0 not in {int(hot.choose(logits)[0]) for _ in range(200)}  # -inf is never drawn


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[1, np.nan, 2], [np.nan] * 3, [1, np.inf, 2], [-np.inf] * 3])
def test_logits_must_be_finite(temperature: float, bad: list[float]) -> None:
    with pytest.raises(EngineError, match=r"the model produced (nan|inf|-inf) logits"):
        Sampler(Sampling(temperature), 1).choose(np.array([bad], np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": math.nan}, "temperature is nan; it must be a number of at least 0"),
        ({"temperature": -0.5}, "temperature is -0.5; it must be a number of at least 0"),
        ({"temperature": math.inf}, "temperature is inf; it must be a number of at least 0"),
        ({"temperature": "1"}, "temperature is '1'; it must be a number of at least 0"),
        ({"top_k": -1}, "top_k is -1; it must be an integer of at least 0"),
        ({"top_k": 2.5}, "top_k is 2.5; it must be an integer of at least 0"),
        ({"top_p": 0}, "top_p is 0; it must lie in (0, 1]"),
        ({"top_p": 1.01}, "top_p is 1.01; it must lie in (0, 1]"),
        ({"top_p": math.nan}, "top_p is nan; it must lie in (0, 1]"),
        ({"seed": -1}, "seed is -1; it must be an integer of at least 0"),
        ({"seed": 1.5}, "seed is 1.5; it must be an integer of at least 0"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError) as raised:
        Sampling(**options)  # type: ignore[arg-type]
    assert str(raised.value) == message
