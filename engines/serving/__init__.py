"""Continuous batching: many requests, of different depths and lengths, through one engine.

`with Scheduler(engine) as scheduler: scheduler.submit(Request([1, 2, 3], loops=8), listener)`.
"""

from __future__ import annotations

from engines.serving.limits import ServingLimits
from engines.serving.request import Listener, Reason, Request
from engines.serving.scheduler import QueueFull, Scheduler
from engines.serving.stats import Stats

__all__ = ["Listener", "QueueFull", "Reason", "Request", "Scheduler", "ServingLimits", "Stats"]
