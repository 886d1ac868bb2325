"""Memory of whole processes at the sizes that matter; an export must never gather its weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reference_model.config import SCALES
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
