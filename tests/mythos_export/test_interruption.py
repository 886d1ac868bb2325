"""An export that is ended, or runs out of disk, while it writes: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from mythos_export.bundle import Bundle
from reference_model.open_mythos.config import MythosConfig

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # seconds


@dataclass
class Exporter:
    """Starts exports into a folder of their own, one at a time."""

    commands: IO[str]
    answers: IO[str]
    config: Path

    def start(self, folder: Path, *options: str, slowly: bool = False, largest_file: int | None = None) -> Export:
        logs = folder.parent
        order = {
            "arguments": ["--config", str(self.config), "--no-validate", "--output", "x", *options],
            "folder": str(folder),
            "stdout": str(logs / "stdout"),
            "stderr": str(logs / "stderr"),
            "slowly": slowly,
            "largest_file": largest_file,
        }
        self.commands.write(json.dumps(order) + "\n")
        self.commands.flush()
        return Export(int(self.answers.readline()), self.answers, folder)


@dataclass
class Export:
    """One process."""

    process: int
    answers: IO[str]
    folder: Path

    def interrupt(self, number: signal.Signals) -> int:
        """Send a signal once weights are being written."""
        until = time.monotonic() + PATIENCE
        while not any(self.folder.glob(".x.partial-*/**/model.onnx.data")):  # onnx-ir writes in a folder within
            assert time.monotonic() < until, self.stderr
            time.sleep(0.01)
        os.kill(self.process, number)
        return self.wait()

    def wait(self) -> int:
        return int(self.answers.readline())

    @property
    def stdout(self) -> str:
        return (self.folder.parent / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder.parent / "stderr").read_text()

    def error(self) -> str:
        """The one line."""
        lines = self.stderr.splitlines()
        assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True], self.stderr
        assert "Traceback" not in self.stderr
        return lines[-1]


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory, mla_config: MythosConfig) -> Iterator[Exporter]:
    config = tmp_path_factory.mktemp("exporter") / "config.json"
    config.write_text(mla_config.to_json())
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forking_exporter.py")), str(config)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        yield Exporter(process.stdin, process.stdout, config)
        process.stdin.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def older(exporter: Exporter, folder: Path) -> Path:
    """A bundle that stands where the next one is to go."""
    assert exporter.start(folder).wait() == 0
    return folder / "x"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_nothing(exporter: Exporter, folder: Path, number: signal.Signals) -> None:
    export = exporter.start(folder, slowly=True)
    assert export.interrupt(number) == 2
    assert export.error() == "error: interrupted; nothing was kept"
    assert list(folder.iterdir()) == []


def test_an_interruption_keeps_the_bundle_that_force_would_replace(exporter: Exporter, older: Path) -> None:
    created = Bundle.open(older).manifest.files
    export = exporter.start(older.parent, "--force", "--seed", "1", slowly=True)
    assert export.interrupt(signal.SIGINT) == 2
    assert Bundle.open(older).manifest.files == created
    assert list(older.parent.iterdir()) == [older]


def test_a_kill_leaves_nothing_that_opens_and_the_next_export_works(exporter: Exporter, folder: Path) -> None:
    assert exporter.start(folder, slowly=True).interrupt(signal.SIGKILL) == -signal.SIGKILL
    assert not (folder / "x").exists()
    assert exporter.start(folder).wait() == 0
    assert Bundle.open(folder / "x").manifest.precision == "fp32"


def test_a_file_beyond_the_limit_leaves_nothing(exporter: Exporter, folder: Path) -> None:
    export = exporter.start(folder, largest_file=100_000)
    assert export.wait() == 2
    assert "x: cannot be written" in export.error()
    assert list(folder.iterdir()) == []


def test_a_file_beyond_the_limit_keeps_the_bundle_that_force_would_replace(exporter: Exporter, older: Path) -> None:
    export = exporter.start(older.parent, "--force", largest_file=100_000)
    assert export.wait() == 2
    Bundle.open(older)
    assert list(older.parent.iterdir()) == [older]


@pytest.mark.parametrize("size", ["100k", "560k", "600k"])  # full within the weights, at their end, in the graph
def test_a_full_disk_leaves_nothing(exporter: Exporter, folder: Path, size: str) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        export = exporter.start(folder)
        assert export.wait() == 2
        assert "x: cannot be written" in export.error()
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_force_replaces_a_bundle(exporter: Exporter, older: Path) -> None:
    before = Bundle.open(older).manifest.files["model.onnx.data"]
    assert exporter.start(older.parent, "--force", "--seed", "1").wait() == 0
    assert Bundle.open(older).manifest.files["model.onnx.data"] != before
    assert list(older.parent.iterdir()) == [older]


def test_a_damaged_bundle_can_be_replaced(exporter: Exporter, older: Path) -> None:
    (older / "model.onnx").write_bytes(b"")
    assert exporter.start(older.parent, "--force").wait() == 0
    Bundle.open(older)


def test_json_is_one_object_and_nothing_else(exporter: Exporter, folder: Path) -> None:
    export = exporter.start(folder, "--json")
    assert export.wait() == 0
    assert json.loads(export.stdout)["bundle"] == "x"
    assert export.stderr == ""
