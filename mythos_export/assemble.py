"""The stage graphs become one, with the recurrent step as the body of a `Loop`.

The trip count is the deepest sequence's `n_loops`. What every depth shares (the encoded input, rope
tables, mask, the past) is captured from the outer scope; the state `hidden`, `output` and
`cumulative_p` is carried; each depth's new cache rows leave as scan outputs.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.bundle import TensorSpec
from mythos_export.graph_parts import HEAD_NAME, LOOP_NAME, Builder, parameter
from mythos_export.signature import cache_parts, input_specs, output_specs
from mythos_export.trace import TracedStages
from reference_model.layers import RMSNorm
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

__all__ = ["assemble"]

_IR_VERSION = 10
_BODY_STATE = ("hidden", "output", "cumulative_p")


def assemble(stages: TracedStages, config: MythosConfig, *, opset: int) -> ir.Model:
    """One graph with the contract's signature, still holding nodes of our own domain.

    The stage graphs are taken apart; do not use them afterwards. Parameters are initialisers of the
    main graph without values.
    """
    parts = cache_parts(architecture(config), "fp32")
    inputs = {spec.name: _value(spec) for spec in input_specs(parts)}
    graph = ir.Graph(list(inputs.values()), [], nodes=[], opset_imports={"": opset, "mythos": 1}, name="mythos")

    past = [inputs[f"past.{part.name}"] for part in parts]
    tokens = [inputs[name] for name in ("input_ids", "attention_mask", "position_ids")]
    embedded, *shared = _inline(graph, stages.embed, "embed", tokens)
    encoded, prelude_rows = _layers(graph, stages.block, "prelude", config.prelude_layers, embedded, shared, past[:2])
    output, recurrent_rows, halting_depth = _loop(graph, stages.step, encoded, [inputs["n_loops"], *shared], past[2:4])
    final, coda_rows = _layers(graph, stages.block, "coda", config.coda_layers, output, shared, past[4:])
    logits = _head(graph, final, inputs["input_ids"], inputs["logits_to_keep"], config)

    results = [logits, *prelude_rows, *recurrent_rows, *coda_rows, halting_depth]
    for spec, value in zip(output_specs(config.vocab_size, parts, None), results):
        graph.outputs.append(_named_output(value, spec))
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="mythos-export")


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


def _layers(
    graph: ir.Graph,
    block: ir.Graph,
    stage: str,
    count: int,
    x: ir.Value,
    shared: list[ir.Value],
    past: list[ir.Value],
) -> tuple[ir.Value, list[ir.Value]]:
    """Lay the dense block down `count` times; returns the outcome and the stacked new rows."""
    build = Builder(stage)
    stacked: list[list[ir.Value]] = [[], []]
    for layer in range(count):
        index = build.op("Constant", [], value=ir.tensor(layer, dtype=ir.DataType.INT64))
        rows = [build.op("Gather", [part, index], axis=0) for part in past]
        graph.extend(build.take())
        x, *new = _inline(graph, _named_layer(block, f"{stage}.{layer}"), f"{stage}.{layer}", [x, *shared, *rows])
        for stack, value in zip(stacked, new):
            stack.append(build.op("Unsqueeze", [value, build.ints(0)]))
    results = [_stack(build, stack, x, part) for stack, part in zip(stacked, past)]
    graph.extend(build.take())
    return x, results


def _named_layer(block: ir.Graph, layer: str) -> ir.Graph:
    """A copy of the block whose parameters are those of one layer."""
    copy = block.clone()
    for value in list(copy.initializers.values()):
        if value.const_value is None:
            value.name = f"{layer}.{str(value.name).removeprefix('block.')}"
    return copy


def _stack(build: Builder, rows: list[ir.Value], x: ir.Value, past: ir.Value) -> ir.Value:
    """[b, s, ...] of each layer -> [layers, b, s, ...]; a stage without layers gives no rows of that shape."""
    if rows:
        return build.op("Concat", rows, axis=0)
    batch_seq = build.op("Shape", [x], start=0, end=2)
    row = build.op("Shape", [past], start=3)
    return build.op("ConstantOfShape", [build.op("Concat", [build.ints(0), batch_seq, row], axis=0)])


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

    build = Builder("loop")
    trips = build.op("ReduceMax", [captured[0]], keepdims=0)
    zeros = build.op("ConstantOfShape", [build.op("Shape", [encoded])])
    graph.extend(build.take())
    carried = [trips, None, encoded, zeros, zeros]
    loop = ir.Node("", "Loop", carried, [ir.AttrGraph("body", body)], num_outputs=6, name=LOOP_NAME, graph=graph)
    for value, name in zip(loop.outputs, ("hidden", "output", "cumulative_p", "first", "second", "running")):
        value.name = f"loop.{name}"
    _, output, _, first_rows, second_rows, running = loop.outputs
    counted = build.op("Cast", [running], to=ir.DataType.INT64)
    depth = build.op("ReduceSum", [counted, build.ints(0)], keepdims=0)
    graph.extend(build.take())
    return output, [first_rows, second_rows], depth


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
    build = Builder("head")
    zero, one = build.ints(0), build.ints(1)
    seq = build.op("Shape", [input_ids], start=1, end=2)
    wanted = build.op("Reshape", [keep, one])
    start = build.op("Max", [build.op("Sub", [seq, wanted]), zero])
    start = build.op("Where", [build.op("Equal", [wanted, zero]), zero, start])
    kept = build.op("Slice", [final, start, seq, one, one])
    kept = build.domain_op("RMSNorm", [kept, parameter(graph, "norm.weight", [config.dim])], epsilon=RMSNorm.eps)
    flat = build.op("Reshape", [kept, build.ints(-1, config.dim)])
    logits = build.op("Gemm", [flat, graph.initializers["embed.weight"]], transB=1)
    logits.producer().name = HEAD_NAME
    length = build.op("Sub", [seq, start])
    batch = build.op("Shape", [input_ids], start=0, end=1)
    shape = build.op("Concat", [batch, length, build.ints(config.vocab_size)], axis=0)
    result = build.op("Reshape", [logits, shape])
    graph.extend(build.take())
    return result


def _named_output(value: ir.Value, spec: TensorSpec) -> ir.Value:
    value.name = spec.name
    value.type, value.shape = ir.TensorType(_dtype(spec)), ir.Shape(spec.shape)
    return value


def _value(spec: TensorSpec) -> ir.Value:
    return ir.Value(name=spec.name, type=ir.TensorType(_dtype(spec)), shape=ir.Shape(spec.shape))


def _dtype(spec: TensorSpec) -> ir.DataType:
    return {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}[spec.dtype]


def _prefix_names(stage: ir.Graph, name: str) -> None:
    """Make a stage's names unique in the whole, and drop the tracer's shapes.

    Each stage names its dynamic sizes after its own example inputs; in one graph they would clash.
    Parameters keep upstream's names.
    """
    for node in stage:
        node.name = f"{name}.{node.name}"
        node.metadata_props.clear()
        for value in node.outputs:
            value.shape = None
            value.metadata_props.clear()
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
