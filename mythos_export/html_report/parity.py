"""Parity with PyTorch: error over loops, error and routing over depths, halting, decisions that differ."""

from __future__ import annotations

from mythos_export.html_report.blocks import Figure, Section, Table, by_depth, shade
from mythos_export.html_report.chart import Chart, Series
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.words import count, listed, percent, plural, short, subsampled
from mythos_export.records.parity import CaseResult, Flip, GraphReport, ParityReport, Tolerance

__all__ = ["parity"]

_LISTED = 20  # flips of a case in parity.json, at most
_MOST_GRAPHS = 4
_KINDS = {"prefill": "prefill", "chunked": "chunked", "cached": "cached", "mixed": "mixed depths"}
_PALE = 1e-3  # of the tolerance: what is below is palest


def parity(subject: Subject) -> Section:
    """The comparison, or how to get one."""
    title = "Parity with PyTorch"
    report = subject.parity
    if report is None:
        return Section("parity", title, ["Not compared: export without `--no-validate` to have it here."])
    compared = [graph for graph in report.graphs if graph.cases]
    shown = [compared[index] for index in subsampled(len(compared), _MOST_GRAPHS)]
    summary = _summary(report)
    if len(shown) < len(compared):
        files = listed([graph.file for graph in shown])
        summary += f" Shown are {len(shown)} of {len(compared)} graphs: {files}."
    blocks = [
        block
        for graph in shown
        for block in _blocks(graph, report.tolerance, f", {_named(graph)}" if len(compared) > 1 else "")
    ]
    return Section("parity", title, [_how(subject), summary], blocks)


def _how(subject: Subject) -> str:
    fed = "Every prompt is fed as a whole, in chunks, and token by token onto a cache, at each loop count; "
    fed += "then sequences of different depths in one batch. "
    if subject.quantized:
        return fed + (
            "PyTorch rounds weights and activations as this bundle does, and starts each loop from the graph's own "
            "state: what is left are errors of the graph's computation."
        )
    return fed + "Errors are shares of the range (largest less smallest) of what PyTorch computed."


def _summary(report: ParityReport) -> str:
    cases = [case for graph in report.graphs for case in graph.cases]
    more = " or more" if any(len(case.flips) >= _LISTED for case in cases) else ""
    return (
        f"Weights: {plural(report.weights_compared, 'tensor')}, "
        f"{plural(len(report.weights_differing), 'differs', 'differ')} from the checkpoint. "
        f"Graph: {report.graph_check}. Router or halting decisions that differ from PyTorch's: "
        f"{count(sum(len(case.flips) for case in cases))}{more}."
    )


def _named(graph: GraphReport) -> str:
    return f"{graph.file} ({'a loop of any depth' if graph.depth == 'dynamic' else f'unrolled to {graph.depth} loops'})"


def _blocks(graph: GraphReport, tolerance: Tolerance, of: str) -> list[Table | Figure]:
    prefills = [case for case in graph.cases if case.kind == "prefill" and case.trajectory]
    blocks: list[Table | Figure] = [_error(graph, tolerance, of)]
    if prefills:
        deepest = max(prefills, key=lambda case: max(case.loops))
        blocks += [_trajectory(deepest, tolerance, of), _hidden(prefills, tolerance, of), _routing(prefills, of)]
    halting = [case for case in graph.cases if case.kind == "prefill" and case.halting_depths]
    blocks += [_halting(halting, of)] if halting else []
    flips = [[flip.kind, *_case(case), *_flip(flip)] for case in graph.cases for flip in case.flips]
    if flips:
        head = ["decision", "case", "loops", "sequence", "position", "depth", "margin"]
        note = f"Router or halting decisions that differ. A margin up to {short(tolerance.near_tie)} is a near-tie."
        blocks.append(Table(f"Flips{of}", head, flips, note))
    return blocks


def _case(case: CaseResult) -> list[str]:
    return [case.kind, ", ".join(map(str, case.loops))]


def _flip(flip: Flip) -> list[str]:
    return [str(flip.sequence), str(flip.position), str(flip.depth), short(flip.margin)]


def _error(graph: GraphReport, tolerance: Tolerance, of: str) -> Figure:
    loops = sorted({max(case.loops) for case in graph.cases})
    series = []
    for kind, name in _KINDS.items():
        worst = {max(case.loops): case.error_over_range for case in graph.cases if case.kind == kind}
        if worst:
            series.append(Series(name, [worst.get(number) for number in loops]))
    rows = [
        [
            *_case(case),
            count(case.tokens),
            count(case.excluded),
            short(case.max_abs_error),
            short(case.error_over_range),
            short(case.kl),
            percent(case.top1_agreement),
            percent(case.halting_agreement),
            count(case.near_ties),
            count(len(case.flips)),
        ]
        for case in graph.cases
    ]
    head = ["case", "loops", "compared", "left out", "max error", "/ range", "KL", "same top token", "halting"]
    return Figure(
        Chart(
            "Largest logit error over its range, by loop count",
            list(map(str, loops)),
            series,
            "loops",
            log=True,
            bound=(f"tolerance {short(tolerance.logits)}", tolerance.logits),
        ),
        Table(
            f"Error against loops{of}",
            [*head, "near-ties", "flips"],
            rows,
            "Largest logit error of each case, over the range of PyTorch's logits. Left out are positions after a "
            "decision that was nearly a tie and fell the other way.",
        ),
    )


def _trajectory(deepest: CaseResult, tolerance: Tolerance, of: str) -> Figure:
    steps = [str(depth.depth) for depth in deepest.trajectory]
    loops = max(deepest.loops)
    rows = [
        [step, short(depth.hidden_error), short(depth.act_weight_error), percent(depth.router_agreement)]
        for step, depth in zip(steps, deepest.trajectory)
    ]
    return Figure(
        Chart(
            f"Error of hidden state and of ACT weights at each depth of {loops} loops",
            steps,
            [
                Series("hidden state", [depth.hidden_error for depth in deepest.trajectory]),
                Series("ACT weight", [depth.act_weight_error for depth in deepest.trajectory]),
            ],
            "depth",
            log=True,
            bound=(f"tolerance {short(tolerance.hidden)}", tolerance.hidden),
        ),
        Table(
            f"Trajectory{of}",
            ["depth", "hidden state", "ACT weight", "same experts"],
            rows,
            f"The prefill at {plural(loops, 'loop')}: does the error grow from loop to loop?",
        ),
    )


def _hidden(prefills: list[CaseResult], tolerance: Tolerance, of: str) -> Table:
    deep = tolerance.hidden
    return by_depth(
        f"Hidden state, depth by depth{of}",
        f"Largest error over its range. The deepest shade is the tolerance, {short(deep)}.",
        [(_loops(case), {depth.depth: depth.hidden_error for depth in case.trajectory}) for case in prefills],
        short,
        lambda error: shade(error, _PALE * deep, deep, log=True),
    )


def _routing(prefills: list[CaseResult], of: str) -> Table:
    return by_depth(
        f"Routing, depth by depth{of}",
        "Tokens sent to the same experts as in PyTorch.",
        [(_loops(case), {depth.depth: depth.router_agreement for depth in case.trajectory}) for case in prefills],
        percent,
        lambda share: shade(share, 1.0, 0.5),
    )


def _halting(prefills: list[CaseResult], of: str) -> Table:
    return by_depth(
        f"Where tokens halt{of}",
        "Tokens of the prefill by the depth at which ACT stopped them; at the last depth also those that never halted.",
        [(_loops(case), dict(enumerate(case.halting_depths, 1))) for case in prefills],
        lambda number: count(int(number)),
        lambda number: "",
    )


def _loops(case: CaseResult) -> str:
    return plural(max(case.loops), "loop")
