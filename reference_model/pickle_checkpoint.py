"""Weights that `torch.save` wrote: a state dict, or what open-mythos' training script saves.

A pickle is a program. Two locks keep it from running: a scan of the opcodes refuses every global but the
few that tensors need, and `torch.load(weights_only=True)` then interprets it without importing anything.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from reference_model.config import ConfigError, MythosConfig
from reference_model.weight_source import CheckpointError, StoredTensor, StoredWeights, config_from_untrusted, reading

__all__ = ["PickleWeights", "open_pickle"]

_CONFIG_GLOBAL = "open_mythos.main.MythosConfig"
_ALLOWED = frozenset(
    {
        _CONFIG_GLOBAL,
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)
_RESAVE = "save it again with torch.save(model.state_dict(), ...) or as safetensors"
_MAX_PICKLE_BYTES = 64 << 20  # the pickle holds names and shapes only; tensors lie beside it
_LEGACY_PICKLES = 4  # magic number, protocol, system info, the object itself; keys and bytes follow


class PickledConfig:
    """Stands in for `open_mythos.main.MythosConfig` while unpickling: keeps the values, does nothing."""

    def __setstate__(self, state: object) -> None:
        self.values = state


class PickleWeights(StoredWeights):
    """Tensors of a `torch.save` file; mapped, except from the format before torch 1.6.

    Raises:
        CheckpointError: the file is damaged, carries something that is not weights, or contradicts itself.
    """

    format = "torch"

    def __init__(self, path: Path) -> None:
        with reading(path):
            self._mapped = zipfile.is_zipfile(path)
        saved = _load(path, mapped=self._mapped)
        self._state = _state_dict(path, saved)
        tensors = {key: _stored(path, key, value) for key, value in self._state.items()}
        super().__init__(path, tensors, _config(path, saved))

    def _files(self) -> list[Path]:
        return [self.path]

    def _tensor(self, key: str) -> Tensor:
        return self._state[key]

    def _remap(self) -> None:
        if self._mapped:  # what was read whole stays
            self._state = _state_dict(self.path, _load(self.path, mapped=True))


def open_pickle(path: Path) -> PickleWeights:
    """A file written by `torch.save`.

    Raises:
        CheckpointError: as for `PickleWeights`.
    """
    return PickleWeights(path)


def _load(path: Path, *, mapped: bool) -> dict[Any, Any]:
    with reading(path):
        _scan_zip(path) if mapped else _scan_legacy(path)
        with torch.serialization.safe_globals([(PickledConfig, _CONFIG_GLOBAL)]):
            saved = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path}: holds a {type(saved).__name__}, not a state dict; {_RESAVE}")
    return saved


def _state_dict(path: Path, saved: dict[Any, Any]) -> dict[str, Tensor]:
    """The tensors: of a training dictionary those under `model`, else the dictionary itself."""
    state = saved["model"] if isinstance(saved.get("model"), dict) else saved
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            what = repr(key[:80]) if isinstance(key, str) else f"a key of type {type(key).__name__}"
            raise CheckpointError(f"{path}: {what} stands for a {type(value).__name__}, not a tensor; {_RESAVE}")
    if not state:
        raise CheckpointError(f"{path}: holds no tensors; {_RESAVE}")
    return state


def _stored(path: Path, key: str, tensor: Tensor) -> StoredTensor:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise CheckpointError(f"{path}: {key} is not a plain dense tensor; {_RESAVE}")
    return StoredTensor(tuple(tensor.shape), tensor.dtype)


def _config(path: Path, saved: dict[Any, Any]) -> MythosConfig | None:
    """The config of a training dictionary."""
    if not isinstance(saved.get("model"), dict) or saved.get("cfg") is None:
        return None
    cfg, vocab_size = saved["cfg"], saved.get("vocab_size")
    try:
        config = config_from_untrusted(getattr(cfg, "values", None) if isinstance(cfg, PickledConfig) else cfg)
    except ConfigError as error:
        raise CheckpointError(f"{path}: cfg is not a valid config: {error}") from error
    if vocab_size is not None and (type(vocab_size) is not int or vocab_size != config.vocab_size):
        found = vocab_size if type(vocab_size) is int else f"a {type(vocab_size).__name__}"
        raise CheckpointError(f"{path}: vocab_size is {found} but cfg says {config.vocab_size}; one of them is wrong")
    return config


def _scan_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{path}: its entries are compressed, so torch.save did not write it; {_RESAVE}")
        if len({entry.filename for entry in entries}) != len(entries):
            raise CheckpointError(f"{path}: two entries have one name; {_RESAVE}")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if not pickles:
            raise CheckpointError(f"{path}: a zip file without data.pkl, so torch.save did not write it; {_RESAVE}")
        for entry in pickles:
            if entry.file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(f"{path}: {entry.filename} is larger than 64 MiB; {_RESAVE}")
            _refuse_globals(path, io.BytesIO(archive.read(entry)))


def _scan_legacy(path: Path) -> None:
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            _refuse_globals(path, file)


def _refuse_globals(path: Path, stream: IO[bytes]) -> None:
    """Refuse a pickle that names anything but tensors and the config.

    Raises:
        CheckpointError: naming the first other global, or an opcode that `torch.save` does not use.
    """
    strings: list[str] = []  # what a STACK_GLOBAL may refer to, for the message only
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STACK_GLOBAL":
            _refuse(path, ".".join(strings[-2:]))
        elif opcode.name in ("GLOBAL", "INST"):
            found = _global_name(*str(argument).split(" ", 1))
            if not _allowed(found):
                _refuse(path, found)
        elif opcode.name.startswith("EXT"):
            _refuse(path, f"extension {argument}")
        elif isinstance(argument, str):
            strings.append(argument)


def _refuse(path: Path, found: str) -> None:
    raise CheckpointError(f"{path}: its pickle carries {found[:100]}, which is not weights; it was not run; {_RESAVE}")


def _global_name(module: str, name: str = "") -> str:
    """Full name, with the Python 2 names that protocol 2 writes put right."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _allowed(found: str) -> bool:
    if found in _ALLOWED:
        return True
    module, _, name = found.rpartition(".")
    is_storage = name.endswith("Storage") and name.isalnum()
    return module == "torch" and (is_storage or isinstance(getattr(torch, name, None), torch.dtype))
