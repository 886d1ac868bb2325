"""Weights in low precision on their way into a bundle, and back out of it.

`<weight>.int8` holds the numbers and `<weight>.int8.scale` their scales; so for fp8, for int4 in blocks
(`.int4b32`), and for the embedding's table (`.rows`: int8, a scale per row). `.int4b32.packed` and its
`.scale` are the same int4 numbers as ONNX Runtime's MatMulNBits reads them, and
`<experts>.gate_up.int4b32.stacked` those of all routed experts, as QMoE does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mythos_export.number_formats import FORMATS, NumberFormat, block_scales, channel_scales, dequantize, quantize
from mythos_export.packing import packed, unpacked
from mythos_export.quantization import ROUTED_EXPERTS, STACKS
from reference_model.config import MythosConfig
from reference_model.parameters import parameter_shapes

__all__ = ["HEAD", "Quantizer", "Restored", "Stored", "restored", "restored_tensors", "stack_members", "stored_as"]

HEAD = "head.weight"  # upstream's name of the output head's weight, tied to the embedding's until it is quantised

_SUFFIX = re.compile(
    r"(?P<weight>.+)\.(?P<kind>int8|fp8|rows|int4b(?P<block>[1-9][0-9]{0,4})(?P<layout>\.packed|\.stacked)?)"
    r"(?P<scale>\.scale)?"
)
_NUMPY = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn), "int4": np.dtype(ml_dtypes.int4)}

Float = NDArray[np.float32]
Layout = Literal["plain", "packed", "stacked"]


@dataclass(frozen=True)
class Stored:
    """What a parameter's name says: the float weight behind it, and how it is kept."""

    weight: str  # of a stack: what it is a stack of
    format: NumberFormat
    block: int | None  # along the contraction (axis -2)
    axis: int  # what shares a scale where there are no blocks: the contraction (-2), or a row (-1)
    is_scale: bool
    layout: Layout = "plain"


def stored_as(parameter: str) -> Stored | None:
    """Read a parameter's name; None for one that is kept in float."""
    found = _SUFFIX.fullmatch(parameter)
    if found is None:
        return None
    kind, block, layout = found["kind"], found["block"], (found["layout"] or ".plain")[1:]
    if layout == "stacked" and found["weight"] not in STACKS:
        return None
    name = "int8" if kind == "rows" else "int4" if block else kind
    return Stored(
        weight=found["weight"],
        format=FORMATS[name],
        block=int(block) if block else None,
        axis=-1 if kind == "rows" else -2,
        is_scale=found["scale"] is not None,
        layout=layout,  # type: ignore[arg-type]  # the pattern has no other
    )


def stack_members(stack: str, expert: int) -> list[str]:
    """The weights of one expert in a stack; where there are two, their rows alternate."""
    return [f"{ROUTED_EXPERTS}.{expert}.{name}.weight.T" for name in STACKS[stack]]


class Quantizer:
    """Quantises float weights as they are asked for; numbers and scales of one are made together."""

    def __init__(self, read: Callable[[str], Float], experts: int = 0) -> None:
        """Prepare; nothing is read yet.

        Args:
            read: gives a float weight in the layout of the graph, [..., contraction, channels].
            experts: routed experts of the model; the stacks, if there are any, hold so many.
        """
        self._read, self._experts = read, experts
        self._last: tuple[tuple[str, NumberFormat, int | None, int], Float, Float] | None = None
        self._written: dict[str, tuple[Any, int]] = {}  # by stack: the open file that has its scales, and where

    def tensor(self, stored: Stored, name: str) -> ir.TensorProtocol:
        """The numbers, or the scales, as the graph wants them; a stack is made one expert at a time as it is written.

        Scales of a stack that are written before its numbers are searched only once.
        """
        if stored.layout == "stacked":
            return self._stack(stored, name)
        numbers, scales = self._pair(stored)
        return ir.Tensor(scales if stored.is_scale else numbers, name=name)

    def pairs(self, stored: Stored) -> Iterator[tuple[NDArray[Any], Float]]:
        """Numbers and scales as the graph wants them: of a stack one expert after the other, else just one pair."""
        if stored.layout != "stacked":
            yield self._pair(stored)
            return
        for expert in range(self._experts):
            scales = self._scales_of(stored, expert)
            yield self._numbers_of(stored, expert, scales), scales

    def differing(self, parameter: str, numbers: NDArray[Any], scales: NDArray[Any]) -> list[str]:
        """Which of a bundle's parameters `<parameter>` and `<parameter>.scale` are not what quantising gives.

        To the last bit, and of a stack one expert at a time.
        """
        stored = stored_as(parameter)
        if stored is None or stored.is_scale:
            raise ValueError(f"{parameter} does not hold the numbers of a quantised weight")
        same = [True, True]
        count = 0
        for index, wanted in enumerate(self.pairs(stored)):
            count += 1
            for which, array in enumerate((numbers, scales)):
                found = array if stored.layout != "stacked" else array[index] if index < len(array) else None
                same[which] = same[which] and _same(found, wanted[which])
        if stored.layout == "stacked":
            same = [equal and len(array) == count for equal, array in zip(same, (numbers, scales))]
        return [name for name, equal in zip((parameter, f"{parameter}.scale"), same) if not equal]

    def _pair(self, stored: Stored) -> tuple[NDArray[Any], Float]:
        levels, scales = self._quantized(stored)
        if stored.layout == "packed":
            assert stored.block is not None
            return packed(levels, stored.block), np.ascontiguousarray(scales.T)
        flat = stored.block is None and scales.ndim == 2  # ONNX wants the scales of a matrix's channels, or rows, flat
        return levels.astype(_NUMPY[stored.format.name]), scales.reshape(-1) if flat else scales

    def _quantized(self, stored: Stored) -> tuple[Float, Float]:
        key = (stored.weight, stored.format, stored.block, stored.axis)
        if self._last is None or self._last[0] != key:
            weight = self._float(stored.weight)
            if stored.block is not None:
                scales = block_scales(weight, stored.block, stored.format)
            else:
                scales = channel_scales(weight, stored.axis, stored.format)
            self._last = key, quantize(weight, scales, stored.format, stored.block), scales
        return self._last[1:]

    def _float(self, weight: str) -> Float:
        return np.ascontiguousarray(self._read(weight), np.float32)

    def _stack(self, stored: Stored, name: str) -> _Stack:
        if not self._experts:
            raise ValueError(f"{name} holds the weights of all experts, but it was not said how many there are")
        numbers, scales = next(self.pairs(stored))
        first = scales if stored.is_scale else numbers
        parts = self._written_scales if stored.is_scale else self._written_numbers
        return _Stack(lambda file: parts(stored, file), first, self._experts, name)

    def _scales_of(self, stored: Stored, expert: int) -> Float:
        """Of one expert in a stack: [channels, blocks]."""
        assert stored.block is not None
        members = stack_members(stored.weight, expert)
        return _alternate([block_scales(self._float(name), stored.block, stored.format).T for name in members])

    def _numbers_of(self, stored: Stored, expert: int, scales: Float) -> NDArray[np.uint8]:
        """Of one expert in a stack, by those scales: [channels, contraction / 2]."""
        assert stored.block is not None
        members, parts = stack_members(stored.weight, expert), []
        for index, name in enumerate(members):
            own = np.ascontiguousarray(scales[index :: len(members)].T)
            levels = quantize(self._float(name), own, stored.format, stored.block)
            parts.append(packed(levels, stored.block).reshape(levels.shape[1], -1))
        return _alternate(parts)
