"""The traced pieces become one graph, with join, blocks and read-out as the body of a `Loop`.

The trip count is the deepest sequence's `n_loops`. What every depth shares (the encoded input, rope
tables, mask, the past) is captured from the outer scope; the states are carried; each depth's new
cache rows leave as scan outputs. What lies where, and what is carried, is the family's own description
(`reference_model/frame.py`); what goes in and comes out is the signature's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.bundle import TensorSpec
from mythos_export.graph_parts import HEAD_NAME, LOOP_NAME, Builder, parameter
from mythos_export.trace import TracedPiece, TracedPieces
from reference_model.frame import Blocks, Head, Loop, Norm

__all__ = ["assemble"]

_IR_VERSION = 10
_BODY = "step"  # what names in the Loop's body begin with
_SIZES = ("batch", "seq")  # of a call; the first two axes of what passes through blocks

Scope = dict[str, ir.Value]


def assemble(
    traced: TracedPieces, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, opset: int
) -> ir.Model:
    """One graph with this signature, still holding nodes of our own domain.

    A stage without layers needs no cache; where the signature lists one all the same, it is empty. Parameters are
    initializers of the main graph without values.
    """
    values = {spec.name: _value(spec) for spec in inputs}
    graph = ir.Graph(list(values.values()), [], nodes=[], opset_imports={"": opset, "mythos": 1}, name="mythos")
    whole = _Assembly(traced, graph, dict(values))
    whole.inline(graph, traced.embed, "embed", whole.scope)
    for stage in traced.frame.before:
        whole.stage(stage)
    if traced.frame.loop is not None:
        whole.loop(traced.frame.loop)
    for stage in traced.frame.after:
        whole.stage(stage)
    whole.head(traced.frame.head)
    for spec in outputs:
        graph.outputs.append(_named_output(whole.results[spec.name], spec))
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="mythos-export")


@dataclass
class _Assembly:
    """The graph so far."""

    traced: TracedPieces
    graph: ir.Graph
    scope: Scope  # what pieces may read, by name
    results: Scope = field(default_factory=dict)  # outputs of the contract, by name

    def inline(
        self, target: ir.Graph, piece: TracedPiece, prefix: str, scope: Scope, layer: str | None = None
    ) -> Scope:
        """Put a copy of a piece at the end of a graph; adds what it leaves to the scope, and returns that.

        Args:
            prefix: of the names of its nodes.
            layer: what the parameters of a block are named after.
        """
        copy = piece.graph.clone()
        if layer is not None:
            _name_parameters(copy, layer)
        if target is not self.graph:
            self._measure_what_enters(copy, piece)
        left = dict(zip(piece.outputs, _inline(target, self.graph, copy, prefix, scope), strict=True))
        scope |= {name.removeprefix("next."): value for name, value in left.items()}
        return left

    def stage(self, blocks: Blocks) -> None:
        """Lay blocks down outside of the Loop; new rows are stacked."""
        build = Builder(blocks.name)
        block, new = self.traced.blocks[blocks.kind], _stacks(self._parts(blocks))
        for layer, prefix in enumerate(blocks.layers):
            index = build.op("Constant", [], value=ir.tensor(layer, dtype=ir.DataType.INT64))
            rows = self._gather(build, blocks, index)
            self.graph.extend(build.take())
            self.scope |= rows
            left = self.inline(self.graph, block, f"{blocks.name}.{layer}", self.scope, prefix)
            for part, stack in new.items():
                stack.append(build.op("Unsqueeze", [left[f"new.{part}"], build.ints(0)]))
        for part, stack in new.items():
            name = f"{blocks.name}.{part}"
            if stack:
                self.results[f"new.{name}"] = build.op("Concat", stack, axis=0)
            elif f"past.{name}" in self.scope:
                self.results[f"new.{name}"] = _no_rows(build, self.scope["x"], self.scope[f"past.{name}"])
        self.graph.extend(build.take())

    def loop(self, loop: Loop) -> None:
        """Put the Loop into the graph."""
        self.scope["encoded"] = self.scope["x"]
        body, scans = self._body(loop)
        build = Builder("loop")
        trips = build.op("ReduceMax", [self.scope["n_loops"]], keepdims=0)
        starts = self._starts(build, loop)
        self.graph.extend(build.take())
        node = ir.Node(
            "",
            "Loop",
            [trips, None, *starts],
            [ir.AttrGraph("body", body)],
            num_outputs=len(starts) + len(scans),
            name=LOOP_NAME,
            graph=self.graph,
        )
        leaving = dict(zip((*(state.name for state in loop.states), *scans), node.outputs))
        for name, value in leaving.items():
            value.name = f"loop.{name}"
        result = leaving[loop.result]
        if loop.norm is not None:
            result = self._norm(build, result, loop.norm, self.traced.frame.head.dim)
        self.scope["x"] = result
        for part in self._parts(loop.blocks):
            row = self.traced.blocks[loop.blocks.kind].shapes[f"past.{part}"][2:]
            rows = _flat(build, leaving[part], row, len(loop.blocks.layers))
            self.results[f"new.{loop.blocks.name}.{part}"] = rows
        self.results["halting.depth"] = self._halting_depth(build, leaving.get(str(loop.halting)))
        self.graph.extend(build.take())

    def head(self, head: Head) -> None:
        """Logits of the last `logits_to_keep` positions (all, for 0)."""
        build, input_ids = Builder("head"), self.scope["input_ids"]
        zero, one = build.ints(0), build.ints(1)
        seq = build.op("Shape", [input_ids], start=1, end=2)
        wanted = build.op("Reshape", [self.scope["logits_to_keep"], one])
        start = build.op("Max", [build.op("Sub", [seq, wanted]), zero])
        start = build.op("Where", [build.op("Equal", [wanted, zero]), zero, start])
        kept = build.op("Slice", [self.scope["x"], start, seq, one, one])
        if head.norm is not None:
            kept = self._norm(build, kept, head.norm, head.dim)
        flat = build.op("Reshape", [kept, build.ints(-1, head.dim)])
        weight = parameter(self.graph, head.weight, [head.vocab_size, head.dim])
        logits = build.op("Gemm", [flat, weight], transB=1)
        logits.producer().name = HEAD_NAME
        length = build.op("Sub", [seq, start])
        batch = build.op("Shape", [input_ids], start=0, end=1)
        shape = build.op("Concat", [batch, length, build.ints(head.vocab_size)], axis=0)
        self.results["logits"] = build.op("Reshape", [logits, shape])
        self.graph.extend(build.take())

    def _body(self, loop: Loop) -> tuple[ir.Graph, list[str]]:
        """The Loop's body: inputs (index, condition, states), outputs (condition, states, scans); and the scans' names.

        The condition is a constant: a Loop that has a trip count and reads a condition as well is taken
        badly by TensorRT.
        """
        join, read_out = self.traced.join, self.traced.read_out
        assert join is not None and read_out is not None
        index = ir.Value(name="loop_index", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        condition = ir.Value(name="condition", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        shapes = {**join.shapes, **read_out.shapes}
        states = [_state(state.name, shapes[state.name]) for state in loop.states]
        body = ir.Graph([index, condition, *states], [], nodes=[], name="recurrent_step")
        inside = self.scope | {"loop_index": index} | dict(zip((state.name for state in loop.states), states))
        self.inline(body, join, f"{_BODY}.join", inside)
        rows = self._looped_blocks(body, loop.blocks, inside)
        left = self.inline(body, read_out, f"{_BODY}.read_out", inside)
        scans = rows | ({} if loop.halting is None else {loop.halting: left[loop.halting]})
        build = Builder(_BODY)
        always = build.op("Constant", [], value=ir.tensor(True))
        always.type, always.shape = condition.type, condition.shape
        leaving: list[ir.Value] = []
        for value in (*(left[f"next.{state.name}"] for state in loop.states), *scans.values()):
            own = value.producer() is not None and value.graph is body and value not in leaving
            leaving.append(value if own else _typed_like(build.op("Identity", [value]), value))
        body.extend(build.take())
        body.outputs.extend([always, *leaving])
        return body, list(scans)

    def _looped_blocks(self, body: ir.Graph, blocks: Blocks, inside: Scope) -> Scope:
        """Lay k blocks down in the body; returns the new rows of a loop by part: [b, s, ...], or [k, b, s, ...]."""
        count, index = len(blocks.layers), inside["loop_index"]
        block, new = self.traced.blocks[blocks.kind], _stacks(self._parts(blocks))
        for layer, prefix in enumerate(blocks.layers):
            build = Builder(f"{_BODY}.{layer}.past")
            depth = index
            if count > 1:  # loop-major: a shallower sequence needs the first rows only
                per_loop, own = (ir.tensor(number, dtype=ir.DataType.INT64) for number in (count, layer))
                first = build.op("Mul", [index, build.op("Constant", [], value=per_loop)])
                depth = build.op("Add", [first, build.op("Constant", [], value=own)])
            inside |= self._gather(build, blocks, depth)
            body.extend(build.take())
            left = self.inline(body, block, f"{_BODY}.{layer}", inside, prefix)
            for part, stack in new.items():
                stack.append(left[f"new.{part}"])
        if count == 1:
            return {part: stack[0] for part, stack in new.items()}
        build = Builder(f"{_BODY}.rows")
        stacked = {
            part: build.op("Concat", [build.op("Unsqueeze", [row, build.ints(0)]) for row in stack], axis=0)
            for part, stack in new.items()
        }
        for part, value in stacked.items():
            value.type = new[part][0].type
        body.extend(build.take())
        return stacked

    def _measure_what_enters(self, copy: ir.Graph, piece: TracedPiece) -> None:
        """Let a piece in the body read sizes of the call off what enters the loop: no depth changes them."""
        for formal in copy.inputs:
            name = str(formal.name)
            captured = name in self.scope and name != "x"
            if captured or piece.shapes[name][:2] != _SIZES:
                continue
            for node, place in list(formal.uses()):
                if node.op_type == "Shape" and node.attributes.get_int("end", len(_SIZES) + 1) <= len(_SIZES):
                    node.replace_input_with(place, self.scope["encoded"])

    def _starts(self, build: Builder, loop: Loop) -> list[ir.Value]:
        """What the states begin with."""
        encoded = self.scope["encoded"]
        filled: dict[str, ir.Value] = {}

        def fill(number: str) -> ir.Value:
            if number not in filled:
                shape = build.op("Shape", [encoded])
                attributes: dict[str, Any] = {} if number == "zeros" else {"value": ir.tensor([1.0])}
                filled[number] = build.op("ConstantOfShape", [shape], **attributes)
            return filled[number]

        starts = []
        for state in loop.states:
            if state.start == "encoded":
                starts.append(encoded)
            elif state.start == "input":
                starts.append(self.scope.get(f"state.{state.name}") or fill("zeros"))
            else:
                starts.append(fill(state.start))
        return starts

    def _halting_depth(self, build: Builder, running: ir.Value | None) -> ir.Value:
        """Loops that each token ran [b, s], from whether it ran each [t, b, s]; without halting its sequence's."""
        if running is not None:
            counted = build.op("Cast", [running], to=ir.DataType.INT64)
            return build.op("ReduceSum", [counted, build.ints(0)], keepdims=0)
        of_sequence = build.op("Unsqueeze", [self.scope["n_loops"], build.ints(1)])
        return build.op("Expand", [of_sequence, build.op("Shape", [self.scope["input_ids"]])])

    def _norm(self, build: Builder, x: ir.Value, norm: Norm, dim: int) -> ir.Value:
        return build.domain_op("RMSNorm", [x, parameter(self.graph, norm.weight, [dim])], epsilon=norm.epsilon)

    def _parts(self, blocks: Blocks) -> list[str]:
        """What a layer caches."""
        names = self.traced.blocks[blocks.kind].shapes
        return [name.removeprefix("past.") for name in names if name.startswith("past.")]

    def _gather(self, build: Builder, blocks: Blocks, depth: ir.Value) -> Scope:
        """The past of one layer."""
        return {
            f"past.{part}": build.op("Gather", [self.scope[f"past.{blocks.name}.{part}"], depth], axis=0)
            for part in self._parts(blocks)
        }


def _stacks(parts: list[str]) -> dict[str, list[ir.Value]]:
    """New rows by part, one entry a layer."""
    return {part: [] for part in parts}


def _name_parameters(block: ir.Graph, layer: str) -> None:
    """After one layer, `block.attn.wo.weight` becomes `coda.0.attn.wo.weight`."""
    for value in list(block.initializers.values()):
        if value.const_value is None:
            value.name = f"{layer}.{str(value.name).removeprefix('block.')}"


def _inline(target: ir.Graph, main: ir.Graph, piece: ir.Graph, prefix: str, scope: Scope) -> list[ir.Value]:
    """Move a piece's nodes to the end of a graph; returns the piece's outputs."""
    results = list(piece.outputs)
    piece.outputs.clear()
    _prefix_names(piece, prefix)
    arguments = {formal: scope[str(formal.name)] for formal in piece.inputs}
    for formal, actual in arguments.items():
        convenience.replace_all_uses_with(formal, actual)
    _move_initializers(piece, target, main)
    nodes = list(piece)
    piece.remove(nodes)
    target.extend(nodes)
    return [arguments.get(value, value) for value in results]


def _prefix_names(piece: ir.Graph, prefix: str) -> None:
    """Make a piece's names unique in the whole, and drop the tracer's shapes.

    Each piece names its dynamic sizes after its own example inputs; in one graph they would clash.
    Parameters keep upstream's names.
    """
    for node in piece:
        node.name = f"{prefix}.{node.name}"
        node.metadata_props.clear()
        for value in node.outputs:
            value.shape = None
            value.metadata_props.clear()
            value.name = f"{prefix}.{value.name}"
    for value in list(piece.initializers.values()):
        if value.const_value is not None:
            value.name = f"{prefix}.{value.name}"


def _move_initializers(piece: ir.Graph, target: ir.Graph, main: ir.Graph) -> None:
    """Parameters go to the main graph, once each; small constants stay with the nodes, in a body once each."""
    same = {} if target is main else {_content(value): value for value in target.initializers.values()}
    for key, value in list(piece.initializers.items()):
        piece.initializers.pop(key)
        if value.const_value is None:
            if key in main.initializers:
                convenience.replace_all_uses_with(value, main.initializers[key])
            else:
                main.initializers.add(value)
        elif _content(value) in same:
            convenience.replace_all_uses_with(value, same[_content(value)])
        else:
            target.register_initializer(value)


def _content(value: ir.Value) -> tuple[object, ...]:
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype, tuple(tensor.shape), tensor.tobytes()


def _no_rows(build: Builder, x: ir.Value, past: ir.Value) -> ir.Value:
    """The new rows of a stage without layers: [0, b, s, ...]."""
    batch_seq = build.op("Shape", [x], start=0, end=2)
    row = build.op("Shape", [past], start=3)
    return build.op("ConstantOfShape", [build.op("Concat", [build.ints(0), batch_seq, row], axis=0)])


def _flat(build: Builder, rows: ir.Value, row: Sequence[int | str], per_loop: int) -> ir.Value:
    """New rows of all loops [t, k, b, s, *row] -> [t * k, b, s, *row]; of one layer a loop they are that already."""
    if per_loop == 1:
        return rows
    rows.shape = ir.Shape(["trip_count", per_loop, "batch", "seq", *row])
    depth = build.op("Mul", [build.op("Shape", [rows], start=0, end=1), build.ints(per_loop)])
    shape = build.op("Concat", [depth, build.op("Shape", [rows], start=2)], axis=0)
    return build.op("Reshape", [rows, shape], allowzero=1)


def _state(name: str, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def _typed_like(value: ir.Value, other: ir.Value) -> ir.Value:
    value.type = other.type
    return value


def _named_output(value: ir.Value, spec: TensorSpec) -> ir.Value:
    value.name = spec.name
    value.type, value.shape = ir.TensorType(_dtype(spec)), ir.Shape(spec.shape)
    return value


def _value(spec: TensorSpec) -> ir.Value:
    return ir.Value(name=spec.name, type=ir.TensorType(_dtype(spec)), shape=ir.Shape(spec.shape))


def _dtype(spec: TensorSpec) -> ir.DataType:
    return {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}[spec.dtype]
