"""Parity with PyTorch as pictures: error over loops, error and routing over depths, halting, decisions that differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mythos_export.html_report.blocks import Table, figure, paragraph, section
from mythos_export.html_report.markup import Content, Markup, tag
from mythos_export.html_report.parity_file import Case, Depth, Flip, GraphCases, Parity
from mythos_export.html_report.pictures.axes import thinned
from mythos_export.html_report.pictures.heat_map import Cell, HeatMap, heat_map, level_of
from mythos_export.html_report.pictures.histogram import histogram
from mythos_export.html_report.pictures.line_chart import Bound, LineChart, Series, line_chart
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.words import count, drawn, percent, plural, short, tenths

__all__ = ["agreement_cell", "by_depth", "parity"]

_LISTED = 20  # flips of a case in parity.json, at most
_DRAWN = 4  # graphs
_MOST_COLUMNS = 10  # of a picture
_MOST_KINDS = 4
_KINDS = ("prefill", "chunked", "cached")
_PALE = 1e-3  # of the tolerance: what is below is palest

Runs = Sequence[tuple[int, Sequence[Depth]]]  # loop counts, and the depths of each


def parity(subject: Subject) -> Markup:
    """The whole section, or how to get it."""
    if subject.parity is None:
        return section(
            "parity",
            "Parity with PyTorch",
            paragraph("Not compared: export without ", tag("code", "--no-validate"), " to have it here."),
        )
    found, parts = subject.parity, []
    compared = [each for each in found.graphs if each.cases]
    shown = [compared[index] for index in thinned(len(compared), _DRAWN)]
    summary = _summary(found) + drawn([each.file for each in shown], [each.file for each in compared], "graphs")
    for graph in shown:
        several = len(compared) > 1
        parts += [tag("h3", f"{graph.file} ({_depth(graph)})")] if several else []
        parts.append(tag("div", _figures(graph, found, 4 if several else 3), class_="grid"))
    return section("parity", "Parity with PyTorch", paragraph(_how(subject)), paragraph(summary), parts)


def by_depth(
    runs: Runs,
    cell: Callable[[Depth], Cell],
    value: Callable[[Depth], str],
    name: str,
) -> tuple[Markup, Table, str]:
    """A heat map of depths (down) and loop counts (across), its numbers, and words on what is not drawn."""
    rows = sorted({depth.depth for _, depths in runs for depth in depths})
    found = [{depth.depth: depth for depth in depths} for _, depths in runs]
    columns = [str(loops) for loops, _ in runs]
    shown = thinned(len(runs), _MOST_COLUMNS)
    picture = heat_map(
        HeatMap(
            name=name,
            columns=[columns[index] for index in shown],
            rows=[str(row) for row in rows],
            cells=[[cell(found[index][row]) if row in found[index] else None for index in shown] for row in rows],
            across="loops asked for",
            down="depth",
        )
    )
    table = Table(
        ["depth", *(plural(loops, "loop") for loops, _ in runs)],
        [[str(row), *(value(run[row]) if row in run else "" for run in found)] for row in rows],
    )
    return picture, table, drawn([columns[index] for index in shown], columns, "loop counts")


def agreement_cell(depth: Depth) -> Cell:
    """A share that is best at 1."""
    return Cell(level_of(depth.router_agreement, 1.0, 0.5), tenths(depth.router_agreement))


def _how(subject: Subject) -> str:
    fed = "Every prompt is fed as a whole, in chunks, and token by token onto a cache, at each loop count; "
    fed += "then sequences of different depths in one batch. "
    if subject.quantized:
        return fed + (
            "PyTorch rounds weights and activations as this bundle does, and starts each loop from what the graph "
            "had there: what is left is what the graph computes wrongly."
        )
    return fed + "Errors are shares of the range (largest less smallest) of what PyTorch computed."


def _summary(found: Parity) -> str:
    """What was compared beside the cases, and whether a decision fell otherwise."""
    flips = _flip_count([case for graph in found.graphs for case in graph.cases])
    differing = plural(len(found.weights_differing), "differs", "differ")
    return (
        f"Weights: {plural(found.weights_compared, 'tensor')}, {differing} from the checkpoint. "
        f"Graph: {found.graph_check}. Router or halting decisions that fell otherwise than in PyTorch: {flips}."
    )


def _flip_count(cases: Sequence[Case]) -> str:
    more = " or more" if any(len(case.flips) >= _LISTED for case in cases) else ""
    return count(sum(len(case.flips) for case in cases)) + more


def _depth(graph: GraphCases) -> str:
    return "a loop of any depth" if graph.depth == "dynamic" else f"unrolled to {graph.depth} loops"


def _figures(graph: GraphCases, found: Parity, level: int) -> list[Content]:
    prefills = [case for case in graph.cases if case.kind == "prefill" and case.trajectory]
    figures: list[Content] = [_error(graph, found, level)]
    if prefills:
        runs = [(max(case.loops), case.trajectory) for case in prefills]
        figures += [_hidden(runs, found, level), _trajectory(prefills, found, level), _router(runs, level)]
    return [*figures, _halting(graph, level), _near_ties(graph, level), _flips(graph, found, level)]


def _error(graph: GraphCases, found: Parity, level: int) -> Markup:
    loops = sorted({max(case.loops) for case in graph.cases})
    series = []
    for kind in (*_KINDS, "mixed"):
        worst = {max(case.loops): case.error_over_range for case in graph.cases if case.kind == kind}
        if worst:
            name = kind if kind != "mixed" else "mixed depths"
            series.append(Series(name, [worst.get(count) for count in loops], joined=kind != "mixed"))
    tolerance = found.tolerance.logits
    picture = line_chart(
        LineChart(
            name=f"Largest logit error over its range, by loop count: {_worst(graph)}",
            steps=[str(count) for count in loops],
            series=series,
            below="loops",
            log=True,
            bound=Bound(f"tolerance {short(tolerance)}", tolerance) if tolerance else None,
        )
    )
    return figure(
        "Error against loops",
        "Largest logit error of each case, over the range of PyTorch's logits.",
        picture,
        _cases(graph),
        level=level,
    )


def _worst(graph: GraphCases) -> str:
    errors = [case.error_over_range for case in graph.cases if case.error_over_range is not None]
    return f"at most {short(max(errors))}" if errors else "none could be compared"


def _cases(graph: GraphCases) -> Table:
    return Table(
        ["case", "loops", "positions", "max error", "/ range", "KL", "same top token", "halting"],
        [
            [
                case.kind,
                ", ".join(map(str, case.loops)),
                count(case.tokens),
                short(case.max_abs_error),
                short(case.error_over_range),
                short(case.kl),
                percent(case.top1_agreement),
                percent(case.halting_agreement),
            ]
            for case in graph.cases
        ],
    )


def _hidden(runs: Runs, found: Parity, level: int) -> Markup:
    deep = found.tolerance.hidden or 1.0
    picture, table, rest = by_depth(
        runs,
        lambda depth: Cell(level_of(depth.hidden_error, _PALE * deep, deep, log=True), short(depth.hidden_error, 2)),
        lambda depth: short(depth.hidden_error),
        "Error of the hidden state by depth and loop count",
    )
    note = f"Largest error over its range. The deepest shade is the tolerance, {short(deep)}.{rest}"
    return figure("Hidden state, depth by depth", note, picture, table, level=level)


def _trajectory(prefills: Sequence[Case], found: Parity, level: int) -> Markup:
    deepest = max(prefills, key=lambda case: max(case.loops))
    bound = found.tolerance.hidden
    loops = max(deepest.loops)
    picture = line_chart(
        LineChart(
            name=f"Error of hidden state and of ACT weights at each depth of {loops} loops",
            steps=[str(depth.depth) for depth in deepest.trajectory],
            series=[
                Series("hidden state", [depth.hidden_error for depth in deepest.trajectory]),
                Series("ACT weight", [depth.act_weight_error for depth in deepest.trajectory]),
            ],
            below="depth",
            log=True,
            bound=Bound(f"tolerance {short(bound)}", bound) if bound else None,
        )
    )
    table = Table(
        ["depth", "hidden state", "ACT weight", "same experts"],
        [
            [
                str(depth.depth),
                short(depth.hidden_error),
                short(depth.act_weight_error),
                percent(depth.router_agreement),
            ]
            for depth in deepest.trajectory
        ],
    )
    note = f"The prefill at {plural(loops, 'loop')}: does the error grow from loop to loop?"
    return figure("The deepest run", note, picture, table, level=level)


def _router(runs: Runs, level: int) -> Markup:
    picture, table, rest = by_depth(
        runs,
        agreement_cell,
        lambda depth: percent(depth.router_agreement),
        "Share of tokens sent to the same experts, by depth and loop count",
    )
    note = f"Tokens sent to the same experts, in %.{rest}"
    return figure("Routing, depth by depth", note, picture, table, level=level)


def _halting(graph: GraphCases, level: int) -> Markup:
    prefills = [case for case in graph.cases if case.kind == "prefill" and case.halting_depths]
    title = "Where tokens halt"
    if not prefills:
        return figure(title, "An older release wrote this bundle; export it again to see it.", None, None, level=level)
    deepest = max(prefills, key=lambda case: max(case.loops))
    counts, loops = deepest.halting_depths, max(deepest.loops)
    steps = [str(depth) for depth in range(1, len(counts) + 1)]
    said = ", ".join(f"{number} at {step}" for step, number in zip(steps, counts) if number)
    table = Table(
        ["depth", *(plural(max(case.loops), "loop") for case in prefills)],
        [[step, *(_at(case.halting_depths, index) for case in prefills)] for index, step in enumerate(steps)],
    )
    note = (
        f"Tokens of the prefill at {plural(loops, 'loop')} by the depth at which ACT stopped them. At the last depth "
    )
    note += "stand those that ran to the end, halted or not."
    picture = histogram(f"Halting depths: {said or 'none'}", steps, counts, "depth")
    return figure(title, note, picture, table, level=level)


def _at(counts: Sequence[int], index: int) -> str:
    return count(counts[index]) if index < len(counts) else ""


def _near_ties(graph: GraphCases, level: int) -> Markup:
    loops = sorted({max(case.loops) for case in graph.cases})
    at = [[case for case in graph.cases if max(case.loops) == each] for each in loops]
    counted = {
        "compared": [sum(case.tokens for case in cases) for cases in at],
        "nearly tied": [sum(case.near_ties for case in cases) for cases in at],
        "left out": [sum(case.excluded for case in cases) for cases in at],
    }
    picture = line_chart(
        LineChart(
            name="Positions by loop count: " + ", ".join(f"{sum(counts)} {name}" for name, counts in counted.items()),
            steps=[str(each) for each in loops],
            series=[Series(name, counts) for name, counts in counted.items()],
            below="loops",
        )
    )
    note = (
        f"{plural(sum(counted['compared']), 'position')} compared. Nearly tied: two likeliest tokens closer than "
        "rounding. Left out: behind a flip that was a near-tie."
    )
    return figure("Near-ties", note, picture, _positions(graph), level=level)


def _flips(graph: GraphCases, found: Parity, level: int) -> Markup | None:
    flips = [flip for case in graph.cases for flip in case.flips]
    if not flips:
        return None
    note = (
        f"Router or halting decisions that fell otherwise than in PyTorch: {_flip_count(graph.cases)}; drawn is the "
        "widest margin at each depth. Up to the dashed line it is a near-tie, and rounding."
    )
    return figure("Flips", note, _margins(flips, found), _flip_table(graph), level=level)


def _margins(flips: Sequence[Flip], found: Parity) -> Markup:
    depths = sorted({flip.depth for flip in flips})
    bound = found.tolerance.near_tie
    return line_chart(
        LineChart(
            name=f"Margins of {plural(len(flips), 'decision')} that fell otherwise, by depth",
            steps=[str(depth) for depth in depths],
            series=[
                Series(kind, [_widest(flips, kind, depth) for depth in depths], joined=False)
                for kind in sorted({flip.kind for flip in flips})[:_MOST_KINDS]
            ],
            below="depth",
            log=True,
            bound=Bound(f"near-tie up to {short(bound)}", bound) if bound else None,
        )
    )


def _flip_table(graph: GraphCases) -> Table:
    return Table(
        ["decision", "case", "loops", "sequence", "position", "depth", "margin"],
        [
            [
                flip.kind,
                case.kind,
                ", ".join(map(str, case.loops)),
                str(flip.sequence),
                str(flip.position),
                str(flip.depth),
                short(flip.margin),
            ]
            for case in graph.cases
            for flip in case.flips
        ],
    )


def _widest(flips: Sequence[Flip], kind: str, depth: int) -> float | None:
    margins = [flip.margin for flip in flips if (flip.kind, flip.depth) == (kind, depth) and flip.margin is not None]
    return max(margins, default=None)


def _positions(graph: GraphCases) -> Table:
    return Table(
        ["case", "loops", "compared", "left out", "near-ties", "flips"],
        [
            [
                case.kind,
                ", ".join(map(str, case.loops)),
                count(case.tokens),
                count(case.excluded),
                count(case.near_ties),
                count(len(case.flips)),
            ]
            for case in graph.cases
        ],
    )
