"""Where numbers stand in a picture: a linear or logarithmic scale, and evenly spaced steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Scale", "linear_scale", "log_scale", "spread", "strided", "thinned"]

_STRIDES = (1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100)
_LEAST, _MOST = 1e-300, 1e300  # what is smaller counts as 0, what is larger stands at the edge


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
        value = min(max(value, self.low), self.high)
        share = (self._warped(value) - self._warped(self.low)) / (self._warped(self.high) - self._warped(self.low))
        return self.start + share * (self.end - self.start)

    def _warped(self, value: float) -> float:
        return math.log10(value) if self.log else value


def linear_scale(
    values: Iterable[float], start: float, end: float, *, least: float = 0.0, most: float | None = None
) -> Scale:
    """From `least` to a round number of steps that is above all values (or above `most`)."""
    highest = min(max((value - least for value in values if value - least > _LEAST), default=1.0), _MOST)
    highest = highest if most is None else most - least
    step = _round_up(highest / 5)
    steps = max(1, math.ceil(round(highest / step, 9)))
    marks = tuple(least + step * index for index in range(steps + 1))
    return Scale(least, marks[-1], start, end, marks)


def log_scale(values: Iterable[float], start: float, end: float) -> Scale:
    """From and to a round number around all values above 0; a 0 stands at the lower edge."""
    given = [min(value, _MOST) for value in values if value > _LEAST] or [0.1, 1.0]
    low = math.floor(math.log10(min(given)))
    high = max(math.ceil(math.log10(max(given))), low + 1)
    if high - low <= 2:
        return _fine_log_scale(min(given), max(given), low, start, end)
    every = math.ceil((high - low) / 6)
    marks = tuple(10.0**exponent for exponent in range(low, high + 1, every))
    return Scale(10.0**low, 10.0**high, start, end, marks, log=True)


def _fine_log_scale(least: float, most: float, low: int, start: float, end: float) -> Scale:
    """Within two powers of ten: marks at 1, 2 and 5 times one, no further out than they need to be."""
    marks = [digit * 10.0**exponent for exponent in range(low, low + 3) for digit in (1, 2, 5)]
    first = max(index for index, mark in enumerate(marks) if mark <= least * (1 + 1e-9))
    last = min(index for index, mark in enumerate(marks) if mark >= most * (1 - 1e-9))
    last = max(last, first + 1)
    return Scale(marks[first], marks[last], start, end, tuple(marks[first : last + 1]), log=True)


def spread(count: int, start: float, end: float) -> list[float]:
    """Middles of so many equal parts."""
    width = (end - start) / max(count, 1)
    return [start + width * (index + 0.5) for index in range(count)]


def thinned(count: int, most: int) -> list[int]:
    """At most so many of the numbers 0, 1, ..., evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def strided(count: int, most: int) -> list[int]:
    """At most so many of the numbers 0, 1, ..., every n-th: of depths counted from 1, the multiples of a round n."""
    least = math.ceil(count / most)
    stride = next((stride for stride in _STRIDES if stride >= least), least)
    return list(range(stride - 1, count, stride))


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 and 10, at any power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 2.5, 5, 10, 20) if step * power >= value * (1 - 1e-9))
