"""Turns in pairs, and what is read off them: medians, their intervals, ratios within a round, a line through loops.

A machine drifts: it heats up, and others work on it. Two contestants are therefore compared only within a round, where
their turns stand side by side, and each leads its rounds as often as the others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Line", "fit_line", "interval_of_median", "order_of_round", "ratio"]

_CONFIDENCE = 0.95


class Line(NamedTuple):
    """`y = intercept + slope * x`, by least squares, and the share of the variance that it explains."""

    intercept: float
    slope: float
    r_squared: float


def order_of_round(names: Sequence[str], index: int) -> list[str]:
    """Who goes when: rotated by one place each round."""
    start = index % len(names) if names else 0
    return [*names[start:], *names[:start]]


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times as long the first takes: the median over the rounds of the ratio within a round.

    Raises:
        ValueError: they did not run the same rounds.
    """
    if len(slower) != len(faster) or not slower:
        raise ValueError(f"{len(slower)} rounds against {len(faster)}: only the same rounds can be compared")
    return statistics.median(first / second for first, second in zip(slower, faster))


def interval_of_median(values: Sequence[float]) -> tuple[float, float] | None:
    """Two of the values that hold the median between them in 95 % of cases, whatever its distribution.

    By order statistics: the median lies outside [k-th smallest, k-th largest] with probability
    2 * P(Binomial(n, 1/2) < k). None for fewer than six values, where even the extremes promise less.
    """
    count, ordered = len(values), sorted(values)
    outside, chosen = 0.0, None
    for rank in range(count // 2):
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 1 - _CONFIDENCE:
            break
        chosen = ordered[rank], ordered[-1 - rank]
    return chosen


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """The straight line nearest to the points; None for fewer than three, which say nothing about straightness."""
    if len(set(x)) < 3:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (intercept + slope * np.asarray(x))
    spread = float(np.sum((np.asarray(y) - np.mean(y)) ** 2))
    explained = 1 - float(np.sum(rest**2)) / spread if spread else 1.0
    return Line(float(intercept), float(slope), explained)
