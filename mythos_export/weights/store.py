"""Weights in low precision on their way into a bundle; `mythos_export.weights.names` says what they are called."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mythos_export.number_formats import FORMATS, block_scales, channel_scales, quantize
from mythos_export.weights.names import SCALE, StoredAs, Weight, read_name, stack_members
from mythos_export.weights.packing import packed
from reference_model.architecture import Architecture

__all__ = ["Quantizer"]

_NUMPY = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn), "int4": np.dtype(ml_dtypes.int4)}

Float = NDArray[np.float32]


class Quantizer:
    """Quantises float weights as they are asked for; numbers and scales of one are made together."""

    def __init__(self, read: Callable[[str], Float], architecture: Architecture) -> None:
        """Prepare; nothing is read yet.

        Args:
            read: gives a float weight in the layout of the graph, [..., contraction, channels].
            architecture: says what lies in a stack.
        """
        self._read, self._architecture = read, architecture
        self._last: tuple[tuple[str, str, int | None, int], Float, Float] | None = None
        self._written: dict[str, tuple[Any, int]] = {}  # by stack: the open file that holds its scales, and where

    def tensor(self, stored: StoredAs, name: str) -> ir.TensorProtocol:
        """The numbers, or the scales, as the graph wants them.

        A stack is made expert by expert while it is written; its scales should be written first, for then the
        numbers find them in the file and need not search for them again.

        Raises:
            ValueError: it is a stack of experts that the model does not have.
        """
        if stored.layout == "stacked":
            return _Stack(lambda file: self._parts(stored, file), stored, self._stack_shape(stored), name)
        numbers, scales = self._pair(stored)
        return ir.Tensor(scales if stored.is_scale else numbers, name=name)

    def differing(self, parameter: str, numbers: NDArray[Any], scales: NDArray[Any]) -> list[str]:
        """Which of a bundle's parameters `<parameter>` and `<parameter>.scale` are not what quantising gives.

        Compared to the last bit, and a stack expert by expert.

        Raises:
            ValueError: the parameter does not hold the numbers of a quantised weight.
        """
        stored = read_name(parameter)
        if stored is None or stored.is_scale:
            raise ValueError(f"{parameter} does not hold the numbers of a quantised weight")
        stacked = stored.layout == "stacked"
        pairs = itertools.zip_longest(*map(np.atleast_1d, (numbers, scales))) if stacked else [(numbers, scales)]
        same = [True, True]
        for theirs, ours in itertools.zip_longest(pairs, self._pairs(stored), fillvalue=(None, None)):
            same = [equal and _same(*arrays) for equal, arrays in zip(same, zip(theirs, ours))]
        return [name for name, equal in zip((parameter, f"{parameter}{SCALE}"), same) if not equal]

    def _pairs(self, stored: StoredAs) -> Iterator[tuple[NDArray[Any], Float]]:
        """Numbers and scales: of a stack expert by expert, else just one pair."""
        if stored.layout != "stacked":
            yield self._pair(stored)
            return
        for members in self._experts(stored):
            scales = self._stacked_scales(stored, members)
            yield self._stacked_numbers(stored, members, scales), scales

    def _pair(self, stored: StoredAs) -> tuple[NDArray[Any], Float]:
        levels, scales = self._quantized(stored)
        if stored.layout == "packed":
            assert stored.block is not None
            return packed(levels, stored.block, FORMATS[stored.format].bits), np.ascontiguousarray(scales.T)
        flat = stored.block is None and scales.ndim == 2  # ONNX wants the scales of a matrix's channels, or rows, flat
        return levels.astype(_NUMPY[stored.format]), scales.reshape(-1) if flat else scales

    def _quantized(self, stored: StoredAs) -> tuple[Float, Float]:
        key = (stored.weight, stored.format, stored.block, stored.axis)
        if self._last is None or self._last[0] != key:
            weight, number_format = self._float(stored.weight), FORMATS[stored.format]
            if stored.block is not None:
                scales = block_scales(weight, stored.block, number_format)
            else:
                scales = channel_scales(weight, stored.axis, number_format)
            self._last = key, quantize(weight, scales, number_format, stored.block), scales
        return self._last[1:]

    def _float(self, weight: str) -> Float:
        return np.ascontiguousarray(self._read(weight), np.float32)

    def _experts(self, stored: StoredAs) -> list[list[Weight]]:
        return stack_members(stored.weight, self._architecture)

    def _stack_shape(self, stored: StoredAs) -> list[int]:
        """[experts, channels, bytes of the contraction], or of the scales [experts, channels, blocks]."""
        assert stored.block is not None
        experts = self._experts(stored)
        contraction, channels = experts[0][0].shape
        width = -(-contraction // stored.block) if stored.is_scale else contraction * FORMATS[stored.format].bits // 8
        return [len(experts), channels * len(experts[0]), width]

    def _parts(self, stored: StoredAs, file: Any | None) -> Iterator[NDArray[Any]]:
        """A stack, expert by expert, on its way into the file."""
        experts = self._experts(stored)
        if stored.is_scale:
            if file is not None:
                self._written[stored.weight] = file, file.tell()
            yield from (self._stacked_scales(stored, members) for members in experts)
            return
        for index, members in enumerate(experts):
            scales = self._written_scales(stored, index, file)
            yield self._stacked_numbers(
                stored, members, self._stacked_scales(stored, members) if scales is None else scales
            )

    def _written_scales(self, stored: StoredAs, expert: int, file: Any | None) -> Float | None:
        """An expert's scales, where they are in the file already."""
        holder, offset = self._written.get(stored.weight, (None, 0))
        if file is None or file is not holder or not isinstance(getattr(file, "name", None), str):
            return None
        _, channels, blocks = self._stack_shape(replace(stored, is_scale=True))
        file.flush()
        offset += expert * channels * blocks * 4
        return np.fromfile(file.name, np.float32, channels * blocks, offset=offset).reshape(channels, blocks)

    def _stacked_scales(self, stored: StoredAs, members: list[Weight]) -> Float:
        """One expert's: [channels, blocks]."""
        assert stored.block is not None
        number_format = FORMATS[stored.format]
        return _alternate([block_scales(self._float(each.name), stored.block, number_format).T for each in members])

    def _stacked_numbers(self, stored: StoredAs, members: list[Weight], scales: Float) -> NDArray[np.uint8]:
        """One expert's, by those scales: [channels, bytes of the contraction]."""
        assert stored.block is not None
        number_format, parts = FORMATS[stored.format], []
        for index, each in enumerate(members):
            own = np.ascontiguousarray(scales[index :: len(members)].T)
            levels = quantize(self._float(each.name), own, number_format, stored.block)
            parts.append(packed(levels, stored.block, number_format.bits).reshape(levels.shape[1], -1))
        return _alternate(parts)


class _Stack(ir.LazyTensor):
    """The weights of all experts one behind the other, or their scales: of any one expert only while it is written."""

    def __init__(
        self, parts: Callable[[Any | None], Iterator[NDArray[Any]]], stored: StoredAs, shape: Sequence[int], name: str
    ) -> None:
        dtype = ir.DataType.FLOAT if stored.is_scale else ir.DataType.UINT8
        super().__init__(lambda: ir.Tensor(np.stack(list(parts(None)))), dtype, ir.Shape(shape), name=name)
        self._parts = parts

    def tofile(self, file: Any) -> None:
        """Write it, expert by expert."""
        for part in self._parts(file):
            file.write(part.tobytes())


def _alternate(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Rows of equally many matrices in turn, contiguous."""
    return np.ascontiguousarray(np.stack(parts, axis=1).reshape(-1, parts[0].shape[1]))


def _same(theirs: NDArray[Any] | None, ours: NDArray[Any] | None) -> bool:
    """Equal to the last bit, in type and shape too; or neither is there."""
    if theirs is None or ours is None:
        return theirs is ours
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return False
    return np.ascontiguousarray(theirs).tobytes() == np.ascontiguousarray(ours).tobytes()
