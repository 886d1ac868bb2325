"""How a family hands its model to the exporter: the pieces that are traced, and a plain description of the frame.

    embed -> blocks before -> Loop { join(state, encoded) -> k blocks -> read-out } -> norm? -> blocks after -> head

Pieces are wired by name. A piece reads what its inputs name and leaves what its outputs name; an output `next.NAME`
takes the place of NAME. Names that every model has:

| name | shape | made by |
|---|---|---|
| `input_ids`, `position_ids` | [batch, seq] | the caller |
| `attention_mask` | [batch, total], past and new | the caller |
| `x` | [batch, seq, dim] | embed and join; every block leaves `next.x` |
| `cos`, `sin`, `visible` | | embed |
| `past.PART`, `new.PART` | [batch, past, ...], [batch, seq, ...] | a layer's cache, and what a block adds to it |
| `loop_index`, `n_loops` | [], [batch] | the Loop, the caller |
| `encoded` | [batch, seq, dim] | the `x` that enters the loop |
| a state's name | [batch, seq, ...] | the read-out, as `next.STATE` |

Whatever else a piece leaves may be read by those behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

__all__ = ["Blocks", "Frame", "Head", "Loop", "Norm", "Piece", "Pieces", "Port", "State"]


class Port(NamedTuple):
    """What a piece reads. Sizes of a call are named: batch, seq, past, total (past and new)."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Piece:
    """A module that takes its inputs in order, and returns a tuple of its outputs."""

    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Blocks:
    """Blocks of one kind, one behind the other."""

    name: str  # in the cache's names: `past.NAME.PART`
    kind: str
    layers: tuple[str, ...]  # what each layer's parameters begin with; may be none


@dataclass(frozen=True)
class State:
    """What one loop hands to the next."""

    name: str
    start: Literal["encoded", "zeros", "ones", "input"]  # "input": `state.NAME` if the graph has it, else zeros


@dataclass(frozen=True)
class Norm:
    """A root mean square norm."""

    weight: str  # the parameter
    epsilon: float


@dataclass(frozen=True)
class Loop:
    """The blocks that run again and again with the same weights."""

    blocks: Blocks  # those of one loop
    states: tuple[State, ...]
    result: str  # the state that leaves the loop
    halting: str | None = None  # read-out's bool [batch, seq]: did the token run this loop? None: all of its sequence's
    norm: Norm | None = None  # of the result, once, behind the loop


@dataclass(frozen=True)
class Head:
    """From the last hidden state to logits."""

    weight: str  # the parameter, [vocab_size, dim]; the embedding's where the head is tied
    vocab_size: int
    dim: int
    norm: Norm | None


@dataclass(frozen=True)
class Frame:
    """What lies where."""

    before: tuple[Blocks, ...]
    loop: Loop | None
    after: tuple[Blocks, ...]
    head: Head


@dataclass(frozen=True)
class Pieces:
    """A model in pieces, and the frame they go into."""

    frame: Frame
    embed: Piece
    blocks: Mapping[str, Piece]  # by kind; parameters of its module are named from the block on
    join: Piece | None = None  # of a model with a loop
    read_out: Piece | None = None
