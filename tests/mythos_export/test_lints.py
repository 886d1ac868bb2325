"""Each lint finds what is planted for it, by name; what the target exports has none of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mythos_export import lints
from mythos_export.bundle import Bundle
from mythos_export.lints import RULES, LintFailed, lint
from reference_model.config import MythosConfig

MakeBundle = Callable[..., Bundle]

HEADER = '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>'


def flat(body: str, inputs: str = "float[2, 4] x", outputs: str = "y", initializers: str = "") -> ir.Model:
    """A graph of these nodes."""
    text = f"{HEADER} g ({inputs}) => (float[a, b] {outputs}) <{initializers}> {{ {body} }}"
    return ir.from_proto(onnx.parser.parse_model(text))


def looped(
    body: str,
    *,
    states: str = "float[2, 4] s",
    condition: str = "",
    results: str = "ok, t",
    always: str = "ok = Constant <value = bool {1}> ()",
    before: str = "",
    start: str = "x",
    made: str = "y",
) -> ir.Model:
    """A graph with a Loop of these nodes in its body, n times."""
    typed = ", ".join(f"{'bool' if index == 0 else 'float[]'} {name}" for index, name in enumerate(results.split(", ")))
    loop = (
        f"{made} = Loop <body = step (int64 i, bool cond, {states}) => ({typed}) {{ {body} {always} }}> "
        f"(n, {condition}, {start})"
    )
    text = f"{HEADER} g (float[2, 4] x, int64 n, bool go) => (float[a, b] y) {{ {before} {loop} }}"
    model = ir.from_proto(onnx.parser.parse_model(text))
    for node in model.graph.all_nodes():
        if node.op_type == "Loop" and not condition:
            node.replace_input_with(1, None)
    return model


COPY = "t = Identity (s)"
PLANTED: dict[str, Callable[[], ir.Model]] = {
    "foreign-domain": lambda: flat("y = com.microsoft.Gelu (x)"),
    "trip-count-and-condition": lambda: looped(COPY, condition="go"),
    "computed-condition": lambda: looped(COPY, always="ok = Identity (cond)"),
    "growing-state": lambda: looped("t = Concat <axis = 0> (s, x)"),
    "differing-states": lambda: looped(
        "t = Identity (s) w = Identity (v)",
        states="float[2, 4] s, float[2, 1] v",
        results="ok, t, w",
        before="z = Constant <value = float[2, 1] {0.0, 0.0}> ()",
        start="x, z",
        made="y, unused",
    ),
    "half-scan": lambda: half_scan(),
    "attention-in-loop": lambda: looped(
        "q = Unsqueeze (s, zero) o = Attention <q_num_heads = 1, kv_num_heads = 1> (q, q, q) t = Squeeze (o, zero)",
        before="zero = Constant <value_ints = [0]> ()",
    ),
    "tensor-scatter-in-loop": lambda: looped(
        "t = TensorScatter <axis = 1> (s, s, zero)", before="zero = Constant <value_ints = [0, 0]> ()"
    ),
    "data-dependent-shape": lambda: flat("i = NonZero (x) y = Cast <to = 1> (i)"),
    "size-from-data": lambda: looped(
        "k = Cast <to = 7> (s) m = ReduceMax <keepdims = 0> (k) o = Unsqueeze (m, zero) "
        "z = ConstantOfShape (o) q = ReduceSum (z) t = Add (s, q)",
        before="zero = Constant <value_ints = [0]> ()",
    ),
    "unsigned": lambda: flat("q = QuantizeLinear (x, s) y = DequantizeLinear (q, s)", initializers="float s = {0.1}"),
    "zero-point": lambda: flat(
        "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)",
        initializers="float s = {0.1}, int8 z = {3}",
    ),
    "other-fp8": lambda: flat(
        "q = QuantizeLinear <output_dtype = 19> (x, s) y = DequantizeLinear (q, s)", initializers="float s = {0.1}"
    ),
    "dynamic-quantization": lambda: flat("q, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s, z)"),
    "integer-product": lambda: flat(
        "i = MatMulInteger (a, w) y = Cast <to = 1> (i)", inputs="int8[2, 4] a, int8[4, 4] w"
    ),
    "changing-scale": lambda: flat(
        "s = ReduceMax <keepdims = 0> (x) q = QuantizeLinear <output_dtype = 3> (x, s) y = DequantizeLinear (q, s)"
    ),
    "quantized-constant": lambda: flat(
        "r = Gather (table, ids) y = Cast <to = 1> (r)",
        inputs="int64[2] ids",
        initializers="int8[2, 4] table = {1, 2, 3, 4, 5, 6, 7, 8}",
    ),
    "partial-block": lambda: partial_block(),
}


def half_scan() -> ir.Model:
    model = looped("t = Identity (s) h = Cast <to = 10> (s)", results="ok, t, h", made="y, rows")
    (loop,) = (node for node in model.graph if node.op_type == "Loop")
    loop.attributes["body"].as_graph().outputs[2].type = ir.TensorType(ir.DataType.FLOAT16)
    loop.outputs[1].type = ir.TensorType(ir.DataType.FLOAT16)
    return model


def partial_block() -> ir.Model:
    model = flat("w = DequantizeLinear <axis = 0, block_size = 32> (q, s) y = MatMul (x, w)", inputs="float[2, 40] x")
    for name, array in (("q", np.ones((40, 4), np.int8)), ("s", np.ones((2, 4), np.float32))):
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
        value.type = ir.TensorType(value.const_value.dtype)
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, used in enumerate(node.inputs):
                if used is not None and used.name == name and used is not value:
                    node.replace_input_with(index, value)
    return model


def test_every_rule_is_planted() -> None:
    assert PLANTED.keys() == RULES.keys()


@pytest.mark.parametrize("rule", PLANTED)
def test_what_is_planted_is_found_and_nothing_else(rule: str) -> None:
    findings = [finding for finding in lint(PLANTED[rule]()) if finding.rule == rule]
    assert findings, f"{rule} was not found"
    # dynamic quantisation is of its nature unsigned, with zero points and scales that are computed
    allowed = {rule} | ({"unsigned", "zero-point", "changing-scale"} if rule == "dynamic-quantization" else set())
    assert {finding.rule for finding in lint(PLANTED[rule]())} <= allowed
    text = str(findings[0])
    assert findings[0].node in text and findings[0].reason in text and findings[0].remedy in text


def test_each_rule_says_something_of_its_own() -> None:
    said = {next(each.reason for each in lint(PLANTED[rule]()) if each.rule == rule) for rule in PLANTED}
    assert len(said) == len(PLANTED)


def test_a_tensor_that_is_too_large() -> None:
    model = flat("y = Identity (x)")
    huge = ir.Value(name="huge", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([1 << 16, 1 << 15]))
    huge.const_value = ir.ExternalTensor("x", 0, 0, ir.DataType.FLOAT16, shape=huge.shape, name="huge")
    model.graph.register_initializer(huge)
    assert [finding.rule for finding in lints._large_tensors(model.graph)] == ["large-tensor"]


def test_the_portable_graph_is_refused_for_its_mixture(tiny_bundle) -> None:  # type: ignore[no-untyped-def]
    """TensorRT-RTX says of it `Data-dependent shapes are only allowed in the top-level scope`."""
    findings = lint(ir.load(tiny_bundle / "model.onnx"))
    assert {finding.rule for finding in findings} == {"size-from-data"}
    assert "SparseMoE" in findings[0].node


def test_an_export_with_a_finding_is_not_kept(
    mla_config: MythosConfig, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mythos_export.passes
    from mythos_export.passes import LowerMoEGrouped

    monkeypatch.setattr(mythos_export.passes, "LowerMoEDense", LowerMoEGrouped)
    with pytest.raises(LintFailed, match=r"model\.onnx: TensorRT would refuse .*SparseMoE.*compute densely"):
        make_bundle(mla_config, target="tensorrt")
