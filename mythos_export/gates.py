"""Gates that a quantised bundle must pass: shown on its files, and on the graph that ONNX Runtime really runs.

Tools that quantise often report success and change nothing. Here nothing is believed: the written
graph is read again, every linear layer in it is looked at, body of the Loop included, and so is what
the runtime's own optimiser makes of it.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle, GraphFile
from mythos_export.graph_parts import HEAD_NAME, LOOP_NAME
from mythos_export.linears import always_float, layer_of
from mythos_export.parity.source import load_graph
from mythos_export.quantized_weights import stored_as

__all__ = ["EMULATED", "GateFailed", "check_quantized"]

EMULATED = "float, after dequantising"  # what a runtime does that has no kernel for the type
_INTEGER = frozenset({"MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulNBits", "QMoE"})
_FLOAT = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm"})
_HAS_KERNELS = frozenset({"int8"})  # of ONNX Runtime on a CPU, for Q/DQ


class GateFailed(Exception):
    """A bundle that is not quantised as it says; it was not kept."""


def check_quantized(bundle: Bundle, kept: frozenset[str]) -> dict[str, int]:
    """Check every graph of a bundle.

    Args:
        kept: layers that may stay in float.

    Returns:
        The kernels that ONNX Runtime runs for the quantised layers of the first graph, and how many of each.

    Raises:
        GateFailed: nothing is quantised, or not all that should be; a scale is no positive number; or the
            runtime computes in float what the graph says is quantised.
    """
    kernels = [_check_graph(bundle, file, kept) for file in bundle.manifest.graphs]
    return kernels[0]


def _check_graph(bundle: Bundle, file: GraphFile, kept: frozenset[str]) -> dict[str, int]:
    model = load_graph(bundle, file.file)
    quantized = _check_layers(model, file.file, kept)
    _check_scales(model, file.file)
    if bundle.manifest.precision not in _HAS_KERNELS and not _own_kernels(model):
        return {EMULATED: quantized}
    return _check_runtime(bundle, file, quantized, kept)


def _check_layers(model: ir.Model, file: str, kept: frozenset[str]) -> int:
    """Every linear layer reads a quantised weight, or is one that stays in float."""
    quantized = in_body = 0
    for node in model.graph.all_nodes():
        weight = _weight(node)
        if weight is None:
            continue
        if stored_as(weight) is not None:
            quantized += 1
            in_body += weight.startswith("recurrent.")
        elif not _may_be_float(node, weight, kept):
            raise GateFailed(f"{file}: {weight} was to be quantised, but {node.name} computes with it in float")
    if not quantized:
        raise GateFailed(f"{file}: not one node is quantised")
    if not in_body:
        raise GateFailed(f"{file}: nothing inside the loop is quantised")
    return quantized


def _weight(node: ir.Node) -> str | None:
    """Name of the parameter that a node multiplies with, looking through DequantizeLinear."""
    if node.op_type in ("MatMulNBits", "QMoE"):
        return str(node.inputs[1 if node.op_type == "MatMulNBits" else 2].name)  # type: ignore[union-attr]
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    is_parameter = value is not None and value.is_initializer() and isinstance(value.const_value, ir.ExternalTensor)
    return str(value.name) if is_parameter and value is not None else None


def _may_be_float(node: ir.Node, weight: str, kept: frozenset[str]) -> bool:
    layer = "head" if node.name == HEAD_NAME else layer_of(weight)
    return always_float(weight) or layer in kept


def _own_kernels(model: ir.Model) -> bool:
    return any(node.domain == "com.microsoft" for node in model.graph.all_nodes())


def _check_scales(model: ir.Model, file: str) -> None:
    """No scale may be 0, infinite or not a number: of weights, of activations, of any depth."""
    for graph in (model.graph, *_subgraphs(model.graph)):
        for name, value in graph.initializers.items():
            if name.endswith(("scale", ".scales", ".reciprocals")) and value.const_value is not None:
                numbers = value.const_value.numpy().astype(np.float32)
                if not (np.isfinite(numbers).all() and (numbers > 0).all()):
                    raise GateFailed(f"{file}: {name} holds a scale that is 0, infinite or not a number")


def _subgraphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    return (node.attributes["body"].as_graph() for node in graph if node.name == LOOP_NAME)


def _check_runtime(bundle: Bundle, file: GraphFile, quantized: int, kept: frozenset[str]) -> dict[str, int]:
    """Optimise the graph as a session does, and look at what has become of every layer."""
    with tempfile.TemporaryDirectory(prefix=".optimised-", dir=bundle.path) as folder:
        path = Path(folder) / "model.onnx"
        OnnxRuntimeEngine(bundle, threads=1).save_optimized(file, path)
        graph = ir.load(path).graph
        kernels = Counter(node.op_type for node in graph.all_nodes() if node.op_type in _INTEGER)
        for node in graph.all_nodes():
            if node.op_type in _FLOAT and (what := _float_weight(node, kept)):
                raise GateFailed(f"{file.file}: ONNX Runtime computes {node.name} in float ({node.op_type} on {what})")
    if sum(kernels.values()) != quantized:
        raise GateFailed(
            f"{file.file}: {quantized} layers are quantised, but ONNX Runtime runs {sum(kernels.values())} kernels "
            f"for them ({dict(kernels)})"
        )
    return dict(kernels)


def _float_weight(node: ir.Node, kept: frozenset[str]) -> str | None:
    """What a float MatMul multiplies with, if that is a weight and was to be quantised."""
    value = node.inputs[1]
    if value is None:
        return None
    producer = value.producer()
    if producer is not None:
        return "a dequantised weight" if producer.op_type == "DequantizeLinear" else None
    name = str(value.name)
    if not value.is_initializer() or _may_be_float(node, name, kept):
        return None
    return name
