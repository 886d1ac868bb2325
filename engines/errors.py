"""The one exception of this package."""

from __future__ import annotations

__all__ = ["EngineError", "one_line"]


class EngineError(ValueError):
    """A request that cannot be run, or a bundle that does not run here; one line, saying what to do."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """A foreign exception as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
