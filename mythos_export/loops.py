"""The `--loops` option: a trip count chosen at run time, or depths fixed at export."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["LoopsError", "LoopsOption", "parse_loops"]

_MAX_UNROLLED = 256
_DEPTH = re.compile(r"[+-]?[0-9]+")
_DIGITS = 10  # of a number too long to be worth reading


class LoopsError(ValueError):
    """A `--loops` that means nothing."""


@dataclass(frozen=True)
class LoopsOption:
    """Which graphs to make.

    One fixed depth gives one unrolled graph. Several give one each, and the `Loop` beside them for
    every other depth; they share one file of weights.
    """

    depths: tuple[int, ...]  # fixed depths, ascending; none for "dynamic"

    @property
    def with_loop(self) -> bool:
        """Is there a graph whose trip count is an input?"""
        return len(self.depths) != 1

    @property
    def deepest(self) -> int | None:
        """The largest depth any graph allows; None where it is chosen at run time."""
        return None if self.with_loop else self.depths[0]

    def graph_files(self) -> dict[str, int | None]:
        """File name -> depth it is unrolled to (None for the Loop)."""
        if not self.with_loop:
            return {"model.onnx": self.depths[0]}
        return {"model.onnx": None, **{f"model.loops{depth}.onnx": depth for depth in self.depths}}

    def __str__(self) -> str:
        return ",".join(map(str, self.depths)) or "dynamic"


def parse_loops(text: str) -> LoopsOption:
    """Read `dynamic`, `N` or `N,M,...`.

    Raises:
        LoopsError: anything else, a depth outside 1..256, or one twice.
    """
    if text == "dynamic":
        return LoopsOption(())
    parts = [part.strip() for part in text.split(",")]
    if not all(_DEPTH.fullmatch(part) for part in parts):
        raise LoopsError(f"--loops is {text[:80]!r}; it must be 'dynamic', a depth such as 8, or depths such as 4,8,16")
    depths = [int(part) if len(part) < _DIGITS else _MAX_UNROLLED + 1 for part in parts]
    if not all(1 <= depth <= _MAX_UNROLLED for depth in depths):
        raise LoopsError(
            f"--loops is {text[:80]!r}; a depth must lie in 1..{_MAX_UNROLLED} (a 'dynamic' graph takes any)"
        )
    if len(set(depths)) < len(depths):
        raise LoopsError(f"--loops is {text[:80]!r}; it names a depth twice")
    return LoopsOption(tuple(sorted(depths)))
