"""Memory of whole processes at the sizes that matter; an export must never gather its weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reference_model.open_mythos.config import SCALES
from tools.measure_build import measure_build
from tools.measure_export import measure

pytestmark = pytest.mark.dear
GIB = 1 << 30


@pytest.mark.parametrize("scale", list(SCALES))
def test_planning_any_scale_stays_under_2_gib(scale: str, capfd: pytest.CaptureFixture[str]) -> None:
    result = measure(["--scale", scale, "--dry-run", "--json"])
    assert result["exit_code"] == 0, capfd.readouterr().err
    assert float(result["peak_rss_gib"]) <= 2  # type: ignore[arg-type]


def test_exporting_1b_stays_under_3_gib_and_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    free = os.statvfs(tmp_path)
    if free.f_bavail * free.f_frsize < 6 * GIB:
        pytest.skip("needs 6 GiB of free disk")
    output = str(tmp_path / "1b")
    result = measure(["--scale", "1b", "--no-validate", "--output", output])
    assert result["exit_code"] == 0, capfd.readouterr().err
    assert float(result["peak_rss_gib"]) <= 3  # type: ignore[arg-type]
    command = [sys.executable, "-m", "mythos_export", "generate", output, "--tokens", "1,2,3", "--loops", "4"]
    generated = subprocess.run([*command, "--max-new-tokens", "4"], capture_output=True, text=True, check=True)
    assert len(generated.stdout.split()) == 4


def test_a_1b_model_becomes_a_tensorrt_engine(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    free = os.statvfs(tmp_path)
    if free.f_bavail * free.f_frsize < 6 * GIB:
        pytest.skip("needs 6 GiB of free disk")
    built = measure_build("1b", "fp16", "8.9", tmp_path / "1b")
    shutil.rmtree(tmp_path / "1b")
    weights, engine = float(built["weights_gb"]), float(built["engine_gb"])  # type: ignore[arg-type]
    assert weights > 2
    assert 0.95 * weights <= engine <= 1.2 * weights, "every weight is in the engine, in half precision, once"
    # the mapped file, TensorRT's own copy, the engine; nothing of ours beside them
    assert float(built["build_peak_rss_gib"]) * GIB <= 3.5 * weights * 1e9  # type: ignore[arg-type]
