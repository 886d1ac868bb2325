"""The scheduler: who waits, who is read, who runs; one prefill call and one decode step at a time."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from engines.engine import Engine
from engines.errors import EngineError, one_line
from engines.serving.batch_cache import Held
from engines.serving.copies import row_copies
from engines.serving.decoder import Decoder
from engines.serving.footprint import Footprint
from engines.serving.limits import ServingLimits
from engines.serving.prefill import Prefill, next_prefill
from engines.serving.request import Listener, Reason, Request
from engines.serving.stats import Outcome, Stats
from engines.serving.ticket import Ticket

__all__ = ["QueueFull", "Scheduler", "Stats"]

_LOOPS_FACTOR = 4  # of the model's own depth: deeper rarely gains, and every depth is cached
_DEFAULTS = ServingLimits()


class QueueFull(EngineError):
    """As many requests wait as may; a later one will be taken."""


class Scheduler:
    """Runs requests of any depth, length and sampling together; each gets what it would get alone.

    First come, first served: a large request at the head of the queue waits until it fits, and
    nobody passes it. Among those admitted, prompts are read in turns, a chunk each.

    `start` runs it in a thread of its own; without, whoever calls `step` drives it. Listeners are
    called by whoever drives; they may submit and close, and must not step.

    Attributes:
        broken: a defect has ended its thread.
    """

    def __init__(self, engine: Engine, limits: ServingLimits = _DEFAULTS) -> None:
        """Prepare; loads the graph of the model's own depth.

        Raises:
            EngineError: the engine keeps its cache on a device, or does not load.
        """
        if hasattr(engine.graph(np.array([engine.default_loops])), "new_cache"):
            raise EngineError(
                "continuous batching needs the cache in the host's memory, and this engine keeps it on a device; "
                "serve the bundle on ONNX Runtime"
            )
        self._engine, self._limits, self._memory = engine, limits, limits.memory
        own = max(engine.manifest.limits.max_loop_iters * _LOOPS_FACTOR, engine.default_loops)
        self._max_loops = own if limits.max_loops is None else limits.max_loops
        self._footprint = Footprint(engine.manifest.cache, row_copies(engine.manifest))
        # Whoever drives owns the decoder and the turns; what submit and stats see changes under the lock.
        self._decoder = Decoder(engine)
        self._turns: deque[Prefill] = deque()
        self._driver: int | None = None
        self._driving = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._admitted: list[Ticket] = []
        self._running: list[Ticket] = []  # those of the admitted that decode
        self._capacity = limits.max_batch
        self._stats = Stats(*[0] * len(Stats._fields))
        self._thread: threading.Thread | None = None
        self._closed = self.broken = False

    def submit(self, request: Request, listener: Listener) -> None:
        """Take a request into the queue; callable from any thread.

        Raises:
            QueueFull: too many wait.
            EngineError: what `Engine.generate` refuses, a depth or a size beyond the limits, or it is closed.
        """
        try:
            ticket = self._checked(request, listener)
            with self._changed:
                if self._closed:
                    raise EngineError("the scheduler is closed and takes no more requests")
                if len(self._waiting) >= self._limits.max_queue:
                    raise QueueFull(f"the queue is full ({len(self._waiting)} wait); try again later")
                self._waiting.append(ticket)
                self._changed.notify()
        except EngineError:
            self._count(refused=1)
            raise

    def step(self) -> bool:
        """Drive: at most one prefill call and one decode step.

        Returns:
            Whether there was anything to do.

        Raises:
            EngineError: called by a listener, from within a step.
        """
        if self._driver == threading.get_ident():
            raise EngineError("a listener must not step the scheduler that calls it")
        with self._driving:
            self._driver = threading.get_ident()
            try:
                return self._step()
            finally:
                self._driver = None

    def start(self) -> None:
        """Drive from a thread of its own.

        Raises:
            EngineError: it does already, or is closed.
        """
        with self._changed:
            if self._closed or self._thread is not None:
                raise EngineError(f"the scheduler is {'closed' if self._closed else 'running already'}")
            self._thread = threading.Thread(target=self._serve, name="scheduler", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Cancel whatever is there, and join the thread; more than once does no harm."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        me = threading.get_ident()
        if self._thread is not None and self._thread.ident != me:
            self._thread.join()
        if self._driver != me:  # a listener closes: its step will see to it
            self.step()

    def __enter__(self) -> Scheduler:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stats(self) -> Stats:
        """All figures at one moment."""
        with self._changed:
            return self._stats._replace(
                running=len(self._running),
                prefilling=len(self._admitted) - len(self._running),
                waiting=len(self._waiting),
            )

    @property
    def load(self) -> int:
        """Requests under way and waiting, in percent of those that fit: at 100 it is full, above some are held up.

        How many fit is `max_batch`, or where the memory for caches is full sooner, as many as are there then. That is
        known when one finds no room, so there it jumps.
        """
        with self._changed:
            return 100 * (len(self._admitted) + len(self._waiting)) // self._capacity

    def _checked(self, request: Request, listener: Listener) -> Ticket:
        if request.loops is None:
            request = replace(request, loops=min(self._engine.default_loops, self._max_loops))
        ticket = Ticket(self._engine, request, listener)
        if ticket.loops > self._max_loops:
            raise EngineError(f"loops is {ticket.loops}; this scheduler takes at most {self._max_loops}")
        needed = self._footprint.worst(1, ticket.slots, ticket.cached_loops)
        if needed > self._memory:
            raise EngineError(
                f"{ticket.slots} tokens at {ticket.loops} loops need {needed} bytes of cache, and there are "
                f"{self._memory} for all; ask for fewer tokens or loops, or raise cache_bytes"
            )
        return ticket

    def _serve(self) -> None:
        try:
            while self._wait():
                self.step()
            self.step()  # the one that cancels
        except BaseException:  # a defect of ours; nobody shall wait for an answer that never comes
            self._break_down()
            raise

    def _wait(self) -> bool:
        """Sleep until there is something to do; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._admitted)
            return not self._closed

    def _step(self) -> bool:
        if self._closed:
            return self._cancel(everybody=True)
        worked = self._cancel() | self._admit() | bool(self._turns or self._running)
        joining = self._prefill() if self._turns else {}
        if self._running:
            self._decode(joining)
        if self._closed:  # by a listener
            self._cancel(everybody=True)
        self._measure()
        return worked

    def _cancel(self, everybody: bool = False) -> bool:
        """Let go of those whose client has gone, or of all; whether there were any."""
        gone = 0
        for ticket in self._everybody():
            try:
                if everybody or ticket.is_cancelled():
                    self._finish(ticket, "cancelled")
                    gone += 1
            except EngineError as error:
                self._fail(ticket, str(error))
                gone += 1
        return gone > 0

    def _admit(self) -> bool:
        """Take from the queue, in its order, what there is room for; whether there was any."""
        admitted = 0
        with self._changed:
            while self._waiting and self._fits(self._waiting[0]):
                ticket = self._waiting.popleft()
                self._admitted.append(ticket)
                self._turns.append(Prefill(ticket))
                admitted += 1
            self._capacity = len(self._admitted) if self._waiting else self._limits.max_batch
        return admitted > 0

    def _fits(self, ticket: Ticket) -> bool:
        """Whether it and all that were admitted have room even if each grows to the size of the largest."""
        together = [*self._admitted, ticket]
        slots, loops = max(each.slots for each in together), max(each.cached_loops for each in together)
        return (
            len(together) <= self._limits.max_batch
            and self._footprint.worst(len(together), slots, loops) <= self._memory
        )

    def _prefill(self) -> dict[Ticket, Held]:
        """One call for whoever's turn it is; those whose prompt has been read, and where."""
        together = self._limits.prefill_chunk if row_copies(self._engine.manifest) == 1 else 0
        turn = next_prefill(self._turns, together)
        if not turn.started:
            self._settle()
        try:
            answer = turn.step(self._engine, self._limits.prefill_chunk)
        except (EngineError, MemoryError) as error:
            for ticket in turn.tickets:
                self._fail(ticket, one_line(error))
            return {}
        self._count(prompt_tokens=turn.last_read)
        if not turn.done:
            self._turns.append(turn)
            return {}
        goes_on = [
            self._accept(ticket, answer.logits[row], int(answer.halting_depth[row]))
            for row, ticket in enumerate(turn.tickets)
        ]
        joining = {ticket: turn.held(row) for row, ticket in enumerate(turn.tickets) if goes_on[row]}
        with self._changed:
            self._running += list(joining)
        return joining

    def _settle(self) -> None:
        """Give back what those who left still hold, before anything else is allocated."""
        try:
            self._decoder.settle(self._running)
        except (EngineError, MemoryError) as error:
            self._fail_running(one_line(error))

    def _decode(self, joining: dict[Ticket, Held]) -> None:
        """One token for everybody who runs."""
        tickets = list(self._running)
        try:
            answer = self._decoder.step(tickets, joining)
        except (EngineError, MemoryError) as error:
            self._fail_running(one_line(error))
            return
        self._count(steps=1)
        for row, ticket in enumerate(tickets):
            self._accept(ticket, answer.logits[row], int(answer.halting_depth[row]))

    def _accept(self, ticket: Ticket, logits: NDArray[np.float32], halting_depth: int) -> bool:
        """Hand on its next token; whether it goes on."""
        self._count(tokens=1)
        try:
            reason = ticket.accept(logits, halting_depth)
        except EngineError as error:
            self._fail(ticket, str(error))
            return False
        if reason is not None:
            self._finish(ticket, reason)
        return reason is None

    def _finish(self, ticket: Ticket, reason: Reason) -> None:
        outcome: Outcome = "cancelled" if reason == "cancelled" else "finished"
        self._let_go(ticket, outcome)
        try:
            ticket.finish(reason)
        except EngineError as error:
            self._count(**{outcome: -1, "failed": 1})
            self._tell(ticket, str(error))

    def _fail(self, ticket: Ticket, message: str) -> None:
        self._let_go(ticket, "failed")
        self._tell(ticket, message)

    def _tell(self, ticket: Ticket, message: str) -> None:
        with suppress(EngineError):  # who fails to hear of a failure has had its last call
            ticket.fail(message)

    def _fail_running(self, message: str) -> None:
        for ticket in list(self._running):
            self._fail(ticket, message)

    def _let_go(self, ticket: Ticket, outcome: Outcome) -> None:
        """Take it out of wherever it is, and free what it alone holds; before anybody is told."""
        with self._changed:
            for place in (self._waiting, self._admitted, self._running):
                if ticket in place:
                    place.remove(ticket)
            self._turns = deque(turn for turn in self._turns if ticket not in turn.tickets)
            if not self._running:
                self._decoder.clear()
            self._count(**{outcome: 1})
        self._measure()

    def _break_down(self) -> None:
        with self._changed:
            self._closed = self.broken = True
        for ticket in self._everybody():
            self._fail(ticket, "the scheduler broke down, by a defect of its own; start the server again")

    def _everybody(self) -> list[Ticket]:
        with self._changed:
            return [*self._admitted, *self._waiting]

    def _count(self, **more: int) -> None:
        with self._changed:
            totals = {name: getattr(self._stats, name) + count for name, count in more.items()}
            self._stats = self._stats._replace(**totals)

    def _measure(self) -> None:
        held = self._decoder.cache.nbytes + sum(turn.nbytes for turn in self._turns)
        with self._changed:
            self._stats = self._stats._replace(cache_bytes=held)
