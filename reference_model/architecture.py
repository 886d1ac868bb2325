"""What a model is made of, as plain data: one description that everything but the model's own code reads.

The frame is that of a looped (recurrent-depth) decoder:

    embed -> stages before -> Loop { join(state, encoded) -> blocks -> read-out } -> stages after -> head

A stage may have no layers and a model no loop, so a plain decoder is described as well. Nothing here computes, and
nothing is imported: a family says what it is made of, and which of its weights does what is asked for here instead of
being worked out from names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

__all__ = [
    "EMBEDDING",
    "HALTING_WEIGHTED",
    "HEAD",
    "LOOP",
    "TRANSPOSED",
    "WHOLE",
    "Architecture",
    "CachePart",
    "Control",
    "Decision",
    "Expert",
    "ExpertGroup",
    "Head",
    "Layer",
    "Loop",
    "Parameter",
    "Role",
    "Shape",
    "Stage",
    "State",
    "View",
    "Work",
]

Shape = tuple[int, ...]
Role = Literal["table", "linear", "vector", "control"]

# Names of the stages that every model has; those before and after the loop are named by the family.
EMBEDDING, LOOP, HEAD = "embedding", "loop", "head"

# A hazard of what a layer reads. A token that has spent little of its halting probability leaves an output that is
# small as a whole: one scale for all tokens rounds it to nothing, and the norm behind the layer scales up what is lost.
HALTING_WEIGHTED = "weighted by halting"


@dataclass(frozen=True)
class View:
    """The part of a checkpoint's matrix [rows, columns] that one layer reads, and how a graph wants it laid out.

    The rows are taken in `groups` of one size (heads), of each those from `start` to `stop`: [groups, taken, columns];
    without groups, [taken, columns]. Transposed, the last two axes change places. It needs no copy but for the last.
    """

    suffix: str  # behind the parameter's name, in graphs
    transposed: bool = False
    groups: int | None = None
    start: int = 0
    stop: int | None = None  # None: to the end

    @property
    def whole(self) -> bool:
        """Is it all of the parameter, as the checkpoint has it?"""
        return self == View(self.suffix)

    def shape(self, shape: Shape) -> Shape:
        """Shape of the part of a parameter of this shape."""
        if self.whole:
            return shape
        rows, columns = shape
        taken = len(range(rows // (self.groups or 1))[self.start : self.stop])
        matrix = (columns, taken) if self.transposed else (taken, columns)
        return matrix if self.groups is None else (self.groups, *matrix)


WHOLE = View("")
TRANSPOSED = View(".T", transposed=True)  # PyTorch stores [out, in], a MatMul wants [in, out]


@dataclass(frozen=True)
class Layer:
    """One use of a weight: a linear layer, or a lookup of rows. What quantisation takes, or leaves in float."""

    name: str  # the module's; the experts of a group, which share ranges and a fate, have one name
    contraction: int  # numbers that a product sums over; of a lookup, those of a row
    view: View = TRANSPOSED
    lookup: bool = False  # rows are read, nothing is multiplied


@dataclass(frozen=True)
class Control:
    """Why a parameter never leaves float: it is small, and it steers a feedback loop."""

    names: str  # a pattern of all parameters it is about: `recurrent.act.*`
    reason: str


@dataclass(frozen=True)
class Expert:
    """Which matrix of which expert a parameter is."""

    group: str  # an `ExpertGroup`'s name
    index: int
    matrix: Literal["gate", "up", "down"]


@dataclass(frozen=True)
class Parameter:
    """One tensor of the checkpoint.

    A table is looked up row by row, and multiplied with too where the head is tied to it. A linear weight serves one
    layer or more (fused projections, or an up-projection that attention absorbs into queries and outcomes). A vector is
    a norm's gain or a bias, of any rank. Control is computed in fp32 in every precision.
    """

    name: str  # as the checkpoint spells it
    shape: Shape
    role: Role
    stage: str  # EMBEDDING, LOOP, HEAD or the name of another stage
    part: str  # of the stage, in words for tables: attention, routed experts, norms
    layers: tuple[Layer, ...] = ()
    control: Control | None = None
    expert: Expert | None = None
    hazards: frozenset[str] = frozenset()  # of what its layers read

    def __post_init__(self) -> None:
        if (self.role == "control") != (self.control is not None):
            raise ValueError(f"{self.name}: control, and only that, has a reason")
        if (self.role in ("table", "linear")) > bool(self.layers):
            raise ValueError(f"{self.name}: a {self.role} serves a layer")

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def product(self) -> Layer | None:
        """The first layer that multiplies with it."""
        return next((layer for layer in self.layers if not layer.lookup), None)


@dataclass(frozen=True)
class Stage:
    """Blocks of one kind, one behind the other."""

    name: str
    block: str  # kind of block
    layers: int  # may be 0


@dataclass(frozen=True)
class State:
    """What one loop hands to the next: [batch, seq, width]."""

    name: str
    start: Literal["encoded", "zeros", "ones", "input"]  # "input": zeros, unless the caller gives it
    width: int


@dataclass(frozen=True)
class Loop:
    """The stage that runs again and again with the same weights."""

    stage: Stage  # its layers are those of one loop
    states: tuple[State, ...]
    readout: Literal["last", "weighted", "selected"]  # what leaves it: the last state, or what halting makes of all
    trained: int  # loops that it was trained with, at most
    default: int
    may_exceed: bool  # do more loops than trained mean anything?


@dataclass(frozen=True)
class Head:
    """From the last hidden state to logits."""

    tied: bool  # is its weight the embedding's table?
    norm: bool  # is there a norm before it?


@dataclass(frozen=True)
class CachePart:
    """One cached tensor, [layers (times loops, loop-major), batch, past, *row]."""

    name: str  # the graph contract's, `recurrent.key`
    stage: str
    row: Shape
    layers: int
    per_loop: bool


@dataclass(frozen=True)
class Decision:
    """A choice that rounding can flip where it is nearly a tie."""

    name: str  # router, halting, exit gate
    margin: str  # how near is measured, in words


@dataclass(frozen=True)
class ExpertGroup:
    """The routed experts of one mixture, SwiGLUs of one size."""

    name: str  # the module's
    stage: str
    count: int
    active: int  # chosen for each token
    dim: int
    hidden: int


@dataclass(frozen=True)
class Work:
    """What a token costs that the weights do not show."""

    heads: int  # of queries
    width: int  # numbers of a query, per head, as attention compares it
    pair: int  # multiply-adds of a new token with one that it sees, in one layer, all heads
    hidden: int  # of the widest feed-forward that every token passes


@dataclass(frozen=True, eq=False)
class Architecture:
    """One model. Two of them are the same only if they are one object, so that what is derived can be kept."""

    family: str
    vocab_size: int
    dim: int
    max_positions: int
    before: tuple[Stage, ...]
    loop: Loop | None
    after: tuple[Stage, ...]
    head: Head
    cache: tuple[CachePart, ...]
    parameters: tuple[Parameter, ...]
    work: Work
    experts: tuple[ExpertGroup, ...] = ()
    decisions: tuple[Decision, ...] = field(default=())

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """Every stage, in the order in which it is computed."""
        loop = () if self.loop is None else (LOOP,)
        before, after = (tuple(stage.name for stage in stages) for stages in (self.before, self.after))
        return (EMBEDDING, *before, *loop, *after, HEAD)

    @cached_property
    def by_name(self) -> Mapping[str, Parameter]:
        """Every parameter."""
        return {parameter.name: parameter for parameter in self.parameters}

    @cached_property
    def table(self) -> Parameter:
        """The embedding's."""
        (table,) = (parameter for parameter in self.parameters if parameter.role == "table")
        return table

    @cached_property
    def lookup(self) -> Layer:
        """The lookup in the embedding's table."""
        (lookup,) = (layer for layer in self.table.layers if layer.lookup)
        return lookup

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """What may be quantised, by name: linear layers in order, then lookups. A group's experts are one."""
        by_name: dict[str, Layer] = {}
        for layer in sorted((layer for layer, _ in self._uses()), key=lambda layer: layer.lookup):
            by_name.setdefault(layer.name, layer)
        return by_name

    @cached_property
    def stage_of(self) -> Mapping[str, str]:
        """Stage of each layer that may be quantised: of a tied head it is HEAD, though its weight is the table."""
        return {
            layer.name: HEAD if parameter.role == "table" and not layer.lookup else parameter.stage
            for layer, parameter in self._uses()
        }

    @property
    def size(self) -> int:
        """Numbers in all parameters."""
        return sum(parameter.size for parameter in self.parameters)

    def in_loop(self, layer: str) -> bool:
        """Does a layer run once a loop?"""
        return self.stage_of[layer] == LOOP

    def parameters_of(self, layer: str) -> list[Parameter]:
        """The parameters that serve a layer: several where experts share its name."""
        return [parameter for each, parameter in self._uses() if each.name == layer]

    def _uses(self) -> Iterator[tuple[Layer, Parameter]]:
        for parameter in self.parameters:
            if parameter.role in ("table", "linear"):
                for layer in parameter.layers:
                    yield layer, parameter
