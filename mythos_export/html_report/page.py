"""The whole page: one file, nothing fetched, no script; the same input gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from calibration.recipe import RECIPE
from mythos_export.html_report import chart, graph, measured, overview, parity, quantization
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.verdict import verdict_of
from mythos_export.html_report.words import listed
from mythos_export.records.measurements import ACCURACY, LATENCY
from mythos_export.records.parity import PARITY

__all__ = ["clean", "render"]

_LONGEST = 600  # characters of a text; names of a hostile bundle are as long as its manifest
_MARKS = {"equal": "\N{CHECK MARK}", "unknown": "?", "different": "\N{MULTIPLICATION SIGN}"}
_SHAPES = (  # of markers, so that lines can be told apart without color
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "M-3.2-3.2h6.4v6.4h-6.4z",
    "M0-4.2L4 3.2H-4z",
    "M0-4.6L4.2 0L0 4.6L-4.2 0z",
    "M-4-2.8H4L0 4z",
    "M-4-1.2h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
)


def render(subject: Subject) -> str:
    """The report of a bundle as HTML."""
    style = _text("style.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    verdict = verdict_of(subject.manifest, subject.parity)
    sections = [
        overview.receipt(subject),
        graph.graph(subject),
        parity.parity(subject),
        quantization.cost(subject),
        quantization.ranges(subject),
        measured.task(subject),
        measured.speed(subject),
    ]
    environment = Environment(
        autoescape=True, finalize=clean, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_text("page.html")).render(
        name=subject.manifest.name,
        # Even if markup of a hostile bundle got through, a browser would run nothing, and ask nobody for anything.
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'",
        style=Markup(style),  # noqa: S704  # ours
        lede=overview.lede(subject),
        verdict=verdict,
        mark=_MARKS[verdict.kind],
        tiles=overview.tiles(subject),
        sections=[section for section in sections if section is not None],
        footer=_footer(subject),
        draw=chart.draw,
        width=chart.WIDTH,
        shapes=_SHAPES,
    )
    return page.lstrip() + "\n"


def clean(value: Any) -> Any:
    """A text without what could break a line, reverse its direction, or not be written as UTF-8; not too long.

    Markup is ours, and stays.
    """
    if isinstance(value, Markup):
        return value
    text = str(value)
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + " (shortened)"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _footer(subject: Subject) -> str:
    version = subject.manifest.tool.get("mythos-export", "?")
    sources = ((PARITY, subject.parity), (RECIPE, subject.recipe))
    measurements = ((ACCURACY, subject.accuracy), (LATENCY, subject.latency))
    files = [name for name, content in (*sources, *measurements) if content is not None]
    as_measured = f", and in {listed(files)} as they were measured" if files else ""
    return (
        f"By mythos-export {version}, from manifest.json and what it lists. "
        f"Every chart's numbers are beneath it{as_measured}."
    )
