"""`plan` from the command line: answers, refusals, and no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mythos_export.bundle import Bundle
from mythos_export.inspection.inspect import inspect
from mythos_export.planning.devices import known_devices
from mythos_export.planning.plan import Plan
from mythos_export.targets import TARGETS
from reference_model.config import MythosConfig

MakeBundle = Callable[..., Bundle]
ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnxscript", "safetensors", "onnxruntime"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = ["mythos-export", *sys.argv[1:]]
from mythos_export.cli import main
main()
"""


@pytest.fixture
def answer(run: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    def ask(*arguments: str | Path) -> dict[str, Any]:
        outcome = run("plan", *arguments, "--json")
        assert (outcome.code, outcome.err) == (0, "")
        found: dict[str, Any] = json.loads(outcome.out)
        return found

    return ask


class TestAnswers:
    def test_it_needs_no_torch(self) -> None:
        command = [sys.executable, "-c", WITHOUT_TORCH, "plan", "--scale", "1t", "--precision", "int4", "--json"]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert json.loads(ran.stdout)["memory"]["weights"] > 600e9

    def test_defaults_are_the_models_own(self, answer: Callable[..., dict[str, Any]], config_file: Path) -> None:
        found = answer("--config", config_file)
        assert (found["context"], found["loops"], found["batch"]) == (256, 6, 1)
        assert (found["target"], found["precision"], found["device"]) == ("portable", "fp32", None)
        assert found["remedies"] == []

    def test_the_other_attention(self, answer: Callable[..., dict[str, Any]], config_file: Path) -> None:
        found = answer("--config", config_file, "--attn", "gqa")
        assert (found["attention"], found["cache_bytes_per_token"]) == ("gqa", 3 * 2 * 2 * 16 * 4)

    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_a_bundle_is_planned_as_its_config_is(
        self,
        answer: Callable[..., dict[str, Any]],
        make_bundle: MakeBundle,
        mla_config: MythosConfig,
        config_file: Path,
        precision: str,
    ) -> None:
        bundle = make_bundle(mla_config, precision=precision)
        written = answer("--bundle", bundle.path, "--device", "rtx-4090")
        planned = answer("--config", config_file, "--precision", precision, "--device", "rtx-4090")
        assert written["memory"]["weights"] == inspect(bundle).weight_bytes
        assert {**written, "name": ""} == {**planned, "name": ""}

    @pytest.mark.parametrize("target", list(TARGETS))
    def test_every_precision_side_by_side(
        self, run: Callable[..., Any], answer: Callable[..., dict[str, Any]], config_file: Path, target: str
    ) -> None:
        arguments = ("--config", config_file, "--target", target, "--device", "rtx-4060", "--compare")
        found = [Plan.model_validate(each) for each in answer(*arguments)["plans"]]
        assert [each.precision for each in found] == list(TARGETS[target].precisions)
        table = run("plan", *arguments).out.splitlines()
        assert [line.split()[0] for line in table[-len(found) :]] == list(TARGETS[target].precisions)

    @pytest.mark.parametrize("device", list(known_devices()))
    @pytest.mark.parametrize("precision", ["fp32", "int4"])
    def test_every_device_has_an_answer_of_80_columns(
        self, run: Callable[..., Any], device: str, precision: str
    ) -> None:
        outcome = run("plan", "--scale", "10b", "--precision", precision, "--device", device)
        assert outcome.code == 0, outcome.err
        verdicts = [line for line in outcome.out.splitlines() if line.startswith(("fits: ", "does not fit: "))]
        assert len(verdicts) == 1
        assert [line for line in outcome.out.splitlines() if len(line) > 80] == []
        assert "None" not in outcome.out and "nan" not in outcome.out


class TestDoesNotFit:
    def test_it_is_an_answer_and_says_what_would(self, run: Callable[..., Any]) -> None:
        outcome = run("plan", "--scale", "3b", "--device", "jetson-orin-nano-8gb", "--target", "tensorrt")
        assert outcome.code == 0
        assert "does not fit: 1" in outcome.out
        assert "--precision int8 would fit" in outcome.out
        assert "--precision int4" not in outcome.out  # no kernels there
        assert "--device jetson-orin-nx-16gb would fit" in outcome.out

    @pytest.mark.parametrize(
        ("batch", "named"),
        [("16", ["--chunk", "--batch", "--context", "--device"]), ("64", ["--batch", "--context"])],
    )
    def test_what_it_names_does_fit(self, answer: Callable[..., dict[str, Any]], batch: str, named: list[str]) -> None:
        asked = ("--scale", "10b", "--precision", "fp16", "--target", "tensorrt", "--batch", batch, "--context", "8000")
        found = answer(*asked, "--device", "rtx-5090")
        assert found["fits"] is False
        assert [remedy.split()[0] for remedy in found["remedies"]] == named
        for remedy in found["remedies"]:
            assert answer(*asked, "--device", "rtx-5090", *remedy.split())["fits"] is True, remedy

    def test_fewer_loops(self, answer: Callable[..., dict[str, Any]]) -> None:
        found = answer("--scale", "1b", "--precision", "fp16", "--loops", "3000", "--device", "rtx-4060")
        assert f"--loops {found['largest_loops']}" in found["remedies"]

    def test_another_target_where_this_one_has_nothing(self, answer: Callable[..., dict[str, Any]]) -> None:
        asked = ("--scale", "10b", "--context", "256", "--device", "rtx-4060")
        assert "--target tensorrt --precision int4" in answer(*asked)["remedies"]
        assert answer(*asked, "--target", "tensorrt", "--precision", "int4")["fits"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "which model?"),
            (["--scale", "1b", "--config", "x.json"], "which model?"),
            (["--scale", "2b"], "unknown scale '2b'"),
            (["--config", "absent.json"], "absent.json: cannot be read"),
            (["--scale", "1b", "--target", "gpu"], "unknown target 'gpu'; known: portable, onnxruntime, tensorrt"),
            (["--scale", "1b", "--precision", "int3"], "target portable has no precision 'int3'"),
            (["--scale", "1b", "--target", "onnxruntime", "--precision", "fp8"], "target onnxruntime has no precision"),
            (["--scale", "1b", "--attn", "mqa"], "--attn is 'mqa'"),
            (["--scale", "1b", "--context", "0"], "--context is 0; it must lie in 1..4096"),
            (["--scale", "1b", "--context", "4097"], "--context is 4097"),
            (["--scale", "1b", "--loops", "0"], "--loops is 0"),
            (["--scale", "1b", "--batch", "-1"], "--batch is -1"),
            (["--scale", "1b", "--chunk", "0"], "--chunk is 0"),
            (["--scale", "1b", "--device", "toaster"], "unknown device 'toaster'; known: jetson-orin-nano-8gb"),
            (["--scale", "1b", "--device", "absent.json"], "absent.json: cannot be read"),
            (["--scale", "1b", "--compare", "--precision", "fp16"], "leave out --precision"),
            (["--bundle", "absent"], "absent: not a bundle"),
            (["--bundle", "absent", "--scale", "1b"], "--scale does nothing for a bundle"),
            (["--bundle", "absent", "--compare"], "--compare wants a model"),
        ],
        ids=" ".join,
    )
    def test_one_line(self, refused: Callable[..., str], arguments: list[str], words: str) -> None:
        assert words in refused("plan", *arguments)

    def test_a_bundle_without_a_config(self, refused: Callable[..., str], tiny_bundle: Path, tmp_path: Path) -> None:
        path = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["files"]["config.json"]
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert "has no config.json" in refused("plan", "--bundle", path)

    @pytest.mark.parametrize("change", [{"target": "teapot"}, {"precision": "fp7"}])
    def test_a_bundle_of_another_release(
        self, refused: Callable[..., str], tiny_bundle: Path, tmp_path: Path, change: dict[str, str]
    ) -> None:
        path = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | change))
        assert "unknown" in refused("plan", "--bundle", path)
