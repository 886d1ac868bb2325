"""From a config to the graphs of a bundle, still without weights."""

from __future__ import annotations

import onnx_ir as ir

from mythos_export import passes
from mythos_export.assemble import assemble
from mythos_export.loops import LoopsOption
from mythos_export.quantization import Choices
from mythos_export.signature import cache_parts, input_specs, output_specs
from mythos_export.targets import TARGETS, settled
from mythos_export.trace import trace
from reference_model.config import MythosConfig

__all__ = ["assembled", "build_graphs"]

_NONE = Choices()


def assembled(config: MythosConfig, *, opset: int) -> ir.Model:
    """The model's graph, still holding nodes of our own domain."""
    parts = cache_parts(config, "fp32")
    return assemble(trace(config, opset=opset), input_specs(parts), output_specs(config, parts, None), opset=opset)


def build_graphs(
    config: MythosConfig,
    *,
    target: str,
    precision: str,
    loops: LoopsOption,
    opset: int,
    choices: Choices = _NONE,
) -> dict[str, ir.Model]:
    """The graphs of a bundle by file name, parameters without values.

    Args:
        choices: ranges and exceptions of a quantised precision; layers that the target itself leaves in
            float need not be among them.

    Raises:
        MissingRange: the choices lack an activation's range.
        PassError, PassDidNothing: a rewrite did not do what it promises (a defect of ours).
    """
    entry, choices = TARGETS[target], settled(choices, target, config, precision)
    model = assembled(config, opset=opset)
    for rewrite in (*entry.lowerings(config, precision, choices), *entry.precision_passes(config, precision, choices)):
        rewrite(model)
    graphs = {}
    for file, depth in loops.graph_files().items():
        graph = model.clone()
        if depth is not None:
            passes.Unroll(depth)(graph)
        passes.Tidy()(graph)
        graphs[file] = graph
    return graphs
