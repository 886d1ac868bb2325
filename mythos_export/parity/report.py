"""The outcome of a parity check as tables for a terminal."""

from __future__ import annotations

from mythos_export.commands.output import text_table
from mythos_export.parity.loss import render_loss
from mythos_export.records.parity import CaseResult, GraphReport, ParityReport

__all__ = ["render"]


def render(report: ParityReport) -> str:
    """The report as text: a row per case, then the trajectory of the deepest prefill, then what failed."""
    lines = []
    for graph in report.graphs:
        lines += [f"{graph.file} ({graph.depth} loops, {report.precision})"]
        lines += [text_table(_HEAD, map(_row, graph.cases), left=(0, 1))]
        lines += _trajectory_rows(graph)
    lines += render_loss(report.loss)
    lines += [f"weights: {report.weights_compared} tensors, {len(report.weights_differing)} differ from the checkpoint"]
    lines += [f"graph: {report.graph_check}"]
    lines += [f"FAILED: {failure}" for failure in report.failures]
    return "\n".join(lines)


_HEAD = ("case", "loops", "max error", "/range", "KL", "top-1", "router", "halting", "excluded", "")


def _row(case: CaseResult) -> list[str]:
    return [
        case.kind,
        ",".join(map(str, case.loops)),
        f"{case.max_abs_error:.2e}",
        f"{case.error_over_range:.2e}",
        f"{case.kl:.1e}",
        f"{case.top1_agreement:.2%}",
        f"{min((depth.router_agreement for depth in case.trajectory), default=0.0):.2%}",
        f"{case.halting_agreement:.2%}",
        str(case.excluded),
        "" if case.passed else "FAILED",
    ]


def _trajectory_rows(graph: GraphReport) -> list[str]:
    prefills = [case for case in graph.cases if case.kind == "prefill" and case.trajectory]
    if not prefills:
        return []
    deepest = max(prefills, key=lambda case: max(case.loops))
    rows = [
        [
            str(depth.depth),
            f"{depth.hidden_error:.2e}",
            f"{depth.router_agreement:.2%}",
            f"{depth.act_weight_error:.2e}",
        ]
        for depth in deepest.trajectory
    ]
    head = ("depth", "hidden error / range", "router", "ACT weight error")
    out = deepest.first_depth_out
    title = f"trajectory at {max(deepest.loops)} loops"
    first = f"first depth out of tolerance: {'none' if out is None else out}"
    return [title, text_table(head, rows, left=()), first]
