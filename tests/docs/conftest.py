"""A folder to run a page's commands in, and the environment that serves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mythos_export.parity.tolerances import TOLERANCES
from mythos_export.quantization import QUANTIZED
from mythos_export.targets import TARGETS
from tests.docs.pages import ROOT
from tests.docs.shell import Shell

TABLES: tuple[dict[str, Any], ...] = (TARGETS, QUANTIZED, TOLERANCES)  # which a page adds to


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Runs lines in an empty folder; what a page changes in this process is changed back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the command line takes them over
    handlers = [signal.getsignal(number) for number in numbers]
    tables = [dict(table) for table in TABLES]
    shell = Shell(tmp_path, monkeypatch, request)
    yield shell
    for table, before in zip(TABLES, tables):
        table.clear()
        table.update(before)
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)
    shell.close()


@pytest.fixture(scope="session")
def serving_environment() -> Path:
    """The `bin` of an environment with `mythos-export[cpu,triton]`; `make test` makes it."""
    folder = Path(os.environ.get("MYTHOS_TRITON_ENV", ROOT / ".venv-triton")) / "bin"
    if not (folder / "mythos-export").exists():
        reason = f"no {folder}/mythos-export; run `make test`, or set MYTHOS_TRITON_ENV (needs Python 3.10 to 3.12)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
