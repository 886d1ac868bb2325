"""A finished bundle as the check needs it: where its weights came from, and its graphs; all untrusted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import onnx_ir as ir

from calibration.errors import CalibrationError
from calibration.recipe import RECIPE, Recipe
from engines.errors import one_line
from mythos_export.bundle import Bundle, BundleError
from mythos_export.linears import layer_names
from mythos_export.loops import LoopsError, parse_loops
from mythos_export.minimum_runtime import OLDEST, read_version
from mythos_export.parity.cases import default_loops
from mythos_export.quantization import QUANTIZED, Choices
from mythos_export.targets import TARGETS
from reference_model import nano
from reference_model.checkpoint import CheckpointError, SeededWeights, WeightSource, check_fit, open_checkpoint
from reference_model.config import MythosConfig

__all__ = ["checkpoint_of_bundle", "choices_of", "load_graph", "loop_counts", "recipe_of", "source_of_bundle"]


def source_of_bundle(bundle: Bundle, checkpoint: Path | None) -> tuple[MythosConfig, WeightSource]:
    """The config and weights a bundle was made from.

    Args:
        checkpoint: where the checkpoint is; by default as `checkpoint_of_bundle` finds it.

    Raises:
        BundleError: its source or precision is unknown, or the checkpoint is not the one it was made from.
        CheckpointError: the checkpoint cannot be read.
    """
    target, precision = bundle.manifest.target, bundle.manifest.precision
    if target not in TARGETS or precision not in TARGETS[target].precisions:
        raise BundleError(f"{bundle.path}: target {target!r} in {precision!r} is unknown to this release")
    if (precision in QUANTIZED) != (bundle.manifest.quantization is not None):
        raise BundleError(f"{bundle.path}: its manifest does not say how it was quantised; export it again")
    config = MythosConfig.from_file(bundle.file("config.json"))
    origin = bundle.manifest.source
    if origin.get("kind") == "seed" and checkpoint is None:
        return config, SeededWeights(config, _seed(bundle, origin.get("seed")))
    path = checkpoint or checkpoint_of_bundle(bundle)
    source = open_checkpoint(path)
    check_fit(source, config)
    if not _is_origin(source, bundle):
        raise BundleError(f"{path}: not the checkpoint this bundle was made from (sha256 differs); pass --checkpoint")
    return config, source


def checkpoint_of_bundle(bundle: Bundle) -> Path:
    """Where the checkpoint is that a bundle was made from.

    That is nano's, if it has its hash; one of the recorded name and hash, in the working folder or beside the bundle;
    or where a manifest of an earlier release says.

    Raises:
        BundleError: it is not there.
    """
    if _is_origin(open_checkpoint(nano.CHECKPOINT), bundle):
        return nano.CHECKPOINT
    name, path = (bundle.manifest.source.get(key) for key in ("file", "path"))
    if isinstance(name, str):
        return _nearby(bundle, name)
    if not isinstance(path, str):
        raise BundleError(f"{bundle.path}: its manifest does not say what it was made from; pass --checkpoint")
    if not os.path.exists(path):
        raise BundleError(f"{bundle.path}: its source checkpoint {path[:500]!r} is not there; pass --checkpoint")
    return Path(path)


def _nearby(bundle: Bundle, name: str) -> Path:
    places = (Path(name), bundle.path.parent / name)
    for path in places if os.path.basename(name) == name else ():  # what leads elsewhere no export has written
        if os.path.exists(path):
            with contextlib.suppress(CheckpointError):  # another model's
                if _is_origin(open_checkpoint(path), bundle):
                    return path
    raise BundleError(
        f"{bundle.path}: its source checkpoint {name[:500]!r} is neither in the working folder nor beside the bundle; "
        "pass --checkpoint"
    )


def _is_origin(source: WeightSource, bundle: Bundle) -> bool:
    return bool(source.describe().get("sha256") == bundle.manifest.source.get("sha256"))


def load_graph(bundle: Bundle, file: str) -> ir.Model:
    """One of the bundle's graphs, its weights still on disk.

    Raises:
        BundleError: it cannot be read.
    """
    path = bundle.file(file)
    try:
        return ir.load(path)
    except Exception as error:  # protobuf and onnx-ir raise nearly every type there is on a graph they cannot take
        raise BundleError(f"{path}: not a usable ONNX graph ({one_line(error)}); export it again") from error


def recipe_of(bundle: Bundle) -> Recipe | None:
    """The recipe that a bundle was quantised with; None where no activation was.

    Raises:
        BundleError: it is damaged.
    """
    if RECIPE not in bundle.manifest.files:
        return None
    try:
        return Recipe.from_file(bundle.file(RECIPE))
    except CalibrationError as error:
        raise BundleError(str(error)) from error


def choices_of(bundle: Bundle, config: MythosConfig) -> Choices:
    """The choices that a bundle was quantised with.

    Raises:
        BundleError: it does not say.
    """
    record = bundle.manifest.quantization
    if record is None:
        return Choices()
    recipe, limits = recipe_of(bundle), {}
    if record.ranges is not None:
        if recipe is None:
            raise BundleError(f"{bundle.path}: quantised activations but no {RECIPE}; export it again")
        limits = recipe.limits(record.ranges)
    needed = read_version(bundle.manifest.minimum_runtime) if bundle.manifest.minimum_runtime is not None else OLDEST
    return Choices(limits, frozenset(record.kept) & frozenset(layer_names(config)), needed)


def loop_counts(bundle: Bundle, config: MythosConfig, text: str | None) -> list[int]:
    """The loop counts to compare at.

    Raises:
        LoopsError: not a list of depths, or deeper than any graph of the bundle.
    """
    depths = [graph.loops for graph in bundle.manifest.graphs]
    deepest = None if "dynamic" in depths else max(int(depth) for depth in depths)
    if text is None:
        return default_loops(config, deepest, twice=bundle.manifest.quantization is not None)
    wanted = list(parse_loops(text).depths)
    if not wanted:
        raise LoopsError(f"--loops is {text!r}; give loop counts such as 1,2,4,8,16")
    if deepest is not None and max(wanted) > deepest:
        raise LoopsError(f"--loops asks for {max(wanted)}, but this bundle is unrolled to {deepest} loops")
    return wanted


def _seed(bundle: Bundle, seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise BundleError(f"{bundle.path}: its manifest names no usable seed; export it again")
    return seed
