"""The house of the graph: stages, operators, parameters, bytes, and the signature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mythos_export.bundle import TensorSpec
from mythos_export.commands.output import size
from mythos_export.html_report.blocks import Table, card, figure, paragraph, section, table
from mythos_export.html_report.markup import Markup, tag
from mythos_export.html_report.pictures.house import Storey, house
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.words import count, percent, plural
from mythos_export.inspection.inspect import Graph, Inspection, Stage

__all__ = ["graph"]

_NAMES = {"embedding": "Embedding", "prelude": "Prelude", "loop": "Loop body", "coda": "Coda", "head": "Head"}
_TIMES = "\N{MULTIPLICATION SIGN}"
_OPERATORS = 12


def graph(subject: Subject) -> Markup:
    """The first graph as a picture; what goes into all of them and comes out."""
    found = subject.inspection
    first, several = found.graphs[0], len(found.graphs) > 1
    of_first = f" of {first.file}" if several else ""
    signature = [
        card("Inputs", table("Inputs", _signature(subject.manifest.inputs))),
        card("Outputs", table("Outputs", _signature(subject.manifest.outputs))),
    ]
    return section(
        "graph",
        "The house of the graph",
        paragraph(_in_words(found)),
        tag(
            "div",
            figure(f"Stages{of_first}", _note(first), _picture(found, first), _stages(found, first)),
            card(f"Operators{of_first}", table("Operators", _operators(first)), width="wide"),
            card("Graphs", table("Graphs", _graphs(found.graphs)), width="whole") if several else None,
            class_="grid",
        ),
        tag("div", signature, class_="grid pairs"),
    )


def _in_words(found: Inspection) -> str:
    words = "Prelude, then one block over and over with the same weights, then coda. "
    if any(each.loops == "dynamic" for each in found.graphs):
        return words + (
            "The block is the body of a real Loop: each sequence says how deep it goes, and the deepest decides how "
            "often the body runs."
        )
    return words + "The loop is unrolled: the body is there once for every depth, and all copies share its weights."


def _note(graph: Graph) -> str:
    return f"{plural(graph.nodes, 'operator')}. The bars are shares of the stored bytes."


def _picture(found: Inspection, graph: Graph) -> Markup:
    whole = max(found.weight_bytes, 1)
    storeys = [_storey(stage, graph, whole) for stage in _drawn(found)]
    said = "; ".join(f"{storey.name}: {', '.join(storey.lines)}" for storey in storeys)
    return house(f"The graph from tokens to logits. {said}.", storeys)


def _drawn(found: Inspection) -> list[Stage]:
    """The stages that every model has, empty ones too: a model may have no prelude."""
    there = {stage.stage: stage for stage in found.stages}
    return [there.get(name, Stage(stage=name, parameters=0, bytes=0, groups=[])) for name in _NAMES]


def _storey(stage: Stage, graph: Graph, whole: int) -> Storey:
    parameters = "" if stage.parameters is None else f" · {plural(stage.parameters, 'parameter')}"
    lines, loops = [f"{plural(_nodes(stage, graph), 'operator')} · {size(stage.bytes)}"], None
    if stage.stage == "loop":
        loops = f"{_TIMES}{'n' if graph.loops == 'dynamic' else graph.loops}"
        once = "runs n times: the trip count is an input"
        lines.append(once if graph.loops == "dynamic" else f"{plural(graph.loops, 'copy', 'copies')} in a row")
    elif stage.stage == "head" and not _has_matrix(stage):
        lines.append("multiplies with the embedding's table")
    return Storey(f"{_NAMES[stage.stage]}{parameters}", tuple(lines), min(stage.bytes / whole, 1.0), loops)


def _nodes(stage: Stage, graph: Graph) -> int:
    return sum(graph.operators.get(stage.stage, {}).values())


def _has_matrix(stage: Stage) -> bool:
    """Does the head store more than its norm?"""
    return stage.parameters is not None and stage.bytes > 4 * stage.parameters


def _stages(found: Inspection, graph: Graph) -> Table:
    whole = max(found.weight_bytes, 1)
    return Table(
        ["stage", "operators", "parameters", "bytes", "of all bytes"],
        [
            [
                _NAMES[stage.stage],
                count(_nodes(stage, graph)),
                count(stage.parameters or 0),
                count(stage.bytes),
                percent(stage.bytes / whole),
            ]
            for stage in _drawn(found)
        ],
    )


def _operators(graph: Graph) -> Table:
    """The most frequent operators by stage, and the Loop if there is one."""
    counts = sum((Counter(operators) for operators in graph.operators.values()), Counter[str]())
    frequent = sorted(counts, key=lambda operator: (-counts[operator], operator))
    named = frequent[:_OPERATORS]
    if "Loop" in frequent[_OPERATORS:]:
        named.append("Loop")
    stages = [graph.operators.get(name, {}) for name in _NAMES]
    rows = [[each, *(count(found.get(each, 0)) for found in stages), count(counts[each])] for each in named]
    rest = counts.total() - sum(counts[each] for each in named)
    if rest:
        others = [sum(found.values()) - sum(found.get(each, 0) for each in named) for found in stages]
        rows.append([f"{len(frequent) - len(named)} others", *map(count, others), count(rest)])
    rows.append(["all", *(count(sum(found.values())) for found in stages), count(counts.total())])
    return Table(["operator", *_NAMES.values(), "all"], rows)


def _graphs(graphs: Sequence[Graph]) -> Table:
    return Table(
        ["file", "loops", "operators"],
        [
            [each.file, "any number" if each.loops == "dynamic" else str(each.loops), count(each.nodes)]
            for each in graphs
        ],
    )


def _signature(specs: Sequence[TensorSpec]) -> Table:
    rows = [[spec.name, spec.dtype, f"[{', '.join(str(length) for length in spec.shape)}]"] for spec in specs]
    return Table(["name", "type", "shape"], rows, numbers=False)
