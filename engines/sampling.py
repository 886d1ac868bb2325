"""From logits to the next token: greedy, or temperature with top-k and top-p."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.prompts import check_count

__all__ = ["Sampler", "Sampling", "candidates"]


@dataclass(frozen=True)
class Sampling:
    """How to choose a token.

    Temperature comes first, then `top_k`, then `top_p` over what is left.

    Raises:
        EngineError: a value out of range.
    """

    temperature: float = 0.0  # 0: greedy, and among equals the lowest id
    top_k: int = 0  # keep this many of the most likely; 0: all
    top_p: float = 1.0  # keep the fewest most likely tokens that together have this probability
    seed: int | None = None  # None: another outcome each time

    def __post_init__(self) -> None:
        if not _is_real(self.temperature) or not 0 <= self.temperature < math.inf:
            raise EngineError(f"temperature is {self.temperature!r}; it must be a number of at least 0")
        check_count("top_k", self.top_k, low=0)
        if not _is_real(self.top_p) or not 0 < self.top_p <= 1:
            raise EngineError(f"top_p is {self.top_p!r}; it must lie in (0, 1]")
        if self.seed is not None:
            check_count("seed", self.seed, low=0)


class Sampler:
    """Chooses tokens for a batch.

    Each sequence draws from its own stream, seeded with `seed` + its index: in a batch it draws
    what it would draw alone with that seed, whatever its neighbours do.
    """

    def __init__(self, sampling: Sampling, batch: int) -> None:
        self._sampling = sampling
        seeds = [None if sampling.seed is None else sampling.seed + index for index in range(batch)]
        self._streams = [np.random.default_rng(seed) for seed in seeds] if sampling.temperature else []

    def choose(self, logits: NDArray[np.float32], finished: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """logits [batch, vocab] -> tokens int64 [batch]; a finished sequence draws nothing and gets -1.

        Raises:
            EngineError: the logits are not finite.
        """
        tokens: NDArray[np.int64] = logits.argmax(axis=-1)  # of equals, the first
        if finished is not None:
            tokens[finished] = -1
        for index, token in enumerate(tokens.tolist()):
            if token >= 0:
                _check_finite(logits[index, token])
                if self._streams:
                    tokens[index] = self._draw(logits[index], self._streams[index])
        return tokens

    def _draw(self, logits: NDArray[np.float32], stream: np.random.Generator) -> int:
        ids, weights = candidates(logits, self._sampling)
        reach = weights.cumsum()
        # "right" steps over tokens of weight 0, even when the draw is exactly 0
        index = reach.searchsorted(stream.random() * reach[-1], side="right")
        return int(ids[min(int(index), len(ids) - 1)])


def candidates(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, lowest id first, and their weights (not normalised).

    Args:
        logits: [vocab], finite at its maximum.
        sampling: with a temperature above 0.
    """
    ids, highest = np.arange(len(logits)), float(logits.max())
    if 0 < sampling.top_k < len(ids):
        ids = _most_likely(logits, sampling.top_k)
    weights = _weights(logits[ids], highest, sampling.temperature)
    if sampling.top_p < 1:
        kept = _nucleus(logits[ids], weights, sampling.top_p)
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def _nucleus(logits: NDArray[np.float32], weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Indices of the fewest most likely that together weigh `top_p` of all."""
    total = weights.sum()
    # all that weigh less than this make up less than what top_p leaves out: no need to sort them
    likely = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    reach = np.sort(weights[likely])[::-1].cumsum()
    count = min(int(reach.searchsorted(top_p * total)) + 1, len(likely))
    return likely[_most_likely(logits[likely], count)]


def _weights(logits: NDArray[np.float32], highest: float, temperature: float) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        return np.exp((logits.astype(np.float64) - highest) / temperature)


def _most_likely(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the `count` highest, in ascending order; of equals the lowest index wins."""
    cut = len(logits) - count
    least = np.partition(logits, cut)[cut]
    above = np.flatnonzero(logits > least)
    return np.sort(np.concatenate((above, np.flatnonzero(logits == least)[: count - len(above)])))


def _check_finite(value: np.floating) -> None:
    if not math.isfinite(value):
        raise EngineError(f"the model produced {float(value)} logits; verify the bundle, or try another precision")


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
