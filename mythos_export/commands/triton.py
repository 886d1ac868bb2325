"""`mythos-export triton BUNDLE --repository DIR`: a model repository for Triton Inference Server."""

from __future__ import annotations

import os
from pathlib import Path

from engines.errors import EngineError
from engines.triton.repository.kserve import check_service, inference_service
from engines.triton.repository.write import check_repository, write_repository
from mythos_export.bundle import Bundle
from mythos_export.commands.output import print_json
from mythos_export.inspection.contents import read_contents
from mythos_export.planning.held import held_tensors
from mythos_export.progress import Reporter
from mythos_export.weights.tensors import total_bytes

__all__ = ["run"]


def run(
    path: Path,
    *,
    repository: Path,
    backend: str,
    device: str | None,
    name: str | None,
    tensors: bool,
    kserve: Path | None,
    storage_uri: str | None,
    image: str | None,
    force: bool,
    json: bool,
    **settings: int | None,
) -> None:
    """Write the models of a bundle, and on request the KServe service over the repository."""
    service = _service_options(kserve, storage_uri, image, settings["cache_bytes"], force=force)
    report = Reporter(quiet=json)
    bundle = Bundle.open(path, check_hashes=False)
    given = {key: value for key, value in settings.items() if value is not None}
    if service:
        check_service(repository, name or bundle.manifest.name, **service)
    device = device or ("gpu" if backend == "tensorrt" else "cpu")
    check_repository(
        bundle, repository, backend=backend, device=device, name=name, tensors=tensors, settings=given, force=force
    )
    with report.step("hash the bundle", bundle.total_bytes) as advance:
        bundle.check_hashes(advance)
    with report.step("write the repository", bundle.total_bytes) as advance:
        written = write_repository(
            bundle,
            repository,
            backend=backend,
            device=device,
            name=name,
            tensors=tensors,
            settings=given,
            force=force,
            progress=advance,
        )
    if kserve is not None:
        _replace(kserve, inference_service(written.path, weigh=_in_memory, **service))
    if json:
        models = {"generator": written.generator, "tensors": written.tensors}
        print_json({"bundle": str(path), "repository": str(written.path), **models, "kserve": kserve})
        return
    graph = f", {written.tensors} (the graph, on {backend})" if written.tensors else ""
    print(f"{written.path}: {written.generator} (generates){graph}")
    if kserve is not None:
        print(f"{kserve}: the KServe InferenceService over it")
    print(f"next: {written.path / 'README.md'}")


def _service_options(
    kserve: Path | None, uri: str | None, image: str | None, cache_bytes: int | None, *, force: bool
) -> dict[str, str]:
    """What a service is made of, or nothing; whatever it can be refused for shows before anything is written."""
    if kserve is None and uri is None and image is None:
        return {}
    if kserve is None or uri is None:
        raise EngineError(
            "--kserve FILE and --storage-uri URI go together: the file says where the repository will lie"
        )
    if image is None:
        raise EngineError("--kserve wants --image: Triton, and what the models need (see a repository's README.md)")
    if cache_bytes is None:
        raise EngineError("--kserve wants --cache-bytes, such as 4000000000: a pod's memory must hold the caches")
    if os.path.lexists(kserve) and not (force and kserve.is_file() and not kserve.is_symlink()):
        raise EngineError(f"{kserve}: exists already; name another --kserve file" + ("" if force else ", or --force"))
    if not kserve.parent.is_dir():
        raise EngineError(f"{kserve.parent}: no such folder; make it, or name another --kserve file")
    return {"storage_uri": uri, "image": image}


def _in_memory(bundle: Bundle) -> int:
    """Bytes of a bundle's weights in a process that has loaded all of its graphs, on a CPU."""
    tensors, target = read_contents(bundle).tensors, bundle.manifest.target
    depths = [None if graph.loops == "dynamic" else graph.loops for graph in bundle.manifest.graphs]
    held = [held_tensors(tensors, target, "cpu", depth) for depth in depths]
    return sum(total_bytes(each.tensors) + each.packed for each in held)


def _replace(path: Path, text: str) -> None:
    """Beside it and renamed, so that nobody applies half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
