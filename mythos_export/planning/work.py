"""What a call of the graph must do: bytes it moves and products it forms, at least.

Counted is what no implementation of this graph can avoid: each weight once a call, those of the looped block once
a loop but for what a cache keeps, the rows of the key/value cache once, and the products of linear layers and
attention. Activations, norms and softmax are not; so the bounds are below what a machine will show.

Shape letters: b batch, s new tokens, p past tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mythos_export.planning.cache import CacheSize
from mythos_export.weights.tensors import FLOATS, Place, StoredTensor
from reference_model.architecture import EMBEDDING, HEAD, LOOP, Architecture

__all__ = ["Call", "Model", "Work", "weight_reads", "work_of"]

_HEAD = Place(HEAD, "output")


@dataclass(frozen=True)
class Model:
    """A model as a runtime holds it, and the arithmetic of its products."""

    architecture: Architecture
    tensors: Sequence[StoredTensor]  # as they are in memory
    stored: int  # bytes of the tensors in the data file
    packed: int  # bytes of those in memory that are there twice while they are packed
    cache: CacheSize
    arithmetic: Mapping[str, str]  # weight of the checkpoint -> what it is multiplied in
    attention: str  # what queries, keys and values are multiplied in
    dense: bool  # does every expert compute every token?
    reads_all: bool  # are the weights of every expert read at every loop?
    last_level_cache: int = 0  # bytes of the device's, if known

    @cached_property
    def weights(self) -> int:
        """Bytes of all tensors in memory."""
        return sum(self.bytes_at.values())

    @cached_property
    def bytes_at(self) -> Mapping[Place, int]:
        """Bytes by place."""
        counts = defaultdict[Place, int](int)
        for tensor in self.tensors:
            counts[tensor.place] += tensor.nbytes
        return counts

    @cached_property
    def tables(self) -> list[StoredTensor]:
        """What the embedding looks up rows in, and what stands in the head for it."""
        return [tensor for tensor in self.tensors if tensor.place.stage == EMBEDDING or tensor.place == _HEAD]

    @cached_property
    def products_at(self) -> Mapping[tuple[Place, str], int]:
        """Multiply-adds of one token with every linear layer once, by place and arithmetic; the head's apart."""
        counts = defaultdict[tuple[Place, str], int](int)
        for parameter in self.architecture.parameters:
            place = Place(parameter.stage, parameter.part)
            if parameter.product is not None and parameter.role != "table" and place != _HEAD:
                counts[place, self.arithmetic[parameter.name]] += parameter.size
        return counts

    @cached_property
    def head(self) -> str:
        """What the head multiplies in: its own weight's arithmetic, or the table's."""
        own = (each.name for each in self.architecture.parameters if Place(each.stage, each.part) == _HEAD)
        return self.arithmetic[next(own, self.architecture.table.name)]

    @cached_property
    def experts_at(self) -> frozenset[Place]:
        """Where routed experts are."""
        members = (each for each in self.architecture.parameters if each.expert is not None)
        return frozenset(Place(each.stage, each.part) for each in members)

    @cached_property
    def chosen(self) -> float:
        """Share of the routed experts that one token needs, 1 where there are none; their groups are alike."""
        return min((group.active / group.count for group in self.architecture.experts), default=1.0)


@dataclass(frozen=True)
class Call:
    """Sizes of one call."""

    batch: int
    seq: int  # new tokens in each sequence
    past: int  # tokens before them
    loops: int

    @property
    def tokens(self) -> int:
        """New tokens in all."""
        return self.batch * self.seq


@dataclass(frozen=True)
class Work:
    """Bytes moved, and multiply-adds by arithmetic."""

    weights: float
    cache_read: int
    cache_written: int
    products: Mapping[str, float]

    @property
    def bytes(self) -> float:
        """All bytes moved."""
        return self.weights + self.cache_read + self.cache_written

    def __add__(self, other: Work) -> Work:
        kinds = self.products.keys() | other.products.keys()
        products = {kind: self.products.get(kind, 0.0) + other.products.get(kind, 0.0) for kind in kinds}
        return Work(
            self.weights + other.weights,
            self.cache_read + other.cache_read,
            self.cache_written + other.cache_written,
            products,
        )

    def __mul__(self, times: int) -> Work:
        products = {kind: count * times for kind, count in self.products.items()}
        return Work(self.weights * times, self.cache_read * times, self.cache_written * times, products)


def work_of(model: Model, call: Call) -> Work:
    """What one call does; logits are made of each sequence's last position only."""
    cache = model.cache
    return Work(
        weights=weight_reads(model, call)[0],
        cache_read=call.batch * call.past * cache.token(call.loops),
        cache_written=call.tokens * cache.token(call.loops),
        products=_products(model, call),
    )


def weight_reads(model: Model, call: Call) -> tuple[float, bool]:
    """Bytes of weights that a call reads from memory, and whether the looped block stays in the last-level cache."""
    once, looped, experts = 0.0, 0, 0
    experts_at = model.experts_at
    for place, count in model.bytes_at.items():
        if place in experts_at:
            experts += count
        elif place.stage == LOOP:
            looped += count
        elif place.stage != EMBEDDING:
            once += count
    once += sum(_table_reads(tensor, model, call) for tensor in model.tables if tensor.place.stage == EMBEDDING)
    cache, loops = model.last_level_cache, call.loops
    each = looped + experts * _share(model, call.tokens)
    distinct = looped + experts * _share(model, call.tokens * loops)
    # from the second loop on, what the cache holds need not be read again
    read = max(distinct, loops * each - (loops - 1) * cache)
    return once + read, distinct <= cache


def _table_reads(tensor: StoredTensor, model: Model, call: Call) -> float:
    """All of it where it is the head's weight too, else a row a token."""
    of_head = all(each.place != _HEAD for each in model.tables)
    if of_head and any(map(_is_float_table, model.tables)):  # of the head, beside a small table for the lookup
        of_head = _is_float_table(tensor)
    rows = tensor.shape[0]
    return tensor.nbytes * (1.0 if of_head else min(1.0, call.tokens / rows))


def _is_float_table(tensor: StoredTensor) -> bool:
    return tensor.dtype in FLOATS and len(tensor.shape) > 1


def _share(model: Model, tokens: int) -> float:
    """Share of the routed experts that so many tokens need, where each chooses evenly and for itself."""
    return 1.0 if model.reads_all else 1.0 - (1.0 - model.chosen) ** tokens


def _products(model: Model, call: Call) -> dict[str, float]:
    architecture, products = model.architecture, defaultdict[str, float](float)
    experts_at = model.experts_at
    for (place, arithmetic), count in model.products_at.items():
        times = call.tokens * (call.loops if place.stage == LOOP else 1)
        share = model.chosen if place in experts_at and not model.dense else 1.0  # all experts are of one size
        products[arithmetic] += count * times * share
    products[model.head] += architecture.vocab_size * architecture.dim * call.batch
    products[model.attention] += _attention_products(architecture, call)
    return dict(products)


def _attention_products(architecture: Architecture, call: Call) -> int:
    """Scores and mixing of what each token may see: the past, and of the new tokens those up to itself."""
    pairs = call.batch * (call.seq * call.past + call.seq * (call.seq + 1) // 2)
    layers = sum(stage.layers for stage in (*architecture.before, *architecture.after))
    if architecture.loop is not None:
        layers += call.loops * architecture.loop.stage.layers
    return pairs * layers * architecture.work.pair
