"""Graphs that hold nothing but a mixture of experts in a Loop, and formulations of it that no target uses."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from mythos_export.graph_parts import LOOP_NAME, Builder, given, parameter
from mythos_export.passes.lower_moe import LowerMoEGrouped, swiglu
from mythos_export.passes.rewriting import Lowering
from mythos_export.quantization import ROUTED_EXPERTS

__all__ = ["LowerMoEBranched", "LowerMoEGathered", "Sizes", "looped_mixture", "with_random_weights"]

_ALIGNMENT = 4096


class Sizes(NamedTuple):
    """Of the mixture."""

    experts: int
    top_k: int
    dim: int
    expert_dim: int


def looped_mixture(sizes: Sizes) -> ir.Model:
    """tokens [n, d], chosen and weights [trips, n, k] -> the sum over iterations [n, d], still of our own domain."""
    shapes = {"trips": [], "tokens": ["n", sizes.dim], "chosen": ["t", "n", sizes.top_k]}
    shapes["weights"] = shapes["chosen"]
    inputs = {name: _value(name, shape) for name, shape in shapes.items()}
    index, condition, total = (_value(name, shape) for name, shape in (("index", []), ("condition", []), ("sum", [])))
    condition.type, total.type = ir.TensorType(ir.DataType.BOOL), ir.TensorType(ir.DataType.FLOAT)
    total.shape = ir.Shape(["n", sizes.dim])
    build = Builder("step")
    chosen, weights = (build.op("Gather", [inputs[name], index], axis=0) for name in ("chosen", "weights"))
    for value, dtype in ((chosen, ir.DataType.INT64), (weights, ir.DataType.FLOAT)):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(["n", sizes.top_k])
    mixed = build.op("Add", [total, build.domain_op("SparseMoE", [inputs["tokens"], chosen, weights])])
    always = build.op("Constant", [], value=ir.tensor(True))
    for value, like in ((mixed, total), (always, condition)):
        value.type, value.shape = like.type, like.shape
    body = ir.Graph([index, condition, total], [always, mixed], nodes=build.take(), name="body")
    outer = Builder("main")
    nothing = outer.op("ConstantOfShape", [outer.op("Shape", [inputs["tokens"]])])
    loop = ir.Node(
        "", "Loop", [inputs["trips"], None, nothing], [ir.AttrGraph("body", body)], num_outputs=1, name=LOOP_NAME
    )
    result = loop.outputs[0]
    result.name, result.type, result.shape = "mixed", total.type, total.shape
    imports = {"": 21, "mythos": 1}
    nodes = [*outer.take(), loop]
    return ir.Model(ir.Graph(list(inputs.values()), [result], nodes=nodes, opset_imports=imports), ir_version=10)


def with_random_weights(model: ir.Model, file: Path) -> None:
    """Give every parameter a value, and write the model; tensors of one shape share their numbers, not their place."""
    draw = np.random.default_rng(0)
    made: dict[object, ir.TensorProtocol] = {}
    for value in model.graph.initializers.values():
        if value.const_value is None:
            assert value.shape is not None and value.dtype is not None
            key = value.dtype, tuple(value.shape), str(value.name).endswith(".scale")
            if key not in made:
                made[key] = _random(draw, value.dtype, value.shape.numpy(), scale=key[2])
            value.const_value = made[key]
    ir.save(model, file, external_data=f"{file.name}.data")


class LowerMoEGathered(Lowering):
    """Each token's experts are copied out of one stack, and multiplied as a batch of matrices."""

    op_type = "SparseMoE"

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        tokens, chosen, weights = given(node)  # [n, d], [n, k], [n, k]
        wide = [self.sizes.experts, self.sizes.dim, self.sizes.expert_dim]
        shapes = {"gate": wide, "up": wide, "down": [wide[0], wide[2], wide[1]]}
        gate, up, down = (
            build.op("Gather", [parameter(main, f"{ROUTED_EXPERTS}.{name}.all", shape), chosen], axis=0)
            for name, shape in shapes.items()
        )  # [n, k, d, i]
        rows = build.op("Unsqueeze", [tokens, build.ints(1, 2)])  # [n, 1, 1, d]
        gated = build.op("MatMul", [rows, gate])
        gated = build.op("Mul", [gated, build.op("Sigmoid", [gated])])
        hidden = build.op("Mul", [gated, build.op("MatMul", [rows, up])])
        done = build.op("Squeeze", [build.op("MatMul", [hidden, down]), build.ints(2)])  # [n, k, d]
        weighed = build.op("Mul", [done, build.op("Unsqueeze", [weights, build.ints(2)])])
        return build.op("ReduceSum", [weighed, build.ints(1)], keepdims=0)


class LowerMoEBranched(LowerMoEGrouped):
    """Grouped, with an `If` around each expert: one without tokens costs no product at all."""

    def run(self, build: Builder, rows: ir.Value, main: ir.Graph, index: int) -> ir.Value:
        count = build.op("Squeeze", [build.op("Shape", [rows], start=0, end=1)])
        some = build.op("Greater", [count, build.op("Squeeze", [build.ints(0)])])
        inner, outer = Builder(f"{build.prefix}.then{index}"), Builder(f"{build.prefix}.else{index}")
        done = swiglu(inner, rows, main, index, self.dim, self.expert_dim)
        none = outer.op("Identity", [rows])
        branches = []
        for name, value, nodes in (("then_branch", done, inner.take()), ("else_branch", none, outer.take())):
            value.type = ir.TensorType(ir.DataType.FLOAT)
            branches.append(ir.AttrGraph(name, ir.Graph([], [value], nodes=nodes, name=f"{name}.{index}")))
        node = ir.Node("", "If", [some], branches, num_outputs=1, name=f"{build.prefix}.if{index}")
        node.outputs[0].name = node.name
        build.nodes.append(node)
        return node.outputs[0]


def _value(name: str, shape: list[int | str]) -> ir.Value:
    dtype = ir.DataType.FLOAT if name in ("tokens", "weights") else ir.DataType.INT64
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _random(draw: np.random.Generator, dtype: ir.DataType, shape: tuple[int, ...], *, scale: bool) -> ir.TensorProtocol:
    if dtype == ir.DataType.FLOAT:
        low, high = (0.001, 0.002) if scale else (-0.02, 0.02)
        return ir.tensor(draw.uniform(low, high, shape).astype(np.float32))
    low, high = (0, 256) if dtype == ir.DataType.UINT8 else (-127, 128)
    return ir.tensor(draw.integers(low, high, shape).astype(dtype.numpy()))
