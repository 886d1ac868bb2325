"""The bytes that a decoded token cannot avoid moving.

Counted from the tensors themselves, so that what a precision keeps in float, its scales and its second copy of the
embedding are in it: weights outside the loop once, those of the looped block once a loop, of the routed experts the
top-k's share, of a table that is only looked up one row; and each row of the cache once. Activations are left out: so
this is a floor, and a share of the roofline that is computed from it is never flattering.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import onnx

from mythos_export.bundle import Bundle, CachePart
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.parameters import parameter_shapes

__all__ = ["Tensor", "Traffic", "bundle_traffic", "cache_floor", "pytorch_traffic", "traffic_of"]

_CACHE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_FP32 = 4
_ONLY_LOOKED_UP = frozenset({"Gather"})
_ROUTED = ".routed_experts."
_LOOPED = "recurrent."
_LOOP_TABLE = "recurrent.lora.scale."


class Tensor(NamedTuple):
    """One stored weight."""

    name: str
    size: int  # bytes
    rows: int  # of its first axis
    looked_up: bool  # are single rows gathered from it, and nothing else done with it?


class Traffic(NamedTuple):
    """Bytes of one decode step of one sequence."""

    once: float  # weights outside the loop
    per_loop: float  # weights that each loop reads
    stored: int  # all weights, whether a token reads them or not
    dense_row: int  # of the cache, all layers of prelude and coda: one token
    loop_row: int  # of the cache, one token at one depth

    def step(self, past: int, loops: int) -> float:
        """Bytes that a token moves, with so many before it."""
        return self.once + loops * self.per_loop + self.cache(past, loops)

    def cache(self, slots: int, loops: int) -> int:
        """Bytes of the cache of a sequence."""
        return slots * (self.dense_row + loops * self.loop_row)


def bundle_traffic(bundle: Bundle, config: MythosConfig) -> Traffic:
    """Of a bundle, from the tensors in its graph."""
    cache = bundle.manifest.cache
    dense = sum(_row_bytes(part) * part.depth for part in cache if isinstance(part.depth, int))
    looped = sum(_row_bytes(part) for part in cache if part.depth == "loops")
    return traffic_of(_stored_tensors(bundle.file(bundle.manifest.graphs[0].file)), config, dense, looped)


def pytorch_traffic(config: MythosConfig, *, key_per_head: bool) -> Traffic:
    """Of a PyTorch model in fp32.

    Args:
        key_per_head: is MLA's rotated key cached once for each head, as open-mythos does?
    """
    row = cache_floor(config, key_per_head=key_per_head) * _FP32
    tensors = [
        Tensor(name, _FP32 * math.prod(shape), shape[0], name.startswith(_LOOP_TABLE))
        for name, shape in parameter_shapes(config).items()
    ]
    return traffic_of(tensors, config, row * (config.prelude_layers + config.coda_layers), row)


def cache_floor(config: MythosConfig, *, key_per_head: bool = False) -> int:
    """Numbers that one layer caches for one token."""
    if config.attn_type == "gqa":
        return 2 * config.n_kv_heads * config.head_dim
    return config.kv_lora_rank + config.qk_rope_head_dim * (config.n_heads if key_per_head else 1)


def traffic_of(tensors: Iterable[Tensor], config: MythosConfig, dense_row: int, loop_row: int) -> Traffic:
    """Add up."""
    chosen = config.n_experts_per_tok / config.n_experts
    once = per_loop = stored = 0.0
    for tensor in tensors:
        stored += tensor.size
        moved = tensor.size / tensor.rows if tensor.looked_up else float(tensor.size)
        if _ROUTED in f"{tensor.name}.":
            per_loop += moved * chosen
        elif tensor.name.startswith(_LOOPED):
            per_loop += moved
        else:
            once += moved
    return Traffic(once, per_loop, int(stored), dense_row, loop_row)


def _row_bytes(part: CachePart) -> int:
    return math.prod(part.row) * _CACHE_BYTES[part.dtype]


def _stored_tensors(path: Path) -> Iterator[Tensor]:
    """Every initialiser of a graph and of its bodies, its weights unread."""
    model = onnx.load(path, load_external_data=False)
    graphs = list(_graphs(model.graph))
    readers: dict[str, set[str]] = defaultdict(set)
    for graph in graphs:
        for node in graph.node:
            for name in node.input:
                readers[name].add(node.op_type)
    for graph in graphs:
        for tensor in graph.initializer:
            looked_up = readers[tensor.name] == _ONLY_LOOKED_UP and len(tensor.dims) > 0
            yield Tensor(tensor.name, _size(tensor), tensor.dims[0] if tensor.dims else 1, looked_up)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _size(tensor: onnx.TensorProto) -> int:
    """Bytes as stored; two 4-bit numbers share one."""
    length = next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), None)
    if length is not None:
        return length
    if tensor.raw_data:
        return len(tensor.raw_data)
    return math.ceil(math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
