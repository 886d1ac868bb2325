"""What a process takes of the machine's memory, as Linux counts it."""

from __future__ import annotations

import ctypes
import ctypes.util
from pathlib import Path
from typing import NamedTuple

__all__ = ["Memory", "available_bytes", "own_memory", "return_freed"]

_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")


class Memory(NamedTuple):
    """Bytes; mapped weights count as `file` as far as they have been read."""

    resident: int
    anonymous: int
    file: int
    peak: int  # of `resident`, since the process began


def own_memory() -> Memory | None:
    """This process, now; None where there is no /proc."""
    found = _fields(_STATUS)
    if "VmRSS" not in found:
        return None
    return Memory(found["VmRSS"], found.get("RssAnon", 0), found.get("RssFile", 0), found.get("VmHWM", 0))


def available_bytes() -> int | None:
    """Memory that new processes can have without swapping; None where there is no /proc."""
    return _fields(_MEMINFO).get("MemAvailable")


def return_freed() -> None:
    """Give what this process has freed back to the system; glibc keeps some of it, and it would count as in use."""
    library = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(library), "malloc_trim", None) if library else None
    if trim is not None:
        trim(0)


def _fields(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines if line.endswith(" kB"))
    return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows}
