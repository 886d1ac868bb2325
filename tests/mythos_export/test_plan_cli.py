"""`plan` from the command line: answers, refusals, and no torch."""

from __future__ import annotations

import json
import re
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
from reference_model.open_mythos.config import MythosConfig

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

    def test_an_unrolled_bundle_has_its_own_depth_and_no_other(
        self,
        answer: Callable[..., dict[str, Any]],
        refused: Callable[..., str],
        make_bundle: MakeBundle,
        mla_config: MythosConfig,
        tmp_path: Path,
    ) -> None:
        bundle = make_bundle(mla_config, loops="3").path
        found = answer("--bundle", bundle, "--device", "rtx-4090")
        assert (found["loops"], found["largest_loops"]) == (3, 3)
        assert "was exported with --loops 3" in refused("plan", "--bundle", bundle, "--loops", "2")
        needed = found["memory"]["total"] - found["memory"]["reserved"]
        small = tmp_path / "small.json"
        small.write_text(json.dumps({"label": "small", "kind": "cpu", "memory_bytes": needed - 1}))
        found = answer("--bundle", bundle, "--device", small)
        assert (found["fits"], found["largest_loops"]) == (False, 0)
        assert found["remedies"] and not [each for each in found["remedies"] if each.startswith("--loops")]

    @pytest.mark.parametrize("target", list(TARGETS))
    def test_every_precision_side_by_side(
        self, run: Callable[..., Any], answer: Callable[..., dict[str, Any]], config_file: Path, target: str
    ) -> None:
        arguments = ("--config", config_file, "--target", target, "--device", "rtx-4060", "--compare")
        found = [Plan.model_validate(each) for each in answer(*arguments)["plans"]]
        assert [each.precision for each in found] == list(TARGETS[target].precisions)
        table = run("plan", *arguments).out.splitlines()
        assert [line.split()[0] for line in table[-len(found) :]] == list(TARGETS[target].precisions)

    def test_side_by_side_is_also_what_there_is_room_for(
        self, run: Callable[..., Any], answer: Callable[..., dict[str, Any]]
    ) -> None:
        arguments = ("--scale", "1b", "--target", "onnxruntime", "--device", "raspberry-pi-5-8gb", "--compare")
        head, *rows = [re.split(r"  +", line) for line in run("plan", *arguments).out.splitlines()[2:]]
        places = head.index("tokens"), head.index("loops")
        for row, found in zip(rows, answer(*arguments)["plans"], strict=True):
            assert [int(row[at].replace(",", "")) for at in places] == [
                found["largest_context"],
                found["largest_loops"],
            ]

    def test_of_a_device_far_too_small_the_percentage_is_not_counted_out(
        self, run: Callable[..., Any], tmp_path: Path
    ) -> None:
        (tmp_path / "dot.json").write_text(json.dumps({"label": "dot", "kind": "cpu", "memory_bytes": 1000}))
        assert "  >1000 % of 1.0 kB" in run("plan", "--scale", "1t", "--device", tmp_path / "dot.json").out

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

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            (("tensorrt", "fp8", "jetson-orin-nano-8gb"), "TensorRT builds no fp8 engine for it"),
            (("tensorrt", "fp32", "raspberry-pi-5-8gb"), "TensorRT builds no fp32 engine for it"),
            (("portable", "int8", "rtx-4060"), "it would dequantise"),
        ],
    )
    def test_without_kernels_it_says_what_comes_of_it(
        self, run: Callable[..., Any], asked: tuple[str, str, str], words: str
    ) -> None:
        target, precision, device = asked
        outcome = run("plan", "--scale", "1b", "--target", target, "--precision", precision, "--device", device)
        assert "no kernels: " in outcome.out and words in outcome.out
        assert ("dequantise" in outcome.out) is (target != "tensorrt")

    def test_what_a_bound_takes_for_granted_is_said(self, run: Callable[..., Any]) -> None:
        asked = ("plan", "--scale", "1b", "--device")
        assert "at every loop: no cache is known" in run(*asked, "jetson-orin-nano-8gb").out
        assert "no cache is known" not in run(*asked, "rtx-4090").out
        assert "no cache is known" not in run("plan", "--scale", "1b").out
        assert "reads chosen experts" in run(*asked, "rtx-4090").out
        assert "reads the experts that even choices need" in run(*asked, "rtx-4090", "--batch", "2").out

    def test_a_files_name_cannot_write_to_the_terminal(self, run: Callable[..., Any], config_file: Path) -> None:
        hostile = config_file.rename(config_file.with_name("a\x1b[31mb.json"))
        outcome = run("plan", "--config", hostile)
        assert outcome.code == 0
        assert outcome.out.startswith("a?[31mb, portable")


class TestDoesNotFit:
    def test_it_is_an_answer_and_says_what_would(self, run: Callable[..., Any]) -> None:
        outcome = run("plan", "--scale", "3b", "--device", "jetson-orin-nano-8gb", "--target", "tensorrt")
        assert outcome.code == 0
        assert "does not fit: 1" in outcome.out
        assert "--precision int8 would fit" in outcome.out
        assert "--precision fp8" not in outcome.out  # no kernels there
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

    def test_a_roomier_device_has_kernels_too(self, answer: Callable[..., dict[str, Any]]) -> None:
        """An Orin has the memory, but TensorRT builds no fp8 engine for it."""
        asked = ("--scale", "10b", "--target", "tensorrt", "--precision", "fp8")
        found = answer(*asked, "--device", "rtx-4060")
        assert [each for each in found["remedies"] if each.startswith("--device")] == ["--device rtx-4090"]
        assert answer(*asked, "--device", "rtx-4090")["kernels"] is True

    def test_where_nothing_has_kernels_room_is_enough(self, answer: Callable[..., dict[str, Any]]) -> None:
        found = answer("--scale", "10b", "--precision", "int4", "--device", "rtx-4060")
        assert (found["kernels"], found["fits"]) == (False, False)
        assert "--device jetson-agx-orin-64gb" in found["remedies"]

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
