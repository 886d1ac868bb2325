"""A model repository that Triton Inference Server serves as it stands: two models for a bundle.

    DIR/README.md, mythos-repository.json
    DIR/<name>/          generates tokens: Python backend, decoupled
    DIR/<name>-tensors/  the graph, its cache explicit: backend onnxruntime, tensorrt or python; on request not there

Each model's folder is complete in itself: servers fetch remote repositories model by model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, get_args

from engines.errors import EngineError, one_line
from engines.triton.repository.config import generator_config
from engines.triton.repository.files import Placer, replace_entries, workplace
from engines.triton.repository.folders import write_generator, write_tensors
from engines.triton.repository.record import RECORD, Backend, Device, Entry, Record, read_record
from engines.triton.repository.texts import readme
from mythos_export import __version__
from mythos_export.bundle import Bundle, Manifest, Progress

__all__ = ["Repository", "check_repository", "write_repository"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,91}")
_SUFFIX = "-tensors"
_NONE: Mapping[str, int] = MappingProxyType({})


class Repository(NamedTuple):
    """What was written: the repository's folder, and the names of the bundle's two models in it."""

    path: Path
    generator: str
    tensors: str | None


class _Request(NamedTuple):
    bundle: Bundle
    destination: Path  # without links
    backend: Backend
    device: Device
    generator: str
    tensors: str | None  # None: the generator alone

    @property
    def names(self) -> set[str]:
        return {self.generator} if self.tensors is None else {self.generator, self.tensors}


def check_repository(
    bundle: Bundle,
    destination: Path,
    *,
    backend: str = "onnxruntime",
    device: str = "cpu",
    name: str | None = None,
    tensors: bool = True,
    settings: Mapping[str, int] = _NONE,
    force: bool = False,
) -> None:
    """Whatever of `write_repository` can be refused at once; before gigabytes are hashed.

    Raises:
        EngineError: as there.
    """
    request = _request(bundle, destination, backend, device, name, tensors)
    generator_config(request.generator, settings)
    _check_names(request, _existing(request.destination), force=force)


def write_repository(
    bundle: Bundle,
    destination: Path,
    *,
    backend: str = "onnxruntime",
    device: str = "cpu",
    name: str | None = None,
    tensors: bool = True,
    settings: Mapping[str, int] = _NONE,
    force: bool = False,
    link: bool = False,
    progress: Progress | None = None,
) -> Repository:
    """Write a repository, or add a bundle to one; all of it, or nothing.

    Args:
        bundle: opened, and its hashes checked.
        destination: the repository's folder, to be made; or one that this function has made.
        backend: of the tensor-level model: onnxruntime, tensorrt or python.
        device: of the tensor-level model: cpu or gpu.
        name: of the generator, and with "-tensors" behind it of the other; the bundle's own if None.
        tensors: write the tensor-level model too; it holds the weights in memory a second time.
        settings: of the generator (`contract.SETTINGS`), only those that differ from their defaults.
        force: replace models of these names, if they are ours.
        link: make hard links to the bundle's files where that is possible, in place of copies.
        progress: called with the number of bytes just copied.

    Raises:
        EngineError: the backend cannot serve this bundle, the destination is not ours, a model of that name exists
            and `force` is off, or it cannot be written.
    """
    request = _request(bundle, destination, backend, device, name, tensors)
    before = _existing(request.destination)
    _check_names(request, before, force=force)
    try:
        with workplace(request.destination) as work:
            new, old = work / "new", work / "old"
            new.mkdir()
            old.mkdir()
            placer = Placer(link=link, progress=progress)
            write_generator(bundle, request.generator, settings, new / request.generator, placer)
            notes = _write_tensors(request, settings, new, placer)
            record = _record(before, _entry(request, notes))
            (new / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
            (new / "README.md").write_text(readme(record, RECORD), encoding="utf-8")
            if _existing(request.destination) != before:
                raise EngineError(f"{request.destination}: changed while this was written; run the command again")
            replace_entries(new, request.destination, old, gone=_left_out(request, before))
    except OSError as error:
        reason = error.strerror or error
        raise EngineError(f"{request.destination}: cannot be written ({reason}); nothing was kept") from error
    return Repository(request.destination, request.generator, request.tensors)


def _write_tensors(request: _Request, settings: Mapping[str, int], new: Path, placer: Placer) -> list[str]:
    """What whoever serves it must know."""
    if request.tensors is None:
        return []
    folder = new / request.tensors
    return write_tensors(request.bundle, request.tensors, request.backend, request.device, settings, folder, placer)


def _left_out(request: _Request, before: Record | None) -> set[str]:
    """Models of this bundle that were there and are no longer wanted."""
    same = [] if before is None else [each for each in before.entries if each.generator == request.generator]
    return {name for entry in same for name in entry.names()} - request.names


def _request(bundle: Bundle, destination: Path, backend: str, device: str, name: str | None, tensors: bool) -> _Request:
    if backend not in get_args(Backend):
        raise EngineError(f"backend is {backend[:80]!r}; it must be {', '.join(get_args(Backend))}")
    if device not in get_args(Device):
        raise EngineError(f"device is {device[:80]!r}; it must be {' or '.join(get_args(Device))}")
    if backend == "tensorrt" and device != "gpu":
        raise EngineError("TensorRT runs on GPUs; pass --device gpu")
    if backend == "python" and device != "cpu":
        raise EngineError("the Python backend runs the graph on the CPU; use --backend onnxruntime for a GPU")
    if tensors and backend == "onnxruntime" and _has_bfloat16(bundle.manifest):
        raise EngineError(
            "Triton's ONNX Runtime backend takes no bf16 tensors, as this bundle's are; use --backend python"
        )
    given = bundle.manifest.name if name is None else name
    if not _NAME.fullmatch(given):
        raise EngineError(
            f"{given[:100]!r} cannot be a model's name in Triton; pass --name with up to 92 letters, digits, '.', '_' "
            "and '-', the first a letter or digit"
        )
    where = _resolved(destination)
    if where.is_relative_to(bundle.path.resolve()):
        raise EngineError(f"{destination}: lies inside the bundle; choose another --repository")
    return _Request(bundle, where, backend, device, given, given + _SUFFIX if tensors else None)  # type: ignore[arg-type]


def _has_bfloat16(manifest: Manifest) -> bool:
    """Does a tensor go in or out for which that backend has no type (src/onnxruntime_utils.cc)?"""
    return any(spec.dtype == "bfloat16" for spec in (*manifest.inputs, *manifest.outputs))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links; a NUL
        raise EngineError(f"{path}: cannot be a folder ({one_line(error)}); choose another --repository") from error


def _existing(destination: Path) -> Record | None:
    """The record of what is there; None where nothing is, or an empty folder."""
    try:
        if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
            return None
    except OSError as error:
        raise EngineError(f"{destination}: cannot be read ({error.strerror or error})") from error
    return read_record(destination)


def _check_names(request: _Request, before: Record | None, *, force: bool) -> None:
    """Whether the models may have their names."""
    if before is None:
        return
    destination = request.destination
    for entry in before.entries:
        if entry.generator != request.generator and request.names & entry.names():
            raise EngineError(
                f"{destination}: {' and '.join(sorted(request.names))} must be free, and {entry.generator} is there; "
                "pass another --name"
            )
    for name in sorted(request.names | _left_out(request, before)):
        path = destination / name
        if name not in before.names() and (path.is_symlink() or path.exists()):
            raise EngineError(f"{path}: exists and is not mythos-export's; pass another --name")
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise EngineError(f"{path}: is no longer what mythos-export wrote; remove it, or pass another --name")
    if request.generator in before.names() and not force:
        raise EngineError(
            f"{destination / request.generator}: exists already; pass --force to replace it, or another --name"
        )


def _entry(request: _Request, notes: list[str]) -> Entry:
    manifest = request.bundle.manifest
    return Entry(
        generator=request.generator,
        tensors=request.tensors,
        backend=request.backend,
        device=request.device,
        bundle=manifest.name,
        precision=manifest.precision,
        text="tokenizer.json" in manifest.files,
        notes=notes,
    )


def _record(before: Record | None, entry: Entry) -> Record:
    others = [] if before is None else [each for each in before.entries if each.generator != entry.generator]
    entries = sorted([*others, entry], key=lambda each: each.generator)
    return Record(tool=f"mythos-export {__version__}", entries=entries)
