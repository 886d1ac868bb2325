"""From what the user typed to a question that has an answer."""

from __future__ import annotations

from pathlib import Path

from mythos_export.bundle import Bundle
from mythos_export.described import architecture_of, has_config
from mythos_export.inspection.contents import data_bytes, read_contents
from mythos_export.planning.devices import find_device
from mythos_export.planning.models import Stored, stored_from_config
from mythos_export.planning.plan import Question
from mythos_export.targets import TARGETS
from reference_model.open_mythos.config import SCALES, MythosConfig, config_for_scale
from reference_model.open_mythos.description import architecture

__all__ = ["PlanError", "precisions_of", "read_bundle", "read_config", "read_question"]

_DEFAULT_CONTEXT = 4096
_MOST = 1 << 20  # loops, and sequences


class PlanError(ValueError):
    """A plan that cannot be made as asked for."""


def read_config(
    scale: str | None, config_file: Path | None, attn: str | None, target: str | None, precision: str | None
) -> Stored:
    """A model that is not exported yet.

    Raises:
        PlanError: no model is named, or two are; no such attention, target or precision.
        ConfigError: no such scale, or the config is no good.
    """
    if (scale is None) == (config_file is None):
        known = f"--scale (nano, {', '.join(SCALES)}), --config FILE or --bundle DIR"
        raise PlanError(f"which model? give one of {known}")
    if attn not in (None, "mla", "gqa"):
        raise PlanError(f"--attn is {attn!r}; it must be mla or gqa")
    config = config_for_scale(scale) if scale is not None else MythosConfig.from_file(config_file or Path())
    config = config if attn is None else config.with_attention(attn)
    target, precision = target or "portable", precision or "fp32"
    if precision not in precisions_of(target):
        known = ", ".join(precisions_of(target))
        raise PlanError(f"target {target} has no precision {precision!r}; it has: {known}")
    return stored_from_config(scale or (config_file or Path()).stem, architecture(config), target, precision)


def precisions_of(target: str) -> tuple[str, ...]:
    """The precisions of a target.

    Raises:
        PlanError: no such target.
    """
    if target not in TARGETS:
        raise PlanError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
    return TARGETS[target].precisions


def read_bundle(path: Path, **others: object) -> Stored:
    """A model that is exported: its own tensors are counted.

    Args:
        others: options that name a model, by name; none of them may be given beside a bundle.

    Raises:
        PlanError: one is, or the bundle is not one whose work can be counted.
        BundleError: not a bundle, or damaged.
    """
    for name, value in others.items():
        if value is not None:
            raise PlanError(f"--{name} does nothing for a bundle, which says it itself; leave it out")
    bundle = Bundle.open(path, check_hashes=False)
    manifest = bundle.manifest
    if not has_config(bundle):
        raise PlanError(f"{path}: has no config.json, so its work cannot be counted; plan with --config FILE")
    model = architecture_of(bundle)
    if manifest.precision not in precisions_of(manifest.target):
        raise PlanError(f"{path}: precision {manifest.precision[:40]!r} is unknown to this release")
    record = manifest.quantization
    kept = set() if record is None else set(model.layers) - set(record.quantized)
    tensors = read_contents(bundle, model).tensors
    graphs = [graph.loops for graph in manifest.graphs]
    return Stored(
        manifest.name,
        model,
        manifest.target,
        manifest.precision,
        tensors,
        data_bytes(bundle),
        manifest.cache,
        frozenset(kept),
        () if "dynamic" in graphs else tuple(sorted(loops for loops in graphs if loops != "dynamic")),
    )


def read_question(
    stored: Stored, *, context: int | None, loops: int | None, batch: int, chunk: int, device: str | None
) -> Question:
    """What is to run, checked.

    Raises:
        PlanError: a size that the model cannot have.
        InputFileError: no such device.
    """
    model, depths = stored.architecture, stored.depths
    context = min(model.max_positions, _DEFAULT_CONTEXT) if context is None else context
    if loops is None:
        loops = depths[-1] if depths else 1 if model.loop is None else model.loop.default
    for name, value, most in (
        ("context", context, model.max_positions),
        ("loops", loops, _MOST),
        ("batch", batch, _MOST),
        ("chunk", chunk, _MOST),
    ):
        if not 1 <= value <= most:
            raise PlanError(f"--{name} is {value}; it must lie in 1..{most}")
    if depths and loops not in depths:
        known = ", ".join(map(str, depths))
        raise PlanError(f"--loops is {loops}, but {stored.name} was exported with --loops {known}; leave it out")
    return Question(context, loops, batch, chunk, None if device is None else find_device(device))
