"""The part of a checkpoint's matrix that a layer reads, cut out and put back: of a numpy array or a torch tensor."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reference_model.architecture import Shape, View

__all__ = ["cut_out", "rows_of", "upstream_rows"]

Array = TypeVar("Array", Tensor, NDArray[np.float32])


def cut_out(whole: Array, view: View) -> Array:
    """A parameter of the checkpoint in the layout of the graph; no copy where the array allows it."""
    if view.whole:
        return whole
    part = whole if view.groups is None else whole.reshape(view.groups, -1, whole.shape[-1])
    part = part[..., view.start : view.stop, :]
    return part.swapaxes(-1, -2) if view.transposed else part


def rows_of(view: View, shape: Shape) -> NDArray[np.intp] | None:
    """The rows of a parameter of this shape that a view takes, in its order; None where it takes all."""
    rows = np.arange(shape[0]).reshape(view.groups or 1, -1)[:, view.start : view.stop].reshape(-1)
    return None if len(rows) == shape[0] else rows


def upstream_rows(part: Array, view: View) -> Array:
    """What `cut_out` gave, as those rows of the checkpoint's parameter."""
    if view.whole:
        return part
    matrix = part.swapaxes(-1, -2) if view.transposed else part
    return matrix.reshape(-1, matrix.shape[-1])
