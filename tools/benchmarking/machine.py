"""How fast this machine reads out of memory, and who else works on it.

The reading is STREAM-like: each thread reads its own part of buffers far larger than the caches. Memory is shared with
others and changes by the minute, so it is read again at the beginning of each round. Packed weights are read in more
streams at once than plain arrays: a share of this roofline may exceed 100 %, and then a warning says so.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tools.benchmarking.worker import SETTLE, thread_limits

__all__ = ["Others", "describe", "disturbed", "last_level_cache", "reading"]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CPUINFO = Path("/proc/cpuinfo")
_STAT = Path("/proc/stat")
_BUSY = (1, 2, 3, 6, 7, 8)  # columns of its first line: user, nice, system, irq, softirq, steal
_UNDISTURBED = 0.03  # share of the processor that others may take before figures suffer
_UNITS = {"K": 1 << 10, "M": 1 << 20}
_MIB = 1 << 20
_BUFFER, _LEAST_BUFFER, _MOST_BUFFER = 512 * _MIB, 128 * _MIB, 4096 * _MIB
_SECONDS = 0.3  # of reading


@contextlib.contextmanager
def reading(threads: int) -> Iterator[Callable[[], float]]:
    """Buffers kept ready in a process of their own: bytes a second read out of memory, whenever it is called."""
    context = multiprocessing.get_context("spawn")
    with (
        thread_limits(threads),
        ProcessPoolExecutor(1, mp_context=context, initializer=_fill, initargs=(threads, _buffer_bytes())) as pool,
    ):
        yield lambda: pool.submit(_read).result()


_parts: list[Any] = []  # of the process of `reading`, one for each thread


def _fill(threads: int, size: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent
    _parts.extend(np.ones(size // 4 // threads, np.float32) for _ in range(threads))


def _read() -> float:
    """The best of several passes; numpy's dot product releases the interpreter's lock, so that threads read at once."""
    quickest, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _SECONDS or quickest == float("inf"):
        threads = [threading.Thread(target=np.dot, args=(part, part)) for part in _parts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        quickest = min(quickest, time.perf_counter() - start)
    time.sleep(SETTLE)
    return float(sum(part.nbytes for part in _parts) / quickest)


def _buffer_bytes() -> int:
    """Far more than caches hold."""
    cache = last_level_cache()
    return _BUFFER if cache is None else min(max(8 * cache, _LEAST_BUFFER), _MOST_BUFFER)


def last_level_cache() -> int | None:
    """Bytes; None where the system does not say."""
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
    return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes if size and size[-1] in _UNITS), default=None)


def describe() -> str:
    """The processor's name, and how many of it there are."""
    name = platform.processor() or platform.machine()
    if _CPUINFO.exists():
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {_cores()} cores"


class Others:
    """How much of the processor others take while this run lasts."""

    def __init__(self) -> None:
        """Begin."""
        self._start = self._now()

    def share(self) -> float | None:
        """Their part of all cores' time since; None where the system does not say.

        Processes of this run count as its own once they have ended.
        """
        before, after = self._start, self._now()
        if before is None or after is None:
            return None
        busy, own, wall = (late - early for early, late in zip(before, after))
        return max(0.0, (busy - own) / (wall * _cores()))

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds of CPU time of the whole machine and of this run, and wall time."""
        try:
            columns = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()
        except OSError:
            return None
        busy = sum(int(columns[index]) for index in _BUSY) / os.sysconf("SC_CLK_TCK")
        return busy, _own_seconds(), time.perf_counter()


def disturbed(share: float | None) -> str | None:
    """A warning, if others took too much."""
    if share is None or share <= _UNDISTURBED:
        return None
    return f"others took {share:.0%} of the processor during the run: measure again on a quiet machine"


def _own_seconds() -> float:
    """CPU time of this process and of those of its children that have ended."""
    return sum(os.times()[:4])


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
