"""Weights in safetensors files: one file, or shards under an index as Hugging Face writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from reference_model.open_mythos.config import MythosConfig
from reference_model.weight_source import (
    CheckpointError,
    StoredTensor,
    StoredWeights,
    config_from_untrusted,
    one_line,
    reading,
)

__all__ = ["SafetensorsWeights", "open_safetensors", "open_safetensors_shards"]

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

    Raises:
        CheckpointError: a file is missing, damaged, or lacks a tensor it should hold.
    """

    def __init__(self, path: Path, shards: Mapping[str, Path], format: str) -> None:
        self.format = format
        self._shards = shards
        self._open: dict[Path, Any] = {}
        tensors: dict[str, StoredTensor] = {}
        for file in self._files():
            tensors |= _contents(file, [key for key, shard in shards.items() if shard == file])
        super().__init__(path, tensors, *_config_in_metadata(self._files()[0]))

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
    return SafetensorsWeights(path, dict.fromkeys(keys, path), "safetensors")


def open_safetensors_shards(path: Path, shards: Mapping[str, Path]) -> SafetensorsWeights:
    """Safetensors files under an index.

    Args:
        path: what the user named.
        shards: name in the file -> the file that holds it.

    Raises:
        CheckpointError: a shard is damaged or lacks a promised tensor.
    """
    return SafetensorsWeights(path, shards, "safetensors-sharded")


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


def _config_in_metadata(path: Path) -> tuple[MythosConfig | None, str | None]:
    """The config that a file's metadata holds, or why it cannot be read."""
    with reading(path), safe_open(str(path), framework="pt") as file:
        text = (file.metadata() or {}).get("config")
    if not text:
        return None, None
    try:
        return config_from_untrusted(json.loads(text)), None
    except (ValueError, RecursionError) as error:
        return None, f"{path}: the config in its metadata is not valid: {one_line(error)}"
