"""Reading files: hashes, strict JSON, and JSON that must fit a pydantic model, each with errors of one line."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

__all__ = ["InputFileError", "file_sha256", "first_error", "read_model", "strict_json"]

_BLOCK = 1 << 20
_MOST_BYTES = 64 << 20
_MOST_WHERE, _MOST_WHAT = 120, 200  # characters

Model = TypeVar("Model", bound=BaseModel)


class InputFileError(ValueError):
    """A file of the user's own (measurements, a device, a recipe) that cannot be used; one line."""

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hash a file of any size in little memory.

    Args:
        progress: called with the number of bytes just hashed.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def strict_json(text: str) -> Any:
    """Parse JSON; Python's own reader also takes NaN, Infinity, and one name twice in an object.

    Raises:
        ValueError, RecursionError: not JSON.
    """
    return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number)


def first_error(error: ValidationError) -> str:
    """The first complaint of pydantic's on one line: `memory_bytes: Input should be greater than 0`."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:_MOST_WHERE]
    text = f"{where}: {first['msg'][:_MOST_WHAT]}" if where else first["msg"][:_MOST_WHAT]
    return _printable(text)


def read_model(
    kind: type[Model], path: Path, remedy: str, *, failure: type[ValueError] = InputFileError, most: int = _MOST_BYTES
) -> Model:
    """Read a JSON file that must fit a pydantic model.

    Args:
        remedy: what to do about a file that does not, to end the message with.
        failure: the exception to raise.
        most: bytes that such a file has at most.

    Raises:
        InputFileError: (or `failure`) it cannot be read, or does not fit.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise failure(f"{path}: not a regular file; {remedy}")
        with path.open("rb") as stream:
            content = stream.read(most + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, failure):
            raise
        raise failure(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > most:
        raise failure(f"{path}: larger than {most >> 10:,} KiB; {remedy}")
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise failure(f"{path}: {first_error(error)}; {remedy}") from error


def _printable(text: str) -> str:
    """Names in files must neither break a line nor reach the terminal as escapes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers may take either of two values under one name, so there must not be two."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is given twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
