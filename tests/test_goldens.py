"""Polygraphy, which is not ours, agrees that ONNX Runtime computes what PyTorch does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mythos_export.bundle import Bundle
from reference_model.open_mythos.config import MythosConfig

pytest.importorskip("polygraphy", reason="polygraphy is not installed")

RUN = "from polygraphy.tools import main; raise SystemExit(main())"  # its script, wherever that is installed


def passes(command: list[str]) -> bool:
    ran = subprocess.run([sys.executable, "-c", RUN, *command[1:]], capture_output=True, text=True)
    assert "Accuracy Summary" in ran.stdout, ran.stdout + ran.stderr
    return ran.returncode == 0


def test_every_loop_count(mla_config: MythosConfig, make_bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json, save_json

    from tools.write_goldens import command, write_goldens

    bundle: Bundle = make_bundle(mla_config, target="tensorrt")
    tolerances = write_goldens(bundle, tmp_path, "1,4,8")
    assert list(tolerances) == [1, 4, 8]
    for count, tolerance in tolerances.items():
        assert passes(command(bundle, tmp_path, count, tolerance))
    results = load_json(str(tmp_path / "loops4.outputs.json"))
    assert isinstance(results, RunResults)
    off = results["pytorch"][0]["logits"]
    off[0, 3, 5] += 2 * tolerances[4]
    results["pytorch"][0]["logits"] = np.ascontiguousarray(off)
    save_json(results, str(tmp_path / "loops4.outputs.json"))
    assert not passes(command(bundle, tmp_path, 4, tolerances[4])), "a logit that is off is seen"
