"""Two int4 numbers a byte, as ONNX Runtime's MatMulNBits and QMoE read them.

Rows are output channels and the contraction runs along them, in blocks; of two neighbours the first is in
the low half of the byte. A half holds the number plus 8, so 8 is zero, and fills up the last block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed", "unpacked"]

_ZERO = 8  # what stands for the number 0


def packed(levels: NDArray[np.float32], block: int) -> NDArray[np.uint8]:
    """Numbers -8..7 of a weight, [contraction, channels] -> [channels, blocks, block / 2].

    Raises:
        ValueError: the block is odd.
    """
    if block % 2:
        raise ValueError(f"block is {block}; two numbers share a byte, so it must be even")
    contraction, channels = levels.shape
    blocks = -(-contraction // block)
    halves = np.full((channels, blocks * block), _ZERO, np.uint8)
    np.add(levels.T, _ZERO, out=halves[:, :contraction], casting="unsafe")
    halves = halves.reshape(channels, blocks, block // 2, 2)
    return halves[..., 0] | (halves[..., 1] << 4)


def unpacked(stored: NDArray[np.uint8], contraction: int) -> NDArray[np.float32]:
    """[channels, blocks, block / 2], or with the blocks joined, -> numbers [contraction, channels].

    Raises:
        ValueError: it holds no such number of them.
    """
    rows = stored.reshape(len(stored), -1)
    if rows.dtype != np.uint8 or not 0 <= contraction <= 2 * rows.shape[1]:
        raise ValueError(f"{rows.shape[1]} bytes of {stored.dtype} a row cannot hold {contraction} int4 numbers")
    levels = np.empty((2 * rows.shape[1], len(rows)), np.float32)
    levels[0::2] = (rows & 15).T
    levels[1::2] = (rows >> 4).T
    levels -= _ZERO
    return levels[:contraction]
