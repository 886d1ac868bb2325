"""What TensorRT's parser or compiler would refuse, or quietly compute otherwise, said before it is asked.

Each rule was met: TensorRT-RTX 1.7 fails on it, often far from the cause, or (scales that are not constant)
succeeds and drops the precision. A finding names the node, the reason and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from mythos_export.graph_parts import sizes

__all__ = ["RULES", "Finding", "LintFailed", "lint"]

_MOST_ELEMENTS = (1 << 31) - 1
_SHOWN = 3
_TRACED = 64  # nodes that a walk towards a source may pass


class LintFailed(Exception):
    """A graph that TensorRT would not take; the bundle was not kept."""

    @classmethod
    def because(cls, file: str, findings: list[Finding]) -> LintFailed:
        """With the first findings in words."""
        more = f" (and {len(findings) - _SHOWN} more)" if len(findings) > _SHOWN else ""
        return cls(f"{file}: TensorRT would refuse {'; '.join(map(str, findings[:_SHOWN]))}{more}")


@dataclass(frozen=True)
class Finding:
    """One thing that TensorRT does not take."""

    rule: str
    node: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}; {self.remedy}"


@dataclass(frozen=True)
class _Seen:
    """A node on the walk, and whether a Loop's body holds it."""

    node: ir.Node
    in_loop: bool


Complaint = tuple[str, str]  # reason, remedy
Rule = Callable[[_Seen], Complaint | None]


def lint(model: ir.Model) -> list[Finding]:
    """Everything in a graph, and in the bodies within it, that TensorRT does not take."""
    model = model.clone()
    ShapeInferencePass(strict_mode=False)(model)
    found = [finding for seen in _walk(model.graph, in_loop=False) for finding in _findings(seen)]
    return found + list(_large_tensors(model.graph))


def _walk(graph: ir.Graph, *, in_loop: bool) -> Iterator[_Seen]:
    for node in graph:
        yield _Seen(node, in_loop)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _walk(attribute.as_graph(), in_loop=in_loop or node.op_type == "Loop")


def _findings(seen: _Seen) -> Iterator[Finding]:
    for name, rule in RULES.items():
        complaint = rule(seen)
        if complaint is not None:
            yield Finding(name, f"{seen.node.name} ({seen.node.op_type})", *complaint)


def _large_tensors(graph: ir.Graph) -> Iterator[Finding]:
    for name, value in graph.initializers.items():
        if value.shape is not None and value.shape.is_static():
            count = math.prod(sizes(value))
            if count > _MOST_ELEMENTS:
                yield Finding(
                    "large-tensor", name, f"has {count} elements, more than 2^31 - 1", "split it into several tensors"
                )


def _foreign_domain(seen: _Seen) -> Complaint | None:
    if seen.node.domain in ("", "ai.onnx"):
        return None
    return f"is an operator of {seen.node.domain}", "export with --target tensorrt, which uses standard ones"


def _both_trip_count_and_condition(seen: _Seen) -> Complaint | None:
    if seen.node.op_type != "Loop" or seen.node.inputs[0] is None or seen.node.inputs[1] is None:
        return None
    return "has a trip count and a condition", "leave the condition input empty"


def _computed_condition(seen: _Seen) -> Complaint | None:
    if seen.node.op_type != "Loop":
        return None
    body = _body(seen.node)
    if seen.node.inputs[0] is not None and body.inputs[1].uses():
        return "reads its condition in the body", "let the trip count alone decide"
    value = _constant(body.outputs[0])
    if value is not None and value.all():
        return None
    return "computes its condition in the body", "make the body's condition a constant true"


def _growing_state(seen: _Seen) -> Complaint | None:
    """A state that leaves the body longer than it came."""
    if seen.node.op_type != "Loop":
        return None
    body = _body(seen.node)
    states = body.inputs[2:]
    for before, after in zip(states, body.outputs[1:]):
        if _is_grown(after, before) or _contradict(before.shape, after.shape):
            remedy = "carry a state of one size, and let what is new leave as a scan output"
            return f"carries {before.name}, which grows from one iteration to the next", remedy
    return None


def _is_grown(after: ir.Value, before: ir.Value) -> bool:
    """Is it a Concat of the state itself with something?"""
    node = after.producer()
    return node is not None and node.op_type == "Concat" and before in node.inputs


def _differing_states(seen: _Seen) -> Complaint | None:
    if seen.node.op_type != "Loop":
        return None
    states = [value for value in seen.node.inputs[2:] if value is not None]
    for value in states[1:]:
        if _contradict(states[0].shape, value.shape):
            what = f"{states[0].name} {states[0].shape} and {value.name} {value.shape}"
            return f"carries states of different shapes, {what}", "carry all of them at the full width"
    return None


def _half_scan(seen: _Seen) -> Complaint | None:
    if seen.node.op_type != "Loop":
        return None
    states = len(seen.node.inputs) - 2
    for value in _body(seen.node).outputs[1 + states :]:
        if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            return f"scans {value.name} in {value.dtype}", "scan it in fp32, and cast it behind the Loop"
    return None


def _only_outside_loops(op_type: str, reason: str, remedy: str) -> Rule:
    def rule(seen: _Seen) -> Complaint | None:
        return (reason, remedy) if seen.in_loop and seen.node.op_type == op_type else None

    return rule


def _never(op_types: set[str], reason: str, remedy: str) -> Rule:
    def rule(seen: _Seen) -> Complaint | None:
        return (reason, remedy) if seen.node.op_type in op_types else None

    return rule


def _size_from_data(seen: _Seen) -> Complaint | None:
    """In a body, sizes must follow from the sizes of what goes into the graph."""
    if not seen.in_loop:
        return None
    for index in _SIZES.get(seen.node.op_type, ()):
        value = seen.node.inputs[index] if index < len(seen.node.inputs) else None
        if value is not None and not _follows_from_shapes(value):
            return f"takes sizes ({value.name}) that are computed from data, inside a Loop", "compute densely, and mask"
    return None


def _follows_from_shapes(value: ir.Value) -> bool:
    pending, done = [value], set[ir.Value]()
    while pending:
        value = pending.pop()
        node = value.producer()
        if value in done or value.is_initializer():
            continue
        done.add(value)
        if node is None:
            return False  # an input: data
        if node.op_type not in ("Shape", "Size"):
            pending.extend(source for source in node.inputs if source is not None)
    return True


def _unsigned(seen: _Seen) -> Complaint | None:
    if any(dtype in (ir.DataType.UINT8, ir.DataType.UINT4, ir.DataType.UINT16) for dtype in _quantized_types(seen)):
        return "quantises to unsigned numbers", "use int8, symmetric around zero"
    return None


def _zero_point(seen: _Seen) -> Complaint | None:
    if seen.node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(seen.node.inputs) < 3:
        return None
    if seen.node.inputs[2] is None:
        return None
    value = _constant(seen.node.inputs[2])
    if value is not None and not value.astype(np.float32).any():
        return None
    return "has a zero point that is not constant 0", "quantise symmetrically, with zero point 0"


def _other_fp8(seen: _Seen) -> Complaint | None:
    names = ("FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E4M3FNUZ")
    found = [dtype for dtype in _quantized_types(seen) if dtype.name in names]
    return (f"quantises to {found[0].name}", "use FLOAT8E4M3FN") if found else None


def _changing_scale(seen: _Seen) -> Complaint | None:
    if seen.node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(seen.node.inputs) < 2:
        return None
    scale = seen.node.inputs[1]
    if scale is None or scale.is_initializer() or _constant(scale) is not None:
        return None
    remedy = "multiply by 1/scale before it and by the scale behind the product, and quantise by the constant 1"
    return "has a scale that is computed, and its product would fall back to float", remedy


def _gather_of_quantized(seen: _Seen) -> Complaint | None:
    """An int8, fp8 or int4 constant may be read by DequantizeLinear alone."""
    if seen.node.op_type in ("DequantizeLinear", "Constant"):
        return None
    for value in seen.node.inputs:
        if value is not None and value.is_initializer() and value.dtype in _QUANTIZED and value.shape != ir.Shape([]):
            if seen.node.op_type == "QuantizeLinear" and value is seen.node.inputs[-1]:
                continue  # its zero point
            reason = f"reads {value.name}, a quantised constant, before any DequantizeLinear"
            return reason, "dequantise it first, or keep that layer in float (--keep)"
    return None


def _partial_block(seen: _Seen) -> Complaint | None:
    block = seen.node.attributes.get_int("block_size", 0) if seen.node.op_type == "DequantizeLinear" else 0
    value = seen.node.inputs[0] if block else None
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    size = sizes(value)[seen.node.attributes.get_int("axis", 1)]
    if not size % block:
        return None
    return f"has {size} numbers in blocks of {block}, the last not whole", "keep that layer in float (--keep)"


# By operator, the inputs that decide the size of what it makes.
_SIZES = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
}
_QUANTIZED = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN)


def _quantized_types(seen: _Seen) -> list[ir.DataType]:
    """Types of numbers that a Q or DQ node makes or reads."""
    node = seen.node
    if node.op_type == "QuantizeLinear":
        named = node.attributes.get_int("output_dtype", 0)
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        given = zero.dtype if zero is not None else ir.DataType(named) if named else ir.DataType.UINT8
        return [given] if given is not None else []
    if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].dtype is not None:
        return [node.inputs[0].dtype]
    return []


def _contradict(one: ir.Shape | None, other: ir.Shape | None) -> bool:
    """Shapes that cannot be the same: another rank, or another known size."""
    if one is None or other is None:
        return False
    if len(one) != len(other):
        return True
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(one, other))


def _body(loop: ir.Node) -> ir.Graph:
    return loop.attributes["body"].as_graph()


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    """What a value holds, where that is written in the graph itself."""
    for _ in range(_TRACED):
        if value is None:
            return None
        if value.const_value is not None:
            return value.const_value.numpy()
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "Constant":
            attribute = next(iter(node.attributes.values()))
            return attribute.value.numpy() if attribute.type == ir.AttributeType.TENSOR else np.asarray(attribute.value)
        if node.op_type != "Identity":
            return None
        value = node.inputs[0]
    return None


RULES: dict[str, Rule] = {
    "foreign-domain": _foreign_domain,
    "trip-count-and-condition": _both_trip_count_and_condition,
    "computed-condition": _computed_condition,
    "growing-state": _growing_state,
    "differing-states": _differing_states,
    "half-scan": _half_scan,
    "attention-in-loop": _only_outside_loops(
        "Attention", "is an Attention operator inside a Loop", "use MatMul and Softmax"
    ),
    "tensor-scatter-in-loop": _only_outside_loops(
        "TensorScatter", "writes a cache inside a Loop", "let the new rows leave as scan outputs"
    ),
    "data-dependent-shape": _never(
        {"NonZero", "Unique", "Compress"}, "has a shape that depends on data", "compute densely, and mask"
    ),
    "size-from-data": _size_from_data,
    "unsigned": _unsigned,
    "zero-point": _zero_point,
    "other-fp8": _other_fp8,
    "dynamic-quantization": _never(
        {"DynamicQuantizeLinear"}, "finds its scale at run time", "calibrate, and use QuantizeLinear"
    ),
    "integer-product": _never(
        {"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"},
        "is an integer product",
        "use MatMul between DequantizeLinear nodes",
    ),
    "changing-scale": _changing_scale,
    "quantized-constant": _gather_of_quantized,
    "partial-block": _partial_block,
}
