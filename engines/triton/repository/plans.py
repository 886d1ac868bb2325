"""Engines of TensorRT proper, as Triton's TensorRT backend wants them. Not yet run on hardware."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from engines.errors import EngineError
from engines.receipts import FOLDER, EngineEntry, Receipt, read_receipt
from mythos_export.bundle import Bundle, GraphFile

__all__ = ["Plan", "find_plans"]

_RECEIPT = re.compile(r"sm([0-9]{1,2})([0-9])\.json")
_MAX_BYTES = 1 << 20
_PROPER, _TARGET = "tensorrt", "tensorrt"


class _Origin(BaseModel):
    """Of a receipt, what says whose it is."""

    runtime: str
    runtime_version: str


class Plan(NamedTuple):
    """One engine."""

    sm: str
    path: Path
    version: str  # of the TensorRT that built it, and that alone loads it
    sizes: str  # what a call may hold


def find_plans(bundle: Bundle, graph: GraphFile) -> list[Plan]:
    """The engines of one graph, one for each architecture, checked against their receipts.

    Raises:
        EngineError: another target's bundle, no engine of TensorRT proper, or one that is stale or altered.
    """
    if bundle.manifest.target != _TARGET:
        raise EngineError(
            f"{bundle.path}: made for target {bundle.manifest.target!r}; export it with --target {_TARGET} and build "
            "it with TensorRT, or use --backend onnxruntime"
        )
    folder = bundle.path / FOLDER
    origins = {found: _origin(folder / found[0]) for found in _receipts(folder)}
    proper = {found[1]: origin for found, origin in origins.items() if origin.runtime == _PROPER}
    if not proper:
        others = f" but those of {', '.join(sorted({o.runtime[:40] for o in origins.values()}))}" if origins else ""
        raise EngineError(
            f"{bundle.path}: has no engines of TensorRT proper{others}; Triton's TensorRT backend runs no others (it "
            "has none for TensorRT-RTX). Run mythos-export build --runtime tensorrt on the serving GPU, or use "
            "--backend onnxruntime --device gpu"
        )
    return [_plan(bundle, graph, sm, origin) for sm, origin in sorted(proper.items())]


def _receipts(folder: Path) -> list[tuple[str, str]]:
    """File name and architecture of each."""
    if not folder.is_dir():
        return []
    found = [_RECEIPT.fullmatch(path.name) for path in sorted(folder.iterdir())]
    return [(match[0], f"{match[1]}.{match[2]}") for match in found if match]


def _origin(path: Path) -> _Origin:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise EngineError(f"{path}: not a receipt; build the engines again")
        return _Origin.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise EngineError(f"{path}: not a usable receipt; build the engines again") from error


def _plan(bundle: Bundle, graph: GraphFile, sm: str, origin: _Origin) -> Plan:
    receipt = read_receipt(bundle, sm, runtime=origin.runtime, version=origin.runtime_version)
    engine = _engine_of(receipt, graph)
    if engine is None:
        raise EngineError(f"{bundle.path}: the receipt for {sm} has no engine of {graph.file}; build the engines again")
    if receipt.profile.past.min > 0:
        raise EngineError(
            f"{bundle.path}: the engines for {sm} want {receipt.profile.past.min} cached tokens at least, so that no "
            "sequence could begin; build them with --past 0:..."
        )
    sizes = ", ".join(f"{name} {axis.min} to {axis.max}" for name, axis in dict(receipt.profile).items())
    return Plan(sm, bundle.path / FOLDER / engine.file, receipt.runtime_version, sizes)


def _engine_of(receipt: Receipt, graph: GraphFile) -> EngineEntry | None:
    return next((engine for engine in receipt.engines if engine.graph == graph.file), None)
