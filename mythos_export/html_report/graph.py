"""The graph: stages, operators, parameters, bytes, and the signature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mythos_export.bundle import TensorSpec
from mythos_export.html_report.blocks import Section, Table
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.words import count, percent
from mythos_export.inspection.inspect import Graph, Inspection, Stage

__all__ = ["graph"]

_NAMES = {"embedding": "Embedding", "prelude": "Prelude", "loop": "Loop body", "coda": "Coda", "head": "Head"}
_OPERATORS = 12


def graph(subject: Subject) -> Section:
    """The first graph; what goes into all of them and comes out."""
    inspection = subject.inspection
    first, several = inspection.graphs[0], len(inspection.graphs) > 1
    of_first = f" of {first.file}" if several else ""
    tables = [_stages(f"Stages{of_first}", inspection, first), _operators(f"Operators{of_first}", first)]
    if several:
        rows = [
            [graph.file, "any number" if graph.loops == "dynamic" else str(graph.loops), count(graph.nodes)]
            for graph in inspection.graphs
        ]
        tables.append(Table("Graphs", ["file", "loops", "operators"], rows))
    tables.append(_signature("Inputs", subject.manifest.inputs))
    tables.append(_signature("Outputs", subject.manifest.outputs))
    return Section("graph", "Graph", [_in_words(inspection)], tables)


def _in_words(inspection: Inspection) -> str:
    words = "Prelude, then one block run repeatedly with the same weights, then coda. "
    if any(graph.loops == "dynamic" for graph in inspection.graphs):
        return words + (
            "The block is the body of an ONNX Loop: each sequence says how many loops it wants, and the deepest "
            "decides how often the body runs."
        )
    return words + "The loop is unrolled: the body is there once for every depth, and all copies share its weights."


def _stages(title: str, inspection: Inspection, graph: Graph) -> Table:
    stored = {stage.stage: stage for stage in inspection.stages}
    rows = []
    for name, shown in _NAMES.items():
        stage = stored.get(name, Stage(stage=name, parameters=0, bytes=0, groups=[]))
        runs = ("n" if graph.loops == "dynamic" else str(graph.loops)) if name == "loop" else "1"
        rows.append(
            [
                shown,
                f"{runs} \N{MULTIPLICATION SIGN}",
                count(sum(graph.operators.get(name, {}).values())),
                count(stage.parameters or 0),
                count(stage.bytes),
                percent(stage.bytes / max(inspection.weight_bytes, 1)),
            ]
        )
    return Table(title, ["stage", "runs", "operators", "parameters", "bytes", "of all bytes"], rows)


def _operators(title: str, graph: Graph) -> Table:
    """The most frequent operators by stage, and the Loop if there is one."""
    stages = [Counter(graph.operators.get(name, {})) for name in _NAMES]
    counts = sum(stages, Counter[str]())
    frequent = sorted(counts, key=lambda operator: (operator != "Loop", -counts[operator], operator))
    groups = [(operator, [operator]) for operator in frequent[:_OPERATORS]]
    if rest := frequent[_OPERATORS:]:
        groups.append((f"{len(rest)} others", rest))
    groups.append(("all", frequent))
    rows = [
        [name, *(count(sum(stage[each] for each in group)) for stage in (*stages, counts))] for name, group in groups
    ]
    return Table(title, ["operator", *_NAMES.values(), "all"], rows)


def _signature(title: str, specs: Sequence[TensorSpec]) -> Table:
    rows = [[spec.name, spec.dtype, f"[{', '.join(map(str, spec.shape))}]"] for spec in specs]
    return Table(title, ["name", "type", "shape"], rows, numbers=False)
