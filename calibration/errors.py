"""The one exception of this package."""

from __future__ import annotations

__all__ = ["CalibrationError"]


class CalibrationError(ValueError):
    """Data or ranges that nothing can be calibrated with; one line: what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        # Names and values come from hostile files: they must not break the line, nor reach the terminal as escapes.
        super().__init__("".join(character if character.isprintable() else "?" for character in message))
