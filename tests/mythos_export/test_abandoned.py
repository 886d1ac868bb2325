"""What killed exports leave behind goes; what living ones write, and what is a user's own, stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mythos_export.staging import remove_abandoned, staged

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
Run = Callable[..., Any]

WRITER = """
    import sys, time
    from pathlib import Path
    from mythos_export.staging import staged
    with staged(Path(sys.argv[1])) as folder:
        (folder / "model.onnx.data").write_bytes(b"x" * 1000)
        (folder / ".float").mkdir()
        print(folder, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], Path]]]:
    """Start an export that never ends; the process, and the folder it writes to."""
    running = []

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path / "bundle")], stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_the_next_export_of_that_name_removes_it(tmp_path: Path, writer: Callable[..., Any]) -> None:
    process, folder = writer()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.exists()
    with staged(tmp_path / "another"):
        assert folder.exists()
    with staged(tmp_path / "bundle"):
        assert not folder.exists()


def test_clean_removes_it_and_says_so(tmp_path: Path, writer: Callable[..., Any], run: Run) -> None:
    process, folder = writer()
    process.kill()
    process.wait()
    outcome = run("clean", tmp_path)
    assert outcome.code == 0 and f"removed {folder}: 1.0 kB" in outcome.out
    assert not folder.exists()
    assert "nothing that an export left behind" in run("clean", tmp_path).out


def test_a_living_export_keeps_it(tmp_path: Path, writer: Callable[..., Any]) -> None:
    _, folder = writer()
    assert remove_abandoned(tmp_path) == {}
    with staged(tmp_path / "bundle"):
        assert folder.exists()


def test_a_bundle_that_was_about_to_be_replaced_gets_its_name_back(tmp_path: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / ".bundle.old-abcd1234")
    assert remove_abandoned(tmp_path) == {}
    assert (tmp_path / "bundle" / "manifest.json").exists()
    shutil.copytree(tiny_bundle, tmp_path / ".bundle.old-abcd1234")
    assert list(remove_abandoned(tmp_path)) == [tmp_path / ".bundle.old-abcd1234"]
    assert (tmp_path / "bundle" / "manifest.json").exists()


@pytest.mark.parametrize("name", [".notes.partial-abcd1234", ".notes.partial-x", "notes.partial-abcd1234", ".git"])
def test_what_an_export_does_not_write_is_somebody_elses(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("years of work")
    assert remove_abandoned(tmp_path) == {}
    assert (tmp_path / name / "thesis.tex").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "manifest.json").write_text("{}")
    os.symlink(tmp_path / "real", tmp_path / ".bundle.partial-abcd1234")
    assert remove_abandoned(tmp_path) == {}
    assert (tmp_path / "real" / "manifest.json").exists()


def test_no_such_folder(refused: Callable[..., str]) -> None:
    assert "nowhere: no such folder" in refused("clean", "nowhere")
