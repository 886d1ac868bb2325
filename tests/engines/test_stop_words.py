"""Stop words across the borders of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.stop_words import StopWords


def through(words: list[str], pieces: list[str]) -> tuple[str, bool]:
    """What comes out of a stream of text, and whether a stop word ended it."""
    stop_words = StopWords(words)
    text = "".join(stop_words.push(piece) for piece in pieces)
    return text + stop_words.finish(), stop_words.reached


@pytest.mark.parametrize(
    ("words", "pieces", "expected"),
    [
        ([], ["ab", "c"], ("abc", False)),
        (["end"], ["the e", "n", "d of it"], ("the ", True)),
        (["end"], ["the e", "n", "t"], ("the ent", False)),
        (["end"], ["the en"], ("the en", False)),  # what was held back comes out at the end
        (["aab"], ["aa", "a", "b", "c"], ("a", True)),  # the word begins inside what looked like its beginning
        (["yz", "xyz"], ["axyz"], ("a", True)),  # the first one in the text, not in the list
        (["b"], ["abc", "def"], ("a", True)),
    ],
)
def test_examples(words: list[str], pieces: list[str], expected: tuple[str, bool]) -> None:
    assert through(words, pieces) == expected


def test_nothing_is_held_back_without_need() -> None:
    stop_words = StopWords(["stop"])
    assert [stop_words.push(piece) for piece in ("hello s", "aid st", "il", "l sto", "p")] == [
        "hello ",
        "said ",
        "stil",
        "l ",
        "",
    ]
    assert stop_words.reached


@given(
    words=st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
    pieces=st.lists(st.text("abc", max_size=4), max_size=8),
)
def test_it_cuts_where_searching_the_whole_text_would(words: list[str], pieces: list[str]) -> None:
    """The stream ends with the piece that completes a word, so a longer word may not yet be there."""
    seen, cut = "", None
    for piece in pieces:
        seen += piece
        found = [at for word in words if (at := seen.find(word)) >= 0]
        if found:
            cut = min(found)
            break
    assert through(words, pieces) == ((seen, False) if cut is None else (seen[:cut], True))
