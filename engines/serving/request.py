"""What a client asks for, and how it hears of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from engines.generation import Stop
from engines.sampling import Sampling

__all__ = ["Listener", "Reason", "Request"]

Reason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """One prompt and what to do with it; `Scheduler.submit` checks it against the engine."""

    ids: Sequence[int]
    loops: int | None = None  # None: the model's own depth, or the deepest that the scheduler takes
    max_new_tokens: int | None = None  # None: 128, or what `max_seq_len` leaves
    sampling: Sampling = field(default_factory=Sampling)  # greedy
    stop: Stop = ()  # as of `Engine.generate`, as is the next
    ignore_eos: bool = False


class Listener(Protocol):
    """Hears of one request, from the scheduler's thread: it must be quick, and not raise.

    The last call is one of `on_finish` and `on_error`, and there is exactly one of them; unless `on_finish` raises,
    which `on_error` is then told.
    """

    def on_token(self, token: int, halting_depth: int) -> bool:
        """Take a token, a stop token too.

        Args:
            token: the token just chosen.
            halting_depth: loops that ran before ACT halted the position it was chosen at.

        Returns:
            False to end here, with reason "stop".
        """

    def on_finish(self, reason: Reason) -> None:
        """No more tokens: a stop was reached, there are as many as were asked for, or somebody cancelled."""

    def on_error(self, message: str) -> None:
        """No more tokens: this request failed; one line."""

    def is_cancelled(self) -> bool:
        """Whether the client has gone; asked between steps."""
