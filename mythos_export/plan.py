"""What an export would make, without making it: `--dry-run`."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel

from mythos_export.linears import kept_layers, layer_names
from mythos_export.pipeline import ExportRequest, count_parameters, graphs_of
from mythos_export.planning.cache import cache_size
from mythos_export.planning.tensors import file_bytes, total_bytes
from mythos_export.planning.weights import stored_tensors
from mythos_export.progress import Reporter
from mythos_export.quantization import Choices
from mythos_export.signature import cache_parts

__all__ = ["ExportPlan", "plan_export"]


class ExportPlan(BaseModel):
    """Sizes of a bundle that is not written."""

    name: str
    target: str
    precision: str
    loops: str
    parameters: int
    weight_bytes: int
    file_bytes: int  # of `model.onnx.data`: these, and what is left empty between them
    cache_bytes_per_token: int  # at no depth: prelude and coda
    cache_bytes_per_token_and_loop: int
    graphs: dict[str, dict[str, int]]  # file -> op type -> count, nested graphs included


def plan_export(request: ExportRequest, report: Reporter) -> ExportPlan:
    """Build the graphs and count their nodes; no weight is read, and the bytes are counted as `plan` counts them."""
    choices = _any_choices(request)
    graphs = graphs_of(request, report, choices)
    tensors = stored_tensors(request.config, request.target, request.precision, choices)
    cache = cache_size(cache_parts(request.config, request.precision))
    return ExportPlan(
        name=request.name,
        target=request.target,
        precision=request.precision,
        loops=str(request.loops),
        parameters=count_parameters(request.config),
        weight_bytes=total_bytes(tensors),
        file_bytes=file_bytes(tensors),
        cache_bytes_per_token=cache.per_token,
        cache_bytes_per_token_and_loop=cache.per_token_and_loop,
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
    return Choices(limits, frozenset(kept_layers(config, options.keep)), request.runtime)
