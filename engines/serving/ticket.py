"""One request in the scheduler: what was asked for, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine
from engines.errors import EngineError, one_line
from engines.sampling import Sampler
from engines.serving.request import Listener, Reason, Request

__all__ = ["Ticket"]

T = TypeVar("T")


class Ticket:
    """A request that was checked, and its state.

    Attributes:
        ids: int64 [prompt], the prompt.
        loops: its depth.
        cached_loops: depths that its graph wants its cache to hold.
        slots: of the cache it needs in the end; the last token is never fed.
        last: the newest token; fed in the next step.
    """

    def __init__(self, engine: Engine, request: Request, listener: Listener) -> None:
        """Check the request.

        Raises:
            EngineError: see `Engine.generate`.
        """
        plan = engine.plan(request.ids, request.loops, max_new_tokens=request.max_new_tokens)
        if not plan.prompts.single:
            raise EngineError("a request takes one prompt, a flat list of token ids; submit several requests")
        self.ids: NDArray[np.int64] = plan.prompts.ids[0]
        self.loops = int(plan.depths[0])
        self.cached_loops = engine.cached_loops(self.loops)
        self.slots = len(self.ids) + plan.max_new_tokens - 1
        self.last = 0
        self._left = plan.max_new_tokens
        self._sampler = Sampler(request.sampling, 1)
        self._stops = engine.stops(request.stop, 1, ignore_eos=request.ignore_eos)
        self._listener = listener

    def accept(self, logits: NDArray[np.float32], halting_depth: int) -> Reason | None:
        """Choose the next token and hand it on.

        Args:
            logits: [vocab].

        Returns:
            Why it was the last one, or None if it was not.

        Raises:
            EngineError: the logits are not finite, or the listener raised.
        """
        self.last = int(self._sampler.choose(logits[None])[0])
        self._left -= 1
        stopped = self._stops.reached(0, self.last)
        wanted = _heard(lambda: self._listener.on_token(self.last, halting_depth))
        if stopped or not wanted:
            return "stop"
        return None if self._left else "length"

    def is_cancelled(self) -> bool:
        """Whether the client has gone.

        Raises:
            EngineError: the listener raised.
        """
        return bool(_heard(self._listener.is_cancelled))

    def finish(self, reason: Reason) -> None:
        """Tell the listener.

        Raises:
            EngineError: it raised.
        """
        _heard(lambda: self._listener.on_finish(reason))

    def fail(self, message: str) -> None:
        """Tell the listener.

        Raises:
            EngineError: it raised.
        """
        _heard(lambda: self._listener.on_error(message))


def _heard(call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:
        raise EngineError(f"the request's listener failed: {one_line(error)}") from error
