"""Nothing unused is left, in the main graph or in the Loop's body."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from looped import loop_around, value

from mythos_export.graph_parts import Builder, recurrent_loop
from mythos_export.passes import Tidy

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def constant(name: str) -> ir.Value:
    content = ir.tensor(np.float32(2))
    return ir.Value(name=name, const_value=content, type=ir.TensorType(FLOAT), shape=ir.Shape([]))


def graph() -> tuple[ir.Model, ir.Graph]:
    """Main graph and body each hold a constant that is read in the body, and one that nothing reads."""
    carried, index = value("carried", FLOAT, ["n"]), value("index", INT64, [])
    outer, inner = constant("outer"), constant("inner")
    build = Builder("step")
    model = loop_around([], build, index, carried, build.op("Mul", [build.op("Add", [carried, outer]), inner]))
    body = recurrent_loop(model.graph).attributes["body"].as_graph()
    for each in (outer, constant("outer_unused")):
        model.graph.initializers.add(each)
    for each in (inner, constant("inner_unused")):
        body.initializers.add(each)
    return model, body


def test_unused_initializers_go() -> None:
    model, body = graph()
    Tidy()(model)
    assert (set(model.graph.initializers), set(body.initializers)) == ({"outer"}, {"inner"})


def test_what_is_left_over_is_an_error() -> None:
    with pytest.raises(ir.passes.PostconditionError, match=r"nothing uses outer_unused"):
        Tidy().ensures(graph()[0])
