"""The command line in this process, and what a refusal must be."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mythos_export import cli
from reference_model.open_mythos.config import MythosConfig


@dataclass(frozen=True)
class Outcome:
    """What a command left on its streams."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """The command line takes over signals; pytest gets them back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """`mythos-export` in this process, in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def command(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mythos-export", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return command


@pytest.fixture
def refused(run: Callable[..., Outcome], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused; its one line."""

    def command(*arguments: str | Path) -> str:
        before = everything(tmp_path)
        outcome = run(*arguments)
        lines = outcome.err.splitlines()
        assert outcome.code == 2, outcome.err
        assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True], outcome.err
        assert lines[-1].isprintable()
        assert "Traceback" not in outcome.err
        assert outcome.out == ""
        assert everything(tmp_path) == before
        return lines[-1]

    return command


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time; of a folder, that it is there."""
    found = {str(path): (path.is_dir(), path.lstat()) for path in folder.rglob("*")}
    return {path: (0, 0) if is_dir else (at.st_size, at.st_mtime_ns) for path, (is_dir, at) in found.items()}


@pytest.fixture
def config_file(tmp_path: Path, mla_config: MythosConfig) -> Path:
    (tmp_path / "config.json").write_text(mla_config.to_json())
    return tmp_path / "config.json"


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A bundle that a test may change."""

    def copied(bundle: Path) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"))

    return copied


@pytest.fixture(scope="session")
def proven_int8(quantized_bundle: Callable[..., Path]) -> Path:
    """An int8 bundle, compared with PyTorch; do not change it (copy it)."""
    return quantized_bundle("mla", "int8")


@pytest.fixture
def accuracy() -> dict[str, Any]:
    """As `mythos-export evaluate --json` prints it: two hops at two loop counts."""

    def scores(wrong: int) -> list[dict[str, Any]]:
        return [
            {"hops": hops, "loops": loops, "correct": 20 - wrong * hops, "total": 20, "low": 0.5, "high": 1.0}
            for hops in (1, 2)
            for loops in (4, 8)
        ]

    return {
        "precision": "int8",
        "prompts": 40,
        "trained_hops": 2,
        "loops": [4, 8],
        "scores": scores(1),
        "reference": scores(0),
        "differing": 6,
    }


@pytest.fixture
def latency() -> dict[str, Any]:
    """Three measurements."""
    return {
        "format_version": 1,
        "precision": "int8",
        "machine": "a test",
        "measured": "2026-11-22",
        "measurements": [
            {"runtime": "onnxruntime 1.31.1", "loops": 4, "past": 128, "ms_per_token": 2.5, "threads": 1},
            {"runtime": "onnxruntime 1.31.1", "loops": 8, "past": 128, "ms_per_token": 5.0, "threads": 1},
            {
                "runtime": "tensorrt_rtx 1.7",
                "loops": 8,
                "past": 128,
                "ms_per_token": 1.25,
                "low_ms": 1.2,
                "high_ms": 1.3,
            },
        ],
    }
