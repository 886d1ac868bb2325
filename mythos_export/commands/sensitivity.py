"""`mythos-export sensitivity BUNDLE`: what each layer costs when it is quantised."""

from __future__ import annotations

from pathlib import Path

from calibration.calibrate import calibrate, check_samples
from calibration.choose import DEFAULT_METHOD, DEFAULT_RANGES, samples_for
from calibration.data import Samples
from calibration.recipe import Recipe
from calibration.sensitivity import Sensitivity, measure_sensitivity
from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle, BundleError
from mythos_export.commands.output import print_json
from mythos_export.errors import RequestError
from mythos_export.parity.source import load_graph, recipe_of, source_of_bundle
from mythos_export.progress import Reporter
from mythos_export.quantization import QUANTIZED, Choices, Quantization
from mythos_export.targets import TARGETS, quantization_of, settled
from reference_model.config import MythosConfig

__all__ = ["run"]


def run(
    path: Path, *, precision: str | None, calibration_data: Path | None, checkpoint: Path | None, json: bool
) -> None:
    """Measure and print; ranges are the bundle's own, or calibrated now on a float bundle."""
    report = Reporter(quiet=json)
    bundle = Bundle.open(path)
    precision = precision or (bundle.manifest.precision if bundle.manifest.quantization is not None else "int8")
    config, source = source_of_bundle(bundle, checkpoint)
    quantization = _quantization(bundle, precision, config)
    tokenizer = bundle.file("tokenizer.json") if "tokenizer.json" in bundle.manifest.files else None
    samples = samples_for(calibration_data, config, tokenizer, bundle.manifest.text)
    recipe, choices = _ranges(bundle, quantization, config, samples, report)
    found = measure_sensitivity(quantization, choices, recipe, config, source, samples, report)
    print_json(found.model_dump()) if json else print(render(found))


def render(found: Sensitivity) -> str:
    """A row per layer, the dearest first."""
    total = sum(cost.weights for cost in found.layers)
    rows = [f"{cost.relative_error:>8.2%}  {cost.weights / total:>8.2%}  {cost.layer}" for cost in found.layers]
    loops = ", ".join(map(str, found.loops))
    return "\n".join(
        [
            f"{found.precision}: what each layer costs when it alone is quantised",
            f"(|error| / |fp32| of the logits, {found.tokens} tokens at {loops} loops)",
            "    cost   weights  layer",
            *rows,
            f"{found.relative_error:>8.2%}  all of them together",
        ]
    )


def _quantization(bundle: Bundle, precision: str, config: MythosConfig) -> Quantization:
    """What the precision means for the bundle's target."""
    target = bundle.manifest.target
    known = [name for name in TARGETS[target].precisions if name in QUANTIZED]
    if precision not in known:
        raise RequestError(f"--precision is {precision!r}; for target {target} it must be one of {', '.join(known)}")
    return quantization_of(target, precision, config)


def _ranges(
    bundle: Bundle, quantization: Quantization, config: MythosConfig, samples: Samples, report: Reporter
) -> tuple[Recipe | None, Choices]:
    precision = quantization.format.name
    if not quantization.activations:
        return None, settled(Choices(), bundle.manifest.target, config, precision)
    recipe = recipe_of(bundle)
    if recipe is not None and (recipe.precision == precision or recipe.method in ("minmax", "percentile")):
        ranges = bundle.manifest.quantization.ranges if bundle.manifest.quantization is not None else None
        return recipe, Choices(recipe.limits(ranges or DEFAULT_RANGES))
    if bundle.manifest.precision != "fp32" or bundle.manifest.graphs[0].loops != "dynamic":
        raise BundleError(
            f"{bundle.path}: has no ranges for {precision}; "
            "give a bundle quantised to it, or one in fp32 with --loops dynamic"
        )
    check_samples(samples, DEFAULT_METHOD)
    with report.step("calibrate", samples.tokens) as advance:
        recipe = calibrate(
            OnnxRuntimeEngine(bundle, spinning=False),
            lambda: load_graph(bundle, bundle.manifest.graphs[0].file),
            config,
            samples,
            depths=config.max_loop_iters,
            method=DEFAULT_METHOD,
            number_format=quantization.format,
            progress=advance,
        )
    return recipe, Choices(recipe.limits(DEFAULT_RANGES))
