"""What the user's own options can get wrong."""

from __future__ import annotations

__all__ = ["RequestError"]


class RequestError(ValueError):
    """Options that contradict each other or ask for what there is not."""
