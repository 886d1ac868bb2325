"""The parity check: a bundle against the reference, over loop counts and ways of feeding."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from calibration.simulate import simulate
from engines.errors import EngineError
from engines.generation import Graph
from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle, CachePart, GraphFile, ParitySummary
from mythos_export.parity.cases import Case, cases_for, default_loops
from mythos_export.parity.compare import CaseResult, compare_case, uncompared_case
from mythos_export.parity.emulate import load_runnable
from mythos_export.parity.exported import ExportedRun, run_graph
from mythos_export.parity.loss import Loss, loss_failures, measure_loss
from mythos_export.parity.probe import ProbedGraph
from mythos_export.parity.rebuild import compare_graphs
from mythos_export.parity.reference import ReferenceRun, few_threads_if_small, reference_model, run_reference
from mythos_export.parity.report import GraphReport, ParityReport, render
from mythos_export.parity.source import choices_of, recipe_of
from mythos_export.parity.stored import StoredWeights, compare_weights
from mythos_export.parity.tolerances import Tolerance, tolerance_of
from mythos_export.progress import Reporter
from mythos_export.quantization import QUANTIZED
from mythos_export.signature import cache_dtype
from mythos_export.targets import TARGETS, quantization_of
from mythos_export.weights import DATA_FILE
from reference_model.checkpoint import WeightSource
from reference_model.config import MythosConfig
from reference_model.open_mythos.model import MythosModel

__all__ = ["check_parity", "prove"]

Outcome = ExportedRun | EngineError


@dataclass(frozen=True)
class _Run:
    """One case through one graph: as it ships, and with probes."""

    case: Case
    shipped: Outcome
    probed: Outcome

    @property
    def failed(self) -> EngineError | None:
        return next((outcome for outcome in (self.shipped, self.probed) if isinstance(outcome, EngineError)), None)


def prove(
    bundle: Bundle, source: WeightSource, config: MythosConfig, report: Reporter
) -> tuple[ParitySummary, list[str]]:
    """Check a bundle that is just being made, leaving `parity.json` in it."""
    loops = default_loops(config, _deepest(bundle), twice=bundle.manifest.quantization is not None)
    result = check_parity(bundle, source, config, loops, report)
    (bundle.path / "parity.json").write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    report.say(render(result))
    return result.summary(), result.failures


def check_parity(
    bundle: Bundle, source: WeightSource, config: MythosConfig, loops: Sequence[int], report: Reporter
) -> ParityReport:
    """Compare every weight, then what every graph of the bundle computes, with PyTorch.

    A quantised bundle is compared with PyTorch that rounds weights and activations alike, and what
    quantising costs is measured against the model in full precision.
    """
    with report.step("compare weights", bundle.file(DATA_FILE).stat().st_size) as advance:
        weights = compare_weights(bundle, source, config, advance)
    with report.step("build the graph again"):
        graph_check, graph_failures = compare_graphs(bundle, config)
    cases = cases_for(config, loops)
    if bundle.manifest.precision in QUANTIZED:
        graphs, loss = _check_quantized(bundle, source, config, weights, cases, report)
    else:
        graphs, loss = _check_float(bundle, source, config, weights, cases, report), []
    return ParityReport(
        precision=bundle.manifest.precision,
        loops=list(loops),
        tolerance=_tolerance(bundle, config),
        weights_compared=weights.compared,
        weights_differing=weights.differing,
        graph_check=graph_check,
        graphs=graphs,
        loss=loss,
        failures=[
            *graph_failures,
            *_failures(weights.differing, graphs, _tolerance(bundle, config)),
            *loss_failures(loss),
        ],
    )


def _check_float(
    bundle: Bundle,
    source: WeightSource,
    config: MythosConfig,
    weights: StoredWeights,
    cases: list[Case],
    report: Reporter,
) -> list[GraphReport]:
    """PyTorch runs first, and is out of memory before the runtime takes its own."""
    model = reference_model(source, config, weights, cache_dtype(bundle.manifest.precision))
    references = _run_pytorch(model, cases, config, "run PyTorch", report)
    del model
    weights.parts.clear()
    by_case = dict(zip(map(id, cases), references))
    return [
        GraphReport(
            file=file.file,
            depth=file.loops,
            cases=[_result(run, by_case[id(run.case)], _tolerance(bundle, config)) for run in runs],
        )
        for file, runs in _run_graphs(bundle, cases, report)
    ]


def _check_quantized(
    bundle: Bundle,
    source: WeightSource,
    config: MythosConfig,
    weights: StoredWeights,
    cases: list[Case],
    report: Reporter,
) -> tuple[list[GraphReport], list[Loss]]:
    """PyTorch in full precision says what is lost; PyTorch rounding alike, after the graph, what is wrong."""
    originals = [case for case in cases if case.kind == "prefill"]
    full = _run_pytorch(reference_model(source, config), originals, config, "run PyTorch in fp32", report)
    graph_runs = _run_graphs(bundle, cases, report)
    simulated = _simulated(bundle, source, config, weights)
    reports = []
    for file, runs in graph_runs:
        total = sum(run.case.trips for run in runs)
        with report.step("run PyTorch, rounding alike", total) as advance, few_threads_if_small(config):
            results = []
            for run in runs:
                results.append(_guided_result(run, simulated, _tolerance(bundle, config)))
                advance(run.case.trips)
        reports.append(GraphReport(file=file.file, depth=file.loops, cases=results))
    by_case = dict(zip(map(id, originals), full))
    first = [run for run in graph_runs[0][1] if id(run.case) in by_case and run.failed is None]
    return reports, [_loss(run, by_case[id(run.case)]) for run in first if _ran_all(run)]


def _run_pytorch(
    model: MythosModel, cases: list[Case], config: MythosConfig, title: str, report: Reporter
) -> list[ReferenceRun]:
    runs = []
    with report.step(title, sum(case.trips for case in cases)) as advance, few_threads_if_small(config):
        for case in cases:
            runs.append(run_reference(model, case))
            advance(case.trips)
    return runs


def _simulated(bundle: Bundle, source: WeightSource, config: MythosConfig, weights: StoredWeights) -> MythosModel:
    recipe = recipe_of(bundle)
    feeds = {name: found.feeds for name, found in recipe.activations.items()} if recipe is not None else {}
    model = reference_model(source, config, weights)
    quantization = quantization_of(bundle.manifest.target, bundle.manifest.precision, config)
    return simulate(model, quantization, choices_of(bundle, config), feeds, weights.head(source))


def _deepest(bundle: Bundle) -> int | None:
    depths = [graph.loops for graph in bundle.manifest.graphs]
    return None if "dynamic" in depths else max(int(depth) for depth in depths)


def _tolerance(bundle: Bundle, config: MythosConfig) -> Tolerance:
    manifest = bundle.manifest
    quantized = manifest.precision in QUANTIZED
    dynamic = quantized and quantization_of(manifest.target, manifest.precision, config).dynamic_block is not None
    products = TARGETS[manifest.target].bfloat16_products
    return tolerance_of(manifest.precision, rounds_activations=dynamic, rounds_products=products, dim=config.dim)


def _run_graphs(bundle: Bundle, cases: list[Case], report: Reporter) -> list[tuple[GraphFile, list[_Run]]]:
    """Every case through every graph that is deep enough.

    The one that ships runs all cases first, the one with probes after it: they are not in memory together.
    """
    gc.collect()
    engine = OnnxRuntimeEngine(bundle, spinning=False)
    return [(file, _run_graph(engine, file, cases, report)) for file in bundle.manifest.graphs]


def _run_graph(engine: OnnxRuntimeEngine, file: GraphFile, cases: list[Case], report: Reporter) -> list[_Run]:
    if isinstance(file.loops, int):
        cases = [case for case in cases if case.trips <= int(file.loops)]
    parts = engine.manifest.cache
    with report.step(f"run {file.file}", 2 * sum(case.trips for case in cases)) as advance:

        def run_all(graph: Graph) -> list[Outcome]:
            outcomes = []
            for case in cases:
                outcomes.append(_outcome(graph, parts, case))
                advance(case.trips)
            return outcomes

        shipped = run_all(load_runnable(engine, file))
        gc.collect()  # the first session's memory, before the second takes as much
        probed = run_all(ProbedGraph(engine, file))
    return [_Run(*run) for run in zip(cases, shipped, probed)]


def _outcome(graph: Graph, parts: list[CachePart], case: Case) -> Outcome:
    try:
        return run_graph(graph, parts, case)
    except EngineError as error:  # a graph that cannot run a case has failed it
        return error


def _result(run: _Run, reference: ReferenceRun, tolerance: Tolerance, *, guided: bool = False) -> CaseResult:
    if run.failed is not None:
        return uncompared_case(run.case, [str(run.failed)])
    assert isinstance(run.shipped, ExportedRun) and isinstance(run.probed, ExportedRun)
    return compare_case(run.case, reference, run.shipped, run.probed, tolerance, guided=guided)


def _guided_result(run: _Run, simulated: MythosModel, tolerance: Tolerance) -> CaseResult:
    guide = run.probed.inside if _ran_all(run) and isinstance(run.probed, ExportedRun) else None
    return _result(run, run_reference(simulated, run.case, guide), tolerance, guided=guide is not None)


def _ran_all(run: _Run) -> bool:
    """Did the graph run all the loops it was asked for, so that PyTorch can follow it?"""
    if not isinstance(run.probed, ExportedRun) or run.probed.inside is None:
        return False
    return len(run.probed.inside.hidden) >= run.case.trips


def _loss(run: _Run, original: ReferenceRun) -> Loss:
    assert isinstance(run.shipped, ExportedRun) and isinstance(run.probed, ExportedRun)
    return measure_loss(run.case, original, run.shipped, run.probed)


def _failures(differing: list[str], graphs: list[GraphReport], tolerance: Tolerance) -> list[str]:
    failures = []
    if differing:
        named = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
        failures.append(f"{len(differing)} weights differ from the checkpoint: {named}")
    for graph in graphs:
        if not any(case.tokens for case in graph.cases):
            failures.append(f"{graph.file}: no position could be compared (all fail, or stand behind near-ties)")
        typical = median(errors) if (errors := [case.typical_error for case in graph.cases if case.tokens]) else 0.0
        if not typical <= tolerance.typical:
            failures.append(f"{graph.file}: logits of the typical position differ by {typical:.3g} of their range")
        for case in graph.cases:
            depths = ",".join(map(str, case.loops))
            failures += [f"{graph.file}, {case.kind} at {depths} loops: {failure}" for failure in case.failures]
    return failures
