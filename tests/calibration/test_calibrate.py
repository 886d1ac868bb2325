"""From samples to a recipe: it names everything, says what was seen, and refuses what cannot be measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest
from stored_weights import GivenWeights

from calibration.calibrate import calibrate, check_samples, model_id
from calibration.data import Samples
from calibration.errors import CalibrationError
from calibration.methods import METHODS, MINIMUM_TOKENS
from calibration.recipe import Method, Recipe
from calibration.statistics import find_points
from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle
from mythos_export.number_formats import FORMATS
from mythos_export.parity.source import load_graph
from reference_model.checkpoint import SeededWeights
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

MakeModel = Callable[[], ir.Model]
Make = Callable[..., Recipe]
MakeBundle = Callable[..., Bundle]

DEPTHS = 3
# The other attention's ranges are compared with those of another calibrator, in test_oracle.py.
GQA = pytest.mark.parametrize("config", ["gqa"], indirect=True)


def random_samples(sequences: int, tokens: int, vocab_size: int) -> Samples:
    ids = np.random.default_rng(5).integers(0, vocab_size, (sequences, tokens))
    return Samples(tuple(ids), "random tokens")


@pytest.fixture(scope="module")
def make(engine: OnnxRuntimeEngine, make_model: MakeModel, config: MythosConfig) -> Make:
    """A recipe: `make(method="minmax", number_format="int8", samples=...)`."""

    def recipe(
        method: Any = "minmax",
        number_format: str = "int8",
        samples: Samples | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Recipe:
        return calibrate(
            engine,
            make_model,
            config,
            samples or random_samples(4, 128, config.vocab_size),
            depths=DEPTHS,
            method=method,
            number_format=FORMATS[number_format],
            progress=progress,
        )

    return recipe


@pytest.fixture(scope="module")
def recipes(make: Make) -> dict[str, Recipe]:
    """By method, from the same samples."""
    return {method: make(method) for method in METHODS}


@GQA
class TestTheRecipe:
    def test_names_every_activation_and_what_it_feeds(
        self, recipes: dict[str, Recipe], make_model: MakeModel, config: MythosConfig
    ) -> None:
        feeds = {point.name: list(point.feeds) for point in find_points(make_model(), architecture(config))}
        fed = [layer for layers in feeds.values() for layer in layers]
        assert sorted(fed) == sorted(name for name in architecture(config).layers if name != "embed")
        for recipe in recipes.values():
            assert {name: found.feeds for name, found in recipe.activations.items()} == feeds

    def test_has_a_range_per_depth_in_the_loop_and_one_elsewhere(self, recipes: dict[str, Recipe]) -> None:
        for recipe in recipes.values():
            for name, found in recipe.activations.items():
                depths = DEPTHS if name.startswith("recurrent.") else 1
                assert [len(found.low), len(found.high), len(found.limit)] == [depths] * 3

    def test_says_what_it_was_made_from(self, recipes: dict[str, Recipe], config: MythosConfig) -> None:
        for method, recipe in recipes.items():
            assert (recipe.method, recipe.precision, recipe.depths) == (method, "int8", DEPTHS)
            assert (recipe.samples, recipe.tokens, recipe.data) == (4, 512, "random tokens")
            assert recipe.model == model_id(config)

    def test_is_the_same_every_time(self, recipes: dict[str, Recipe], make: Make) -> None:
        again = make("mse")
        assert again == recipes["mse"]
        assert again.to_json() == recipes["mse"].to_json()

    def test_does_not_depend_on_the_order_of_the_samples(self, make: Make, config: MythosConfig) -> None:
        """But for which sequence runs to which shallower depth too: all are alike then."""
        samples = random_samples(4, 32, config.vocab_size)
        turned = Samples((*samples.sequences[2:], *samples.sequences[:2]), samples.origin)
        assert make(samples=turned) == make(samples=samples)


def test_methods_are_those_a_recipe_knows() -> None:
    assert get_args(Method) == METHODS


@GQA
class TestMethods:
    def test_minmax_is_what_was_seen(self, recipes: dict[str, Recipe]) -> None:
        for found in recipes["minmax"].activations.values():
            assert found.limit == np.maximum(np.abs(found.low), np.abs(found.high)).tolist()

    def test_all_see_the_same(self, recipes: dict[str, Recipe]) -> None:
        for recipe in recipes.values():
            for name, found in recipe.activations.items():
                wanted = recipes["minmax"].activations[name]
                assert (found.low, found.high) == (wanted.low, wanted.high)

    @pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
    def test_others_are_narrower_or_equal(self, recipes: dict[str, Recipe], method: str) -> None:
        shares = [
            ours / theirs
            for name, found in recipes[method].activations.items()
            for ours, theirs in zip(found.limit, recipes["minmax"].activations[name].limit)
        ]
        assert all(1 / 16 <= share <= 1 for share in shares)
        assert min(shares) < 0.99

    def test_depend_on_the_numbers_where_they_must(self, recipes: dict[str, Recipe], make: Make) -> None:
        """Eight bits that are spaced evenly, and eight that are not, have other best limits."""
        assert make("mse", "fp8").activations != recipes["mse"].activations
        fp8 = make("percentile", "fp8")
        assert fp8.precision == "fp8" and fp8.activations == recipes["percentile"].activations


@GQA
class TestHistograms:
    def test_hold_every_value_of_every_run(
        self, make: Make, config: MythosConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each sequence runs at all depths, and once more at one or two of them in turn."""
        seen: list[tuple[int, float]] = []

        def limit(counts: Any, top: float, *rest: Any) -> float:
            seen.append((int(counts.sum()), top))
            return top

        monkeypatch.setattr("calibration.calibrate.limit_of", limit)
        recipe = make("percentile")
        calls = iter(seen)
        for name, found in recipe.activations.items():
            tops = np.maximum(np.abs(found.low), np.abs(found.high)).tolist()
            counts, given = zip(*(next(calls) for _ in tops))
            assert list(given) == tops, name
            # of the head, the last token of each call: a prefill, and 8 that are decoded
            tokens = [4 * 9 * 2] if name == "head.input" else [512 + 512, 512 + 256, 512][: len(tops)]
            (width,) = {count / token for count, token in zip(counts, tokens)}
            assert width == int(width) and (width == config.dim or not name.endswith(("wq.input", "head.input"))), name
        assert next(calls, None) is None


@GQA
class TestProgress:
    @pytest.mark.parametrize(("method", "passes"), [("minmax", 1), ("percentile", 2)])
    def test_counts_every_token(self, make: Make, method: str, passes: int) -> None:
        done: list[int] = []
        make(method, progress=done.append)
        assert done == [128] * 4 * passes


class TestTooLittleData:
    @pytest.mark.parametrize("method", METHODS)
    def test_is_refused_one_token_short(self, method: str) -> None:
        needed = MINIMUM_TOKENS[method]
        check_samples(Samples((np.zeros(needed, np.int64),), "enough.npy"), method)
        with pytest.raises(CalibrationError) as refused:
            check_samples(Samples((np.zeros(needed - 1, np.int64),), "few.npy"), method)
        assert str(refused.value) == (
            f"few.npy: {needed - 1} tokens are too few for method {method}, which needs {needed}; "
            "give more data, or another --calibration-method"
        )

    @GQA
    def test_before_anything_runs(self, make: Make, config: MythosConfig) -> None:
        with pytest.raises(CalibrationError, match="511 tokens are too few for method entropy"):
            make("entropy", samples=random_samples(7, 73, config.vocab_size), progress=pytest.fail)


@GQA
class TestSequencesOfAnyLength:
    @pytest.mark.parametrize("length", [1, 3])
    def test_are_fed_whole(self, make: Make, config: MythosConfig, length: int) -> None:
        """One token is a prefill alone; more leave half to be decoded, eight at most."""
        recipe = make(samples=random_samples(-(-32 // length), length, config.vocab_size))
        assert all(np.isfinite(found.limit).all() for found in recipe.activations.values())


def overflowing(config: MythosConfig, changes: dict[str, Any]) -> GivenWeights:
    """Seeded weights, some of them changed: finite, but not what comes of them."""
    source = SeededWeights(config, 0)
    state = {name: source.read(name) for name in source.names()}
    for name, change in changes.items():
        change(state[name])
    return GivenWeights(config, state)


def scaled(by: float) -> Callable[[Any], Any]:
    return lambda tensor: tensor.mul_(by)


def filled(value: float, row: int | slice = slice(None)) -> Callable[[Any], Any]:
    return lambda tensor: tensor[row].fill_(value)


SHARED = "recurrent.block.ffn.shared_experts.0"
OVERFLOW = {f"{SHARED}.gate.weight": scaled(1e25), f"{SHARED}.up.weight": scaled(1e25)}


@pytest.fixture
def complaint(make_bundle: MakeBundle, gqa_config: MythosConfig) -> Callable[..., str]:
    """What is said of a model with these changes: `complaint(changes, depths=4, method="minmax")`."""

    def refusal(changes: dict[str, Any], depths: int = 4, method: Any = "minmax") -> str:
        bundle = make_bundle(gqa_config, source=overflowing(gqa_config, changes))
        with pytest.raises(CalibrationError) as refused:
            calibrate(
                OnnxRuntimeEngine(bundle, threads=1, spinning=False),
                lambda: load_graph(bundle, "model.onnx"),
                gqa_config,
                random_samples(4, 128, gqa_config.vocab_size),
                depths=depths,
                method=method,
                number_format=FORMATS["int8"],
                progress=lambda done: None,
            )
        message = str(refused.value)
        assert message.isprintable()
        return message.removesuffix(" on the calibration data; check the checkpoint")

    return refusal


class TestActivationsThatAreNotFinite:
    """A checkpoint whose weights are finite and whose activations overflow."""

    @pytest.mark.parametrize("method", ["minmax", "percentile"])
    def test_are_named(self, complaint: Callable[..., str], method: str) -> None:
        wanted = f"activation {SHARED}.down.input is not finite (NaN or infinite) at depth 1"
        assert complaint(OVERFLOW, depths=1, method=method) == wanted

    def test_are_named_outside_the_loop(self, complaint: Callable[..., str]) -> None:
        changes = {"prelude.0.ffn.gate.weight": scaled(1e25), "prelude.0.ffn.up.weight": scaled(1e25)}
        wanted = "activation prelude.0.ffn.down.input is not finite (NaN or infinite) at depth 1"
        assert complaint(changes) == wanted

    def test_are_named_with_their_depth(self, complaint: Callable[..., str]) -> None:
        """The third row of the depth LoRA's table is read at depth 3, and what comes of it at depth 4."""
        changes = {"recurrent.lora.scale.weight": filled(1e38, row=2), "recurrent.lora.B": filled(1e5)}
        wanted = "activation recurrent.block.attn.wq.input is not finite (NaN or infinite) at depth 4"
        assert complaint(changes) == wanted

    def test_are_named_where_they_begin(self, complaint: Callable[..., str]) -> None:
        """What overflows at depth 1 is behind every activation of depth 2."""
        assert complaint(OVERFLOW) == f"activation {SHARED}.down.input is not finite (NaN or infinite) at depth 1"

    def test_are_seen_where_other_values_are_finite(self, complaint: Callable[..., str]) -> None:
        """RMSNorm makes NaN of an infinite channel, and 0 of the others."""
        changes = {"recurrent.lora.scale.weight": filled(1e38, row=2)}
        wanted = "activation recurrent.block.attn.wq.input is not finite (NaN or infinite) at depth 4"
        assert complaint(changes) == wanted

    def test_are_seen_in_the_logits(self, complaint: Callable[..., str]) -> None:
        changes = {"embed.weight": scaled(1e15), "norm.weight": scaled(1e30)}
        assert complaint(changes) == "the model's own logits are not finite (NaN)"

    def test_nor_are_they_of_use_where_they_are_nearly_so(self, complaint: Callable[..., str]) -> None:
        changes = {"prelude.0.ffn.gate.weight": scaled(1e16), "prelude.0.ffn.up.weight": scaled(1e16)}
        assert "prelude.0.ffn.down.input" in complaint(changes)


class TestActivationsThatAreAlwaysZero:
    def test_have_a_range_all_the_same(self, make_bundle: MakeBundle, gqa_config: MythosConfig) -> None:
        """Nothing is divided by zero: the limit is 1."""
        source = overflowing(gqa_config, {f"{SHARED}.up.weight": scaled(0)})
        bundle = make_bundle(gqa_config, source=source)
        for method in ("minmax", "mse"):
            recipe = calibrate(
                OnnxRuntimeEngine(bundle, threads=1, spinning=False),
                lambda: load_graph(bundle, "model.onnx"),
                gqa_config,
                random_samples(4, 128, gqa_config.vocab_size),
                depths=2,
                method=method,  # type: ignore[arg-type]
                number_format=FORMATS["int8"],
                progress=lambda done: None,
            )
            found = recipe.activations[f"{SHARED}.down.input"]
            assert (found.low, found.high) == ([0, 0], [0, 0])
            assert found.limit == [1, 1]
