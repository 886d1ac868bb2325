"""The files about text beside a checkpoint: what a prompt begins with, and what ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from engines.errors import one_line
from engines.text import load_tokenizer
from mythos_export.bundle import TextRecord
from mythos_export.errors import RequestError
from mythos_export.records.files import strict_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["NO_TEXT", "SpecialTokens", "TextFiles", "read_text_files"]

SpecialTokens = Literal["auto", "none", "bos", "tokenizer"]

NO_TEXT = TextRecord(special_tokens="none", prefix=[], suffix=[], end=[])
_MAX_BYTES = 16 << 20  # a chat template is among these files
_END = "eos_token"
_BEGIN = "bos_token"


@dataclass(frozen=True)
class TextFiles:
    """What a bundle gets of them."""

    tokenizer: Path | None
    record: TextRecord
    notes: tuple[str, ...]  # for the user, a line each


def read_text_files(checkpoint: Path | None, special_tokens: str, vocab_size: int) -> TextFiles:
    """Read what lies beside a checkpoint.

    Args:
        special_tokens: which a prompt gets: `auto`, `none`, `bos`, or `tokenizer` for those that it adds itself.
            `auto` asks tokenizer_config.json for add_bos_token and add_eos_token, and adds none where it does not say:
            so does open-mythos' own tokenizer (`open_mythos.tokenizer.MythosTokenizer`).
        vocab_size: of the model.

    Raises:
        RequestError: a file cannot be read, names a token that the tokenizer lacks or an id that the model lacks.
    """
    if special_tokens not in get_args(SpecialTokens):
        known = ", ".join(get_args(SpecialTokens))
        raise RequestError(f"--special-tokens is {special_tokens[:40]!r}; it must be one of {known}")
    if checkpoint is None:
        if special_tokens in ("bos", "tokenizer"):
            raise RequestError(f"--special-tokens {special_tokens} needs a tokenizer.json beside a --checkpoint")
        return TextFiles(None, NO_TEXT, ())
    folder = _Folder(checkpoint if checkpoint.is_dir() else checkpoint.parent)
    prefix, suffix, decided = _around(folder, special_tokens)
    end = _end_ids(folder)
    for ids, what in ((prefix + suffix, "a special token around prompts"), (end, "an end-of-text token")):
        for token in ids:
            if not 0 <= token < vocab_size:
                last = vocab_size - 1
                raise RequestError(f"{folder.path}: {what} has id {token}, but the model's end at {last}; correct it")
    record = TextRecord(special_tokens=decided, prefix=prefix, suffix=suffix, end=end)
    return TextFiles(folder.tokenizer_file, record, tuple(_notes(folder, vocab_size)))


class _Folder:
    """The files, read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / "tokenizer.json"
        self.tokenizer_file = file if file.is_file() else None
        self.tokenizer: Tokenizer | None = None
        if self.tokenizer_file is not None:
            try:
                self.tokenizer = load_tokenizer(file)
            except Exception as error:  # the library raises bare Exception
                raise RequestError(f"{file}: not a tokenizer ({one_line(error)}); repair or remove it") from error

    def values(self, name: str) -> dict[str, Any]:
        """A JSON object; empty where there is no such file."""
        file = self.path / name
        if not file.is_file():
            return {}
        try:
            if file.stat().st_size > _MAX_BYTES:
                raise RequestError(f"{file}: larger than 16 MiB; repair or remove it")
            values = strict_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"{file}: cannot be read ({error.strerror})") from error
        except RequestError:
            raise
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{file}: not valid JSON; repair or remove it") from error
        if not isinstance(values, dict):
            raise RequestError(f"{file}: not a JSON object; repair or remove it")
        return values

    def token(self, name: str, key: str) -> int | None:
        """Id of a token that a file names, as text or as a dictionary with its content."""
        value = self.values(name).get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if value is None or self.tokenizer is None:
            return None
        token = self.tokenizer.token_to_id(value) if isinstance(value, str) else None
        if token is None:
            raise RequestError(
                f"{self.path / name}: {key} is {str(value)[:80]!r}, which tokenizer.json lacks; correct one of them"
            )
        return int(token)

    def ids(self, name: str, key: str) -> list[int]:
        """One id or several that a file gives."""
        value = self.values(name).get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(token) is not int for token in ids):
            raise RequestError(f"{self.path / name}: {key} is {str(value)[:80]}; it must be an id or a list of ids")
        return ids


Decided = Literal["none", "bos", "tokenizer", "config"]


def _around(folder: _Folder, special_tokens: str) -> tuple[list[int], list[int], Decided]:
    """What goes before and behind a prompt, and what decided it."""
    if special_tokens == "tokenizer":
        return *_added_by(folder), "tokenizer"
    if special_tokens == "bos":
        return [_required(folder, _BEGIN, "--special-tokens bos")], [], "bos"
    values = folder.values("tokenizer_config.json")
    asked = {key: values.get(key) for key in ("add_bos_token", "add_eos_token")}
    if special_tokens == "none" or folder.tokenizer is None or all(value is None for value in asked.values()):
        return [], [], "none"
    prefix = [_required(folder, _BEGIN, "add_bos_token")] if asked["add_bos_token"] is True else []
    suffix = [_required(folder, _END, "add_eos_token")] if asked["add_eos_token"] is True else []
    return prefix, suffix, "config"


def _required(folder: _Folder, key: str, reason: str) -> int:
    token = _named(folder, key)
    if token is None:
        raise RequestError(
            f"{folder.path}: {reason} wants a {key}, and neither tokenizer_config.json nor special_tokens_map.json "
            "names one; name it there, or pass --special-tokens none"
        )
    return token


def _named(folder: _Folder, key: str) -> int | None:
    token = folder.token("tokenizer_config.json", key)
    return token if token is not None else folder.token("special_tokens_map.json", key)


def _added_by(folder: _Folder) -> tuple[list[int], list[int]]:
    """What the tokenizer's own post-processor puts around a text."""
    if folder.tokenizer is None:
        raise RequestError(f"{folder.path}: --special-tokens tokenizer needs a tokenizer.json there")
    text = "a"
    bare, whole = (folder.tokenizer.encode(text, add_special_tokens=added).ids for added in (False, True))
    starts = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
    if not bare or not starts:
        raise RequestError(
            f"{folder.path}: tokenizer.json does not put its special tokens around a text; pass --special-tokens none"
        )
    return whole[: starts[0]], whole[starts[0] + len(bare) :]


def _end_ids(folder: _Folder) -> list[int]:
    """Every id that one of the files says ends a text, without repetition."""
    named = _named(folder, _END)
    ids = [
        *folder.ids("generation_config.json", "eos_token_id"),
        *([named] if named is not None else []),
        *folder.ids("config.json", "eos_token_id"),
    ]
    return list(dict.fromkeys(ids))


def _notes(folder: _Folder, vocab_size: int) -> Sequence[str]:
    if folder.tokenizer is None:
        return ()
    largest = max(folder.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest < vocab_size:
        return ()
    return (
        f"tokenizer.json has ids up to {largest}, the model {vocab_size} ids: a text with one of "
        f"{vocab_size}..{largest} will be refused",
    )
