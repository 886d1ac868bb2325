"""Stop words: text that ends a generation, wherever the tokens' borders lie."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopWords"]


class StopWords:
    """Lets text through up to the first stop word.

    What may be the beginning of one is held back until it is certain.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._held = ""
        self.reached = False

    def push(self, text: str) -> str:
        """Add text; what of it is now certain not to belong to a stop word."""
        if self.reached:
            return ""
        held = self._held + text
        first = min((at for word in self._words if (at := held.find(word)) >= 0), default=-1)
        if first >= 0:
            self.reached, self._held = True, ""
            return held[:first]
        keep = max((_overlap(held, word) for word in self._words), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` with which `word` begins."""
    longest = min(len(text), len(word) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(word[:length])), 0)
