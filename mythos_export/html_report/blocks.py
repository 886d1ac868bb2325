"""What a page is made of, as plain data; `page.html` turns it into HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mythos_export.html_report.chart import Chart
from mythos_export.html_report.words import subsampled

__all__ = ["LEVELS", "Figure", "Section", "Table", "by_depth", "shade"]

LEVELS = 5  # shades of a cell, the palest 0
_MOST_ROWS, _MOST_COLUMNS = 80, 40


@dataclass(frozen=True)
class Table:
    """Rows of text; the first of each names it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numbers: bool = True  # right-aligned behind the first column
    shades: Sequence[Sequence[str]] = ()  # a class of the style sheet for each cell; none if empty

    @property
    def shown(self) -> tuple[list[str], list[list[tuple[str, str]]], str]:
        """Head, rows of (text, shade), and what was left out: a large table is subsampled."""
        rows = subsampled(len(self.rows), _MOST_ROWS)
        columns = [0, *(1 + index for index in subsampled(len(self.head) - 1, _MOST_COLUMNS - 1))]
        cells = [
            [(self.rows[row][column], self.shades[row][column] if self.shades else "") for column in columns]
            for row in rows
        ]
        counts = (("rows", len(rows), len(self.rows)), ("columns", len(columns), len(self.head)))
        parts = [f"{every - shown} of {every} {what}" for what, shown, every in counts if shown < every]
        left_out = f"{' and '.join(parts)} left out" if parts else ""
        return [self.head[column] for column in columns], cells, left_out


@dataclass(frozen=True)
class Figure:
    """A chart, and its numbers in a table that opens beneath."""

    chart: Chart
    table: Table


@dataclass(frozen=True)
class Section:
    """One part of the page; words between backticks are code."""

    identity: str
    title: str
    words: Sequence[str]
    blocks: Sequence[Table | Figure] = ()
    facts: Sequence[tuple[str, str]] = ()


def shade(value: float | None, pale: float, deep: float, *, ramp: str = "h", log: bool = False) -> str:
    """The class of a cell between the value that is palest and the one that is deepest.

    Args:
        ramp: "h" where the deepest is the worst, "g" where it is the best.
    """
    if value is None or not math.isfinite(value) or pale == deep:
        return ""
    if log:
        value, pale, deep = (math.log(max(number, 1e-300)) for number in (value, pale, deep))
    return f"{ramp}{min(max(int((value - pale) / (deep - pale) * LEVELS), 0), LEVELS - 1)}"


def by_depth(
    title: str,
    note: str,
    columns: Sequence[tuple[str, Mapping[int, float]]],
    write: Callable[[float], str],
    shade_of: Callable[[float], str],
) -> Table:
    """Depths downward, loop counts across; `columns` has the value of each depth."""
    depths = sorted({depth for _, values in columns for depth in values})
    rows = [[str(depth), *(write(each[depth]) if depth in each else "" for _, each in columns)] for depth in depths]
    shades = [["", *(shade_of(each[depth]) if depth in each else "" for _, each in columns)] for depth in depths]
    return Table(title, ["depth", *(name for name, _ in columns)], rows, note, shades=shades)
