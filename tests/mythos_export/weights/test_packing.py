"""int8 and int4 numbers in bytes: nothing is lost, and the bytes are those that ONNX Runtime's operators define."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mythos_export.weights.packing import packed, unpacked


def levels_of(bits: int) -> st.SearchStrategy[tuple[int, np.ndarray]]:
    """Any number of the format, and how many bits it has."""
    numbers = st.integers(-(1 << bits - 1), (1 << bits - 1) - 1).map(float)
    shapes = st.tuples(st.integers(1, 70), st.integers(1, 5))
    return shapes.flatmap(lambda shape: st.tuples(st.just(bits), arrays(np.float32, shape, elements=numbers)))


LEVELS = st.one_of(levels_of(4), levels_of(8))


@given(found=LEVELS, block=st.sampled_from([16, 32, 64, 128]))
def test_what_is_packed_comes_out_again(found: tuple[int, np.ndarray], block: int) -> None:
    bits, levels = found
    stored = packed(levels, block, bits)
    contraction, channels = levels.shape
    assert stored.dtype == np.uint8
    assert stored.shape == (channels, -(-contraction // block), block * bits // 8)
    np.testing.assert_array_equal(unpacked(stored, contraction, bits), levels)
    np.testing.assert_array_equal(unpacked(stored.reshape(channels, -1), contraction, bits), levels)


@given(found=LEVELS)
def test_what_fills_up_the_last_block_is_zero(found: tuple[int, np.ndarray]) -> None:
    bits, levels = found
    stored = packed(levels, 32, bits)
    whole = unpacked(stored, 32 * stored.shape[1], bits)
    assert not whole[len(levels) :].any()


def test_the_first_of_two_numbers_is_in_the_low_half() -> None:
    levels = np.array([[-7, 1], [7, 0], [3, -8]], np.float32)  # contraction 3, two channels
    wanted = [[[0xF1, 0x8B]], [[0x89, 0x80]]]
    np.testing.assert_array_equal(packed(levels, 4, 4), wanted)


def test_a_byte_of_int8_is_the_number_plus_128() -> None:
    levels = np.array([[-127, 1], [127, 0], [3, -128]], np.float32)
    np.testing.assert_array_equal(packed(levels, 4, 8), [[[1, 255, 131, 128]], [[129, 128, 0, 128]]])


@pytest.mark.parametrize("block", [1, 31])
def test_an_odd_block_is_refused(block: int) -> None:
    with pytest.raises(ValueError, match=f"block is {block}; two numbers share a byte"):
        packed(np.zeros((4, 1), np.float32), block, 4)


@pytest.mark.parametrize(
    ("stored", "contraction", "bits"),
    [(np.zeros((2, 16), np.uint8), 33, 4), (np.zeros((2, 16), np.uint8), 17, 8), (np.zeros((2, 16)), 4, 4)],
)
def test_bytes_that_cannot_hold_it_are_refused(stored: np.ndarray, contraction: int, bits: int) -> None:
    with pytest.raises(ValueError, match=f"cannot hold {contraction} int{bits} numbers"):
        unpacked(stored, contraction, bits)
