"""The `Loop` as so many copies of its body, for runtimes that capture a fixed graph (CUDA graphs).

The signature stays: `n_loops` still says how deep each sequence goes, up to the depth unrolled.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.graph_parts import Builder, flattened_rows, recurrent_loop, state_count

__all__ = ["Unroll"]


class Unroll(ir.passes.InPlacePass):
    """Requires the recurrent `Loop`; ensures that none is left."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        loop = recurrent_loop(graph)
        state: list[ir.Value] = [value for value in loop.inputs[2:] if value is not None]
        scans: list[list[ir.Value]] = [[] for _ in loop.outputs[state_count(loop) :]]
        for index in range(self.depth):
            state, rows = self._copy_body(graph, loop, index, state)
            for scan, value in zip(scans, rows):
                scan.append(value)
        build = Builder("unrolled")
        results = [*state, *(self._stack(build, scan) for scan in scans)]
        graph.insert_before(loop, build.nodes)
        for old, new in zip(loop.outputs, results):
            if (flat := flattened_rows(old)) is not None:
                flat.shape = self._flattened(old, flat.shape)
            if old.is_graph_output():
                new.name, new.type, new.shape = old.name, old.type, self._fixed(old.shape)
            convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(loop, safe=True)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        if any(node.op_type == "Loop" for node in model.graph.all_nodes()):
            raise ir.passes.PostconditionError("Unroll: a Loop is left")

    def _copy_body(
        self, graph: ir.Graph, loop: ir.Node, index: int, state: list[ir.Value]
    ) -> tuple[list[ir.Value], list[ir.Value]]:
        body = loop.attributes["body"].as_graph().clone(allow_outer_scope_values=True)
        build = Builder(f"loop{index}")
        number = build.op("Constant", [], value=ir.tensor(index, dtype=ir.DataType.INT64))
        loop_index, _, *formal_state = list(body.inputs)
        for formal, actual in zip((loop_index, *formal_state), (number, *state)):
            convenience.replace_all_uses_with(formal, actual)
        for node in body:
            node.name = f"loop{index}.{node.name}"
            for value in node.outputs:
                value.name = f"loop{index}.{value.name}"
        for value in list(body.initializers.values()):
            self._take_constant(graph, value, index)
        results = list(body.outputs)[1:]
        body.outputs.clear()
        nodes = list(body)
        body.remove(nodes)
        graph.insert_before(loop, [*build.nodes, *nodes])
        return results[: len(state)], results[len(state) :]

    @staticmethod
    def _take_constant(graph: ir.Graph, value: ir.Value, index: int) -> None:
        assert value.name is not None and value.graph is not None
        value.graph.initializers.pop(value.name)
        value.name = f"loop{index}.{value.name}"
        graph.register_initializer(value)

    @staticmethod
    def _stack(build: Builder, values: list[ir.Value]) -> ir.Value:
        rows = [build.op("Unsqueeze", [value, build.ints(0)]) for value in values]
        return build.op("Concat", rows, axis=0)

    def _flattened(self, scan: ir.Value, rows: ir.Shape | None) -> ir.Shape | None:
        """Of [trips * layers, ...], from the scan [trips, layers, ...]."""
        assert scan.shape is not None and isinstance(scan.shape[1], int)
        return ir.Shape([self.depth * scan.shape[1], *list(rows)[1:]]) if rows is not None else None

    def _fixed(self, shape: ir.Shape | None) -> ir.Shape | None:
        return ir.Shape([self.depth, *list(shape)[1:]]) if shape is not None else None
