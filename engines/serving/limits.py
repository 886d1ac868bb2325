"""What a scheduler takes on at a time."""

from __future__ import annotations

from dataclasses import dataclass

from engines.prompts import check_count
from engines.serving.memory import available_memory

__all__ = ["ServingLimits"]

_SHARE = 4  # of the memory there is: the weights, the runtime and others want the rest


@dataclass(frozen=True)
class ServingLimits:
    """Bounds of a `Scheduler`.

    Raises:
        EngineError: a value that is not a positive integer.
    """

    max_batch: int = 16  # requests under way, those whose prompt is being read included
    max_queue: int = 128  # requests that wait; the next one is refused
    max_loops: int | None = None  # None: four times the model's own depth
    prefill_chunk: int = 256  # prompt tokens in one call, so the longest that others wait
    cache_bytes: int | None = None  # for all caches; None: a quarter of the memory there is
    sharers: int = 1  # schedulers on this machine; they share that quarter

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "prefill_chunk", "sharers"):
            check_count(name, getattr(self, name))
        for name in ("max_loops", "cache_bytes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))

    @property
    def memory(self) -> int:
        """Bytes for all caches."""
        return available_memory() // (_SHARE * self.sharers) if self.cache_bytes is None else self.cache_bytes
