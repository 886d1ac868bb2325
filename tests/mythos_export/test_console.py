"""Any console: of whatever encoding, closed, interrupted, short of memory; exit codes stay what they were."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.errors import EngineError, one_line
from mythos_export import cli
from mythos_export.errors import lacks_memory

Run = Callable[..., Any]
COMMAND = [sys.executable, "-m", "mythos_export"]


def shell(script: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script of the shell, the command line being `$M`."""
    values = os.environ | {"M": " ".join(COMMAND)} | environment
    return subprocess.run(
        ["bash", "-c", script, "bash", *map(str, arguments)], capture_output=True, env=values, timeout=120
    )


@pytest.fixture
def odd(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose name no old console can show."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "模型-é"))


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "latin-1:strict"])
    @pytest.mark.parametrize("command", ["inspect", "generate --tokens 1,2 --max-new-tokens 2", "plan --bundle"])
    def test_what_cannot_be_shown_is_replaced(self, odd: Path, encoding: str, command: str) -> None:
        verb, _, options = command.partition(" ")
        line = f'$M {verb} "$1" {options}' if "--bundle" not in command else '$M plan --bundle "$1"'
        done = shell(line, odd, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr

    def test_an_error_too(self, tmp_path: Path) -> None:
        done = shell('$M inspect "$1"', tmp_path / "не тут", PYTHONIOENCODING="ascii")
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


class TestClosedStreams:
    @pytest.mark.parametrize(
        "line",
        [
            '$M inspect "$1" | head -c 1; exit ${PIPESTATUS[0]}',
            '$M inspect "$1" --json | head -c 1; exit ${PIPESTATUS[0]}',
            '$M generate "$1" --tokens 1,2 --max-new-tokens 9 | head -c 1; exit ${PIPESTATUS[0]}',
            "$M --help | head -1; exit ${PIPESTATUS[0]}",
            '$M inspect "$1" >&-',
            '$M inspect "$1" >&- 2>&- <&-',
            '$M generate "$1" --tokens 1,2 --max-new-tokens 2 --json >&-',
        ],
    )
    def test_a_success_stays_one(self, tiny_bundle: Path, line: str) -> None:
        done = shell(line, tiny_bundle)
        assert (done.returncode, done.stderr) == (0, b"")

    @pytest.mark.parametrize(
        "line",
        ['$M inspect "$1/none" >&-', '$M inspect "$1/none" 2>&-', '$M inspect "$1/none" | true; exit ${PIPESTATUS[0]}'],
    )
    def test_a_failure_stays_one(self, tiny_bundle: Path, line: str) -> None:
        done = shell(line, tiny_bundle)
        assert done.returncode == 2 and b"Traceback" not in done.stderr

    def test_a_closed_stdout_gets_no_file_into_its_place(self, mla_config: Any, tmp_path: Path) -> None:
        """A file opened as number 1 would take what libraries print."""
        (tmp_path / "config.json").write_text(mla_config.to_json())
        done = shell('$M --config "$1" --output "$2" --no-validate >&- 2>&-', tmp_path / "config.json", tmp_path / "b")
        assert done.returncode == 0
        assert shell('$M inspect "$1"', tmp_path / "b").returncode == 0

    def test_a_full_disk_is_an_error(self, tiny_bundle: Path) -> None:
        done = shell('$M inspect "$1" --json > /dev/full', tiny_bundle)
        assert done.returncode == 2 and b"No space left" in done.stderr


@pytest.mark.parametrize("delay", [0.05, 0.15, 0.3, 0.6, 1.0, 1.5, 2.5])
def test_an_interrupt_while_libraries_are_imported_ends_with_one_line(
    mla_config: Any, tmp_path: Path, delay: float
) -> None:
    (tmp_path / "config.json").write_text(mla_config.to_json())
    arguments = ["--config", str(tmp_path / "config.json"), "--output", str(tmp_path / "bundle")]
    starter = "import sys; from mythos_export.__main__ import main; print('up', flush=True); main()"
    process = subprocess.Popen(
        [sys.executable, "-c", starter, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert said.splitlines()[-1] == b"error: interrupted; nothing was kept"
    assert b"Traceback" not in said and b"terminate called" not in said
    assert not (tmp_path / "bundle").exists() and not list(tmp_path.glob(".*"))


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            OSError(12, "Cannot allocate memory"),
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: tried 8 bytes"
            ),
            RuntimeError("std::bad_alloc"),
        ],
    )
    def test_its_lack_is_said_wherever_it_shows(
        self, monkeypatch: pytest.MonkeyPatch, run: Run, error: Exception
    ) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr(cli, "_invoke", fail)
        outcome = run("--scale", "nano")
        assert outcome.code == 2 and outcome.err.startswith("error: out of memory")

    def test_behind_an_error_of_ours(self) -> None:
        try:
            try:
                raise RuntimeError("bad allocation")
            except RuntimeError as cause:
                raise EngineError("the runtime failed") from cause
        except EngineError as error:
            assert lacks_memory(error)
        assert not lacks_memory(EngineError("another"))


def test_a_long_message_keeps_its_end() -> None:
    text = one_line(RuntimeError("where it happened " + "x" * 900 + " because the data file lies outside"))
    assert len(text) <= 300
    assert text.startswith("where it happened") and text.endswith("because the data file lies outside")
