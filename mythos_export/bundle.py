"""The bundle: a folder that holds a model, and a manifest that says exactly what is in it.

Light on purpose: a device that only runs bundles imports this file (with `data_references` and
`records.files`), nothing else of the package.
Every byte of it is hashed, so whatever opens is whole. Everything read here is treated as hostile.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from mythos_export.data_references import data_references
from mythos_export.records.files import file_sha256, first_error, strict_json

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "Bundle",
    "BundleError",
    "CachePart",
    "FileEntry",
    "GraphFile",
    "Limits",
    "Manifest",
    "ParitySummary",
    "QuantizationRecord",
    "TensorSpec",
    "TextRecord",
    "file_entry",
    "is_bundle",
]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 4 << 20  # hundreds of times what an export writes
_MOST = 1 << 31

Depth = Annotated[int, Field(ge=0, le=_MOST)]
Count = Annotated[int, Field(ge=1, le=_MOST)]

Progress = Callable[[int], None]  # called with the bytes just done


class BundleError(ValueError):
    """A bundle that cannot be used or written; one line: what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        # Names come from hostile files: they must not break the line, nor reach the terminal as escapes.
        super().__init__("".join(character if character.isprintable() else "?" for character in message))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TensorSpec(_Strict):
    """One input or output of the graph; a dimension is a number or a symbol such as `batch`."""

    name: str
    dtype: str
    shape: list[int | str]


class CachePart(_Strict):
    """One cached tensor: `past.<name>` goes in, `new.<name>` comes out, [depth, batch, rows, *row]."""

    name: str
    depth: Depth | Literal["loops"]
    row: list[Count]
    dtype: str


class GraphFile(_Strict):
    """One ONNX file; `loops` is "dynamic" for a real Loop, or the depth it is unrolled to."""

    file: str
    loops: Count | Literal["dynamic"]


class Limits(_Strict):
    """What a caller may ask for."""

    vocab_size: Count
    max_seq_len: Count
    max_loop_iters: Count


class ParitySummary(_Strict):
    """Outcome of the comparison with PyTorch; the whole of it is in `parity.json`."""

    passed: bool
    loops: list[int]
    max_error_over_range: float
    tolerance: float
    top1_agreement: float


class QuantizationRecord(_Strict):
    """How a quantised bundle came to be; the ranges themselves are in `recipe.json`."""

    ranges: Literal["auto", "shared", "per-depth"] | None  # of activations; None where weights alone are quantised
    quantized: list[str]  # layers
    kept: dict[str, str]  # what stayed in float, and why
    kernels: dict[str, int]  # what ONNX Runtime runs for the quantised layers on a CPU


TokenId = Annotated[int, Field(ge=0, lt=_MOST)]


class TextRecord(_Strict):
    """What stands around a prompt, and where answers end; decided when the bundle was made."""

    special_tokens: Literal["none", "bos", "tokenizer", "config"]  # what decided on prefix and suffix
    prefix: list[TokenId] = Field(max_length=16)  # before a prompt that does not begin with it
    suffix: list[TokenId] = Field(max_length=16)  # after a prompt that does not end with it
    end: list[TokenId] = Field(max_length=64)  # ids of which any ends an answer


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
    spectral_radius: FiniteFloat
    session: dict[str, str] = Field(default_factory=dict)  # ONNX Runtime session options it was proven with
    minimum_runtime: str | None = Field(default=None, pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,3}$")  # of ONNX Runtime
    quantization: QuantizationRecord | None = None
    text: TextRecord | None = None
    parity: ParitySummary | None = None
    files: dict[str, FileEntry]


class Bundle:
    """An opened bundle: its folder, whatever the working folder becomes, and its checked manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path.absolute()
        self.manifest = manifest
        self._seen: dict[str, _Identity | None] = {}  # files as they were when they were checked

    @classmethod
    def open(cls, path: str | Path, *, check_hashes: bool = True, progress: Progress | None = None) -> Bundle:
        """Open a bundle and check it.

        Args:
            check_hashes: hash every file (about a second per 1.5 GB); sizes, graphs, and what a link leads to (as in
                the cache of the Hugging Face Hub) are always checked.
            progress: called with the number of bytes just hashed.

        Raises:
            BundleError: not a bundle, of a later format, a file is missing, altered, or outside it, or a graph
                reads files that are not the bundle's.
        """
        bundle = cls(Path(path), _read_manifest(Path(path)))
        for name, entry in bundle.manifest.files.items():
            bundle._check_file(name, entry)
        bundle.check_hashes(progress, linked_only=not check_hashes)
        for graph in bundle.manifest.graphs:
            bundle._check_graph(graph.file)
        return bundle

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists.

        Raises:
            BundleError: it does not list it, or the file is another than when the bundle was opened.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: no {name} in this bundle")
        path = self.path / name
        if name in self._seen and _identity(path) != self._seen[name]:
            raise BundleError(f"{path}: changed since the bundle was opened; open it again")
        return path

    def check_unchanged(self) -> None:
        """Whether every file is the one that was checked when the bundle was opened.

        Raises:
            BundleError: one was replaced, changed or removed.
        """
        for name in self.manifest.files:
            self.file(name)

    @property
    def is_linked(self) -> bool:
        """Whether files are links to elsewhere, as in the cache of the Hugging Face Hub."""
        return any((self.path / name).is_symlink() for name in self.manifest.files)

    @property
    def total_bytes(self) -> int:
        """Size of all listed files."""
        return sum(entry.size for entry in self.manifest.files.values())

    def check_hashes(self, progress: Progress | None = None, *, linked_only: bool = False) -> None:
        """Hash every file, or those that are links.

        Raises:
            BundleError: a file differs from the manifest.
        """
        for name in self.manifest.files:
            if not linked_only or (self.path / name).is_symlink():
                self._check_hash(name, _sha256(self.path / name, progress))

    def _check_hash(self, name: str, found: str) -> None:
        if found != self.manifest.files[name].sha256:
            raise BundleError(
                f"{self.path / name}: altered since it was exported (sha256 differs); copy or export it again"
            )

    def _check_file(self, name: str, entry: FileEntry) -> None:
        path = self.path / _plain_name(self.path, name)
        try:
            inside = path.resolve().is_relative_to(self.path.resolve()) and not path.is_symlink()
            if not inside and not _is_hub_link(path):
                raise BundleError(f"{path}: leads out of the bundle; refused")
            found = path.stat()
        except FileNotFoundError:
            raise BundleError(f"{path}: missing; copy or export the bundle again") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
            raise BundleError(f"{path}: cannot be read ({_reason(error)})") from error
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{path}: not a regular file; copy or export the bundle again")
        if found.st_size != entry.size:
            raise BundleError(
                f"{path}: {found.st_size} bytes where the manifest says {entry.size}; copy or export it again"
            )
        self._seen[name] = _identity(path)

    def _check_graph(self, name: str) -> None:
        """A graph may read its weights from listed files only: no others are hashed, or even the bundle's."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: {MANIFEST} names the graph {name!r} but not its hash; export it again")
        path = self.path / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({_reason(error)})") from error
        self._check_hash(name, hashlib.sha256(content).hexdigest())  # what is damaged is no longer worth reading
        try:
            locations = data_references(content)
        except ValueError as error:
            raise BundleError(f"{path}: not an ONNX graph ({error}); export it again") from error
        for location in sorted(locations):
            if posixpath.join(posixpath.dirname(name), location) not in self.manifest.files:
                raise BundleError(f"{path}: reads {location[:200]!r}, which is not a file of this bundle; refused")


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    values = _read_json(path)
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{file}: no format_version, so not a mythos-export manifest")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{file}: format {version}, but this release reads up to {FORMAT_VERSION}; upgrade mythos-export"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise BundleError(f"{file}: {first_error(error)}; copy or export the bundle again") from error


def _read_json(path: Path) -> Any:
    """What the manifest of a folder holds, whatever that is."""
    file = path / MANIFEST
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise BundleError(f"{path}: not a bundle (not a folder)")
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{file}: not a regular file")
        if found.st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{file}: too large to be a manifest")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        missing = f"no {MANIFEST}" if path.exists() else "no such folder"
        raise BundleError(f"{path}: not a bundle ({missing})") from None
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({_reason(error)})") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{file}: not valid UTF-8; copy or export the bundle again") from error
    try:
        return strict_json(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not valid JSON; copy or export the bundle again") from error


def _plain_name(bundle: Path, name: str) -> str:
    parts = name.split("/")
    if os.path.isabs(name) or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise BundleError(f"{bundle}: the manifest names {name[:200]!r}, which leads out of the bundle; refused")
    if not name.isprintable() or name == MANIFEST:
        raise BundleError(f"{bundle}: the manifest names {name[:200]!r}, which no bundle holds; refused")
    return name


def _is_hub_link(path: Path) -> bool:
    """Whether a file is a link as the Hugging Face Hub's cache has them, `snapshots/<revision>/` to `blobs/`.

    What it leads to must then have the manifest's hash.
    """
    target = path.resolve()
    blobs = target.parent
    return (
        path.is_symlink() and blobs.name == "blobs" and path.parent.resolve().is_relative_to(blobs.parent / "snapshots")
    )


class _Identity(NamedTuple):
    """Which file lies at a path, and in which state."""

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds


def _identity(path: Path) -> _Identity | None:
    try:
        at = path.stat()
    except OSError:
        return None
    return _Identity(at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle of some format, be it damaged; many other things have a manifest.json."""
    try:
        values = _read_json(path)
    except BundleError:
        return False
    return isinstance(values, dict) and {"format_version", "graphs", "files"} <= values.keys()


def file_entry(path: Path, progress: Progress | None = None) -> FileEntry:
    """Hash and measure a file."""
    return FileEntry(sha256=_sha256(path, progress), size=path.stat().st_size)


def _sha256(path: Path, progress: Progress | None = None) -> str:
    try:
        return file_sha256(path, progress)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({_reason(error)})") from error
