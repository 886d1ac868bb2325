"""What is compared: prompts, how they are fed, and how deep each sequence goes.

A case is fed in chunks: one for a prefill, several onto a filled cache, single tokens for decode. Every
case runs the same way through PyTorch and through the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference_model.open_mythos.config import MythosConfig

__all__ = ["Case", "cases_for", "default_loops"]

_TOKENS = 12
_SEED = 20_241


@dataclass(frozen=True)
class Case:
    """Token ids [batch, seq] with a mask, fed in chunks, at a depth per sequence."""

    kind: str  # prefill, chunked, cached or mixed
    loops: tuple[int, ...]  # one per sequence
    ids: NDArray[np.int64]  # [batch, seq]
    mask: NDArray[np.int64]  # [batch, seq], 0 for padding on the left
    chunks: tuple[int, ...]  # tokens per call, summing to seq

    @property
    def trips(self) -> int:
        """Loops that the graph runs: the deepest sequence's."""
        return max(self.loops)

    @property
    def real(self) -> NDArray[np.bool_]:
        """[batch, seq]: positions that are not padding."""
        return self.mask.astype(bool)


def default_loops(config: MythosConfig, deepest: int | None, *, twice: bool = False) -> list[int]:
    """Loop counts worth comparing at, two past the depth-LoRA table included.

    Args:
        deepest: of an unrolled graph.
        twice: up to twice the trained depth, past which calibrated ranges only repeat.
    """
    trained = config.max_loop_iters
    wanted = {1, 2, 4, 8, 16} | {trained, 2 * trained if twice else trained + 2}
    if deepest is not None:
        return sorted({count for count in wanted if count < deepest} | {deepest})
    return sorted(wanted)


def cases_for(config: MythosConfig, loops: Sequence[int]) -> list[Case]:
    """Prefill, chunked and cached at every loop count; then padded sequences of mixed depths in one batch."""
    rng = np.random.default_rng(_SEED)
    seq = min(_TOKENS, config.max_seq_len)
    cases = []
    for count in loops:
        ids = rng.integers(0, config.vocab_size, (1, seq))
        mask = np.ones_like(ids)
        for kind, chunks in _feedings(seq).items():
            cases.append(Case(kind, (count,), ids, mask, chunks))
    cases.append(_mixed(config, loops, seq, rng))
    return cases


def _feedings(seq: int) -> dict[str, tuple[int, ...]]:
    if seq < 6:
        return {"prefill": (seq,)}
    return {
        "prefill": (seq,),
        "chunked": (seq // 2, seq - seq // 2 - 2, 2),
        "cached": (seq - 4, 1, 1, 1, 1),
    }


def _mixed(config: MythosConfig, loops: Sequence[int], seq: int, rng: np.random.Generator) -> Case:
    depths = (min(loops), max(loops), sorted(loops)[len(loops) // 2])
    mask = np.ones((3, seq), np.int64)
    if seq >= 6:
        mask[0, :2], mask[2, : seq // 2 - 1] = 0, 0
    ids = rng.integers(0, config.vocab_size, mask.shape) * mask
    return Case("mixed", depths, ids, mask, (seq - 2, 1, 1) if seq >= 6 else (seq,))
