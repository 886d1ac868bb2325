"""The `--loops` option."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mythos_export.loops import LoopsError, parse_loops


@pytest.mark.parametrize(
    ("text", "depths", "files"),
    [
        ("dynamic", (), {"model.onnx": None}),
        ("8", (8,), {"model.onnx": 8}),
        ("+8", (8,), {"model.onnx": 8}),
        ("16, 4", (4, 16), {"model.onnx": None, "model.loops4.onnx": 4, "model.loops16.onnx": 16}),
    ],
)
def test_what_is_asked_for(text: str, depths: tuple[int, ...], files: dict[str, int | None]) -> None:
    option = parse_loops(text)
    assert option.depths == depths
    assert option.graph_files() == files


@pytest.mark.parametrize("text", ["dynamic", "8", "4,16"])
def test_it_reads_back_as_it_prints(text: str) -> None:
    assert str(parse_loops(text)) == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must be 'dynamic', a depth"),
        ("abc", "must be 'dynamic', a depth"),
        ("1,x", "must be 'dynamic', a depth"),
        ("1,", "must be 'dynamic', a depth"),
        ("+-3", "must be 'dynamic', a depth"),
        ("--3", "must be 'dynamic', a depth"),
        ("1.5", "must be 'dynamic', a depth"),
        ("\u0663", "must be 'dynamic', a depth"),  # a digit, but not an ASCII one
        ("Dynamic", "must be 'dynamic', a depth"),
        ("dynamic,4", "must be 'dynamic', a depth"),
        ("0", r"must lie in 1\.\.256"),
        ("-3", r"must lie in 1\.\.256"),
        ("4,0", r"must lie in 1\.\.256"),
        ("257", r"must lie in 1\.\.256"),
        ("9999999999999999999", r"must lie in 1\.\.256"),
        ("9" * 5000, r"must lie in 1\.\.256"),
        ("4,4", "names a depth twice"),
        ("4,+4", "names a depth twice"),
    ],
)
def test_what_means_nothing(text: str, complaint: str) -> None:
    with pytest.raises(LoopsError, match=complaint) as raised:
        parse_loops(text)
    assert len(str(raised.value)) < 250


@given(st.text(alphabet="0123456789+-, dynamic\n\u0663") | st.text())
def test_any_text_is_depths_or_one_kind_of_error(text: str) -> None:
    try:
        depths = parse_loops(text).depths
    except LoopsError as error:
        assert "\n" not in str(error)
    else:
        assert all(1 <= depth <= 256 for depth in depths)
