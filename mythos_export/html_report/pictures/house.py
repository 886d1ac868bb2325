"""The house of a graph: its stages from the tokens down to the logits, and the loop around the middle one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mythos_export.html_report.markup import Markup, tag
from mythos_export.html_report.pictures.svg import WIDTH, label, svg

__all__ = ["Storey", "house"]

_LEFT, _RIGHT, _GAP = 6, 292, 22
_HEAD, _LINE = 44, 17  # heights


@dataclass(frozen=True)
class Storey:
    """One stage; `share` is its part of all bytes, `loops` what stands beside the arrow of the one that loops."""

    name: str
    lines: tuple[str, ...]
    share: float
    loops: str | None = None


def house(name: str, storeys: Sequence[Storey]) -> Markup:
    """Draw it."""
    middle = (_LEFT + _RIGHT) / 2
    parts, y = [label("tokens", middle, 13, anchor="middle", class_="quiet")], 20.0
    for storey in storeys:
        height = _HEAD + _LINE * len(storey.lines)
        parts += [_arrow(middle, y, y + _GAP - 6), *_storey(storey, y + _GAP - 4, height)]
        y += _GAP - 2 + height
    parts.append(_arrow(middle, y, y + _GAP - 6))
    parts.append(label("logits", middle, y + _GAP + 10, anchor="middle", class_="quiet"))
    return svg(name, y + _GAP + 18, parts)


def _storey(storey: Storey, y: float, height: float) -> list[Markup]:
    looping = storey.loops is not None
    width = _RIGHT - _LEFT
    parts = [
        tag("rect", x=_LEFT, y=y, width=width, height=height, rx=8, class_="storey loop" if looping else "storey"),
        label(storey.name, _LEFT + 14, y + 22, class_="storey-name"),
        *(label(line, _LEFT + 14, y + 40 + 17 * index) for index, line in enumerate(storey.lines)),
        tag("rect", x=_LEFT + 14, y=y + height - 9, width=width - 28, height=3, rx=1.5, class_="track"),
        tag("rect", x=_LEFT + 14, y=y + height - 9, width=(width - 28) * storey.share, height=3, rx=1.5, class_="bar"),
    ]
    return [*parts, *_return_arrow(storey.loops, y, height)] if storey.loops is not None else parts


def _arrow(x: float, top: float, bottom: float) -> Markup:
    return tag("path", d=f"M{x:.1f} {top:.1f}V{bottom:.1f}m-4 -5l4 5l4 -5", class_="flow")


def _return_arrow(text: str, y: float, height: float) -> list[Markup]:
    """From the foot of a storey round its side to its head."""
    head, foot, out = y + 18, y + height - 18, _RIGHT + 15
    path = f"M{_RIGHT} {foot:.1f}H{out - 8}q8 0 8 -8V{head + 8:.1f}q0 -8 -8 -8H{_RIGHT + 2}m5 -4l-5 4l5 4"
    return [
        tag("path", d=path, class_="flow"),
        label(text, WIDTH - 2, (head + foot) / 2 + 4, anchor="end", class_="times"),
    ]
