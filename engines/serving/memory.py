"""How much memory there is for this process: the machine's, or what its control groups leave of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["available_memory"]

_UNKNOWN = 4 << 30  # bytes, where nobody says
_ROOT = Path("/")


def available_memory(root: Path = _ROOT) -> int:
    """Bytes, in use or not; containers and services have less than their machine.

    Args:
        root: of the file system.
    """
    found = [size for size in (_machine(), *_limits(root)) if size > 0]
    return min(found, default=_UNKNOWN)


def _machine() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # no such system, or one that does not know
        return 0


def _limits(root: Path) -> Iterator[int]:
    """Of this process's groups and of all above; in a container its own group often lies at the top."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:  # "0::/path" of version 2, "4:memory:/path" of version 1
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "")
        if not controllers:
            yield from _up(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _up(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")


def _up(top: Path, path: str, file: str) -> Iterator[int]:
    group = PurePosixPath(path.strip("/"))
    for each in (group, *group.parents):
        try:
            text = (top / each / file).read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isascii() and text.isdigit():  # not "max"
            yield int(text)
