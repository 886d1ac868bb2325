"""The past of a layer in several blocks: the same rows, whatever the sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from looped import loop_around, value
from onnx_ir import convenience
from stored_weights import session

from mythos_export.graph_parts import Builder, recurrent_loop
from mythos_export.passes import SpreadPast
from mythos_export.passes.rewriting import PassDidNothing

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
DEPTH = 3


def graph(row: list[int]) -> ir.Model:
    """The sum over depths of (depth + 1) times that depth's past [b, p, *row]."""
    past = value("past.recurrent.part", FLOAT, [DEPTH, "b", "p", *row])
    carried, index = value("carried", FLOAT, ["b", "p", *row]), value("index", INT64, [])
    build = Builder("step")
    one = build.op("Constant", [], value=ir.tensor(np.int64(1)))
    factor = build.op("Cast", [build.op("Add", [index, one])], to=FLOAT)
    out = build.op("Add", [carried, build.op("Mul", [build.op("Gather", [past, index], axis=0), factor])])
    return loop_around([past], build, index, carried, out)


@pytest.mark.parametrize("row", [[16], [2, 24], [6], [5], [64, 3]])
@pytest.mark.parametrize(("batch", "past"), [(1, 7), (3, 1), (2, 0), (0, 4)])
def test_the_rows_are_the_same(row: list[int], batch: int, past: int) -> None:
    model = graph(row)
    modified = SpreadPast()(model).modified
    assert modified == (np.prod(row) % 2 == 0), "an odd row cannot be divided"
    rows = np.random.default_rng(0).standard_normal((DEPTH, batch, past, *row), dtype=np.float32)
    feeds = {"trips": np.array(DEPTH), "start": np.zeros_like(rows[0]), "past.recurrent.part": rows}
    expected = rows[0] + rows[1] * 2 + rows[2] * 3
    (got,) = session(model).run(None, feeds)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_no_layer_is_gathered_as_one_block() -> None:
    model = graph([2, 24])
    SpreadPast()(model)
    body = recurrent_loop(model.graph).attributes["body"].as_graph()
    (gather,) = (node for node in body if node.op_type == "Gather")
    assert gather.inputs[1] is not None
    layer_and_block = gather.inputs[1].producer()
    assert layer_and_block is not None and layer_and_block.op_type == "Add" and layer_and_block.inputs[1] is not None
    blocks = convenience.get_const_tensor(layer_and_block.inputs[1])
    assert blocks is not None and blocks.numpy().tolist() == list(range(16)), "2 * 24 numbers a row make 16 blocks"


def test_a_graph_without_a_past_is_an_error() -> None:
    model = graph([16])
    past = model.graph.inputs[2]
    past.name = "other"
    with pytest.raises(PassDidNothing, match="no layer reads a past"):
        SpreadPast()(model)
