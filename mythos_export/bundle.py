"""The bundle: a folder that holds a model, and a manifest that says exactly what is in it.

Light on purpose: a device that only runs bundles imports this file and nothing else of the package.
A bundle is written beside its final name and renamed at the end, and every byte of it is hashed, so
whatever opens is whole. Everything read here is treated as hostile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "FORMAT_VERSION",
    "Bundle",
    "BundleError",
    "CachePart",
    "FileEntry",
    "GraphFile",
    "Limits",
    "Manifest",
    "ParitySummary",
    "TensorSpec",
    "file_entry",
    "staged",
]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 64 << 20
_HASH_BLOCK = 4 << 20

Progress = Callable[[int], None]  # called with the bytes just done


class BundleError(ValueError):
    """A bundle that cannot be used or written; the message says what is wrong and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Strict):
    """One input or output of the graph; a dimension is a number or a symbol such as `batch`."""

    name: str
    dtype: str
    shape: list[int | str]


class CachePart(_Strict):
    """One cached tensor: `past.<name>` goes in, `new.<name>` comes out, [depth, batch, rows, *row]."""

    name: str
    depth: int | Literal["loops"]
    row: list[int]
    dtype: str


class GraphFile(_Strict):
    """One ONNX file; `loops` is "dynamic" for a real Loop, or the depth it is unrolled to."""

    file: str
    loops: int | Literal["dynamic"]


class Limits(_Strict):
    """What a caller may ask for."""

    vocab_size: int = Field(ge=1)
    max_seq_len: int = Field(ge=1)
    max_loop_iters: int = Field(ge=1)


class ParitySummary(_Strict):
    """Outcome of the comparison with PyTorch; the whole of it is in `parity.json`."""

    passed: bool
    loops: list[int]
    max_error_over_range: float
    tolerance: float
    top1_agreement: float


class FileEntry(_Strict):
    """Hash and size of one file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(_Strict):
    """The build receipt of a bundle."""

    format_version: int
    name: str
    tool: dict[str, str]
    created: str
    command: list[str]
    source: dict[str, Any]
    target: str
    precision: str
    opset: int
    loops: str
    graphs: list[GraphFile] = Field(min_length=1)
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    cache: list[CachePart]
    limits: Limits
    parameters: int
    spectral_radius: float
    session: dict[str, str] = Field(default_factory=dict)  # ONNX Runtime session options it was proven with
    parity: ParitySummary | None = None
    files: dict[str, FileEntry]


class Bundle:
    """An opened bundle: its folder and its checked manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path, *, check_hashes: bool = True, progress: Progress | None = None) -> Bundle:
        """Open a bundle and check it.

        Args:
            check_hashes: hash every file (about a second per 1.5 GB); sizes are always checked.
            progress: called with the number of bytes just hashed.

        Raises:
            BundleError: not a bundle, of a later format, or a file is missing, altered, or outside it.
        """
        bundle = cls(Path(path), _read_manifest(Path(path)))
        for name, entry in bundle.manifest.files.items():
            bundle._check_file(name, entry)
        for graph in bundle.manifest.graphs:
            if graph.file not in bundle.manifest.files:
                raise BundleError(f"{path}: {MANIFEST} names the graph {graph.file!r} but not its hash; export it again")
        if check_hashes:
            bundle.check_hashes(progress)
        return bundle

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists.

        Raises:
            BundleError: it does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: no {name} in this bundle")
        return self.path / name

    @property
    def total_bytes(self) -> int:
        """Size of all listed files."""
        return sum(entry.size for entry in self.manifest.files.values())

    def check_hashes(self, progress: Progress | None = None) -> None:
        """Hash every file.

        Raises:
            BundleError: a file differs from the manifest.
        """
        for name, entry in self.manifest.files.items():
            if _sha256(self.path / name, progress) != entry.sha256:
                raise BundleError(f"{self.path / name}: altered since it was exported (sha256 differs); copy or export it again")

    def _check_file(self, name: str, entry: FileEntry) -> None:
        path = self.path / _plain_name(self.path, name)
        if path.is_symlink() or not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{path}: leads out of the bundle; refused")
        if not path.is_file():
            raise BundleError(f"{path}: missing; copy or export the bundle again")
        size = path.stat().st_size
        if size != entry.size:
            raise BundleError(f"{path}: {size} bytes where the manifest says {entry.size}; copy or export it again")


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir():
        raise BundleError(f"{path}: not a bundle (no such folder)")
    file = path / MANIFEST
    try:
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{file}: too large to be a manifest")
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path}: not a bundle (no {MANIFEST})") from None
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{file}: not valid JSON; copy or export the bundle again") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{file}: no format_version, so not a mythos-export manifest")
    if version > FORMAT_VERSION:
        raise BundleError(f"{file}: format {version}, but this release reads up to {FORMAT_VERSION}; upgrade mythos-export")
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file}: {where}: {first['msg']}") from error


def _plain_name(bundle: Path, name: str) -> str:
    parts = name.split("/")
    if os.path.isabs(name) or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise BundleError(f"{bundle}: the manifest names {name!r}, which leads out of the bundle; refused")
    return name


def file_entry(path: Path, progress: Progress | None = None) -> FileEntry:
    """Hash and measure a file."""
    return FileEntry(sha256=_sha256(path, progress), size=path.stat().st_size)


def _sha256(path: Path, progress: Progress | None = None) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_HASH_BLOCK):
                digest.update(block)
                if progress:
                    progress(len(block))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


@contextlib.contextmanager
def staged(output: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write a bundle into; it gets its final name only if the block ends well.

    Whatever goes wrong inside, an interruption too, removes what was written and leaves an older
    bundle of that name as it was.

    Raises:
        BundleError: `output` exists (and `force` is off, or it is no bundle), or cannot be written.
    """
    _check_output(output, force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    except OSError as error:
        raise BundleError(f"{output}: cannot be written ({error.strerror})") from error
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())
        _take_name(folder, output)
    except OSError as error:
        raise BundleError(f"{output}: cannot be written ({error.strerror}); nothing was kept") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_output(output: Path, force: bool) -> None:
    if not os.path.lexists(output):
        return
    if not force:
        raise BundleError(f"{output}: exists already; pass --force to replace it, or --output for another place")
    if not (output / MANIFEST).is_file():
        raise BundleError(f"{output}: exists and is not a bundle, so --force will not replace it; choose another --output")


def _take_name(folder: Path, output: Path) -> None:
    if not output.exists():
        folder.rename(output)
        return
    old = folder.with_name(folder.name.replace(".partial-", ".old-"))
    output.rename(old)
    try:
        folder.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
