"""What a call of the graph must do: bytes it moves and products it forms, at least.

Counted is what no implementation of this graph can avoid: each weight once a call, those of the looped block once
a loop but for what a cache keeps, the rows of the key/value cache once, and the products of linear layers and
attention. Activations, norms and softmax are not; so the bounds are below what a machine will show.

Shape letters: b batch, s new tokens, p past tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mythos_export.planning.cache import CacheSize
from mythos_export.planning.tensors import Place, StoredTensor, place_of
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.parameters import parameter_shapes

__all__ = ["Call", "Model", "Work", "weight_reads", "work_of"]

_NOT_LINEAR = ("embed.weight", "recurrent.lora.scale.weight")


@dataclass(frozen=True)
class Model:
    """A model as a runtime holds it, and the arithmetic of its products."""

    config: MythosConfig
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
        found = defaultdict[Place, int](int)
        for tensor in self.tensors:
            found[tensor.place] += tensor.nbytes
        return found

    @cached_property
    def tables(self) -> list[StoredTensor]:
        """What the embedding looks up rows in, and what stands in the head for it."""
        return [tensor for tensor in self.tensors if tensor.name.startswith("embed.")]

    @cached_property
    def products_at(self) -> Mapping[tuple[Place, str], int]:
        """Multiply-adds of one token with every linear layer once, by place and arithmetic; the head's apart."""
        found = defaultdict[tuple[Place, str], int](int)
        for name, shape in parameter_shapes(self.config).items():
            if len(shape) > 1 and name not in _NOT_LINEAR:
                found[place_of(name), self.arithmetic[name]] += math.prod(shape)
        return found


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
    for (stage, group), count in model.bytes_at.items():
        if group == "routed experts":
            experts += count
        elif stage == "loop":
            looped += count
        elif stage != "embedding":
            once += count
    once += sum(_table_reads(tensor, model, call) for tensor in model.tables if tensor.place.stage == "embedding")
    cache, loops = model.last_level_cache, call.loops
    each = looped + experts * _share(model, call.tokens)
    distinct = looped + experts * _share(model, call.tokens * loops)
    # from the second loop on, what the cache holds need not be read again
    read = max(distinct, loops * each - (loops - 1) * cache)
    return once + read, distinct <= cache


def _table_reads(tensor: StoredTensor, model: Model, call: Call) -> float:
    """All of it where it is the head's weight too, else a row a token."""
    names = {each.name for each in model.tables}
    of_head = not any(name.startswith("embed.weight.T") for name in names)
    if of_head and "embed.weight" in names:  # the head's float weight stands beside a small table for the lookup
        of_head = tensor.name == "embed.weight"
    rows = tensor.shape[0]
    return tensor.nbytes * (1.0 if of_head else min(1.0, call.tokens / rows))


def _share(model: Model, tokens: int) -> float:
    """Share of the routed experts that so many tokens need, where each chooses evenly and for itself."""
    config = model.config
    if model.reads_all:
        return 1.0
    return 1.0 - (1.0 - config.n_experts_per_tok / config.n_experts) ** tokens


def _products(model: Model, call: Call) -> dict[str, float]:
    config, products = model.config, defaultdict[str, float](float)
    computed = config.n_experts if model.dense else config.n_experts_per_tok
    for ((stage, group), arithmetic), count in model.products_at.items():
        times = call.tokens * (call.loops if stage == "loop" else 1)
        share = computed / config.n_experts if group == "routed experts" else 1.0  # all experts are of one size
        products[arithmetic] += count * times * share
    head = config.vocab_size * config.dim * call.batch
    products[model.arithmetic["embed.weight"]] += head
    products[model.attention] += _attention_products(config, call)
    return dict(products)


def _attention_products(config: MythosConfig, call: Call) -> int:
    """Scores and mixing of what each token may see: the past, and of the new tokens those up to itself."""
    pairs = call.batch * (call.seq * call.past + call.seq * (call.seq + 1) // 2)
    layers = config.prelude_layers + config.coda_layers + call.loops
    latent = 2 * config.kv_lora_rank + config.qk_rope_head_dim  # in latent space the latent is key and value
    width = latent if config.attn_type == "mla" else 2 * config.head_dim
    return pairs * layers * config.n_heads * width
