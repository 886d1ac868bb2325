"""The oldest ONNX Runtime of a bundle follows what its graphs hold, and older ones really run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from stored_weights import eventful_weights

import engines
from mythos_export.bundle import Bundle
from mythos_export.errors import RequestError
from mythos_export.minimum_runtime import minimum_runtime, read_version
from reference_model.config import MythosConfig

ROOT = Path(__file__).resolve().parents[2]
OLD = ("1.22.1", "1.23.2", "1.26.0")
ASK = """
import json, sys, engines
engine = engines.load(sys.argv[1], threads=1)
print(json.dumps([engine.logits([1, 2, 3, 4, 5], loops).tolist() for loops in (1, 3)]))
"""


def model(*nodes: ir.Node) -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=list(nodes), opset_imports={"": 21, "com.microsoft": 1}), ir_version=10)


def test_it_follows_the_operators_nested_ones_too() -> None:
    body = ir.Graph([], [], nodes=[ir.Node("com.microsoft", "QMoE", [])], opset_imports={"": 21})
    plain = model(ir.Node("com.microsoft", "MatMulNBits", []))
    assert minimum_runtime([plain]) is None
    assert minimum_runtime([plain, model(ir.Node("", "Loop", [], [ir.AttrGraph("body", body)]))]) == "1.31"


@pytest.mark.parametrize("version", ["", "1", "new", "1.22.x", "-1.2", "1.22\n"])
def test_no_version(version: str) -> None:
    with pytest.raises(RequestError, match=r"give a version of ONNX Runtime such as 1\.22"):
        read_version(version)


def test_too_old() -> None:
    with pytest.raises(RequestError, match=r"--minimum-runtime is 1\.18; bundles run on ONNX Runtime 1\.22 or later"):
        read_version("1.18")
    assert read_version("1.23.2") == (1, 23)


@pytest.mark.parametrize(
    "arguments", [("--target", "portable", "--precision", "int8"), ("--target", "onnxruntime", "--precision", "fp32")]
)
def test_an_option_that_makes_no_difference(refused: Callable[..., str], arguments: tuple[str, ...]) -> None:
    assert "--minimum-runtime does nothing for target" in refused(
        "--scale", "nano", "--minimum-runtime", "1.22", *arguments
    )


@pytest.fixture(scope="module")
def old_runtimes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An environment for each old release: numpy and the runtime; the rest is this environment's."""
    made = {}
    for version in OLD:
        folder = tmp_path_factory.mktemp("ort") / version
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        if subprocess.run([*command, f"onnxruntime=={version}"], check=False).returncode:
            pytest.skip(f"onnxruntime {version} cannot be installed for this Python")
        made[version] = folder
    return made


@pytest.mark.dear
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_old_releases_compute_the_same(
    mla_config: MythosConfig, precision: str, make_bundle: Callable[..., Bundle], old_runtimes: dict[str, Path]
) -> None:
    bundle = make_bundle(
        mla_config, source=eventful_weights(mla_config), target="onnxruntime", precision=precision, runtime=(1, 22)
    )
    wanted = [engines.load(bundle.path, threads=1).logits([1, 2, 3, 4, 5], loops) for loops in (1, 3)]
    for version, folder in old_runtimes.items():
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
        script = f"import onnxruntime; assert onnxruntime.__version__ == {version!r}" + ASK
        done = subprocess.run(
            [sys.executable, "-c", script, str(bundle.path)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        for ours, theirs in zip(wanted, json.loads(done.stdout)):
            assert np.abs(ours - np.array(theirs)).max() <= 2e-2 * np.ptp(ours), version
