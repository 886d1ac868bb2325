"""Runs one server, and ends it when whoever asked for it ends, in whatever way.

A program of its own, without imports from this package: `python watchdog.py SCRATCH PREFIX COMMAND...`. It lives as
long as its standard input is open: the kernel closes that pipe even for a process that was killed. Then the server is
asked to stop, what does not is killed, and SCRATCH and the shared memory named PREFIX... are removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time

__all__ = ["main", "remove_traces"]

_GRACE = 15.0  # seconds that the server has to stop
_PR_SET_PDEATHSIG = 1

# Triton 24.10 parses a body that says it is a form, as curl's and urllib's do unless told otherwise, on the stack of a
# thread, twice its size: with the usual 8 MiB a request of 4 MiB ends the server. What is not touched costs no memory.
_STACK = 256 << 20  # bytes


def main(scratch: str, prefix: str, command: list[str]) -> int:
    """Run `command` until it ends or standard input does; its exit code."""
    wakeup, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # seen through the pipe
    libc = ctypes.CDLL(None)
    _raise_stacks()
    try:
        # a group of its own: the models' processes are in it
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        try:
            return _wait(server, wakeup)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
    finally:
        remove_traces(scratch, prefix)


def remove_traces(scratch: str, prefix: str) -> None:
    """Remove what the server had for itself alone; what is gone already is no error."""
    for left in glob.glob(f"/dev/shm/{glob.escape(prefix)}*"):  # noqa: S108  (where the kernel has it)
        with contextlib.suppress(OSError):
            os.unlink(left)
    shutil.rmtree(scratch, ignore_errors=True)


def _raise_stacks() -> None:
    """For the threads of the server, unless this machine counts what they might use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    unlimited = resource.RLIM_INFINITY
    wanted = _STACK if hard == unlimited else min(_STACK, hard)
    if _memory_is_counted() or (soft != unlimited and soft >= wanted):  # unlimited is 2 MiB for threads
        return
    resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))


def _memory_is_counted() -> bool:
    try:
        with open("/proc/sys/vm/overcommit_memory", "rb") as strict:
            counted = strict.read().strip() == b"2"
    except OSError:
        counted = False
    return counted or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _wait(server: subprocess.Popen[bytes], wakeup: int) -> int:
    """Until the server ends: by itself, asked to because nobody wants it any more, or not even then (or SIGTERM)."""
    watched, deadline = [wakeup, 0], None
    while (code := server.poll()) is None:
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(watched, [], [], patience)
        if not ready or (wakeup in ready and signal.SIGTERM in os.read(wakeup, 64)):
            return 128 + signal.SIGKILL
        if 0 in ready and not os.read(0, 1):
            server.terminate()
            watched, deadline = [wakeup], time.monotonic() + _GRACE
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
