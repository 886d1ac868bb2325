"""Bars over depths."""

from __future__ import annotations

from collections.abc import Sequence

from mythos_export.html_report.markup import Markup, tag
from mythos_export.html_report.pictures.axes import linear_scale, spread
from mythos_export.html_report.pictures.svg import WIDTH, label, labels_that_fit, svg

__all__ = ["histogram"]

_LEFT, _TOP, _BOTTOM = 8, 20, 150
_MOST_NUMBERS = 24  # that stand on their bars; where there are more, they run into each other


def histogram(name: str, steps: Sequence[str], counts: Sequence[int], below: str) -> Markup:
    """A bar per step, as high as its count."""
    up = linear_scale(counts, _BOTTOM, _TOP, most=float(max(counts, default=0)) or 1.0)
    across = spread(len(counts), _LEFT, WIDTH - _LEFT)
    width = min(0.72 * (WIDTH - 2 * _LEFT) / max(len(counts), 1), 34.0)
    parts = [tag("path", d=f"M{_LEFT} {_BOTTOM}H{WIDTH - _LEFT}", class_="axis")]
    for x, value in zip(across, counts):
        if value > 0:
            y = up.at(value)
            parts.append(tag("rect", x=x - width / 2, y=y, width=width, height=_BOTTOM - y, rx=1.5, class_="bar"))
            parts += [label(str(value), x, y - 5, anchor="middle")] if len(counts) <= _MOST_NUMBERS else []
    for index in labels_that_fit(steps, WIDTH - 2 * _LEFT):
        parts.append(label(steps[index], across[index], _BOTTOM + 15, anchor="middle"))
    parts.append(label(below, WIDTH / 2, _BOTTOM + 31, anchor="middle", class_="quiet"))
    return svg(name, _BOTTOM + 36, parts)
