"""The layers of a model that a user names: `--keep coda.*,head`."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from reference_model.architecture import Architecture

__all__ = ["UnknownLayer", "kept_layers"]


class UnknownLayer(ValueError):
    """A layer that the model does not have."""


def kept_layers(architecture: Architecture, patterns: Iterable[str]) -> list[str]:
    """The layers that patterns name.

    Raises:
        UnknownLayer: a pattern names none.
    """
    names, kept = list(architecture.layers), dict[str, None]()
    for pattern in patterns:
        # `routed_experts.*.gate` is a name, and fnmatch reads it as one that matches itself
        matching = fnmatch.filter(names, pattern)
        if not matching:
            raise UnknownLayer(f"--keep {pattern[:200]!r} names no layer; layers are: {', '.join(names)}")
        kept |= dict.fromkeys(matching)
    return list(kept)
