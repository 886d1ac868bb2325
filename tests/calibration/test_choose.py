"""What is asked for becomes the choices of an export: calibrated where that is needed, and only there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.calibrate import model_id
from calibration.choose import Chosen, QuantizeOptions, choose, samples_for
from calibration.data import Samples
from calibration.errors import CalibrationError
from calibration.recipe import Recipe
from mythos_export.bundle import Bundle
from mythos_export.linears import UnknownLayer
from mythos_export.progress import Reporter
from mythos_export.quantization import QUANTIZED, MissingRange
from reference_model.checkpoint import SeededWeights
from reference_model.config import MythosConfig

MakeBundle = Callable[..., Bundle]
Choose = Callable[..., Chosen]


@pytest.fixture(scope="module")
def config(gqa_config: MythosConfig) -> MythosConfig:
    return gqa_config


@pytest.fixture(scope="module")
def bundle(tiny_gqa_bundle: Path) -> Bundle:
    return Bundle.open(tiny_gqa_bundle)


@pytest.fixture(scope="module")
def choices_for(config: MythosConfig, bundle: Bundle) -> Choose:
    """`choices_for(precision, data=..., ...)`; it must not ask for a float bundle where `calibrates=False`."""

    @contextmanager
    def float_bundle() -> Iterator[Bundle]:
        yield bundle

    def make(
        precision: str, *, calibrates: bool = True, always: Mapping[str, str] | None = None, **options: Any
    ) -> Chosen:
        return choose(
            QUANTIZED[precision],
            always or {},
            QuantizeOptions(**options),
            config,
            SeededWeights(config, 0),
            None,
            None,
            float_bundle if calibrates else pytest.fail,
            Reporter(quiet=True),
        )

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, config: MythosConfig) -> Path:
    """Enough for every method."""
    path = tmp_path_factory.mktemp("data") / "tokens.npy"
    np.save(path, np.random.default_rng(1).integers(0, config.vocab_size, (4, 128)))
    return path


@pytest.fixture(scope="module")
def made(choices_for: Choose, data: Path) -> Callable[[str, str], Recipe]:
    """The recipe of a precision and a method, at two depths."""
    recipes: dict[tuple[str, str], Recipe] = {}

    def recipe(precision: str, method: str) -> Recipe:
        if (precision, method) not in recipes:
            found = choices_for(precision, data=data, method=method, depths=2).recipe
            assert found is not None
            recipes[precision, method] = found
        return recipes[precision, method]

    return recipe


class TestCalibration:
    def test_takes_the_models_own_depth_and_minmax(self, choices_for: Choose, config: MythosConfig) -> None:
        chosen = choices_for("int8")
        recipe = chosen.recipe
        assert recipe is not None
        assert (recipe.method, recipe.depths, recipe.precision) == ("minmax", config.max_loop_iters, "int8")
        assert recipe.data == "random tokens, seed 0"
        assert chosen.ranges == "auto"
        assert chosen.choices.limits == recipe.limits("auto")
        assert (chosen.kept, chosen.choices.keep) == ({}, frozenset())

    @pytest.mark.parametrize("ranges", ["shared", "per-depth", "auto"])
    def test_gives_the_limits_asked_for(self, made: Any, choices_for: Choose, ranges: Any) -> None:
        recipe = made("int8", "minmax")
        chosen = choices_for("int8", recipe=recipe, ranges=ranges, calibrates=False)
        assert chosen.ranges == ranges
        assert chosen.choices.limits == recipe.limits(ranges)
        depths = {len(limits) for name, limits in chosen.choices.limits.items() if name.startswith("recurrent.")}
        assert depths <= {"shared": {1}, "per-depth": {2}, "auto": {1, 2}}[ranges]

    def test_is_not_needed_for_weights_alone(self, choices_for: Choose) -> None:
        chosen = choices_for("int4", calibrates=False)
        assert (chosen.recipe, chosen.ranges, chosen.choices.limits) == (None, None, {})

    def test_uses_the_data_given(self, made: Any, data: Path) -> None:
        recipe = made("fp8", "mse")
        assert recipe.data.startswith("tokens.npy (sha256 ")
        assert (recipe.samples, recipe.tokens) == (4, 512)
        assert recipe.precision == "fp8"


class TestData:
    @pytest.mark.parametrize(
        ("rows", "options", "complaint"),
        [
            (np.zeros((0, 4), np.int64), {}, "holds no tokens"),
            (np.full((4, 16), -1), {}, "it is all padding"),
            (np.full((4, 16), 7), {}, "every token is id 7: that is padding"),
            (np.full((1, 4), 97), {}, "token id 97 at position 0 is not in 0..96"),
            (np.arange(31)[None], {}, "31 tokens are too few for method minmax, which needs 32"),
            (np.arange(90)[None], {"method": "mse"}, "90 tokens are too few for method mse, which needs 512"),
        ],
    )
    def test_that_is_of_no_use(
        self, choices_for: Choose, tmp_path: Path, rows: Any, options: dict[str, Any], complaint: str
    ) -> None:
        np.save(tmp_path / "x.npy", rows)
        with pytest.raises(CalibrationError) as refused:
            choices_for("int8", data=tmp_path / "x.npy", **options)
        assert complaint in str(refused.value)

    def test_is_the_default_where_none_is_given(self, config: MythosConfig) -> None:
        samples = samples_for(None, config, None)
        assert isinstance(samples, Samples) and samples.tokens >= 512


class TestRecipes:
    def test_of_another_config_are_refused(self, made: Any, choices_for: Choose, config: MythosConfig) -> None:
        other = made("int8", "minmax").model_copy(update={"model": model_id(replace(config, dim=2 * config.dim))})
        with pytest.raises(CalibrationError, match="was made for a model of another config; calibrate this one"):
            choices_for("int8", recipe=other, calibrates=False)

    @pytest.mark.parametrize("method", ["mse", "entropy"])
    def test_whose_limits_suit_other_numbers_are_refused(self, made: Any, choices_for: Choose, method: str) -> None:
        recipe = made("int8", method)
        assert choices_for("int8", recipe=recipe, calibrates=False).recipe == recipe
        with pytest.raises(CalibrationError, match=f"holds limits that {method} chose for int8, not fp8"):
            choices_for("fp8", recipe=recipe, calibrates=False)

    @pytest.mark.parametrize("method", ["minmax", "percentile"])
    def test_that_say_how_far_values_reach_suit_all(self, made: Any, choices_for: Choose, method: str) -> None:
        recipe = made("int8", method)
        assert choices_for("fp8", recipe=recipe, calibrates=False).choices.limits == recipe.limits("auto")

    @pytest.mark.parametrize("lost", ["head.input", "recurrent.block.ffn.routed_experts.*.down.input"])
    def test_that_lack_an_activation_are_refused(
        self, made: Any, make_bundle: MakeBundle, config: MythosConfig, lost: str
    ) -> None:
        activations = {name: found for name, found in made("int8", "minmax").activations.items() if name != lost}
        recipe = made("int8", "minmax").model_copy(update={"activations": activations})
        with pytest.raises(MissingRange, match=f"the recipe has no range for {lost.replace('*', '.')}"):
            make_bundle(config, precision="int8", quantize=QuantizeOptions(recipe=recipe))

    def test_give_the_bundle_they_came_from_byte_by_byte(
        self, make_bundle: MakeBundle, config: MythosConfig, data: Path
    ) -> None:
        options = QuantizeOptions(data=data, ranges="per-depth", depths=2)
        first = make_bundle(config, precision="int8", quantize=options)
        recipe = Recipe.from_file(first.file("recipe.json"))
        again = make_bundle(config, precision="int8", quantize=QuantizeOptions(recipe=recipe, ranges="per-depth"))
        for name in ("model.onnx", "model.onnx.data", "recipe.json", "config.json"):
            assert (first.path / name).read_bytes() == (again.path / name).read_bytes(), name
        assert again.manifest.quantization == first.manifest.quantization
        assert again.manifest.files.keys() == first.manifest.files.keys()


class TestKept:
    def test_are_the_layers_that_patterns_name(self, choices_for: Choose) -> None:
        chosen = choices_for("int4", keep=("head", "coda.1.*", "recurrent.block.ffn.routed_experts.*.down"))
        names = {"head", "recurrent.block.ffn.routed_experts.*.down"}
        assert chosen.kept.keys() == chosen.choices.keep
        assert names < chosen.kept.keys()
        assert all(name.startswith("coda.1.") for name in chosen.kept.keys() - names)
        assert set(chosen.kept.values()) == {"--keep"}

    def test_are_what_the_target_keeps_too(self, choices_for: Choose) -> None:
        chosen = choices_for("int4", keep=("head",), always={"coda.0.attn.wo": "a reason"})
        assert chosen.kept == {"head": "--keep", "coda.0.attn.wo": "a reason"}
        assert chosen.choices.keep == {"head", "coda.0.attn.wo"}

    @pytest.mark.parametrize("pattern", ["coda.9.*", "", "router", "recurrent.act.halt", "[", "coda.0.ffn.up.weight"])
    def test_must_exist(self, choices_for: Choose, pattern: str) -> None:
        with pytest.raises(UnknownLayer) as refused:
            choices_for("int4", keep=("head", pattern))
        assert str(refused.value).startswith(f"--keep {pattern!r} names no layer; layers are: head, prelude.0.")
