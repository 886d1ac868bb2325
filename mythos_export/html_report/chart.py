"""Line charts as inline SVG: where everything stands. Pure functions of numbers, wide enough for a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mythos_export.html_report.words import short

__all__ = ["MOST_LINES", "Chart", "Drawing", "Scale", "Series", "draw", "linear_scale", "log_scale"]

MOST_LINES = 6  # that differ in color, dash and marker
WIDTH = 340  # of every chart, near the pixels it gets on a phone, so that its letters are never shrunk
_HEIGHT, _LEFT, _RIGHT = 160, 46, 8
_MOST_MARKERS = 40  # in one line; more would overlap
_MOST_LETTERS, _LETTER = 48, 6.1  # of a name in a legend, and the average width of each
_STRIDES = (1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100)
_LEAST, _MOST = 1e-300, 1e300  # what is smaller counts as 0, what is larger stands at the edge


@dataclass(frozen=True)
class Series:
    """One line: a value per step, None where there is none."""

    name: str
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None] = ()  # around the values, as whiskers; none if empty


@dataclass(frozen=True)
class Chart:
    """What is drawn; `steps` are the labels along the bottom, and `name` says it to those who cannot see it."""

    name: str
    steps: Sequence[str]
    series: Sequence[Series]
    below: str  # what the steps are
    log: bool = False
    bound: tuple[str, float] | None = None  # a horizontal line that values are held against
    most: float | None = None  # upper end of a linear scale
    write: Callable[[float], str] = short


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high`, drawn from `start` to `end`; marks stand at round ones."""

    low: float
    high: float
    start: float
    end: float
    marks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Position of a number; one off the scale stands at its edge."""
        low, high, value = map(self._warped, (self.low, self.high, min(max(value, self.low), self.high)))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _warped(self, value: float) -> float:
        return math.log10(value) if self.log else value


@dataclass(frozen=True)
class Drawing:
    """A chart with places: what the template writes as SVG."""

    name: str
    height: float
    legend: list[tuple[int, float, float, str]]  # line, x, y, name
    marks: list[tuple[float, str]]  # y, text
    ticks: list[tuple[float, str]]  # x, text
    bottom: float
    below: str
    bound: tuple[str, float] | None  # name, y
    lines: list[tuple[int, Markup]]  # line, SVG path
    whiskers: list[tuple[int, Markup]]
    points: list[tuple[int, float, float]]  # line, x, y


def linear_scale(values: Iterable[float], start: float, end: float, most: float | None = None) -> Scale:
    """From 0 to a round number of steps that is above all values (or above `most`)."""
    highest = most or min(max((value for value in values if value > _LEAST), default=1.0), _MOST)
    power = 10.0 ** math.floor(math.log10(highest / 5))
    step = next(power * times for times in (1, 2, 2.5, 5, 10, 20) if 5 * power * times >= highest * (1 - 1e-9))
    marks = tuple(step * index for index in range(max(1, math.ceil(round(highest / step, 9))) + 1))
    return Scale(0.0, marks[-1], start, end, marks)


def log_scale(values: Iterable[float], start: float, end: float) -> Scale:
    """From and to a power of ten around all values above 0; a 0 stands at the lower edge."""
    positive = [min(value, _MOST) for value in values if value > _LEAST] or [0.1, 1.0]
    low = math.floor(math.log10(min(positive)))
    high = max(math.ceil(math.log10(max(positive))), low + 1)
    marks = tuple(10.0**exponent for exponent in range(low, high + 1, math.ceil((high - low) / 6)))
    return Scale(10.0**low, 10.0**high, start, end, marks, log=True)


def draw(chart: Chart) -> Drawing:
    """Place it."""
    legend, top = _legend([series.name for series in chart.series])
    top += 8 if chart.bound is None else 20  # room for its name
    bottom = top + _HEIGHT
    scale = _scale(chart, bottom, top)
    width = (WIDTH - _LEFT - _RIGHT) / max(len(chart.steps), 1)
    across = [_LEFT + width * (index + 0.5) for index in range(len(chart.steps))]
    places = [
        [(x, scale.at(value)) for x, value in zip(across, series.values) if value is not None and math.isfinite(value)]
        for series in chart.series
    ]
    return Drawing(
        name=chart.name,
        height=bottom + 34,
        legend=legend,
        marks=[(scale.at(mark), chart.write(mark)) for mark in scale.marks],
        ticks=[(across[index], chart.steps[index]) for index in _that_fit(chart.steps)],
        bottom=bottom,
        below=chart.below,
        bound=None if chart.bound is None else (chart.bound[0], scale.at(chart.bound[1])),
        lines=[(line, _path(points)) for line, points in enumerate(places) if len(points) > 1],
        whiskers=[
            (line, _whisker(x, *map(scale.at, ends)))
            for line, series in enumerate(chart.series)
            for x, ends in zip(across, series.intervals)
            if ends is not None
        ],
        points=[(line, x, y) for line, points in enumerate(places) if len(points) <= _MOST_MARKERS for x, y in points],
    )


def _scale(chart: Chart, bottom: float, top: float) -> Scale:
    values = [value for series in chart.series for value in series.values if value is not None]
    values += [end for series in chart.series for ends in series.intervals if ends is not None for end in ends]
    values += [chart.bound[1]] if chart.bound is not None else []
    values = [value for value in values if math.isfinite(value)]
    return log_scale(values, bottom, top) if chart.log else linear_scale(values, bottom, top, chart.most)


def _that_fit(steps: Sequence[str]) -> range:
    """Which labels to write, so that none runs into the next: every n-th, of depths the multiples of a round n."""
    most = max(1, int((WIDTH - _LEFT - _RIGHT) / (6.4 * max(map(len, steps), default=1) + 5)))
    least = math.ceil(len(steps) / most)
    stride = next((stride for stride in _STRIDES if stride >= least), max(least, 1))
    return range(stride - 1, len(steps), stride)


def _legend(names: Sequence[str]) -> tuple[list[tuple[int, float, float, str]], float]:
    """The names beside their markers, over as many lines as they need, and where they end."""
    parts, x, y = [], 4.0, 12.0
    for line, name in enumerate(names):
        if len(name) > _MOST_LETTERS:
            name = f"{name[:15]}… {name[17 - _MOST_LETTERS :]}"  # ends tell them apart
        width = 20 + _LETTER * len(name)
        if x > 4 and x + width > WIDTH:
            x, y = 4.0, y + 17
        parts.append((line, x, y, name))
        x += width + 8
    return parts, y + 8


def _path(points: Sequence[tuple[float, float]]) -> Markup:
    return Markup("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points))  # noqa: S704  # made of numbers alone


def _whisker(x: float, low: float, high: float) -> Markup:
    """From one end of an interval to the other, with a bar at each."""
    bars = f"M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"
    return Markup(f"M{x:.1f} {low:.1f}V{high:.1f}{bars}")  # noqa: S704
