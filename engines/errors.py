"""The one exception of this package, and how foreign ones are put into a line."""

from __future__ import annotations

__all__ = ["EngineError", "one_line", "shortened"]

_HEAD = 0.4  # of a message that is cut: its beginning says where, its end what


class EngineError(ValueError):
    """A request that cannot be run, or a bundle that does not run here; one line, saying what to do."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """A foreign exception as one short line; a long one keeps its beginning and its end."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, limit)


def shortened(text: str, limit: int) -> str:
    """A text of at most `limit` characters, cut in the middle."""
    if len(text) <= limit:
        return text
    head = int(limit * _HEAD)
    return f"{text[:head]} … {text[len(text) - (limit - head - 3) :]}"
