"""Half precision where it is safe: big weights, their MatMuls, and the cache.

The residual stream, norms, softmax, router, halting, depth LoRA and injection stay in fp32: a looped
block feeds its own rounding errors back, and these are cheap. New cache rows are rounded before they
are attended to, so a token sees the same rows in the call that makes them and in every later one.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.graph_parts import LOOP_NAME, Builder, is_parameter
from mythos_export.passes.rewriting import PassDidNothing

__all__ = ["ReducePrecision"]

_KEPT = ("recurrent.act.", "recurrent.lora.", "recurrent.injection.", "recurrent.block.ffn.router")
# Ops that move data without computing: they keep the type of what they move.
_MOVES = frozenset({"Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})


class ReducePrecision(ir.passes.InPlacePass):
    """Stores big weights and the cache in `storage`, and computes their MatMuls in `compute`.

    Requires big weights; ensures that every cache tensor of the signature is stored so.
    """

    def __init__(self, storage: ir.DataType, *, compute: ir.DataType) -> None:
        self.storage, self.compute = storage, compute

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        main = model.graph
        self._main = main
        self._half: set[ir.Value] = set()
        self._casts: dict[tuple[ir.Graph, ir.Value], ir.Value] = {}
        weights = [value for value in main.initializers.values() if self._is_big(value)]
        if not weights:
            raise PassDidNothing("ReducePrecision: no weight to store in half precision")
        for value in (*weights, *(value for value in main.inputs if str(value.name).startswith("past."))):
            self._mark(value)
        for row in list(self._row_sources(main)):
            self._round(row)
        self._rewrite(main)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        for value in (*model.graph.inputs, *model.graph.outputs):
            if str(value.name).startswith(("past.", "new.")) and value.dtype != self.storage:
                raise ir.passes.PostconditionError(f"ReducePrecision: {value.name} is still {value.dtype}")

    def _is_big(self, value: ir.Value) -> bool:
        matrix = value.shape is not None and len(value.shape) > 1
        return is_parameter(value, self._main) and matrix and not str(value.name).startswith(_KEPT)

    def _mark(self, value: ir.Value) -> None:
        value.type = ir.TensorType(self.storage)
        self._half.add(value)

    def _row_sources(self, main: ir.Graph) -> Iterator[ir.Value]:
        """The values that new cache rows are made of, behind the stacking of layers and the Loop's scans."""
        pending = [value for value in main.outputs if str(value.name).startswith("new.")]
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is not None and node.name == LOOP_NAME:
                pending.append(node.attributes["body"].as_graph().outputs[node.outputs.index(value) + 1])
            elif node is not None and _flattens_scans(node):
                pending.extend(node.inputs[:1])  # type: ignore[arg-type]  # a Reshape has its first input
            elif node is not None and node.op_type in ("Concat", "Unsqueeze"):
                pending.extend(part for part in node.inputs[: None if node.op_type == "Concat" else 1] if part)
            else:
                yield value

    def _round(self, row: ir.Value) -> None:
        producer = row.producer()
        assert producer is not None and producer.graph is not None
        build = Builder(f"{row.name}.rounded")
        rounded = build.op("Cast", [row], to=self.storage)
        rounded.shape = row.shape
        if row in self._main.outputs:  # the rows of a stage without layers
            rounded.name, row.name = row.name, f"{row.name}.exact"
        convenience.replace_all_uses_with(row, rounded, replace_graph_outputs=True)
        build.nodes[0].replace_input_with(0, row)
        producer.graph.insert_after(producer, build.nodes)
        self._mark(rounded)

    def _rewrite(self, graph: ir.Graph) -> None:
        for node in list(graph):
            if node.op_type == "Loop":
                body = node.attributes["body"].as_graph()
                self._rewrite(body)
                self._inputs_to(node, graph, ir.DataType.FLOAT)  # without a prelude it begins with the table's own rows
                for value, inner in zip(node.outputs, body.outputs[1:]):
                    if inner in self._half:
                        self._mark(value)
            elif node.op_type in ("MatMul", "Gemm") and self.compute == self.storage and not self._kept(node):
                self._halve(node, graph)
            elif node.op_type in _MOVES and node.inputs[0] in self._half:
                for value in node.outputs:
                    self._mark(value)
            elif node.op_type not in ("Cast", "Shape"):  # a size is the same in any type
                self._inputs_to(node, graph, ir.DataType.FLOAT)

    @staticmethod
    def _kept(node: ir.Node) -> bool:
        weight = node.inputs[1]
        return weight is not None and str(weight.name).startswith(_KEPT)

    def _halve(self, node: ir.Node, graph: ir.Graph) -> None:
        """Compute a MatMul in half precision and hand its result on in fp32."""
        self._inputs_to(node, graph, self.storage)
        out = node.outputs[0]
        build = Builder(f"{out.name}.as_float")
        widened = build.op("Cast", [out], to=ir.DataType.FLOAT)
        convenience.replace_all_uses_with(out, widened, replace_graph_outputs=True)
        build.nodes[0].replace_input_with(0, out)
        graph.insert_after(node, build.nodes)
        widened.type, out.type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(self.storage)

    def _inputs_to(self, node: ir.Node, graph: ir.Graph, dtype: ir.DataType) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and (value in self._half) != (dtype == self.storage):
                node.replace_input_with(index, self._cast(value, dtype, node, graph))

    def _cast(self, value: ir.Value, dtype: ir.DataType, user: ir.Node, graph: ir.Graph) -> ir.Value:
        """The value in the other type; a weight is cast in the main graph, where a runtime folds it at load."""
        at_home = is_parameter(value, self._main)
        home = self._main if at_home else graph
        if (home, value) not in self._casts:
            build = Builder(f"{value.name}.in_{graph.name}.as_{dtype.name.lower()}")
            result = build.op("Cast", [value], to=dtype)
            result.type = ir.TensorType(dtype)
            home.insert_before(next(iter(home)) if at_home else user, build.nodes)
            self._casts[home, value] = result
        return self._casts[home, value]


def _flattens_scans(node: ir.Node) -> bool:
    """Does it put the layers of a Loop's scan, [trips, layers, ...], into one row?"""
    source = node.inputs[0].producer() if node.op_type == "Reshape" and node.inputs[0] is not None else None
    return source is not None and source.name == LOOP_NAME
