"""int8 and int4 numbers in bytes, as ONNX Runtime's MatMulNBits and QMoE read them.

Rows are output channels and the contraction runs along them, in blocks. A byte holds an int8 number plus 128; or two
int4 numbers plus 8, of two neighbours the first in its low half. So 128, or 8, is zero, and fills up the last block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed", "unpacked"]

_ZERO = {8: 128, 4: 8}  # by bits of a number, what stands for 0


def packed(levels: NDArray[np.float32], block: int, bits: int) -> NDArray[np.uint8]:
    """Numbers of a weight, [contraction, channels] -> [channels, blocks, block * bits / 8].

    Args:
        levels: -128..127 of 8 bits, -8..7 of 4.

    Raises:
        ValueError: the block does not fill whole bytes.
    """
    if block * bits % 8:
        raise ValueError(f"block is {block}; two numbers share a byte, so it must be even")
    contraction, channels = levels.shape
    blocks = -(-contraction // block)
    numbers = np.full((channels, blocks * block), _ZERO[bits], np.uint8)
    np.add(levels.T, _ZERO[bits], out=numbers[:, :contraction], casting="unsafe")
    if bits == 8:
        return numbers.reshape(channels, blocks, block)
    halves = numbers.reshape(channels, blocks, block // 2, 2)
    return halves[..., 0] | (halves[..., 1] << 4)


def unpacked(stored: NDArray[np.uint8], contraction: int, bits: int) -> NDArray[np.float32]:
    """[channels, blocks, block * bits / 8], or with the blocks joined, -> numbers [contraction, channels].

    Raises:
        ValueError: it holds no such number of them.
    """
    rows = stored.reshape(len(stored), -1)
    held = rows.shape[1] * 8 // bits
    if rows.dtype != np.uint8 or not 0 <= contraction <= held:
        raise ValueError(f"{rows.shape[1]} bytes of {stored.dtype} a row cannot hold {contraction} int{bits} numbers")
    levels = np.empty((held, len(rows)), np.float32)
    if bits == 8:
        levels[...] = rows.T
    else:
        levels[0::2] = (rows & 15).T
        levels[1::2] = (rows >> 4).T
    levels -= _ZERO[bits]
    return levels[:contraction]
