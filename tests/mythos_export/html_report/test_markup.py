"""Nothing that is not markup gets through as markup."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mythos_export.html_report.markup import Markup, clean, document, tag


class Seen(HTMLParser):
    """What a parser makes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_an_element() -> None:
    made = tag("p", "a < b", tag("b", "c"), None, ["d", tag("i")], class_="x", aria_label='"', id=None, data_n=1.25)
    assert made == '<p class="x" aria-label="&quot;" data-n="1.2">a &lt; b<b>c</b>d<i></i></p>'


def test_elements_without_content_have_no_end() -> None:
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'


@given(st.text(), st.text())
def test_any_text_is_text(text: str, value: str) -> None:
    seen = Seen(document(tag("p", text, title=value)))
    assert seen.tags == [("p", {"title": "".join(letter if letter.isprintable() else "?" for letter in value)})]
    assert seen.text.strip() == clean(text).strip()


@given(st.text())
def test_any_text_can_be_written(text: str) -> None:
    assert clean(text).isprintable()
    document(tag("p", text)).encode()


@pytest.mark.parametrize("made", ["".join([tag("b")]), f"{tag('b')}", tag("b") + ""])
def test_markup_put_together_by_hand_is_text_again(made: str) -> None:
    assert tag("p", made) == "<p>&lt;b&gt;&lt;/b&gt;</p>"
    assert tag("p", Markup(made)) == "<p><b></b></p>"


def test_what_reverses_or_breaks_a_line_is_gone() -> None:
    assert clean("a\u202eb\nc\ud800d") == "a?b?c?d"
    assert len(clean("x" * 10**6)) < 2100


def test_a_long_path_is_whole() -> None:
    """Only what is read is shortened, not what is drawn."""
    path = "M" + "L".join(f"{x} {x}" for x in range(1000))
    assert f'd="{path}"' in tag("path", d=path)
