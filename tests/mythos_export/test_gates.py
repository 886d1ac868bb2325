"""Gates of quantised bundles: what only claims to be quantised does not pass, in the file or in ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from planting import Edit, body_of, constant, in_file, plant, set_constant

from calibration.choose import QuantizeOptions
from calibration.recipe import Recipe
from mythos_export import gates
from mythos_export.bundle import Bundle
from mythos_export.gates import EMULATED, GateFailed, check_quantized
from mythos_export.targets import TARGETS
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

QuantizedBundle = Callable[..., Path]

WQ = "recurrent.block.attn.wq"
EXPERT = "recurrent.block.ffn.routed_experts.4.down"


def kept_of(bundle: Bundle) -> frozenset[str]:
    record = bundle.manifest.quantization
    assert record is not None
    return frozenset(record.kept)


@pytest.fixture
def says(quantized_bundle: QuantizedBundle, tmp_path: Path) -> Callable[..., str]:
    """Plant a fault in a bundle; what the gates make of it."""

    def refusal(edit: Edit, precision: str = "int8", ranges: str | None = None) -> str:
        original = quantized_bundle("gqa", precision, ranges) if ranges else quantized_bundle("gqa", precision)
        bundle = plant(original, tmp_path / "copy", edit)
        files = {path.name for path in bundle.path.iterdir()}
        with pytest.raises(GateFailed) as failed:
            check_quantized(bundle, kept_of(bundle))
        assert {path.name for path in bundle.path.iterdir()} == files, "it leaves nothing behind"
        message = str(failed.value)
        assert message.startswith("model.onnx: ") and message.isprintable()
        return message.removeprefix("model.onnx: ")

    return refusal


def matmul_on(graph: onnx.GraphProto, weight: str) -> onnx.NodeProto:
    """The MatMul that multiplies with a quantised weight, by name."""
    (dequantize,) = (node for node in graph.node if node.input and node.input[0] == weight)
    (matmul,) = (node for node in graph.node if dequantize.output[0] in node.input)
    return matmul


def producer(graph: onnx.GraphProto, value: str) -> onnx.NodeProto:
    (node,) = (node for node in graph.node if value in node.output)
    return node


class TestHonestBundles:
    @pytest.mark.parametrize("attn", ["mla", "gqa"])
    def test_in_int8_have_an_integer_kernel_for_every_layer(
        self, quantized_bundle: QuantizedBundle, attn: str, request: pytest.FixtureRequest
    ) -> None:
        bundle = Bundle.open(quantized_bundle(attn, "int8"))
        config: MythosConfig = request.getfixturevalue(f"{attn}_config")
        kernels = check_quantized(bundle, kept_of(bundle))
        assert kernels == bundle.manifest.quantization.kernels  # type: ignore[union-attr]
        assert kernels["QGemm"] == 1, "the head"
        assert sum(kernels.values()) == nodes_of(config) - len(
            TARGETS["portable"].float_layers(architecture(config), "int8")
        )
        # what goes into one more quantised layer unchanged is rounded in passing
        assert kernels.get("QLinearMatMul", 0) == (4 if attn == "mla" else 0)

    @pytest.mark.parametrize("precision", ["fp8", "int4"])
    def test_in_numbers_without_a_kernel_say_so(
        self, quantized_bundle: QuantizedBundle, precision: str, gqa_config: MythosConfig
    ) -> None:
        bundle = Bundle.open(quantized_bundle("gqa", precision))
        assert check_quantized(bundle, kept_of(bundle)) == {EMULATED: nodes_of(gqa_config)}

    def test_pass_with_every_graph_they_have(
        self, make_bundle: Any, gqa_config: MythosConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checked: list[str] = []
        check = gates._check_graph
        monkeypatch.setattr(gates, "_check_graph", lambda *given: (checked.append(given[1].file), check(*given))[1])
        bundle = make_bundle(gqa_config, precision="int8", loops="1,2", quantize=QuantizeOptions(depths=2))
        assert checked == ["model.onnx", "model.loops1.onnx", "model.loops2.onnx"]
        record = bundle.manifest.quantization
        assert record is not None and sum(record.kernels.values()) == nodes_of(gqa_config) - 3

    def test_that_keep_layers_have_as_many_kernels_fewer(
        self, make_bundle: Any, gqa_config: MythosConfig, quantized_bundle: QuantizedBundle
    ) -> None:
        recipe = Bundle.open(quantized_bundle("gqa", "int8")).file("recipe.json")
        options = QuantizeOptions(recipe=Recipe.from_file(recipe), keep=("*.routed_experts.*.down", "prelude.0.ffn.up"))
        bundle = make_bundle(gqa_config, precision="int8", quantize=options)
        everything = Bundle.open(quantized_bundle("gqa", "int8")).manifest.quantization
        record = bundle.manifest.quantization
        assert record is not None and everything is not None
        assert record.kernels == {**everything.kernels, "MatMulIntegerToFloat": 43 - gqa_config.n_experts - 1}
        assert (
            record.kept.items()
            >= {
                "recurrent.block.ffn.routed_experts.*.down": "--keep",
                "prelude.0.ffn.up": "--keep",
            }.items()
        )
        assert not set(record.kept) & set(record.quantized)
        assert {*record.kept, *record.quantized} >= set(architecture(gqa_config).layers)
        with pytest.raises(GateFailed, match=r"routed_experts\.0\.down\.weight\.T was to be quantised, but"):
            check_quantized(bundle, frozenset(record.kept) - {"recurrent.block.ffn.routed_experts.*.down"})


def nodes_of(config: MythosConfig) -> int:
    """Linear layers of a graph, each expert's counted."""
    layers = [name for name in architecture(config).layers if name != "embed"]
    return len(layers) + (config.n_experts - 1) * sum("routed_experts" in name for name in layers)


class TestTheFile:
    def test_a_body_left_in_float(
        self, make_bundle: Any, gqa_config: MythosConfig, quantized_bundle: QuantizedBundle
    ) -> None:
        """Honestly kept, but not owned up to."""
        looped = tuple(
            name for name in architecture(gqa_config).layers if name.startswith("recurrent.") and name != f"{WQ[:-1]}o"
        )
        bundle = make_bundle(gqa_config, precision="int4", quantize=QuantizeOptions(keep=looped))
        check_quantized(bundle, kept_of(bundle))
        with pytest.raises(
            GateFailed, match=r"recurrent\.block\.attn\..+ was to be quantised, but .+ computes with it in"
        ):
            check_quantized(bundle, frozenset())

    def test_nothing_inside_the_loop(self, make_bundle: Any, gqa_config: MythosConfig) -> None:
        with pytest.raises(GateFailed, match=r"^model\.onnx: nothing inside the loop is quantised$"):
            make_bundle(gqa_config, precision="int4", quantize=QuantizeOptions(keep=("recurrent.*",)))

    def test_not_one_quantised_node(self, tiny_gqa_bundle: Path, gqa_config: MythosConfig, tmp_path: Path) -> None:
        """A float bundle under another label."""
        bundle = plant(tiny_gqa_bundle, tmp_path / "copy")
        labelled = Bundle(bundle.path, bundle.manifest.model_copy(update={"precision": "int8"}))
        with pytest.raises(
            GateFailed, match=r"^model\.onnx: prelude\.0\.\S+ was to be quantised, but \S+ computes with"
        ):
            check_quantized(labelled, frozenset())
        with pytest.raises(GateFailed, match=r"^model\.onnx: not one node is quantised$"):
            check_quantized(labelled, frozenset(architecture(gqa_config).layers))

    @pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
    def test_one_linear_layer_back_in_float(self, says: Callable[..., str], precision: str) -> None:
        """The weight of one expert is a float parameter again."""
        suffix = precision.replace("int4", "int4b32")

        def edit(model: onnx.ModelProto, folder: Path) -> None:
            matmul = matmul_on(body_of(model), f"{EXPERT}.weight.T.{suffix}")
            (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == f"{EXPERT}.weight.T.{suffix}")
            weight = onnx.TensorProto(
                name=f"{EXPERT}.weight.T", data_type=onnx.TensorProto.FLOAT, dims=tensor.dims, data_location=1
            )
            place = {"location": "model.onnx.data", "offset": "0", "length": str(4 * int(np.prod(tensor.dims)))}
            for key, value in place.items():
                weight.external_data.add(key=key, value=value)
            model.graph.initializer.append(weight)
            matmul.input[1] = weight.name

        said = says(edit, precision)
        assert re.fullmatch(
            rf"{re.escape(EXPERT)}\.weight\.T was to be quantised, but \S+ computes with it in float", said
        )

    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    @pytest.mark.parametrize("layer", ["coda.1.ffn.up", WQ])
    def test_an_activation_that_is_not_quantised(self, says: Callable[..., str], precision: str, layer: str) -> None:
        """ONNX Runtime may still find a kernel for the weight."""

        def edit(model: onnx.ModelProto, folder: Path) -> None:
            graph = body_of(model) if layer == WQ else model.graph
            quantize, _ = inputs_of(graph, f"{layer}.weight.T.{precision}")
            matmul_on(graph, f"{layer}.weight.T.{precision}").input[0] = quantize.input[0]

        said = says(edit, precision)
        assert re.fullmatch(r"the weight of \S+ is quantised, but what it multiplies is not", said)


SCALES = {
    "of a weight": ("int8", "coda.1.ffn.up.weight.T.int8.scale"),
    "of a weight in fp8": ("fp8", "coda.1.ffn.up.weight.T.fp8.scale"),
    "of a weight's blocks": ("int4", "coda.1.ffn.up.weight.T.int4b32.scale"),
    "of a weight in the loop": ("int8", f"{EXPERT}.weight.T.int8.scale"),
    "of the embedding": ("int8", "embed.weight.rows.scale"),
}


class TestScales:
    @pytest.mark.parametrize("value", [0.0, -0.001, np.inf, np.nan])
    @pytest.mark.parametrize(("precision", "name"), SCALES.values(), ids=SCALES)
    def test_of_weights_that_are_none(self, says: Callable[..., str], precision: str, name: str, value: float) -> None:
        def edit(model: onnx.ModelProto, folder: Path) -> None:
            in_file(folder, name, np.float32)[-1] = value

        assert says(edit, precision) == f"{name} holds a scale that is 0, infinite or not a number"

    @pytest.mark.parametrize("value", [0.0, -0.001, np.inf, np.nan])
    @pytest.mark.parametrize("where", ["main", "body"])
    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    def test_of_activations_that_are_none(
        self, says: Callable[..., str], precision: str, where: str, value: float
    ) -> None:
        def edit(model: onnx.ModelProto, folder: Path) -> None:
            graph = body_of(model) if where == "body" else model.graph
            name = next(tensor.name for tensor in graph.initializer if tensor.name.endswith("x_scale"))
            set_constant(graph, name, np.array(value))

        assert re.fullmatch(r"\S+\.x_scale holds a scale that is 0, infinite or not a number", says(edit, precision))

    @pytest.mark.parametrize("table", ["scales", "reciprocals"])
    @pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
    def test_of_one_depth_that_are_none(self, says: Callable[..., str], table: str, value: float) -> None:
        def edit(model: onnx.ModelProto, folder: Path) -> None:
            values = constant(body_of(model), f"{WQ}.input.{table}").copy()
            values[3] = value
            set_constant(body_of(model), f"{WQ}.input.{table}", values)

        said = says(edit, "int8", "per-depth")
        assert said == f"{WQ}.input.{table} holds a scale that is 0, infinite or not a number"


def inputs_of(graph: onnx.GraphProto, weight: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The QuantizeLinear and the DequantizeLinear in front of a layer."""
    dequantize = producer(graph, matmul_on(graph, weight).input[0])
    return producer(graph, dequantize.input[0]), dequantize


def move_zero_point_out(model: onnx.ModelProto, folder: Path) -> None:
    """The zero point of one activation becomes an initialiser of the main graph, captured by the body."""
    body = body_of(model)
    quantize, _ = inputs_of(body, f"{WQ}.weight.T.int8")
    (tensor,) = (tensor for tensor in body.initializer if tensor.name == quantize.input[2])
    model.graph.initializer.append(tensor)
    body.initializer.remove(tensor)


def share_quantize(model: onnx.ModelProto, folder: Path) -> None:
    """Two layers that read the same value read one QuantizeLinear and one DequantizeLinear."""
    body = body_of(model)
    _, dequantize = inputs_of(body, f"{WQ}.weight.T.int8")
    matmul_on(body, f"{WQ[:-1]}k.weight.T.int8").input[0] = dequantize.output[0]


class TestTheRuntime:
    """Graphs that are quantised as they are written, and compute in float all the same."""

    @pytest.mark.parametrize("edit", [move_zero_point_out, share_quantize], ids=lambda edit: edit.__name__)
    def test_that_does_not_fuse_computes_in_float(self, says: Callable[..., str], edit: Edit) -> None:
        said = says(edit)
        assert re.fullmatch(r"ONNX Runtime computes \S+ in float \((Fused)?MatMul on a dequantised weight\)", said), (
            said
        )

    def test_that_runs_fewer_kernels_than_layers(
        self, quantized_bundle: QuantizedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A kernel that nobody has heard of is no proof."""
        monkeypatch.setattr(gates, "_INTEGER", frozenset({"MatMulIntegerToFloat"}))
        bundle = Bundle.open(quantized_bundle("gqa", "int8"))
        with pytest.raises(GateFailed) as failed:
            check_quantized(bundle, kept_of(bundle))
        assert str(failed.value) == (
            "model.onnx: 44 layers are quantised, but ONNX Runtime runs 43 kernels for them "
            "({'MatMulIntegerToFloat': 43})"
        )
