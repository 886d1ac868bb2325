"""Graphs that hold nothing but a mixture of experts in a Loop, and formulations of it that no target uses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mythos_export.graph_parts import LOOP_NAME, RUNTIME_DOMAIN, Builder, given, parameter
from mythos_export.passes import LowerMoEGrouped
from mythos_export.passes.lower_moe import Sizes, swiglu
from mythos_export.passes.rewriting import Lowering
from mythos_export.quantization import ROUTED_EXPERTS

__all__ = ["LowerMoEBranched", "LowerMoEGathered", "LowerMoEKernel", "Sizes", "looped_mixture"]

_NOT_CHOSEN = -1e4  # a logit whose exponential is 0


def looped_mixture(sizes: Sizes) -> ir.Model:
    """tokens [n, d], chosen and weights [trips, n, k] -> the sum over iterations [n, d], still of our own domain."""
    inputs = {
        "trips": _value("trips", ir.DataType.INT64, []),
        "tokens": _value("tokens", ir.DataType.FLOAT, ["n", sizes.dim]),
        "chosen": _value("chosen", ir.DataType.INT64, ["t", "n", sizes.top_k]),
        "weights": _value("weights", ir.DataType.FLOAT, ["t", "n", sizes.top_k]),
    }
    outer = Builder("main")
    nothing = outer.op("ConstantOfShape", [outer.op("Shape", [inputs["tokens"]])])
    body = ir.AttrGraph("body", _body(inputs, sizes))
    loop = ir.Node("", "Loop", [inputs["trips"], None, nothing], [body], num_outputs=1, name=LOOP_NAME)
    mixed = _like(loop.outputs[0], inputs["tokens"])
    mixed.name = "mixed"
    nodes, imports = [*outer.take(), loop], {"": 21, "mythos": 1}
    return ir.Model(ir.Graph(list(inputs.values()), [mixed], nodes=nodes, opset_imports=imports), ir_version=10)


def _body(captured: dict[str, ir.Value], sizes: Sizes) -> ir.Graph:
    """One iteration: its own routing, gathered by its index, and its mixture added to the sum."""
    index = _value("index", ir.DataType.INT64, [])
    condition = _value("condition", ir.DataType.BOOL, [])
    total = _value("sum", ir.DataType.FLOAT, ["n", sizes.dim])
    build = Builder("step")
    chosen, weights = (build.op("Gather", [captured[name], index], axis=0) for name in ("chosen", "weights"))
    for value, name in ((chosen, "chosen"), (weights, "weights")):
        value.type, value.shape = captured[name].type, ir.Shape(["n", sizes.top_k])
    mixture = _like(build.domain_op("SparseMoE", [captured["tokens"], chosen, weights], **sizes._asdict()), total)
    mixed = _like(build.op("Add", [total, mixture]), total)
    always = _like(build.op("Constant", [], value=ir.tensor(True)), condition)
    return ir.Graph([index, condition, total], [always, mixed], nodes=build.take(), name="body")


def _value(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _like(value: ir.Value, other: ir.Value) -> ir.Value:
    """The value, with the other's type and shape."""
    value.type, value.shape = other.type, other.shape
    return value


class LowerMoEGathered(Lowering):
    """Each token's experts are copied out of one stack, and multiplied as a batch of matrices."""

    op_type = "SparseMoE"

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        """[n, d]."""
        tokens, chosen, weights = given(node)  # [n, d], [n, k], [n, k]
        wide = [self.sizes.experts, self.sizes.dim, self.sizes.expert_dim]
        shapes = {"gate": wide, "up": wide, "down": [wide[0], wide[2], wide[1]]}
        gate, up, down = (
            build.op("Gather", [parameter(main, f"{ROUTED_EXPERTS}.{name}.columns", shape), chosen], axis=0)
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
    """Grouped, with an `If` around each expert: without tokens it computes nothing at all."""

    def expert(self, build: Builder, rows: ir.Value, main: ir.Graph, index: int, sizes: Sizes) -> ir.Value:
        """[m, d] -> [m, d]."""
        some = build.op("Greater", [build.op("Size", [rows]), build.op("Squeeze", [build.ints(0)])])
        busy, idle = Builder(f"{build.prefix}.busy{index}"), Builder(f"{build.prefix}.idle{index}")
        done = swiglu(busy, rows, main, index, sizes)
        none = idle.op("Constant", [], value=ir.tensor(np.empty((0, sizes.dim), np.float32)))
        branches = []
        for name, value, nodes in (("then_branch", done, busy.take()), ("else_branch", none, idle.take())):
            value.type = ir.TensorType(ir.DataType.FLOAT)
            branches.append(ir.AttrGraph(name, ir.Graph([], [value], nodes=nodes, name=f"{name}.{index}")))
        node = ir.Node("", "If", [some], branches, num_outputs=1, name=f"{build.prefix}.If_{index}")
        node.outputs[0].name = str(node.name)
        build.nodes.append(node)
        return node.outputs[0]


class LowerMoEKernel(Lowering):
    """ONNX Runtime's own kernel in float, `com.microsoft::MoE`, routed by logits that leave it no choice.

    Requires weights that sum to 1 for each token: the kernel makes a softmax of the chosen ones' logits.
    """

    op_type = "SparseMoE"

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lower; the model needs the runtime's domain."""
        model.graph.opset_imports[RUNTIME_DOMAIN] = 1
        return super().call(model)

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        """[n, d]."""
        tokens, chosen, weights = given(node)  # [n, d], [n, k], [n, k]
        experts, top_k, dim, expert_dim = self.sizes
        rows = build.op("Shape", [chosen], start=0, end=1)
        shape = build.op("Concat", [rows, build.ints(experts)], axis=0)
        nobody = build.op("ConstantOfShape", [shape], value=ir.tensor([_NOT_CHOSEN], dtype=ir.DataType.FLOAT))
        logits = build.op("ScatterElements", [nobody, chosen, build.op("Log", [weights])], axis=1)  # [n, experts]
        gate_up = parameter(main, f"{ROUTED_EXPERTS}.gate_up.rows", [experts, 2 * expert_dim, dim])
        down = parameter(main, f"{ROUTED_EXPERTS}.down.rows", [experts, dim, expert_dim])
        return build.runtime_op(
            "MoE",
            [tokens, logits, gate_up, None, down],
            k=top_k,
            activation_type="swiglu",
            activation_alpha=1.0,
            activation_beta=0.0,
            swiglu_fusion=1,  # gate and up in alternate rows
            normalize_routing_weights=1,
        )
