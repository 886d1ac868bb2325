"""The comparison of what a page shows with what was printed can fail."""

from __future__ import annotations

import pytest

from tests.docs.outputs import not_printed, renewed

PRINTED = """\
trace: 50 %
trace: 9.7 s
case      loops  error
prefill   1      1.81e-05
chunked   1      1.53e-05
weights: 79 tensors, 0 differ
b
e
"""


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "trace: 12 s\ncase loops error",
        "case loops error\n...\nb\ne",
        "...\nchunked   1      +2e3\n...\ne",
        "weights: ... differ",
        "b\n\ne",
    ],
)
def test_shown(shown: str) -> None:
    assert not_printed(shown, PRINTED) is None


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        ("trace: 9.7 ms", "trace: 9.7 ms"),  # another unit
        ("e\nb", "b"),  # another order
        ("b\n...\nweights: 79 tensors, 0 differ", "weights: 79 tensors, 0 differ"),
        ("prefill 1 1.81e-05\nweights: 79 tensors, 0 differ", "weights: 79 tensors, 0 differ"),  # a line between
        ("weights: 79 tensors, none differ", "weights: 79 tensors, none differ"),
        ("a", "a"),
        ("prefill 1", "prefill 1"),  # half a line
    ],
)
def test_not_shown(shown: str, line: str) -> None:
    assert not_printed(shown, PRINTED) == line


def test_exact_numbers() -> None:
    assert not_printed("trace: 9.7 s", PRINTED, exact=True) is None
    assert not_printed("trace: 9.8 s", PRINTED, exact=True) == "trace: 9.8 s"


def test_new_numbers_take_the_place_of_the_old() -> None:
    stale = "trace: 1.25 s\n...\nchunked   1      2e-05\n...\nweights: ... differ\nb\n"
    fresh = renewed(stale, PRINTED)
    assert fresh == "trace: 9.7 s\n...\nchunked   1      1.53e-05\n...\nweights: ... differ\nb\n"
    assert not_printed(fresh, PRINTED, exact=True) is None


def test_what_is_shown_whole_is_renewed_whole() -> None:
    assert renewed("trace: 1.25 s\n", "fits  \nin 2 GB\n") == "fits\nin 2 GB\n"


def test_a_line_that_is_not_printed_any_more_stays_for_the_test_to_find() -> None:
    fresh = renewed("...\ncase loops error\nshuffled 1 2e-05\n", PRINTED)
    assert fresh.endswith("shuffled 1 2e-05\n")
    assert not_printed(fresh, PRINTED, exact=True) == "shuffled 1 2e-05"
