"""The main job as one readable function: a checkpoint becomes a bundle that is proven equal to it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import onnx
import onnx_ir as ir

from calibration.choose import Chosen, QuantizeOptions, choose
from calibration.recipe import RECIPE
from mythos_export import __version__, weights
from mythos_export.bundle import (
    MANIFEST,
    Bundle,
    BundleError,
    FileEntry,
    GraphFile,
    Limits,
    Manifest,
    ParitySummary,
    QuantizationRecord,
    TextRecord,
    file_entry,
)
from mythos_export.gates import check_quantized
from mythos_export.graphs import build_graphs
from mythos_export.html_report.write import add_report
from mythos_export.linears import ALWAYS_FLOAT, layer_names
from mythos_export.lints import LintFailed, lint
from mythos_export.loops import LoopsOption
from mythos_export.minimum_runtime import minimum_runtime
from mythos_export.planning.weights import stored_tensors
from mythos_export.progress import Reporter
from mythos_export.quantization import QUANTIZED, Choices
from mythos_export.signature import cache_parts, input_specs, output_specs
from mythos_export.staging import staged
from mythos_export.targets import TARGETS, quantization_of
from mythos_export.text_files import NO_TEXT
from reference_model.checkpoint import CheckpointError, WeightSource, check_fit
from reference_model.config import MythosConfig
from reference_model.parameters import parameter_shapes

__all__ = ["ExportRequest", "ParityFailed", "export", "graphs_of", "spectral_radius", "versions"]

_LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")

Prove = Callable[[Bundle, WeightSource, MythosConfig, Reporter], tuple[ParitySummary, list[str]]]


class ParityFailed(Exception):
    """The exported model does not compute what the reference computes; the bundle was not kept."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export and how; everything is checked before it gets here."""

    name: str
    config: MythosConfig
    source: WeightSource
    output: Path
    target: str = "portable"
    precision: str = "fp32"
    loops: LoopsOption = field(default_factory=lambda: LoopsOption(()))
    opset: int = 21
    tokenizer: Path | None = None
    text: TextRecord = NO_TEXT
    runtime: tuple[int, ...] | None = None  # the oldest ONNX Runtime that is to run it
    quantize: QuantizeOptions = field(default_factory=QuantizeOptions)
    force: bool = False
    command: tuple[str, ...] = ()


def export(request: ExportRequest, report: Reporter, prove: Prove | None) -> Bundle:
    """Export a model.

    Args:
        prove: compares the finished bundle with PyTorch and says what failed; None leaves it unproven.

    Raises:
        CheckpointError: the weights do not fit the config, or cannot be exported.
        BundleError: the output cannot be written.
        CalibrationError: the data or the recipe of a quantised precision is of no use.
        GateFailed: what was to be quantised is not.
        LintFailed: the target's runtime would not take a graph.
        ParityFailed: the comparison failed; nothing is left behind.
    """
    for note in check_fit(request.source, request.config):
        report.say(note)
    radius = spectral_radius(request.source)
    with staged(request.output, force=request.force) as folder:
        chosen = _choose(request, folder, report)
        graphs = graphs_of(request, report, chosen.choices)
        _write_weights(request, chosen.choices, graphs, folder, report)
        _write_graphs(graphs, folder, report)
        if TARGETS[request.target].linted:
            _lint(graphs, folder)
        _write_small_files(request, chosen, folder)
        manifest = _manifest(request, radius, minimum_runtime(graphs.values()), _hash_files(folder, report))
        if request.precision in QUANTIZED:
            manifest = _checked(Bundle(folder, manifest), chosen, request.config, report)
        _save(manifest, folder)
        if prove is not None:
            summary, failures = prove(Bundle(folder, manifest), request.source, request.config, report)
            if not summary.passed:
                raise ParityFailed(_why(failures))
            files = manifest.files | {"parity.json": file_entry(folder / "parity.json")}
            manifest = manifest.model_copy(update={"parity": summary, "files": files})
        _save(add_report(Bundle(folder, manifest)), folder)
    return Bundle.open(request.output, check_hashes=False)


def graphs_of(request: ExportRequest, report: Reporter, choices: Choices) -> dict[str, ir.Model]:
    """The graphs of a request by file name, without weights."""
    with report.step("trace and rewrite the graph"):
        return build_graphs(
            request.config,
            target=request.target,
            precision=request.precision,
            loops=request.loops,
            opset=request.opset,
            choices=choices,
        )


def _choose(request: ExportRequest, folder: Path, report: Reporter) -> Chosen:
    """What a quantised precision needs to know; the model in float is on disk while it is calibrated."""

    @contextlib.contextmanager
    def float_bundle() -> Iterator[Bundle]:
        plain = replace(
            request, precision="fp32", target="portable", opset=21, loops=LoopsOption(()), output=folder / ".float"
        )
        yield export(plain, report, None)
        shutil.rmtree(plain.output)

    if request.precision not in QUANTIZED:
        return Chosen(Choices(), None, None, {})
    chosen = choose(
        quantization_of(request.target, request.precision, request.config),
        TARGETS[request.target].float_layers(request.config, request.precision),
        request.quantize,
        request.config,
        request.source,
        request.tokenizer,
        request.text,
        float_bundle,
        report,
    )
    return replace(chosen, choices=replace(chosen.choices, runtime=request.runtime))


def _checked(bundle: Bundle, chosen: Chosen, config: MythosConfig, report: Reporter) -> Manifest:
    """The manifest of a bundle that has passed the gates of quantisation."""
    with report.step("check that the layers run quantised"):
        kernels = check_quantized(bundle, chosen.choices.keep)
    always = {f"{prefix}*": reason for prefix, reason in ALWAYS_FLOAT.items()}
    record = QuantizationRecord(
        ranges=chosen.ranges,
        quantized=[layer for layer in layer_names(config) if layer not in chosen.kept],
        kept={"*norm": "norms", **always, **chosen.kept},
        kernels=kernels,
    )
    return bundle.manifest.model_copy(update={"quantization": record})


def _why(failures: list[str]) -> str:
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"the graph does not compute what PyTorch computes: {failures[0]}{more}"


def spectral_radius(source: WeightSource) -> float:
    """Largest |A| of the injection (upstream: `LTIInjection.get_A`); the loop is stable below 1.

    Raises:
        CheckpointError: it is not below 1, or not a number.
    """
    log_a = source.read("recurrent.injection.log_A").float()
    log_dt = source.read("recurrent.injection.log_dt").float()
    radius = float((-(log_dt + log_a).clamp(-20, 20).exp()).exp().max())
    if not radius < 1:
        raise CheckpointError(f"spectral radius of the injection is {radius}; it must be below 1, or the loop diverges")
    return radius


def _write_weights(
    request: ExportRequest, choices: Choices, graphs: dict[str, ir.Model], folder: Path, report: Reporter
) -> None:
    planned = stored_tensors(request.config, request.target, request.precision, choices)
    parameters = weights.parameters_of(graphs.values())
    tensors = weights.bind(parameters, request.source, request.config, [tensor.name for tensor in planned])
    total = sum(tensor.nbytes for tensor in tensors)
    _check_room(request.output, folder, total)
    with report.step("write weights", total) as advance:
        weights.write(graphs.values(), tensors, folder, lambda _, size: advance(size))


def _check_room(output: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        sizes_of = f"{needed / 1e9:.3g} GB of weights, {free / 1e9:.3g} GB free"
        raise BundleError(f"{output}: cannot be written (no room on the disk: {sizes_of}); nothing was kept")


def _write_graphs(graphs: dict[str, ir.Model], folder: Path, report: Reporter) -> None:
    with report.step("write and check the graph"):
        for file, model in graphs.items():
            ir.save(model, folder / file)
            onnx.checker.check_model(str(folder / file), full_check=True)


def _lint(files: Iterable[str], folder: Path) -> None:
    for file in files:
        if findings := lint(ir.load(folder / file)):
            raise LintFailed.because(file, findings)


def _write_small_files(request: ExportRequest, chosen: Chosen, folder: Path) -> None:
    (folder / "config.json").write_text(request.config.to_json(), encoding="utf-8")
    if chosen.recipe is not None:
        (folder / RECIPE).write_text(chosen.recipe.to_json(), encoding="utf-8")
    if request.tokenizer is not None:
        shutil.copyfile(request.tokenizer, folder / "tokenizer.json")


def _hash_files(folder: Path, report: Reporter) -> dict[str, FileEntry]:
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    with report.step("hash the bundle", sum(path.stat().st_size for path in files)) as advance:
        return {path.name: file_entry(path, advance) for path in files}


def _manifest(request: ExportRequest, radius: float, runtime: str | None, files: dict[str, FileEntry]) -> Manifest:
    config = request.config
    parts = cache_parts(config, request.precision)
    return Manifest(
        format_version=1,
        name=request.name,
        tool=versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=list(request.command),
        source=request.source.describe(),
        target=request.target,
        precision=request.precision,
        opset=request.opset,
        loops=str(request.loops),
        graphs=[GraphFile(file=file, loops=depth or "dynamic") for file, depth in request.loops.graph_files().items()],
        inputs=input_specs(parts),
        outputs=output_specs(config, parts, request.loops.deepest),
        cache=parts,
        limits=Limits(
            vocab_size=config.vocab_size, max_seq_len=config.max_seq_len, max_loop_iters=config.max_loop_iters
        ),
        parameters=count_parameters(config),
        spectral_radius=radius,
        session=dict(TARGETS[request.target].session.get(request.precision, {})),
        minimum_runtime=runtime,
        text=request.text,
        files=files,
    )


def count_parameters(config: MythosConfig) -> int:
    """Numbers that the model learned, however they are stored."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def _save(manifest: Manifest, folder: Path) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of this tool and of the libraries that decide what it makes."""
    found = {"mythos-export": __version__}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
