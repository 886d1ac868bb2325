"""What does not depend on the depth leaves the body, and only that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from looped import loop_around, value
from stored_weights import session

from mythos_export.graph_parts import Builder, recurrent_loop
from mythos_export.passes import Hoist
from mythos_export.passes.rewriting import PassDidNothing

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def graph() -> ir.Model:
    """carried = carried * (captured + 2 + 3) + index + weight.T + -weight + size of carried + 3.

    3 is a constant, 2 an initialiser of the body.
    """
    captured, carried = value("captured", FLOAT, ["n"]), value("carried", FLOAT, ["n"])
    index, weight = value("index", INT64, []), value("weight", FLOAT, [1])
    build = Builder("step")
    two = ir.Value(name="two", const_value=ir.tensor(np.float32(2)), type=ir.TensorType(FLOAT), shape=ir.Shape([]))
    three = build.scalar(3.0)
    sum_ = build.op("Add", [build.op("Add", [captured, two]), three])
    transposed = build.op("Transpose", [weight], perm=[0])
    depth = build.op("Cast", [index], to=FLOAT)
    out = build.op("Add", [build.op("Mul", [carried, sum_]), depth])
    out = build.op("Add", [build.op("Add", [out, transposed]), build.op("Neg", [weight])])
    size = build.op("Cast", [build.op("Shape", [carried])], to=FLOAT)
    out = build.op("Add", [build.op("Add", [out, size]), three])
    model = loop_around([captured], build, index, carried, out)
    body_of(model).initializers.add(two)
    weight.const_value = ir.ExternalTensor("data", 0, 4, FLOAT, shape=ir.Shape([1]), name="weight")
    model.graph.initializers.add(weight)
    return model


def body_of(model: ir.Model) -> ir.Graph:
    return recurrent_loop(model.graph).attributes["body"].as_graph()


def ops(nodes: ir.Graph) -> list[str]:
    return [node.op_type for node in nodes if node.op_type != "Constant"]


def test_what_is_the_same_at_every_depth_moves_in_front_of_the_loop() -> None:
    model = graph()
    Hoist()(model)
    assert ops(model.graph) == ["Add", "Add", "Neg", "Shape", "Cast", "Loop"]
    assert sorted(ops(body_of(model))) == [*["Add"] * 5, "Cast", "Mul", "Transpose"], "a weight's own node stays"


def test_it_computes_the_same() -> None:
    feeds = {"trips": np.array(4), "start": np.ones(3, np.float32), "captured": np.arange(3, dtype=np.float32)}
    results = []
    for hoisted in (False, True):
        model = graph()
        if hoisted:
            Hoist()(model)
        model.graph.initializers["weight"].const_value = ir.tensor(np.array([7], np.float32))
        results.append(session(model).run(None, feeds)[0])
    expected = feeds["start"]
    for depth in range(4):
        expected = expected * (feeds["captured"] + 5) + depth + 7 - 7 + 3 + 3
    np.testing.assert_array_equal(results[0], expected)
    np.testing.assert_array_equal(results[1], expected)


def test_a_body_in_which_all_depends_on_the_depth_is_an_error() -> None:
    model = graph()
    Hoist()(model)
    with pytest.raises(PassDidNothing, match="depends on the depth"):
        Hoist()(model)


def test_another_domain_s_op_of_a_weight_stays() -> None:
    """It is elementwise by name only."""
    model = graph()
    node = next(node for node in body_of(model) if node.op_type == "Neg")
    node.domain = "mythos"
    Hoist()(model)
    assert node.graph is body_of(model)


@pytest.mark.parametrize("shape", [["n", 1], []])
def test_a_state_that_changes_its_rank_is_refused(shape: list[int | str]) -> None:
    """Its shape would be read off what it was before the first depth."""
    model = graph()
    body_of(model).inputs[2].shape = ir.Shape(shape)
    with pytest.raises(ir.passes.PreconditionError, match="carried has shape"):
        Hoist()(model)


def test_an_output_of_the_body_stays() -> None:
    """A Loop's result has to be made in its body, be it the same every time."""
    captured, carried = value("captured", FLOAT, ["n"]), value("carried", FLOAT, ["n"])
    build = Builder("step")
    other = build.op("Neg", [captured])
    out = build.op("Add", [other, build.op("Abs", [captured])])
    model = loop_around([captured], build, value("index", INT64, []), carried, out)
    Hoist()(model)
    assert ops(body_of(model)) == ["Add"] and ops(model.graph) == ["Neg", "Abs", "Loop"]
    feeds = {"trips": np.array(2), "start": np.zeros(2, np.float32), "captured": np.array([-1, 3], np.float32)}
    np.testing.assert_array_equal(session(model).run(None, feeds)[0], [2, 0])
