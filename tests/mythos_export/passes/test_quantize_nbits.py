"""Linear layers as MatMulNBits: ONNX Runtime's result against the reference with the same roundings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from stored_weights import RUNS_INT4, bound, eventful_weights, session, state_of

from calibration.simulate import round_blocks
from mythos_export.graph_parts import HEAD_NAME, Builder, parameter
from mythos_export.passes import QuantizeNBits
from mythos_export.passes.rewriting import PassDidNothing
from mythos_export.quantization import Choices, Quantization, blockwise
from mythos_export.weights.restore import TIED_HEAD
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

EXACT = 2e-6  # share of the range; the sums' order apart, the numbers are the same: measured 3e-7

# Contractions of the tiny model: 64 is two blocks, 40 and 85 end in a shorter one, 24 and 16 are less than one.
LAYERS = {
    "coda.0.attn.wo": 40,
    "coda.0.attn.q_down": 64,
    "coda.0.attn.q_up_nope": 24,
    "coda.0.ffn.down": 85,
}


INT4 = blockwise(architecture(TINY), "int4")  # in blocks of 32
# Every kernel: bits of a weight, and the block, which follows from the experts' sizes.
KERNELS = [
    pytest.param(name, block, marks=pytest.mark.skipif(name == "int8" and not RUNS_INT4, reason="old onnxruntime"))
    for name in ("int4", "int8")
    for block in (32, 64, 128)
]


def taking(config: MythosConfig, block: int) -> MythosConfig:
    """The model with experts that take blocks of that size."""
    return replace(config, dim=max(64, block), expert_dim=block)


def graph_of(config: MythosConfig, layers: dict[str, int]) -> ir.Model:
    """A lookup, the head, and each layer on an input of its own: x.<layer> [b, s, contraction] -> y.<layer>."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="linears")
    build = Builder("linears")
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["b", "s"]))
    table = parameter(graph, "embed.weight", [config.vocab_size, config.dim])
    x = _input("x.head", ["rows", config.dim])
    graph.inputs.extend([ids, x])
    results = {"embedded": build.op("Gather", [table, ids], axis=0), "y.head": build.op("Gemm", [x, table], transB=1)}
    results["y.head"].producer().name = HEAD_NAME
    shapes = eventful_weights(config).shape
    for layer, contraction in layers.items():
        channels = shapes(f"{layer}.weight")[0]
        weight = parameter(graph, f"{layer}.weight.T", [contraction, channels])
        x = _input(f"x.{layer}", ["b", "s", contraction])
        graph.inputs.append(x)
        results[f"y.{layer}"] = build.op("MatMul", [x, weight])
    graph.extend(build.take())
    for name, value in results.items():
        value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(value)
    return ir.Model(graph, ir_version=10)


def _input(name: str, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def quantized(model: ir.Model, *keep: str, quantization: Quantization = INT4, config: MythosConfig = TINY) -> ir.Model:
    QuantizeNBits(quantization, Choices(keep=frozenset(keep)), architecture(config))(model)
    return model


def awkward(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Activations of very different sizes, halves of a step, an outlier, a row of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, dtype=np.float32) * np.exp(2 * rng.standard_normal(shape)).astype(np.float32)
    rows = x.reshape(-1, shape[-1])
    rows[:1] = np.resize(np.arange(-8, 8) + 0.5, shape[-1])
    rows[:1, ::32] = 127  # the others of the block are then halfway between two integers
    rows[1:2] = 0
    rows[2:3, -1] = 1e4
    return x


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 20), (2, 0)], ids=["token", "few", "prompts", "nothing"])
@pytest.mark.parametrize(("precision", "block"), KERNELS)
def test_it_computes_the_references_layers(
    mla_config: MythosConfig, shape: tuple[int, int], precision: str, block: int
) -> None:
    config = taking(mla_config, block)
    quantization = blockwise(architecture(config), precision)
    assert (quantization.block, quantization.dynamic_block) == (block, block)
    layers = LAYERS | {"coda.0.attn.q_down": config.dim, "coda.0.ffn.down": 4 * config.dim // 3}
    model = quantized(graph_of(config, layers), quantization=quantization, config=config)
    arrays = bound([model], eventful_weights(config), config)
    state, runtime = state_of(arrays, config), session(model)
    feeds = {f"x.{layer}": awkward((*shape, size), size) for layer, size in layers.items()}
    feeds["x.head"] = awkward((shape[0] * shape[1], config.dim), 0)
    outputs = [f"y.{layer}" for layer in (*layers, "head")]
    for layer, got in zip((*layers, "head"), runtime.run(outputs, feeds | {"ids": np.zeros(shape, np.int64)})):
        rounded = round_blocks(torch.from_numpy(feeds[f"x.{layer}"]), block)
        wanted = F.linear(rounded, state[TIED_HEAD if layer == "head" else f"{layer}.weight"]).numpy()
        assert got.shape == wanted.shape
        if wanted.size:
            rows = np.ptp(wanted, axis=-1).clip(min=1e-30)
            assert (np.abs(got - wanted).max(axis=-1) / rows).max() <= EXACT, layer


def test_a_token_is_computed_alike_alone_and_in_a_prompt(mla_config: MythosConfig) -> None:
    """A row is rounded by its own blocks: no neighbour changes it, be it a thousand times larger."""
    model = quantized(graph_of(mla_config, LAYERS))
    bound([model], eventful_weights(mla_config), mla_config)
    runtime, head = session(model), awkward((7, mla_config.dim), 0)
    others = {f"x.{layer}": np.zeros((1, 1, size), np.float32) for layer, size in LAYERS.items()}
    others["ids"] = np.zeros((1, 1), np.int64)
    (together,) = runtime.run(["y.head"], others | {"x.head": head})
    alone = np.concatenate([runtime.run(["y.head"], others | {"x.head": row[None]})[0] for row in head])
    assert (np.abs(alone - together).max(axis=1) <= EXACT * np.ptp(together, axis=1)).all()


@pytest.mark.parametrize(("precision", "kind", "width"), [("int4", "int4b32", 16), ("int8", "int8b32", 32)])
def test_a_layer_is_one_node_on_packed_weights(mla_config: MythosConfig, precision: str, kind: str, width: int) -> None:
    model = quantized(graph_of(mla_config, LAYERS), quantization=blockwise(architecture(mla_config), precision))
    nodes = [node for node in model.graph if node.domain == "com.microsoft"]
    assert Counter(node.op_type for node in nodes) == {"MatMulNBits": len(LAYERS) + 1}
    assert not [node for node in model.graph if node.op_type in ("MatMul", "Gemm", "DequantizeLinear")]
    (node,) = (node for node in nodes if node.inputs[1].name == f"coda.0.ffn.down.weight.T.{kind}.packed")
    assert [list(value.shape) for value in node.inputs[1:]] == [[64, 3, width], [64, 3]]
    assert node.attributes["bits"].as_int() == {"int4": 4, "int8": 8}[precision]
    assert model.opset_imports["com.microsoft"] == 1


def test_the_embedding_is_read_from_int8_rows(mla_config: MythosConfig) -> None:
    model = quantized(graph_of(mla_config, LAYERS))
    source = eventful_weights(mla_config)
    arrays = bound([model], source, mla_config)
    ids = np.array([[0, 96, 5], [5, 1, 2]])
    feeds = {f"x.{layer}": np.zeros((2, 3, size), np.float32) for layer, size in LAYERS.items()}
    feeds |= {"x.head": np.zeros((1, mla_config.dim), np.float32), "ids": ids}
    (got,) = session(model).run(["embedded"], feeds)
    np.testing.assert_array_equal(got, state_of(arrays, mla_config)["embed.weight"].numpy()[ids])
    rows = source.read("embed.weight").numpy()[ids]
    assert (np.abs(got - rows) <= np.abs(rows).max(-1, keepdims=True) / 254 * 1.001).all()
    assert arrays["embed.weight.rows"].dtype == np.int8


def test_layers_to_keep_stay_float(mla_config: MythosConfig) -> None:
    model = quantized(graph_of(mla_config, LAYERS), "coda.0.ffn.down", "head", "embed")
    names = {node.op_type for node in model.graph}
    assert {"MatMul", "Gemm", "MatMulNBits"} <= names
    kept = {node.inputs[1].name for node in model.graph if node.op_type in ("MatMul", "Gemm")}
    assert kept == {"coda.0.ffn.down.weight.T", "embed.weight"}
    assert "embed.weight.rows" not in model.graph.initializers


def test_nothing_to_do_is_an_error(mla_config: MythosConfig) -> None:
    with pytest.raises(PassDidNothing, match="--keep names every layer"):
        quantized(graph_of(mla_config, {"coda.0.ffn.down": 85}), "coda.0.ffn.down", "head", "embed")


def test_a_batch_of_matrices_has_to_be_kept(mla_config: MythosConfig) -> None:
    model = graph_of(mla_config, {})
    graph, build = model.graph, Builder("batched")
    x = _input("x.batched", ["b", 4, "s", 12])
    graph.inputs.append(x)
    name = "coda.0.attn.kv_up.weight.key"
    graph.outputs.append(build.op("MatMul", [x, parameter(graph, name, [4, 12, 16])]))
    graph.extend(build.take())
    with pytest.raises(ir.passes.PreconditionError, match=r"coda\.0\.attn\.kv_up\.key is no matrix"):
        quantized(model)
    quantized(model, "coda.0.attn.kv_up.key")
