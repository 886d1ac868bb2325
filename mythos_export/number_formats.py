"""The numbers of int8, fp8 and int4 and the scales that map a weight onto them, as ONNX defines both.

QuantizeLinear is saturate(round_half_even(x / scale)) and DequantizeLinear is q * scale, in float32, with
zero point 0. Every function here does the same, bit for bit: the division is never a product with a
reciprocal, which rounds elsewhere.

Scales have the rank of their weight and broadcast against it. With `block`, each row of them (axis -2)
serves that many rows of the weight; the last block may be shorter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FORMATS", "NumberFormat", "block_scales", "channel_scales", "dequantize", "quantize", "scales_of"]

# Twice the smallest normal number: shrunk to _SHRINKS[-1] a scale is still normal, so that no runtime flushes
# it to zero, and its reciprocal is finite.
_LEAST_SCALE = np.float32(2.0**-125)
_SHRINKS = np.linspace(1.0, 0.6, 17, dtype=np.float32)
_PIECE = 1 << 16  # numbers searched at once: a few copies of them fit a core's cache
_EXPONENT = np.int32(0x7F800000)  # those bits of a float32


@dataclass(frozen=True)
class NumberFormat:
    """What a quantised tensor can hold.

    A range is mapped to ±`largest`. Two's complement reaches one further below zero: an activation may land
    there, a weight is kept symmetric.
    """

    name: str
    smallest: float
    largest: float
    mantissa: int = 0  # bits after the leading one
    least_normal: float | None = None  # where the spacing stops shrinking; None: an integer, spaced by 1
    bits: int = 8  # that a number takes

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Nearest number of the format, ties to even, saturating; x of any shape, infinities allowed.

        What QuantizeLinear (saturate=1) and DequantizeLinear give with scale 1. NaN stays NaN, though
        ONNX leaves open what it is as an integer.
        """
        kept = np.clip(x, np.float32(self.smallest), np.float32(self.largest))
        if self.least_normal is None:
            return np.rint(kept) + np.float32(0)  # an integer has no -0
        # the power of two at or below |x|: to divide and to multiply by such is exact
        power = (kept.view(np.int32) & _EXPONENT).view(np.float32)
        spacing = np.maximum(power, np.float32(self.least_normal)) * np.float32(2.0**-self.mantissa)
        return np.rint(kept / spacing) * spacing


FORMATS = {
    fmt.name: fmt
    for fmt in (
        NumberFormat("int8", -128, 127),
        # E4M3 without infinities, ONNX's FLOAT8E4M3FN (arXiv 2209.05433)
        NumberFormat("fp8", -448, 448, mantissa=3, least_normal=2.0**-6),
        NumberFormat("int4", -8, 7, bits=4),
    )
}


def scales_of(limits: NDArray[np.float32], fmt: NumberFormat) -> NDArray[np.float32]:
    """Scales that map ±limits to ±`fmt.largest`; 1 where a limit is 0, and always normal numbers.

    Raises:
        ValueError: a limit is negative, NaN or infinite.
    """
    if not np.isfinite(limits).all():
        raise ValueError("a range to quantise must be finite; this tensor holds nan or inf")
    if (limits < 0).any():
        raise ValueError(f"the limit of a range is {limits.min()}; it must be at least 0")
    scales = np.maximum(limits / np.float32(fmt.largest), _LEAST_SCALE)
    return np.where(limits > 0, scales, np.float32(1))


def channel_scales(weight: NDArray[np.float32], axis: int, fmt: NumberFormat) -> NDArray[np.float32]:
    """One scale for all numbers along `axis`, from the largest |w| there; the axis is kept, with size 1.

    Raises:
        ValueError: the weight holds NaN or an infinity.
    """
    return scales_of(_reach(weight, (axis,)), fmt)


def block_scales(weight: NDArray[np.float32], block: int, fmt: NumberFormat) -> NDArray[np.float32]:
    """weight [..., K, N] -> scales [..., ceil(K / block), N], each the best of 17 for its block and column.

    With few levels the largest |w| is a poor choice: clipping it makes all others finer. So scales from it
    down to 0.6 of it are compared by their squared error (OMSE, arXiv 1902.06822); of equals the largest
    wins. Works piece by piece, in memory of its own that does not grow with the weight.

    Raises:
        ValueError: block below 1, or the weight holds NaN or an infinity.
    """
    *leading, rows, columns = weight.shape
    blocks = _slices(rows, block)
    scales = np.empty((*leading, len(blocks), columns), np.float32)
    for lead in np.ndindex(*leading):
        for index, own in enumerate(blocks):
            for piece in _slices(columns, max(1, _PIECE // block)):
                scales[lead][index, piece] = _searched(weight[lead][own, piece], fmt)
    return scales


def quantize(
    weight: NDArray[np.float32], scales: NDArray[np.float32], fmt: NumberFormat, block: int | None = None
) -> NDArray[np.float32]:
    """The numbers of the format that stand for a weight: QuantizeLinear, kept within ±`fmt.largest`.

    Args:
        weight: [..., K, N], finite.
        scales: as `channel_scales` or `block_scales` gave them.
        block: what `block_scales` was given; None for scales by channel.

    Raises:
        ValueError: the scales are not those of this weight.
    """
    levels = np.empty_like(weight)
    for scale, part, out in _parts(scales, block, weight, levels):
        out[...] = _symmetric(part / scale, fmt)
    return levels


def dequantize(
    levels: NDArray[np.float32], scales: NDArray[np.float32], block: int | None = None
) -> NDArray[np.float32]:
    """The weight that a runtime computes with: DequantizeLinear of what `quantize` gave, by the same scales."""
    weight = np.empty_like(levels)
    for scale, part, out in _parts(scales, block, levels, weight):
        np.multiply(part, scale, out=out)
    return weight


def _searched(piece: NDArray[np.float32], fmt: NumberFormat) -> NDArray[np.float32]:
    """Piece of one block [k, n] -> the best scale of each column [n]."""
    widest = scales_of(_reach(piece, (0,)), fmt)[0]
    units = piece / widest  # within ±largest, so that no square overflows or underflows
    least = np.full(units.shape[1], np.inf, np.float32)
    chosen = np.ones_like(least)
    for shrink in _SHRINKS:
        error = _symmetric(units / shrink, fmt) * shrink - units
        total = np.square(error, out=error).sum(axis=0)
        better = total < least
        least[better], chosen[better] = total[better], shrink
    return widest * chosen


def _symmetric(x: NDArray[np.float32], fmt: NumberFormat) -> NDArray[np.float32]:
    limit = np.float32(fmt.largest)
    return np.clip(fmt.round(x), -limit, limit)


def _reach(weight: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float32]:
    """Largest |w| over the axes, which are kept with size 1; makes no copy of the weight."""
    highest = weight.max(axis=axes, initial=0, keepdims=True)
    return np.maximum(highest, -weight.min(axis=axes, initial=0, keepdims=True))


def _parts(
    scales: NDArray[np.float32], block: int | None, source: NDArray[np.float32], target: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]:
    """Scales, source and target some rows at a time: views that broadcast, small enough for temporaries."""
    rows, columns = source.shape[-2:]
    if block is None:
        scales = np.broadcast_to(scales, source.shape)
        for own in _slices(rows, max(1, _PIECE // max(1, columns))):
            yield scales[..., own, :], source[..., own, :], target[..., own, :]
        return
    blocks = _slices(rows, block)
    if scales.shape[-2] != len(blocks):
        raise ValueError(f"{scales.shape[-2]} rows of scales; {rows} rows in blocks of {block} need {len(blocks)}")
    for index, own in enumerate(blocks):
        yield scales[..., index : index + 1, :], source[..., own, :], target[..., own, :]


def _slices(length: int, step: int) -> list[slice]:
    if step < 1:
        raise ValueError(f"block is {step}; it must be at least 1")
    return [slice(start, start + step) for start in range(0, length, step)]
