"""The whole page: one file, nothing fetched, no script; the same input gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from calibration.recipe import RECIPE
from mythos_export.html_report.markup import Markup, document, tag
from mythos_export.html_report.measurements import ACCURACY, LATENCY
from mythos_export.html_report.parity_file import PARITY
from mythos_export.html_report.sections.graph import graph
from mythos_export.html_report.sections.measured import speed, task
from mythos_export.html_report.sections.parity import parity
from mythos_export.html_report.sections.quantization import cost, ranges
from mythos_export.html_report.sections.receipt import hero, receipt
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.words import listed

__all__ = ["render"]

_TITLES = {
    "receipt": "What this is",
    "graph": "Graph",
    "parity": "Parity",
    "cost": "Cost",
    "ranges": "Ranges",
    "task": "Accuracy",
    "speed": "Speed",
}


def render(subject: Subject) -> str:
    """The report of a bundle as HTML."""
    sections = {
        "receipt": receipt(subject),
        "graph": graph(subject),
        "parity": parity(subject),
        "cost": cost(subject),
        "ranges": ranges(subject),
        "task": task(subject),
        "speed": speed(subject),
    }
    present = {name: content for name, content in sections.items() if content is not None}
    body = tag(
        "body",
        tag("a", "Skip to the report", href="#report", class_="skip"),
        hero(subject),
        tag("nav", [tag("a", _TITLES[name], href=f"#{name}") for name in present], aria_label="Sections"),
        tag("main", list(present.values()), id="report", tabindex=-1),
        tag("footer", tag("p", _made(subject))),
    )
    return document(tag("html", _head(subject), body, lang="en"))


def _head(subject: Subject) -> Markup:
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # Even if markup of a hostile bundle got through, a browser would run nothing, and ask nobody for anything.
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{subject.manifest.name}: report of a mythos-export bundle"),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(style)),
    )


def _made(subject: Subject) -> str:
    version = subject.manifest.tool.get("mythos-export", "?")
    sources = ((PARITY, subject.parity), (RECIPE, subject.recipe))
    measured = ((ACCURACY, subject.accuracy), (LATENCY, subject.latency))
    files = [name for name, found in (*sources, *measured) if found is not None]
    as_measured = f", and in {listed(files)} as they were measured" if files else ""
    return (
        f"By mythos-export {version}, from manifest.json and what it lists. "
        f"Every picture's numbers are beneath it{as_measured}."
    )
