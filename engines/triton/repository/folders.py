"""The folders of a bundle's two models, each complete in itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engines.errors import EngineError
from engines.triton.repository.config import check_config, generator_config, parse_config, tensors_config, to_text
from engines.triton.repository.files import Placer
from engines.triton.repository.plans import find_plans
from engines.triton.repository.record import Backend, Device
from engines.triton.repository.session_options import backend_options
from engines.triton.repository.signature import chosen_graph, read_signature
from engines.triton.repository.texts import model_py, requirements
from mythos_export.bundle import Bundle, GraphFile
from mythos_export.data_references import data_references

__all__ = ["bundle_folder", "write_generator", "write_tensors"]

_VERSION = "1"
_OF_A_GRAPH = ("max_loops", "threads")
_GRAPH, _PLAN = "model.onnx", "model.plan"  # the names that Triton looks for


@dataclass(frozen=True)
class _Artifact:
    """What was placed for a backend to run, and what its configuration has to say of it."""

    parameters: dict[str, str] = field(default_factory=dict)
    graph_level: int | None = None
    shape_tensors: tuple[str, ...] = ()
    plans: dict[str, str] = field(default_factory=dict)  # file by compute capability
    notes: list[str] = field(default_factory=list)


def bundle_folder(folder: Path) -> Path:
    """Where a model of the Python backend has its bundle."""
    return folder / _VERSION / "bundle"


def write_generator(bundle: Bundle, name: str, settings: Mapping[str, int], folder: Path, placer: Placer) -> None:
    """The model that generates tokens.

    Raises:
        EngineError: a setting that there is not.
    """
    config = generator_config(name, settings)
    _place_python(bundle, folder, "generator", placer)
    _write_config(config, folder)


def write_tensors(
    bundle: Bundle,
    name: str,
    backend: Backend,
    device: Device,
    settings: Mapping[str, int],
    folder: Path,
    placer: Placer,
) -> list[str]:
    """The model that is the graph itself.

    Args:
        settings: the generator's; the Python backend keeps to those of them that concern a graph.

    Returns:
        What whoever serves it must know.

    Raises:
        EngineError: the backend cannot run this bundle, or the graph is not what the manifest says.
    """
    graph = chosen_graph(bundle)
    signature = read_signature(bundle, graph)
    artifact = _PLACE[backend](bundle, graph, folder, placer)
    shared = {key: str(settings[key]) for key in _OF_A_GRAPH if key in settings and backend == "python"}
    config = tensors_config(
        name,
        signature,
        backend=backend,
        device=device,
        parameters={**artifact.parameters, **shared},
        shape_tensors=artifact.shape_tensors,
    )
    if artifact.graph_level is not None:
        config.optimization.graph.level = artifact.graph_level
    for capability, file in artifact.plans.items():
        config.cc_model_filenames[capability] = file
    path = _write_config(config, folder)
    check_config(parse_config(path.read_text(encoding="utf-8")), signature, f"{name}/{path.name}")
    return artifact.notes


def _write_config(config: Any, folder: Path) -> Path:
    path = folder / "config.pbtxt"
    path.write_text(to_text(config), encoding="utf-8")
    return path


def _place_python(bundle: Bundle, folder: Path, module: Literal["generator", "tensors"], placer: Placer) -> None:
    placer.place_bundle(bundle, bundle_folder(folder))
    (folder / _VERSION / "model.py").write_text(model_py(module), encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements(bundle), encoding="utf-8")


def _python(bundle: Bundle, graph: GraphFile, folder: Path, placer: Placer) -> _Artifact:
    _place_python(bundle, folder, "tensors", placer)
    return _Artifact()


def _onnxruntime(bundle: Bundle, graph: GraphFile, folder: Path, placer: Placer) -> _Artifact:
    """The graph under Triton's name for it, its weights under the names that the graph has for them."""
    manifest, source = bundle.manifest, bundle.file(graph.file)
    parameters, level, notes = backend_options(manifest.session)
    placer.place(source, folder / _VERSION / _GRAPH)
    for location in sorted(data_references(source.read_bytes())):
        if location == _GRAPH:
            raise EngineError(f"{source}: keeps its weights in {_GRAPH}, the name that Triton wants for the graph")
        placer.place(source.parent / location, folder / _VERSION / location)
    least = f" {manifest.minimum_runtime} or later" if manifest.minimum_runtime else ""
    needs = f"needs a server whose ONNX Runtime{least} reads opset {manifest.opset}"
    return _Artifact(parameters=parameters, graph_level=level, notes=[needs, *notes])


def _tensorrt(bundle: Bundle, graph: GraphFile, folder: Path, placer: Placer) -> _Artifact:
    plans = find_plans(bundle, graph)
    alone = len(plans) == 1
    names = {plan.sm: _PLAN if alone else f"model.sm{plan.sm.replace('.', '')}.plan" for plan in plans}
    for plan in plans:
        placer.place(plan.path, folder / _VERSION / names[plan.sm])
    notes = [f"on {plan.sm} it needs TensorRT {plan.version}, and takes {plan.sizes}" for plan in plans]
    return _Artifact(
        shape_tensors=("logits_to_keep",),
        plans={} if alone else names,
        notes=["not yet run on hardware", *notes],
    )


_PLACE: dict[Backend, Callable[[Bundle, GraphFile, Path, Placer], _Artifact]] = {
    "onnxruntime": _onnxruntime,
    "python": _python,
    "tensorrt": _tensorrt,
}
