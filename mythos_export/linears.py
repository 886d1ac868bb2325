"""The linear layers of an assembled graph: which node, on which weight, fed by which value.

Quantisation sees a graph through this list: what it may touch, and which activations share a range.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mythos_export.graph_parts import is_parameter
from mythos_export.weights.names import weights_of
from reference_model.architecture import Architecture, Parameter

__all__ = ["Linear", "find_linears", "served"]

# Ops that hand values on as they are: a range measured before them holds behind them.
_MOVES = frozenset({"Gather", "Identity", "Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class Linear:
    """One MatMul (or the head's Gemm) of an activation with a parameter."""

    node: ir.Node
    weight: ir.Value
    layer: str  # its name in the architecture; of routed experts, that of all
    point: str  # the activation range it reads; layers fed by the same value share it
    root: ir.Value  # the computed value itself, before any node that only moves it
    moves: tuple[ir.Node, ...]  # from the root to the node, in order
    in_loop: bool  # does it run once per depth?


def served(weight: str, architecture: Architecture) -> tuple[Parameter, str] | None:
    """The parameter that a float weight of a graph is made of, and the layer that multiplies with it.

    None for what is no weight of the model, or multiplied with by nothing.
    """
    known = weights_of(architecture).get(weight)
    if known is None or known.layer is None:
        return None
    layer = known.parameter.product if known.layer.lookup else known.layer
    return None if layer is None else (known.parameter, layer.name)


def find_linears(model: ir.Model, architecture: Architecture) -> list[Linear]:
    """All linear layers that may be quantised, in graph order, the body of the Loop included."""
    main, points = model.graph, dict[ir.Value | str, str]()
    linears = []
    for node in main.all_nodes():
        if node.op_type not in ("MatMul", "Gemm") or not is_parameter(node.inputs[1], main):
            continue
        x, weight = node.inputs[:2]
        assert x is not None and weight is not None
        use = served(str(weight.name), architecture)
        if use is None or use[0].role == "control":
            continue
        parameter, layer = use
        root, moves = _root(x, node)
        # every expert has hidden values of its own, and all of them one range
        identity = layer if root is x and parameter.expert is not None else root
        point = points.setdefault(identity, f"{layer}.input")
        linears.append(Linear(node, weight, layer, point, root, moves, in_loop=node.graph is not main))
    return linears


def _root(value: ir.Value, user: ir.Node) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """Back through nodes of the same graph that only move the value."""
    moves: list[ir.Node] = []
    while (node := value.producer()) is not None and node.op_type in _MOVES and node.graph is user.graph:
        source = node.inputs[0]
        if source is None or source.producer() is None:  # a graph's input, or a parameter: not computed here
            break
        moves.insert(0, node)
        value = source
    return value, tuple(moves)
