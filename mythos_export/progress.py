"""Progress of long steps: a bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Reporter"]

_PLAIN_EVERY = 5.0  # seconds between plain lines of one step


class Reporter:
    """Says what is being done."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def step(self, title: str, total: int = 0) -> Iterator[Callable[[int], None]]:
        """A step of `total` units (bytes, or cases); the block calls the result with units done."""
        started = time.monotonic()
        show = self._silent if self.quiet else self._bar if sys.stderr.isatty() else self._lines
        with show(title, total) as advance:
            yield advance
        self.say(f"{title}: {time.monotonic() - started:.1f} s")

    @contextmanager
    def _silent(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: None

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total or None)
            yield lambda done: bar.advance(task, done)

    @contextmanager
    def _lines(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        said, so_far = time.monotonic(), 0

        def advance(done: int) -> None:
            nonlocal said, so_far
            so_far += done
            if total and time.monotonic() - said > _PLAIN_EVERY:
                said = time.monotonic()
                self.say(f"{title}: {100 * so_far // total} %")

        yield advance
