"""Rotary positions in four nodes are the reference's, to the last bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from looped import value
from stored_weights import session

from mythos_export.graph_parts import Builder
from mythos_export.passes import LowerRotary
from mythos_export.passes.rewriting import PassDidNothing
from reference_model.components.rope import rope_at, rope_frequencies
from reference_model.ops import TorchOps

FLOAT = ir.DataType.FLOAT


def graph(width: int, *, interleaved: bool = True) -> ir.Model:
    inputs = [value("x", FLOAT, ["b", "s", "h", width])]
    inputs += [value(name, FLOAT, ["b", "s", width // 2]) for name in ("cos", "sin")]
    build = Builder("rope")
    out = build.domain_op("RotaryEmbedding", inputs, width=width, interleaved=int(interleaved))
    out.name, out.type, out.shape = "out", ir.TensorType(FLOAT), inputs[0].shape
    made = ir.Graph(inputs, [out], nodes=build.take(), opset_imports={"": 21, "mythos": 1}, name="rope")
    return ir.Model(made, ir_version=10)


@pytest.mark.parametrize("interleaved", [True, False], ids=["adjacent", "halves"])
@pytest.mark.parametrize(("width", "heads"), [(2, 1), (8, 3), (32, 16)])
@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (2, 5), (1, 0)])
def test_it_rotates_as_the_reference_does(width: int, heads: int, batch: int, seq: int, interleaved: bool) -> None:
    model = graph(width, interleaved=interleaved)
    LowerRotary()(model)
    assert [node.op_type for node in model.graph if node.op_type != "Constant"].count("Gather") == 3
    draw = torch.Generator().manual_seed(0)
    x = torch.randn((batch, seq, heads, width), generator=draw)
    positions = torch.randint(0, 4000, (batch, seq), generator=draw)
    rope = rope_at(positions, rope_frequencies(width, 10000.0))
    feeds = {"x": x.numpy(), "cos": rope[0].numpy(), "sin": rope[1].numpy()}
    expected = TorchOps().rotate(x, rope, interleaved=interleaved).numpy()
    np.testing.assert_array_equal(session(model).run(None, feeds)[0], expected)


def test_a_graph_without_rotary_positions_is_an_error() -> None:
    model = graph(8)
    LowerRotary()(model)
    with pytest.raises(PassDidNothing, match="holds no RotaryEmbedding"):
        LowerRotary()(model)
