"""What the generator is doing, among Triton's own metrics."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from engines.serving.scheduler import Stats
from engines.triton.contract import load_metric

__all__ = ["Metrics"]

_GAUGES = {
    "running": "Sequences that decode now",
    "waiting": "Requests that wait for a place, or for their prompt to be read",
    "cache_bytes": "Bytes of all caches",
}
_COUNTERS = {
    "tokens": "Tokens generated",
    "prompt_tokens": "Prompt tokens read",
    "refused": "Requests refused: a bad one, or one too many",
}
_LOAD = "Requests under way and waiting, in percent of those that fit"


class Metrics:
    """`mythos_running`, `mythos_waiting`, `mythos_cache_bytes`, `mythos_load_<model>`, and counters (`…_total`)."""

    def __init__(self, model: str) -> None:
        kinds = pb_utils.MetricFamily
        self._families = {
            **{name: kinds(f"mythos_{name}", text, kinds.GAUGE) for name, text in _GAUGES.items()},
            **{name: kinds(f"mythos_{name}_total", text, kinds.COUNTER) for name, text in _COUNTERS.items()},
            "load": kinds(load_metric(model), _LOAD, kinds.GAUGE),
        }
        self._metrics: dict[str, Any] = {
            name: family.Metric(labels={"model": model}) for name, family in self._families.items()
        }
        self._shown = dict.fromkeys(self._metrics, 0)

    def show(self, stats: Stats, load: int) -> None:
        """Bring the metrics up to date; each that has changed costs a message to the server."""
        now = {**{name: getattr(stats, name) for name in (*_GAUGES, *_COUNTERS)}, "load": load}
        now["waiting"] += stats.prefilling
        for name, value in now.items():
            change = value - self._shown[name]
            if change and name in _COUNTERS:
                self._metrics[name].increment(change)
            elif change:
                self._metrics[name].set(value)
        self._shown = now

    def close(self) -> None:
        """Give them back, metrics before families, while the server still listens; its stub crashes otherwise."""
        self._metrics.clear()
        self._families.clear()
