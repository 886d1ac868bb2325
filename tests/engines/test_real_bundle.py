"""The promise of the engine: on an exported bundle, the tokens that the reference model gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import engines
from reference_model.checkpoint import SeededWeights, load_model
from reference_model.config import MythosConfig
from reference_model.open_mythos.model import MythosModel, generate_greedy

TOKENS = 64
LOOPS = (1, 2, 4, 8, 16, 24)


class Pair(NamedTuple):
    engine: engines.Engine
    reference: MythosModel


@pytest.fixture(scope="module", params=["tiny_bundle", "tiny_gqa_bundle"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A bundle and the model it was exported from."""
    engine = engines.load(Path(request.getfixturevalue(request.param)), threads=1)
    config = MythosConfig.from_file(engine.bundle.file("config.json"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other
    yield Pair(engine, load_model(SeededWeights(config, engine.manifest.source["seed"]), config))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prompts(pair: Pair) -> list[list[int]]:
    """One prompt per depth of `LOOPS`."""
    return [random_tokens(pair, length) for length in (3, 11, 7, 1, 5, 8)]


@pytest.fixture(scope="module")
def expected(pair: Pair, prompts: list[list[int]]) -> list[list[int]]:
    """The reference's greedy tokens, all prompts in one left-padded batch, a depth each."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    steps = generate_greedy(pair.reference, ids, torch.tensor(LOOPS), TOKENS, attention_mask=mask)
    return torch.stack(list(steps), dim=1).tolist()


def random_tokens(pair: Pair, length: int) -> list[int]:
    return np.random.default_rng(length).integers(pair.reference.config.vocab_size, size=length).tolist()


@pytest.mark.parametrize("loops", LOOPS)
def test_greedy_tokens_of_one_prompt(pair: Pair, loops: int) -> None:
    prompt = random_tokens(pair, 9)
    reference = [int(token) for token in generate_greedy(pair.reference, torch.tensor([prompt]), loops, TOKENS)]
    assert list(pair.engine.generate(prompt, loops=loops, max_new_tokens=TOKENS)) == reference


@pytest.mark.parametrize("chunk", [None, 4])
def test_greedy_tokens_of_a_padded_batch_of_mixed_depths(
    pair: Pair, prompts: list[list[int]], expected: list[list[int]], chunk: int | None
) -> None:
    stream = pair.engine.generate(prompts, loops=LOOPS, max_new_tokens=TOKENS, prefill_chunk=chunk)
    assert np.stack(list(stream), axis=1).tolist() == expected


def test_a_sequence_gets_in_a_batch_what_it_gets_alone(
    pair: Pair, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    for prompt, loops, together in zip(prompts, LOOPS, expected):
        assert list(pair.engine.generate(prompt, loops=loops, max_new_tokens=TOKENS)) == together


def test_a_neighbour_that_stops_changes_nothing(
    pair: Pair, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    """The deepest sequence stops at once, and the trip count falls under the others' feet."""
    stop = expected[-1][1]
    ends = [tokens.index(stop) + 1 if stop in tokens else TOKENS for tokens in expected]
    steps = list(pair.engine.generate(prompts, loops=LOOPS, max_new_tokens=TOKENS, stop=stop))
    assert len(steps) == max(ends)
    for tokens, free, end in zip(np.stack(steps, axis=1).tolist(), expected, ends):
        assert tokens == free[:end] + [-1] * (len(steps) - end)


@pytest.mark.parametrize("chunk", [None, 3])
def test_logits_of_every_step(pair: Pair, chunk: int | None) -> None:
    """Greedy tokens of a random model soon repeat; logits over random tokens show what a cache must hold."""
    tokens, loops = random_tokens(pair, 40), [24, 5]
    starts = [tokens[:10], tokens[3:8]]
    running = pair.engine.start(starts, loops, capacity=50, prefill_chunk=chunk)
    fed = tokens[10:]
    got = [running.logits] + [running.step([token, token]) for token in fed]
    for index, depth in enumerate(loops):
        with torch.inference_mode():
            whole = pair.reference(torch.tensor([starts[index] + fed]), depth)
        reference = whole.logits[0, len(starts[index]) - 1 :].numpy()
        ours = np.stack([step[index] for step in got])
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4 * np.ptp(reference))


def test_logits_and_halting_depth_of_a_prompt(pair: Pair) -> None:
    prompt = random_tokens(pair, 12)
    for loops in (1, 5, 24):
        with torch.inference_mode():
            reference = pair.reference(torch.tensor([prompt]), loops)
        logits = reference.logits[0].numpy()
        np.testing.assert_allclose(pair.engine.logits(prompt, loops=loops), logits, rtol=0, atol=1e-4 * np.ptp(logits))
        assert pair.engine.halting_depth(prompt, loops=loops).tolist() == reference.halting_depth[0].tolist()
