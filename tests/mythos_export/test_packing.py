"""int4 numbers in bytes: nothing is lost, and the bytes are those that ONNX Runtime's operators define."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mythos_export.packing import packed, unpacked

LEVELS = st.tuples(st.integers(1, 70), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-8, 7).map(float))
)


@given(levels=LEVELS, block=st.sampled_from([16, 32, 64]))
def test_what_is_packed_comes_out_again(levels: np.ndarray, block: int) -> None:
    stored = packed(levels, block)
    contraction, channels = levels.shape
    assert stored.dtype == np.uint8
    assert stored.shape == (channels, -(-contraction // block), block // 2)
    np.testing.assert_array_equal(unpacked(stored, contraction), levels)
    np.testing.assert_array_equal(unpacked(stored.reshape(channels, -1), contraction), levels)


@given(levels=LEVELS)
def test_what_fills_up_the_last_block_is_zero(levels: np.ndarray) -> None:
    stored = packed(levels, 32)
    whole = unpacked(stored, 16 * stored.shape[1] * 2)
    assert not whole[len(levels) :].any()


def test_the_first_of_two_numbers_is_in_the_low_half() -> None:
    levels = np.array([[-7, 1], [7, 0], [3, -8]], np.float32)  # contraction 3, two channels
    wanted = [[[0xF1, 0x8B]], [[0x89, 0x80]]]
    np.testing.assert_array_equal(packed(levels, 4), wanted)


@pytest.mark.parametrize("block", [1, 31])
def test_an_odd_block_is_refused(block: int) -> None:
    with pytest.raises(ValueError, match=f"block is {block}; two numbers share a byte"):
        packed(np.zeros((4, 1), np.float32), block)


@pytest.mark.parametrize(("stored", "contraction"), [(np.zeros((2, 16), np.uint8), 33), (np.zeros((2, 16)), 4)])
def test_bytes_that_cannot_hold_it_are_refused(stored: np.ndarray, contraction: int) -> None:
    with pytest.raises(ValueError, match=f"cannot hold {contraction} int4 numbers"):
        unpacked(stored, contraction)
