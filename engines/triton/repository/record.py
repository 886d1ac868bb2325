"""The record in a repository of what `mythos-export triton` has put there; a folder without one is not ours."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.errors import EngineError
from mythos_export.records.files import first_error

__all__ = ["RECORD", "Backend", "Device", "Entry", "Record", "read_record"]

RECORD = "mythos-repository.json"
_MAX_BYTES = 1 << 20

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


Backend = Literal["onnxruntime", "tensorrt", "python"]  # of the tensor-level model
Device = Literal["cpu", "gpu"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Entry(_Strict):
    """The models of one bundle."""

    generator: str = Field(pattern=_NAME)
    tensors: str | None = Field(pattern=_NAME)  # None: the generator alone
    backend: Backend
    device: Device
    bundle: str  # its name
    precision: str
    text: bool  # has it a tokenizer?
    notes: list[str]  # for whoever serves the second

    def names(self) -> set[str]:
        """Of its models."""
        return {self.generator} if self.tensors is None else {self.generator, self.tensors}


class Record(_Strict):
    """All bundles of a repository."""

    format_version: Literal[1] = 1
    tool: str
    entries: list[Entry] = Field(min_length=1)

    def names(self) -> set[str]:
        """Of all models, and so of folders."""
        return {name for entry in self.entries for name in entry.names()}


def read_record(repository: Path) -> Record:
    """The record of a repository.

    Raises:
        EngineError: there is none, or it is damaged.
    """
    path = repository / RECORD
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > _MAX_BYTES:
            raise EngineError(f"{path}: not a record of mythos-export's")
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise EngineError(
            f"{repository}: exists and is not a repository that mythos-export wrote (no {RECORD}), so it stays as it "
            "is; choose another --repository"
        ) from None
    except NotADirectoryError:
        raise EngineError(f"{repository}: exists and is no folder; choose another --repository") from None
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        raise EngineError(f"{path}: not a usable record ({first_error(error)}); choose another --repository") from error
