"""What the user's own options can get wrong, and what a machine can lack."""

from __future__ import annotations

import errno

__all__ = ["RequestError", "lacks_memory"]

# What runtimes say that have no type of their own for it.
_NO_MEMORY = ("bad_alloc", "bad allocation", "Cannot allocate memory", "can't allocate memory", "not enough memory")


class RequestError(ValueError):
    """Options that contradict each other or ask for what there is not."""


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that led to it, says that memory is short."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if any(words in str(error) for words in _NO_MEMORY):
            return True
        error = error.__cause__
    return False
