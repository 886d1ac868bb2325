"""From a histogram of |x| to the limit that the format's largest number stands for.

A wide range is coarse and a narrow one clips; the methods weigh one against the other ("Integer
Quantization for Deep Learning Inference", arXiv 2004.09602, compares them).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mythos_export.number_formats import NumberFormat

__all__ = ["METHODS", "MINIMUM_TOKENS", "limit_of"]

METHODS = ("minmax", "percentile", "entropy", "mse")
# Tokens below which a method means nothing: the largest |x| is soon seen, the shape of a tail is not.
MINIMUM_TOKENS = {"minmax": 32, "percentile": 512, "entropy": 512, "mse": 512}

_CANDIDATES = 241  # from _NARROWEST of the range to all of it: each 8th edge of 2048 bins
_NARROWEST = 1 / 16  # Migacz's 128 of 2048 bins: with fewer bins than levels a histogram cannot compare limits


def limit_of(
    counts: NDArray[np.int64], top: float, method: str, fmt: NumberFormat, *, percentile: float = 99.99
) -> float:
    """The |x| to map to `fmt.largest`, above 0 and at most `top` (`fmt.largest` where top is 0: scale 1).

    - minmax: `top`.
    - percentile: the lowest bin edge with at least that share below it.
    - mse: the edge of least expected squared error, rounding and clipping together.
    - entropy: the edge of least Kullback-Leibler divergence (Migacz, "8-bit inference with TensorRT",
      GTC 2017).

    mse and entropy compare 241 edges, from a sixteenth of the range to all of it, each bin standing at its
    centre; of equals the widest wins.

    Args:
        counts: [bins], how many |x| fell into each of so many equal bins over [0, top].
        top: the largest |x| seen.
        method: one of METHODS.
        fmt: the numbers to map to.
        percentile: in percent, for that method alone.

    Raises:
        ValueError: an unknown method, a percentile outside (0, 100], a top that is negative or not finite,
            or a histogram without counts.
    """
    _check(counts, top, method, percentile)
    if top == 0:
        return fmt.largest
    if method == "minmax":
        return float(top)
    if method == "percentile":
        edge = _percentile_edge(counts, percentile)
    else:
        edges = _edges(len(counts))
        costs = _squared_errors(counts, edges, fmt) if method == "mse" else _divergences(counts, edges, fmt)
        edge = int(edges[costs.argmin()])
    return float(top) * (edge / len(counts))


def _check(counts: NDArray[np.int64], top: float, method: str, percentile: float) -> None:
    if method not in METHODS:
        raise ValueError(f"the method is {method!r}; it must be one of {', '.join(METHODS)}")
    if not 0 < percentile <= 100:
        raise ValueError(f"the percentile is {percentile}; it must lie in (0, 100]")
    if not 0 <= top < math.inf:
        raise ValueError(f"the largest |x| is {top}; it must be a finite number of at least 0")
    if counts.sum() <= 0:
        raise ValueError("the histogram is empty; record at least one value before asking for a limit")


def _percentile_edge(counts: NDArray[np.int64], percentile: float) -> int:
    reach = counts.cumsum()
    share = percentile / 100 * float(reach[-1])
    # a share that is a whole number of values must not be missed by a rounding of the product
    return min(int(reach.searchsorted(share * (1 - 1e-12))) + 1, len(counts))


def _edges(bins: int) -> NDArray[np.int64]:
    """Candidate limits, in bins, widest first: argmin takes the first of equals."""
    edges = np.ceil(np.linspace(bins, bins * _NARROWEST, _CANDIDATES)).astype(np.int64)
    return np.unique(edges)[::-1]


def _squared_errors(counts: NDArray[np.int64], edges: NDArray[np.int64], fmt: NumberFormat) -> NDArray[np.float64]:
    """Total squared error of each limit [edges], in squared bins."""
    filled = np.flatnonzero(counts)
    centres = _centres(filled)
    scales = edges[:, None].astype(np.float32) / np.float32(fmt.largest)
    errors = fmt.round(centres / scales) * scales - centres  # [edges, filled]
    return np.square(errors) @ counts[filled].astype(np.float64)


def _divergences(counts: NDArray[np.int64], edges: NDArray[np.int64], fmt: NumberFormat) -> NDArray[np.float64]:
    return np.array([_divergence(counts, int(edge), fmt) for edge in edges])


def _divergence(counts: NDArray[np.int64], edge: int, fmt: NumberFormat) -> float:
    """KL(clipped || merged) when the limit is at `edge`.

    `clipped` has what lies beyond the limit in its last bin. `merged` knows only how many values round to
    each number of the format, and spreads them evenly over those of its bins that are in use. Bins are
    merged by the number that their centre rounds to: for int8 that is Migacz's 128 equal groups (the first
    and the last half as wide), and it holds for the uneven numbers of fp8 as well.
    """
    inside = counts[:edge]
    clipped = inside.astype(np.float64)
    clipped[-1] += counts[edge:].sum()
    used = np.flatnonzero(clipped)
    numbers = fmt.round(_centres(used) / (np.float32(edge) / np.float32(fmt.largest)))
    group = np.cumsum(np.diff(numbers, prepend=numbers[:1]) > 0)  # [used], rising
    merged = (np.bincount(group, inside[used]) / np.bincount(group))[group]
    if not merged.all():  # all that the last number stands for was clipped: `merged` calls the seen impossible
        return math.inf
    p, q = clipped[used] / clipped.sum(), merged / inside.sum()
    return float(p @ np.log(p / q))


def _centres(bins: NDArray[np.int64]) -> NDArray[np.float32]:
    return bins.astype(np.float32) + np.float32(0.5)
