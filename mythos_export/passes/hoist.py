"""What every depth computes anew though it is the same for all, moved out of the Loop.

Sizes, shapes, limits of the mask, the injection's transition: small things, but each is a node. Between two runs of it
all weights of the block have passed through the caches, so that a node costs microseconds at every depth.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.graph_parts import is_parameter, recurrent_loop
from mythos_export.passes.rewriting import PassDidNothing

__all__ = ["Hoist"]

_ELEMENTWISE = frozenset({"Add", "Clip", "Div", "Exp", "Mul", "Neg", "Sub"})


class Hoist(ir.passes.InPlacePass):
    """Moves the nodes of the body that read only constants and what is captured in front of the Loop.

    Nodes that read a parameter stay, unless they compute element by element: a weight's transposition or
    dequantisation has to stand beside its product. Requires the `Loop`, and states that keep their shape, as far as
    shapes are known; ensures nothing about graphs without such nodes, and raises PassDidNothing there.
    """

    def requires(self, model: ir.Model) -> None:
        loop = recurrent_loop(model.graph)
        body = loop.attributes["body"].as_graph()
        for start, state, result in zip(loop.inputs[2:], body.inputs[2:], body.outputs[1:]):
            for value in (state, result):
                if start is not None and not _may_agree(start.shape, value.shape):
                    raise ir.passes.PreconditionError(
                        f"Hoist: {value.name} has shape {value.shape}, and the Loop begins with {start.shape}"
                    )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        main, loop = model.graph, recurrent_loop(model.graph)
        body = loop.attributes["body"].as_graph()
        _measure_the_start(body, loop)
        moved = _invariant(body, main)
        if not moved:
            raise PassDidNothing("Hoist: every node of the body depends on the depth")
        copies: dict[ir.Value, ir.Node] = {}  # by constant of the body
        for node in moved:
            _take_constants_along(node, body, copies)
            body.remove(node)
        main.insert_before(loop, [*copies.values(), *moved])
        return ir.passes.PassResult(model, modified=True)


def _may_agree(one: ir.Shape | None, other: ir.Shape | None) -> bool:
    """Whether two shapes have one rank and no different numbers; what is not known may be anything."""
    if one is None or other is None:
        return True
    numbers = [(a, b) for a, b in zip(one, other) if isinstance(a, int) and isinstance(b, int)]
    return len(one) == len(other) and all(a == b for a, b in numbers)


def _measure_the_start(body: ir.Graph, loop: ir.Node) -> None:
    """Read a state's shape off what the Loop begins with: it has that shape at every depth."""
    for state, start in zip(body.inputs[2:], loop.inputs[2:]):  # behind index and condition
        for node, index in state.uses():
            if node.op_type == "Shape":
                node.replace_input_with(index, start)


def _invariant(body: ir.Graph, main: ir.Graph) -> list[ir.Node]:
    """Nodes of the body that compute the same at every depth, in order; constants are not counted as computing."""
    varying, results = {*body.inputs}, {*body.outputs}
    found = []
    for node in body:
        if node.op_type == "Constant":
            continue
        given = [value for value in node.inputs if value is not None]
        elementwise = node.domain == "" and node.op_type in _ELEMENTWISE
        needed_here = not elementwise and any(is_parameter(value, main) for value in given)
        depends = needed_here or any(value in varying for value in given)
        holds_graph = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        if depends or holds_graph or results & {*node.outputs}:
            varying.update(node.outputs)
        else:
            found.append(node)
    return found


def _take_constants_along(node: ir.Node, body: ir.Graph, copies: dict[ir.Value, ir.Node]) -> None:
    """Let the node read copies of the body's constants: the body may still need its own."""
    for index, value in enumerate(node.inputs):
        content = None if value is None else _constant(value, body)
        if value is None or content is None:
            continue
        if value not in copies:
            copy = ir.Node("", "Constant", [], [ir.AttrTensor("value", content)], name=f"{value.name}.hoisted")
            copy.outputs[0].name, copy.outputs[0].type = copy.name, value.type
            copies[value] = copy
        node.replace_input_with(index, copies[value].outputs[0])


def _constant(value: ir.Value, body: ir.Graph) -> ir.TensorProtocol | None:
    """What a constant of the body holds; None for any other value."""
    if body.initializers.get(str(value.name)) is value:
        return value.const_value
    producer = value.producer()
    if producer is None or producer.graph is not body or producer.op_type != "Constant":
        return None
    return convenience.get_const_tensor(value)
