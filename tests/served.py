"""`mythos-export serve` under way, as its user sees it."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest


class Served:
    """`mythos-export serve` under way."""

    def __init__(self, process: subprocess.Popen[str], temporary: Path, errors: Path) -> None:
        self.process, self.temporary, self._errors = process, temporary, errors
        self.lines: list[str] = []

    def read_announcement(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("Ctrl-C"):
                return
        pytest.fail(f"the server did not start: {self.errors}")

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    @property
    def http(self) -> str:
        return self._address("HTTP")

    @property
    def grpc(self) -> str:
        return self._address("gRPC")

    @property
    def metrics(self) -> str:
        return self._address("metrics")

    @property
    def control(self) -> dict[str, str]:
        """The header for what only the starter may do."""
        name, value = self._address("control").split("  ")[0].split(": ")
        return {name: value}

    @property
    def curl(self) -> list[str]:
        return [line for line in self.lines if line.startswith("curl ")]

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def _address(self, name: str) -> str:
        return next(re.sub(r"^\S+\s+", "", line) for line in self.lines if line.startswith(f"{name} "))


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether it comes true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
