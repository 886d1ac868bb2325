"""The closed form against graphs that were traced, and against files that were written: to the last byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from calibration.choose import QuantizeOptions
from engines.cache import KVCache
from mythos_export.bundle import Bundle
from mythos_export.graph_parts import sizes
from mythos_export.graphs import build_graphs
from mythos_export.inspection.contents import read_contents
from mythos_export.inspection.onnx_file import read_onnx
from mythos_export.linears import kept_layers, layer_names
from mythos_export.loops import LoopsOption
from mythos_export.pipeline import ExportRequest
from mythos_export.plan import plan_export
from mythos_export.planning.cache import cache_size
from mythos_export.planning.models import rows_of, stored_from_config
from mythos_export.planning.tensors import BITS, StoredTensor, file_bytes, is_large, total_bytes
from mythos_export.planning.weights import DTYPES, stored_tensors
from mythos_export.progress import Reporter
from mythos_export.quantization import QUANTIZED, Choices
from mythos_export.signature import cache_parts
from mythos_export.targets import TARGETS
from mythos_export.weights import DATA_FILE, parameters_of
from reference_model.checkpoint import SeededWeights
from reference_model.config import SCALES, MythosConfig, config_for_scale

MakeBundle = Callable[..., Bundle]
Shapes = dict[str, tuple[tuple[int, ...], str]]

EVERYTHING = [(target, precision) for target, entry in TARGETS.items() for precision in entry.precisions]
QUANTISED = [each for each in EVERYTHING if each[1] in QUANTIZED]
KEEP = [("coda.*",), ("head",), ("embed",), ("head", "embed"), ("*routed_experts*",), ("*.kv_up.*", "*wq")]


def of_graph(config: MythosConfig, target: str, precision: str, keep: tuple[str, ...] = ()) -> Shapes:
    """What the exporter's own graphs want."""
    points = [f"{layer}.input" for layer in layer_names(config)]
    choices = Choices(dict.fromkeys(points, (1.0,)), frozenset(kept_layers(config, keep)))
    graphs = build_graphs(config, target=target, precision=precision, loops=LoopsOption(()), opset=21, choices=choices)
    values = parameters_of(graphs.values())
    return {name: (tuple(sizes(value)), DTYPES[value.dtype]) for name, value in values.items()}  # type: ignore[index]


def of_plan(config: MythosConfig, target: str, precision: str, keep: tuple[str, ...] = ()) -> Shapes:
    tensors = stored_tensors(config, target, precision, Choices(keep=frozenset(kept_layers(config, keep))))
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    return {tensor.name: (tensor.shape, tensor.dtype) for tensor in tensors}


def fits_pattern(config: MythosConfig, keep: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns that this attention has layers for."""
    other = "*wq" if config.attn_type == "mla" else "*.kv_up.*"
    return tuple(pattern for pattern in keep if pattern != other)


@pytest.fixture(params=["mla", "gqa"])
def config(request: pytest.FixtureRequest) -> MythosConfig:
    found: MythosConfig = request.getfixturevalue(f"{request.param}_config")
    return found


class TestAgainstGraphs:
    @pytest.mark.parametrize(("target", "precision"), EVERYTHING)
    def test_every_target_and_precision(self, config: MythosConfig, target: str, precision: str) -> None:
        assert of_plan(config, target, precision) == of_graph(config, target, precision)

    @pytest.mark.parametrize("keep", KEEP, ids=",".join)
    @pytest.mark.parametrize(("target", "precision"), QUANTISED)
    def test_with_layers_kept_in_float(
        self, mla_config: MythosConfig, target: str, precision: str, keep: tuple[str, ...]
    ) -> None:
        patterns = fits_pattern(mla_config, keep)
        assert of_plan(mla_config, target, precision, patterns) == of_graph(mla_config, target, precision, patterns)

    def test_a_config_whose_experts_no_fused_kernel_takes(self, mla_config: MythosConfig) -> None:
        narrow, down = replace(mla_config, expert_dim=40), "recurrent.block.ffn.routed_experts.0.down.weight.T"
        for precision, width in (("int4", 16), ("int8", 32)):
            found = of_plan(narrow, "onnxruntime", precision)
            assert found == of_graph(narrow, "onnxruntime", precision)
            assert found[f"{down}.{precision}b32.packed"] == ((64, 2, width), "uint8")

    @pytest.mark.parametrize(("precision", "share"), [("int4", 2), ("int8", 1)])
    def test_a_config_of_larger_blocks(self, config: MythosConfig, precision: str, share: int) -> None:
        wide = replace(config, dim=256, expert_dim=128)
        found = of_plan(wide, "onnxruntime", precision)
        assert found == of_graph(wide, "onnxruntime", precision)
        stack = f"recurrent.block.ffn.routed_experts.gate_up.{precision}b128.stacked"
        assert found[stack] == ((6, 256, 256 // share), "uint8")
        assert found[f"{stack}.scale"] == ((6, 256, 2), "float32")
        # 4 / 3 * 256, in blocks
        assert found[f"coda.0.ffn.down.weight.T.{precision}b128.packed"] == ((256, 3, 128 // share), "uint8")

    @pytest.mark.dear
    @pytest.mark.parametrize("scale", ["nano", *SCALES])
    def test_every_scale(self, scale: str) -> None:
        published = config_for_scale(scale)
        some = [
            ("onnxruntime", "int4"),
            ("onnxruntime", "int8"),
            ("tensorrt", "fp8"),
        ]  # of hundreds of experts even the graphs take a while
        for target, precision in EVERYTHING if scale in ("nano", "1b") else some:
            assert of_plan(published, target, precision) == of_graph(published, target, precision)


class TestAgainstFiles:
    @pytest.mark.parametrize(("target", "precision"), EVERYTHING)
    def test_a_written_bundle_holds_just_these_bytes(
        self, make_bundle: MakeBundle, config: MythosConfig, target: str, precision: str
    ) -> None:
        bundle = make_bundle(config, target=target, precision=precision, loops="2,3")
        written = {tensor.name: tensor for tensor in read_contents(bundle).tensors}
        planned = stored_tensors(config, target, precision)
        assert written == {tensor.name: tensor for tensor in planned}
        # nothing here is so large that it would be laid at the start of a page
        assert bundle.manifest.files[DATA_FILE].size == file_bytes(planned) == total_bytes(planned)

    @pytest.mark.parametrize(("target", "precision"), EVERYTHING)
    def test_what_is_left_empty_between_large_tensors_is_counted(
        self, make_bundle: MakeBundle, mla_config: MythosConfig, target: str, precision: str
    ) -> None:
        """Tensors on both sides of a MiB, none a whole number of pages, with vectors and scales between them."""
        large = replace(mla_config, vocab_size=9001, dim=320, expert_dim=1056, n_experts=2)
        bundle, planned = (
            make_bundle(large, target=target, precision=precision),
            stored_tensors(large, target, precision),
        )
        assert {is_large(tensor) for tensor in planned} == {True, False}
        assert bundle.manifest.files[DATA_FILE].size == file_bytes(planned) > total_bytes(planned)
        bundle.path.joinpath(DATA_FILE).unlink()  # pytest would keep hundreds of megabytes

    def test_the_file_is_in_the_order_of_the_plan(self, make_bundle: MakeBundle, config: MythosConfig) -> None:
        bundle = make_bundle(config, target="onnxruntime", precision="int4")
        external = [each for each in read_onnx(bundle.file("model.onnx").read_bytes()).initializers if each.external]
        at = {each.name: int((each.external or {}).get("offset", "0")) for each in external}
        assert sorted(at, key=lambda name: at[name]) == [
            tensor.name for tensor in stored_tensors(config, "onnxruntime", "int4")
        ]

    @pytest.mark.parametrize(
        ("sizes", "end"),
        [((5, 7), 12), ((5, 1 << 20, 7), (1 << 20) + 12), ((5, (1 << 20) + 1, 7), 4096 + (1 << 20) + 8), ((), 0)],
    )
    def test_only_what_is_large_begins_at_a_page(self, sizes: tuple[int, ...], end: int) -> None:
        assert file_bytes(StoredTensor(str(size), (size,), "int8") for size in sizes) == end

    def test_a_kept_layer_is_counted_in_float(self, make_bundle: MakeBundle, mla_config: MythosConfig) -> None:
        bundle = make_bundle(mla_config, precision="int8", quantize=QuantizeOptions(keep=("coda.1.*",)))
        keep = frozenset(kept_layers(mla_config, ["coda.1.*"]))
        assert bundle.manifest.files[DATA_FILE].size == total_bytes(
            stored_tensors(mla_config, "portable", "int8", Choices(keep=keep))
        )

    def test_a_dry_run_says_the_same(self, mla_config: MythosConfig, tmp_path) -> None:  # type: ignore[no-untyped-def]
        request = ExportRequest(
            name="tiny",
            config=mla_config,
            source=SeededWeights(mla_config, 0),
            output=tmp_path / "none",
            precision="int8",
            quantize=QuantizeOptions(keep=("head",)),
        )
        found = plan_export(request, Reporter(quiet=True))
        shapes = of_graph(mla_config, "portable", "int8", ("head",))
        assert found.file_bytes == found.weight_bytes
        assert found.weight_bytes == sum(-(-math.prod(shape) * BITS[dtype] // 8) for shape, dtype in shapes.values())
        assert not request.output.exists()


class TestCache:
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8", "int4"])
    def test_it_is_what_the_engine_allocates(self, config: MythosConfig, precision: str) -> None:
        parts = cache_parts(config, precision)
        allocated = KVCache(parts, loops=5, batch=3, capacity=17)
        held = sum(buffer.nbytes for buffer in allocated.past.values()) + allocated.mask.nbytes
        assert cache_size(parts).total(loops=5, batch=3, context=17) == held

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8", "int4"])
    def test_rows_are_those_of_the_signature(self, config: MythosConfig, precision: str) -> None:
        assert rows_of(config, precision) == cache_parts(config, precision)

    def test_a_stage_without_layers_takes_nothing(self, mla_config: MythosConfig) -> None:
        bare = replace(mla_config, prelude_layers=0, coda_layers=0)
        assert cache_size(rows_of(bare, "fp32")) == (0, 4 * (16 + 8))


def test_a_trillion_parameters_are_counted_without_a_graph() -> None:
    stored = stored_from_config("1t", SCALES["1t"], "portable", "int4")
    floats = stored_from_config("1t", SCALES["1t"], "portable", "fp32")
    ratio = total_bytes(floats.tensors) / total_bytes(stored.tensors)
    assert 6.2 < ratio < 6.4  # 32 bits against 4 and a 32-bit scale for every 32 numbers: 6.4, less what stays in float
