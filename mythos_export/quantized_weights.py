"""Weights in low precision on their way into a bundle, and back out of it.

`<weight>.int8` holds the numbers and `<weight>.int8.scale` their scales; so for fp8, for int4 in blocks
(`.int4b32`), and for the embedding's table (`.rows`: int8, a scale per row). `.int4b128.packed`,
`.int8b128.packed` and their `.scale` are numbers in blocks as ONNX Runtime's MatMulNBits reads them, and
`<experts>.gate_up.int4b128.stacked` those of all routed experts, as QMoE does.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mythos_export.number_formats import FORMATS, NumberFormat, block_scales, channel_scales, dequantize, quantize
from mythos_export.packing import packed, unpacked
from mythos_export.quantization import ROUTED_EXPERTS, STACKS
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.parameters import parameter_shapes

__all__ = ["HEAD", "Quantizer", "Restored", "Stored", "restored", "restored_tensors", "stack_members", "stored_as"]

HEAD = "head.weight"  # upstream's name of the output head's weight, tied to the embedding's until it is quantised

_SUFFIX = re.compile(
    r"(?P<weight>.+)\.(?P<kind>int8|fp8|rows|(?P<blocks>int8|int4)b(?P<block>[1-9][0-9]{0,4})(?P<layout>\.packed|\.stacked)?)"
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
    if (layout == "stacked" and found["weight"] not in STACKS) or (layout != "plain" and int(block) % 2):
        return None
    name = "int8" if kind == "rows" else found["blocks"] or kind
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

    def __init__(self, read: Callable[[str], Float], config: MythosConfig | None = None) -> None:
        """Prepare; nothing is read yet.

        Args:
            read: gives a float weight in the layout of the graph, [..., contraction, channels].
            config: of the model; needed for stacks only.
        """
        self._read, self._config = read, config
        self._last: tuple[tuple[str, NumberFormat, int | None, int], Float, Float] | None = None
        self._written: dict[str, tuple[Any, int]] = {}  # by stack: the open file that holds its scales, and where

    def tensor(self, stored: Stored, name: str) -> ir.TensorProtocol:
        """The numbers, or the scales, as the graph wants them.

        A stack is made expert by expert while it is written; its scales should be written first, for then the
        numbers find them in the file and need not search for them again.

        Raises:
            ValueError: it is a stack, and the config is not known.
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
        stored = stored_as(parameter)
        if stored is None or stored.is_scale:
            raise ValueError(f"{parameter} does not hold the numbers of a quantised weight")
        stacked = stored.layout == "stacked"
        found = itertools.zip_longest(*map(np.atleast_1d, (numbers, scales))) if stacked else [(numbers, scales)]
        same = [True, True]
        for theirs, ours in itertools.zip_longest(found, self._pairs(stored), fillvalue=(None, None)):
            same = [equal and _same(*arrays) for equal, arrays in zip(same, zip(theirs, ours))]
        return [name for name, equal in zip((parameter, f"{parameter}.scale"), same) if not equal]

    def _pairs(self, stored: Stored) -> Iterator[tuple[NDArray[Any], Float]]:
        """Numbers and scales: of a stack expert by expert, else just one pair."""
        if stored.layout != "stacked":
            yield self._pair(stored)
            return
        for expert in range(self._stack_shape(stored)[0]):
            scales = self._stacked_scales(stored, expert)
            yield self._stacked_numbers(stored, expert, scales), scales

    def _pair(self, stored: Stored) -> tuple[NDArray[Any], Float]:
        levels, scales = self._quantized(stored)
        if stored.layout == "packed":
            assert stored.block is not None
            return packed(levels, stored.block, stored.format.bits), np.ascontiguousarray(scales.T)
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

    def _stack_shape(self, stored: Stored) -> list[int]:
        """[experts, channels, bytes of the contraction], or of the scales [experts, channels, blocks]."""
        if self._config is None:
            raise ValueError(f"{stored.weight} holds all experts; how many, only the model's config says")
        assert stored.block is not None
        members = stack_members(stored.weight, 0)
        channels, contraction = _upstream_shape(members[0].removesuffix(".T"), self._config)
        width = -(-contraction // stored.block) if stored.is_scale else contraction * stored.format.bits // 8
        return [self._config.n_experts, channels * len(members), width]

    def _parts(self, stored: Stored, file: Any | None) -> Iterator[NDArray[Any]]:
        """A stack, expert by expert, on its way into the file."""
        experts = range(self._stack_shape(stored)[0])
        if stored.is_scale:
            if file is not None:
                self._written[stored.weight] = file, file.tell()
            yield from (self._stacked_scales(stored, expert) for expert in experts)
            return
        for expert in experts:
            scales = self._written_scales(stored, expert, file)
            yield self._stacked_numbers(stored, expert, scales)

    def _written_scales(self, stored: Stored, expert: int, file: Any | None) -> Float:
        """An expert's scales: from the file where they are in there already, else searched for."""
        holder, offset = self._written.get(stored.weight, (None, 0))
        if file is None or file is not holder or not isinstance(getattr(file, "name", None), str):
            return self._stacked_scales(stored, expert)
        _, channels, blocks = self._stack_shape(replace(stored, is_scale=True))
        file.flush()
        offset += expert * channels * blocks * 4
        return np.fromfile(file.name, np.float32, channels * blocks, offset=offset).reshape(channels, blocks)

    def _stacked_scales(self, stored: Stored, expert: int) -> Float:
        """One expert's: [channels, blocks]."""
        assert stored.block is not None
        members = stack_members(stored.weight, expert)
        return _alternate([block_scales(self._float(name), stored.block, stored.format).T for name in members])

    def _stacked_numbers(self, stored: Stored, expert: int, scales: Float) -> NDArray[np.uint8]:
        """One expert's, by those scales: [channels, bytes of the contraction]."""
        assert stored.block is not None
        members, parts = stack_members(stored.weight, expert), []
        for index, name in enumerate(members):
            own = np.ascontiguousarray(scales[index :: len(members)].T)
            levels = quantize(self._float(name), own, stored.format, stored.block)
            parts.append(packed(levels, stored.block, stored.format.bits).reshape(levels.shape[1], -1))
        return _alternate(parts)


class _Stack(ir.LazyTensor):
    """The weights of all experts one behind the other, or their scales: of any one expert only while it is written."""

    def __init__(
        self, parts: Callable[[Any | None], Iterator[NDArray[Any]]], stored: Stored, shape: Sequence[int], name: str
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


def _same(found: NDArray[Any] | None, wanted: NDArray[Any] | None) -> bool:
    """Equal to the last bit, in type and shape too; or neither is there."""
    if found is None or wanted is None:
        return found is wanted
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    return np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(wanted).tobytes()


@functools.lru_cache(maxsize=1)
def _upstream_shapes(config: MythosConfig) -> dict[str, tuple[int, ...]]:
    return parameter_shapes(config)


def _upstream_shape(name: str, config: MythosConfig) -> tuple[int, ...]:
    shapes = _upstream_shapes(config)
    if name not in shapes:
        raise ValueError(f"the model has no weight {name}")
    return shapes[name]


def restored(stored: Stored, levels: NDArray[np.generic], scales: Float) -> Float:
    """The float weight that numbers and scales of a bundle stand for, in the layout of the graph.

    Not for what is packed or stacked, which does not say how large it is: see `restored_tensors`.
    """
    return dequantize(levels.astype(np.float32), scales, stored.block)


@dataclass(frozen=True)
class Restored:
    """A tensor of the checkpoint, or some of its rows, as a parameter of a bundle has it."""

    name: str  # the checkpoint's; HEAD where the head has a copy of the embedding to itself
    read: Callable[[], Float]  # its values in upstream's layout, made anew at every call
    rows: NDArray[np.intp] | None = None  # those it holds, where another parameter holds the others


def restored_tensors(
    parameter: str, array: NDArray[Any], scales: NDArray[Any] | None, config: MythosConfig
) -> list[Restored]:
    """The checkpoint's tensors that a parameter stands for; nothing is dequantised until it is read.

    Args:
        parameter: kept in float, or the numbers of a quantised weight (not its scales).
        array: what the bundle holds of that name; a mapping will do.
        scales: what it holds of `<parameter>.scale`.

    Raises:
        ValueError: the model has no such weight, or (when read) the arrays are not of its size.
    """
    stored = stored_as(parameter)
    if stored is None:
        return [_upstream(parameter, lambda: np.asarray(array, np.float32), config)]
    if stored.is_scale or scales is None:
        raise ValueError(f"{parameter}: numbers without scales, or scales without numbers, stand for no weight")
    if stored.layout == "stacked":
        return _unstacked(stored, array, scales, config)
    if stored.layout == "packed":
        contraction = _upstream_shape(stored.weight.removesuffix(".T"), config)[-1]
        return [_upstream(stored.weight, lambda: _unpacked(stored, array, scales, contraction), config)]
    column = scales[:, None] if stored.axis == -1 else scales
    return [_upstream(stored.weight, lambda: restored(stored, array, column), config)]


def _upstream(weight: str, read: Callable[[], Float], config: MythosConfig) -> Restored:
    """A weight in the layout of the graph as (rows of) the checkpoint's tensor."""
    _upstream_shape(re.sub(r"\.(T|key|value)$", "", weight), config)
    if weight.endswith(".T"):
        name = weight.removesuffix(".T")
        return Restored(HEAD if name == "embed.weight" else name, lambda: read().T)
    if weight.endswith((".key", ".value")):
        # kv_up [h * (nope + v), rank], from key [h, nope, rank] and value [h, rank, v]
        name, part = weight.rsplit(".", 1)
        per_head = np.arange(config.n_heads * (config.qk_nope_head_dim + config.v_head_dim)).reshape(config.n_heads, -1)
        if part == "key":
            rows = per_head[:, : config.qk_nope_head_dim].reshape(-1)
            return Restored(name, lambda: read().reshape(len(rows), -1), rows)
        rows = per_head[:, config.qk_nope_head_dim :].reshape(-1)
        return Restored(name, lambda: read().transpose(0, 2, 1).reshape(len(rows), -1), rows)
    return Restored(weight, read)


def _unpacked(stored: Stored, numbers: NDArray[Any], scales: NDArray[Any], contraction: int) -> Float:
    """[channels, blocks, bytes], or with the blocks joined, and [channels, blocks] -> [contraction, channels]."""
    return dequantize(unpacked(numbers, contraction, stored.format.bits), np.ascontiguousarray(scales.T), stored.block)


def _unstacked(stored: Stored, numbers: NDArray[Any], scales: NDArray[Any], config: MythosConfig) -> list[Restored]:
    found = []
    for expert in range(config.n_experts):
        members = stack_members(stored.weight, expert)
        for index, weight in enumerate(members):
            contraction = _upstream_shape(weight.removesuffix(".T"), config)[-1]
            own = slice(index, None, len(members))
            read = functools.partial(_member, stored, numbers, scales, (expert, own), contraction)
            found.append(_upstream(weight, read, config))
    return found


def _member(
    stored: Stored, numbers: NDArray[Any], scales: NDArray[Any], place: tuple[int, slice], contraction: int
) -> Float:
    return _unpacked(stored, numbers[place], scales[place], contraction)
