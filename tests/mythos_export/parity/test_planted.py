"""Defects planted in a bundle, its hashes made right again: each must be caught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from mythos_export.bundle import Bundle, BundleError, file_entry
from mythos_export.parity.run import check_parity
from mythos_export.progress import Reporter
from mythos_export.records.parity import ParityReport
from reference_model.checkpoint import SeededWeights
from reference_model.open_mythos.config import MythosConfig

LOOPS = (1, 2, 4, 8)  # 8 is past the end of the depth-LoRA table


def plant(original: Path, copy: Path, edit: Callable[[onnx.ModelProto, Path], None]) -> Bundle:
    """A copy of a bundle with an edited graph or data, and a manifest that vouches for it."""
    shutil.copytree(original, copy)
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    edit(model, copy)
    onnx.save(model, copy / "model.onnx")
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = file_entry(copy / name).model_dump()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(copy)


def verify(bundle: Bundle, config: MythosConfig) -> ParityReport:
    return check_parity(bundle, SeededWeights(config, 0), config, LOOPS, Reporter(quiet=True))


def body(model: onnx.ModelProto) -> onnx.GraphProto:
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    return loop.attribute[0].g


def test_an_honest_copy_passes(tiny_bundle: Path, mla_config: MythosConfig, tmp_path: Path) -> None:
    """Guards the tests below: the planting itself breaks nothing."""
    report = verify(plant(tiny_bundle, tmp_path / "copy", lambda model, path: None), mla_config)
    assert report.passed, report.failures
    assert report.graph_check == "the same as built anew"


def test_one_flipped_bit_of_one_weight(tiny_bundle: Path, mla_config: MythosConfig, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto, path: Path) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "coda.0.ffn.up.weight.T")
        offset = int({entry.key: entry.value for entry in tensor.external_data}["offset"])
        data = np.memmap(path / "model.onnx.data", np.uint8, "r+")
        data[offset] ^= 1  # the lowest bit of the mantissa
        data.flush()

    report = verify(plant(tiny_bundle, tmp_path / "copy", edit), mla_config)
    assert report.weights_differing == ["coda.0.ffn.up.weight.T"]
    assert not report.passed


@pytest.mark.parametrize(("change", "ran"), [(1, 2), (-1, 0)])
def test_an_off_by_one_trip_count(
    tiny_bundle: Path, mla_config: MythosConfig, tmp_path: Path, change: int, ran: int
) -> None:
    def edit(model: onnx.ModelProto, path: Path) -> None:
        (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
        at = list(model.graph.node).index(loop)
        constant = onnx.helper.make_node("Constant", [], ["one"], value_int=change)
        model.graph.node.insert(at, onnx.helper.make_node("Add", [loop.input[0], "one"], ["trips"]))
        model.graph.node.insert(at, constant)
        loop.input[0] = "trips"

    report = verify(plant(tiny_bundle, tmp_path / "copy", edit), mla_config)
    assert not report.passed
    assert any("prefill at 1 loops" in failure for failure in report.failures)
    assert any("prefill at 8 loops" in failure for failure in report.failures)


def test_a_depth_counted_one_off_inside_the_loop(tiny_bundle: Path, mla_config: MythosConfig, tmp_path: Path) -> None:
    """The trip count is right, but a sequence is frozen one loop too late."""

    def edit(model: onnx.ModelProto, path: Path) -> None:
        (less,) = (n for n in body(model).node if n.op_type == "Less" and "n_loops" in n.input)
        less.op_type = "LessOrEqual"

    report = verify(plant(tiny_bundle, tmp_path / "copy", edit), mla_config)
    assert any("mixed" in failure for failure in report.failures), report.failures


def test_two_swapped_experts(tiny_bundle: Path, mla_config: MythosConfig, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto, path: Path) -> None:
        swap = {"experts.0.": "experts.4.", "experts.4.": "experts.0."}
        for node in body(model).node:
            for index, name in enumerate(node.input):
                for old, new in swap.items():
                    if f"routed_{old}" in name:
                        node.input[index] = name.replace(old, new)
                        break

    report = verify(plant(tiny_bundle, tmp_path / "copy", edit), mla_config)
    assert report.weights_differing == [], "the weights themselves are right"
    assert not report.passed
    prefill = next(case for case in report.graphs[0].cases if case.kind == "prefill" and case.loops == [8])
    assert prefill.first_depth_out == 1


def test_an_unclamped_lora_index(tiny_bundle: Path, mla_config: MythosConfig, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto, path: Path) -> None:
        (clip,) = (n for n in body(model).node if n.op_type == "Clip" and n.input[0] == "loop_index")
        (gather,) = (n for n in body(model).node if clip.output[0] in n.input)
        gather.input[1] = "loop_index"
        body(model).node.remove(clip)

    report = verify(plant(tiny_bundle, tmp_path / "copy", edit), mla_config)
    failed = {max(case.loops) for case in report.graphs[0].cases if not case.passed}
    assert failed == {8}, "only past the table's end"


def test_a_lora_row_read_one_depth_late(tiny_bundle: Path, mla_config: MythosConfig, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto, path: Path) -> None:
        graph = body(model)
        (clip,) = (n for n in graph.node if n.op_type == "Clip" and n.input[0] == "loop_index")
        at = list(graph.node).index(clip)
        graph.node.insert(at, onnx.helper.make_node("Add", ["loop_index", "one_more"], ["late_index"]))
        graph.node.insert(at, onnx.helper.make_node("Constant", [], ["one_more"], value_int=1))
        clip.input[0] = "late_index"

    report = verify(plant(tiny_bundle, tmp_path / "copy", edit), mla_config)
    assert not any(case.passed for case in report.graphs[0].cases)


def test_a_router_bias_that_is_ignored(tiny_bundle: Path, mla_config: MythosConfig, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto, path: Path) -> None:
        graph = body(model)
        (add,) = (n for n in graph.node if "recurrent.block.ffn.router_bias" in n.input)
        add.op_type = "Sub"

    report = verify(plant(tiny_bundle, tmp_path / "copy", edit), mla_config)
    assert any("router decisions differ that are no near-tie" in failure for failure in report.failures)


def test_a_byte_changed_without_its_hash_is_refused_before_anything_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "copy")
    data = np.memmap(tmp_path / "copy" / "model.onnx.data", np.uint8, "r+")
    data[100] ^= 1
    data.flush()
    with pytest.raises(BundleError, match="altered since it was exported"):
        Bundle.open(tmp_path / "copy")


def test_a_halting_threshold_that_no_token_meets(tiny_bundle: Path, mla_config: MythosConfig, tmp_path: Path) -> None:
    """Every number agrees, since no token lands between the two; the graph itself gives it away."""

    def edit(model: onnx.ModelProto, path: Path) -> None:
        (tensor,) = (t for t in body(model).initializer if _is_threshold(t))
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(0.9899, np.float32), tensor.name))

    report = verify(plant(tiny_bundle, tmp_path / "copy", edit), mla_config)
    assert all(case.passed for case in report.graphs[0].cases)
    assert report.graph_check == "different"
    assert any("not the graph this release builds" in failure for failure in report.failures)


def _is_threshold(tensor: onnx.TensorProto) -> bool:
    scalar = tensor.data_type == onnx.TensorProto.FLOAT and not tensor.dims
    return scalar and abs(onnx.numpy_helper.to_array(tensor).item() - 0.99) < 1e-6


def test_a_graph_of_another_release_is_not_rebuilt_and_that_is_said(
    tiny_bundle: Path, mla_config: MythosConfig, tmp_path: Path
) -> None:
    bundle = plant(tiny_bundle, tmp_path / "copy", lambda model, path: None)
    bundle.manifest.tool["torch"] = "2.10.0"
    report = verify(bundle, mla_config)
    assert report.passed
    assert report.graph_check.startswith("not rebuilt: it was made by torch 2.10.0 (here ")
