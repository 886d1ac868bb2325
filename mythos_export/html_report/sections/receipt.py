"""What this is: the verdict, the receipt, the files."""

from __future__ import annotations

import shlex
from typing import Any

from mythos_export.bundle import ParitySummary
from mythos_export.commands.output import size
from mythos_export.html_report.blocks import Table, card, facts, paragraph, section, table
from mythos_export.html_report.markup import Content, Markup, tag
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.verdict import Verdict, verdict_of
from mythos_export.html_report.words import count, percent, plural, short

__all__ = ["hero", "receipt"]

_MOST_WORDS = 100
_LONG = 32  # letters of a word that may be broken
_MARKS = {"equal": "\N{CHECK MARK}", "unknown": "?", "different": "\N{MULTIPLICATION SIGN}"}


def hero(subject: Subject) -> Markup:
    """Name, verdict, and the numbers that are asked for first."""
    manifest = subject.manifest
    parity = manifest.parity
    numbers: list[tuple[str, Content]] = [
        ("Parameters", count(manifest.parameters)),
        ("On disk", size(_bytes(subject))),
        ("Precision", manifest.precision),
        ("Loops", _loops(subject)),
        ("Worst error", _worst(parity) if parity else "not measured"),
        ("Same top token", _top1(parity, subject) if parity else "not measured"),
    ]
    return tag(
        "header",
        tag("p", "mythos-export", class_="kicker"),
        tag("h1", manifest.name),
        tag("p", _lede(subject), class_="lede"),
        _banner(verdict_of(manifest, subject.parity)),
        facts(numbers, class_="tiles"),
    )


def receipt(subject: Subject) -> Markup:
    """How it came to be, and what is in it."""
    manifest = subject.manifest
    made = ", ".join(f"{name} {version}" for name, version in manifest.tool.items())
    pairs: list[tuple[str, Content]] = [
        ("Command", _command(manifest.command) if manifest.command else "made from Python"),
        ("Made", manifest.created),
        ("With", made),
        ("Source", _source(manifest.source)),
        ("Target", f"{manifest.target}, opset {manifest.opset}{_runtime(subject)}"),
        ("Stability", f"spectral radius of the injection {short(manifest.spectral_radius)}; stable below 1"),
        ("Cache", _cache(subject)),
        *([("Kernels", _kernels(subject))] if subject.quantized else []),
    ]
    files = Table(
        ["file", "bytes", "sha256"],
        [[name, count(entry.size), entry.sha256] for name, entry in manifest.files.items()],
        numbers=False,
    )
    return section(
        "receipt",
        "What this is",
        paragraph(
            "The receipt of this bundle, from its manifest. Opening the bundle holds every file against its hash."
        ),
        tag(
            "div",
            card("Receipt", facts(pairs), width="whole"),
            card("Files", table("Files", files), width="whole"),
            class_="grid",
        ),
    )


def _lede(subject: Subject) -> str:
    manifest = subject.manifest
    looped = any(graph.loops == "dynamic" for graph in manifest.graphs)
    loops = "a Loop whose trip count is an input" if looped else f"unrolled to {manifest.loops} loops"
    graphs = "one ONNX graph" if len(manifest.graphs) == 1 else f"{plural(len(manifest.graphs), 'ONNX graph')}, sharing"
    weights = "and its weights" if len(manifest.graphs) == 1 else "their weights"
    return f"A looped language model as {graphs} {weights}. Its recurrent block is {loops}."


def _worst(parity: ParitySummary) -> list[Content]:
    return [short(parity.max_error_over_range), " ", tag("small", f"of {short(parity.tolerance)} allowed")]


def _top1(parity: ParitySummary, subject: Subject) -> list[Content]:
    against = "as PyTorch that rounds alike" if subject.quantized else "as PyTorch"
    return [percent(parity.top1_agreement), " ", tag("small", against)]


def _banner(verdict: Verdict) -> Markup:
    return tag(
        "div",
        tag("span", _MARKS[verdict.kind], class_="mark", aria_hidden="true"),
        tag("div", tag("p", verdict.title, class_="title"), tag("p", _code(verdict.reason))),
        class_=f"verdict {verdict.kind}",
        role="note",
        aria_label="Verdict",
    )


def _code(text: str) -> list[Content]:
    """Words between backticks are what one types."""
    return [tag("code", part) if index % 2 else part for index, part in enumerate(text.split("`"))]


def _source(source: dict[str, Any]) -> Content:
    if source.get("kind") == "seed":
        return f"random weights, seed {source.get('seed')}"
    return [
        tag("code", str(source.get("file", source.get("path", "?")))),
        tag("br"),
        "sha256 ",
        tag("code", str(source.get("sha256", "?"))),
    ]


def _runtime(subject: Subject) -> str:
    manifest = subject.manifest
    least = f", ONNX Runtime {manifest.minimum_runtime} or later" if manifest.minimum_runtime else ""
    options = ", ".join(f"{name}={value}" for name, value in manifest.session.items())
    return least + (f", session options {options}" if options else "")


def _kernels(subject: Subject) -> str:
    record = subject.manifest.quantization
    assert record is not None
    kernels = ", ".join(f"{number} \N{MULTIPLICATION SIGN} {name}" for name, number in record.kernels.items())
    return f"{kernels} (the quantised layers, in ONNX Runtime on a CPU)"


def _command(command: list[str]) -> Markup:
    """Each word on one line: a dash at a line's end would not say how many there were."""
    words = [shlex.quote(word) for word in command[:_MOST_WORDS]]
    rest = f"({plural(len(command) - _MOST_WORDS, 'word')} more)" if len(command) > _MOST_WORDS else None
    spans = [[tag("span", word, class_="whole-word" if len(word) < _LONG else None), " "] for word in words]
    return tag("code", spans, rest)


def _loops(subject: Subject) -> Content:
    if subject.manifest.loops == "dynamic":
        return "any number"
    has_loop = any(graph.loops == "dynamic" for graph in subject.manifest.graphs)
    return [subject.manifest.loops, tag("small", " and any other") if has_loop else None]


def _cache(subject: Subject) -> str:
    cache = subject.inspection.cache
    return f"{size(cache.bytes_per_token)} a token, and {size(cache.bytes_per_token_and_loop)} a token and loop"


def _bytes(subject: Subject) -> int:
    return sum(entry.size for entry in subject.manifest.files.values())
