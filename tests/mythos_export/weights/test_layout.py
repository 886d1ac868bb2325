"""The layout of stored weights against graphs that were traced and files that were written: to the last byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir
import pytest
from stored_weights import eventful_weights

from mythos_export.bundle import Bundle
from mythos_export.graphs import build_graphs
from mythos_export.inspection.contents import read_contents
from mythos_export.inspection.onnx_file import read_onnx
from mythos_export.layers import kept_layers
from mythos_export.loops import LoopsOption
from mythos_export.quantization import QUANTIZED, Choices
from mythos_export.targets import TARGETS, storage_of
from mythos_export.weights.layout import stored_tensors
from mythos_export.weights.tensors import StoredTensor, file_bytes, is_large, total_bytes
from mythos_export.weights.write import DATA_FILE, LayoutError, bind, parameters_of
from reference_model.open_mythos.config import SCALES, MythosConfig, config_for_scale
from reference_model.open_mythos.description import architecture

MakeBundle = Callable[..., Bundle]

EVERYTHING = [(target, precision) for target, entry in TARGETS.items() for precision in entry.precisions]
QUANTIZES = [each for each in EVERYTHING if each[1] in QUANTIZED]
# What decides where a table, a tied head, experts and the parts of what attention absorbs go.
KEEP = [("head",), ("embed",), ("head", "embed"), ("*routed_experts.*.up", "coda.*"), ("*.kv_up.key",)]


def layout(config: MythosConfig, target: str, precision: str, *keep: str) -> list[StoredTensor]:
    described = architecture(config)
    return stored_tensors(
        described, storage_of(target, precision, described, Choices(keep=frozenset(kept_layers(described, keep))))
    )


def wanted(config: MythosConfig, target: str, precision: str, *keep: str) -> dict[str, ir.Value]:
    """The parameters of the exporter's own graphs."""
    described = architecture(config)
    points = [f"{layer}.input" for layer in described.layers]
    choices = Choices(dict.fromkeys(points, (1.0,)), frozenset(kept_layers(described, keep)))
    graphs = build_graphs(config, target=target, precision=precision, loops=LoopsOption(()), opset=21, choices=choices)
    return parameters_of(graphs.values())


def check(config: MythosConfig, target: str, precision: str, *keep: str) -> None:
    """An export asks this of itself; here no weight is written."""
    planned = layout(config, target, precision, *keep)
    tensors = bind(wanted(config, target, precision, *keep), eventful_weights(config), architecture(config), planned)
    assert [tensor.name for tensor in tensors] == [each.name for each in planned]


class TestAgainstGraphs:
    """Every test that exports asks for this too (`bind`); here is what they do not ask for."""

    @pytest.mark.parametrize("keep", KEEP, ids=",".join)
    @pytest.mark.parametrize(("target", "precision"), QUANTIZES)
    def test_layers_kept_in_float(
        self, mla_config: MythosConfig, target: str, precision: str, keep: tuple[str, ...]
    ) -> None:
        check(mla_config, target, precision, *keep)

    @pytest.mark.parametrize(("target", "precision"), [("portable", "int8"), ("onnxruntime", "int4")])
    def test_a_model_without_dense_layers_and_shared_experts(
        self, gqa_config: MythosConfig, target: str, precision: str
    ) -> None:
        check(replace(gqa_config, prelude_layers=0, coda_layers=0, n_shared_experts=0), target, precision)

    def test_experts_that_no_fused_kernel_takes(self, mla_config: MythosConfig) -> None:
        narrow, down = replace(mla_config, expert_dim=40), "recurrent.block.ffn.routed_experts.0.down.weight.T"
        for precision, width in (("int4", 16), ("int8", 32)):
            check(narrow, "onnxruntime", precision)
            stored = {each.name: each for each in layout(narrow, "onnxruntime", precision)}
            assert stored[f"{down}.{precision}b32.packed"][1:3] == ((64, 2, width), "uint8")

    @pytest.mark.parametrize(("precision", "share"), [("int4", 2), ("int8", 1)])
    def test_larger_blocks(self, mla_config: MythosConfig, precision: str, share: int) -> None:
        wide = replace(mla_config, dim=256, expert_dim=128)
        check(wide, "onnxruntime", precision)
        stored = {each.name: each[1:3] for each in layout(wide, "onnxruntime", precision)}
        stack = f"recurrent.block.ffn.routed_experts.gate_up.{precision}b128.stacked"
        assert stored[stack] == ((6, 256, 256 // share), "uint8")
        assert stored[f"{stack}.scale"] == ((6, 256, 2), "float32")
        # 4 / 3 * 256, in blocks
        assert stored[f"coda.0.ffn.down.weight.T.{precision}b128.packed"] == ((256, 3, 128 // share), "uint8")

    @pytest.mark.dear
    @pytest.mark.parametrize("scale", ["nano", *SCALES])
    def test_every_scale(self, scale: str) -> None:
        some = [("onnxruntime", "int4"), ("tensorrt", "fp8")]  # of hundreds of experts even the graphs take a while
        for target, precision in EVERYTHING if scale in ("nano", "1b") else some:
            config = config_for_scale(scale)
            values = wanted(config, target, precision)
            assert values.keys() == {each.name for each in layout(config, target, precision)}

    @pytest.mark.parametrize(
        "change",
        [
            lambda tensors: tensors[1:],
            lambda tensors: [*tensors, StoredTensor("coda.9.attn.wq.weight.T", (64, 64), "float32")],
            lambda tensors: [tensors[0]._replace(dtype="float16"), *tensors[1:]],
            lambda tensors: [tensors[0]._replace(shape=(1, *tensors[0].shape)), *tensors[1:]],
        ],
        ids=["less", "more", "another type", "another shape"],
    )
    def test_graphs_that_want_something_else_are_a_defect(
        self, mla_config: MythosConfig, change: Callable[[list[StoredTensor]], list[StoredTensor]]
    ) -> None:
        planned = change(layout(mla_config, "portable", "fp32"))
        with pytest.raises(LayoutError, match=r"weight\S*: the graphs want .*, the layout says "):
            bind(
                wanted(mla_config, "portable", "fp32"), eventful_weights(mla_config), architecture(mla_config), planned
            )


class TestAgainstFiles:
    @pytest.mark.parametrize(("target", "precision"), [("portable", "bf16"), ("onnxruntime", "int4")])
    def test_a_written_bundle_holds_just_these_bytes_in_this_order(
        self, make_bundle: MakeBundle, mla_config: MythosConfig, target: str, precision: str
    ) -> None:
        bundle = make_bundle(mla_config, target=target, precision=precision, loops="2,3")
        planned = layout(mla_config, target, precision)
        written = read_contents(bundle, architecture(mla_config)).tensors
        assert {each.name: each for each in written} == {each.name: each for each in planned}
        # nothing here is so large that it would be laid at the start of a page
        assert bundle.manifest.files[DATA_FILE].size == file_bytes(planned) == total_bytes(planned)
        external = [each for each in read_onnx(bundle.file("model.onnx").read_bytes()).initializers if each.external]
        at = {each.name: int((each.external or {}).get("offset", "0")) for each in external}
        assert sorted(at, key=lambda name: at[name]) == [tensor.name for tensor in planned]

    @pytest.mark.parametrize(("target", "precision"), [("portable", "fp16"), ("onnxruntime", "int8")])
    def test_what_is_left_empty_between_large_tensors_is_counted(
        self, make_bundle: MakeBundle, mla_config: MythosConfig, target: str, precision: str
    ) -> None:
        """Tensors on both sides of a MiB, none a whole number of pages, with vectors and scales between them."""
        large = replace(mla_config, vocab_size=9001, dim=320, expert_dim=1056, n_experts=2)
        bundle, planned = make_bundle(large, target=target, precision=precision), layout(large, target, precision)
        assert {is_large(tensor) for tensor in planned} == {True, False}
        assert bundle.manifest.files[DATA_FILE].size == file_bytes(planned) > total_bytes(planned)
        bundle.path.joinpath(DATA_FILE).unlink()  # pytest would keep hundreds of megabytes

    @pytest.mark.parametrize(
        ("sizes", "end"),
        [((5, 7), 12), ((5, 1 << 20, 7), (1 << 20) + 12), ((5, (1 << 20) + 1, 7), 4096 + (1 << 20) + 8), ((), 0)],
    )
    def test_only_what_is_large_begins_at_a_page(self, sizes: tuple[int, ...], end: int) -> None:
        assert file_bytes(StoredTensor(str(size), (size,), "int8") for size in sizes) == end
