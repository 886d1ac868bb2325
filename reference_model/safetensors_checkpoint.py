"""Weights in safetensors files: one file, or shards under an index as Hugging Face writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from reference_model.config import ConfigError, MythosConfig
from reference_model.weight_source import CheckpointError, StoredTensor, StoredWeights, config_from_untrusted, reading

__all__ = ["INDEX_SUFFIX", "SafetensorsWeights", "open_safetensors", "open_sharded"]

INDEX_SUFFIX = ".safetensors.index.json"
_MAX_INDEX_BYTES = 64 << 20
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class SafetensorsWeights(StoredWeights):
    """Tensors mapped from one or several safetensors files.

    Args:
        path: what the user named.
        shards: name in the file -> the file that holds it.
        config: what stands beside the files; else the first file's metadata may hold one.

    Raises:
        CheckpointError: a file is missing, damaged, or lacks a tensor it should hold.
    """

    def __init__(self, path: Path, shards: Mapping[str, Path], config: MythosConfig | None, format: str) -> None:
        self.format = format
        self._shards = shards
        self._open: dict[Path, Any] = {}
        tensors: dict[str, StoredTensor] = {}
        for file in self._files():
            tensors |= _contents(file, [key for key, shard in shards.items() if shard == file])
        super().__init__(path, tensors, config or _config_in_metadata(self._files()))

    def _files(self) -> list[Path]:
        return sorted(set(self._shards.values()))

    def _tensor(self, key: str) -> Tensor:
        file = self._shards[key]
        if file not in self._open:
            self._open[file] = safe_open(str(file), framework="pt")
        tensor: Tensor = self._open[file].get_tensor(key)
        return tensor

    def _remap(self) -> None:
        self._open.clear()


def open_safetensors(path: Path) -> SafetensorsWeights:
    """One safetensors file.

    Raises:
        CheckpointError: the file is no safetensors file, or truncated.
    """
    with reading(path), safe_open(str(path), framework="pt") as file:
        keys = list(file.keys())
    return SafetensorsWeights(path, dict.fromkeys(keys, path), None, "safetensors")


def open_sharded(path: Path, index: Path) -> SafetensorsWeights:
    """Shards under an index; a `config.json` beside it gives the config.

    Args:
        path: what the user named, the index or its directory.
        index: the `*.safetensors.index.json` file.

    Raises:
        CheckpointError: the index is malformed or points outside its directory, or a shard is missing, damaged
            or lacks a promised tensor.
    """
    with reading(index):
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise CheckpointError(f"{index}: larger than 64 MiB, so not an index of shards")
        document = json.loads(index.read_text(encoding="utf-8"))
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map of tensor names to shard files")
    files = {name: _shard_file(index, name) for name in _distinct(index, weight_map)}
    shards = {key: files[name] for key, name in weight_map.items()}
    return SafetensorsWeights(path, shards, config_beside(index), "safetensors-sharded")


def config_beside(path: Path) -> MythosConfig | None:
    """The `config.json` in the same directory, if it is a valid open-mythos config."""
    file = path.with_name("config.json")
    try:
        return MythosConfig.from_file(file) if file.is_file() else None
    except ConfigError:
        return None  # of another library: the user then names the config


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


def _contents(path: Path, keys: list[str]) -> dict[str, StoredTensor]:
    with reading(path), safe_open(str(path), framework="pt") as file:
        absent = sorted(set(keys) - set(file.keys()))
        if absent:
            raise CheckpointError(f"{path}: lacks {len(absent)} tensors that the index promises, first {absent[0]!r}")
        return {key: _stored(path, key, file.get_slice(key)) for key in keys}


def _stored(path: Path, key: str, view: Any) -> StoredTensor:
    dtype = _DTYPES.get(view.get_dtype())
    if dtype is None:
        raise CheckpointError(f"{path}: {key} has type {view.get_dtype()}; save the weights as F32, F16 or BF16")
    return StoredTensor(tuple(view.get_shape()), dtype)


def _config_in_metadata(files: list[Path]) -> MythosConfig | None:
    """The config that the first file's metadata holds, if it is a valid one."""
    with reading(files[0]), safe_open(str(files[0]), framework="pt") as file:
        text = (file.metadata() or {}).get("config")
    try:
        return config_from_untrusted(json.loads(text)) if text else None
    except (ValueError, RecursionError):  # of another library: the user then names the config
        return None
