"""What a bundle's parameters stand for: tensors of the checkpoint, in float and in its own layout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mythos_export.number_formats import FORMATS, dequantize
from mythos_export.weights.names import StoredAs, Weight, read_name, stack_members, weight_of
from mythos_export.weights.packing import unpacked
from mythos_export.weights.views import rows_of, upstream_rows
from reference_model.architecture import Architecture

__all__ = ["TIED_HEAD", "Restored", "restored_tensors"]

TIED_HEAD = "tied head"  # one that has a copy of the table to itself; no checkpoint calls a tensor so

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Restored:
    """A tensor of the checkpoint, or some of its rows, as a parameter of a bundle has it."""

    name: str  # the checkpoint's, or TIED_HEAD
    read: Callable[[], Float]  # its values in upstream's layout, made anew at every call
    rows: NDArray[np.intp] | None = None  # those it holds, where another parameter holds the others


def restored_tensors(
    parameter: str, array: NDArray[Any], scales: NDArray[Any] | None, architecture: Architecture
) -> list[Restored]:
    """The checkpoint's tensors that a parameter stands for; nothing is dequantised until it is read.

    Args:
        parameter: kept in float, or the numbers of a quantised weight (not its scales).
        array: what the bundle holds of that name; a mapping will do.
        scales: what it holds of `<parameter>.scale`.

    Raises:
        ValueError: the model has no such weight, or (when read) the arrays are not of its size.
    """
    stored = read_name(parameter)
    if stored is None:
        return [_upstream(weight_of(parameter, architecture), lambda: np.asarray(array, np.float32))]
    if stored.is_scale or scales is None:
        raise ValueError(f"{parameter}: numbers without scales, or scales without numbers, stand for no weight")
    if stored.layout == "stacked":
        return _unstacked(stored, array, scales, architecture)
    weight = weight_of(stored.weight, architecture)
    if stored.layout == "packed":
        return [_upstream(weight, functools.partial(_unpacked, stored, array, scales, weight.shape[-2]))]
    column = scales[:, None] if stored.axis == -1 else scales
    return [_upstream(weight, lambda: dequantize(array.astype(np.float32), column, stored.block))]


def _upstream(weight: Weight, read: Callable[[], Float]) -> Restored:
    """A weight in the layout of the graph as (rows of) the checkpoint's tensor."""
    name = TIED_HEAD if weight.head_copy else weight.parameter.name
    rows = None if weight.view.whole else rows_of(weight.view, weight.parameter.shape)
    return Restored(name, lambda: upstream_rows(read(), weight.view), rows)


def _unpacked(stored: StoredAs, numbers: NDArray[Any], scales: NDArray[Any], contraction: int) -> Float:
    """[channels, blocks, bytes], or with the blocks joined, and [channels, blocks] -> [contraction, channels]."""
    levels = unpacked(numbers, contraction, FORMATS[stored.format].bits)
    return dequantize(levels, np.ascontiguousarray(scales.T), stored.block)


def _unstacked(
    stored: StoredAs, numbers: NDArray[Any], scales: NDArray[Any], architecture: Architecture
) -> list[Restored]:
    tensors = []
    for expert, members in enumerate(stack_members(stored.weight, architecture)):
        for index, weight in enumerate(members):
            own = (expert, slice(index, None, len(members)))
            read = functools.partial(_member, stored, numbers, scales, own, weight.shape[-2])
            tensors.append(_upstream(weight, read))
    return tensors


def _member(
    stored: StoredAs, numbers: NDArray[Any], scales: NDArray[Any], own: tuple[int, slice], contraction: int
) -> Float:
    return _unpacked(stored, numbers[own], scales[own], contraction)
