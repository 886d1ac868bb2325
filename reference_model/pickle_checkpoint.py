"""Weights that `torch.save` wrote: a state dict, what a training script saves, or shards of it under an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from reference_model.open_mythos.config import ConfigError, MythosConfig
from reference_model.restricted_pickle import RESAVE, PickledConfig, TensorRecord
from reference_model.tensor_names import CONTAINERS
from reference_model.torch_file import TorchFile
from reference_model.weight_source import CheckpointError, StoredTensor, StoredWeights, config_from_untrusted

__all__ = ["PickleWeights", "open_pickle", "open_pickle_shards"]

_CONFIGS = ("cfg", "config")  # keys of a training dictionary under which its config may lie


class PickleWeights(StoredWeights):
    """Tensors mapped from one or several `torch.save` files.

    Args:
        path: what the user named.
        files: the files.
        shards: name in the file -> the file that holds it; None for all of one file.

    Raises:
        CheckpointError: a file is damaged, carries something that is not weights, or contradicts itself.
    """

    def __init__(
        self,
        path: Path,
        files: list[Path],
        shards: Mapping[str, Path] | None = None,
        config: MythosConfig | None = None,
        format: str = "torch",
    ) -> None:
        self.format = format
        opened = {file: TorchFile(file) for file in files}
        states = {file: _state_dict(file, content.saved) for file, content in opened.items()}
        self._places: dict[str, tuple[TorchFile, TensorRecord]] = {}
        for key, file in (shards or dict.fromkeys(states[files[0]], files[0])).items():
            if key not in states[file]:
                raise CheckpointError(f"{file}: lacks {key[:80]!r}, which the index promises")
            opened[file].check(states[file][key])
            self._places[key] = opened[file], states[file][key]
        tensors = {key: StoredTensor(record.shape, record.dtype) for key, (_, record) in self._places.items()}
        problem = None
        if config is None and shards is None:
            config, problem = _config(path, opened[files[0]].saved)
        super().__init__(path, tensors, config, problem)

    def _files(self) -> list[Path]:
        return sorted({file.path for file, _ in self._places.values()})

    def _tensor(self, key: str) -> Tensor:
        file, record = self._places[key]
        return file.tensor(record)

    def _remap(self) -> None:
        for file, _ in self._places.values():
            file.unmap()


def open_pickle(path: Path) -> PickleWeights:
    """A file written by `torch.save`.

    Raises:
        CheckpointError: as for `PickleWeights`.
    """
    return PickleWeights(path, [path])


def open_pickle_shards(path: Path, shards: Mapping[str, Path]) -> PickleWeights:
    """Files written by `torch.save` under an index.

    Args:
        path: what the user named.
        shards: name in the file -> the file that holds it.

    Raises:
        CheckpointError: as for `PickleWeights`.
    """
    return PickleWeights(path, sorted(set(shards.values())), shards, format="torch-sharded")


def _state_dict(path: Path, saved: Any) -> dict[str, TensorRecord]:
    """The tensors: the dictionary itself, or what lies under the one key that holds a model.

    Raises:
        CheckpointError: there is no model, or there are several.
    """
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path}: holds a {_kind(saved)}, not a state dict; {RESAVE}")
    models = [key for key in CONTAINERS if isinstance(saved.get(key), dict)]
    if len(models) > 1:
        raise CheckpointError(
            f"{path}: holds a model under each of {', '.join(models)}; keep one: "
            f"torch.save(torch.load(FILE)[{models[0]!r}], ...)"
        )
    state = saved[models[0]] if models else saved
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, TensorRecord):
            what = repr(key[:80]) if isinstance(key, str) else f"a key of type {type(key).__name__}"
            raise CheckpointError(f"{path}: {what} stands for a {_kind(value)}, not a tensor; {_remedy(saved)}")
    if not state:
        raise CheckpointError(f"{path}: holds no tensors; {RESAVE}")
    return state


def _remedy(saved: dict[Any, Any]) -> str:
    """What to do with a dictionary whose model lies under a key that is not known here."""
    others = [
        key
        for key, value in saved.items()
        if isinstance(key, str) and isinstance(value, dict) and any(isinstance(v, TensorRecord) for v in value.values())
    ]
    if not others:
        return RESAVE
    known = ", ".join(CONTAINERS)
    return f"tensors lie under {others[0][:80]!r}, but a model is looked for under {known}; save that part alone"


def _kind(value: object) -> str:
    return "config object" if isinstance(value, PickledConfig) else type(value).__name__


def _config(path: Path, saved: dict[Any, Any]) -> tuple[MythosConfig | None, str | None]:
    """The config of a training dictionary, or why it cannot be read."""
    if not any(isinstance(saved.get(key), dict) for key in CONTAINERS):
        return None, None
    key = next((key for key in _CONFIGS if saved.get(key) is not None), None)
    if key is None:
        return None, None
    value, vocab_size = saved[key], saved.get("vocab_size")
    try:
        config = config_from_untrusted(value.settings if isinstance(value, PickledConfig) else value)
    except ConfigError as error:
        return None, f"{path}: {key} is not a valid config: {error}"
    if vocab_size is not None and (type(vocab_size) is not int or vocab_size != config.vocab_size):
        said = vocab_size if type(vocab_size) is int else f"a {_kind(vocab_size)}"
        return None, f"{path}: vocab_size is {said} but {key} says {config.vocab_size}; one of them is wrong"
    return config, None
