"""Looking inside the loop: the bundle's own graph with the body's values as extra outputs.

Nothing else about the graph changes and its weights stay in the bundle's data file. In a Loop the
values leave as scan outputs; in an unrolled graph each depth's copy becomes an output of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import BundleError, GraphFile
from mythos_export.parity.emulate import emulate_bfloat16
from mythos_export.parity.source import load_graph

__all__ = ["PROBES", "ProbedGraph", "add_probes"]

# what the check calls it -> the value in the step's graph
PROBES = {
    "hidden": "step.read_out.next.hidden",
    "act_weight": "step.read_out.act.weight",
    "router_scores": "step.0.router.scores",
    "experts": "step.0.router.experts",
}
_TYPES = {"experts": ir.DataType.INT64}


def add_probes(model: ir.Model) -> dict[str, list[str]]:
    """Add the outputs; returns the graph outputs that hold each probe, one per depth if unrolled.

    Raises:
        BundleError: the graph has no such value.
    """
    loops = [node for node in model.graph if node.op_type == "Loop"]
    if loops:
        return {name: [_scan(model.graph, loops[0], name)] for name in PROBES}
    values = {value.name: value for node in model.graph for value in node.outputs}
    return {name: _copies(model.graph, values, name) for name in PROBES}


def _scan(graph: ir.Graph, loop: ir.Node, name: str) -> str:
    body = loop.attributes["body"].as_graph()
    inner = {value.name: value for node in body for value in node.outputs}.get(PROBES[name])
    if inner is None:
        raise _unprobed(PROBES[name])
    inner.type = ir.TensorType(_TYPES.get(name, ir.DataType.FLOAT))
    again = ir.Node("", "Identity", [inner], name=f"probe.body.{name}")
    again.outputs[0].name, again.outputs[0].type = f"probe.body.{name}", inner.type
    body.append(again)
    body.outputs.append(again.outputs[0])
    loop.resize_outputs(len(loop.outputs) + 1)
    return _output(graph, loop.outputs[-1], f"probe.{name}", name)


def _copies(graph: ir.Graph, values: Mapping[str | None, ir.Value], name: str) -> list[str]:
    names, depth = [], 0
    while (value := values.get(f"loop{depth}.{PROBES[name]}")) is not None:
        again = ir.Node("", "Identity", [value], name=f"probe.{name}.{depth}")
        graph.append(again)
        names.append(_output(graph, again.outputs[0], f"probe.{name}.{depth}", name))
        depth += 1
    if not names:
        raise _unprobed(PROBES[name])
    return names


def _unprobed(value: str) -> BundleError:
    return BundleError(f"the graph has no value {value}, so it was not made by this release; export it again")


def _output(graph: ir.Graph, value: ir.Value, name: str, probe: str) -> str:
    value.name, value.type = name, ir.TensorType(_TYPES.get(probe, ir.DataType.FLOAT))
    graph.outputs.append(value)
    return name


class ProbedGraph:
    """A bundle's graph with probes, runnable like the engine's own (`engines.generation.Graph`)."""

    def __init__(self, engine: OnnxRuntimeEngine, file: GraphFile) -> None:
        model = load_graph(engine.bundle, file.file)
        emulate_bfloat16(model)
        self.loops: int | Literal["dynamic"] = file.loops
        self._probes = add_probes(model)
        self._graph = engine.load_model(ir.to_proto(model).SerializeToString(), file)
        self.inside: dict[str, NDArray[Any]] = {}  # what the last run saw, each [t, ...]

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Run once, keeping what the probes saw."""
        names = [*outputs, *(name for names in self._probes.values() for name in names)]
        results = dict(zip(names, self._graph.run(inputs, names)))
        for probe, parts in self._probes.items():
            self.inside[probe] = results[parts[0]] if self.loops == "dynamic" else np.stack([results[n] for n in parts])
        return [results[name] for name in outputs]
