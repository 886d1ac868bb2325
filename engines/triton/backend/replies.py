"""Answers on their way to Triton: sent by one thread of their own, so that decoding never waits for a client."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Cancellations", "Outbox"]

_POLL_SECONDS = 0.05


class Outbox:
    """Sends in the order given."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, send: Callable[[], None]) -> None:
        """Have something sent; it must not raise."""
        self._queue.put(send)

    def close(self) -> None:
        """Send what is left, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (send := self._queue.get()) is not None:
            send()


class Cancellations:
    """Asks Triton every 50 ms which clients have gone: one question takes longer than a token's share of a step."""

    def __init__(self, after_round: Callable[[], None]) -> None:
        """Begin; `after_round` is called after each round, from the same thread."""
        self._after_round = after_round
        self._watched: dict[int, tuple[Any, Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancellations", daemon=True)
        self._thread.start()

    def watch(self, sender: Any, cancel: Callable[[], None]) -> None:
        """Call `cancel` once if the client of this response sender goes away."""
        with self._lock:
            self._watched[id(sender)] = sender, cancel

    def forget(self, sender: Any) -> None:
        """The request has its answer."""
        with self._lock:
            self._watched.pop(id(sender), None)

    def close(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            with self._lock:
                watched = list(self._watched.values())
            for sender, cancel in watched:
                if sender.is_cancelled():
                    self.forget(sender)
                    cancel()
            self._after_round()
