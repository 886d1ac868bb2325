"""Errors in the words of whoever sent the request: the engines' options have other names."""

from __future__ import annotations

import re

__all__ = ["as_sent"]

_NAMES = ((r"\bmax_new_tokens\b", "max_tokens"), (r"^loops\b", "n_loops"), (r"^stop holds\b", "end_id is"))


def as_sent(message: str) -> str:
    """A message of `Engine.plan` or `Scheduler.submit`, with the names of `contract.GENERATOR_INPUTS`."""
    for ours, theirs in _NAMES:
        message = re.sub(ours, theirs, message)
    return message
