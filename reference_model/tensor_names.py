"""From the names in a file to upstream's: what wrappers of PyTorch's world put around a model's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

__all__ = ["CONTAINERS", "NameClash", "Renamed", "nearly", "without_wrappers"]

# Parts of a name that a wrapper inserts at the module it wraps, be it the whole model or one layer of it.
_INSERTED = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
    "module": "DistributedDataParallel, DeepSpeed or an averaged model",
}
# What a class that holds the model as an attribute puts before every name.
_LEADING = {"model": "Lightning or Hugging Face"}
# Numbers that a wrapper saves beside the weights.
_BESIDE = frozenset({"n_averaged"})
# Keys of a training dictionary under which the model's own state dict lies: those of open-mythos and most training
# scripts, of Lightning, of PyTorch's tutorials, of DeepSpeed.
CONTAINERS = ("model", "state_dict", "model_state_dict", "module")


class NameClash(ValueError):
    """Two tensors of a file that stand for one."""


class Renamed(NamedTuple):
    """The outcome: upstream's name -> name in the file, and what was taken off, for messages."""

    names: dict[str, str]
    removed: tuple[str, ...]


def without_wrappers(stored: Collection[str]) -> Renamed:
    """Take off what wrappers put on.

    Raises:
        NameClash: two names become one.
    """
    removed: dict[str, None] = {}
    names: dict[str, str] = {}
    for key in stored:
        name, parts = _without_inserted(key)
        removed |= dict.fromkeys(f"{part} ({_INSERTED[part]})" for part in parts)
        if name in names:
            raise NameClash(f"{key[:160]} and {names[name][:160]} are both {name[:160]}")
        names[name] = key
    for prefix in _LEADING:
        rest = [name for name in names if name not in _BESIDE]
        while rest and all(name.startswith(f"{prefix}.") for name in rest):
            names = {name.removeprefix(f"{prefix}."): key for name, key in names.items()}
            removed[f"{prefix} ({_LEADING[prefix]})"] = None
            rest = [name for name in names if name not in _BESIDE]
    # An averaged model keeps its weights under `module`, and a count beside them.
    if any("module" in key.split(".") for key in stored):
        names = {name: key for name, key in names.items() if name not in _BESIDE}
    return Renamed(names, tuple(removed))


def _without_inserted(key: str) -> tuple[str, list[str]]:
    parts = key.split(".")
    return ".".join(part for part in parts if part not in _INSERTED), [part for part in parts if part in _INSERTED]


def nearly(found: Collection[str], expected: Mapping[str, object]) -> str | None:
    """A prefix that is no wrapper known here, and without which most names would fit."""
    prefixes = {name.partition(".")[0] for name in found}
    for prefix in sorted(prefixes):
        inside = [name.removeprefix(f"{prefix}.") for name in found if name.startswith(f"{prefix}.")]
        if prefix and 2 * sum(name in expected for name in inside) > len(expected):
            return prefix
    return None
