"""Graphs that ONNX Runtime has no kernels for on a CPU, computed as they say by kernels that it has.

A product of bf16 numbers summed in fp32 and rounded to bf16 is what a GPU computes; it is the product of the same
numbers in fp32, rounded.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from engines.generation import Graph
from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import GraphFile
from mythos_export.graph_parts import Builder, given
from mythos_export.parity.source import load_graph

__all__ = ["emulate_bfloat16", "load_runnable"]


def load_runnable(engine: OnnxRuntimeEngine, file: GraphFile) -> Graph:
    """A graph of the bundle, as it is wherever ONNX Runtime has the kernels."""
    if engine.manifest.precision != "bf16":
        return engine.load_graph(file)
    model = load_graph(engine.bundle, file.file)
    if not emulate_bfloat16(model):
        return engine.load_graph(file)
    return engine.load_model(ir.to_proto(model).SerializeToString(), file)


def emulate_bfloat16(model: ir.Model) -> int:
    """Compute every product of bf16 numbers in fp32 and round it, in place; returns how many there are."""
    bfloat16 = {value for value in _values(model.graph) if value.dtype == ir.DataType.BFLOAT16}
    found = [
        node
        for node in list(model.graph.all_nodes())
        if node.op_type in ("MatMul", "Gemm") and any(_is_bfloat16(value, bfloat16) for value in given(node))
    ]
    for node in found:
        _emulate(node)
    return len(found)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(out for node in graph.all_nodes() for out in node.outputs)]


def _is_bfloat16(value: ir.Value, known: set[ir.Value]) -> bool:
    node = value.producer()
    if node is not None and node.op_type == "Cast":  # nodes of a file have types only where it says them
        return node.attributes["to"].as_int() == ir.DataType.BFLOAT16
    return value in known


def _emulate(node: ir.Node) -> None:
    graph, out = node.graph, node.outputs[0]
    assert graph is not None
    before, behind = Builder(f"{node.name}.widened"), Builder(f"{node.name}.rounded")
    for index, value in enumerate(given(node)):
        node.replace_input_with(index, before.op("Cast", [value], to=ir.DataType.FLOAT))
    rounded = behind.op("Cast", [out], to=ir.DataType.BFLOAT16)
    (cast,) = behind.take()
    convenience.replace_all_uses_with(out, rounded, replace_graph_outputs=True)
    cast.replace_input_with(0, out)
    out.type, rounded.type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.BFLOAT16)
    graph.insert_before(node, before.take())
    graph.insert_after(node, [cast])
