"""What all pictures share: their width, their frame, and a name that a screen reader says."""

from __future__ import annotations

from collections.abc import Sequence

from mythos_export.html_report.markup import Content, Markup, tag
from mythos_export.html_report.pictures.axes import strided

__all__ = ["WIDTH", "label", "labels_that_fit", "legend", "marker", "svg"]

WIDTH = 340  # of every picture, near the pixels it gets on a phone, so that its letters are never shrunk
_LONGEST = 48  # letters of a name in a legend
_LETTER = 6.1  # average width at the legend's size
_SHAPES = {
    0: "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    1: "M-3.2-3.2h6.4v6.4h-6.4z",
    2: "M0-4.2L4 3.2H-4z",
    3: "M0-4.6L4.2 0L0 4.6L-4.2 0z",
    4: "M-4-2.8H4L0 4z",
    5: "M-4-1.2h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
}


def svg(name: str, height: float, *content: Content) -> Markup:
    """A picture.

    Args:
        name: what it shows, for who cannot see it; its numbers are in a table beneath.
    """
    return tag("svg", content, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", aria_label=name)


def label(text: str, x: float, y: float, *, anchor: str | None = None, class_: str | None = None) -> Markup:
    """A text; `anchor` is "middle" or "end"."""
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


def labels_that_fit(steps: Sequence[str], width: float) -> list[int]:
    """Which of evenly spaced labels to write, so that none runs into the next."""
    longest = max(map(len, steps), default=1)
    return strided(len(steps), max(1, int(width / (6.4 * longest + 5))))


def marker(series: int, x: float, y: float) -> Markup:
    """A point: each series has a shape of its own, so that nothing hangs on its colour."""
    index = series % len(_SHAPES)
    return tag("path", d=_SHAPES[index], transform=f"translate({x:.1f} {y:.1f})", class_=f"p s{index}")


def legend(names: list[str], y: float) -> tuple[list[Markup], float]:
    """The names beside their shapes, over as many lines as they need, and where they end."""
    parts, x = [], 4.0
    for index, name in enumerate(names):
        shown = name if len(name) <= _LONGEST else f"{name[:15]}… {name[-(_LONGEST - 17) :]}"  # ends tell them apart
        width = 20 + _LETTER * len(shown)
        if x > 4 and x + width > WIDTH:
            x, y = 4.0, y + 17
        parts += [marker(index, x + 4, y - 4), label(shown, x + 13, y)]
        x += width + 8
    return parts, y + 8 if names else y - 9
