"""Past tokens that nobody had to read: cache rows drawn at random, the same for every contestant.

Prefilling thousands of tokens at every depth would cost more than all that is measured, and what a step costs does not
depend on what its past says. The rows are still the same numbers for everyone, each in its own layout, so that all
compute the same logits, send tokens to the same experts, and can be held against each other at every context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference_model.open_mythos.config import MythosConfig

__all__ = ["Context", "make_context"]

STAGES = ("prelude", "recurrent", "coda")
_SCALE = 0.5  # of rotated keys, and of GQA's keys and values: attention looks at many rows, at some more than others

Rows = dict[str, NDArray[np.float32]]


class Context(NamedTuple):
    """A past, as `<stage>.<part>` -> [depth, past, *row], parts named as in the graph contract."""

    past: int
    loops: int
    rows: Rows  # MLA latents after `kv_norm`, as our graphs cache them
    latents: Rows  # the same latents before it, as open-mythos caches them; empty for GQA


def make_context(
    config: MythosConfig, gains: Mapping[str, NDArray[np.float32]], past: int, loops: int, seed: int = 0
) -> Context:
    """Draw a past; a depth's rows are the same whatever `loops` is.

    Args:
        gains: of MLA, by stage, the weights [layers, kv_lora_rank] of `kv_norm`.
    """
    rows: Rows = {}
    latents: Rows = {}
    for stage, depth in zip(STAGES, (config.prelude_layers, loops, config.coda_layers)):
        for part, row in _parts(config).items():
            name = f"{stage}.{part}"
            drawn = np.empty((depth, past, *row), np.float32)
            for index in range(depth):
                drawn[index] = _draw(f"{seed}/{name}/{index}", (past, *row))
            if part == "latent":  # of size 1, so that the norm leaves it as it is but for its gain
                drawn /= np.sqrt(np.mean(drawn**2, axis=-1, keepdims=True))
                latents[name], rows[name] = drawn, drawn * gains[stage][:, None, :]
            else:
                rows[name] = drawn * np.float32(_SCALE)
    return Context(past, loops, rows, latents)


def _parts(config: MythosConfig) -> dict[str, tuple[int, ...]]:
    if config.attn_type == "mla":
        return {"latent": (config.kv_lora_rank,), "rope": (config.qk_rope_head_dim,)}
    return dict.fromkeys(("key", "value"), (config.n_kv_heads, config.head_dim))


def _draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "big"))).standard_normal(shape, dtype=np.float32)
