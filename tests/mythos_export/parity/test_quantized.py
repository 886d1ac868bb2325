"""Quantised bundles: proven against PyTorch that rounds alike, with what that costs; planted defects are caught."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from planting import Edit, body_of, constant, in_file, plant, set_constant

from calibration.choose import QuantizeOptions
from calibration.recipe import Recipe
from mythos_export.bundle import Bundle
from mythos_export.parity.loss import loss_failures
from mythos_export.parity.report import ParityReport, render
from mythos_export.parity.run import check_parity, prove
from mythos_export.pipeline import ParityFailed
from mythos_export.progress import Reporter
from mythos_export.quantization import MissingRange
from reference_model.checkpoint import SeededWeights
from reference_model.config import MythosConfig

QuantizedBundle = Callable[..., Path]

LOOPS = (1, 4)
WO, POINT = "recurrent.block.attn.wo", "recurrent.block.attn.wq.input"


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """The check collects garbage between two sessions; what is here already need not be searched every time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", params=["mla", "gqa"])
def attn(request: pytest.FixtureRequest) -> str:
    return request.param


class TestHonest:
    @pytest.fixture(scope="class", params=["int8", "fp8", "int4"])
    @classmethod
    def bundle(cls, request: pytest.FixtureRequest, quantized_bundle: QuantizedBundle, attn: str) -> Bundle:
        """Exported with proof, so that an export that fails it would end here."""
        return Bundle.open(quantized_bundle(attn, request.param))

    def test_is_proven_at_every_loop_count_up_to_twice_the_trained(
        self, bundle: Bundle, mla_config: MythosConfig
    ) -> None:
        report = ParityReport.model_validate_json(bundle.file("parity.json").read_text())
        assert report.passed and report.failures == []
        assert report.loops == [1, 2, 4, 6, 8, 12, 16]
        assert 2 * mla_config.max_loop_iters in report.loops
        assert (report.weights_differing, report.graph_check) == ([], "the same as built anew")
        cases = report.graphs[0].cases
        assert {case.kind for case in cases} == {"prefill", "chunked", "cached", "mixed"}
        assert {max(case.loops) for case in cases} == set(report.loops)
        assert all(case.tokens for case in cases)
        assert np.median([case.error_over_range for case in cases]) < 1e-5, "but for single roundings they are equal"
        summary = bundle.manifest.parity
        assert summary is not None and summary.passed and summary.loops == report.loops

    def test_says_what_it_costs_at_every_loop_count(self, bundle: Bundle) -> None:
        report = ParityReport.model_validate_json(bundle.file("parity.json").read_text())
        assert [loss.loops for loss in report.loss] == report.loops
        for loss in report.loss:
            assert 0.01 < loss.relative_error < 1, "quantising leaves a trace, and a model"
            assert 0.5 < loss.cosine < 1
            assert loss.kl > 0
            assert [depth.depth for depth in loss.depths] == list(range(1, loss.loops + 1))
            assert all(0 <= depth.router_agreement <= 1 and depth.hidden_error > 0 for depth in loss.depths)
            assert 0 <= loss.halting_agreement <= 1
        agreements = [depth.router_agreement for loss in report.loss for depth in loss.depths]
        assert np.mean(agreements) > 0.7

    def test_the_report_shows_it(self, bundle: Bundle) -> None:
        report = ParityReport.model_validate_json(bundle.file("parity.json").read_text())
        lines = render(report).splitlines()
        at = lines.index("against the model in fp32 (what quantising costs)")
        assert [line.split()[0] for line in lines[at + 2 : at + 9]] == [str(count) for count in report.loops]
        assert lines[at + 9] == "at 16 loops: depth, hidden |error| / |fp32|, router agreement"
        assert [line.split()[0] for line in lines[at + 10 : at + 26]] == [str(depth) for depth in range(1, 17)]


def test_finer_numbers_cost_less(quantized_bundle: QuantizedBundle, attn: str) -> None:
    def cost(precision: str) -> float:
        parity = Bundle.open(quantized_bundle(attn, precision)).file("parity.json")
        report = ParityReport.model_validate_json(parity.read_text())
        return float(np.mean([loss.relative_error for loss in report.loss]))

    assert cost("int8") < cost("fp8") < cost("int4")


def test_an_unrolled_graph_that_keeps_layers_is_proven_too(
    make_bundle: Callable[..., Bundle], gqa_config: MythosConfig
) -> None:
    options = QuantizeOptions(depths=2, ranges="shared", keep=("head", "prelude.*"))
    bundle = make_bundle(gqa_config, precision="int8", loops="3", prove=prove, quantize=options)
    report = ParityReport.model_validate_json(bundle.file("parity.json").read_text())
    assert report.passed
    assert (report.loops, report.graphs[0].depth) == ([1, 2, 3], 3)
    assert [len(loss.depths) for loss in report.loss] == [1, 2, 3]


class TestPlanted:
    """Each with hashes made right again. The graph is rebuilt, and what it computes is compared; both must see it."""

    @pytest.fixture
    def check(
        self, quantized_bundle: QuantizedBundle, gqa_config: MythosConfig, tmp_path: Path
    ) -> Callable[..., ParityReport]:
        def run(
            edit: Edit = lambda model, folder: None,
            precision: str = "int8",
            *,
            ranges: str | None = None,
            record: Callable[[Any], Any] = lambda record: record,
            loops: tuple[int, ...] = LOOPS,
        ) -> ParityReport:
            original = quantized_bundle("gqa", precision, ranges) if ranges else quantized_bundle("gqa", precision)
            bundle = plant(original, tmp_path / "copy", edit)
            manifest = bundle.manifest.model_copy(update={"quantization": record(bundle.manifest.quantization)})
            source = SeededWeights(gqa_config, 0)
            return check_parity(Bundle(bundle.path, manifest), source, gqa_config, loops, Reporter(quiet=True))

        return run

    def test_nothing(self, check: Callable[..., ParityReport]) -> None:
        """Guards the tests below: the planting itself breaks nothing."""
        assert check().passed

    @pytest.mark.parametrize(
        ("precision", "name"),
        [
            ("int8", f"{WO}.weight.T.int8"),
            ("fp8", f"{WO}.weight.T.fp8"),
            ("int4", f"{WO}.weight.T.int4b32"),
            ("int8", "embed.weight.rows"),
        ],
    )
    def test_one_bit_of_a_weight(self, check: Callable[..., ParityReport], precision: str, name: str) -> None:
        def edit(model: onnx.ModelProto, folder: Path) -> None:
            in_file(folder, name)[5] ^= 1

        report = check(edit, precision)
        assert report.weights_differing == [name]
        assert f"1 weights differ from the checkpoint: {name}" in report.failures

    @pytest.mark.parametrize("name", [f"{WO}.weight.T.int8.scale", "embed.weight.rows.scale"])
    def test_one_scale_of_a_weight(self, check: Callable[..., ParityReport], name: str) -> None:
        def edit(model: onnx.ModelProto, folder: Path) -> None:
            scales = in_file(folder, name, np.float32)
            scales[3] = np.nextafter(scales[3], np.float32(1))

        report = check(edit)
        assert report.weights_differing == [name]
        assert not report.passed

    @pytest.mark.parametrize(("where", "factor"), [("main", 1.2), ("body", 0.8)])
    def test_the_scale_of_an_activation(self, check: Callable[..., ParityReport], where: str, factor: float) -> None:
        def edit(model: onnx.ModelProto, folder: Path) -> None:
            graph = body_of(model) if where == "body" else model.graph
            name = next(tensor.name for tensor in graph.initializer if tensor.name.endswith("x_scale"))
            set_constant(graph, name, constant(graph, name) * factor)

        caught(check(edit), "x_scale FLOAT [] ")

    def test_scales_that_are_one_depth_late(self, check: Callable[..., ParityReport]) -> None:
        def edit(model: onnx.ModelProto, folder: Path) -> None:
            body = body_of(model)
            tables = [tensor.name for tensor in body.initializer if tensor.name.endswith((".scales", ".reciprocals"))]
            assert len(tables) == 10
            for name in tables:
                table = constant(body, name)
                set_constant(body, name, np.concatenate((table[:1], table[:-1])))

        report = check(edit, ranges="per-depth")
        caught(report, ".reciprocals FLOAT [6] ")
        off = {max(case.loops) for case in report.graphs[0].cases if case.typical_error > report.tolerance.typical}
        assert off == {4}, "the first depth is right"

    def test_scales_read_one_depth_early(self, check: Callable[..., ParityReport]) -> None:
        """The tables are right, and their index is not."""

        def edit(model: onnx.ModelProto, folder: Path) -> None:
            body = body_of(model)
            index = body.input[0].name
            minimum = next(node for node in body.node if node.op_type == "Min" and index in node.input)
            at = list(body.node).index(minimum)
            body.node.insert(at, onnx.helper.make_node("Add", [index, "one_more"], ["next_index"]))
            body.node.insert(at, onnx.helper.make_node("Constant", [], ["one_more"], value_int=1))
            minimum.input[list(minimum.input).index(index)] = "next_index"

        caught(check(edit, ranges="per-depth"), "")

    def test_scales_that_begin_again_past_the_calibrated_depths(self, check: Callable[..., ParityReport]) -> None:
        report = check(begin_again, ranges="per-depth", loops=(1, 8))
        assert report.graph_check == "different"
        off = {max(case.loops) for case in report.graphs[0].cases if case.typical_error > report.tolerance.typical}
        assert off == {8}

    def test_reciprocals_that_are_not_the_scales(self, check: Callable[..., ParityReport]) -> None:
        def edit(model: onnx.ModelProto, folder: Path) -> None:
            table = constant(body_of(model), f"{POINT}.reciprocals").copy()
            table[1] *= 1.05
            set_constant(body_of(model), f"{POINT}.reciprocals", table)

        caught(check(edit, ranges="per-depth"), f"initializer {POINT}.reciprocals FLOAT [6] ")

    def test_a_zero_point(self, check: Callable[..., ParityReport]) -> None:
        """It moves what saturates, and nothing else: tokens that do not reach that far cannot show it."""

        def edit(model: onnx.ModelProto, folder: Path) -> None:
            body = body_of(model)
            name = next(tensor.name for tensor in body.initializer if tensor.name.endswith("x_zero_point"))
            set_constant(body, name, np.array(3))

        assert any("x_zero_point INT8 [] 03, expected " in failure for failure in check(edit).failures)

    def test_a_limit_in_the_recipe(self, check: Callable[..., ParityReport]) -> None:
        def edit(recipe: dict[str, Any]) -> None:
            recipe["activations"][POINT]["limit"] = [2 * limit for limit in recipe["activations"][POINT]["limit"]]

        caught(check(in_recipe(edit)), "x_scale FLOAT [] ")

    def test_what_an_activation_feeds_in_the_recipe(self, check: Callable[..., ParityReport]) -> None:
        def edit(recipe: dict[str, Any]) -> None:
            recipe["activations"][POINT]["feeds"] = ["recurrent.block.attn.wq"]

        assert any("logits" in failure for failure in check(in_recipe(edit)).failures)

    def test_an_activation_that_the_recipe_lacks(self, check: Callable[..., ParityReport]) -> None:
        with pytest.raises(MissingRange, match=f"no range for {POINT}"):
            check(in_recipe(lambda recipe: recipe["activations"].pop(POINT)))

    def test_a_layer_listed_as_kept_that_is_not(self, check: Callable[..., ParityReport]) -> None:
        report = check(record=lambda record: record.model_copy(update={"kept": record.kept | {WO: "--keep"}}))
        caught(report, f"initializer {WO}.weight.T.int8 INT8 ")

    def test_a_kept_layer_that_is_not_listed(self, check: Callable[..., ParityReport]) -> None:
        def forget(record: Any) -> Any:
            return record.model_copy(
                update={"kept": {name: why for name, why in record.kept.items() if name != "coda.0.attn.wq"}}
            )

        assert not check(record=forget).passed

    def test_another_way_to_share_ranges_than_is_listed(self, check: Callable[..., ParityReport]) -> None:
        report = check(ranges="per-depth", record=lambda record: record.model_copy(update={"ranges": "shared"}))
        caught(report, "")


def begin_again(model: onnx.ModelProto, folder: Path) -> None:
    """Past the table's end its first entry is read, not its last."""
    body = body_of(model)
    index = body.input[0].name
    for node in body.node:
        if node.op_type == "Min" and index in node.input:
            node.op_type = "Mod"
            point = node.input[1].removesuffix(".last_depth")
            set_constant(body, node.input[1], np.array(len(constant(body, f"{point}.scales"))))


def caught(report: ParityReport, place: str) -> None:
    """By the graph that is built anew, and by the numbers alone."""
    assert report.weights_differing == []
    assert report.graph_check == "different"
    (graph,) = (failure for failure in report.failures if "is not the graph this release builds: " in failure)
    assert place in graph
    assert any("logits of the typical position differ by" in failure for failure in report.failures)


def in_recipe(change: Callable[[dict[str, Any]], Any]) -> Edit:
    def edit(model: onnx.ModelProto, folder: Path) -> None:
        recipe = json.loads((folder / "recipe.json").read_text())
        change(recipe)
        (folder / "recipe.json").write_text(json.dumps(recipe))

    return edit


def test_a_model_that_has_lost_more_than_it_kept_is_refused(quantized_bundle: QuantizedBundle) -> None:
    parity = Bundle.open(quantized_bundle("gqa", "int8")).file("parity.json")
    report = ParityReport.model_validate_json(parity.read_text())
    assert loss_failures(report.loss) == []
    errors = (0.99, 1.0, float("nan"), float("inf"))
    lost = [loss.model_copy(update={"kl": error}) for loss, error in zip(report.loss, errors)]
    assert [failure.split(" loops")[0] for failure in loss_failures(lost)] == ["at 2", "at 4", "at 6"]


def test_a_model_whose_ranges_are_far_too_wide_is_not_kept(
    make_bundle: Callable[..., Bundle], gqa_config: MythosConfig, quantized_bundle: QuantizedBundle
) -> None:
    """Graph and PyTorch agree, and all that is left of the activations is zero."""
    recipe = Recipe.from_file(Bundle.open(quantized_bundle("gqa", "int8")).file("recipe.json"))
    wide = {
        name: found.model_copy(update={"limit": [1000 * limit for limit in found.limit]})
        for name, found in recipe.activations.items()
    }
    options = QuantizeOptions(recipe=recipe.model_copy(update={"activations": wide}), ranges="shared")
    with pytest.raises(ParityFailed, match="quantized, this is another model"):
        make_bundle(gqa_config, precision="int8", loops="2", prove=prove, quantize=options)
