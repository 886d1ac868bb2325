"""What a device installs: a real environment without torch and onnx, from nothing, runs a bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dear
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment with `mythos-export[cpu]`."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", f"{ROOT}[cpu]"], check=True)
    return folder / "bin"


def test_it_has_neither_torch_nor_onnx(device: Path) -> None:
    listed = subprocess.run([device / "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    installed = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert "onnxruntime" in installed
    assert not {"torch", "onnx", "onnx-ir", "onnxscript", "safetensors"} & installed


def test_it_generates_what_the_reference_generates(device: Path, tiny_bundle: Path, mla_config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import torch

    from reference_model.checkpoint import SeededWeights, load_model
    from reference_model.open_mythos.model import generate_greedy

    command = [device / "mythos-export", "generate", tiny_bundle, "--tokens", "5,6,7", "--loops", "4", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    model = load_model(SeededWeights(mla_config, 0), mla_config)
    wanted = torch.cat(list(generate_greedy(model, torch.tensor([[5, 6, 7]]), 4, 64)))
    assert json.loads(ran.stdout)["tokens"] == wanted.tolist()


def test_triton_loads_the_generator(device: Path, tmp_path: Path) -> None:
    """`requirements.txt` of a repository names this environment; the server brings its own module, here a stand-in."""
    code = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
import fake_triton
sys.modules["triton_python_backend_utils"] = fake_triton.module()
import engines.triton.backend.generator, engines.triton.backend.tensors, engines.triton.probe
print(engines.triton.backend.generator.__file__)
print(sorted({{"torch", "onnx", "onnx_ir", "google", "tritonclient"}} & {{name.split(".")[0] for name in sys.modules}}))
"""
    ran = subprocess.run([device / "python", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    file, heavy = ran.stdout.splitlines()
    assert Path(file).is_relative_to(device.parent), "the one that was installed"
    assert heavy == "[]"


def test_a_command_that_needs_more_says_what_to_install(device: Path, tmp_path: Path) -> None:
    ran = subprocess.run([device / "mythos-export", "--scale", "1b"], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2
    assert 'pip install "mythos-export[export]"' in ran.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
