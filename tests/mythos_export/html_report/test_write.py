"""A report gets into a bundle, and the bundle stays a bundle whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mythos_export.bundle import Bundle, BundleError
from mythos_export.commands import report
from mythos_export.html_report import write
from mythos_export.html_report.write import REPORT, remake_report
from mythos_export.records.measurements import Evaluation, Latency

Copy = Callable[[Path], Path]
_ROOT = Path(__file__).parents[3]
_ON_A_DEVICE = """
import sys
from pathlib import Path
sys.modules |= dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "onnxruntime"))
from mythos_export.commands import report
report.run(Path(sys.argv[1]), accuracy=None, latency=None, json=True)
"""
STEPS = 5  # files that take their name: the manifest, accuracy, latency, the report, the manifest


def test_an_export_leaves_one_that_the_manifest_lists(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert bundle.file(REPORT).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_made_again_it_is_the_same(proven_int8: Path, copy: Copy) -> None:
    path = copy(proven_int8)
    before = (path / REPORT).read_bytes()
    manifest = (path / "manifest.json").read_bytes()
    remake_report(Bundle.open(path))
    assert (path / REPORT).read_bytes() == before
    assert json.loads((path / "manifest.json").read_bytes()) == json.loads(manifest)
    assert sorted(file.name for file in path.iterdir()) == sorted(file.name for file in proven_int8.iterdir())


def test_measurements_stay_until_newer_ones_come(
    proven_int8: Path, copy: Copy, accuracy: dict[str, Any], latency: dict[str, Any]
) -> None:
    path = copy(proven_int8)
    remake_report(Bundle.open(path), accuracy=Evaluation.model_validate(accuracy))
    remake_report(Bundle.open(path), latency=Latency.model_validate(latency))
    page = Bundle.open(path).file(REPORT).read_text(encoding="utf-8")
    assert "Answers that differ from PyTorch&#39;s: 6 of 80" in page
    assert "tensorrt_rtx 1.7" in page
    changed = Evaluation.model_validate(accuracy | {"differing": 7})
    remake_report(Bundle.open(path), accuracy=changed)
    page = Bundle.open(path).file(REPORT).read_text(encoding="utf-8")
    assert "7 of 80" in page and "6 of 80" not in page and "tensorrt_rtx 1.7" in page


def test_a_bundle_of_an_older_release_gets_one(proven_int8: Path, copy: Copy) -> None:
    """It has no report, and its comparison does not say where tokens halted."""
    path = copy(proven_int8)
    forget(path, REPORT)
    parity = json.loads((path / "parity.json").read_text())
    for case in (case for graph in parity["graphs"] for case in graph["cases"]):
        del case["halting_depths"]
    replace(path, "parity.json", json.dumps(parity).encode())
    remake_report(Bundle.open(path))
    page = Bundle.open(path).file(REPORT).read_text(encoding="utf-8")
    assert "Trajectory" in page and "Where tokens halt" not in page


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_stopped_anywhere_it_leaves_a_valid_bundle(
    proven_int8: Path,
    copy: Copy,
    monkeypatch: pytest.MonkeyPatch,
    accuracy: dict[str, Any],
    latency: dict[str, Any],
    step: int,
    trouble: BaseException,
) -> None:
    path = copy(proven_int8)
    older = set(Bundle.open(path).manifest.files) - {REPORT}
    rename, done = os.replace, []

    def stop(source: Any, target: Any) -> None:
        done.append(target)
        if len(done) > step:
            raise trouble
        rename(source, target)

    measured = Evaluation.model_validate(accuracy), Latency.model_validate(latency)
    bundle = Bundle.open(path)
    with monkeypatch.context() as patched:
        patched.setattr(write.os, "replace", stop)
        with pytest.raises((KeyboardInterrupt, BundleError)):
            remake_report(bundle, *measured)
    assert older <= set(Bundle.open(path).manifest.files), "whatever was listed and is not made anew still is"
    assert not [file for file in path.iterdir() if file.name.startswith(".")], "nothing is left beside it"
    remake_report(Bundle.open(path), *measured)
    assert {REPORT, "accuracy.json", "latency.json"} <= set(Bundle.open(path).manifest.files)


def test_there_are_as_many_steps_as_that_test_thinks(
    proven_int8: Path, copy: Copy, monkeypatch: pytest.MonkeyPatch, accuracy: dict[str, Any], latency: dict[str, Any]
) -> None:
    rename, done = os.replace, []
    monkeypatch.setattr(write.os, "replace", lambda *names: (done.append(names), rename(*names)))
    remake_report(Bundle.open(copy(proven_int8)), Evaluation.model_validate(accuracy), Latency.model_validate(latency))
    assert len(done) == STEPS


def test_a_link_in_its_place_is_replaced_and_not_followed(proven_int8: Path, copy: Copy, tmp_path: Path) -> None:
    path, outside = copy(proven_int8), tmp_path / "outside"
    outside.write_text("mine")
    forget(path, REPORT)
    (path / REPORT).symlink_to(outside)
    remake_report(Bundle.open(path))
    Bundle.open(path)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_it_opens_to_nobody_what_the_bundle_keeps_closed(proven_int8: Path, copy: Copy, mode: int) -> None:
    path = copy(proven_int8)
    for file in path.iterdir():
        file.chmod(mode)
    remake_report(Bundle.open(path))
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {mode}


class TestCommand:
    def test_it_adds_what_was_measured(
        self,
        proven_int8: Path,
        copy: Copy,
        tmp_path: Path,
        accuracy: dict[str, Any],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path, file = copy(proven_int8), tmp_path / "measured.json"
        file.write_text(json.dumps(accuracy))
        report.run(path, accuracy=file, latency=None, json=True)
        said = json.loads(capsys.readouterr().out)
        assert said["bytes"] == (path / REPORT).stat().st_size == Bundle.open(path).manifest.files[REPORT].size
        assert "6 of 80" in Path(said["report"]).read_text(encoding="utf-8")

    def test_it_needs_neither_torch_nor_onnx_nor_a_runtime(self, proven_int8: Path, copy: Copy) -> None:
        path = copy(proven_int8)
        ran = subprocess.run(
            [sys.executable, "-c", _ON_A_DEVICE, str(path)], capture_output=True, text=True, timeout=120, cwd=_ROOT
        )
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["report"] == str(path / REPORT)

    def test_a_damaged_bundle_is_refused(self, proven_int8: Path, copy: Copy) -> None:
        path = copy(proven_int8)
        data = path / "model.onnx.data"
        data.write_bytes(data.read_bytes()[:-1] + b"\x55")
        before = (path / REPORT).read_bytes()
        with pytest.raises(BundleError, match="altered since it was exported"):
            report.run(path, accuracy=None, latency=None, json=True)
        assert (path / REPORT).read_bytes() == before


def forget(path: Path, name: str) -> None:
    """Remove a file from a bundle."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"][name]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / name).unlink()


def replace(path: Path, name: str, content: bytes) -> None:
    """Put another file into a bundle, hash and all."""
    from mythos_export.bundle import file_entry

    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = file_entry(path / name).model_dump()
    (path / "manifest.json").write_text(json.dumps(manifest))
