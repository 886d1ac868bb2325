"""Three stage graphs become one, with the recurrent step as the body of a `Loop`.

The trip count is the deepest sequence's `n_loops`. What every depth shares (the encoded input, rope
tables, mask, the past) is captured from the outer scope; the state `hidden`, `output` and
`cumulative_p` is carried; each depth's new cache rows leave as scan outputs.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience, tape

from mythos_export.bundle import TensorSpec
from mythos_export.signature import cache_parts, input_specs, output_specs
from mythos_export.trace import TracedStages
from reference_model.config import MythosConfig

__all__ = ["LOOP_NAME", "assemble", "loop_body", "recurrent_loop"]

LOOP_NAME = "recurrent"
_IR_VERSION = 10
_BODY_STATE = ("hidden", "output", "cumulative_p")


def assemble(stages: TracedStages, config: MythosConfig, *, opset: int) -> ir.Model:
    """One graph with the contract's signature, still holding nodes of our own domain.

    The stage graphs are taken apart; do not use them afterwards. Parameters are initialisers of the
    main graph without values.
    """
    parts = cache_parts(config, "fp32")
    inputs = {spec.name: _value(spec) for spec in input_specs(parts)}
    graph = ir.Graph(list(inputs.values()), [], nodes=[], opset_imports={"": opset, "mythos": 1}, name="mythos")

    names = [part.name for part in parts]
    past = [inputs[f"past.{name}"] for name in names]
    encoded, cos, sin, visible, *prelude_rows = _inline(
        graph, stages.prelude, "prelude", [inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"], *past[:2]]
    )
    output, recurrent_rows, halting_depth = _loop(
        graph, stages.step, encoded, [inputs["n_loops"], cos, sin, visible], past[2:4]
    )
    final, *coda_rows = _inline(graph, stages.coda, "coda", [output, cos, sin, visible, *past[4:]])
    logits = _head(graph, final, inputs["input_ids"], inputs["logits_to_keep"], config)

    results = [logits, *prelude_rows, *recurrent_rows, *coda_rows, halting_depth]
    for spec, value in zip(output_specs(config, parts, None), results):
        graph.outputs.append(_named_output(graph, value, spec))
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="mythos-export")


def recurrent_loop(graph: ir.Graph) -> ir.Node:
    """The one `Loop` of an assembled graph."""
    (loop,) = (node for node in graph if node.op_type == "Loop" and node.name == LOOP_NAME)
    return loop


def loop_body(graph: ir.Graph) -> ir.Graph:
    """The body of the recurrent `Loop`."""
    return recurrent_loop(graph).attributes["body"].as_graph()


def _inline(graph: ir.Graph, stage: ir.Graph, name: str, arguments: list[ir.Value]) -> list[ir.Value]:
    """Move a stage's nodes into the graph; returns the stage's outputs."""
    _prefix_names(stage, name)
    for formal, actual in zip(stage.inputs, arguments, strict=True):
        convenience.replace_all_uses_with(formal, actual)
    results = list(stage.outputs)
    stage.outputs.clear()
    _move_initializers(stage, graph, constants=True)
    nodes = list(stage)
    stage.remove(nodes)
    graph.extend(nodes)
    return results


def _loop(
    graph: ir.Graph, body: ir.Graph, encoded: ir.Value, captured: list[ir.Value], past: list[ir.Value]
) -> tuple[ir.Value, list[ir.Value], ir.Value]:
    """Put the `Loop` into the graph; returns the ACT-weighted output, the new rows, the halting depth."""
    _prefix_names(body, "step")
    index, *state, body_encoded, n_loops, cos, sin, visible, first, second = list(body.inputs)
    for formal, actual in zip((body_encoded, n_loops, cos, sin, visible), (encoded, *captured)):
        convenience.replace_all_uses_with(formal, actual)
    _gather_depth(body, index, [first, second], past)
    _move_initializers(body, graph, constants=False)
    _make_loop_signature(body, index, state)

    build = tape.Tape(graph)
    trips = build.op("ReduceMax", [captured[0]], {"keepdims": 0})
    zeros = build.op("ConstantOfShape", [build.op("Shape", [encoded])])
    loop = ir.Node(
        "", "Loop", [trips, None, encoded, zeros, zeros], [ir.AttrGraph("body", body)], num_outputs=6, name=LOOP_NAME, graph=graph
    )
    _, output, _, first_rows, second_rows, running = loop.outputs
    for value, name in zip(loop.outputs, ("hidden", "output", "cumulative_p", "first", "second", "running")):
        value.name = f"loop.{name}"
    counted = build.op("Cast", [running], {"to": ir.DataType.INT64.value})
    return output, [first_rows, second_rows], build.op("ReduceSum", [counted, _ints(graph, "loop.axis", [0])], {"keepdims": 0})


def _gather_depth(body: ir.Graph, index: ir.Value, rows: list[ir.Value], past: list[ir.Value]) -> None:
    """Each depth reads its own rows of the past."""
    anchor = next(iter(body))
    for formal, whole in zip(rows, past):
        gather = ir.Node("", "Gather", [whole, index], {"axis": ir.AttrInt64("axis", 0)}, name=f"step.{whole.name}")
        gather.outputs[0].name = f"step.{whole.name}"
        body.insert_before(anchor, gather)
        convenience.replace_all_uses_with(formal, gather.outputs[0])


def _make_loop_signature(body: ir.Graph, index: ir.Value, state: list[ir.Value]) -> None:
    """Inputs (index, condition, state), outputs (condition, state, scans); it is a counted loop.

    The condition is a constant: a Loop that has a trip count and reads a condition as well is taken
    badly by TensorRT. The three outputs after the scans are for the parity check and stay inside.
    """
    index.name, index.type, index.shape = "loop_index", ir.TensorType(ir.DataType.INT64), ir.Shape([])
    condition = ir.Value(name="condition", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    for value, name in zip(state, _BODY_STATE):
        value.name = name
    body.inputs.clear()
    body.inputs.extend([index, condition, *state])
    always = ir.Node("", "Constant", [], {"value": ir.AttrTensor("value", ir.tensor(True))}, name="always")
    always.outputs[0].name = "always"
    always.outputs[0].type, always.outputs[0].shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
    body.append(always)
    results = list(body.outputs)[:6]
    body.outputs.clear()
    body.outputs.extend([always.outputs[0], *results])
    body.name = "recurrent_step"


def _head(graph: ir.Graph, final: ir.Value, input_ids: ir.Value, keep: ir.Value, config: MythosConfig) -> ir.Value:
    """Logits of the last `keep` positions (all, for 0), with the embedding as output weight."""
    build = tape.Tape(graph)
    zero, one = _ints(graph, "head.zero", [0]), _ints(graph, "head.one", [1])
    seq = build.op("Shape", [input_ids], {"start": 1, "end": 2})
    wanted = build.op("Reshape", [keep, one])
    start = build.op("Max", [build.op("Sub", [seq, wanted]), zero])
    start = build.op("Where", [build.op("Equal", [wanted, zero]), zero, start])
    kept = build.op("Slice", [final, start, seq, one, one])
    flat = build.op("Reshape", [kept, _ints(graph, "head.flat", [-1, config.dim])])
    logits = build.op("Gemm", [flat, graph.initializers["embed.weight"]], {"transB": 1}, name="head")
    batch = build.op("Shape", [input_ids], {"start": 0, "end": 1})
    length = build.op("Sub", [seq, start])
    shape = build.op("Concat", [batch, length, _ints(graph, "head.vocab", [config.vocab_size])], {"axis": 0})
    return build.op("Reshape", [logits, shape])


def _named_output(graph: ir.Graph, value: ir.Value, spec: TensorSpec) -> ir.Value:
    """Give a result its contract name, through an Identity where it is not free to be renamed."""
    if value.producer() is None or value.is_graph_output():
        value = tape.Tape(graph).op("Identity", [value])
    value.name = spec.name
    value.type, value.shape = ir.TensorType(_dtype(spec)), ir.Shape(spec.shape)
    return value


def _value(spec: TensorSpec) -> ir.Value:
    return ir.Value(name=spec.name, type=ir.TensorType(_dtype(spec)), shape=ir.Shape(spec.shape))


def _dtype(spec: TensorSpec) -> ir.DataType:
    return {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}[spec.dtype]


def _ints(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    tensor = ir.tensor(values, dtype=ir.DataType.INT64, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _prefix_names(stage: ir.Graph, name: str) -> None:
    """Make a stage's value names unique in the whole, and drop the tracer's shapes.

    Each stage names its dynamic sizes after its own example inputs; in one graph they would clash.
    Parameters keep upstream's names, and so do the values the contract or the parity check reads.
    """
    for node in stage:
        node.name = f"{name}.{node.name}"
        node.metadata_props.clear()
        for value in node.outputs:
            value.shape = None
            value.metadata_props.clear()
            if "." not in (value.name or "") or value.name.startswith(("new.", "val_")):
                value.name = f"{name}.{value.name}"
    for value in list(stage.initializers.values()):
        if value.const_value is not None:
            value.name = f"{name}.{value.name}"


def _move_initializers(stage: ir.Graph, graph: ir.Graph, *, constants: bool) -> None:
    """Parameters go to the main graph, once each; small constants stay in a loop body."""
    for key, value in list(stage.initializers.items()):
        if value.const_value is not None and not constants:
            continue
        stage.initializers.pop(key)
        if key in graph.initializers:
            convenience.replace_all_uses_with(value, graph.initializers[key])
        else:
            graph.register_initializer(value) if value.const_value is not None else graph.initializers.add(value)
