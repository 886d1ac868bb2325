"""`mythos-export triton` as it is typed: exit codes, one line of error, and nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mythos_export.bundle import Bundle
from mythos_export.commands import triton as command
from mythos_export.planning.devices import find_device
from mythos_export.planning.models import stored_from_config
from mythos_export.planning.plan import Question, memory_of
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

ROOT = Path(__file__).parents[2]


def run(*arguments: object, without: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command; as where a package is not installed, if one is named."""
    hook = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {without!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from mythos_export.cli import main
from reference_model.open_mythos.description import architecture
main()
"""
    return subprocess.run(
        [sys.executable, "-c", hook, "triton", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_a_repository_without_torch(bundle: Path, tmp_path: Path) -> None:
    ran = run(bundle, "--repository", tmp_path / "repo", "--max-batch", 4, "--json", without="torch")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == {
        "bundle": str(bundle),
        "repository": str(tmp_path / "repo"),
        "generator": "tiny",
        "tensors": "tiny-tensors",
        "kserve": None,
    }
    assert (tmp_path / "repo" / "tiny-tensors" / "1" / "model.onnx").is_file()
    assert re.search(
        r'key: "max_batch"\s+value \{\s+string_value: "4"', (tmp_path / "repo/tiny/config.pbtxt").read_text()
    )


def test_a_second_bundle_a_same_name_and_force(bundle: Path, tmp_path: Path) -> None:
    options = ("--repository", tmp_path / "repo", "--backend", "python")
    ran = run(bundle, *options)
    assert ran.returncode == 0
    assert f"{tmp_path / 'repo'}: tiny (generates), tiny-tensors (the graph, on python)" in ran.stdout
    assert run(bundle, *options, "--name", "other").returncode == 0
    refused = run(bundle, *options)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert (
        refused.stderr
        == f"error: {tmp_path / 'repo/tiny'}: exists already; pass --force to replace it, or another --name\n"
    )
    assert run(bundle, *options, "--force").returncode == 0
    assert {path.name for path in (tmp_path / "repo").iterdir() if path.is_dir()} == {
        *("tiny", "tiny-tensors", "other", "other-tensors")
    }


def test_no_tensors(bundle: Path, tmp_path: Path) -> None:
    ran = run(bundle, "--repository", tmp_path / "repo", "--no-tensors")
    assert ran.returncode == 0 and f"{tmp_path / 'repo'}: tiny (generates)\n" in ran.stdout
    assert not (tmp_path / "repo" / "tiny-tensors").exists()
    ran = run(bundle, "--repository", tmp_path / "other", "--no-tensors", "--json")
    assert json.loads(ran.stdout)["tensors"] is None


def test_the_kserve_file(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    options = (
        "--repository",
        tmp_path / "repo",
        "--kserve",
        file,
        "--storage-uri",
        "s3://b/m",
        "--image",
        "r/i:1",
        "--force",
    )
    ran = run(bundle, *options, "--cache-bytes", 1 << 30)
    assert ran.returncode == 0 and f"{file}: the KServe InferenceService over it" in ran.stdout
    first = yaml.safe_load(file.read_text())
    assert first["spec"]["predictor"]["model"]["storageUri"] == "s3://b/m"
    assert run(bundle, *options, "--cache-bytes", 9 << 30).returncode == 0
    memory = yaml.safe_load(file.read_text())["spec"]["predictor"]["model"]["resources"]["limits"]["memory"]
    assert (first["spec"]["predictor"]["model"]["resources"]["limits"]["memory"], memory) == ("5Gi", "13Gi")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "repo", "service.yaml"}


def test_a_pod_has_room_for_what_weights_become_when_loaded(
    make_bundle: Callable[..., Bundle], mla_config: MythosConfig
) -> None:
    """Portable int4 is dequantised at load, and packed for the CPU's kernels: its files say nothing of that."""
    config = replace(mla_config, dim=128, expert_dim=128)
    bundle = make_bundle(config, precision="int4")
    question = Question(context=8, loops=2, batch=1, chunk=8, device=find_device("cpu-ddr5-5600"))
    planned = memory_of(stored_from_config("tiny", architecture(config), "portable", "int4"), question)
    found = command._in_memory(bundle)
    assert found == planned.weights_held + planned.packing
    assert found > 4 * bundle.total_bytes


_SERVICE = ("--kserve", "{tmp}/s.yaml", "--storage-uri", "s3://b/m", "--image", "r/i:1")
REFUSED = {
    "--kserve alone": (
        ("--kserve", "{tmp}/s.yaml", "--cache-bytes", "9"),
        "--kserve FILE and --storage-uri URI go together",
    ),
    "--storage-uri alone": (("--storage-uri", "s3://b/m"), "--kserve FILE and --storage-uri URI go together"),
    "--image alone": (("--image", "r/i:1"), "--kserve FILE and --storage-uri URI go together"),
    "no image": ((*_SERVICE[:4], "--cache-bytes", "9"), "--kserve wants --image"),
    "an image that is none": ((*_SERVICE[:4], "--image", "a b", "--cache-bytes", "9"), "--image is 'a b'"),
    "no bound of the cache": (_SERVICE, "wants --cache-bytes"),
    "no such scheme": (
        ("--kserve", "{tmp}/s.yaml", "--storage-uri", "/m", "--image", "r/i:1", "--cache-bytes", "9"),
        "KServe takes gs://",
    ),
    "a kserve file that is there": (
        ("--kserve", "{tmp}/there", "--storage-uri", "s3://b/m", "--image", "r/i:1", "--cache-bytes", "9"),
        "there: exists already; name another --kserve file, or --force",
    ),
    "a kserve file that is a folder": (
        ("--kserve", "{tmp}/bundle", "--storage-uri", "s3://b/m", "--image", "r/i:1", "--cache-bytes", "9", "--force"),
        "bundle: exists already; name another --kserve file",
    ),
    "a kserve file in no folder": (
        ("--kserve", "{tmp}/no/s.yaml", "--storage-uri", "s3://b/m", "--image", "r/i:1", "--cache-bytes", "9"),
        "no: no such folder",
    ),
    "an unknown backend": (("--backend", "vllm"), "backend is 'vllm'; it must be onnxruntime, tensorrt, python"),
    "an unknown device": (("--device", "tpu"), "device is 'tpu'; it must be cpu or gpu"),
    "tensorrt without engines": (("--backend", "tensorrt"), "made for target 'portable'"),
    "a name that is none": (("--name", "a/b"), "'a/b' cannot be a model's name in Triton"),
    "no room for a sequence": (("--max-batch", "0"), "--max-batch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_in_one_line(bundle: Path, tmp_path: Path, case: str) -> None:
    (tmp_path / "there").write_text("mine")
    options, message = REFUSED[case]
    ran = run(bundle, "--repository", tmp_path / "repo", *(option.format(tmp=tmp_path) for option in options))
    assert (ran.returncode, ran.stdout) == (2, "")
    (*steps, error) = ran.stderr.splitlines()
    assert error.startswith("error: ") and message in error
    assert all(re.fullmatch(r"hash the bundle: [0-9.]+ s", step) for step in steps)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "there"}
    assert (tmp_path / "there").read_text() == "mine"


def test_a_bundle_that_is_altered(bundle: Path, tmp_path: Path) -> None:
    weights = bytearray((bundle / "model.onnx.data").read_bytes())
    weights[100] ^= 1
    (bundle / "model.onnx.data").write_bytes(weights)
    ran = run(bundle, "--repository", tmp_path / "repo")
    assert ran.returncode == 2
    assert "model.onnx.data: altered since it was exported" in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("package", "extra"), [("tritonclient", "triton"), ("google", "triton"), ("onnxruntime", "cpu")]
)
def test_a_missing_extra_is_named(bundle: Path, tmp_path: Path, package: str, extra: str) -> None:
    ran = run(bundle, "--repository", tmp_path / "repo", without=package)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f'pip install "mythos-export[{extra}]"' in ran.stderr.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mythos_export import cli; print(sorted(m for m in sys.modules if m.split('.')[0] in {heavy}))"
    )
    heavy = {"engines", "google", "numpy", "pydantic", "tritonclient", "torch"}
    ran = subprocess.run([sys.executable, "-c", code.format(heavy=heavy)], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout == "[]\n"
    assert run("--help").returncode == 0
