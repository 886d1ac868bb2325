"""The comparison of what a page shows with what was printed can fail."""

from __future__ import annotations

import pytest

from tests.docs.outputs import not_printed

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
