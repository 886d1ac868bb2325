"""Statistics of activations as extra outputs of the graph itself, one value per depth.

In the Loop they leave as scan outputs, [trips, ...]; outside of it as they are. Nothing else about
the graph changes, so it computes what it computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mythos_export.graph_parts import LOOP_NAME, Builder, recurrent_loop
from mythos_export.linears import Linear, find_linears
from reference_model.architecture import Architecture

__all__ = ["BINS", "Point", "add_extremes", "add_histograms", "find_points"]

BINS = 2048  # of a histogram of |x| from 0 to the largest


@dataclass(frozen=True)
class Point:
    """One activation to be quantised; the routed experts' hidden values are one, in as many parts."""

    name: str
    feeds: tuple[str, ...]
    values: tuple[ir.Value, ...]
    in_loop: bool


def find_points(model: ir.Model, architecture: Architecture) -> list[Point]:
    """All activations that feed a linear layer, in graph order."""
    by_name: dict[str, list[Linear]] = {}
    for linear in find_linears(model, architecture):
        by_name.setdefault(linear.point, []).append(linear)
    return [
        Point(
            name=name,
            feeds=tuple(dict.fromkeys(linear.layer for linear in linears)),
            values=tuple(dict.fromkeys(linear.root for linear in linears)),
            in_loop=linears[0].in_loop,
        )
        for name, linears in by_name.items()
    ]


def add_extremes(model: ir.Model, architecture: Architecture) -> dict[str, tuple[str, str]]:
    """Add the least and the greatest value of each point; returns the names of both outputs.

    The greatest is infinite where a value is not a number.
    """
    outputs = {}
    for point in find_points(model, architecture):
        build = Builder(f"calibrate.{point.name}")
        whole = _whole(build, point)
        seen = _no_nan(build, whole)
        extremes = [build.op(op, [seen], keepdims=0) for op in ("ReduceMin", "ReduceMax")]
        _place(build, point)
        low, high = (_expose(model.graph, point, value, ir.DataType.FLOAT) for value in extremes)
        outputs[point.name] = (low, high)
    return outputs


def add_histograms(
    model: ir.Model, architecture: Architecture, tops: Mapping[str, NDArray[np.float32]]
) -> dict[str, str]:
    """Add a histogram of |x| of each point, int64 [BINS] or [trips, BINS]; returns the outputs' names.

    Args:
        tops: by point, the upper end of the last bin: [1], or [depths] in the loop (a later depth takes the last).
    """
    outputs = {}
    for point in find_points(model, architecture):
        build = Builder(f"calibrate.{point.name}")
        counts = _histogram(build, _whole(build, point), _top(build, model.graph, point, tops[point.name]))
        _place(build, point)
        outputs[point.name] = _expose(model.graph, point, counts, ir.DataType.INT64)
    return outputs


def _whole(build: Builder, point: Point) -> ir.Value:
    return point.values[0] if len(point.values) == 1 else build.op("Concat", list(point.values), axis=0)


def _no_nan(build: Builder, x: ir.Value) -> ir.Value:
    """Infinity for what is not a number: a runtime's minimum and maximum may pass over it."""
    return build.op("Where", [build.op("IsNaN", [x]), build.scalar(float("inf")), x])


def _top(build: Builder, main: ir.Graph, point: Point, tops: NDArray[np.float32]) -> ir.Value:
    table = build.op("Constant", [], value=ir.tensor(tops.astype(np.float32)))
    if not point.in_loop:
        return build.op("Squeeze", [table])
    loop_index = recurrent_loop(main).attributes["body"].as_graph().inputs[0]
    last = build.op("Constant", [], value=ir.tensor(len(tops) - 1, dtype=ir.DataType.INT64))
    return build.op("Gather", [table, build.op("Min", [loop_index, last])], axis=0)


def _histogram(build: Builder, x: ir.Value, top: ir.Value) -> ir.Value:
    size = build.op("Abs", [build.op("Reshape", [x, build.ints(-1)])])
    share = build.op("Div", [size, top])  # 0 / 0 cannot be: the caller gives a top above 0
    place = build.op("Floor", [build.op("Mul", [share, build.scalar(BINS)])])
    place = build.op("Cast", [build.op("Min", [place, build.scalar(BINS - 1)])], to=ir.DataType.INT64)
    zeros = build.op("Constant", [], value=ir.tensor(np.zeros(BINS, np.int64)))
    ones = build.op("ConstantOfShape", [build.op("Shape", [place])], value=ir.tensor(np.ones(1, np.int64)))
    return build.op("ScatterElements", [zeros, place, ones], axis=0, reduction="add")


def _place(build: Builder, point: Point) -> None:
    """The new nodes go behind the last of the point's values."""
    last = point.values[-1].producer()
    assert last is not None and last.graph is not None
    last.graph.insert_after(last, build.take())


def _expose(main: ir.Graph, point: Point, value: ir.Value, dtype: ir.DataType) -> str:
    """Make a value an output of the main graph, as a scan output of the Loop where it is in there."""
    value.type = ir.TensorType(dtype)
    if point.in_loop:
        loop = next(node for node in main if node.name == LOOP_NAME)
        loop.attributes["body"].as_graph().outputs.append(value)
        loop.resize_outputs(len(loop.outputs) + 1)
        name, value = f"{value.name}.scan", loop.outputs[-1]
        value.name, value.type = name, ir.TensorType(dtype)
    main.outputs.append(value)
    return str(value.name)
