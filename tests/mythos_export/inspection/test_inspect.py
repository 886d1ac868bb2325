"""`inspect`: what it says of real bundles, on a bare device, and of damaged ones."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console

from engines.receipts import Receipt, source_hash
from mythos_export.bundle import Bundle, BundleError, file_entry
from mythos_export.inspection.inspect import Inspection, inspect
from mythos_export.inspection.tree import tree
from mythos_export.weights.write import DATA_FILE
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.parameters import parameter_shapes

MakeBundle = Callable[..., Bundle]
ROOT = Path(__file__).resolve().parents[3]
BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "ml_dtypes", "onnxruntime"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = ["mythos-export", *sys.argv[1:]]
from mythos_export.cli import main
main()
"""


def copied(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(path, tmp_path / "copy"))


def resealed(path: Path) -> Bundle:
    """A bundle whose files were changed, with a manifest that says so."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = file_entry(path / name).model_dump()
    (path / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(path)


def groups(found: Inspection) -> dict[tuple[str, str], Any]:
    return {(stage.stage, group.group): group for stage in found.stages for group in stage.groups}


class TestContents:
    def test_stages_hold_every_parameter_and_every_byte(self, tiny_bundle: Path, mla_config: MythosConfig) -> None:
        bundle = Bundle.open(tiny_bundle)
        found = inspect(bundle)
        assert [stage.stage for stage in found.stages] == ["embedding", "prelude", "loop", "coda", "head"]
        total = sum(math.prod(shape) for shape in parameter_shapes(mla_config).values())
        assert sum(stage.parameters or 0 for stage in found.stages) == found.parameters == total
        assert found.weight_bytes == found.file_bytes == bundle.manifest.files[DATA_FILE].size == 4 * total

    def test_groups(self, tiny_bundle: Path) -> None:
        found = groups(inspect(Bundle.open(tiny_bundle)))
        routed = found["loop", "routed experts"]
        assert (routed.tensors, routed.parameters, routed.bytes) == (6 * 3, 6 * 3 * 64 * 32, 4 * 6 * 3 * 64 * 32)
        assert found["coda", "attention"].tensors == 2 * 7  # kv_up is two
        assert found["loop", "halting"].parameters == 65

    def test_operators_are_those_of_the_graph_by_stage(self, tiny_bundle: Path) -> None:
        model = onnx.load(tiny_bundle / "model.onnx", load_external_data=False)
        (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
        body = Counter(node.op_type for node in loop.attribute[0].g.node)
        (graph,) = inspect(Bundle.open(tiny_bundle)).graphs
        assert graph.nodes == len(model.graph.node) + len(loop.attribute[0].g.node)
        assert set(graph.operators) == {"embedding", "prelude", "loop", "coda", "head"}
        assert graph.operators["loop"]["MatMul"] == body["MatMul"]
        assert graph.operators["loop"]["Loop"] == 1
        assert graph.operators["head"]["Gemm"] == 1

    @pytest.mark.parametrize(
        ("target", "precision", "group", "dtypes"),
        [
            ("portable", "fp16", ("loop", "attention"), ["float16"]),
            ("portable", "fp16", ("loop", "router"), ["float32"]),
            ("portable", "int8", ("embedding", "table"), ["int8", "float32"]),
            ("onnxruntime", "int4", ("loop", "routed experts"), ["uint8", "float32"]),
            ("onnxruntime", "int8", ("loop", "routed experts"), ["uint8", "float32"]),
            ("onnxruntime", "int4", ("head", "output"), ["uint8", "float32"]),
            ("tensorrt", "fp8", ("prelude", "feed-forward"), ["float8e4m3fn", "float32"]),
        ],
    )
    def test_types(
        self,
        make_bundle: MakeBundle,
        mla_config: MythosConfig,
        target: str,
        precision: str,
        group: tuple[str, str],
        dtypes: list[str],
    ) -> None:
        found = inspect(make_bundle(mla_config, target=target, precision=precision))
        assert list(groups(found)[group].dtypes) == dtypes
        assert sum(stage.parameters or 0 for stage in found.stages) == found.parameters

    def test_graphs_that_share_weights_count_them_once(self, make_bundle: MakeBundle, mla_config: MythosConfig) -> None:
        bundle = make_bundle(mla_config, loops="2,3")
        found = inspect(bundle)
        assert [graph.loops for graph in found.graphs] == ["dynamic", 2, 3]
        looped, two, three = (graph.operators["loop"]["MatMul"] for graph in found.graphs)
        assert (two, three) == (2 * looped, 3 * looped)
        assert not any("other" in graph.operators for graph in found.graphs)
        assert found.weight_bytes == bundle.manifest.files[DATA_FILE].size

    def test_a_bundle_without_a_config_and_with_names_of_its_own(self, tiny_bundle: Path, tmp_path: Path) -> None:
        path = copied(tiny_bundle, tmp_path)
        model = onnx.load(path / "model.onnx", load_external_data=False)
        for index, node in enumerate(model.graph.node):
            node.name = f"node{index}"
        (path / "model.onnx").write_bytes(model.SerializeToString())
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["files"]["config.json"]
        (path / "manifest.json").write_text(json.dumps(manifest))
        found = inspect(resealed(path))
        assert {stage.parameters for stage in found.stages} == {None}
        assert set(found.graphs[0].operators) == {"loop", "other"}  # a body is a body
        assert "None" not in shown(found, 80)


def shown(found: Inspection, width: int) -> str:
    """The tree, as a terminal of some width has it."""
    console = Console(width=width, force_terminal=True, no_color=True, highlight=False, record=True, file=io.StringIO())
    console.print(tree(found))
    return console.export_text()


class TestCommand:
    def run(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", BARE, "inspect", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **environment},
        )

    def test_a_bare_device_shows_it(self, tiny_bundle: Path) -> None:
        shown = self.run(tiny_bundle)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "loop (one block, run at every depth)" in shown.stdout
        assert "past.recurrent.latent: float32 [loops, batch, past, 16]" in shown.stdout
        assert "\x1b" not in shown.stdout
        assert not any(line.endswith(" ") for line in shown.stdout.splitlines())

    def test_json_is_one_object_with_everything(self, tiny_bundle: Path) -> None:
        found = json.loads(self.run(tiny_bundle, "--json").stdout)
        bundle = Bundle.open(tiny_bundle)
        assert Inspection.model_validate({key: found[key] for key in Inspection.model_fields}) == inspect(bundle)
        assert found["bundle"] == str(tiny_bundle)

    def test_an_altered_bundle_is_refused(self, tiny_bundle: Path, tmp_path: Path) -> None:
        path = copied(tiny_bundle, tmp_path)
        data = bytearray((path / DATA_FILE).read_bytes())
        data[100] ^= 1
        (path / DATA_FILE).write_bytes(data)
        shown = self.run(path)
        assert shown.returncode == 2
        assert "altered since it was exported" in shown.stderr
        assert shown.stdout == ""


class TestTerminal:
    @pytest.mark.parametrize("width", [40, 80, 200])
    def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(self, tiny_bundle: Path, width: int) -> None:
        lines = shown(inspect(Bundle.open(tiny_bundle)), width).splitlines()
        assert max(map(len, lines)) <= width
        joined = re.sub(r"[│├└─\s]", "", "".join(lines))
        assert "past.recurrent.latent:float32[loops,batch,past,16]" in joined

    def test_names_in_a_hostile_manifest_are_no_escapes(self, tiny_bundle: Path, tmp_path: Path) -> None:
        path = copied(tiny_bundle, tmp_path)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest |= {"name": "a\x1b[31mb\nc", "command": ["[bold]x[/bold]", "\x07"], "session": {"k\x1b]0;t\x07": "v"}}
        (path / "manifest.json").write_text(json.dumps(manifest))
        text = shown(inspect(Bundle.open(path)), 80)
        assert "\x1b" not in text and "\x07" not in text
        assert "a?[31mb?c" in text
        assert "[bold]x[/bold]" in text


class TestHostile:
    def damaged(self, path: Path, change: Callable[[onnx.ModelProto], None]) -> Bundle:
        model = onnx.load(path / "model.onnx", load_external_data=False)
        change(model)
        (path / "model.onnx").write_bytes(model.SerializeToString())
        return resealed(path)

    @pytest.mark.parametrize(
        ("key", "value"), [("offset", "999999999"), ("offset", "-1"), ("length", "1"), ("length", "9" * 5000)]
    )
    def test_weights_that_lie_elsewhere(self, tiny_bundle: Path, tmp_path: Path, key: str, value: str) -> None:
        def change(model: onnx.ModelProto) -> None:
            tensor = next(each for each in model.graph.initializer if each.external_data)
            for entry in tensor.external_data:
                if entry.key == key:
                    entry.value = value

        with pytest.raises(BundleError, match="does not lie where the graph says"):
            inspect(self.damaged(copied(tiny_bundle, tmp_path), change))

    def test_a_shape_that_its_bytes_do_not_fill(self, tiny_bundle: Path, tmp_path: Path) -> None:
        def change(model: onnx.ModelProto) -> None:
            next(each for each in model.graph.initializer if each.external_data).dims[0] = -5

        with pytest.raises(BundleError, match="does not lie where the graph says"):
            inspect(self.damaged(copied(tiny_bundle, tmp_path), change))

    def test_a_type_nobody_knows(self, tiny_bundle: Path, tmp_path: Path) -> None:
        def change(model: onnx.ModelProto) -> None:
            next(each for each in model.graph.initializer if each.external_data).data_type = 99

        with pytest.raises(BundleError, match="type 99 is unknown to this release"):
            inspect(self.damaged(copied(tiny_bundle, tmp_path), change))

    def test_a_config_that_is_none(self, tiny_bundle: Path, tmp_path: Path) -> None:
        path = copied(tiny_bundle, tmp_path)
        (path / "config.json").write_text('{"dim": 0}')
        with pytest.raises(BundleError, match="dim is 0"):
            inspect(resealed(path))

    def test_a_cache_of_a_type_nobody_knows(self, tiny_bundle: Path, tmp_path: Path) -> None:
        path = copied(tiny_bundle, tmp_path)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["cache"][0]["dtype"] = "float3"
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match="cache of 'float3'"):
            inspect(Bundle.open(path))


class TestEngines:
    @pytest.fixture
    def built(self, tiny_bundle: Path, tmp_path: Path) -> Path:
        """A bundle with an engine beside it that only looks like one."""
        path = copied(tiny_bundle, tmp_path)
        bundle = Bundle.open(path)
        (path / "engines").mkdir()
        (path / "engines" / "sm89.model.plan").write_bytes(b"engine")
        axis = {"min": 1, "opt": 1, "max": 4}
        receipt = {
            "format_version": 1,
            "sm": "8.9",
            "runtime": "tensorrt_rtx",
            "runtime_version": "1.7.1",
            "tool": "0.1.0",
            "created": "2026-01-01T00:00:00Z",
            "precision": "fp32",
            "flags": [],
            "profile": dict.fromkeys(("batch", "seq", "past", "loops"), axis),
            "engines": [
                {
                    "file": "sm89.model.plan",
                    "loops": "dynamic",
                    "graph": "model.onnx",
                    "source": source_hash(bundle, "model.onnx"),
                    "entry": {"sha256": hashlib.sha256(b"engine").hexdigest(), "size": 6},
                    "seconds": 1.0,
                    "gemms": None,
                }
            ],
        }
        (path / "engines" / "sm89.json").write_text(Receipt.model_validate(receipt).model_dump_json())
        return path

    def test_a_receipt_is_shown(self, built: Path) -> None:
        (found,) = inspect(Bundle.open(built)).engines
        assert found.problem is None and found.receipt is not None
        assert (found.file, found.sm, found.receipt.runtime) == ("engines/sm89.json", "8.9", "tensorrt_rtx")

    @pytest.mark.parametrize("damage", ["altered", "missing", "no receipt", "link"])
    def test_one_that_is_of_no_use_says_why(self, built: Path, damage: str) -> None:
        receipt, engine = built / "engines" / "sm89.json", built / "engines" / "sm89.model.plan"
        if damage == "altered":
            engine.write_bytes(b"other")
        elif damage == "missing":
            engine.unlink()
        elif damage == "no receipt":
            receipt.write_text("{}")
        else:
            receipt.rename(built / "moved.json")
            receipt.symlink_to(built / "moved.json")
        (found,) = inspect(Bundle.open(built)).engines
        assert found.receipt is None
        assert found.problem is not None and "mythos-export build" in found.problem

    def test_other_files_there_are_no_receipts(self, built: Path) -> None:
        for name in ("notes.json", "sm8.json", "sm123456.json"):
            (built / "engines" / name).write_text("{}")
        assert [found.file for found in inspect(Bundle.open(built)).engines] == ["engines/sm89.json"]
