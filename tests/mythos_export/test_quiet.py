"""ONNX Runtime has nothing to say about a bundle that it opens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mythos_export.bundle import Bundle
from mythos_export.targets import TARGETS
from reference_model.open_mythos.config import MythosConfig

# In a process of its own: its log goes to file descriptor 2, which pytest has other uses for.
OPEN = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
for entry in sys.argv[2:]:
    options.add_session_config_entry(*entry.split("=", 1))
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
QUICK = {("portable", "fp32"), ("onnxruntime", "int8")}
COMBINATIONS = [
    pytest.param(target, precision, marks=[] if (target, precision) in QUICK else pytest.mark.dear)
    for target, entry in TARGETS.items()
    for precision in entry.precisions
    if (target, precision) != ("tensorrt", "bf16")  # ONNX Runtime has no such MatMul on a CPU
]


@pytest.mark.parametrize(("target", "precision"), COMBINATIONS)
@pytest.mark.parametrize("attn", ["mla", pytest.param("gqa", marks=pytest.mark.dear)])
def test_a_plain_session_prints_nothing(
    make_bundle: Callable[..., Bundle], request: pytest.FixtureRequest, attn: str, target: str, precision: str
) -> None:
    config: MythosConfig = request.getfixturevalue(f"{attn}_config")
    bundle = make_bundle(config, target=target, precision=precision, loops="2,3")
    assert {graph.loops for graph in bundle.manifest.graphs} == {2, 3, "dynamic"}
    # Its own fusion fails at int4 of standard ONNX within a Loop, unless it is told to leave it alone.
    needed = precision == "int4" and target != "onnxruntime"
    options = [f"{name}={value}" for name, value in bundle.manifest.session.items()] if needed else []
    for graph in bundle.manifest.graphs:
        opened = _open(bundle.path / graph.file, *options)
        assert (opened.returncode, opened.stdout, opened.stderr) == (0, "", "")


def _open(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", OPEN, str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
