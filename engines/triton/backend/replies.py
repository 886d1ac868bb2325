"""Answers on their way to Triton: sent by one thread of their own, so that decoding never waits for a client."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils

from engines.errors import one_line

__all__ = ["Cancellations", "Client", "Outbox"]

_POLL_SECONDS = 0.05


class Client:
    """Whoever sent a request: answered by one thread, and looked after by another.

    With the last response Triton frees what `is_cancelled` looks at, and a server that is asked after that crashes. So
    these two never meet; other responses do not wait for an answer to that question, which takes milliseconds.
    """

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._answered = False
        self._lock = threading.Lock()

    def send(self, response: Any, *, final: bool) -> bool:
        """Send a response; whether anybody takes it."""
        if self._answered:
            return False
        if not final:
            return self._sent(response, 0)
        with self._lock:
            self._answered = True
            return self._finished(response)

    def has_gone(self) -> bool:
        """Whether it no longer waits for an answer that it has not had."""
        with self._lock:
            return not self._answered and bool(self._sender.is_cancelled())

    def _finished(self, response: Any) -> bool:
        """Send the last response, or else once more a bare error: without an end a client waits for ever."""
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if self._sent(response, final):
            return True
        failed = pb_utils.TritonError("the end of this answer could not be sent", pb_utils.TritonError.INTERNAL)
        return self._sent(pb_utils.InferenceResponse(error=failed), final)

    def _sent(self, response: Any, flags: int) -> bool:
        try:
            self._sender.send(response, flags=flags)
        except pb_utils.TritonModelException as error:
            print(f"error: a response could not be sent: {one_line(error)}", file=sys.stderr, flush=True)
            return False
        return True


class Outbox:
    """Sends in the order given.

    Attributes:
        broken: a defect has ended its thread, and nobody is answered any more.
    """

    def __init__(self) -> None:
        self.broken = False
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, send: Callable[[], None]) -> None:
        """Have something sent; it must not raise."""
        self._queue.put(send)

    def close(self, timeout: float | None = None) -> None:
        """Send what is left, and end; after `timeout` seconds without waiting for it any longer."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while (send := self._queue.get()) is not None:
                send()
        except BaseException:
            self.broken = True
            raise


class Cancellations:
    """Asks Triton every 50 ms which clients have gone: one question takes longer than a token's share of a step."""

    def __init__(self, after_round: Callable[[], None], on_defect: Callable[[], None]) -> None:
        """Begin.

        Args:
            after_round: called after each round, from the same thread.
            on_defect: called once, from the same thread, when anything has raised; no round follows.
        """
        self._after_round, self._on_defect = after_round, on_defect
        self._watched: dict[Client, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancellations", daemon=True)
        self._thread.start()

    def watch(self, client: Client, cancel: Callable[[], None]) -> None:
        """Call `cancel` once if this client goes away."""
        with self._lock:
            self._watched[client] = cancel

    def forget(self, client: Client) -> None:
        """The request has its answer."""
        with self._lock:
            self._watched.pop(client, None)

    def close(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ended.wait(_POLL_SECONDS):
                self._round()
        except BaseException:
            traceback.print_exc()  # first: `on_defect` may not return
            self._on_defect()
            raise

    def _round(self) -> None:
        with self._lock:
            watched = list(self._watched.items())
        for client, cancel in watched:
            if client.has_gone():
                self.forget(client)
                cancel()
        self._after_round()
