"""`config.pbtxt`: Triton's own message, of exactly what the graph takes and gives."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest

from engines.errors import EngineError
from engines.triton.contract import GENERATOR_INPUTS, GENERATOR_OUTPUTS, SETTINGS
from engines.triton.repository import config as writer
from engines.triton.repository.config import check_config, generator_config, parse_config, tensors_config, to_text
from engines.triton.repository.session_options import backend_options
from engines.triton.repository.signature import Signature, Tensor, chosen_graph, read_signature
from mythos_export.bundle import Bundle

TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(bfloat16)": "TYPE_BF16",
    "tensor(int64)": "TYPE_INT64",
}


def config_of(bundle: Bundle, backend: str = "onnxruntime") -> Any:
    signature = read_signature(bundle, chosen_graph(bundle))
    config = tensors_config("m", signature, backend=backend, device="cpu", parameters={})
    check_config(config, signature, "here")
    return parse_config(to_text(config))


def ports(config: Any) -> dict[str, tuple[str, list[int]]]:
    names = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return {port.name: (names[port.data_type].name, list(port.dims)) for port in (*config.input, *config.output)}


def asked(bundle: Bundle, graph: str) -> dict[str, tuple[str, list[int]]]:
    """What ONNX Runtime says, by another path than the writer's: all optimisers on, as in the server."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(bundle.path / graph), options, providers=["CPUExecutionProvider"])
    return {
        node.name: (TYPES[node.type], [size if isinstance(size, int) else -1 for size in node.shape] or [1])
        for node in (*session.get_inputs(), *session.get_outputs())
    }


@pytest.mark.parametrize("fixture", ["tiny_bundle", "tiny_gqa_bundle"])
def test_every_input_and_output_of_the_graph_is_there(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(fixture))
    config = config_of(bundle)
    assert ports(config) == asked(bundle, "model.onnx")
    assert [port.name for port in config.input] == [spec.name for spec in bundle.manifest.inputs]
    assert [port.name for port in config.output] == [spec.name for spec in bundle.manifest.outputs]
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")


@pytest.mark.parametrize(("dtype", "wanted"), [("float32", "FP32"), ("float16", "FP16"), ("bfloat16", "BF16")])
def test_the_types_of_the_cache(toy: Callable[..., Bundle], dtype: str, wanted: str) -> None:
    bundle = toy(dtype=dtype)
    found = ports(config_of(bundle, "python"))
    assert found["past.prelude.latent"] == (f"TYPE_{wanted}", [1, -1, -1, 1])
    assert found["new.recurrent.latent"] == (f"TYPE_{wanted}", [-1, -1, -1, 1])
    assert found["logits"] == ("TYPE_FP32", [-1, -1, 16])
    # Triton's core refuses both a size of 0 and an empty reshape without batching
    assert found["past.coda.latent"][1] == [-1, -1, -1, 1]
    assert found["logits_to_keep"] == ("TYPE_INT64", [1])


def test_a_cache_without_layers_is_refused_where_the_backend_compares_sizes(toy: Callable[..., Bundle]) -> None:
    with pytest.raises(EngineError, match=r"'past\.coda\.latent' is a cache without layers.*use --backend python"):
        config_of(toy(), "onnxruntime")


@pytest.mark.parametrize("loops", [["dynamic", 4, 2], [2, "dynamic"]])
def test_of_several_graphs_the_one_with_the_loop(toy: Callable[..., Bundle], loops: list[Any]) -> None:
    assert chosen_graph(toy(loops=loops)).file == "model-dynamic.onnx"


def test_of_unrolled_graphs_the_deepest(toy: Callable[..., Bundle]) -> None:
    assert chosen_graph(toy(loops=[2, 5, 4])).file == "model-5.onnx"


SIGNATURE = Signature(
    (Tensor("input_ids", "int64", (None, None)), Tensor("logits_to_keep", "int64", ())),
    (Tensor("logits", "float32", (None, None, 16)),),
)
PLANTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a type": (lambda c: setattr(c.input[0], "data_type", c.output[0].data_type), "input input_ids is TYPE_FP32"),
    "a fixed size": (lambda c: c.output[0].dims.__setitem__(2, 17), r"output logits is TYPE_FP32 \[-1, -1, 17\]"),
    "a symbol fixed": (lambda c: c.input[0].dims.__setitem__(0, 1), r"but the graph's is int64 \[\?, \?\]"),
    "a size freed": (lambda c: c.output[0].dims.__setitem__(2, -1), r"the graph's is float32 \[\?, \?, 16\]"),
    "a dimension more": (lambda c: c.input[0].dims.append(-1), "input input_ids is TYPE_INT64"),
    "a scalar widened": (lambda c: c.input[1].dims.__setitem__(0, 2), "input logits_to_keep"),
    "a name": (lambda c: setattr(c.input[0], "name", "ids"), "its inputs differ in ids, input_ids"),
    "one too few": (lambda c: c.output.pop(), "its outputs differ in logits"),
    "one twice": (lambda c: c.input.add().CopyFrom(c.input[0]), "its inputs differ in what is named twice"),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_config_that_says_something_else_than_the_graph(mistake: str) -> None:
    config = tensors_config("m", SIGNATURE, backend="python", device="cpu", parameters={})
    check_config(config, SIGNATURE, "here")
    plant, message = PLANTED[mistake]
    plant(config)
    with pytest.raises(EngineError, match=f"^here: .*{message}"):
        check_config(parse_config(to_text(config)), SIGNATURE, "here")


MISSAID: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": "float16"}, "output logits is float32"),
    "size": ({"shape": ["batch", "kept", 15]}, "output logits is float32"),
    "rank": ({"shape": ["batch", 16]}, "output logits is float32"),
    "symbol": ({"shape": ["batch", 3, 16]}, "output logits is float32"),
    "name": ({"name": "logit"}, "its outputs differ in logit, logits"),
}


@pytest.mark.parametrize("mistake", MISSAID)
def test_a_manifest_that_says_something_else_than_its_graph(toy: Callable[..., Bundle], mistake: str) -> None:
    bundle = toy()
    change, message = MISSAID[mistake]
    outputs = [bundle.manifest.outputs[0].model_copy(update=change), *bundle.manifest.outputs[1:]]
    lying = Bundle(bundle.path, bundle.manifest.model_copy(update={"outputs": outputs}))
    with pytest.raises(EngineError, match=message):
        read_signature(lying, chosen_graph(lying))


def test_a_graph_that_does_not_load(toy: Callable[..., Bundle]) -> None:
    bundle = toy()
    bundle.file("model-dynamic.onnx").write_bytes(b"\x08\x0a")
    bundle = Bundle(bundle.path, bundle.manifest)  # not checked, so it has not changed since
    with pytest.raises(EngineError, match=r"model-dynamic\.onnx: ONNX Runtime cannot load it"):
        read_signature(bundle, chosen_graph(bundle))


def test_the_generator_has_the_whole_contract() -> None:
    config = parse_config(to_text(generator_config("g", {"max_batch": 4, "cache_bytes": 1 << 40})))
    found = ports(config)
    assert found == {port.name: (port.dtype, list(port.dims)) for port in (*GENERATOR_INPUTS, *GENERATOR_OUTPUTS)}
    assert {port.name for port in config.input if not port.optional} == {
        port.name for port in GENERATOR_INPUTS if not port.optional
    }
    assert config.model_transaction_policy.decoupled and config.backend == "python" and config.max_batch_size == 1
    (instances,) = config.instance_group
    assert (instances.count, instances.kind) == (1, instances.KIND_CPU), "it batches by itself, in one process"
    # only what was given: the rest keeps its default
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "max_batch": "4",
        "cache_bytes": str(1 << 40),
    }


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", 1 << 63])
def test_a_setting_that_is_no_count(value: Any) -> None:
    with pytest.raises(EngineError, match=r"^max_batch is .*positive integer"):
        generator_config("g", {"max_batch": value})


def test_a_setting_that_there_is_not() -> None:
    with pytest.raises(EngineError, match=f"'max_btach' is no setting.*{', '.join(SETTINGS)}"):
        generator_config("g", {"max_btach": 1})


@pytest.mark.parametrize("text", ["nonsense: 1", 'name: "a" name: "b" {', "max_batch_size: many"])
def test_text_that_is_no_config(text: str) -> None:
    with pytest.raises(EngineError, match=r"not a config\.pbtxt"):
        parse_config(text)


def test_a_type_that_triton_lacks() -> None:
    with pytest.raises(EngineError, match="'x' is 'float8e4m3fn', which Triton has no type for"):
        tensors_config(
            "m",
            Signature((Tensor("x", "float8e4m3fn", (None,)),), ()),
            backend="python",
            device="cpu",
            parameters={},
        )


def test_a_tritonclient_without_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> types.ModuleType:
        raise RuntimeError("The installation does not include grpc support")

    monkeypatch.setattr(writer.importlib, "import_module", fail)
    with pytest.raises(EngineError, match=r'pip install "mythos-export\[triton\]"'):
        generator_config("g", {})


def test_session_options_that_the_backend_takes_in_another_form() -> None:
    """Fusing Q/DQ is what `session.disable_quant_qdq` forbids; it begins above the basic level."""
    assert backend_options({"session.disable_quant_qdq": "1"}) == ({}, -1, [])
    assert backend_options({"session.disable_quant_qdq": "0"}).graph_level is None
    kept = {"session.use_device_allocator_for_initializers": "1"}
    assert backend_options(kept) == (kept, None, [])


@pytest.mark.parametrize(
    "option", [("disabled_optimizers", "MatMulAddFusion"), ("session.intra_op.allow_spinning", "0")]
)
def test_session_options_that_cost_speed_are_noted(option: tuple[str, str]) -> None:
    parameters, level, (note,) = backend_options(dict([option]))
    assert (parameters, level) == ({}, None)
    assert option[1] in note


@pytest.mark.parametrize(
    "option", [("disabled_optimizers", "MatMulAddFusion,Other"), ("session.qdq_matmulnbits_accuracy_level", "4")]
)
def test_session_options_that_could_change_results_are_refused(option: tuple[str, str]) -> None:
    with pytest.raises(EngineError, match=f"'{option[0]}'.*use --backend python"):
        backend_options(dict([option]))
