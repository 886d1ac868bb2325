"""The graph contract: names, types and shapes of what goes in and out, from a config alone."""

from __future__ import annotations

from typing import Literal

from mythos_export.bundle import CachePart, TensorSpec
from reference_model.config import MythosConfig
from reference_model.open_mythos.cache import STAGES, part_names, part_shapes

__all__ = ["cache_dtype", "cache_parts", "input_specs", "output_specs"]

_HALF = {"fp16": "float16", "bf16": "bfloat16"}


def cache_dtype(precision: str) -> str:
    """Type of the cached rows; quantised models keep them in float."""
    return _HALF.get(precision, "float32")


def cache_parts(config: MythosConfig, precision: str) -> list[CachePart]:
    """The six cached tensors; `depth` is the stage's layers, or "loops"."""
    depths: dict[str, int | Literal["loops"]] = {
        "prelude": config.prelude_layers,
        "recurrent": "loops",
        "coda": config.coda_layers,
    }
    return [
        CachePart(name=f"{stage}.{part}", depth=depths[stage], row=list(row), dtype=cache_dtype(precision))
        for stage in STAGES
        for part, row in zip(part_names(config), part_shapes(config))
    ]


def input_specs(parts: list[CachePart]) -> list[TensorSpec]:
    """What the graph takes, in order."""
    return [
        TensorSpec(name="input_ids", dtype="int64", shape=["batch", "seq"]),
        TensorSpec(name="attention_mask", dtype="int64", shape=["batch", "past_plus_seq"]),
        TensorSpec(name="position_ids", dtype="int64", shape=["batch", "seq"]),
        TensorSpec(name="n_loops", dtype="int64", shape=["batch"]),
        TensorSpec(name="logits_to_keep", dtype="int64", shape=[]),
        *(_cache_spec("past", part, "past", loops="loops") for part in parts),
    ]


def output_specs(config: MythosConfig, parts: list[CachePart], loops: int | None) -> list[TensorSpec]:
    """What the graph gives, in order; `loops` is the depth of an unrolled graph."""
    return [
        TensorSpec(name="logits", dtype="float32", shape=["batch", "kept", config.vocab_size]),
        *(_cache_spec("new", part, "seq", loops=loops or "trip_count") for part in parts),
        TensorSpec(name="halting.depth", dtype="int64", shape=["batch", "seq"]),
    ]


def _cache_spec(prefix: str, part: CachePart, rows: str, *, loops: int | str) -> TensorSpec:
    depth = loops if part.depth == "loops" else part.depth
    return TensorSpec(name=f"{prefix}.{part.name}", dtype=part.dtype, shape=[depth, "batch", rows, *part.row])
