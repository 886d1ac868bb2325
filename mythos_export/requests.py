"""From what the user typed to a checked export request."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

from calibration.choose import QuantizeOptions
from calibration.methods import METHODS
from calibration.recipe import Ranges, Recipe
from mythos_export.quantization import QUANTIZED
from mythos_export.targets import TARGETS, quantization_of
from reference_model.checkpoint import SeededWeights, WeightSource, open_checkpoint, parameter_shapes
from reference_model.config import SCALES, ConfigError, MythosConfig, config_for_scale

__all__ = ["RequestError", "check_target", "default_name", "find_tokenizer", "quantize_options", "resolve_model"]

_HARMLESS = ("dropout", "max_output_tokens", "max_seq_len")  # do not change what the weights compute
_KEPT_SHARE = 0.05  # of the weights, for --keep auto
_MOST_PARAMETERS = 1 << 60  # their bytes still count in 64 bits


class RequestError(ValueError):
    """Options that contradict each other or ask for what there is not."""


def resolve_model(
    scale: str | None, config_file: Path | None, checkpoint: Path | None, attn: str | None, seed: int
) -> tuple[str, MythosConfig, WeightSource]:
    """Which model: its name, its shape, its weights.

    Raises:
        RequestError: no model is named, or two are.
        ConfigError, CheckpointError: the model's shape or weights are no good.
    """
    if scale is not None and config_file is not None:
        raise RequestError("--scale and --config both name a model; give one")
    if attn not in (None, "mla", "gqa"):
        raise RequestError(f"--attn is {attn!r}; it must be mla or gqa")
    if not 0 <= seed < 1 << 63:
        raise RequestError(f"--seed is {seed}; it must lie in 0..2^63-1")
    config = _named_config(scale, config_file)
    if config is not None:
        _check_size(config)
        config = config.with_attention(attn) if attn is not None else config
    source = open_checkpoint(checkpoint) if checkpoint is not None else None
    config = _agree(config, source, checkpoint)
    if attn not in (None, config.attn_type):
        raise RequestError(f"--attn is {attn}, but the checkpoint's model has {config.attn_type} attention")
    name = scale or (config_file or checkpoint or Path("model")).stem
    return _file_name(name), config, source or SeededWeights(config, seed)


def _named_config(scale: str | None, config_file: Path | None) -> MythosConfig | None:
    if scale is not None:
        return config_for_scale(scale)
    return MythosConfig.from_file(config_file) if config_file is not None else None


def _config_beside(checkpoint: Path | None) -> MythosConfig | None:
    """The `config.json` next to a checkpoint file, where it is one of ours."""
    file = checkpoint.with_name("config.json") if checkpoint is not None and checkpoint.is_file() else None
    if file is None or not file.is_file():
        return None
    try:
        return MythosConfig.from_file(file)
    except ConfigError:  # another tool's
        return None


def _agree(named: MythosConfig | None, source: WeightSource | None, checkpoint: Path | None) -> MythosConfig:
    own = (source.config or _config_beside(checkpoint)) if source is not None else None
    if named is None and own is None:
        raise RequestError(f"which model? give --scale (nano, {', '.join(SCALES)}) or --config FILE")
    if named is None or own is None:
        return own or named  # type: ignore[return-value]
    for field in fields(MythosConfig):
        said, wanted = getattr(own, field.name), getattr(named, field.name)
        if said != wanted and field.name not in _HARMLESS:
            raise RequestError(
                f"the checkpoint was made with {field.name} {said}, not {wanted}; leave out --scale or --config"
            )
    return named


def _check_size(config: MythosConfig) -> None:
    weights = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    if weights > _MOST_PARAMETERS:
        raise ConfigError(
            f"the config has {weights:.1e} parameters, more than fit in any file; check its dims and counts"
        )


def check_target(target: str, precision: str, opset: int | None) -> int:
    """The opset to use.

    Raises:
        RequestError: no such target, or it does not have that precision or opset.
    """
    if target not in TARGETS:
        raise RequestError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
    entry = TARGETS[target]
    if precision not in entry.precisions:
        raise RequestError(f"target {target} has no precision {precision!r}; it has: {', '.join(entry.precisions)}")
    if opset is not None and not entry.opset <= opset <= entry.newest_opset:
        raise RequestError(f"--opset is {opset}; target {target} takes {entry.opset}..{entry.newest_opset}")
    return opset or entry.opset


def quantize_options(
    target: str,
    precision: str,
    config: MythosConfig,
    *,
    data: Path | None,
    method: str | None,
    depths: int | None,
    ranges: str | None,
    recipe: Path | None,
    keep: str | None,
) -> QuantizeOptions:
    """The options of quantisation.

    Raises:
        RequestError: one that does nothing here, or contradicts another.
        InputFileError: the recipe is none.
    """
    given = {
        "--calibration-data": data,
        "--calibration-method": method,
        "--calibration-loops": depths,
        "--ranges": ranges,
        "--recipe": recipe,
        "--keep": keep,
    }
    used = [name for name, value in given.items() if value is not None]
    if used and precision not in QUANTIZED:
        raise RequestError(f"{used[0]} does nothing for --precision {precision}; use {', '.join(QUANTIZED)}")
    names, budget = _kept(keep)
    if precision in QUANTIZED:
        _check_used(target, precision, config, used, automatic=budget is not None)
    for name, value, known in (("--calibration-method", method, METHODS), ("--ranges", ranges, get_args(Ranges))):
        if value is not None and value not in known:
            raise RequestError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    return QuantizeOptions(
        data=data,
        recipe=Recipe.from_file(recipe) if recipe is not None else None,
        method=method,  # type: ignore[arg-type]  # checked above
        ranges=ranges,  # type: ignore[arg-type]
        depths=depths,
        keep=names,
        keep_budget=budget,
    )


def _check_used(target: str, precision: str, config: MythosConfig, used: list[str], *, automatic: bool) -> None:
    """An option that would be dropped without a word is a mistake."""
    ignored = {"--calibration-method", "--calibration-loops"}
    if not quantization_of(target, precision, config).activations:
        where = f" of target {target}" if QUANTIZED[precision].activations else ""
        reason, ignored = f"{precision}{where} quantises weights only", ignored | {"--ranges", "--recipe"}
    elif "--recipe" in used:
        reason = "--recipe is a calibration already"
        ignored |= set() if automatic else {"--calibration-data"}
    else:
        return
    for name in used:
        if name in ignored:
            raise RequestError(f"{name} does nothing here ({reason}); leave it out")


def _kept(keep: str | None) -> tuple[tuple[str, ...], float | None]:
    """Names of `--keep`, and the budget of `auto`."""
    parts = [part.strip() for part in (keep or "").split(",") if part.strip()]
    if keep is not None and not parts:
        raise RequestError("--keep names nothing; give layers such as coda.*, or auto")
    automatic = [part for part in parts if part == "auto" or part.startswith("auto:")]
    if not automatic:
        return tuple(parts), None
    share = automatic[0].removeprefix("auto").removeprefix(":") or str(_KEPT_SHARE)
    try:
        budget = float(share)
    except ValueError:
        budget = math.nan
    if not 0 < budget < 1 or len(automatic) > 1:
        raise RequestError(f"--keep is {keep!r}; after auto: comes one share of the weights between 0 and 1")
    return tuple(part for part in parts if part not in automatic), budget


def default_name(model: str, attn: str | None, target: str, precision: str) -> str:
    """Folder name of a bundle; the target is in it where it is not the usual one."""
    return "-".join(filter(None, ("mythos", model, attn, target if target != "portable" else None, precision)))


def find_tokenizer(checkpoint: Path | None) -> Path | None:
    """The `tokenizer.json` beside a checkpoint, if there is one.

    Raises:
        RequestError: it is there but cannot be read as one.
    """
    if checkpoint is None:
        return None
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise RequestError(
            f"{file}: not a tokenizer ({' '.join(str(error).split())[:120]}); repair or remove it"
        ) from error
    return file


def _file_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")
    if not name:
        raise ConfigError(f"{text!r} gives no usable name; pass --output")
    return name
