"""Build the engines of a bundle for one architecture, and write their receipt."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from engines.cuda import Cuda
from engines.errors import EngineError, one_line
from engines.receipts import FOLDER, EngineEntry, Profile, Receipt, receipt_path, source_hash
from engines.tensorrt_library import Library
from mythos_export import __version__
from mythos_export.building.gemms import FellBack, check_gemms, quantized_products
from mythos_export.building.profiles import shapes_of
from mythos_export.bundle import Bundle, GraphFile, file_entry
from mythos_export.capabilities import LEAST_CAPABILITY, LEAST_OF_RTX
from mythos_export.progress import Reporter

__all__ = ["BuildError", "BuildFailed", "build_engines", "check_request"]

_TARGET = "tensorrt"
_SHOWN = 3
_WORK = ".building-"


class BuildError(ValueError):
    """A request that cannot be built; one line."""


class BuildFailed(Exception):
    """TensorRT refused a graph, or the engine does not compute as its precision says; nothing was kept."""


@dataclass(frozen=True)
class _Job:
    """One engine to build."""

    bundle: Bundle
    library: Library
    sm: str
    profile: Profile
    file: GraphFile
    cache: Path | None  # folder of timing caches


def check_request(bundle: Bundle, library: Library, sms: Sequence[str], *, cuda: Cuda | None = None) -> None:
    """Make sure, before hours of building, that this bundle can be built for these architectures.

    Args:
        cuda: the device that TensorRT proper builds for; the first there is if None.

    Raises:
        BuildError: another target's bundle, an architecture that the library or the precision does not have.
        EngineError: TensorRT proper without a GPU.
    """
    manifest = bundle.manifest
    if manifest.target != _TARGET:
        raise BuildError(f"{bundle.path}: made for target {manifest.target!r}; export it with --target {_TARGET}")
    if not sms:
        raise BuildError("--sm is missing; name the GPU's compute capability, such as --sm 8.9")
    if len(set(sms)) < len(sms):
        raise BuildError(f"--sm names {next(sm for sm in sms if list(sms).count(sm) > 1)} twice")
    for sm in sms:
        least, capability = LEAST_CAPABILITY.get(manifest.precision, (0, 0)), tuple(map(int, sm.split(".")))
        if library.is_rtx and capability < LEAST_OF_RTX:
            raise BuildError(
                f"--sm {sm}: {library.label} has no fp32 products there, which every graph needs; they "
                f"build from {LEAST_OF_RTX[0]}.{LEAST_OF_RTX[1]} on, or with TensorRT proper on the device itself"
            )
        if capability < least:
            raise BuildError(
                f"--sm {sm} has no {manifest.precision}, which begins with {least[0]}.{least[1]}; "
                "export another precision"
            )
        if library.is_rtx and not hasattr(library.module.ComputeCapability, _capability(sm)):
            known = sorted(name for name in dir(library.module.ComputeCapability) if name.startswith("SM"))
            raise BuildError(f"--sm {sm}: {library.label} builds for {', '.join(known)} only")
    if not library.is_rtx:
        found = (cuda or Cuda()).compute_capability
        if list(sms) != [found]:
            raise BuildError(f"{library.label} builds for the GPU it runs on; give --sm {found} alone")


def build_engines(
    bundle: Bundle, library: Library, sm: str, profile: Profile, report: Reporter, *, cache: Path | None = None
) -> Receipt:
    """Build every graph of a bundle for one architecture.

    Engines and receipt get their names together at the end; what was there for this architecture is replaced.

    Args:
        cache: folder of timing caches, for TensorRT proper.

    Raises:
        BuildFailed: TensorRT refuses a graph, or a quantised product fell back to float.
    """
    folder, stem = bundle.path / FOLDER, f"sm{sm.replace('.', '')}"
    folder.mkdir(exist_ok=True)
    with _scratch(folder, stem) as work:
        entries = []
        for file in bundle.manifest.graphs:
            job = _Job(bundle, library, sm, profile, file, cache)
            entries.append(_build(job, work, f"{stem}.{Path(file.file).stem}.plan", report))
        receipt = Receipt(
            format_version=1,
            sm=sm,
            runtime=library.name,
            runtime_version=library.version,
            tool=__version__,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            precision=bundle.manifest.precision,
            flags=["STRONGLY_TYPED"],
            profile=profile,
            engines=entries,
        )
        target = receipt_path(bundle, sm)
        target.unlink(missing_ok=True)  # engines without a receipt are no engines; a wrong receipt would be worse
        for entry in entries:
            os.replace(work / entry.file, folder / entry.file)
        (work / target.name).write_text(receipt.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(work / target.name, target)
    return receipt


@contextlib.contextmanager
def _scratch(folder: Path, stem: str) -> Iterator[Path]:
    """A folder of our own, gone afterwards."""
    work = folder / f"{_WORK}{stem}-{os.getpid()}"
    work.mkdir()
    try:
        yield work
    finally:
        for path in work.iterdir():
            path.unlink()
        work.rmdir()


def _build(job: _Job, work: Path, name: str, report: Reporter) -> EngineEntry:
    started, path = time.monotonic(), work / name
    with report.step(f"build {name}") as advance:
        products = _compile(job, path, advance)
    try:
        gemms = check_gemms(path, products, job.bundle.manifest.precision) if job.library.is_rtx else None
    except FellBack as error:
        raise BuildFailed(f"{job.file.file} for {job.sm}: {error}") from error
    return EngineEntry(
        file=name,
        loops=job.file.loops,
        graph=job.file.file,
        source=source_hash(job.bundle, job.file.file),
        entry=file_entry(path),
        seconds=round(time.monotonic() - started, 1),
        gemms=gemms,
    )


def _compile(job: _Job, path: Path, advance: Callable[[int], None]) -> set[str]:
    """Parse, compile and write; returns the names of the quantised products."""
    trt = job.library.module
    logger, errors = job.library.logger()
    builder = trt.Builder(logger)
    network, parser = _parse(job, builder, logger)
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(job, builder, network))
    if job.library.is_rtx:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, _capability(job.sm)), 0)
    config.progress_monitor = monitor = _monitor(trt, advance)
    timings = _timings(job)
    _load_timings(config, timings)
    errors.clear()
    plan = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        reason = one_line(RuntimeError(errors[0] if errors else "it does not say why"))
        raise BuildFailed(f"{job.file.file} for {job.sm}: {job.library.label} cannot compile it: {reason}")
    with path.open("wb") as stream:
        stream.write(memoryview(plan))  # from TensorRT's own memory: no copy of all weights
    _save_timings(config, timings)
    products = quantized_products(network.get_layer(index).name for index in range(network.num_layers))
    del parser  # the network reads the weights through it
    return products


def _parse(job: _Job, builder: Any, logger: Any) -> tuple[Any, Any]:
    """The network, and the parser that owns its weights.

    Strongly typed: types are the graph's, TensorRT chooses none. `supports_model_v2` reads the whole graph and
    names what it refuses; its parser is then of no use, so another one parses.
    """
    trt, path = job.library.module, job.bundle.file(job.file.file)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    probe = builder.create_network(typed)
    asked = trt.OnnxParser(probe, logger)
    # the first releases of TensorRT 10 cannot be asked; there the parser itself refuses
    if hasattr(asked, "supports_model_v2") and not asked.supports_model_v2(path.read_bytes(), str(path)):
        raise BuildFailed(_refusals(job, asked))
    del asked, probe
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise BuildFailed(_refusals(job, parser))
    _widen_scalars(network)
    return network, parser


def _widen_scalars(network: Any) -> None:
    """`logits_to_keep` as a list of one: Triton has no scalars, and the graph begins by making it one."""
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if not len(tensor.shape):
            tensor.shape = (1,)


def _refusals(job: _Job, parser: Any) -> str:
    """What the parser does not take: by node and reason."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [
        f"{error.node_name()[:200] or 'the graph'} ({error.node_operator()}): {error.desc()[:200]}" for error in errors
    ]
    more = f" (and {len(said) - _SHOWN} more)" if len(said) > _SHOWN else ""
    return f"{job.file.file}: {job.library.label} does not take {'; '.join(said[:_SHOWN]) or 'it'}{more}"


def _profile(job: _Job, builder: Any, network: Any) -> Any:
    """Sizes of every input; of `logits_to_keep`, which decides sizes, the values."""
    profile, specs = builder.create_optimization_profile(), {spec.name: spec for spec in job.bundle.manifest.inputs}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name not in specs:
            raise BuildFailed(f"{job.file.file}: input {tensor.name[:80]!r} is not in the manifest; export it again")
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, [0], [1], [job.profile.seq.max])
        else:
            shapes = shapes_of(specs[tensor.name], job.profile)
            # an unrolled graph's own depth, a stage's layers: fixed in the graph, whatever the manifest's symbol says
            fixed = [tuple(own if own >= 0 else size for own, size in zip(tensor.shape, shape)) for shape in shapes]
            profile.set_shape(tensor.name, *fixed)
    return profile


def _monitor(trt: Any, advance: Callable[[int], None]) -> Any:
    """Tells of each step that TensorRT finishes, and lets Ctrl-C end a build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            pass

        def phase_finish(self, name: str) -> None:
            pass

        def step_complete(self, name: str, step: int) -> bool:
            try:
                advance(1)
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

    return Monitor()


def _timings(job: _Job) -> Path | None:
    """File of the timing cache: timings hold for one release on one architecture. RTX measures nothing."""
    if job.cache is None or job.library.is_rtx:
        return None
    return job.cache / f"{job.library.name}-{job.library.version}-sm{job.sm.replace('.', '')}.timings"


def _load_timings(config: Any, file: Path | None) -> None:
    if file is not None:
        known = file.read_bytes() if file.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(known), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timings(config: Any, file: Path | None) -> None:
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{os.getpid()}")
            partial.write_bytes(memoryview(config.get_timing_cache().serialize()))
            os.replace(partial, file)
        except OSError as error:
            raise EngineError(f"{file}: cannot be written ({error.strerror or error}); pass --timing-cache") from error


def _capability(sm: str) -> str:
    return f"SM{sm.replace('.', '')}"
