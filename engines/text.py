"""Text in and out, with the tokenizer a bundle may carry."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from engines.errors import EngineError, one_line
from engines.stop_words import StopWords
from mythos_export.bundle import Bundle, TextRecord

if TYPE_CHECKING:
    import tokenizers

__all__ = ["AnswerText", "TextStream", "Tokenizer", "load_tokenizer"]

_FILE = "tokenizer.json"
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of half a character
_ENOUGH = 8  # tokens: half a character at their beginning is long over at their end
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def load_tokenizer(path: str | os.PathLike[str]) -> tokenizers.Tokenizer:
    """A `tokenizer.json`, without the truncation and padding that it remembers of its last use.

    Raises:
        Exception: it is none; the library raises plain ones.
    """
    from tokenizers import Tokenizer as Library  # not needed by callers that speak token ids

    tokenizer = Library.from_file(os.fspath(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Tokenizer:
    """A bundle's `tokenizer.json`, and what its manifest says of prompts.

    Args:
        tokenizer: without truncation and padding.
        record: which special tokens a prompt gets; those that the tokenizer itself adds if None, as for bundles of
            format 1 that do not say.
        vocab_size: of the model; ids beyond are refused.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, record: TextRecord | None = None, vocab_size: int | None = None
    ) -> None:
        self._tokenizer, self._record, self._vocab_size = tokenizer, record, vocab_size
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token.content: id for id, token in added.items() if token.special}
        self._joins_bytes = "ByteFallback" in str(tokenizer.decoder)

    @classmethod
    def open(cls, bundle: Bundle) -> Tokenizer:
        """Read it.

        Raises:
            EngineError: the bundle has none, it is damaged, or `tokenizers` is not installed.
        """
        if _FILE not in bundle.manifest.files:
            raise EngineError(f"{bundle.path}: no {_FILE} in this bundle; give token ids instead of text")
        try:
            tokenizer = load_tokenizer(bundle.file(_FILE))
        except ImportError as error:
            raise EngineError("text needs the tokenizers package: pip install mythos-export") from error
        except Exception as error:  # tokenizers raises plain Exception
            raise EngineError(f"{bundle.path / _FILE}: not a tokenizer ({one_line(error)})") from error
        return cls(tokenizer, bundle.manifest.text, bundle.manifest.limits.vocab_size)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the manifest says the model was trained with.

        Raises:
            EngineError: it cannot be encoded, gives no token, or one that the model does not have.
        """
        try:
            ids = list(self._tokenizer.encode(text, add_special_tokens=self._record is None).ids)
        except Exception as error:
            raise EngineError(f"the text cannot be encoded ({one_line(error)})") from error
        if not ids:
            raise EngineError("the prompt is empty; give some text")
        self._check(ids)
        return self._with_special_tokens(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens.

        Raises:
            EngineError: they cannot be decoded.
        """
        try:
            return str(self._tokenizer.decode(list(ids)))
        except Exception as error:
            raise EngineError(f"the tokens cannot be decoded ({one_line(error)})") from error

    def stream(self, prompt: Sequence[int] | None = None) -> TextStream:
        """Decode an answer token by token.

        Args:
            prompt: the token ids that it continues; without them it continues some text, so that a first word keeps the
                space before it, and with none of them (`[]`) it begins one.
        """
        return TextStream(self, self._any_text if prompt is None else prompt)

    def stops(self, words: Sequence[str]) -> tuple[list[str], list[list[int]]]:
        """Stop words as texts to look for, and as tokens in a row where they hold special tokens, which are no text."""
        texts = [word for word in words if not any(special in word for special in self._special)]
        rows = [list(self._tokenizer.encode(word, add_special_tokens=False).ids) for word in words if word not in texts]
        return texts, rows

    def joins_bytes(self, token: int) -> bool:
        """Whether a token is one byte, whose text the bytes after it may change."""
        return self._joins_bytes and _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token) or "") is not None

    def is_special(self, token: int) -> bool:
        """Whether a token is left out of texts."""
        return token in self._special.values()

    @cached_property
    def _any_text(self) -> list[int]:
        """A token with a text of its own, in place of a prompt that is not known."""
        for token in sorted(self._tokenizer.get_vocab(with_added_tokens=False).values()):
            if not self.is_special(token) and not self.joins_bytes(token) and self.decode([token]).isalnum():
                return [token]
        return []

    def _with_special_tokens(self, ids: list[int]) -> list[int]:
        if self._record is None:
            return ids
        prefix, suffix = self._record.prefix, self._record.suffix
        if ids[: len(prefix)] != prefix:  # a chat template may have put it there
            ids = prefix + ids
        return ids if ids[-len(suffix) :] == suffix else ids + suffix

    def _check(self, ids: list[int]) -> None:
        size = self._vocab_size
        beyond = next((token for token in ids if size is not None and token >= size), None)
        if beyond is not None and size is not None:
            name = str(self._tokenizer.id_to_token(beyond))
            raise EngineError(f"the text has token {name[:80]!r} (id {beyond}), but the model's ids end at {size - 1}")


class TextStream:
    """Text of an answer, piece by piece: together what `decode(prompt + answer)` has after the prompt's text.

    A token is decoded after ones before it, because a tokenizer may join them with a space or spread one character over
    several. What later tokens could still change is held back.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._prompt: list[int] | None = list(prompt)
        self._pending: list[int] = []
        self._context: list[int] = []  # tokens already given out, for joining

    def push(self, token: int) -> str:
        """Add a token; the text that is now certain, possibly none."""
        self._pending.append(token)
        return self._take(final=False)

    def finish(self) -> str:
        """What is left at the end of the stream."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        if self._prompt is not None:
            self._context, self._prompt = self._tail(self._prompt), None
        together = self._context + self._pending
        after = self._tokenizer.decode(together)
        if not final and (after.endswith(_UNFINISHED) or self._ends_in_bytes(together)):
            return ""
        before = self._tokenizer.decode(self._context)
        self._context, self._pending = self._tail(together), []
        shared = next((at for at, (old, new) in enumerate(zip(before, after)) if old != new), len(before))
        return after[shared:]

    def _tail(self, ids: list[int]) -> list[int]:
        """The fewest last tokens that decode as they do behind all others."""
        for start in range(len(ids) - 1, -1, -1):
            tail = ids[start:]
            if self._tokenizer.joins_bytes(ids[start]) or self._tokenizer.is_special(ids[start]):
                continue
            text = self._tokenizer.decode(tail)
            if text and (not text.startswith(_UNFINISHED) or len(tail) >= _ENOUGH):
                return tail
        return ids

    def _ends_in_bytes(self, ids: list[int]) -> bool:
        last = next((token for token in reversed(ids) if not self._tokenizer.is_special(token)), None)
        return last is not None and self._tokenizer.joins_bytes(last)


class AnswerText:
    """Text of an answer as it is generated, up to an end token or the first stop word; these are left out."""

    def __init__(self, stream: TextStream, stop_words: Sequence[str], end_ids: Collection[int]) -> None:
        self._stream, self._stop_words, self._end_ids = stream, StopWords(stop_words), frozenset(end_ids)

    @property
    def reached(self) -> bool:
        """Whether a stop word is complete."""
        return self._stop_words.reached

    def push(self, token: int) -> str:
        """Add a token; the text that is now certain."""
        return "" if token in self._end_ids else self._stop_words.push(self._stream.push(token))

    def finish(self) -> str:
        """What is left at the end."""
        return "" if self.reached else self._stop_words.push(self._stream.finish()) + self._stop_words.finish()
