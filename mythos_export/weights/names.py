"""What the parameters of graphs are called, and what their names stand for.

A weight in float is called after the checkpoint's tensor, with the suffix of the view that a layer takes of it
(`coda.0.attn.wq.weight.T`). Quantised, it is two: `<weight>.int8` holds the numbers and `<weight>.int8.scale` their
scales; so for fp8, for int4 in blocks (`.int4b32`), and for a table (`.rows`: int8, a scale per row).
`.int4b128.packed`, `.int8b128.packed` are numbers in blocks as ONNX Runtime's MatMulNBits reads them, and
`<experts>.gate_up.int4b128.stacked` those of all routed experts, as QMoE does.

The same names lead back, so that a bundle's weights can be held against a checkpoint. This file imports neither torch
nor onnx: a device without them can look into a bundle.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mythos_export.weights.tensors import OTHER, Place
from reference_model.architecture import HEAD, WHOLE, Architecture, Layer, Parameter, Shape, View

__all__ = [
    "SCALE",
    "STACKS",
    "StoredAs",
    "Weight",
    "experts_of",
    "place_of",
    "read_name",
    "rows_name",
    "stack_members",
    "stack_of",
    "weight_of",
    "weights_of",
]

SCALE = ".scale"
_ROWS = "rows"
# Weights of a group's experts as one parameter, and what an expert puts into it: row 2i is the gate's, 2i + 1 up's.
STACKS = {"gate_up": ("gate", "up"), "down": ("down",)}

_QUANTIZED = re.compile(
    r"(?P<weight>.+)\.(?P<kind>int8|fp8|rows|(?P<blocks>int8|int4)b(?P<block>[1-9][0-9]{0,4})(?P<layout>\.packed|\.stacked)?)"
    r"(?P<scale>\.scale)?"
)


@dataclass(frozen=True)
class Weight:
    """A weight in float, as graphs have it: a parameter, or the part of one that a layer reads."""

    parameter: Parameter
    layer: Layer | None = None

    @property
    def view(self) -> View:
        """How it is made of the parameter."""
        return WHOLE if self.layer is None else self.layer.view

    @property
    def name(self) -> str:
        """Its name in graphs."""
        return f"{self.parameter.name}{self.view.suffix}"

    @property
    def shape(self) -> Shape:
        """Its shape in graphs, [..., contraction, channels] of a linear layer's."""
        return self.view.shape(self.parameter.shape)

    @property
    def head_copy(self) -> bool:
        """Is it a head's weight of its own, though the head is tied to a table?"""
        return self.parameter.role == "table" and self.layer is not None and not self.layer.lookup

    @property
    def place(self) -> Place:
        """The part of the model it belongs to."""
        return Place(HEAD, "output") if self.head_copy else Place(self.parameter.stage, self.parameter.part)


@functools.lru_cache(maxsize=8)
def weights_of(architecture: Architecture) -> Mapping[str, Weight]:
    """Every weight that graphs can have, by its name in them."""
    weights = (
        Weight(parameter, layer) for parameter in architecture.parameters for layer in parameter.layers or (None,)
    )
    return {weight.name: weight for weight in weights}


def weight_of(name: str, architecture: Architecture) -> Weight:
    """The weight of this name.

    Raises:
        ValueError: the model has none.
    """
    weight = weights_of(architecture).get(name)
    if weight is None:
        raise ValueError(f"the model has no weight {name}")
    return weight


@dataclass(frozen=True)
class StoredAs:
    """What the name of a quantised parameter says: the float weight behind it, and how it is kept."""

    weight: str  # in graphs; of a stack: what it is a stack of
    format: str
    block: int | None  # along the contraction (axis -2)
    axis: int  # what shares a scale where there are no blocks: the contraction (-2), or a row (-1)
    is_scale: bool
    layout: Literal["plain", "packed", "stacked"] = "plain"


def read_name(parameter: str) -> StoredAs | None:
    """What the name says; None for a parameter that is kept in float."""
    parts = _QUANTIZED.fullmatch(parameter)
    if parts is None:
        return None
    kind, block, layout = parts["kind"], parts["block"], (parts["layout"] or ".plain")[1:]
    if (layout == "stacked" and _matrices(parts["weight"]) is None) or (layout != "plain" and int(block) % 2):
        return None
    return StoredAs(
        weight=parts["weight"],
        format="int8" if kind == _ROWS else parts["blocks"] or kind,
        block=int(block) if block else None,
        axis=-1 if kind == _ROWS else -2,
        is_scale=parts["scale"] is not None,
        layout=layout,  # type: ignore[arg-type]  # the pattern has no other
    )


def rows_name(table: str) -> str:
    """Name of a table's parameter with a scale per row."""
    return f"{table}.{_ROWS}"


def stack_of(group: str, matrices: Literal["gate_up", "down"]) -> str:
    """What the weights of all experts of a group are called, in float."""
    return f"{group}.{matrices}"


@functools.lru_cache(maxsize=8)
def experts_of(group: str, architecture: Architecture) -> Sequence[Mapping[str, Weight]]:
    """By expert of a group, its weights: gate, up and down."""
    by_expert: dict[int, dict[str, Weight]] = {}
    for weight in weights_of(architecture).values():
        expert = weight.parameter.expert
        if expert is not None and expert.group == group:
            by_expert.setdefault(expert.index, {})[expert.matrix] = weight
    return [by_expert[index] for index in sorted(by_expert)]


def stack_members(stack: str, architecture: Architecture) -> list[list[Weight]]:
    """By expert, the weights that lie in a stack; where there are two, their rows alternate.

    Raises:
        ValueError: the model has no such experts.
    """
    group, _, _ = stack.rpartition(".")
    experts, matrices = experts_of(group, architecture), _matrices(stack)
    if not experts or matrices is None:
        raise ValueError(f"the model has no weight {stack}")
    return [[weights[matrix] for matrix in matrices] for weights in experts]


def place_of(parameter: str, architecture: Architecture) -> Place:
    """The part of the model that a graph's parameter belongs to."""
    stored = read_name(parameter)
    name = parameter if stored is None else stored.weight
    if stored is not None and stored.layout == "stacked":
        experts = experts_of(name.rpartition(".")[0], architecture)
        return experts[0]["down"].place if experts else OTHER
    weight = weights_of(architecture).get(name)
    return OTHER if weight is None else weight.place


def _matrices(stack: str) -> tuple[str, ...] | None:
    return STACKS.get(stack.rpartition(".")[2])
