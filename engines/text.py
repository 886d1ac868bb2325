"""Text in and out, with the tokenizer a bundle may carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engines.errors import EngineError, one_line
from mythos_export.bundle import Bundle

if TYPE_CHECKING:
    import tokenizers

__all__ = ["TextStream", "Tokenizer"]

_FILE = "tokenizer.json"
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of half a character


class Tokenizer:
    """A bundle's `tokenizer.json`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, bundle: Bundle) -> Tokenizer:
        """Read it.

        Raises:
            EngineError: the bundle has none, it is damaged, or `tokenizers` is not installed.
        """
        if _FILE not in bundle.manifest.files:
            raise EngineError(f"{bundle.path}: no {_FILE} in this bundle; give token ids instead of text")
        try:
            import tokenizers  # not needed by callers that speak token ids
        except ImportError as error:
            raise EngineError("text needs the tokenizers package: pip install mythos-export") from error
        try:
            return cls(tokenizers.Tokenizer.from_file(str(bundle.file(_FILE))))
        except Exception as error:  # tokenizers raises plain Exception
            raise EngineError(f"{bundle.path / _FILE}: not a tokenizer ({one_line(error)})") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens the tokenizer adds.

        Raises:
            EngineError: it cannot be encoded, or gives no token.
        """
        try:
            ids = list(self._tokenizer.encode(text).ids)
        except Exception as error:
            raise EngineError(f"the text cannot be encoded ({one_line(error)})") from error
        if not ids:
            raise EngineError("the prompt is empty; give some text")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens.

        Raises:
            EngineError: they cannot be decoded.
        """
        try:
            return str(self._tokenizer.decode(list(ids)))
        except Exception as error:
            raise EngineError(f"the tokens cannot be decoded ({one_line(error)})") from error

    def stream(self) -> TextStream:
        """Decode token by token."""
        return TextStream(self)


class TextStream:
    """Text of a stream of tokens, piece by piece, never half a character.

    A token is decoded after the ones before it, because a tokenizer may join them with a space or
    spread one character over several.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens already given out, for joining
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Add a token; the text that is now certain, possibly none."""
        self._pending.append(token)
        return self._take(final=False)

    def finish(self) -> str:
        """What is left at the end of the stream."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._context)
        after = self._tokenizer.decode(self._context + self._pending)
        if after.endswith(_UNFINISHED) and not final:
            return ""
        self._context, self._pending = self._pending or self._context, []
        return after[len(before) :]
