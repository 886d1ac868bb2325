"""Latency against loops and against context, as one SVG; no library, for it is lines, points and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

__all__ = ["draw"]

_WIDTH, _HEIGHT = 420, 300  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 34, 44
_LEGEND_LINE = 18
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by everyone
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


class Panel(NamedTuple):
    """One diagram: for each contestant its points (x, milliseconds, least, most)."""

    title: str
    below: str
    lines: dict[str, list[tuple[float, float, float, float]]]


def draw(decode: Sequence[Mapping[str, Any]]) -> str:
    """The picture of a result's `decode` rows: loops across in the first row, past tokens in the second.

    Latency is on a logarithmic scale, for contestants are far apart; bars reach from the quickest to the slowest round.
    """
    names = list(dict.fromkeys(row["contestant"] for row in decode))
    rows = [
        [_panel(decode, "loops", "past", past) for past in sorted({row["past"] for row in decode})],
        [_panel(decode, "past", "loops", loops) for loops in sorted({row["loops"] for row in decode})],
    ]
    width = _WIDTH * max(len(row) for row in rows)
    legend = _LEGEND_LINE * len(names) + 12
    height = legend + _HEIGHT * len(rows)
    parts = [_legend(index, name) for index, name in enumerate(names)]
    for down, row in enumerate(rows):
        for across, panel in enumerate(row):
            place = f"translate({across * _WIDTH} {legend + down * _HEIGHT})"
            parts.append(f'<g transform="{place}">{_diagram(panel, names)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _panel(rows: Sequence[Mapping[str, Any]], across: str, fixed: str, value: int) -> Panel:
    words = {"loops": "loops", "past": "past tokens"}
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in sorted((row for row in rows if row[fixed] == value), key=lambda row: row[across]):
        point = float(row[across]), row["ms_per_token"], row["least_ms"], row["most_ms"]
        lines.setdefault(row["contestant"], []).append(point)
    return Panel(f"ms a token at {value} {words[fixed]}", words[across], lines)


def _diagram(panel: Panel, names: Sequence[str]) -> str:
    points = [point for line in panel.lines.values() for point in line]
    places = sorted({point[0] for point in points})
    low, high = math.log10(min(point[2] for point in points)), math.log10(max(point[3] for point in points))
    low, high = math.floor(low * 4) / 4, max(math.ceil(high * 4), math.floor(low * 4) + 1) / 4

    def x(value: float) -> float:
        span = places[-1] - places[0]
        share = (value - places[0]) / span if span else 0.5
        return _LEFT + 12 + share * (_WIDTH - _LEFT - _RIGHT - 24)

    def y(milliseconds: float) -> float:
        return _HEIGHT - _BOTTOM - (math.log10(milliseconds) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(panel.title, _WIDTH / 2, 18, "middle")]
    for mark in _marks(low, high):
        parts.append(f'<path d="M{_LEFT} {y(mark):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(_text(f"{mark:g}", _LEFT - 6, y(mark) + 4, "end"))
    parts += [_text(f"{place:g}", x(place), _HEIGHT - _BOTTOM + 16, "middle") for place in places]
    parts.append(_text(panel.below, _WIDTH / 2, _HEIGHT - 10, "middle"))
    for name, line in panel.lines.items():
        style = _style(names.index(name))
        path = "L".join(f"{x(at):.1f} {y(middle):.1f}" for at, middle, _, _ in line)
        parts.append(f'<path d="M{path}" fill="none" {style}/>')
        for at, middle, least, most in line:
            parts.append(f'<path d="M{x(at):.1f} {y(least):.1f}V{y(most):.1f}" {style}/>')
            parts.append(f'<circle cx="{x(at):.1f}" cy="{y(middle):.1f}" r="3" {style} fill="#fff"/>')
    return "".join(parts)


def _marks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the scale."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    candidates = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    return [mark for mark in candidates if low - 1e-9 <= math.log10(mark) <= high + 1e-9]


def _legend(index: int, name: str) -> str:
    y = 16 + index * _LEGEND_LINE
    return f'<path d="M{_LEFT} {y - 4}h30" {_style(index)}/>' + _text(name, _LEFT + 38, y)


def _style(index: int) -> str:
    dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return f'stroke="{_COLOURS[index % len(_COLOURS)]}" stroke-width="1.8"' + (
        f' stroke-dasharray="{dash}"' if dash else ""
    )


def _text(text: str, x: float, y: float, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
