"""Latency against loops and against context, as one SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["draw"]

_WORDS = {"loops": "loops", "past": "past tokens"}


def draw(decode: Sequence[Mapping[str, Any]]) -> str:
    """The picture of a result's `decode` rows: loops across in the first row, past tokens in the second.

    Latency is on a logarithmic scale, for contestants are far apart; bars reach from the quickest to the slowest round.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = [("loops", "past"), ("past", "loops")]
    panels = [(across, fixed, sorted({row[fixed] for row in decode})) for across, fixed in rows]
    columns = max(len(values) for *_, values in panels)
    figure = Figure(figsize=(4.2 * columns, 6.6), layout="constrained")
    for down, (across, fixed, values) in enumerate(panels):
        for index, value in enumerate(values):
            axes = figure.add_subplot(2, columns, down * columns + index + 1)
            axes.set(title=f"ms a token at {value} {_WORDS[fixed]}", xlabel=_WORDS[across], yscale="log")
            axes.grid(alpha=0.3)
            for name in dict.fromkeys(row["contestant"] for row in decode):
                line = [row for row in decode if (row["contestant"], row[fixed]) == (name, value)]
                line.sort(key=lambda row: row[across])
                middle = [row["ms_per_token"] for row in line]
                low = [row["ms_per_token"] - row["least_ms"] for row in line]
                high = [row["most_ms"] - row["ms_per_token"] for row in line]
                axes.errorbar([row[across] for row in line], middle, [low, high], marker="o", label=name)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left")
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "benchmark", "svg.fonttype": "none"}):  # the same rows, the same bytes
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
