"""The outcome of a parity check, as `parity.json` and as a table a person can read."""

from __future__ import annotations

from mythos_export.parity.loss import render_loss
from mythos_export.records.parity import CaseResult, GraphReport, ParityReport

__all__ = ["render"]


def render(report: ParityReport) -> str:
    """The report as text: a row per case, then the trajectory of the deepest prefill, then what failed."""
    lines = []
    for graph in report.graphs:
        lines += [f"{graph.file} ({graph.depth} loops, {report.precision})", _CASE_HEAD]
        lines += [_case_row(case) for case in graph.cases]
        lines += _trajectory_rows(graph)
    lines += render_loss(report.loss)
    lines += [f"weights: {report.weights_compared} tensors, {len(report.weights_differing)} differ from the checkpoint"]
    lines += [f"graph: {report.graph_check}"]
    lines += [f"FAILED: {failure}" for failure in report.failures]
    return "\n".join(lines)


_CASE_HEAD = "case      loops       max error   /range      KL        top-1   router  halting  excluded"


def _case_row(case: CaseResult) -> str:
    router = min((depth.router_agreement for depth in case.trajectory), default=0.0)
    loops = ",".join(map(str, case.loops))
    return (
        f"{case.kind:<9} {loops:<11} {case.max_abs_error:<11.2e} {case.error_over_range:<11.2e} {case.kl:<9.1e} "
        f"{case.top1_agreement:<7.2%} {router:<7.2%} {case.halting_agreement:<8.2%} {case.excluded}"
        + ("" if case.passed else "  FAILED")
    )


def _trajectory_rows(graph: GraphReport) -> list[str]:
    prefills = [case for case in graph.cases if case.kind == "prefill" and case.trajectory]
    if not prefills:
        return []
    deepest = max(prefills, key=lambda case: max(case.loops))
    rows = [
        f"trajectory at {max(deepest.loops)} loops: depth, hidden error / range, router agreement, ACT weight error"
    ]
    rows += [
        f"  {depth.depth:>3}  {depth.hidden_error:.2e}  {depth.router_agreement:7.2%}  {depth.act_weight_error:.2e}"
        for depth in deepest.trajectory
    ]
    out = deepest.first_depth_out
    return [*rows, f"  first depth out of tolerance: {out if out is not None else 'none'}"]
