"""The terminal, or what stands in for one: of any encoding, closed at any time, interrupted at any moment."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

__all__ = ["prepare_signals", "prepare_streams", "reader_has_gone"]

_AGAIN_SECONDS = 0.02
_IMPORTING = "<frozen importlib._bootstrap>"


class _Output(io.TextIOWrapper):
    """A standard stream that replaces what it cannot encode, and falls silent when nobody reads it any more.

    So neither changes what a command does, nor its exit code.
    """

    reader_gone = False

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._fall_silent()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        self.reader_gone = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def prepare_streams() -> None:
    """Make the standard streams of this process safe to write to; call it before any file is opened.

    A closed one is opened on nothing: the next file would get its number, and a library's message would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _Output(io.FileIO(number, "w", closefd=False), "utf-8", "replace", line_buffering=True))
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            encoding, buffered = stream.encoding, stream.line_buffering
            setattr(sys, name, _Output(stream.detach(), encoding, "replace", line_buffering=buffered))


def reader_has_gone() -> bool:
    """Whether nobody reads stdout any more."""
    return isinstance(sys.stdout, _Output) and sys.stdout.reader_gone


def prepare_signals() -> None:
    """Let what ends a process clean up: SIGINT, SIGTERM and SIGHUP raise `KeyboardInterrupt`; ignored ones stay so."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows lacks some
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise, but not within an import: an exception in the middle of loading a library's C++ part aborts it."""
    if not _importing(frame):
        raise KeyboardInterrupt
    again = threading.Timer(_AGAIN_SECONDS, _send, (signum,))
    again.daemon = True
    again.start()


def _send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False
