"""What this is: the lines at the top, and the receipt."""

from __future__ import annotations

import shlex

from mythos_export.commands.output import size
from mythos_export.html_report.blocks import Section, Table
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.words import count, percent, plural, short

__all__ = ["lede", "receipt", "tiles"]

_MOST_WORDS = 100


def lede(subject: Subject) -> str:
    """One sentence on what the bundle holds."""
    graphs = len(subject.manifest.graphs)
    loops = "a Loop whose trip count is an input" if _has_loop(subject) else f"unrolled to {_loops(subject)} loops"
    holds = "one ONNX graph and its weights" if graphs == 1 else f"{graphs} ONNX graphs, sharing their weights"
    return f"A looped language model as {holds}. Its recurrent block is {loops}."


def tiles(subject: Subject) -> list[tuple[str, str]]:
    """The numbers that are asked for first."""
    manifest, parity = subject.manifest, subject.manifest.parity
    same = "as PyTorch that rounds alike" if subject.quantized else "as PyTorch"
    worst = "not measured"
    top1 = "not measured"
    if parity is not None:
        worst = f"{short(parity.max_error_over_range)} of {short(parity.tolerance)} allowed"
        top1 = f"{percent(parity.top1_agreement)} {same}"
    return [
        ("Parameters", count(manifest.parameters)),
        ("On disk", size(sum(entry.size for entry in manifest.files.values()))),
        ("Precision", manifest.precision),
        ("Loops", _loops(subject)),
        ("Worst error", worst),
        ("Same top token", top1),
    ]


def receipt(subject: Subject) -> Section:
    """How it came to be, and what is in it."""
    manifest, cache = subject.manifest, subject.inspection.cache
    facts = [
        ("Command", f"`{_command(manifest.command)}`" if manifest.command else "made from Python"),
        ("Made", manifest.created),
        ("With", ", ".join(f"{name} {version}" for name, version in manifest.tool.items())),
        ("Source", _source(subject)),
        ("Target", f"{manifest.target}, opset {manifest.opset}{_runtime(subject)}"),
        ("Stability", f"spectral radius of the injection {short(manifest.spectral_radius)}; stable below 1"),
        (
            "Cache",
            f"{size(cache.bytes_per_token)} a token, and {size(cache.bytes_per_token_and_loop)} a token and loop",
        ),
    ]
    if manifest.quantization is not None:
        kernels = (f"{number} \N{MULTIPLICATION SIGN} {name}" for name, number in manifest.quantization.kernels.items())
        facts.append(("Kernels", f"{', '.join(kernels)} (the quantized layers, in ONNX Runtime on a CPU)"))
    rows = [[name, count(entry.size), entry.sha256] for name, entry in manifest.files.items()]
    return Section(
        "receipt",
        "What this is",
        ["From the bundle's manifest. Opening the bundle checks every file against its hash."],
        [Table("Files", ["file", "bytes", "sha256"], rows, numbers=False)],
        facts,
    )


def _has_loop(subject: Subject) -> bool:
    return any(graph.loops == "dynamic" for graph in subject.manifest.graphs)


def _loops(subject: Subject) -> str:
    if subject.manifest.loops == "dynamic":
        return "any number"
    return f"{subject.manifest.loops}{' and any other' if _has_loop(subject) else ''}"


def _command(command: list[str]) -> str:
    words = " ".join(map(shlex.quote, command[:_MOST_WORDS])).replace("`", "'")
    return f"{words} ({plural(len(command) - _MOST_WORDS, 'word')} more)" if len(command) > _MOST_WORDS else words


def _source(subject: Subject) -> str:
    source = subject.manifest.source
    if source.get("kind") == "seed":
        return f"random weights, seed {source.get('seed')}"
    return f"`{source.get('file', source.get('path', '?'))}`, sha256 `{source.get('sha256', '?')}`"


def _runtime(subject: Subject) -> str:
    manifest = subject.manifest
    least = f", ONNX Runtime {manifest.minimum_runtime} or later" if manifest.minimum_runtime else ""
    options = ", ".join(f"{name}={value}" for name, value in manifest.session.items())
    return least + (f", session options {options}" if options else "")
