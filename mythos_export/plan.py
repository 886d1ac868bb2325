"""What an export would make, without making it: `--dry-run`."""

from __future__ import annotations

import math
from collections import Counter

import onnx_ir as ir
from pydantic import BaseModel

from mythos_export.graph_parts import sizes
from mythos_export.linears import kept_layers, layer_names
from mythos_export.pipeline import ExportRequest, count_parameters, graphs_of
from mythos_export.progress import Reporter
from mythos_export.quantization import Choices
from mythos_export.signature import cache_parts
from mythos_export.weights import parameters_of

__all__ = ["ExportPlan", "plan_export"]

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class ExportPlan(BaseModel):
    """Sizes of a bundle that is not written."""

    name: str
    target: str
    precision: str
    loops: str
    parameters: int
    weight_bytes: int
    cache_bytes_per_token: int  # at no depth: prelude and coda
    cache_bytes_per_token_and_loop: int
    graphs: dict[str, dict[str, int]]  # file -> op type -> count, nested graphs included


def plan_export(request: ExportRequest, report: Reporter) -> ExportPlan:
    """Build the graphs and count; no weight is read."""
    graphs = graphs_of(request, report, _any_choices(request))
    parameters = parameters_of(graphs.values())
    fixed, per_loop = _cache_bytes(request)
    return ExportPlan(
        name=request.name,
        target=request.target,
        precision=request.precision,
        loops=str(request.loops),
        parameters=count_parameters(request.config),
        weight_bytes=sum(_nbytes(value) for value in parameters.values()),
        cache_bytes_per_token=fixed,
        cache_bytes_per_token_and_loop=per_loop,
        graphs={
            file: dict(Counter(node.op_type for node in model.graph.all_nodes())) for file, model in graphs.items()
        },
    )


def _any_choices(request: ExportRequest) -> Choices:
    """Ranges that are not calibrated: the sizes do not depend on them."""
    options, config = request.quantize, request.config
    depths = config.max_loop_iters if options.ranges == "per-depth" else 1
    points = {layer: f"{layer}.input" for layer in layer_names(config)}
    limits = {point: [1.0] * (depths if point.startswith("recurrent.") else 1) for point in points.values()}
    return Choices(limits, frozenset(kept_layers(config, options.keep)))


def _nbytes(value: ir.Value) -> int:
    assert value.dtype is not None
    return math.ceil(math.prod(sizes(value)) * value.dtype.itemsize)


def _cache_bytes(request: ExportRequest) -> tuple[int, int]:
    fixed = per_loop = 0
    for part in cache_parts(request.config, request.precision):
        row = _BYTES[part.dtype]
        for length in part.row:
            row *= length
        if part.depth == "loops":
            per_loop += row
        else:
            fixed += row * part.depth
    return fixed, per_loop
