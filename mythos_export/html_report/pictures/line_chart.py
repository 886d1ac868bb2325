"""Lines over loop counts or depths, on a linear or logarithmic scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mythos_export.html_report.markup import Markup, tag
from mythos_export.html_report.pictures.axes import Scale, linear_scale, log_scale, spread
from mythos_export.html_report.pictures.svg import WIDTH, label, labels_that_fit, legend, marker, svg
from mythos_export.html_report.words import short

__all__ = ["DISTINCT", "Bound", "LineChart", "Series", "line_chart"]

_HEIGHT, _LEFT, _RIGHT = 160, 46, 8
DISTINCT = 6  # lines that differ in colour, dash and marker
_BAR = 3  # half the width of a whisker's end
_MOST_MARKERS = 40  # in one line; with more of them it is a caterpillar


@dataclass(frozen=True)
class Series:
    """One line: a value per step, None where there is none. Lone points are not joined."""

    name: str
    values: Sequence[float | None]
    joined: bool = True
    intervals: Sequence[tuple[float, float] | None] = ()  # around the values, as whiskers; none if empty


@dataclass(frozen=True)
class Bound:
    """A horizontal line that values are held against."""

    name: str
    value: float


@dataclass(frozen=True)
class LineChart:
    """What is drawn; `steps` are the labels along the bottom."""

    name: str
    steps: Sequence[str]
    series: Sequence[Series]
    below: str  # what the steps are
    log: bool = False
    bound: Bound | None = None
    least: float = 0.0  # lower end of a linear scale
    most: float | None = None  # its upper end
    write: Callable[[float], str] = field(default=short)


def line_chart(chart: LineChart) -> Markup:
    """Draw it."""
    named, top = legend([series.name for series in chart.series], 12)
    top += 8 if chart.bound is None else 20  # room for its name
    bottom = top + _HEIGHT
    up = _scale(chart, bottom, top)
    across = spread(len(chart.steps), _LEFT, WIDTH - _RIGHT)
    return svg(
        chart.name,
        bottom + 34,
        named,
        _grid(chart, up),
        _steps(chart, across, bottom),
        _bound(chart.bound, up),
        [_line(index, series, across, up) for index, series in enumerate(chart.series)],
    )


def _scale(chart: LineChart, bottom: float, top: float) -> Scale:
    values = [value for series in chart.series for value in series.values if value is not None]
    values += [end for series in chart.series for ends in series.intervals if ends is not None for end in ends]
    values += [chart.bound.value] if chart.bound is not None else []
    return (
        log_scale(values, bottom, top)
        if chart.log
        else linear_scale(values, bottom, top, least=chart.least, most=chart.most)
    )


def _grid(chart: LineChart, up: Scale) -> list[Markup]:
    parts = []
    for mark in up.marks:
        y = up.at(mark)
        parts.append(tag("path", d=f"M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}", class_="grid"))
        parts.append(label(chart.write(mark), _LEFT - 6, y + 4, anchor="end"))
    return parts


def _steps(chart: LineChart, across: list[float], bottom: float) -> list[Markup]:
    shown = labels_that_fit(chart.steps, WIDTH - _RIGHT - _LEFT)
    parts = [label(chart.steps[index], across[index], bottom + 15, anchor="middle") for index in shown]
    return [*parts, label(chart.below, (_LEFT + WIDTH - _RIGHT) / 2, bottom + 30, anchor="middle", class_="quiet")]


def _bound(bound: Bound | None, up: Scale) -> list[Markup]:
    if bound is None:
        return []
    y = up.at(bound.value)
    line = tag("path", d=f"M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}", class_="bound")
    return [line, label(bound.name, WIDTH - _RIGHT - 2, y - 5, anchor="end", class_="bound-name")]


def _line(index: int, series: Series, across: list[float], up: Scale) -> list[Markup]:
    parts = [_whisker(index, x, ends, up) for x, ends in zip(across, series.intervals) if ends is not None]
    points = [(x, up.at(value)) for x, value in zip(across, series.values) if value is not None]
    if not points:
        return []
    if series.joined and len(points) > 1:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(tag("path", d=path, class_=f"l s{index % DISTINCT}"))
    if len(points) <= _MOST_MARKERS:
        parts += [marker(index, x, y) for x, y in points]
    return parts


def _whisker(index: int, x: float, ends: tuple[float, float], up: Scale) -> Markup:
    """From one end of an interval to the other, with a bar at each."""
    low, high = map(up.at, ends)
    bars = f"M{x - _BAR:.1f} {low:.1f}h{2 * _BAR}M{x - _BAR:.1f} {high:.1f}h{2 * _BAR}"
    return tag("path", d=f"M{x:.1f} {low:.1f}V{high:.1f}{bars}", class_=f"w s{index % DISTINCT}")
