"""How a model is to be quantised: what is asked for and what is measured become the choices of one export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from calibration.calibrate import calibrate, check_samples, model_id
from calibration.data import Samples, default_samples, read_samples
from calibration.errors import CalibrationError
from calibration.recipe import Method, Ranges, Recipe
from calibration.sensitivity import choose_kept
from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle, TextRecord
from mythos_export.linears import kept_layers
from mythos_export.parity.source import load_graph
from mythos_export.progress import Reporter
from mythos_export.quantization import Choices, Quantization
from reference_model.checkpoint import WeightSource
from reference_model.config import MythosConfig

__all__ = ["Chosen", "QuantizeOptions", "choose", "samples_for"]

FloatBundle = Callable[[], AbstractContextManager[Bundle]]

DEFAULT_METHOD: Method = "minmax"
DEFAULT_RANGES: Ranges = "auto"


@dataclass(frozen=True)
class QuantizeOptions:
    """What the user asked for; None is our choice."""

    data: Path | None = None
    recipe: Recipe | None = None
    method: Method | None = None
    ranges: Ranges | None = None
    depths: int | None = None  # loops to calibrate
    keep: tuple[str, ...] = ()  # layers to keep in float, `*` for any part of a name
    keep_budget: float | None = None  # share of the weights that may stay in float where that helps most


@dataclass(frozen=True)
class Chosen:
    """The choices of an export, and what led to them."""

    choices: Choices
    recipe: Recipe | None
    ranges: Ranges | None
    kept: dict[str, str]  # layer -> why


def choose(
    quantization: Quantization,
    always: Mapping[str, str],
    options: QuantizeOptions,
    config: MythosConfig,
    source: WeightSource,
    tokenizer: Path | None,
    text: TextRecord | None,
    float_bundle: FloatBundle,
    report: Reporter,
) -> Chosen:
    """Calibrate where that is needed, and settle what stays in float.

    Args:
        always: layers that stay in float whatever is asked for, and why.
        text: which special tokens stand around a prompt, and so around the texts of the data.
        float_bundle: makes the same model in fp32, with the Loop, for as long as it is looked at.

    Raises:
        CalibrationError: unusable data or recipe, or a layer to keep that there is not.
    """
    recipe = options.recipe
    samples = samples_for(options.data, config, tokenizer, text) if recipe is None or options.keep_budget else None
    if options.data is not None and not quantization.activations and options.keep_budget is None:
        name = quantization.format.name
        report.say(f"{name} quantises weights only: the calibration data is of use for --keep auto alone")
    if recipe is not None:
        _check_recipe(recipe, quantization, config)
    elif quantization.activations:
        assert samples is not None
        with float_bundle() as bundle:
            recipe = _calibrate(quantization, options, config, samples, bundle, report)
    ranges = None if not quantization.activations else options.ranges or DEFAULT_RANGES
    limits = recipe.limits(ranges) if recipe is not None and ranges is not None else {}
    kept = {**dict.fromkeys(kept_layers(config, options.keep), "--keep"), **always}
    choices = Choices(limits, frozenset(kept))
    if options.keep_budget is not None:
        assert samples is not None
        kept |= choose_kept(quantization, choices, recipe, config, source, samples, options.keep_budget, report)
    return Chosen(Choices(limits, frozenset(kept)), recipe, ranges, kept)


def samples_for(
    data: Path | None, config: MythosConfig, tokenizer: Path | None, text: TextRecord | None = None
) -> Samples:
    """The user's data, or a default set."""
    vocab_size, max_seq_len = config.vocab_size, config.max_seq_len
    if data is None:
        return default_samples(vocab_size=vocab_size, max_seq_len=max_seq_len, tokenizer=tokenizer, text=text)
    return read_samples(data, vocab_size=vocab_size, max_seq_len=max_seq_len, tokenizer=tokenizer, text=text)


def _check_recipe(recipe: Recipe, quantization: Quantization, config: MythosConfig) -> None:
    precision = quantization.format.name
    if recipe.model != model_id(config):
        raise CalibrationError("--recipe was made for a model of another config; calibrate this one")
    if recipe.precision != precision and recipe.method in ("entropy", "mse"):
        raise CalibrationError(
            f"--recipe holds limits that {recipe.method} chose for {recipe.precision}, not {precision}; calibrate again"
        )


def _calibrate(
    quantization: Quantization,
    options: QuantizeOptions,
    config: MythosConfig,
    samples: Samples,
    bundle: Bundle,
    report: Reporter,
) -> Recipe:
    method = options.method or DEFAULT_METHOD
    depths = options.depths or config.max_loop_iters
    check_samples(samples, method)
    report.say(f"calibrating on {samples.origin}: {len(samples.sequences)} sequences, {samples.tokens} tokens")
    passes = 1 if method == "minmax" else 2
    with report.step(f"calibrate ({method}, {depths} loops)", passes * samples.tokens) as advance:
        return calibrate(
            OnnxRuntimeEngine(bundle, spinning=False),
            lambda: load_graph(bundle, bundle.manifest.graphs[0].file),
            config,
            samples,
            depths=depths,
            method=method,
            number_format=quantization.format,
            progress=advance,
        )
