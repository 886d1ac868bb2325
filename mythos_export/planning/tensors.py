"""The tensors that a bundle stores: what each takes, and which part of the model it belongs to.

The one way to count bytes: a plan counts tensors that would be written, an inspection those that were.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "ALIGNED_ABOVE",
    "ALIGNMENT",
    "BITS",
    "STAGES",
    "Place",
    "StoredTensor",
    "file_bytes",
    "is_large",
    "place_of",
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

STAGES = ("embedding", "prelude", "loop", "coda", "head")

_RECURRENT = {
    "recurrent.block.ffn.routed_experts": "routed experts",
    "recurrent.block.ffn.shared_experts": "shared experts",
    "recurrent.block.ffn.router": "router",
    "recurrent.injection": "injection",
    "recurrent.act": "halting",
    "recurrent.lora": "depth LoRA",
}
_NORM = re.compile(r"(^|[._])norm\.weight$")


class Place(NamedTuple):
    """Where a tensor belongs."""

    stage: str  # one of STAGES
    group: str


class StoredTensor(NamedTuple):
    """A tensor as it is stored, by its name in the graph."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # one of BITS

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return -(-math.prod(self.shape) * BITS[self.dtype] // 8)

    @property
    def place(self) -> Place:
        """Where it belongs."""
        return place_of(self.name)


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


def place_of(name: str) -> Place:
    """Where a parameter belongs, by its name in a graph or in a checkpoint."""
    stage, _, _ = name.partition(".")
    if name.startswith("embed.weight.T"):  # the head's own copy, where it cannot read the table
        return Place("head", "output")
    if stage == "embed":
        return Place("embedding", "table")
    if stage == "norm":
        return Place("head", "norms")
    if _NORM.search(name):
        return Place("loop" if stage == "recurrent" else stage, "norms")
    if stage == "recurrent":
        return Place("loop", _recurrent_group(name))
    return Place(stage, "attention" if ".attn." in name else "feed-forward")


def _recurrent_group(name: str) -> str:
    for prefix, group in _RECURRENT.items():
        if name.startswith(prefix):
            return group
    return "attention"
