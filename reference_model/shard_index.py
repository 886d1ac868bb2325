"""The index of a sharded checkpoint, as Hugging Face writes it: which file holds which tensor."""

from __future__ import annotations

import json
from pathlib import Path

from reference_model.weight_source import CheckpointError, reading

__all__ = ["INDEX_SUFFIX", "read_index"]

INDEX_SUFFIX = ".index.json"
_MAX_INDEX_BYTES = 64 << 20


def read_index(index: Path) -> dict[str, Path]:
    """Name of each tensor -> the shard that holds it, which lies beside the index.

    Raises:
        CheckpointError: the index is malformed or points outside its directory, or a shard is missing.
    """
    with reading(index):
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise CheckpointError(f"{index}: larger than 64 MiB, so not an index of shards")
        document = json.loads(index.read_text(encoding="utf-8"))
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map of tensor names to shard files")
    files = {name: _shard_file(index, name) for name in _distinct(index, weight_map)}
    return {key: files[name] for key, name in weight_map.items()}


def _distinct(index: Path, weight_map: dict[str, object]) -> set[str]:
    names = set()
    for name in weight_map.values():
        if not isinstance(name, str):
            raise CheckpointError(f"{index}: a shard name is {type(name).__name__}, not a string")
        names.add(name)
    return names


def _shard_file(index: Path, name: str) -> Path:
    plain = name not in ("", ".", "..") and not any(character in name for character in "/\\\0:")
    if not plain:
        raise CheckpointError(f"{index}: shard {name[:80]!r} is not a plain file name; shards lie beside the index")
    file = index.with_name(name)
    with reading(file):
        if not file.is_file():
            raise CheckpointError(f"{index}: shard {name[:80]!r} is missing; download or copy it too")
    return file
