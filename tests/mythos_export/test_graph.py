"""The exported graph against its contract (names, shapes, structure), before any number is computed."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from mythos_export.bundle import Bundle
from reference_model.open_mythos.config import MythosConfig


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """A graph and all graphs nested in it."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _graphs(attribute.g)
    return found


def _ops(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for nested in _graphs(graph) for node in nested.node]


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.fixture(scope="module", params=["mla", "gqa"])
def bundle(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue("tiny_bundle" if request.param == "mla" else "tiny_gqa_bundle"))


@pytest.fixture(scope="module")
def model(bundle: Path) -> onnx.ModelProto:
    return onnx.load(bundle / "model.onnx", load_external_data=False)


def test_the_checker_accepts_it(bundle: Path) -> None:
    onnx.checker.check_model(str(bundle / "model.onnx"), full_check=True)


def test_it_uses_standard_ops_of_opset_21_only(model: onnx.ModelProto) -> None:
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    assert {node.domain for nested in _graphs(model.graph) for node in nested.node} == {""}


def test_inputs_are_the_contracts(model: onnx.ModelProto, bundle: Path) -> None:
    fixed = {value.name: _dims(value) for value in list(model.graph.input)[:5]}
    assert fixed == {
        "input_ids": ["batch", "seq"],
        "attention_mask": ["batch", "past_plus_seq"],
        "position_ids": ["batch", "seq"],
        "n_loops": ["batch"],
        "logits_to_keep": [],
    }
    past = {value.name: _dims(value) for value in list(model.graph.input)[5:]}
    if "past.prelude.latent" in past:
        assert past == {
            "past.prelude.latent": [1, "batch", "past", 16],
            "past.prelude.rope": [1, "batch", "past", 8],
            "past.recurrent.latent": ["loops", "batch", "past", 16],
            "past.recurrent.rope": ["loops", "batch", "past", 8],
            "past.coda.latent": [2, "batch", "past", 16],
            "past.coda.rope": [2, "batch", "past", 8],
        }
    else:
        assert past == {
            f"past.{stage}.{part}": [depth, "batch", "past", 2, 16]
            for stage, depth in (("prelude", 1), ("recurrent", "loops"), ("coda", 2))
            for part in ("key", "value")
        }


def test_outputs_are_the_contracts(model: onnx.ModelProto) -> None:
    outputs = {value.name: _dims(value) for value in model.graph.output}
    inputs = {value.name: _dims(value) for value in model.graph.input}
    assert outputs["logits"] == ["batch", "kept", 97]
    assert outputs["halting.depth"] == ["batch", "seq"]
    for name, dims in inputs.items():
        if name.startswith("past."):
            new = outputs[name.replace("past.", "new.")]
            assert new[1:] == [dims[1], "seq", *dims[3:]]
            assert new[0] == ("trip_count" if "recurrent" in name else dims[0])
    assert len(outputs) == 8


def test_the_manifest_says_what_the_graph_says(model: onnx.ModelProto, bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert {spec.name: spec.shape for spec in manifest.inputs} == {v.name: _dims(v) for v in model.graph.input}
    assert {spec.name: spec.shape for spec in manifest.outputs} == {v.name: _dims(v) for v in model.graph.output}


def test_one_loop_whose_trip_count_is_the_deepest_sequences(model: onnx.ModelProto) -> None:
    assert _ops(model.graph).count("Loop") == 1
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    producers = {output: node for node in model.graph.node for output in node.output}
    trips = producers[loop.input[0]]
    assert (trips.op_type, list(trips.input)) == ("ReduceMax", ["n_loops"])
    assert loop.input[1] == "", "a counted loop: no condition goes in"
    body = loop.attribute[0].g
    condition = {output: node for node in body.node for output in node.output}[body.output[0].name]
    assert condition.op_type == "Constant"
    assert onnx.numpy_helper.to_array(condition.attribute[0].t).item() is True
    assert not any("condition" in node.input for node in body.node), "and the body does not read it"


def test_the_experts_are_routed_not_all_run(model: onnx.ModelProto) -> None:
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    ops = _ops(loop.attribute[0].g)
    assert {"TopK", "Gather", "Split"} <= set(ops)
    assert not {"NonZero", "If", "Loop", "Scan"} & set(ops)


def test_weights_are_in_the_main_graph_and_outside_the_file(model: onnx.ModelProto) -> None:
    main, *nested = _graphs(model.graph)
    assert all(tensor.ByteSize() < 4096 for graph in nested for tensor in graph.initializer)
    experts = [tensor for tensor in main.initializer if "routed_experts" in tensor.name]
    assert len(experts) == 6 * 3
    assert all(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in experts)


def test_values_are_named_once(model: onnx.ModelProto) -> None:
    names = [name for graph in _graphs(model.graph) for node in graph.node for name in node.output if name]
    assert len(names) == len(set(names))


def test_rows_not_caches_leave_the_graph(model: onnx.ModelProto) -> None:
    """No op joins the past with anything: appending is the engine's, at the cost of the new rows."""
    past = {value.name for value in model.graph.input if value.name.startswith("past.")}
    for graph in _graphs(model.graph):
        for node in graph.node:
            if past & set(node.input):
                assert node.op_type in ("Gather", "Shape"), f"{node.op_type} reads a whole past"
                past |= set(node.output) if node.op_type == "Gather" else set()
                break
    assert "Concat" not in {
        node.op_type for graph in _graphs(model.graph) for node in graph.node if past & set(node.input)
    }


@pytest.mark.parametrize(
    "fields", [{"prelude_layers": 0, "coda_layers": 0}, {"n_experts": 1, "n_experts_per_tok": 1, "n_shared_experts": 0}]
)
def test_corner_shapes_export(fields: dict[str, int], mla_config: MythosConfig, make_bundle) -> None:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    import numpy as np
    import torch

    import engines
    from reference_model.checkpoint import SeededWeights, load_model

    config = replace(mla_config, **fields)
    bundle = make_bundle(config)
    model = load_model(SeededWeights(config, 0), config).eval()
    ids = np.arange(7)[None]
    with torch.inference_mode():
        wanted = model(torch.from_numpy(ids), 3).logits.numpy()
    got = engines.load(bundle.path).logits(ids, 3)
    assert np.abs(got - wanted).max() <= 1e-4 * np.ptp(wanted)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_without_a_prelude(precision: str, mla_config: MythosConfig, make_bundle) -> None:  # type: ignore[no-untyped-def]
    """There the embedding's rows, which are stored in half precision, are what the Loop begins with."""
    from dataclasses import replace

    import numpy as np

    import engines

    config = replace(mla_config, prelude_layers=0)
    wanted = engines.load(make_bundle(config).path).logits([[1, 2, 3]], 3)
    got = engines.load(make_bundle(config, precision=precision).path).logits([[1, 2, 3]], 3)
    assert np.abs(got - wanted).max() <= 0.05 * np.ptp(wanted)
