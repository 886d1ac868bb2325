"""The one model that all contestants run: its shape, and where PyTorch gets the bundles' weights from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from mythos_export.bundle import Bundle, BundleError
from mythos_export.model_choice import resolve_model
from mythos_export.parity.source import checkpoint_of_bundle
from reference_model.open_mythos import nano
from reference_model.open_mythos.config import MythosConfig
from tools.benchmarking.contestants import Spec
from tools.benchmarking.pytorch import open_source
from tools.benchmarking.worker import BenchmarkError

__all__ = ["Model", "read_model"]


class Model(NamedTuple):
    """The one model that all contestants run."""

    config: MythosConfig
    checkpoint: Path | None
    seed: int
    source: dict[str, Any]  # as a manifest says it


def read_model(given: argparse.Namespace, bundles: Sequence[Bundle]) -> Model:
    """The one model that is asked for; bundles say themselves which they are.

    Raises:
        BenchmarkError: bundles are of different models, or of another than is asked for.
        ConfigError, CheckpointError, RequestError: the model's shape or weights are no good.
    """
    checkpoint = given.checkpoint
    if given.scale == "nano" and checkpoint is None:
        checkpoint = nano.CHECKPOINT
    if not bundles:
        model = resolve_model(given.scale, given.config, checkpoint, None, given.seed)
        return Model(model.config, checkpoint, given.seed, model.source.describe())
    config, source_said = _of_bundle(bundles[0])
    for bundle in bundles[1:]:
        other = _of_bundle(bundle)
        if other != (config, source_said):
            what = "another config" if other[0] != config else "other weights"
            raise BenchmarkError(
                f"{bundle.path} has {what} than {bundles[0].path}; give bundles of one model "
                "(the same --scale or --config, and the same --seed or --checkpoint)"
            )
    if given.scale is not None or given.config is not None:
        asked = resolve_model(given.scale, given.config, checkpoint, config.attn_type, given.seed).config
        if asked != config:
            raise BenchmarkError(f"{bundles[0].path} is not of the model that --scale or --config names; leave it out")
    return _with_weights(config, source_said, checkpoint, bundles[0])


def _of_bundle(bundle: Bundle) -> tuple[MythosConfig, dict[str, Any]]:
    """Shape and weights, the latter by seed or hash: a checkpoint may lie elsewhere by now."""
    source = {key: bundle.manifest.source.get(key) for key in ("kind", "seed", "sha256")}
    return MythosConfig.from_file(bundle.file("config.json")), source


def _with_weights(config: MythosConfig, said: dict[str, Any], checkpoint: Path | None, bundle: Bundle) -> Model:
    """The weights that the bundle was made from, for PyTorch."""
    if said["kind"] == "seed" and isinstance(said["seed"], int):
        if checkpoint is not None:
            raise BenchmarkError(
                f"{bundle.path} was made from seed {said['seed']}, not from a checkpoint; leave it out"
            )
        return Model(config, None, said["seed"], said)
    path = checkpoint or _found(bundle)
    model = Model(config, path, 0, said)
    _, source = open_source(Spec("", "compiled", 1, asdict(config), path, 0))
    if source.describe().get("sha256") != said["sha256"]:
        raise BenchmarkError(f"{path}: not the checkpoint that {bundle.path} was made from (its sha256 differs)")
    return model


def _found(bundle: Bundle) -> Path:
    try:
        return checkpoint_of_bundle(bundle)
    except BundleError as error:
        raise BenchmarkError(str(error)) from error
