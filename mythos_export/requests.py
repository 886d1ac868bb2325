"""From what the user typed to a checked export request."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

from calibration.choose import QuantizeOptions
from calibration.methods import METHODS
from calibration.recipe import Ranges, Recipe
from mythos_export.errors import RequestError
from mythos_export.minimum_runtime import read_version
from mythos_export.quantization import QUANTIZED
from mythos_export.targets import TARGETS, quantization_of
from reference_model.config import MythosConfig

__all__ = ["RequestError", "check_target", "default_name", "oldest_runtime", "quantize_options"]

_KEPT_SHARE = 0.05  # of the weights, for --keep auto


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


def oldest_runtime(version: str | None, target: str, precision: str) -> tuple[int, ...] | None:
    """The oldest ONNX Runtime that a bundle is to run on; None for no wish.

    Raises:
        RequestError: it is no version, or makes no difference.
    """
    if version is None:
        return None
    if target != "onnxruntime" or precision not in QUANTIZED:
        raise RequestError(
            f"--minimum-runtime does nothing for target {target} in {precision}, which runs on every supported release"
        )
    return read_version(version)


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
        CalibrationError: the recipe is none.
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
