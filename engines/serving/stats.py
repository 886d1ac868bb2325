"""What a scheduler is doing and has done."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Outcome", "Stats"]

Outcome = Literal["finished", "cancelled", "failed"]


class Stats(NamedTuple):
    """One moment of a scheduler.

    Every request that was taken is in exactly one of running, prefilling, waiting, finished,
    cancelled and failed.
    """

    running: int  # requests that decode
    prefilling: int  # requests whose prompt is being read, or is next
    waiting: int  # requests in the queue
    cache_bytes: int  # allocated for caches now
    steps: int  # decode steps so far
    tokens: int  # generated so far
    prompt_tokens: int  # read so far
    finished: int  # requests that reached a stop or their length
    cancelled: int
    failed: int
    refused: int  # requests that were not taken: bad ones, and those that found the queue full
