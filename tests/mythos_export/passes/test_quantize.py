"""Linear layers by explicit Q/DQ: results against the definition, on one graph with each kind of layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from mythos_export.graph_parts import HEAD_NAME, LOOP_NAME, Builder, parameter, sizes
from mythos_export.linears import find_linears
from mythos_export.passes import Quantize, Tidy
from mythos_export.passes.rewriting import PassDidNothing
from mythos_export.quantization import QUANTIZED, Choices, MissingRange
from mythos_export.targets import TARGETS
from mythos_export.weights.names import read_name
from mythos_export.weights.store import Quantizer
from reference_model.architecture import (
    LOOP,
    WHOLE,
    Architecture,
    Control,
    Expert,
    Head,
    Layer,
    Loop,
    Parameter,
    Stage,
    State,
    View,
    Work,
)

Float = NDArray[np.float32]

VOCAB, DIM, WIDE, HEADS, RANK, ROWS = 11, 48, 40, 3, 6, 5
LARGEST = {"int8": 127, "fp8": 448}
LOOPS = 5

WQ, KEY, WO = (f"recurrent.block.attn.{name}" for name in ("wq", "kv_up.key", "wo"))
EXPERT = "recurrent.block.ffn.routed_experts.*"
UP = "coda.0.ffn.up"
LAYERS = [UP, "head", WQ, KEY, WO, f"{EXPERT}.gate", f"{EXPERT}.down"]
# one range: the layers that the same value feeds, however it is moved on its way
POINTS = {f"{UP}.input": 1, "head.input": 1, f"{WQ}.input": LOOPS, f"{WO}.input": LOOPS, f"{EXPERT}.down.input": LOOPS}
WEIGHTS = {
    "embed.weight": (VOCAB, DIM),
    f"{UP}.weight.T": (DIM, WIDE),
    f"{WQ}.weight.T": (DIM, WIDE),
    f"{WQ.replace('wq', 'kv_up')}.weight.key": (HEADS, DIM // HEADS, RANK),
    f"{WO}.weight.T": (DIM, DIM),
    **{f"{EXPERT.replace('*', str(i))}.{name}.weight.T": (DIM, WIDE) for i in (0, 1) for name in ("gate", "down")},
    "recurrent.block.ffn.router.weight.T": (DIM, 2),  # never quantised
}
ROUTER = "recurrent.block.ffn.router.weight.T"


def linear(module: str, stage: str, shape: tuple[int, int], layer: Layer, expert: Expert | None = None) -> Parameter:
    return Parameter(f"{module}.weight", shape, "linear", stage, "layers", (layer,), expert=expert)


def described() -> Architecture:
    """What the graph below is made of: no model, but one layer of each kind."""
    table = (Layer("head", DIM), Layer("embed", DIM, WHOLE, lookup=True))
    attention, group = "recurrent.block.attn", EXPERT.removesuffix(".*")
    control = Control("recurrent.block.ffn.router*", "router")
    experts = [
        linear(f"{group}.{index}.{name}", LOOP, (WIDE, DIM), Layer(f"{EXPERT}.{name}", DIM), Expert(group, index, name))  # type: ignore[arg-type]
        for index in (0, 1)
        for name in ("gate", "down")
    ]
    return Architecture(
        family="one of each",
        vocab_size=VOCAB,
        dim=DIM,
        max_positions=1,
        before=(),
        loop=Loop(Stage(LOOP, "any", 1), (State("state", "encoded", DIM),), "last", LOOPS, LOOPS, may_exceed=True),
        after=(Stage("coda", "any", 1),),
        head=Head(tied=True, norm=False),
        cache=(),
        parameters=(
            Parameter("embed.weight", (VOCAB, DIM), "table", "embedding", "table", table),
            linear(UP, "coda", (WIDE, DIM), Layer(UP, DIM)),
            linear(WQ, LOOP, (WIDE, DIM), Layer(WQ, DIM)),
            linear(f"{attention}.kv_up", LOOP, (DIM, RANK), Layer(KEY, DIM // HEADS, View(".key", groups=HEADS))),
            linear(WO, LOOP, (DIM, DIM), Layer(WO, DIM)),
            *experts,
            Parameter(ROUTER.removesuffix(".T"), (2, DIM), "control", LOOP, "router", (Layer("router", DIM),), control),
        ),
        work=Work(HEADS, DIM // HEADS, DIM, WIDE),
    )


MODEL = described()


def floats() -> dict[str, Float]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in WEIGHTS.items()}


def float_graph() -> ir.Model:
    """All kinds of linear layers, each result an output; what loops grows threefold at every depth."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="main")
    ids, trips = _input("ids", ir.DataType.INT64, ["n"]), _input("trips", ir.DataType.INT64, [])
    x = _input("x", ir.DataType.FLOAT, [ROWS, DIM])
    graph.inputs.extend([ids, x, trips])
    build = Builder("main")
    table = parameter(graph, "embed.weight", WEIGHTS["embed.weight"])
    results = {"embedded": build.op("Gather", [table, ids], axis=0)}
    computed = build.op("Mul", [x, build.scalar(1.0)])
    results[UP] = build.op("MatMul", [computed, _weight(graph, f"{UP}.weight.T")])
    results["head"] = build.op("Gemm", [build.op("Neg", [computed]), table], transB=1)
    results["head"].producer().name = HEAD_NAME
    body, names = _body(graph)
    graph.extend(build.take())
    loop = ir.Node(
        "", "Loop", [trips, None, x], [ir.AttrGraph("body", body)], num_outputs=1 + len(names), name=LOOP_NAME
    )
    loop.outputs[0].name = "loop.state"
    graph.append(loop)
    results |= dict(zip(names, loop.outputs[1:]))
    for name, value in results.items():
        value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([None] * (2 if name in ("embedded", UP, "head") else 4 if name == KEY else 3))
        graph.outputs.append(value)
    return ir.Model(graph, ir_version=10)


def _body(main: ir.Graph) -> tuple[ir.Graph, list[str]]:
    index, condition = _input("loop_index", ir.DataType.INT64, []), _input("condition", ir.DataType.BOOL, [])
    state = _input("state", ir.DataType.FLOAT, [ROWS, DIM])
    build = Builder("body")
    a = build.op("Mul", [state, build.scalar(1.0)])
    heads = build.op("Transpose", [build.op("Reshape", [a, build.ints(ROWS, HEADS, -1)])], perm=[1, 0, 2])
    results = {
        WQ: build.op("MatMul", [a, _weight(main, f"{WQ}.weight.T")]),
        KEY: build.op("MatMul", [heads, _weight(main, f"{WQ.replace('wq', 'kv_up')}.weight.key")]),
        WO: build.op("MatMul", [build.op("Neg", [a]), _weight(main, f"{WO}.weight.T")]),
        "router": build.op("MatMul", [a, _weight(main, ROUTER)]),
    }
    groups = build.op("Split", [a, build.ints(2, ROWS - 2)], outputs=2, axis=0)
    for expert, rows in enumerate(groups):
        gate, down = (f"{EXPERT.replace('*', str(expert))}.{name}" for name in ("gate", "down"))
        results[gate] = build.op("MatMul", [rows, _weight(main, f"{gate}.weight.T")])
        hidden = build.op("Mul", [rows, build.scalar(0.5)])
        results[down] = build.op("MatMul", [hidden, _weight(main, f"{down}.weight.T")])
    after = build.op("Mul", [a, build.scalar(3.0)])
    after.name, after.type, after.shape = "after", ir.TensorType(ir.DataType.FLOAT), state.shape
    always = build.op("Constant", [], value=ir.tensor(True))
    always.type, always.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
    for name, value in results.items():
        value.name, value.type = f"body.{name}", ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([None] * (3 if name == KEY else 2))
    graph = ir.Graph([index, condition, state], [always, after, *results.values()], nodes=build.take(), name="body")
    return graph, list(results)


def _input(name: str, dtype: ir.DataType, shape: list[Any]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _weight(graph: ir.Graph, name: str) -> ir.Value:
    return parameter(graph, name, WEIGHTS[name])


def limits(kind: str) -> dict[str, list[float]]:
    """Of each activation: about a third of what it reaches, so that some values saturate."""
    found = {}
    for point, depths in POINTS.items():
        by_depth = [0.7 * 3**depth for depth in range(depths)]
        shared = kind == "shared" or (kind == "auto" and "down" in point)
        found[point] = [max(by_depth)] if shared else by_depth
    return found


def quantized(precision: str, limits: dict[str, list[float]], *keep: str) -> ir.Model:
    model = float_graph()
    Quantize(QUANTIZED[precision], Choices(limits, frozenset(keep)), MODEL)(model)
    Tidy()(model)
    return model


@dataclass
class Runtime:
    """A graph with its weights in ONNX Runtime, and what it stores."""

    model: ir.Model
    precision: str
    optimised: bool = False
    stored: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain = floats()
        quantizer = Quantizer(lambda name: plain["embed.weight"].T if name == "embed.weight.T" else plain[name], MODEL)
        for name, value in self.model.graph.initializers.items():
            if value.const_value is None:
                kind = read_name(name)
                value.const_value = ir.Tensor(plain[name], name=name) if kind is None else quantizer.tensor(kind, name)
                self.stored[name] = value.const_value.numpy()
        content = ir.to_proto(self.model).SerializeToString()
        onnx.checker.check_model(content, full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        settings = dict(TARGETS["portable"].session.get(self.precision, {}))
        disabled = settings.pop("disabled_optimizers", "").split(",")
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        if not self.optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(content, options, providers, disabled_optimizers=disabled)

    def __call__(self, loops: int = LOOPS) -> dict[str, Float]:
        names = [output.name for output in self.session.get_outputs()]
        feeds = {"ids": np.array([3, 0, 10, 3]), "x": inputs(), "trips": np.array(loops)}
        return dict(zip(names, self.session.run(names, feeds)))

    def weight(self, name: str) -> Float:
        """As a quantised graph computes with it: number times scale."""
        (numbers,) = (
            stored for stored in self.stored if stored.startswith(f"{name}.") and not stored.endswith("scale")
        )
        levels, scale = self.stored[numbers].astype(np.float32), self.stored[f"{numbers}.scale"]
        if self.precision == "int4":
            scale = np.repeat(scale, 32, axis=-2)[..., : levels.shape[-2], :]
        return levels * scale


def inputs() -> Float:
    x = np.random.default_rng(1).standard_normal((ROWS, DIM), dtype=np.float32)
    x[0, :4] = 0.5 * 0.7 / 127 * np.array([1, 3, -1, -3])  # halfway between two numbers of int8
    return x


def rounded(x: Float, limits: list[float], depth: int, precision: str) -> Float:
    """QuantizeLinear and DequantizeLinear; by depth as a multiplication before and one behind."""
    if precision == "int4":
        return x
    scales = np.array(limits, np.float32) / np.float32(LARGEST[precision])
    scale = scales[min(depth, len(scales) - 1)]
    steps = x / scale if len(scales) == 1 else x * (np.float32(1) / scale)
    if precision == "fp8":
        return steps.clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    return np.rint(steps).clip(-128, 127) * scale


def wanted(runtime: Runtime, limits: dict[str, list[float]], loops: int = LOOPS) -> Iterator[tuple[str, Float]]:
    """Every quantised layer's result."""
    x, precision = inputs(), runtime.precision
    head = (
        runtime.weight("embed.weight.T")
        if precision != "int8"
        else runtime.stored["embed.weight.rows"].T * (runtime.stored["embed.weight.rows.scale"])
    )
    yield UP, rounded(x, limits.get(f"{UP}.input", []), 0, precision) @ runtime.weight(f"{UP}.weight.T")
    yield "head", rounded(-x, limits.get("head.input", []), 0, precision) @ head
    results: dict[str, list[Float]] = {}
    state = x
    for depth in range(loops):
        a = rounded(state, limits.get(f"{WQ}.input", []), depth, precision)
        half = rounded(state * np.float32(0.5), limits.get(f"{EXPERT}.down.input", []), depth, precision)
        minus = rounded(-state, limits.get(f"{WO}.input", []), depth, precision)
        key = runtime.weight(f"{WQ.replace('wq', 'kv_up')}.weight.key")
        results.setdefault(WQ, []).append(a @ runtime.weight(f"{WQ}.weight.T"))
        results.setdefault(KEY, []).append(a.reshape(ROWS, HEADS, -1).transpose(1, 0, 2) @ key)
        results.setdefault(WO, []).append(minus @ runtime.weight(f"{WO}.weight.T"))
        for expert, rows in enumerate((slice(2), slice(2, None))):
            gate, down = (f"{EXPERT.replace('*', str(expert))}.{name}" for name in ("gate", "down"))
            results.setdefault(gate, []).append(a[rows] @ runtime.weight(f"{gate}.weight.T"))
            results.setdefault(down, []).append(half[rows] @ runtime.weight(f"{down}.weight.T"))
        state = state * np.float32(3)
    for name, depths in results.items():
        yield name, np.stack(depths)


def assert_close(got: Float, expected: Float, name: str, share: float = 2e-6) -> None:
    """Every row within a share of its own range; depths and tokens are of very different size."""
    assert got.shape == expected.shape, name
    error = np.abs(got - expected).max(axis=-1) / np.ptp(expected, axis=-1)
    assert error.max() <= share, f"{name}: {error.max()}"


ALL_KINDS = pytest.mark.parametrize(
    ("precision", "kind"),
    [*((name, kind) for name in ("int8", "fp8") for kind in ("shared", "per-depth", "auto")), ("int4", "none")],
)


class TestNumbers:
    @ALL_KINDS
    def test_are_those_of_the_definition(self, precision: str, kind: str) -> None:
        chosen = limits(kind) if kind != "none" else {}
        runtime = Runtime(quantized(precision, chosen), precision)
        got = runtime()
        compared = [(assert_close(got[name], result, name), name)[1] for name, result in wanted(runtime, chosen)]
        assert set(compared) == got.keys() - {"embedded", "router"}

    @pytest.mark.parametrize("kind", ["shared", "per-depth", "auto"])
    def test_are_the_same_with_integer_kernels(self, kind: str) -> None:
        """As sessions run it, fused: no other order of roundings."""
        runtime = Runtime(quantized("int8", limits(kind)), "int8", optimised=True)
        got = runtime()
        for name, result in wanted(runtime, limits(kind)):
            assert_close(got[name], result, name)

    @pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
    def test_are_near_those_of_the_float_graph(self, precision: str) -> None:
        """Guards the tests above: were weights or layers mixed up alike on both sides, here it would show."""
        plain = Runtime(float_graph(), precision)()
        generous = {point: [4.0 * 3**depth for depth in range(depths)] for point, depths in POINTS.items()}
        got = Runtime(quantized(precision, generous), precision)()
        for name, value in plain.items():
            share = np.linalg.norm(got[name] - value) / np.linalg.norm(value)
            assert share < (0.15 if precision == "int4" else 0.05), name
            assert (share == 0) == (name == "router"), name

    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    def test_by_depth_with_equal_limits_are_those_of_one_limit(self, precision: str) -> None:
        """With a scale whose reciprocal is exact, so that nothing is rounded otherwise."""
        limit = LARGEST[precision] / 64
        one = {point: [limit] for point in POINTS}
        many = {point: [limit] * depths for point, depths in POINTS.items()}
        shared, by_depth = (
            Runtime(quantized(precision, one), precision)(),
            Runtime(quantized(precision, many), precision)(),
        )
        for name, value in shared.items():
            assert_close(by_depth[name], value, name, 1e-6)

    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    def test_past_the_calibrated_depths_use_the_last_scale(self, precision: str) -> None:
        def depths(count: int) -> dict[str, list[float]]:
            return {
                point: [3.0 ** min(depth, 1) for depth in range(count)] if loops > 1 else [1.0]
                for point, loops in POINTS.items()
            }

        two, many = (Runtime(quantized(precision, depths(count)), precision)() for count in (2, LOOPS))
        for name, value in many.items():
            np.testing.assert_array_equal(two[name], value, err_msg=name)
        other = Runtime(quantized(precision, depths(2) | {f"{WQ}.input": [1.0, 2.0]}), precision)()
        assert np.abs(other[WQ][1:] - two[WQ][1:]).max(axis=(1, 2)).all(), (
            "the last scale matters at every depth past it"
        )

    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    def test_saturate(self, precision: str) -> None:
        """Beyond its limit a value is the limit."""
        tiny = {point: [1e-3] for point in POINTS}
        runtime = Runtime(quantized(precision, tiny), precision)
        below, above = (-128 / 127, 1) if precision == "int8" else (-1, 1)
        clipped = inputs().clip(below * np.float32(1e-3), above * np.float32(1e-3))
        result = clipped @ runtime.weight(f"{UP}.weight.T")
        share = np.abs(runtime()[UP] - result).max() / np.ptp(result)
        assert share < (0.01 if precision == "int8" else 0.05)


class TestTheEmbedding:
    @pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
    def test_is_read_from_int8_rows(self, precision: str) -> None:
        runtime = Runtime(quantized(precision, limits("shared")), precision)
        rows, scales = runtime.stored["embed.weight.rows"], runtime.stored["embed.weight.rows.scale"]
        assert (rows.dtype, rows.shape, scales.shape) == (np.int8, (VOCAB, DIM), (VOCAB,))
        ids = [3, 0, 10, 3]
        np.testing.assert_array_equal(runtime()["embedded"], rows[ids] * scales[ids, None])
        np.testing.assert_allclose(runtime()["embedded"], floats()["embed.weight"][ids], atol=4 / 254 * 1.01)

    def test_is_the_heads_weight_too_in_int8(self) -> None:
        model = quantized("int8", limits("shared"))
        (head,) = (node for node in model.graph if node.op_type == "Gemm")
        dequantize = head.inputs[1].producer()
        assert [value.name for value in dequantize.inputs[:2]] == ["embed.weight.rows", "embed.weight.rows.scale"]
        assert not [
            name for name in model.graph.initializers if name.startswith(("embed.weight.T", "embed.weight.int8"))
        ]

    @pytest.mark.parametrize("precision", ["fp8", "int4"])
    def test_is_not_where_the_head_has_other_numbers(self, precision: str) -> None:
        names = quantized(precision, limits("shared")).graph.initializers
        assert {"embed.weight.rows", f"embed.weight.T.{precision.replace('int4', 'int4b32')}"} <= names.keys()
        assert "embed.weight" not in names

    @pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
    def test_may_be_kept_while_the_head_is_quantised(self, precision: str) -> None:
        runtime = Runtime(quantized(precision, limits("shared"), "embed"), precision)
        assert "embed.weight.rows" not in runtime.stored
        np.testing.assert_array_equal(runtime()["embedded"], floats()["embed.weight"][[3, 0, 10, 3]])
        head = rounded(-inputs(), limits("shared")["head.input"], 0, precision) @ runtime.weight("embed.weight.T")
        assert_close(runtime()["head"], head, "head")

    @pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
    def test_may_be_quantised_while_the_head_is_kept(self, precision: str) -> None:
        runtime = Runtime(quantized(precision, limits("shared"), "head"), precision)
        assert_close(runtime()["head"], -inputs() @ floats()["embed.weight"].T, "head")
        assert runtime.stored["embed.weight.rows"].dtype == np.int8


def nodes_of(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type == op_type]


def constant(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()


class TestTheGraph:
    @ALL_KINDS
    def test_every_layer_has_nodes_and_constants_of_its_own_beside_it(self, precision: str, kind: str) -> None:
        """What is shared, or comes from outside a body, no runtime recognises as quantised."""
        model = quantized(precision, limits(kind) if kind != "none" else {})
        seen: set[int] = set()
        multiplied = [*nodes_of(model, "MatMul"), *nodes_of(model, "Gemm")]
        quantised = [node for node in multiplied if node.inputs[1].producer() is not None]
        assert len(multiplied) - len(quantised) == 1  # the router
        assert len(quantised) == 9
        for node in quantised:
            weight = node.inputs[1].producer()
            assert weight.op_type == "DequantizeLinear" and weight.graph is node.graph
            assert read_name(str(weight.inputs[0].name)) is not None
            chain = [weight]
            if precision != "int4":
                dequantize = node.inputs[0].producer()
                quantize = dequantize.inputs[0].producer()
                assert (quantize.op_type, dequantize.op_type) == ("QuantizeLinear", "DequantizeLinear")
                assert list(quantize.inputs[1:]) == list(dequantize.inputs[1:])
                scale, zero = quantize.inputs[1:]
                assert scale.graph is zero.graph is node.graph
                assert constant(scale).shape == () and 0 < constant(scale) < np.inf
                assert zero.dtype == QUANTIZED[precision].dtype and not constant(zero).astype(np.float32).any()
                seen |= {id(scale), id(zero)}
                chain += [dequantize, quantize]
            else:
                producer = node.inputs[0].producer()
                assert producer is None or producer.op_type != "DequantizeLinear"
            assert all(each.graph is node.graph for each in chain)
            assert all(len(each.outputs[0].uses()) == 1 for each in chain), "shared"
            seen |= {id(each) for each in chain}
        assert len(seen) == 9 * (5 if precision != "int4" else 1)

    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    def test_ranges_by_depth_are_two_tables_a_range_in_the_body(self, precision: str) -> None:
        model = quantized(precision, limits("per-depth"))
        (loop,) = nodes_of(model, "Loop")
        body = loop.attributes["body"].as_graph()
        for point, depths in POINTS.items():
            if depths == 1:
                assert not [name for name in model.graph.initializers if name.startswith(point)]
                continue
            scales, reciprocals = (constant(body.initializers[f"{point}.{name}"]) for name in ("scales", "reciprocals"))
            exact = np.array(limits("per-depth")[point], np.float32) / np.float32(LARGEST[precision])
            np.testing.assert_array_equal(scales, exact, strict=True)
            np.testing.assert_array_equal(reciprocals, np.float32(1) / exact, strict=True)
        for node in body:
            if node.op_type == "QuantizeLinear":  # a scale that is computed is one that TensorRT does not know
                assert constant(node.inputs[1]) == 1

    def test_the_scaled_activation_is_computed_once(self) -> None:
        """Five layers read one value, by Reshape and Transpose, by Split, or as it is."""
        model = quantized("int8", limits("per-depth"))
        (loop,) = nodes_of(model, "Loop")
        body = loop.attributes["body"].as_graph()
        reciprocals = body.initializers[f"{WQ}.input.reciprocals"]
        (gather,) = (use.node for use in reciprocals.uses())
        (multiply,) = (use.node for use in gather.outputs[0].uses())
        assert multiply.op_type == "Mul"
        assert sum(node.op_type == "Split" for node in body) == 2  # of the activation, and of it scaled
        assert sum(node.op_type == "Transpose" for node in body) == 1  # in float nobody reads it any more

    @pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
    def test_weights_have_their_shapes(self, precision: str) -> None:
        initializers = quantized(precision, limits("shared")).graph.initializers
        suffix = precision.replace("int4", "int4b32")
        matrix, batch = f"{UP}.weight.T.{suffix}", f"{WQ.replace('wq', 'kv_up')}.weight.key.{suffix}"
        assert sizes(initializers[matrix]) == [DIM, WIDE]
        assert sizes(initializers[batch]) == [HEADS, DIM // HEADS, RANK]
        blocks = precision == "int4"
        assert sizes(initializers[f"{matrix}.scale"]) == ([2, WIDE] if blocks else [WIDE])
        assert sizes(initializers[f"{batch}.scale"]) == [HEADS, 1, RANK]
        assert initializers[matrix].dtype == initializers[batch].dtype == QUANTIZED[precision].dtype
        assert not [name for name in initializers if name in WEIGHTS and name != ROUTER], "no float weight is left"

    def test_the_router_stays_as_it_is(self) -> None:
        for precision in QUANTIZED:
            model = quantized(precision, limits("per-depth"))
            (router,) = (use.node for use in model.graph.initializers[ROUTER].uses())
            assert router.op_type == "MatMul" and router.inputs[0].producer().op_type == "Mul"


class TestChoices:
    @pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
    @pytest.mark.parametrize("layer", LAYERS)
    def test_a_layer_to_keep_computes_in_float_and_no_other(self, precision: str, layer: str) -> None:
        model = quantized(precision, limits("per-depth"), layer)
        assert {linear.layer for linear in find_linears(model, MODEL)} == {layer}
        everything = quantized(precision, limits("per-depth"))
        quantised = {name for name in everything.graph.initializers if read_name(name) and not name.endswith("scale")}
        left = {name for name in model.graph.initializers if read_name(name) and not name.endswith("scale")}
        gone = {read_name(name).weight for name in quantised - left}
        stem = layer.removesuffix(".key")
        own = {name for name in WEIGHTS if re.sub(r"experts\.\d\.", "experts.*.", name).startswith(f"{stem}.weight")}
        tied = set() if precision == "int8" else {"embed.weight.T"}
        assert gone == (tied if layer == "head" else own)

    def test_a_range_of_a_layer_to_keep_is_not_needed(self) -> None:
        chosen = {name: found for name, found in limits("shared").items() if name != "head.input"}
        assert nodes_of(quantized("int8", chosen, "head"), "Gemm")[0].inputs[1].name == "embed.weight"

    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    @pytest.mark.parametrize("lost", POINTS)
    def test_a_range_that_is_needed_must_be_there(self, precision: str, lost: str) -> None:
        chosen = {name: found for name, found in limits("shared").items() if name != lost}
        with pytest.raises(MissingRange) as missing:
            quantized(precision, chosen)
        assert str(missing.value) == f"the recipe has no range for {lost}; it was made for another model"

    @pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
    @pytest.mark.parametrize("more", [(), ("embed",)])
    def test_nothing_to_quantise_is_an_error(self, precision: str, more: tuple[str, ...]) -> None:
        with pytest.raises(PassDidNothing, match="--keep names every layer; there is nothing left to quantise"):
            quantized(precision, limits("shared"), *LAYERS, *more)

    def test_a_layer_that_was_forgotten_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = Quantize._quantize
        monkeypatch.setattr(
            Quantize, "_quantize", lambda self, linear: None if linear.layer == WO else whole(self, linear)
        )
        with pytest.raises(ir.passes.PostconditionError, match=f"{WO} still computes in float"):
            quantized("int8", limits("shared"))
