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
from mythos_export.described import architecture_of
from mythos_export.graph_parts import LOOP_NAME
from mythos_export.linears import served
from mythos_export.parity.source import load_graph
from mythos_export.quantization import Quantization
from mythos_export.targets import quantization_of
from mythos_export.weights.names import place_of, read_name
from reference_model.architecture import LOOP, Architecture

__all__ = ["EMULATED", "GateFailed", "check_quantized"]

EMULATED = "float, after dequantising"  # what a runtime does that has no kernel for the type
# ONNX Runtime's own operators on packed weights, and which of their inputs those are. A QMoE is all routed experts.
_PACKED = {"MatMulNBits": (1,), "QMoE": (2, 5)}
_INTEGER = frozenset({"MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "MatMulInteger", *_PACKED})
_FLOAT = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm"})
_HAS_KERNELS = frozenset({"int8"})  # of ONNX Runtime on a CPU, for Q/DQ
_INTEGER_LEVEL = 4  # accuracy level from which packed weights are multiplied as integers; below, as float
_PIECE = 1 << 20  # scales looked at at once


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
    architecture = architecture_of(bundle)
    kernels = [_check_graph(bundle, file, kept, architecture) for file in bundle.manifest.graphs]
    return kernels[0]


def _check_graph(bundle: Bundle, file: GraphFile, kept: frozenset[str], architecture: Architecture) -> dict[str, int]:
    model, manifest = load_graph(bundle, file.file), bundle.manifest
    quantized = _check_layers(model, file.file, kept, architecture)
    quantization = quantization_of(manifest.target, manifest.precision, architecture)
    if quantization.activations:
        _check_activations(model, file.file)
    _check_scales(model, file.file)
    if not _has_kernels(manifest.precision, quantization):
        return {EMULATED: quantized}
    return _check_runtime(bundle, file, quantized, kept, architecture)


def _has_kernels(precision: str, quantization: Quantization) -> bool:
    """Does ONNX Runtime compute this with integers on a CPU?"""
    return quantization.packed or precision in _HAS_KERNELS


def _check_layers(model: ir.Model, file: str, kept: frozenset[str], architecture: Architecture) -> int:
    """Every linear layer reads a quantised weight, or is one that stays in float; returns the nodes that do."""
    quantized = in_body = 0
    for node in model.graph.all_nodes():
        weights = _weights(node)
        for weight in weights:
            if read_name(weight) is None and not _may_be_float(weight, kept, architecture):
                raise GateFailed(f"{file}: {weight} was to be quantised, but {node.name} computes with it in float")
        if any(read_name(weight) is not None for weight in weights):
            quantized += 1
            in_body += place_of(weights[0], architecture).stage == LOOP
    if not quantized:
        raise GateFailed(f"{file}: not one node is quantised")
    if not in_body:
        raise GateFailed(f"{file}: nothing inside the loop is quantised")
    return quantized


def _check_activations(model: ir.Model, file: str) -> None:
    """What is multiplied with a quantised weight is quantised too."""
    for node in model.graph.all_nodes():
        if any(read_name(weight) is not None for weight in _weights(node)):
            producer = node.inputs[0].producer() if node.inputs[0] is not None else None
            if producer is None or producer.op_type != "DequantizeLinear":
                raise GateFailed(f"{file}: the weight of {node.name} is quantised, but what it multiplies is not")


def _weights(node: ir.Node) -> list[str]:
    """Names of the parameters that a node multiplies with, looking through DequantizeLinear."""
    if node.op_type in _PACKED:
        return [str(value.name) for index in _PACKED[node.op_type] if (value := node.inputs[index]) is not None]
    if node.op_type not in ("MatMul", "Gemm"):
        return []
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    is_parameter = value is not None and value.is_initializer() and isinstance(value.const_value, ir.ExternalTensor)
    return [str(value.name)] if is_parameter and value is not None else []


def _may_be_float(weight: str, kept: frozenset[str], architecture: Architecture) -> bool:
    use = served(weight, architecture)
    return use is not None and (use[0].role == "control" or use[1] in kept)


def _check_scales(model: ir.Model, file: str) -> None:
    """No scale may be 0, infinite or not a number: of weights, of activations, of any depth."""
    for graph in (model.graph, *_subgraphs(model.graph)):
        for name, value in graph.initializers.items():
            if name.endswith(("scale", ".scales", ".reciprocals")) and value.const_value is not None:
                numbers = value.const_value.numpy().reshape(-1)
                for start in range(0, len(numbers), _PIECE):
                    piece = numbers[start : start + _PIECE].astype(np.float32)
                    if not (np.isfinite(piece).all() and (piece > 0).all()):
                        raise GateFailed(f"{file}: {name} holds a scale that is 0, infinite or not a number")


def _subgraphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    return (node.attributes["body"].as_graph() for node in graph if node.name == LOOP_NAME)


def _check_runtime(
    bundle: Bundle, file: GraphFile, quantized: int, kept: frozenset[str], architecture: Architecture
) -> dict[str, int]:
    """Optimise the graph as a session does, and look at what has become of every layer."""
    with tempfile.TemporaryDirectory(prefix=".optimised-", dir=bundle.path) as folder:
        path = Path(folder) / "model.onnx"
        OnnxRuntimeEngine(bundle, threads=1).save_optimized(file, path)
        graph = ir.load(path).graph
        kernels = Counter(node.op_type for node in graph.all_nodes() if node.op_type in _INTEGER)
        for node in graph.all_nodes():
            if what := _in_float(node, kept, architecture):
                raise GateFailed(f"{file.file}: ONNX Runtime computes {node.name} in float ({node.op_type} {what})")
    if sum(kernels.values()) != quantized:
        raise GateFailed(
            f"{file.file}: {quantized} layers are quantised, but ONNX Runtime runs {sum(kernels.values())} kernels "
            f"for them ({dict(kernels)})"
        )
    return dict(kernels)


def _in_float(node: ir.Node, kept: frozenset[str], architecture: Architecture) -> str | None:
    """What makes a kernel compute in float with a weight that was to be quantised; None if it does not."""
    if node.op_type in _PACKED:
        level = node.attributes.get_int("accuracy_level", 0)
        return f"at accuracy level {level}" if level < _INTEGER_LEVEL else None
    value = node.inputs[1] if node.op_type in _FLOAT else None
    if value is None:
        return None
    producer = value.producer()
    if producer is not None:
        return "on a dequantised weight" if producer.op_type == "DequantizeLinear" else None
    name = str(value.name)
    if not value.is_initializer() or _may_be_float(name, kept, architecture):
        return None
    return f"on {name}"
