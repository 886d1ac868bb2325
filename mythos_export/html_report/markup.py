"""HTML by construction: whatever is not markup already is escaped, and there is no way around it.

A bundle's names may come from anywhere. A template engine would be one more thing to install for a page that is
mostly pictures, which are computed anyway.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

__all__ = ["Content", "Markup", "clean", "document", "tag"]

_VOID = frozenset({"br", "link", "meta"})
_LONGEST = 600  # characters of a text; names of a hostile bundle are as long as its manifest


class Markup(str):
    """Text that is HTML already. Joining or formatting it gives a plain `str`, which is escaped once more."""

    __slots__ = ()


Content: TypeAlias = "str | Iterable[Content] | None"


def tag(name: str, /, *content: Content, **attributes: str | float | None) -> Markup:
    """One element.

    Args:
        content: text, elements, nothing, or several of them.
        attributes: `class_` stands for class, `aria_label` for aria-label; None leaves one out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_printable(_plain(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{_joined(content)}</{name}>")


def document(*content: Markup) -> str:
    """A whole page."""
    return "<!doctype html>\n" + _joined(content) + "\n"


def clean(text: str) -> str:
    """A text without what could break a line, reverse its direction, or not be written as UTF-8; not too long."""
    return _printable(text if len(text) <= _LONGEST else text[:_LONGEST] + " (shortened)")


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


def _joined(content: Content) -> str:
    if content is None:
        return ""
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return html.escape(clean(content))
    return "".join(_joined(part) for part in content)


def _plain(value: str | float) -> str:
    """Coordinates to a tenth of a pixel: the file is read by people too."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
