"""Which model a command is about: its name, its shape and its weights, from options that must not contradict."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mythos_export.errors import RequestError
from reference_model.checkpoint import SeededWeights, WeightSource, open_checkpoint, parameter_shapes
from reference_model.config import SCALES, ConfigError, MythosConfig, config_for_scale, read_json_object
from reference_model.config_fields import without_foreign_fields

__all__ = ["ModelChoice", "resolve_model"]

_HARMLESS = ("dropout", "max_output_tokens", "max_seq_len")  # do not change what the weights compute
_MOST_PARAMETERS = 1 << 60  # their bytes still count in 64 bits
_NAMELESS = "model"


@dataclass(frozen=True)
class ModelChoice:
    """A model to export."""

    name: str
    config: MythosConfig
    source: WeightSource
    notes: tuple[str, ...]  # what was passed over, a line each


@dataclass(frozen=True)
class _Statement:
    """What one place says about the model's shape."""

    where: str
    values: Mapping[str, Any]  # fields that it gives, open-mythos' own only
    config: MythosConfig | None  # where all of them are valid
    problem: str | None  # where they are not


def resolve_model(
    scale: str | None, config_file: Path | None, checkpoint: Path | None, attn: str | None, seed: int
) -> ModelChoice:
    """Which model.

    Raises:
        RequestError: no model is named, or two that differ.
        ConfigError, CheckpointError: the model's shape or weights are no good.
    """
    if scale is not None and config_file is not None:
        raise RequestError("--scale and --config both name a model; give one")
    if attn not in (None, "mla", "gqa"):
        raise RequestError(f"--attn is {attn!r}; it must be mla or gqa")
    if not 0 <= seed < 1 << 63:
        raise RequestError(f"--seed is {seed}; it must lie in 0..2^63-1")
    named = _named(scale, config_file, attn)
    if checkpoint is None:
        if named is None:
            raise RequestError(_which_model())
        return ModelChoice(_name(scale, config_file, None), named, SeededWeights(named, seed), ())
    source = open_checkpoint(checkpoint)
    statements = [_of_source(source, checkpoint), _beside(checkpoint, config_file)]
    config, notes = _agree(named, config_file, [each for each in statements if each is not None])
    if attn not in (None, config.attn_type):
        raise RequestError(f"--attn is {attn}, but the checkpoint's model has {config.attn_type} attention")
    return ModelChoice(_name(scale, config_file, checkpoint), config, source, tuple(notes))


def _named(scale: str | None, config_file: Path | None, attn: str | None) -> MythosConfig | None:
    config = config_for_scale(scale) if scale is not None else None
    if config_file is not None:
        config = MythosConfig.from_file(config_file)
    if config is None:
        return None
    _check_size(config)
    return config.with_attention(attn) if attn is not None else config


def _of_source(source: WeightSource, checkpoint: Path) -> _Statement | None:
    if source.config is None and source.config_problem is None:
        return None
    values = asdict(source.config) if source.config is not None else {}
    return _Statement(f"{checkpoint}", values, source.config, source.config_problem)


def _beside(checkpoint: Path, config_file: Path | None) -> _Statement | None:
    """The `config.json` of the checkpoint's folder, unless it is the file that the user named."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    file = folder / "config.json"
    if not file.exists() or (config_file is not None and config_file.exists() and file.samefile(config_file)):
        return None
    try:
        values = read_json_object(file)
    except ConfigError as error:
        return _Statement(str(file), {}, None, str(error))
    known = asdict(MythosConfig())
    own = {name: value for name, value in without_foreign_fields(values).items() if name in known}
    try:
        return _Statement(str(file), own, MythosConfig.from_dict(values), None)
    except ConfigError as error:
        return _Statement(str(file), own, None, f"{file}: {error}")


def _agree(
    named: MythosConfig | None, config_file: Path | None, statements: list[_Statement]
) -> tuple[MythosConfig, list[str]]:
    """The config that all statements allow, and notes on those that cannot be read.

    Only a config that the user named by file outranks one that cannot be read.
    """
    config = named or next((each.config for each in statements if each.config is not None), None)
    for each in statements:
        if each.problem is not None and config_file is None and (config is None or each.values):
            raise RequestError(f"{each.problem}; mend it, or name a config by --config FILE"[:1000])
    if config is None:
        raise RequestError(_which_model())
    for each in statements:
        _check_same(config, named, each)
    return config, [f"passed over: {each.problem}" for each in statements if each.problem is not None]


def _check_same(config: MythosConfig, named: MythosConfig | None, statement: _Statement) -> None:
    whole = asdict(config)
    for name, value in statement.values.items():
        if value != whole[name] and name not in _HARMLESS:
            remedy = "leave out --scale or --config" if named is not None else "remove the one that is wrong"
            raise RequestError(
                f"{statement.where} says {name} {str(value)[:80]}, not {whole[name]}; {remedy}, or correct the file"
            )


def _which_model() -> str:
    return f"which model? give --scale (nano, {', '.join(SCALES)}) or --config FILE"


def _check_size(config: MythosConfig) -> None:
    weights = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    if weights > _MOST_PARAMETERS:
        raise ConfigError(
            f"the config has {weights:.1e} parameters, more than fit in any file; check its dims and counts"
        )


def _name(scale: str | None, config_file: Path | None, checkpoint: Path | None) -> str:
    """A name for files: letters and digits of any script."""
    if scale is not None:
        return scale
    path = config_file or checkpoint or Path(_NAMELESS)
    path = path.resolve()
    text = unicodedata.normalize("NFC", path.name if path.is_dir() else path.stem)
    return re.sub(r"[^\w.-]+", "-", text).strip(".-_") or _NAMELESS
