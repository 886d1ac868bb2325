"""A process for each contestant, which takes its turn when it is told to and otherwise sleeps.

Its own process, because two runtimes in one fight over threads and memory. Nothing about how its threads wait is
changed: a user's would wait the same way, and whoever is handicapped here would lose unfairly. That they really sleep
while others have their turn is not assumed but measured: the CPU time that a worker spends between its turns.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from mythos_export.bundle import BundleError
from tools.benchmarking.contestants import BundleContestant, Contestant, Running, Spec
from tools.benchmarking.context import make_context
from tools.benchmarking.memory import Memory, own_memory, return_freed

__all__ = ["SETTLE", "BenchmarkError", "Turn", "Worker", "thread_limits"]

SETTLE = 0.05  # seconds after a turn: threads that spin for a while before they sleep have gone to sleep
_END_WITHIN = 10.0  # seconds


class BenchmarkError(ValueError):
    """A benchmark that cannot be run; one line: what is wrong and what to do."""


class Turn(NamedTuple):
    """What one turn of one contestant took, in seconds, one entry a step."""

    seconds: list[float]
    outside: list[float] | None  # of them, not in the runtime's own call
    logits: NDArray[np.float32]  # after the last step, [batch, vocab]


@contextlib.contextmanager
def thread_limits(threads: int) -> Iterator[None]:
    """Environment for processes started within: OpenMP reads it once, before anything can be set in the process."""
    wanted = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Worker:
    """The other end of a contestant's process."""

    def __init__(self, spec: Spec) -> None:
        """Start the process; its contestant is not loaded yet."""
        self.name = spec.name
        context = multiprocessing.get_context("spawn")  # a forked OpenMP runtime hangs
        self._connection, theirs = context.Pipe()
        with thread_limits(spec.threads):
            self._process = context.Process(target=_serve, args=(theirs, spec), name=spec.name, daemon=True)
            self._process.start()
        theirs.close()

    def ask(self, what: str, **details: Any) -> Any:
        """Have something done, and wait for it.

        Raises:
            BenchmarkError: it cannot be done, or the process has died.
            RuntimeError: it failed for a reason that is no fault of the input.
        """
        try:
            self._connection.send((what, details))
            outcome, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise BenchmarkError(
                f"{self.name}: its process ended during {what!r} (killed for want of memory?); "
                "try --residence apart, or fewer contestants"
            ) from error
        if outcome == "refused":
            raise BenchmarkError(f"{self.name}: {answer}")
        if outcome == "defect":
            raise RuntimeError(f"{self.name}: {what} failed:\n{answer}")
        return answer

    def turn(self, what: str, **details: Any) -> Turn:
        """Have it take a turn; when it answers its threads are at rest."""
        result: Turn = self.ask(what, **details)
        return result

    def close(self) -> None:
        """End the process."""
        self._connection.close()  # it reads the end of its input, and leaves
        self._process.join(_END_WITHIN)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, spec: Spec) -> None:
    """Take turns until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is interrupted is the other end, and it closes
    idle = _Idle()
    desk: _Desk | None = None
    while True:
        with idle:
            try:
                what, details = connection.recv()
            except (EOFError, OSError):
                return
        try:
            desk = desk or _Desk(spec, idle)
            answer = "done", getattr(desk, what)(**details)
        except (EngineError, BundleError) as error:
            answer = "refused", str(error)
        except Exception:  # noqa: BLE001  # goes to the other end whole, and is raised there
            answer = "defect", traceback.format_exc()
        try:
            connection.send(answer)
        except OSError:
            return


class _Idle:
    """CPU and wall time of this process between turns."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def __enter__(self) -> None:
        self._start = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time() - self._start[0]
        self.wall += time.perf_counter() - self._start[1]


class _Desk:
    """What a worker can be asked for; each method is a request."""

    def __init__(self, spec: Spec, idle: _Idle) -> None:
        self._spec, self._idle = spec, idle
        self._contestant = _make(spec)
        self._held: dict[str, Running] = {}
        self._gains: Mapping[str, NDArray[np.float32]] = {}

    def load(self, loops: Sequence[int], gains: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
        """Load the model; seconds, and memory before and after."""
        self._gains = gains
        self._contestant.import_runtime()
        before, start = own_memory(), time.perf_counter()
        self._contestant.load(loops)
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "before": before,
            "after": own_memory(),
            "runtime": self._contestant.describe(),
            "precision": self._contestant.precision,
        }

    def agree(self, ids: Sequence[int], tokens: Sequence[int], loops: int) -> NDArray[np.float32]:
        """Logits [1 + tokens, vocab] after a prompt and after each further token."""
        logits, running = self._contestant.prefill(ids, loops, len(ids) + len(tokens))
        return np.concatenate([logits, *(running.step(np.array([token])).copy() for token in tokens)])

    def hold(self, key: str, past: int, depths: Sequence[int], room: int) -> int:
        """Make sequences with a past, to be decoded from; bytes of their cache."""
        config = _config(self._spec)
        context = make_context(config, self._gains, past, max(depths), self._spec.seed)
        self._held[key] = self._contestant.resume(context, depths, room)
        del context
        return_freed()  # what drawing a context left behind is none of the contestant's
        return self._held[key].cache_bytes

    def drop(self) -> None:
        """Forget all that is held."""
        self._held.clear()

    def decode(self, key: str, tokens: NDArray[np.int64]) -> Turn:
        """One step for each row of tokens [steps, batch], from the past on; the first warms up and is not reported."""
        running, seconds, outside = self._held[key], [], []
        running.rewind()
        for row in tokens:
            inside, start = self._contestant.inside, time.perf_counter()
            logits = running.step(row)
            seconds.append(time.perf_counter() - start)
            outside.append(seconds[-1] - (self._contestant.inside or 0.0) + (inside or 0.0))
        logits = np.array(logits)
        running.rewind()  # what the steps appended is not kept between turns
        time.sleep(SETTLE)
        return Turn(seconds[1:], outside[1:] if self._contestant.inside is not None else None, logits)

    def prefill(self, ids: Sequence[int], loops: int) -> Turn:
        """Read a prompt."""
        start = time.perf_counter()
        logits, _ = self._contestant.prefill(ids, loops, len(ids))
        seconds = time.perf_counter() - start
        time.sleep(SETTLE)
        return Turn([seconds], None, np.array(logits))

    def memory(self) -> Memory | None:
        """Now."""
        return own_memory()

    def idle_share(self) -> float:
        """CPU time over wall time between turns, so far."""
        return self._idle.cpu / self._idle.wall if self._idle.wall else 0.0


def _make(spec: Spec) -> Contestant:
    if spec.kind == "bundle":
        return BundleContestant(spec)  # without torch: its memory is to be the engine's
    from tools.benchmarking.pytorch import CompiledReference, OpenMythos

    return OpenMythos(spec) if spec.kind == "open-mythos" else CompiledReference(spec)


def _config(spec: Spec) -> Any:
    from reference_model.open_mythos.config import MythosConfig

    return MythosConfig.from_dict(dict(spec.config))
