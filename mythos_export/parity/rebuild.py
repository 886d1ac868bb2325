"""A bundle's graphs against ones built anew: the same nodes, wires and constants, to the last bit.

Numbers can only show what the compared tokens happen to meet: a halting threshold of 0.98 for 0.99
changes nothing until a token lands between the two. The build is deterministic, so a graph that
is not what this release builds from the bundle's own config is not what was exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir

from mythos_export.bundle import Bundle
from mythos_export.graphs import build_graphs
from mythos_export.loops import parse_loops
from mythos_export.parity.source import choices_of, load_graph
from mythos_export.pipeline import versions
from reference_model.open_mythos.config import MythosConfig

__all__ = ["GraphCheck", "compare_graphs"]

GraphCheck = tuple[str, list[str]]  # what was done, in words, and what differs

# what decides how a graph comes out
_BUILDERS = ("mythos-export", "torch", "onnxscript", "onnx-ir")


def compare_graphs(bundle: Bundle, config: MythosConfig) -> GraphCheck:
    """Build the graphs again and compare.

    Only releases that made the bundle can make it again: under others nothing is compared, and it is said.
    """
    made, here = bundle.manifest.tool, versions()
    other = [
        f"{name} {made.get(name)} (here {here.get(name)})" for name in _BUILDERS if made.get(name) != here.get(name)
    ]
    if other:
        return f"not rebuilt: it was made by {', '.join(other)}", []
    graphs = build_graphs(
        config,
        target=bundle.manifest.target,
        precision=bundle.manifest.precision,
        loops=parse_loops(bundle.manifest.loops),
        opset=bundle.manifest.opset,
        choices=choices_of(bundle, config),
    )
    differing = []
    for file, built in graphs.items():
        again = ir.from_proto(ir.to_proto(_without_weights(built)))
        place = _first_difference(list(_lines(load_graph(bundle, file).graph)), list(_lines(again.graph)))
        if place is not None:
            differing.append(f"{file} is not the graph this release builds: {place}")
    return "the same as built anew" if not differing else "different", differing


def _without_weights(model: ir.Model) -> ir.Model:
    """Parameters as tensors that are somewhere else, as in a bundle, so that both sides read alike."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            assert value.dtype is not None and value.shape is not None
            value.const_value = ir.ExternalTensor("elsewhere", 0, 0, value.dtype, shape=value.shape, name=name)
    return model


def _lines(graph: ir.Graph) -> Iterator[str]:
    """A graph and all graphs within it, one line per input, output, node, and initializer that a node reads.

    Others compute nothing, and graphs of earlier releases had some.
    """
    yield f"inputs {[_typed(value) for value in graph.inputs]}"
    yield f"outputs {[_typed(value) for value in graph.outputs]}"
    for name, value in sorted(graph.initializers.items()):
        if value.uses():
            yield f"initializer {name} {_tensor(value.const_value)}"
    for node in graph:
        inputs = [value.name if value is not None else "" for value in node.inputs]
        outputs = [value.name for value in node.outputs]
        yield f"node {node.domain}::{node.op_type} {inputs} -> {outputs} {_attributes(node.attributes)}"
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _lines(attribute.as_graph())


def _typed(value: ir.Value) -> str:
    return f"{value.name} {value.dtype} {value.shape}"


def _attributes(attributes: Mapping[str, ir.Attr]) -> str:
    return str([f"{name}={_plain(attributes[name])}" for name in sorted(attributes)])


def _plain(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.GRAPH:
        return "graph"
    return _tensor(attribute.value) if attribute.type == ir.AttributeType.TENSOR else attribute.value


def _tensor(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None:
        return "nothing"
    content = "weights" if isinstance(tensor, ir.ExternalTensor) else tensor.tobytes().hex()
    return f"{tensor.dtype} {list(tensor.shape)} {content}"


def _first_difference(got: list[str], wanted: list[str]) -> str | None:
    for found, expected in zip(got, wanted):
        if found != expected:
            return f"{_short(found)}, expected {_short(expected)}"
    if len(got) != len(wanted):
        return f"{len(got)} parts where there are {len(wanted)}"
    return None


def _short(line: str) -> str:
    return line if len(line) < 160 else line[:157] + "..."
