"""What a caller may ask for, and what each refusal says."""

from __future__ import annotations

import numpy as np
import pytest

from engines.errors import EngineError
from engines.prompts import read_loops, read_prompts
from mythos_export.bundle import Limits

LIMITS = Limits(vocab_size=100, max_seq_len=6, max_loop_iters=4)


@pytest.mark.parametrize(
    "ids",
    [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3], np.uint8), np.array([1, 2, 3], np.uint64), [np.int32(1), 2, 3]],
)
def test_one_prompt(ids: object) -> None:
    prompts = read_prompts(ids, None, LIMITS)  # type: ignore[arg-type]
    assert prompts.single
    assert prompts.ids.tolist() == [[1, 2, 3]]
    assert prompts.ids.dtype == prompts.mask.dtype == np.int64


def test_ragged_prompts_are_padded_on_the_left() -> None:
    prompts = read_prompts([[1], np.array([2, 3, 4]), (5, 6)], None, LIMITS)  # type: ignore[arg-type]
    assert not prompts.single
    assert prompts.ids.tolist() == [[0, 0, 1], [2, 3, 4], [0, 5, 6]]
    assert prompts.mask.tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert prompts.longest == 3


def test_padding_does_not_count_towards_max_seq_len() -> None:
    ids, mask = [[-100] * 4 + [7] * 4], [[0] * 4 + [1] * 4]
    assert read_prompts(ids, mask, LIMITS).ids.tolist() == [[0] * 4 + [7] * 4]


def test_chunks_cover_everything_once() -> None:
    prompts = read_prompts([[1, 2, 3, 4, 5], [6]], None, LIMITS)
    assert np.concatenate([part.ids for part in prompts.chunks(2)], axis=1).tolist() == prompts.ids.tolist()
    assert [part.ids.shape[1] for part in prompts.chunks(2)] == [2, 2, 1]
    assert len(prompts.chunks(None)) == 1


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([], None, "the prompt is empty; give at least one token"),
        (np.array([]), None, "the prompt is empty; give at least one token"),
        (np.zeros((0, 3), int), None, "there is no prompt in the batch; give at least one"),
        ([[1], []], None, "prompt 1 is empty; give at least one token"),
        ([[1, 1], [1, 1]], [[1, 1], [0, 0]], "prompt 1 is empty; give at least one token"),
        ([1, 100], None, "token id 100 at position 1 is not in 0..99 (the vocabulary)"),
        ([[1], [2, -3]], None, "token id -3 at position 1 of prompt 1 is not in 0..99 (the vocabulary)"),
        ([10**30], None, f"token id {10**30} at position 0 is not in 0..99 (the vocabulary)"),
        (
            np.array([2**64 - 1], np.uint64),
            None,
            f"token id {2**64 - 1} at position 0 is not in 0..99 (the vocabulary)",
        ),
        ([1, 2.0], None, "token 2.0 at position 1 is not an integer"),
        (np.array([1.0]), None, "token 1.0 at position 0 is not an integer"),
        ([True], None, "token True at position 0 is not an integer"),
        ([None], None, "token None at position 0 is not an integer"),
        (["a"], None, "token 'a' at position 0 is not an integer"),
        ([float("nan")], None, "token nan at position 0 is not an integer"),
        ("hello", None, "the prompt is text; encode it with the bundle's tokenizer first (engine.tokenizer.encode)"),
        (5, None, "expected a list of integers, got int"),
        (None, None, "expected a list of integers, got NoneType"),
        ([1, [2]], None, "token ids mix numbers and lists; give one flat list, or a list of lists"),
        ([[[1]]], None, "token [1] at position 0 of prompt 0 is not an integer"),
        (np.zeros((1, 1, 1), int), None, "token ids have 3 dimensions; expected [seq] or [batch, seq]"),
        ([1] * 7, None, "the prompt has 7 tokens, more than max_seq_len 6"),
        ([[1], [1] * 7], None, "prompt 1 has 7 tokens, more than max_seq_len 6"),
        ([1, 2], [1], "attention_mask must have the shape of the token ids"),
        ([[1, 2]], [1, 1], "expected a list of integers, got int"),
        ([1, 2], [1, 2], "attention_mask is 2 at position 1; it must be 0 or 1"),
        ([1, 2], [0.5, 1], "attention_mask is 0.5 at position 0; it must be 0 or 1"),
        ([1, 2], [1, 0], "attention_mask is 0 after a real token, at position 1; pad on the left"),
        (
            [[1, 2, 3]],
            [[1, 0, 1]],
            "attention_mask is 0 after a real token, at position 1 of prompt 0; pad on the left",
        ),
    ],
)
def test_bad_prompts(ids: object, mask: object, message: str) -> None:
    with pytest.raises(EngineError) as raised:
        read_prompts(ids, mask, LIMITS)  # type: ignore[arg-type]
    assert str(raised.value) == message


def test_loops_are_one_for_all_or_one_each() -> None:
    assert read_loops(3, 2).tolist() == [3, 3]
    assert read_loops(np.int64(3), 2).tolist() == [3, 3]
    assert read_loops(np.array(3), 2).tolist() == [3, 3]
    assert read_loops([1, 4], 2).tolist() == [1, 4]
    assert read_loops(np.array([1, 4]), 2).tolist() == [1, 4]


@pytest.mark.parametrize(
    ("loops", "message"),
    [
        (0, "loops is 0; it must lie in 1..4096"),
        (-3, "loops is -3; it must lie in 1..4096"),
        (4097, "loops is 4097; it must lie in 1..4096"),
        ([1, 0], "loops is 0; it must lie in 1..4096"),
        ([1, 2, 3], "loops has 3 values for 2 sequences; give one number, or one per sequence"),
        ([4], "loops has 1 values for 2 sequences; give one number, or one per sequence"),
        (2.0, "loops is 2.0; it must be an integer"),
        (True, "loops is True; it must be an integer"),
        (float("nan"), "loops is nan; it must be an integer"),
        ("abc", "loops has 3 values for 2 sequences; give one number, or one per sequence"),
        ("ab", "loops is 'a'; it must be an integer"),
        (None, "expected a list of integers, got NoneType"),
    ],
)
def test_bad_loops(loops: object, message: str) -> None:
    with pytest.raises(EngineError) as raised:
        read_loops(loops, 2)  # type: ignore[arg-type]
    assert str(raised.value) == message
