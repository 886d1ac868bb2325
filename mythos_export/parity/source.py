"""Where a finished bundle's weights came from, found again."""

from __future__ import annotations

from pathlib import Path

from mythos_export.bundle import Bundle, BundleError
from mythos_export.loops import LoopsError, parse_loops
from mythos_export.parity.cases import default_loops
from reference_model.checkpoint import SeededWeights, WeightSource, check_fit, open_checkpoint
from reference_model.config import MythosConfig

__all__ = ["loop_counts", "source_of_bundle"]


def source_of_bundle(bundle: Bundle, checkpoint: Path | None) -> tuple[MythosConfig, WeightSource]:
    """The config and weights a bundle was made from.

    Args:
        checkpoint: where the checkpoint is now; by default where it was.

    Raises:
        BundleError: its source is unknown, or the checkpoint is not the one it was made from.
        CheckpointError: the checkpoint cannot be read.
    """
    config = MythosConfig.from_file(bundle.file("config.json"))
    origin = bundle.manifest.source
    if origin.get("kind") == "seed" and checkpoint is None:
        return config, SeededWeights(config, _seed(bundle, origin.get("seed")))
    path = checkpoint or _recorded_path(bundle, origin.get("path"))
    source = open_checkpoint(path)
    check_fit(source, config)
    if source.describe().get("sha256") != origin.get("sha256"):
        raise BundleError(f"{path}: not the checkpoint this bundle was made from (sha256 differs); pass --checkpoint")
    return config, source


def loop_counts(bundle: Bundle, config: MythosConfig, text: str | None) -> list[int]:
    """The loop counts to compare at.

    Raises:
        LoopsError: not a list of depths, or deeper than any graph of the bundle.
    """
    depths = [graph.loops for graph in bundle.manifest.graphs]
    deepest = None if "dynamic" in depths else max(int(depth) for depth in depths)
    if text is None:
        return default_loops(config, deepest)
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


def _recorded_path(bundle: Bundle, path: object) -> Path:
    if not isinstance(path, str) or not Path(path).exists():
        raise BundleError(f"{bundle.path}: its source checkpoint {path!r} is not there; pass --checkpoint")
    return Path(path)
