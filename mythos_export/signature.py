"""The graph contract: names, types and shapes of what goes in and out, from a description alone."""

from __future__ import annotations

from mythos_export.bundle import CachePart, TensorSpec
from mythos_export.weights.tensors import float_type
from reference_model.architecture import Architecture

__all__ = ["cache_parts", "input_specs", "output_specs"]


def cache_parts(architecture: Architecture, precision: str) -> list[CachePart]:
    """The cached tensors; `depth` is the stage's layers, or "loops". Quantised models keep them in float.

    Raises:
        ValueError: a loop has several layers, for which this format of the manifest has no word.
    """
    if any(part.per_loop and part.layers != 1 for part in architecture.cache):
        raise ValueError(
            f"{architecture.family}: a cache of several layers a loop does not fit the manifest's format 1"
        )
    return [
        CachePart(
            name=part.name,
            depth="loops" if part.per_loop else part.layers,
            row=list(part.row),
            dtype=float_type(precision),
        )
        for part in architecture.cache
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


def output_specs(vocab_size: int, parts: list[CachePart], loops: int | None) -> list[TensorSpec]:
    """What the graph gives, in order; `loops` is the depth of an unrolled graph."""
    return [
        TensorSpec(name="logits", dtype="float32", shape=["batch", "kept", vocab_size]),
        *(_cache_spec("new", part, "seq", loops=loops or "trip_count") for part in parts),
        TensorSpec(name="halting.depth", dtype="int64", shape=["batch", "seq"]),
    ]


def _cache_spec(prefix: str, part: CachePart, rows: str, *, loops: int | str) -> TensorSpec:
    depth = loops if part.depth == "loops" else part.depth
    return TensorSpec(name=f"{prefix}.{part.name}", dtype=part.dtype, shape=[depth, "batch", rows, *part.row])
