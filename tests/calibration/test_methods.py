"""Limits against slow searches written from the methods' definitions, and on distributions whose answer is known."""

from __future__ import annotations

import bisect
import math
import re
from collections import defaultdict
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.methods import METHODS, MINIMUM_TOKENS, limit_of
from mythos_export.number_formats import FORMATS, NumberFormat

BINS = 2048
INT8, FP8 = FORMATS["int8"], FORMATS["fp8"]
BOTH = pytest.mark.parametrize("fmt", [INT8, FP8], ids=lambda fmt: fmt.name)
# the numbers >= 0 of each format, in order: an even index is an even last bit
NUMBERS = {
    "int8": [float(value) for value in range(128)],
    "int4": [float(value) for value in range(8)],
    "fp8": np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(float).tolist(),
}
# mostly empty bins, as in a tail
COUNTS = st.lists(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 10_000)), min_size=1, max_size=64).filter(any)


def histogram(x: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    top = float(np.abs(x).max())
    return np.histogram(np.abs(x), BINS, (0, top))[0].astype(np.int64), top


def edges(bins: int) -> list[int]:
    """The 241 candidates, from a sixteenth of the range to all of it."""
    return sorted({math.ceil(bins - Fraction(15 * bins, 16 * 240) * step) for step in range(241)})


def nearest(x: float, numbers: list[float]) -> float:
    """By search, ties to the even index."""
    above = bisect.bisect_left(numbers, x)
    if above == len(numbers):
        return numbers[-1]
    if above == 0 or numbers[above] == x:
        return numbers[above]
    low, high = x - numbers[above - 1], numbers[above] - x
    return numbers[above if high < low or (high == low and above % 2 == 0) else above - 1]


def number_of(index: int, edge: int, fmt: NumberFormat) -> float:
    """What the centre of a bin becomes; the quotient in float32, as ONNX has it."""
    scale = np.float32(edge) / np.float32(fmt.largest)
    return nearest(float(np.float32(index + 0.5) / scale), NUMBERS[fmt.name])


def squared_error(counts: list[int], edge: int, fmt: NumberFormat) -> float:
    total = 0.0
    for index, count in enumerate(counts):
        if count:
            total += count * (number_of(index, edge, fmt) * edge / fmt.largest - (index + 0.5)) ** 2
    return total


def divergence(counts: list[int], edge: int, fmt: NumberFormat) -> float:
    """KL of the clipped distribution from the one that the format's numbers tell."""
    clipped = counts[:edge]
    clipped[-1] += sum(counts[edge:])
    values, bins = defaultdict(int), defaultdict(int)  # by number: how many values, and in how many bins
    for index in range(edge):
        number = number_of(index, edge, fmt)
        values[number] += counts[index]
        bins[number] += clipped[index] > 0
    total = 0.0
    for index, count in enumerate(clipped):
        number = number_of(index, edge, fmt)
        if count:
            if not values[number]:
                return math.inf
            p, q = count / sum(clipped), values[number] / bins[number] / sum(counts[:edge])
            total += p * math.log(p / q)
    return total


COSTS = {"mse": squared_error, "entropy": divergence}


def test_names() -> None:
    assert METHODS == ("minmax", "percentile", "entropy", "mse")
    assert MINIMUM_TOKENS == {"minmax": 32, "percentile": 512, "entropy": 512, "mse": 512}


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("method", ["mse", "entropy"])
@settings(deadline=None, max_examples=40)
@given(counts=COUNTS)
def test_a_slow_search_finds_no_better_limit(method: str, fmt: NumberFormat, counts: list[int]) -> None:
    limit = limit_of(np.array(counts, np.int64), 1.0, method, fmt)
    edge = round(limit * len(counts))
    assert limit == edge / len(counts) and edge in edges(len(counts))
    costs = {each: COSTS[method](counts, each, fmt) for each in edges(len(counts))}
    least = min(costs.values())
    slack = 1e-9 + 1e-5 * abs(least)
    assert costs[edge] <= least + slack
    # of equals the widest
    assert not [each for each, cost in costs.items() if each > edge and cost < costs[edge] - slack]


@BOTH
@pytest.mark.parametrize("method", ["mse", "entropy"])
@pytest.mark.parametrize("kind", ["normal", "laplace", "student"])
def test_a_slow_search_over_real_histograms(method: str, fmt: NumberFormat, kind: str) -> None:
    rng = np.random.default_rng(0)
    draw = {
        "normal": rng.standard_normal,
        "laplace": lambda n: rng.laplace(size=n),
        "student": lambda n: rng.standard_t(3, n),
    }
    counts, top = histogram(draw[kind](20_000))
    counts = counts.reshape(256, 8).sum(axis=1)
    chosen = round(limit_of(counts, top, method, fmt) / top * 256)
    costs = {edge: COSTS[method](counts.tolist(), edge, fmt) for edge in [*edges(256)[::3], chosen]}
    assert costs[chosen] <= min(costs.values()) * (1 + 1e-5)


@settings(deadline=None)
@given(counts=COUNTS, percentile=st.one_of(st.just(100.0), st.just(99.99), st.floats(0.01, 100)))
def test_percentile_is_the_lowest_edge_with_that_share(counts: list[int], percentile: float) -> None:
    limit = limit_of(np.array(counts, np.int64), 1.0, "percentile", INT8, percentile=percentile)
    edge = round(limit * len(counts))
    share = Fraction(percentile) / 100 * sum(counts)
    slack = Fraction(1, 10**11) * sum(counts)  # 99.99 is not a number that floats have
    assert sum(counts[:edge]) >= share - slack
    assert edge == 1 or sum(counts[: edge - 1]) < share


@pytest.mark.parametrize(("outliers", "expected"), [(1, 0.5), (2, 1.0)])
def test_a_percentile_that_is_a_whole_number_of_values(outliers: int, expected: float) -> None:
    counts = np.zeros(BINS, np.int64)
    counts[BINS // 2 - 1], counts[-1] = 10_000 - outliers, outliers  # 99.99 % are 9999 values
    assert limit_of(counts, 8.0, "percentile", INT8) == 8.0 * expected


@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9, 99.99, 99.999])
def test_percentile_is_that_of_the_values_to_a_bin(percentile: float) -> None:
    x = np.abs(np.random.default_rng(1).standard_normal(100_000))
    counts, top = histogram(x)
    limit = limit_of(counts, top, "percentile", INT8, percentile=percentile)
    exact = np.sort(x)[math.ceil(Fraction(str(percentile)) / 100 * len(x)) - 1]
    assert exact <= limit <= exact + 1.001 * top / BINS


def normal_with_outliers() -> tuple[NDArray[np.int64], float]:
    return histogram(np.concatenate([np.random.default_rng(2).standard_normal(1 << 18), [20.0, -30.0, 40.0]]))


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_outliers_are_clipped_for_int8(method: str) -> None:
    counts, top = normal_with_outliers()
    assert limit_of(counts, top, "minmax", INT8) == top
    limit = limit_of(counts, top, method, INT8)
    assert 2.5 <= limit <= 0.5 * top


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_a_heavy_tail_is_clipped_for_int8(method: str) -> None:
    counts, top = histogram(np.random.default_rng(3).standard_t(3, 1 << 18))
    assert 3 <= limit_of(counts, top, method, INT8) <= 0.7 * top


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_an_even_distribution_is_hardly_clipped(method: str, fmt: NumberFormat) -> None:
    counts, top = histogram(np.random.default_rng(4).uniform(-3, 3, 1 << 18))
    assert limit_of(counts, top, method, fmt) >= 0.9 * top


def test_fp8_has_range_to_spare() -> None:
    """Its numbers near zero are as fine whatever the limit: clipping gains next to nothing."""
    for counts, top in (normal_with_outliers(), histogram(np.random.default_rng(5).standard_t(3, 1 << 18))):
        assert limit_of(counts, top, "mse", FP8) >= 0.9 * top > 0.7 * top > limit_of(counts, top, "mse", INT8)


def test_mse_is_the_best_limit_for_the_values_themselves() -> None:
    """Not only for their histogram: quantised at the limits around it, the values come out no better."""
    x = np.random.default_rng(6).laplace(size=1 << 16)
    counts, top = histogram(x)

    def error(limit: float) -> float:
        scale = np.float32(limit / INT8.largest)
        return float(np.square(INT8.round(x.astype(np.float32) / scale) * scale - x).mean())

    best = min(error(top * share) for share in np.linspace(0.2, 1, 81))
    assert error(limit_of(counts, top, "mse", INT8)) <= 1.02 * best < 0.9 * error(top)


@BOTH
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("top", [1e-45, 1e-30, 7.0, 3e38])
def test_the_unit_does_not_matter(method: str, fmt: NumberFormat, top: float) -> None:
    counts, _ = normal_with_outliers()
    assert limit_of(counts, top, method, fmt) / top == pytest.approx(limit_of(counts, 1.0, method, fmt), rel=1e-12)


@BOTH
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bins", [1, 2, 15, BINS])
def test_all_values_in_one_bin(method: str, fmt: NumberFormat, bins: int) -> None:
    for index in {0, bins // 3, bins - 1}:
        counts = np.zeros(bins, np.int64)
        counts[index] = 1000
        assert 0 < limit_of(counts, 5.0, method, fmt) <= 5.0
    assert limit_of(counts, 5.0, method, fmt) == 5.0  # a tensor of one magnitude, in the last bin


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_a_tensor_of_zeros_gets_scale_one(method: str, fmt: NumberFormat) -> None:
    counts = np.zeros(BINS, np.int64)
    counts[0] = 1000
    assert limit_of(counts, 0.0, method, fmt) == fmt.largest


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_left_alone_and_may_be_large(method: str) -> None:
    counts, top = normal_with_outliers()
    before = counts.copy()
    limit = limit_of(counts, top, method, INT8)
    assert (counts == before).all()
    assert limit_of(counts * 10**12, top, method, INT8) == limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "max"}, "the method is 'max'; it must be one of minmax, percentile, entropy, mse"),
        ({"top": -1.0}, "the largest |x| is -1.0; it must be a finite number of at least 0"),
        ({"top": math.nan}, "the largest |x| is nan; it must be a finite number of at least 0"),
        ({"top": math.inf}, "the largest |x| is inf; it must be a finite number of at least 0"),
        ({"percentile": 0}, "the percentile is 0; it must lie in (0, 100]"),
        ({"percentile": 100.1}, "the percentile is 100.1; it must lie in (0, 100]"),
        ({"percentile": math.nan}, "the percentile is nan; it must lie in (0, 100]"),
        (
            {"counts": np.zeros(8, np.int64)},
            "the histogram is empty; record at least one value before asking for a limit",
        ),
        (
            {"counts": np.zeros(0, np.int64)},
            "the histogram is empty; record at least one value before asking for a limit",
        ),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_means_nothing(method: str, change: dict[str, object], message: str) -> None:
    arguments = {"counts": np.ones(8, np.int64), "top": 1.0, "method": method, "fmt": INT8, **change}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        limit_of(**arguments)  # type: ignore[arg-type]
