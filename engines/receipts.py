"""Built engines beside a bundle's graphs, and the receipts that say what each was made from.

`engines/sm89.json` is the receipt of one architecture; the engines it lists lie beside it. They are no part of
the bundle's manifest: they are built after it, on another machine perhaps. So what ties them to it is here: the
hashes of the graph and of the weights that an engine came from.
"""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.errors import EngineError
from mythos_export.bundle import Bundle, FileEntry
from mythos_export.records.files import file_sha256, first_error

__all__ = [
    "FOLDER",
    "Axis",
    "EngineEntry",
    "Gemms",
    "Profile",
    "Receipt",
    "read_receipt",
    "receipt_path",
    "source_hash",
]

FOLDER = "engines"
_MAX_BYTES = 1 << 20

Size = Annotated[int, Field(ge=0, le=1 << 31)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Axis(_Strict):
    """Sizes of one dimension: the least, the one to tune for, the most."""

    min: Size
    opt: Size
    max: Size


class Profile(_Strict):
    """What an engine takes: all four dimensions that a caller chooses."""

    batch: Axis
    seq: Axis  # tokens in one call
    past: Axis  # tokens before it
    loops: Axis  # depths of the recurrent cache


class Gemms(_Strict):
    """What became of the products that are quantised in the graph."""

    quantized: int = Field(ge=0)  # in the graph
    in_loop: int = Field(ge=0)  # of them, in the body of the Loop
    kernels: int = Field(ge=0)  # in the engine; several products on one input become one
    type: str  # of both inputs of each


class EngineEntry(_Strict):
    """One engine."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.plan$")
    loops: Annotated[int, Field(ge=1)] | Literal["dynamic"]
    graph: str
    source: str = Field(pattern=r"^[0-9a-f]{64}$")  # see `source_hash`
    entry: FileEntry
    seconds: float
    gemms: Gemms | None  # None where nothing is quantised, or the engine cannot be read


class Receipt(_Strict):
    """What was built for one architecture, by what, from what, for which sizes."""

    format_version: Literal[1]
    sm: str = Field(pattern=r"^[0-9]{1,2}\.[0-9]$")
    runtime: str
    runtime_version: str
    tool: str
    created: str
    precision: str
    flags: list[str]
    profile: Profile
    engines: list[EngineEntry] = Field(min_length=1)


def source_hash(bundle: Bundle, graph: str) -> str:
    """What an engine is made from, as one hash: the graph's own, and those of every data file of the bundle."""
    files = bundle.manifest.files
    names = [graph, *sorted(name for name in files if name.endswith(".data"))]
    return hashlib.sha256("\n".join(f"{files[name].sha256} {name}" for name in names).encode()).hexdigest()


def receipt_path(bundle: Bundle, sm: str) -> Path:
    """Where the receipt of an architecture lies."""
    return bundle.path / FOLDER / f"sm{sm.replace('.', '')}.json"


def read_receipt(bundle: Bundle, sm: str, *, runtime: str, version: str) -> Receipt:
    """Read the receipt of an architecture and check every engine that it lists.

    Raises:
        EngineError: there is none, it is damaged, or its engines are foreign (another runtime's, another
            bundle's), stale (the graph or the weights have changed) or altered.
    """
    path = receipt_path(bundle, sm)
    receipt = _parse(path, sm)
    again = f"run: mythos-export build {bundle.path} --sm {sm}"
    if (receipt.runtime, receipt.runtime_version) != (runtime, version):
        raise EngineError(
            f"{path}: built by {receipt.runtime[:40]} {receipt.runtime_version[:40]}, and this is {runtime} {version}, "
            f"which does not load it; {again}"
        )
    for engine in receipt.engines:
        if engine.graph not in bundle.manifest.files:
            raise EngineError(f"{path}: made from {engine.graph[:120]!r}, which this bundle does not have; {again}")
        if engine.source != source_hash(bundle, engine.graph):
            raise EngineError(
                f"{path}: {engine.file} was built from another {engine.graph} or other weights than this bundle "
                f"holds; {again}"
            )
        _check_file(path.parent / engine.file, engine.entry, again)
    return receipt


def _parse(path: Path, sm: str) -> Receipt:
    again = f"run: mythos-export build {path.parent.parent} --sm {sm}"
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > _MAX_BYTES:
            raise EngineError(f"{path}: not a receipt; {again}")
        receipt = Receipt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise EngineError(f"{path}: no engine for compute capability {sm} in this bundle; {again}") from None
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        raise EngineError(f"{path}: not a usable receipt ({first_error(error)}); {again}") from error
    if receipt.sm != sm:
        raise EngineError(f"{path}: a receipt for compute capability {receipt.sm}, not {sm}; {again}")
    return receipt


def _check_file(path: Path, entry: FileEntry, again: str) -> None:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise EngineError(f"{path}: not a regular file; {again}")
        digest = file_sha256(path)
    except FileNotFoundError:
        raise EngineError(f"{path}: missing; {again}") from None
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror or error})") from error
    if digest != entry.sha256:
        raise EngineError(f"{path}: altered since it was built (sha256 differs); {again}")
