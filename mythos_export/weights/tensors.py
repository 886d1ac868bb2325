"""Tensors in a data file: what each takes, and where it begins.

The one way to count bytes: a plan counts tensors that would be written, an inspection those that were.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "ALIGNED_ABOVE",
    "ALIGNMENT",
    "BITS",
    "FLOATS",
    "OTHER",
    "Place",
    "StoredTensor",
    "file_bytes",
    "float_type",
    "is_large",
    "total_bytes",
]

# Where tensors begin in a data file: a large one at a page, so that it can be mapped on its own; others anywhere.
ALIGNMENT = 4096
ALIGNED_ABOVE = 1 << 20

# Bits of one number. Two int4 share a byte; where a uint8 stands for packed int4, it is counted as the byte it is.
BITS = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8e4m3fn": 8,
    "float8e5m2": 8,
    "int4": 4,
    "uint4": 4,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "int32": 32,
    "int64": 64,
    "float64": 64,
}

_HALF = {"fp16": "float16", "bf16": "bfloat16"}
FLOATS = frozenset({"float32", *_HALF.values()})


def float_type(precision: str) -> str:
    """Type of what a precision keeps in float and is large: weights, and the rows of the cache."""
    return _HALF.get(precision, "float32")


class Place(NamedTuple):
    """Which part of the model a tensor belongs to."""

    stage: str  # of the architecture
    part: str


OTHER = Place("other", "other")  # what no description names


class StoredTensor(NamedTuple):
    """A tensor as it is stored, by its name in the graph."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # one of BITS
    place: Place = OTHER

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return -(-math.prod(self.shape) * BITS[self.dtype] // 8)


def total_bytes(tensors: Iterable[StoredTensor]) -> int:
    """Bytes of all."""
    return sum(tensor.nbytes for tensor in tensors)


def file_bytes(tensors: Iterable[StoredTensor]) -> int:
    """Size of the data file that holds them in this order: their bytes, and what is left empty between them."""
    end = 0
    for tensor in tensors:
        start = -(-end // ALIGNMENT) * ALIGNMENT if is_large(tensor) else end
        end = start + tensor.nbytes
    return end


def is_large(tensor: StoredTensor) -> bool:
    """Does it begin at a page?"""
    return tensor.nbytes > ALIGNED_ABOVE
