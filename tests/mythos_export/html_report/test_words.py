"""Numbers in words."""

from __future__ import annotations

import math

import pytest

from mythos_export.html_report.words import DASH, count, listed, percent, plural, short, subsampled


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (6.63e-7, "6.6e-7"),
        (1e-4, "1e-4"),
        (0.001, "0.001"),
        (0.004853, "0.00485"),
        (12.345, "12.3"),
        (-0.5, "-0.5"),
        (1234.4, "1,234"),
        (3e7, "3e7"),
        (1e308, "1e308"),
        (None, DASH),
        (math.nan, DASH),
        (math.inf, DASH),
    ],
)
def test_short(value: float | None, text: str) -> None:
    assert short(value).replace("\N{MINUS SIGN}", "-") == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100 %"),
        (0.0, "0 %"),
        (0.916666, "91.67 %"),
        (0.9999999, ">99.99 %"),
        (1e-6, "1e-4 %"),
        (0.05, "5 %"),
        (None, DASH),
        (math.inf, DASH),
    ],
)
def test_percent(share: float | None, text: str) -> None:
    assert percent(share).replace("\N{MINUS SIGN}", "-") == text


def test_counts() -> None:
    assert count(459_850) == "459,850"
    assert count(10**4000) == "too many to write"
    assert (plural(1, "loop"), plural(2, "loop"), plural(0, "copy", "copies")) == ("1 loop", "2 loops", "0 copies")
    assert (listed([]), listed(["1"]), listed(["1", "2"]), listed(["1", "2", "4"])) == (
        "",
        "1",
        "1 and 2",
        "1, 2 and 4",
    )


def test_a_subsample_has_both_ends() -> None:
    assert subsampled(3, 16) == [0, 1, 2]
    some = subsampled(128, 40)
    assert (some[0], some[-1], len(some)) == (0, 127, 40)
