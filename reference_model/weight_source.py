"""What every source of weights has in common: names, shapes, and one kind of error.

A source hands out one tensor at a time under upstream's parameter names; what a file on disk adds to
that (prefixes, the tied head, rope tables) is undone here, once, for all formats.
"""

from __future__ import annotations

import errno
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from reference_model.open_mythos.config import ConfigError, MythosConfig
from reference_model.tensor_names import NameClash, without_wrappers

__all__ = [
    "CheckpointError",
    "StoredTensor",
    "StoredWeights",
    "WeightSource",
    "config_from_untrusted",
    "reading",
]

# Upstream keeps its rotary tables as (complex) buffers; the model here computes its own.
_RECOMPUTED = frozenset({"freqs_cis", "freqs_cis_mla"})
_NO_MEMORY = ("Cannot allocate memory", "not enough memory", "can't allocate memory")  # torch has no type for it
_HEAD, _EMBED = "head.weight", "embed.weight"  # one tied tensor
# A mapping counts as this process's memory for as long as a tensor of it lives, even the pages of others.
# A new mapping after each so many bytes lets a reader that keeps nothing stay small.
_REMAP_BYTES = 1 << 30


class CheckpointError(ValueError):
    """Weights that cannot be used; one line: what is wrong, and what to do."""

    def __init__(self, message: str) -> None:
        # Names come from hostile files: they must not break the line, nor reach the terminal as escapes.
        super().__init__("".join(character if character.isprintable() else "?" for character in message))


class WeightSource(Protocol):
    """Weights under upstream's parameter names, one tensor at a time."""

    @property
    def config(self) -> MythosConfig | None:
        """What the source itself says about the model, if anything."""

    @property
    def config_problem(self) -> str | None:
        """Why what it says about the model cannot be read."""

    @property
    def wrappers(self) -> tuple[str, ...]:
        """What was taken off its names."""

    def names(self) -> frozenset[str]:
        """Names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""

    def dtype(self, name: str) -> torch.dtype:
        """Stored type of one tensor, without reading it."""

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored, contiguous; mapped, not copied, where the format allows."""

    def describe(self) -> dict[str, Any]:
        """Where the weights come from, for the manifest; hashing streams the files."""

    def rope_table(self, attn_type: str) -> Tensor | None:
        """Upstream's rotary table for this attention, complex [positions, rope_dim / 2], if it was saved."""


class StoredTensor(NamedTuple):
    """What a file says about one of its tensors."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class StoredWeights(ABC):
    """Weights in files: the part of a `WeightSource` that does not depend on the format.

    Args:
        path: what the user named; stands first in every message.
        tensors: what the files hold, under the names in the files.
        config: what the files say about the model.
        config_problem: why that cannot be read.

    Raises:
        CheckpointError: the head is not tied to the embedding, or two tensors stand for one.
    """

    format: str

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, StoredTensor],
        config: MythosConfig | None,
        config_problem: str | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.config_problem = config_problem
        self._tensors = tensors
        try:
            names, self.wrappers = without_wrappers(tensors)
        except NameClash as error:
            raise CheckpointError(f"{path}: without what wrappers add, {error}; save one model alone") from error
        self._tables = {name: key for name, key in names.items() if name in _RECOMPUTED}
        self._keys = {name: key for name, key in names.items() if name not in _RECOMPUTED}
        self._mapped_bytes = 0
        self._settle_head()

    def names(self) -> frozenset[str]:
        """Names of all tensors, as upstream calls them."""
        return frozenset(self._keys)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._tensors[self._key(name)].shape

    def dtype(self, name: str) -> torch.dtype:
        """Stored type of one tensor."""
        return self._tensors[self._key(name)].dtype

    def read(self, name: str) -> Tensor:
        """One tensor as stored, contiguous.

        Raises:
            CheckpointError: no such tensor, or its file is damaged or was changed since it was opened.
        """
        key = self._key(name)
        stored = self._tensors[key]
        with reading(self.path):
            size = stored.dtype.itemsize * torch.Size(stored.shape).numel()
            self._mapped_bytes += size
            if self._mapped_bytes > _REMAP_BYTES:
                self._remap()
                self._mapped_bytes = size
            tensor = self._tensor(key)
            if tuple(tensor.shape) != stored.shape or tensor.dtype != stored.dtype:
                raise CheckpointError(f"{self.path}: {key} changed while it was being read; start again")
            return tensor.detach().contiguous()

    def rope_table(self, attn_type: str) -> Tensor | None:
        """Upstream's rotary table for this attention, if the file has it."""
        key = self._tables.get("freqs_cis_mla" if attn_type == "mla" else "freqs_cis")
        if key is None:
            return None
        with reading(self.path):
            return self._tensor(key).detach()

    def describe(self) -> dict[str, Any]:
        """Kind, name of the file or folder, format and sha256; where it lies is nobody's business.

        The sha256 of several files is that of the lines `<file name> <sha256 of the file>`, sorted by name.
        """
        name = os.path.basename(os.path.abspath(self.path))  # not what a link leads to
        return {"kind": "checkpoint", "file": name, "sha256": self._sha256, "format": self.format}

    @abstractmethod
    def _files(self) -> list[Path]:
        """The files that hold the tensors."""

    @abstractmethod
    def _tensor(self, key: str) -> Tensor:
        """One tensor, under its name in the file."""

    @abstractmethod
    def _remap(self) -> None:
        """Map the files anew, so that what was read so far lives only as long as its tensors."""

    @cached_property
    def _sha256(self) -> str:
        with reading(self.path):
            digests = {file.name: _file_sha256(file) for file in self._files()}
        if len(digests) == 1:
            return next(iter(digests.values()))
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def _key(self, name: str) -> str:
        if name not in self._keys:
            raise CheckpointError(f"{self.path}: holds no tensor {name!r}")
        return self._keys[name]

    def _settle_head(self) -> None:
        if _HEAD not in self._keys:
            return
        if _EMBED in self._keys and not self._same(_HEAD, _EMBED):
            raise CheckpointError(
                f"{self.path}: {_HEAD} differs from {_EMBED}; OpenMythos ties them, so this is another model"
            )
        head = self._keys.pop(_HEAD)
        self._keys.setdefault(_EMBED, head)

    def _same(self, one: str, other: str) -> bool:
        if self.shape(one) != self.shape(other) or self.dtype(one) != self.dtype(other):
            return False
        first, second = self.read(one), self.read(other)
        if first.data_ptr() == second.data_ptr():
            return True
        return torch.equal(first, second)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one line about that file.

    Raises:
        CheckpointError: for every exception that is not one already.
    """
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise _no_memory(path) from error
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    except Exception as error:  # torch and safetensors raise nearly every type there is on a damaged file
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            raise _no_memory(path) from error
        raise CheckpointError(f"{path}: truncated or damaged ({one_line(error)}); copy or save it again") from error


def _no_memory(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: not enough memory to read it; free some, or read it on a larger machine")


def one_line(error: Exception) -> str:
    """The gist of an error, short enough for a terminal; of a long one its beginning and its end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:80]} … {text[-117:]}"


def config_from_untrusted(values: object) -> MythosConfig:
    """A config from values that a file claims to be one.

    Raises:
        ConfigError: they are not; one line.
    """
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError("not a mapping of config fields")
    try:
        return MythosConfig.from_dict(values)
    except Exception as error:  # a value may be anything, up to one that cannot be printed
        raise ConfigError(one_line(error)) from error


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
