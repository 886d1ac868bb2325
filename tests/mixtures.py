"""A graph that is nothing but a mixture of experts, for the passes that lower it."""

from __future__ import annotations

import onnx_ir as ir

from mythos_export.graph_parts import Builder
from reference_model.config import MythosConfig

__all__ = ["graph_of_mixture"]


def graph_of_mixture(config: MythosConfig) -> ir.Model:
    """tokens [n, d], chosen and weights [n, k] -> mixture [n, d], still of our own domain."""
    k = config.n_experts_per_tok
    inputs = [
        ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(["n", size]))
        for name, dtype, size in (
            ("tokens", ir.DataType.FLOAT, config.dim),
            ("chosen", ir.DataType.INT64, k),
            ("weights", ir.DataType.FLOAT, k),
        )
    ]
    build = Builder("moe")
    sizes = {"experts": config.n_experts, "top_k": k, "dim": config.dim, "expert_dim": config.expert_dim}
    mixed = build.domain_op("SparseMoE", inputs, **sizes)
    mixed.name, mixed.type, mixed.shape = "mixed", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", config.dim])
    graph = ir.Graph(inputs, [mixed], nodes=build.take(), opset_imports={"": 21, "mythos": 1}, name="moe")
    return ir.Model(graph, ir_version=10)
