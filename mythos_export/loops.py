"""The `--loops` option: a trip count chosen at run time, or depths fixed at export."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LoopsError", "LoopsOption", "parse_loops"]

_MAX_UNROLLED = 256


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
        LoopsError: anything else, or a depth outside 1..256.
    """
    if text == "dynamic":
        return LoopsOption(())
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().lstrip("+-").isdigit() for part in parts):
        raise LoopsError(f"--loops is {text!r}; it must be 'dynamic', a depth such as 8, or depths such as 4,8,16")
    depths = [int(part) if len(part.strip()) < 10 else _MAX_UNROLLED + 1 for part in parts]
    for depth in depths:
        if not 1 <= depth <= _MAX_UNROLLED:
            raise LoopsError(f"--loops is {text!r}; a depth fixed at export must lie in 1..{_MAX_UNROLLED} ('dynamic' takes any)")
    return LoopsOption(tuple(sorted(set(depths))))
