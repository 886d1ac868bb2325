"""The parity check: a bundle against the reference, over loop counts and ways of feeding."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from engines.errors import EngineError
from engines.generation import Graph
from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle, CachePart, GraphFile, ParitySummary
from mythos_export.parity.cases import Case, cases_for, default_loops
from mythos_export.parity.compare import CaseResult, compare_case, uncompared_case
from mythos_export.parity.exported import ExportedRun, run_graph
from mythos_export.parity.probe import ProbedGraph
from mythos_export.parity.rebuild import compare_graphs
from mythos_export.parity.reference import (
    ReferenceRun,
    compare_weights,
    few_threads_if_small,
    reference_model,
    rounded_rows,
    run_reference,
)
from mythos_export.parity.report import GraphReport, ParityReport, render
from mythos_export.parity.tolerances import TOLERANCES, Tolerance
from mythos_export.progress import Reporter
from mythos_export.signature import cache_dtype
from mythos_export.weights import DATA_FILE
from reference_model.checkpoint import WeightSource
from reference_model.config import MythosConfig

__all__ = ["check_parity", "prove"]

Outcome = ExportedRun | EngineError


def prove(
    bundle: Bundle, source: WeightSource, config: MythosConfig, report: Reporter
) -> tuple[ParitySummary, list[str]]:
    """Check a bundle that is just being made, leaving `parity.json` in it."""
    loops = default_loops(config, _deepest(bundle))
    result = check_parity(bundle, source, config, loops, report)
    (bundle.path / "parity.json").write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    report.say(render(result))
    return result.summary(), result.failures


def check_parity(
    bundle: Bundle, source: WeightSource, config: MythosConfig, loops: Sequence[int], report: Reporter
) -> ParityReport:
    """Compare every weight, then what every graph of the bundle computes, with PyTorch.

    Graph and PyTorch are not in memory together with a second copy of the graph: the one that ships
    runs all cases first, the one with probes after it.
    """
    tolerance = TOLERANCES[bundle.manifest.precision]
    with report.step("compare weights", bundle.file(DATA_FILE).stat().st_size) as advance:
        weights = compare_weights(bundle, source, config, advance)
    with report.step("build the graph again"):
        graph_check, graph_failures = compare_graphs(bundle, config)
    cache_type = cache_dtype(bundle.manifest.precision)
    model = reference_model(source, config, weights)
    cases = cases_for(config, loops)
    total = sum(case.trips for case in cases)
    with report.step("run PyTorch", total) as advance, few_threads_if_small(config), rounded_rows(cache_type):
        references = []
        for case in cases:
            references.append(run_reference(model, case))
            advance(case.trips)
    del model
    weights.mapped.clear()
    gc.collect()  # PyTorch's memory, before the runtime takes its own
    engine = OnnxRuntimeEngine(bundle, spinning=False)
    graphs = [
        _check_graph(engine, file, [*zip(cases, references)], tolerance, report) for file in bundle.manifest.graphs
    ]
    return ParityReport(
        precision=bundle.manifest.precision,
        loops=list(loops),
        tolerance=tolerance,
        weights_compared=weights.compared,
        weights_differing=weights.differing,
        graph_check=graph_check,
        graphs=graphs,
        failures=[*graph_failures, *_failures(weights.differing, graphs)],
    )


def _deepest(bundle: Bundle) -> int | None:
    depths = [graph.loops for graph in bundle.manifest.graphs]
    return None if "dynamic" in depths else max(int(depth) for depth in depths)


def _check_graph(
    engine: OnnxRuntimeEngine,
    file: GraphFile,
    cases: list[tuple[Case, ReferenceRun]],
    tolerance: Tolerance,
    report: Reporter,
) -> GraphReport:
    if isinstance(file.loops, int):
        cases = [(case, reference) for case, reference in cases if case.trips <= file.loops]
    parts = engine.manifest.cache
    with report.step(f"run {file.file}", 2 * sum(case.trips for case, _ in cases)) as advance:

        def run_all(graph: Graph) -> list[Outcome]:
            outcomes = []
            for case, _ in cases:
                outcomes.append(_run(graph, parts, case))
                advance(case.trips)
            return outcomes

        shipped = run_all(engine.load_graph(file))
        gc.collect()  # the first session's memory, before the second takes as much
        probed = run_all(ProbedGraph(engine, file))
    results = [
        _result(case, reference, ours, probes, tolerance)
        for (case, reference), ours, probes in zip(cases, shipped, probed)
    ]
    return GraphReport(file=file.file, depth=file.loops, cases=results)


def _run(graph: Graph, parts: list[CachePart], case: Case) -> Outcome:
    try:
        return run_graph(graph, parts, case)
    except EngineError as error:  # a graph that cannot run a case has failed it
        return error


def _result(case: Case, reference: ReferenceRun, shipped: Outcome, probed: Outcome, tolerance: Tolerance) -> CaseResult:
    for outcome in (shipped, probed):
        if isinstance(outcome, EngineError):
            return uncompared_case(case, [str(outcome)])
    assert isinstance(shipped, ExportedRun) and isinstance(probed, ExportedRun)
    return compare_case(case, reference, shipped, probed, tolerance)


def _failures(differing: list[str], graphs: list[GraphReport]) -> list[str]:
    failures = []
    if differing:
        named = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
        failures.append(f"{len(differing)} weights differ from the checkpoint: {named}")
    for graph in graphs:
        if not any(case.tokens for case in graph.cases):
            failures.append(f"{graph.file}: no position could be compared (all fail, or stand behind near-ties)")
        for case in graph.cases:
            depths = ",".join(map(str, case.loops))
            failures += [f"{graph.file}, {case.kind} at {depths} loops: {failure}" for failure in case.failures]
    return failures
