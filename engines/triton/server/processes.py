"""What the kernel says of a server's processes; Triton calls a model ready whose process has died."""

from __future__ import annotations

from pathlib import Path

__all__ = ["dead_models"]


def dead_models(watchdog: int) -> frozenset[int]:
    """Ids of the model processes that have ended and that the server has not noticed.

    One that is being unloaded may be among them for a moment.

    Args:
        watchdog: process id of the server's parent.
    """
    return frozenset(
        process for server in _children(watchdog) for process in _children(server) if _state(process) in "ZX"
    )


def _children(process: int) -> list[int]:
    """Of all its threads: each may have started some."""
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:  # the thread has just ended
            continue
    return found


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
