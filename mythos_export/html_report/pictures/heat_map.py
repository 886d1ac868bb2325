"""A heat map whose every cell also carries its number: depths downward, loop counts across."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mythos_export.html_report.markup import Markup, tag
from mythos_export.html_report.pictures.axes import strided, thinned
from mythos_export.html_report.pictures.svg import WIDTH, label, svg

__all__ = ["LEVELS", "Cell", "HeatMap", "heat_map", "level_of"]

LEVELS = 9  # shades, the palest 0
_LEFT, _ROW, _TOP = 34, 17, 34
_WIDEST, _NARROWEST = 62, 30  # of a cell; in a narrower one no number fits
_MOST_ROWS = 32


@dataclass(frozen=True)
class Cell:
    """One number and its shade."""

    level: int
    text: str


@dataclass(frozen=True)
class HeatMap:
    """What is drawn; a cell that is None stays empty."""

    name: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[Cell | None]]  # by row
    across: str  # what the columns are
    down: str  # what the rows are
    better_deep: bool = False  # is the deepest shade the best?


def level_of(value: float | None, pale: float, deep: float, *, log: bool = False) -> int:
    """Shade of a number between the one that is palest and the one that is deepest."""
    if value is None or not math.isfinite(value) or pale == deep:
        return 0
    if log:
        value, pale, deep = (math.log(max(number, 1e-300)) for number in (value, pale, deep))
    share = (value - pale) / (deep - pale)
    return min(max(int(share * LEVELS), 0), LEVELS - 1)


def heat_map(chart: HeatMap) -> Markup:
    """Draw it; of many rows the first and every n-th."""
    width = min((WIDTH - _LEFT) / max(len(chart.columns), 1), _WIDEST)
    shown = sorted({0, *strided(len(chart.rows), _MOST_ROWS)}) if chart.rows else []
    parts = [label(chart.across, _LEFT, 12, class_="quiet"), label(chart.down, 0, 28, class_="quiet")]
    for index in thinned(len(chart.columns), 12):
        parts.append(label(chart.columns[index], _LEFT + (index + 0.5) * width, 28, anchor="middle"))
    for line, index in enumerate(shown):
        y = _TOP + line * _ROW
        parts.append(label(chart.rows[index], _LEFT - 8, y + 12, anchor="end"))
        for column, cell in enumerate(chart.cells[index]):
            if cell is not None:
                shade = f"{'g' if chart.better_deep else 'h'}{cell.level}"
                parts += _cell(cell.text, shade, _LEFT + column * width, y, width)
    return svg(chart.name, _TOP + len(shown) * _ROW + 4, parts)


def _cell(text: str, shade: str, x: float, y: float, width: float) -> list[Markup]:
    square = tag("rect", x=x, y=y, width=width - 1, height=_ROW - 1, class_=shade)
    if width < _NARROWEST:
        return [square]
    return [square, label(text, x + width / 2, y + 12, anchor="middle", class_="n")]
